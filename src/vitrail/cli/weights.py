"""``vitrail weights``: describe a file of weights, and try to load it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from vitrail.catalogue import show
from vitrail.cli.arguments import VerbParser, parse_settings, repeat_set
from vitrail.cli.tables import format_fields
from vitrail.errors import WeightsError, plural

if TYPE_CHECKING:
    from vitrail.models.recognise import WeightsFacts
    from vitrail.weights.report import LoadReport

# Metadata that other lines show already.
_SHOWN_ELSEWHERE = ("format", "model", "settings")


def main(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: Arguments after ``vitrail weights``.

    Returns:
        0; 1 if the weights would be refused by the model that ``--model`` names.

    Raises:
        ConfigError: An unknown model, setting or option.
        WeightsError: A file that is missing, damaged, refused, or of no known family.
    """
    arguments = _parser().parse_args(repeat_set(argv))
    settings = parse_settings(arguments.set)

    from vitrail.models.recognise import recognise
    from vitrail.weights.locations import find_weights, read_card
    from vitrail.weights.normalisation import read_normalization
    from vitrail.weights.read import read_location
    from vitrail.weights.remedies import COMMAND

    location = find_weights(arguments.file)
    checkpoint = read_location(location)
    beside = read_card(location.card)["settings"] if location.card else None
    allowed = {"allow_missing": arguments.allow_missing, "allow_unexpected": arguments.allow_unexpected}
    facts = recognise(checkpoint, arguments.file, beside, key=arguments.key, options=allowed, spelling=COMMAND)
    facts = dataclasses.replace(facts, normalization=read_normalization(location, checkpoint)[0])
    report, refused = _dry_run(arguments, settings) if arguments.model else (None, "")
    if arguments.json:
        record = {"file": arguments.file, **facts.to_dict()}
        if arguments.model:
            record["model"] = arguments.model
            record["report"] = None if report is None else report.to_dict()
            record["refused"] = refused or None
        print(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        print(_describe(arguments.file, facts, fits=report is not None))
        if arguments.model:
            print(f"\nloading into {arguments.model}:")
            print(f"  refused: {refused}" if report is None else _indented(report))
    return 1 if refused else 0


def _parser() -> VerbParser:
    parser = VerbParser("weights", "Say what a file of weights is, and what loading it would do.")
    parser.add_argument(
        "file", metavar="FILE", help="a file of weights, a run folder, or hf://owner/name on the Hugging Face hub"
    )
    parser.add_argument("--model", default=None, metavar="NAME", help="try this variant or family, too")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of --model, e.g. num_classes=10; several may follow",
    )
    parser.add_argument(
        "--key", default=None, metavar="KEY", help="path or prefix of the weights, where a file holds several"
    )
    parser.add_argument(
        "--source", default="auto", metavar="NAME", help="read the weights as this library's, for --model"
    )
    parser.add_argument(
        "--allow-missing", nargs="+", default=[], metavar="PATTERN", help="keys of the model that the weights may lack"
    )
    parser.add_argument(
        "--allow-unexpected", nargs="+", default=[], metavar="PATTERN", help="keys of the weights that may be left out"
    )
    parser.add_argument("--new-head", action="store_true", help="leave the weights' classifier out")
    parser.add_argument(
        "--bands",
        choices=("mean", "repeat", "wavelength"),
        default=None,
        help="rule that makes kernels for other bands",
    )
    parser.add_argument(
        "--band-wavelengths",
        nargs="+",
        type=float,
        default=None,
        metavar="NM",
        help="wavelengths of the model's bands, in nm",
    )
    parser.add_argument(
        "--source-wavelengths",
        nargs="+",
        type=float,
        default=None,
        metavar="NM",
        help="wavelengths of the weights' bands, in nm",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _dry_run(arguments: argparse.Namespace, settings: dict[str, Any]) -> tuple[LoadReport | None, str]:
    import torch

    from vitrail.models.registry import create_model
    from vitrail.weights.load import load_weights
    from vitrail.weights.remedies import COMMAND

    with torch.device("meta"):
        model = create_model(arguments.model, **settings)
    try:
        report = load_weights(
            model,
            arguments.file,
            arguments.source,
            key=arguments.key,
            new_head=arguments.new_head,
            bands=arguments.bands,
            band_wavelengths=arguments.band_wavelengths,
            source_wavelengths=arguments.source_wavelengths,
            allow_missing=arguments.allow_missing,
            allow_unexpected=arguments.allow_unexpected,
            dry_run=True,
            spelling=COMMAND,
        )
    except WeightsError as error:
        return None, str(error)
    return report, ""


def _describe(file: str, facts: WeightsFacts, fits: bool) -> str:
    """Describe the file, and the result of loading it into the first matching variant.

    Args:
        file: Name of the file.
        facts: Facts about the file.
        fits: Whether the model that was asked for fits, so that no advice on another is needed.
    """
    from vitrail.weights.normalisation import describe
    from vitrail.weights.remedies import COMMAND

    fields = [("source", facts.source), ("family", facts.family)]
    fields += [("variant" if i == 0 else "", _model(fit.name, fit.settings)) for i, fit in enumerate(facts.fits)]
    if facts.problem and not fits:
        fields.append(("variant", facts.problem))
        if facts.settings:
            unread = [f"--set {name}=N as it was trained (no shape shows it)" for name in facts.unread]
            words = " ".join([f"--model {facts.family}", COMMAND.settings(facts.settings), *unread])
            fields.append(("try", words))
    if facts.num_classes is not None:
        fields.append(("classes", str(facts.num_classes) if facts.num_classes else "no classifier"))
    for entry in facts.inputs:
        parts = [plural(entry.bands, "band")]
        parts += [f"{_by(entry.img_size)} pixels"] if entry.img_size else []
        parts += [f"patches of {_by(entry.patch_size)}"] if entry.patch_size else []
        parts += [f"on a grid of {_by(entry.grid)}"] if entry.grid else []
        fields.append((entry.stream, ", ".join(parts)))
    if facts.window_size:
        fields.append(("window", _by(facts.window_size)))
    precision = ", ".join(f"{kind} ({count})" for kind, count in facts.dtypes.items())
    fields += [
        ("tensors", f"{facts.tensors:,} of {facts.parameters:,} values, {facts.bytes / 1e6:.1f} MB"),
        ("precision", precision),
        ("format", facts.format),
    ]
    fields += [(f"{stream} norm", describe(pair)) for stream, pair in facts.normalization.items()]
    fields += [("unpacked", note) for note in facts.notes]
    fields += [("metadata", f"{key}: {value}") for key, value in facts.metadata.items() if key not in _SHOWN_ELSEWHERE]
    fields += [("warning", f"{plural(count, 'value')} of {key} not finite") for key, count in facts.not_finite.items()]
    text = f"{file}\n{format_fields(fields)}"
    if facts.fits:
        fit = facts.fits[0]
        text += f"\n\nloading into {_model(fit.name, fit.settings)}:\n{_indented(fit.report)}"
    return text


def _model(name: str, settings: dict[str, Any]) -> str:
    return f"{name} with {', '.join(f'{k} {show(v)}' for k, v in settings.items())}" if settings else name


def _by(pair: tuple[int, int] | None) -> str:
    return "" if pair is None else f"{pair[0]} x {pair[1]}"


def _indented(report: LoadReport) -> str:
    return "\n".join(f"  {line}" for line in str(report).splitlines())
