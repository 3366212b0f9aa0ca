"""``vitrail inspect``: follow one image through a model."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitrail.cli.arguments import VerbParser, parse_settings, repeat_set
from vitrail.cli.outputs import PICTURE, STEPS, output_file, output_folder
from vitrail.cli.tables import format_table
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from vitrail.cli.inputs import Prepared
    from vitrail.models.base import VisionModel
    from vitrail.models.profile import Step
    from vitrail.runs.trained import TrainedModel


def main(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: Arguments after ``vitrail inspect``.

    Returns:
        0.

    Raises:
        ConfigError: An unknown model, setting or option, or a value out of range.
        DataError: An image that cannot be read.
        RunError: A run folder that lacks a file, or figures that cannot be written.
    """
    arguments = _parser().parse_args(repeat_set(argv))
    img_size = _img_size(arguments.img_size)
    settings = _settings(arguments.set, img_size)
    _check(arguments)
    given = (arguments.image, arguments.spectral)
    if arguments.csv:
        arguments.csv = str(output_file(arguments.csv, STEPS, given, "--csv"))
    if arguments.diagram:
        arguments.diagram = str(output_file(arguments.diagram, PICTURE, given, "--diagram"))
        if Path(arguments.diagram).suffix.lower() not in (".svg", ".png"):
            raise ConfigError(f"--diagram {arguments.diagram} must be called NAME.svg or NAME.png")
    if arguments.figures:
        arguments.figures = str(output_folder(arguments.figures, (*given, arguments.name), "--figures"))

    from vitrail.cli.inputs import Prepared, prepare_inputs
    from vitrail.cli.recipes import data_for_files
    from vitrail.models.facts import resized_streams
    from vitrail.models.modality import check_need
    from vitrail.models.profile import example_inputs, walk
    from vitrail.runs.folder import RunFolder

    opened = _open(arguments.name, settings, img_size, arguments.no_time)
    model = opened.model
    if arguments.figures:
        check_need("inspect --figures", model.modality, arguments.name)
        if arguments.image is None:
            raise ConfigError("--figures draws what a model does with an image; name one with --image FILE")
    # A model is built for the size that was asked for; a run's is what it is and takes another size as it comes.
    streams = resized_streams(model.streams, None if opened.trained is None else img_size)
    if arguments.no_time:
        inputs = example_inputs(model, arguments.batch)
        inputs = [x.new_zeros(len(x), *s.shape) for x, s in zip(inputs, streams, strict=True)]
        shapes = ", ".join(f"{s.name} {' x '.join(map(str, x.shape))}" for s, x in zip(streams, inputs, strict=True))
        prepared = Prepared(inputs, f"{shapes}; counted without running, so no time", [], [])
    else:
        data = None if opened.trained is None else data_for_files(RunFolder.open(arguments.name), arguments)
        given = arguments.image, arguments.spectral
        prepared = prepare_inputs(streams, arguments.batch, *given, opened.trained, data)
    steps = walk(model, prepared.inputs, arguments.depth or "parts", repeats=arguments.repeats)
    print(f"{arguments.name}: {opened.description + '; ' if opened.trained else ''}{prepared.description}\n")
    print(_table(steps, arguments.batch))
    print("\n" + _legend(steps))
    if arguments.csv:
        from vitrail.files import write_text

        write_text(arguments.csv, _csv(steps))
        print(f"\nwrote {arguments.csv}")
    if arguments.diagram:
        _draw_graph(model, prepared, arguments, opened.description)
        print(f"\nwrote {arguments.diagram}")
    if arguments.figures:
        print("\n" + _draw(model, prepared, arguments.figures, f"{arguments.name}, {opened.description}"))
    return 0


