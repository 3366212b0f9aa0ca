"""``vitrail explain``: attribution maps of a trained run, by one method or several side by side."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.arguments import VerbParser, parse_settings, repeat_set
from vitrail.cli.data_location import EPILOG, UNFIT, override_run_data, split_arguments
from vitrail.cli.next_steps import print_next
from vitrail.cli.outputs import output_folder
from vitrail.errors import ConfigError, plural

if TYPE_CHECKING:
    from vitrail.analyze.structure import Source
    from vitrail.data.dataset import ImageData
    from vitrail.runs.trained import ModelCard, TrainedModel

# Images that are explained, and images that structures are averaged over.
_IMAGES, _PROBES = 8, 64
_EPILOG = (
    "Writes panels/ (each image beside all methods, on one scale), overlays/, maps/ (.npy) and explanations.json; of "
    "clips animations/ (GIF, MP4) too, of point clouds clouds.html. "
    "`vitrail explain --methods` lists the methods, `vitrail explain --structures` what --structure can show."
)


def main(argv: list[str]) -> int:
    """Explain.

    Args:
        argv: Arguments after the verb.
    """
    if argv == ["--methods"]:
        return _list_methods()
    if argv == ["--structures"]:
        return _list_structures()
    options, settings_of_data = split_arguments(argv, "vitrail explain", UNFIT)
    arguments = _parser().parse_intermixed_args(repeat_set(options))
    if arguments.masks is not None and not arguments.measure:
        raise ConfigError("--masks has no effect without --measure; add --measure, or leave --masks out")
    if arguments.masks is not None and not arguments.images:
        raise ConfigError("--masks requires image files; name them, or leave it out")
    if arguments.number is None:
        arguments.number = _IMAGES if arguments.structure is None else _PROBES
    if arguments.batch_size < 1 or arguments.number < 1:
        raise ConfigError("--batch-size and --number must be at least 1")
    if arguments.structure is not None:
        return _explain_structure(arguments, settings_of_data)
    if arguments.other is not None:
        raise ConfigError("--other RUN is the second model of --structure cka; add that, or leave --other out")
    settings = _by_method(parse_settings(arguments.set))
    if arguments.out is None:
        raise ConfigError("--out DIR is missing: the folder to write explanations into")
    arguments.out = str(output_folder(arguments.out, [arguments.run, *(arguments.images or [])]))

    from vitrail.engines.load import find_export

    if find_export(arguments.run) is not None:
        return _explain_export(arguments, settings_of_data)

    from vitrail.analyze.explanations import check_methods, explain_by_run, find_class, write_explanations
    from vitrail.explain.methods.registry import default_method
    from vitrail.models.modality import check_need
    from vitrail.runs.trained import choose_device, load_trained

    if arguments.method:
        check_methods(arguments.method, settings)  # before the model is read
    trained = load_trained(arguments.run)
    arguments.method = arguments.method or [default_method(trained.model)]
    methods = check_methods(arguments.method, settings)
    target = None if arguments.target is None else find_class(arguments.target, trained.card, arguments.method)
    if arguments.measure and not trained.card.classes:
        raise ConfigError("--measure follows the score of a class, and the run has none (pre-trained); leave it out")
    if arguments.measure:
        check_need("explain --measure", trained.card.modality, trained.card.name)
    trained = trained.to(choose_device(arguments.device))
    data, indices = _open(arguments, trained, settings_of_data)
    count = write_explanations(
        trained.card,
        data,
        indices,
        explain_by_run(trained, methods, target),
        arguments.out,
        run=arguments.run,
        batch_size=arguments.batch_size,
    )
    _report(arguments, trained.card, data, count, methods)
    if arguments.measure:
        _measure(arguments, trained, data, indices, methods, target)
    print_next(["vitrail", "report", arguments.run])
    return 0


def _explain_export(arguments: argparse.Namespace, settings: Sequence[str]) -> int:
    """Write the heatmaps of an export; refuse options that need a run folder."""
    from vitrail.analyze.explanations import write_explanations
    from vitrail.cli.recipes import for_files
    from vitrail.deploy.exported import ROLLOUT, load_exported
    from vitrail.deploy.images import open_files

    of_run = {
        "--method": arguments.method not in (None, [ROLLOUT]), "--target": arguments.target, "--set": arguments.set,
        "--split": arguments.split, "--size": arguments.size, "--measure": arguments.measure,
        "--device": arguments.device not in ("auto", "cpu"), "--data settings": settings,
    }  # fmt: skip
    for option, given in of_run.items():
        if given:
            raise ConfigError(
                f"{option} is not supported for an export, which holds the map of {ROLLOUT} alone; use the run folder"
            )
    if not arguments.images:
        raise ConfigError(f"{arguments.run} is an export and has no images of its own; name image files or folders")
    exported = load_exported(arguments.run)
    data = open_files(
        exported.card, for_files(exported.reading, arguments), arguments.images, spectral=arguments.spectral
    )
    count = write_explanations(
        exported.card,
        data,
        data.indices("all"),
        exported.explain,
        arguments.out,
        run=arguments.run,
        batch_size=arguments.batch_size,
    )
    _report(arguments, exported.card, data, count, [ROLLOUT])
    return 0


def _report(
    arguments: argparse.Namespace, card: ModelCard, data: ImageData, count: int, methods: Iterable[str]
) -> None:
    """Print the written files and the left-out inputs."""
    from vitrail.figures.animation import can_write_mp4
    from vitrail.models.modality import VIDEO

    print(f"{plural(count, card.modality.singular)} explained by {', '.join(methods)}; written to {arguments.out}")
    if card.modality is VIDEO and not can_write_mp4():
        print("animations are GIF alone; PyAV writes MP4 too (pip install 'vitrail[video]')")
    for path, problem in data.source.left_out:
        print(f"left out: {path} ({problem})")


def _explain_structure(arguments: argparse.Namespace, settings: Sequence[str]) -> int:
    """Write pictures and tables of the model's learned structures."""
    from vitrail.analyze.structure import check_structures, learned_structures, needs_images, write_structures
    from vitrail.engines.load import find_export
    from vitrail.runs.folder import RunFolder
    from vitrail.runs.trained import choose_device, load_trained

    without = {"--method": arguments.method, "--target": arguments.target, "--set": arguments.set,
               "--measure": arguments.measure, "--masks": arguments.masks}  # fmt: skip
    for option, given in without.items():
        if given:
            raise ConfigError(f"{option} explains predictions, and --structure the model; give one of them")
    if find_export(arguments.run) is not None:
        raise ConfigError(f"--structure is not supported for an export ({arguments.run}); use the run folder")
    check_structures(arguments.structure)
    if arguments.other is not None and not {"cka", "all"} & set(arguments.structure):
        raise ConfigError("--other RUN is the second model of --structure cka; add that, or leave --other out")
    run, trained = RunFolder.open(arguments.run), load_trained(arguments.run)
    names = check_structures(arguments.structure, trained.model)
    folder = run.structure if arguments.out is None else output_folder(arguments.out, [arguments.run])
    models = [(run.name, trained)]
    if arguments.other is not None:
        models.append((RunFolder(arguments.other).name, load_trained(arguments.other)))
    probed = needs_images(names)
    if not probed and (arguments.images or settings or arguments.split):
        raise ConfigError(f"{', '.join(names)} needs no images; leave out the files, --split and settings of data")
    device = str(choose_device(arguments.device))
    sources = [_probe(arguments, name, one.to(device), settings if probed else None) for name, one in models]
    written = write_structures(learned_structures(names, *sources), Path(folder), run.name, run.weights_hash())
    print(f"{', '.join(written)}: pictures (PNG, SVG) and tables (CSV) written to {folder}")
    print_next(["vitrail", "report", arguments.run])
    return 0


