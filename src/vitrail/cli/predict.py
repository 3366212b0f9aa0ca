"""``vitrail predict``: classify image files with a trained run or an export."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from vitrail.cli.arguments import VerbParser
from vitrail.errors import ConfigError, plural

if TYPE_CHECKING:
    from vitrail.data.dataset import ImageData
    from vitrail.runs.folder import RunFolder
    from vitrail.runs.trained import Classifier


def main(argv: list[str]) -> int:
    """Predict.

    Args:
        argv: Arguments after the verb.
    """
    parser = VerbParser("predict", "Classify files, or all files of folders, with a trained run or an export.")
    parser.add_argument("run", help="the run folder, or the folder of an export")
    parser.add_argument("images", nargs="+", help="files or folders of the run's inputs: images, clips or point clouds")
    parser.add_argument("--out", help="CSV file to write; printed when not given")
    parser.add_argument("--top-k", type=int, default=5, help="most likely classes to give")
    parser.add_argument("--batch-size", type=int, default=32, help="images for each forward pass")
    parser.add_argument(
        "--tta",
        choices=("none", "mirror", "flips", "turns", "crops"),
        default="none",
        help="average the probabilities over views of each image",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--spectral", metavar="DIR", help="folder of second files, for a run that takes them")
    parser.add_unfit_files()
    arguments = parser.parse_args(argv)
    for name, value in (("--top-k", arguments.top_k), ("--batch-size", arguments.batch_size)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")

    from vitrail.cli.outputs import PREDICTIONS, output_file
    from vitrail.deploy.predict import predict_files
    from vitrail.files import write_text
    from vitrail.runs.images import describe_training_images

    out = None if arguments.out is None else output_file(arguments.out, PREDICTIONS, arguments.images)
    run, classifier, images = _open(arguments)
    for path, problem in images.source.left_out:
        print(f"left out: {path} ({problem})", file=sys.stderr)
    table = predict_files(classifier, images, top_k=arguments.top_k, batch_size=arguments.batch_size, tta=arguments.tta)
    text = table.to_csv(index=False)
    if out is None:
        print(text, end="")
    else:
        write_text(out, text)
        print(f"{plural(len(table), 'image')} classified; written to {arguments.out}")
    if run is not None and (line := describe_training_images(run, images)) is not None:
        print(line, file=sys.stderr)
    return 0


def _open(arguments: Namespace) -> tuple[RunFolder | None, Classifier, ImageData]:
    """Open the run (None for an export), its classifier, and the images as it reads them."""
    from vitrail.cli.recipes import data_for_files, for_files
    from vitrail.deploy.exported import load_exported
    from vitrail.deploy.images import open_files
    from vitrail.engines.load import find_export
    from vitrail.models.modality import check_need
    from vitrail.runs.folder import RunFolder
    from vitrail.runs.trained import choose_device, load_classifier

    if find_export(arguments.run) is not None:
        if arguments.device not in ("auto", "cpu"):
            raise ConfigError(f"--device {arguments.device} is not supported for an export, which runs on the CPU")
        exported = load_exported(arguments.run)
        data = for_files(exported.reading, arguments)
        return None, exported, open_files(exported.card, data, arguments.images, spectral=arguments.spectral)
    run = RunFolder.open(arguments.run)
    trained = load_classifier(run).to(choose_device(arguments.device))
    if arguments.tta != "none":
        check_need("predict --tta", trained.card.modality, trained.card.name)
    data = data_for_files(run, arguments)
    return run, trained, open_files(trained.card, data, arguments.images, spectral=arguments.spectral)