def _parser() -> VerbParser:
    parser = VerbParser(
        "inspect",
        "Walk one image through a model: shapes, parameters, multiply-adds and time of each step; draw what happens.",
    )
    parser.add_argument(
        "name", metavar="NAME", help="a variant (vit_tiny_patch16_224), a family (vit), or the folder of a trained run"
    )
    parser.add_argument(
        "--img-size",
        nargs="+",
        type=_positive,
        default=None,
        metavar="PIXELS",
        help="build the model for this input (a run takes it as it is): one number, or height and width",
    )
    parser.add_argument("--batch", type=_positive, default=1, metavar="N", help="images at a time")
    parser.add_argument(
        "--image",
        default=None,
        metavar="FILE",
        help="an image file (of a trained run: as it was trained on, rasters too), or an array of bands (.npy: bands x "
        "height x width); random noise without one",
    )
    parser.add_argument(
        "--spectral",
        default=None,
        metavar="FILE",
        help="the second stream's file of a run that takes one, or an array of bands (.npy); noise without",
    )
    parser.add_argument(
        "--figures",
        default=None,
        metavar="DIR",
        help="draw patches, windows, masks, feature maps, ... of the image into this folder, as PNG and SVG",
    )
    parser.add_argument(
        "--diagram",
        default=None,
        metavar="FILE",
        help="draw the graph of the model's modules, with the shapes between them, into FILE.svg or FILE.png",
    )
    parser.add_argument(
        "--depth",
        type=_depth,
        default=None,
        help="'blocks', 'parts' (norm, attention and MLP of each block) or a number of levels to open; parts, of "
        "--diagram blocks",
    )
    parser.add_argument(
        "--repeats",
        type=_positive,
        default=None,
        metavar="N",
        help="passes over which time is measured; as many as fit into three seconds without it",
    )
    parser.add_argument(
        "--no-time",
        action="store_true",
        help="shapes and counts alone: takes no memory, however large the model",
    )
    parser.add_argument("--csv", default=None, metavar="FILE", help="write the table to this file too")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the model, e.g. depth=6 or depths=[2,2,6,2]; several may follow",
    )
    parser.add_unfit_files()
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _depth(text: str) -> int | str:
    return text if text in ("blocks", "parts") else _positive(text)


def _img_size(values: list[int] | None) -> tuple[int, int] | None:
    if values is None:
        return None
    if len(values) > 2:
        raise ConfigError(f"--img-size takes one number, or height and width, got {len(values)}")
    return values[0], values[-1]


def _settings(words: Sequence[str], img_size: tuple[int, int] | None) -> dict[str, Any]:
    settings: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
    for key, value in parse_settings(words).items():
        if key in settings:
            raise ConfigError(f"the setting {key!r} is given twice; keep one of them")
        settings[key] = value
    return settings


def _check(arguments: argparse.Namespace) -> None:
    """Reject contradictory options before any computation."""
    if arguments.no_time:
        for option in ("image", "spectral", "figures"):
            if getattr(arguments, option):
                raise ConfigError(f"--{option} cannot be combined with --no-time; omit one of them")
    if arguments.figures is None:
        return
    if Path(arguments.figures).exists() and not Path(arguments.figures).is_dir():
        raise ConfigError(f"--figures takes a folder, and {arguments.figures} is a file; choose another name")


class _Opened(NamedTuple):
    """Model to inspect, with its run and a description of its weights."""

    model: VisionModel
    trained: TrainedModel | None
    description: str


def _open(name: str, settings: dict[str, Any], img_size: tuple[int, int] | None, meta: bool) -> _Opened:
    import torch

    from vitrail.models.registry import list_families

    known = list_families()
    is_model = name in known or any(name in family.variants for family in known.values())
    if is_model or not (Path(name).exists() or "/" in name):
        torch.manual_seed(0)
        with torch.device("meta" if meta else "cpu"):
            return _Opened(_build(name, settings).eval(), None, "random weights (seed 0)")
    given = [key for key in settings if key != "img_size" or img_size is None]
    if given:
        raise ConfigError(f"{name} is a trained run, whose settings are fixed; leave out --set {given[0]}")
    from vitrail.runs.trained import load_trained

    trained = load_trained(name)
    model = trained.model.to("meta") if meta else trained.model
    return _Opened(model, trained, f"a trained {trained.card.name}, weights of epoch {trained.card.epoch + 1}")