def _probe(arguments: argparse.Namespace, name: str, trained: TrainedModel, settings: Sequence[str] | None) -> Source:
    """Open the images that a model is probed with; none where no structure needs them (no ``settings``)."""
    from vitrail.analyze.structure import Source

    if settings is None:
        return Source(name, trained, lambda: (), 0)
    data, indices = _open(arguments, trained, settings)
    return Source(name, trained, lambda: data.batches(indices, arguments.batch_size), len(indices))


def _parser() -> VerbParser:
    parser = VerbParser(
        "explain",
        "Show the parts of the inputs that a run relies on, and measure the faithfulness of maps.",
    )
    parser.epilog = f"{_EPILOG} {EPILOG}"
    parser.add_argument("run", help="the run folder, or the folder of an export")
    parser.add_argument(
        "images",
        nargs="*",
        help="files or folders; the run's own inputs where none are named",
    )
    parser.add_argument(
        "--method",
        nargs="+",
        metavar="METHOD",
        help="one or several methods; rollout, or gradcam where rollout cannot",
    )
    parser.add_argument(
        "--structure",
        nargs="+",
        metavar="NAME",
        help="learned structure instead of single predictions: all, or names that --structures lists",
    )
    parser.add_argument("--other", metavar="RUN", help="a second run on the same images, for --structure cka")
    parser.add_argument(
        "--out", metavar="DIR", help="folder to write into; with --structure that of the run if left out"
    )
    parser.add_argument("--target", metavar="CLASS", help="name or number of the class to explain; else the predicted")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="METHOD.KEY=VALUE",
        help="a setting of a method, e.g. rollout.head_fusion=max; several may follow",
    )
    parser.add_argument(
        "--split", choices=("test", "val", "train"), help="split of the run's own images; test, else val"
    )
    parser.add_argument(
        "--number",
        type=int,
        metavar="N",
        help=f"number of the run's own images: {_IMAGES}, with --structure {_PROBES}",
    )
    parser.add_argument("--size", nargs="+", type=int, metavar="PIXELS", help="input size: one number, or two")
    parser.add_argument("--spectral", metavar="DIR", help="folder of second files, for a run that takes them")
    parser.add_argument("--measure", action="store_true", help="measure how faithful the methods are: measures.csv")
    parser.add_argument("--masks", metavar="DIR", help="folder of masks named like the images, for --measure")
    parser.add_argument("--batch-size", type=int, default=16, help="images for each forward pass")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_unfit_files()
    return parser