def _build(name: str, settings: dict[str, Any]) -> VisionModel:
    from vitrail.models.registry import create_model

    try:
        return create_model(name, **settings)
    except TypeError as error:
        # What a config class does not check itself fails at the first sum: still the value's fault.
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise ConfigError(f"{name} cannot be built with {given}: {error}") from error


def _draw(model: VisionModel, prepared: Prepared, folder: str, description: str) -> str:
    """Draw the figures; return a text that lists them."""
    from vitrail.analyze.anatomy import draw_anatomy
    from vitrail.figures.anatomy.canvas import View

    views = [View(pixels, title) for pixels, title in zip(prepared.shown, prepared.titles, strict=True)]
    written, omitted = draw_anatomy(model, [x[:1] for x in prepared.inputs], views, folder, description)
    lines = [f"wrote {path}" for path in written]
    lines += [f"no {name}: {reason}" for name, reason in omitted.items()]
    return "\n".join(lines)


def _draw_graph(model: VisionModel, prepared: Prepared, arguments: argparse.Namespace, description: str) -> None:
    """Draw the graph of the model's modules."""
    from vitrail.figures.diagram import Box, draw_diagram
    from vitrail.figures.write import write_figure
    from vitrail.models.dataflow import Node, trace_dataflow

    graph = trace_dataflow(model, [x[:1] for x in prepared.inputs], arguments.depth or "blocks")

    def box(node: Node) -> Box:
        if node.kind in ("input", "output"):
            return Box(node.name, node.name, " x ".join(map(str, node.shape)), node.kind)
        count = f"{node.parameters:,} parameters"
        if node.kind == "parameter":
            return Box(node.name, node.name, count, node.kind)
        title = node.kind if node.count == 1 else f"{node.count} x {node.kind}"
        names = node.name if node.count == 1 else f"{node.name} to {node.last.rpartition('.')[2]}"
        return Box(node.name, title, f"{names}, {count}" if node.parameters else names, node.kind)

    arrows = [(edge.source, edge.target, " x ".join(map(str, edge.shape))) for edge in graph.edges]
    figure = draw_diagram([box(node) for node in graph.nodes], arrows, f"{arguments.name}, {description}")
    write_figure(figure, Path(arguments.diagram), dpi=110)


def _table(steps: Sequence[Step], batch: int) -> str:
    header = [
        "step",
        "output",
        "parameters",
        "multiply-adds" if batch == 1 else f"multiply-adds of {batch} images",
    ]
    rows = [[s.name, _shape(s), f"{s.parameters:,}", f"{s.multiply_adds:,}"] for s in steps]
    rows.append(["total", "", f"{sum(s.parameters for s in steps):,}", f"{sum(s.multiply_adds for s in steps):,}"])
    shares = [step.share for step in steps if step.share is not None]
    if shares:
        header.append("time")
        rows = [[*row, f"{share:.1%}"] for row, share in zip(rows, [*shares, sum(shares)], strict=True)]
    return format_table(header, rows, right=(2, 3, 4))


def _legend(steps: Sequence[Step]) -> str:
    """Describe each kind of step once."""
    kinds: dict[str, Step] = {}
    for step in steps:
        kinds.setdefault("(between)" if step.name == "(between)" else step.kind, step)
    width = max(map(len, kinds))
    return "\n".join(f"  {kind:<{width}}  {step.what}" for kind, step in kinds.items())


def _shape(step: Step) -> str:
    return "" if step.output_shape is None else " x ".join(map(str, step.output_shape))


def _csv(steps: Sequence[Step]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "kind", "output_shape", "parameters", "multiply_adds", "share_of_time", "what"])
    for step in steps:
        share = "" if step.share is None else f"{step.share:.6f}"
        shape = _shape(step).replace(" ", "")
        writer.writerow([step.name, step.kind, shape, step.parameters, step.multiply_adds, share, step.what])
    return text.getvalue()