def _list_methods() -> int:
    from vitrail.cli.tables import format_table
    from vitrail.explain.methods.registry import METHODS, list_methods

    rows = []
    for name in list_methods():
        method = METHODS[name]
        given = ", ".join(f"{key}={value}" for key, value in method.settings.items())
        rows.append([name, "yes" if method.by_class else "no", method.summary, given])
    print(format_table(["method", "of a class", "shows", "settings"], rows))
    return 0


def _list_structures() -> int:
    from vitrail.analyze.structure import STRUCTURES
    from vitrail.cli.tables import format_table

    rows = [[name, "yes" if one.needs_images else "no", one.summary] for name, one in STRUCTURES.items()]
    print(format_table(["structure", "probed with images", "shows"], rows))
    return 0


def _by_method(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    methods: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        method, dot, key = name.partition(".")
        if not dot or not key:
            raise ConfigError(f"--set takes METHOD.KEY=VALUE (for example rollout.head_fusion=max), got {name!r}")
        methods.setdefault(method, {})[key] = value
    return methods


def _size(values: list[int] | None) -> tuple[int, int] | None:
    if values is None:
        return None
    if len(values) > 2 or min(values) < 1:
        raise ConfigError(f"--size takes one number of pixels, or height and width, got {' '.join(map(str, values))}")
    return values[0], values[-1]


def _open(arguments: argparse.Namespace, trained: TrainedModel, settings: Sequence[str]) -> tuple[ImageData, list[int]]:
    """Open the requested images, and return their indices."""
    from vitrail.cli.recipes import data_for_files
    from vitrail.deploy.images import open_files
    from vitrail.models.modality import check_need
    from vitrail.runs.folder import RunFolder
    from vitrail.runs.images import describe_training_images, open_images

    card, run = trained.card, RunFolder.open(arguments.run)
    if arguments.size is not None:
        check_need("explain --size", card.modality, card.name)
    size = _size(arguments.size)
    if arguments.images:
        if arguments.split is not None:
            raise ConfigError("--split is of the run's own images; leave it out, or the files")
        if settings:
            raise ConfigError(f"{settings[0]} is of the run's own images; leave it out, or the files")
        data = data_for_files(run, arguments)
        opened = open_files(card, data, arguments.images, size=size, spectral=arguments.spectral)
        if (line := describe_training_images(run, opened)) is not None:
            print(line)
        return opened, opened.indices("all")
    if arguments.spectral is not None:
        raise ConfigError("--spectral requires image files; name them, or leave it out")
    own, changed = override_run_data(run.recipe, settings, "vitrail explain")
    unfit = {name: value for name in UNFIT if (value := getattr(arguments, name.split(".")[1])) is not None}
    found = open_images(run, card, changed.changed(unfit), own, size=size, verb="explain")
    for line in found.lines:
        print(line)
    split = arguments.split or found.default_split()
    return found.data, found.data.balanced_sample(split, arguments.number)


def _measure(
    arguments: argparse.Namespace,
    trained: TrainedModel,
    data: ImageData,
    indices: list[int],
    methods: dict[str, dict[str, Any]],
    target: int | None,
) -> None:
    """Measure the methods on the same images, with a random map and a central blob as baselines."""
    from vitrail.analyze.faithfulness import describe_counts, measure_methods, own_masks, stack_masks
    from vitrail.cli.tables import format_table
    from vitrail.deploy.images import mask_reader
    from vitrail.files import write_text

    masks = own_masks(data)
    if arguments.masks is not None:
        masks = stack_masks(mask_reader(trained.card, data, arguments.images, arguments.masks), trained.card.streams)
    table = measure_methods(
        trained, data, indices, methods, target=target, masks=masks, batch_size=arguments.batch_size
    )
    out = Path(arguments.out) / "measures.csv"
    write_text(out, table.to_csv(index=False))
    print("\n" + format_table(*describe_counts(table)))
    print(f"\nmeans over {plural(len(indices), 'image')} with 95 % intervals; written to {out}")
