"""``vitrail predict``: classify image files with a trained run or an export."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from vitrail.cli.arguments import VerbParser
from vitrail.errors import ConfigError, DataError, few, plural

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from vitrail.data.dataset import ImageData
    from vitrail.runs.folder import RunFolder
    from vitrail.runs.trained import Classifier, ModelCard


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
    parser.add_argument("--batch-size", type=int, default=32, help="inputs for each forward pass")
    parser.add_argument(
        "--tta",
        choices=("none", "mirror", "flips", "turns", "crops"),
        default="none",
        help="average the probabilities over views of each input",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument(
        "--step",
        type=float,
        metavar="SECONDS",
        help="step from one clip of a video to the next; a clip's length if left out",
    )
    parser.add_argument(
        "--window",
        type=float,
        metavar="SECONDS",
        help="length of a clip of a video, for a run without data.video.fps; the whole video if left out",
    )
    parser.add_argument(
        "--overlay",
        metavar="DIR",
        help="folder to write each video into, with the class and its probability below; of runs that label points: "
        "pictures and an interactive page of the clouds, coloured by part",
    )
    parser.add_argument("--spectral", metavar="DIR", help="folder of second files, for a run that takes them")
    parser.add_unfit_files()
    arguments = parser.parse_args(argv)
    for name, value in (("--top-k", arguments.top_k), ("--batch-size", arguments.batch_size)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")

    from vitrail.cli.outputs import PREDICTIONS, output_file
    from vitrail.deploy.predict import predict_files
    from vitrail.files import write_text
    from vitrail.models.modality import VIDEO
    from vitrail.runs.images import describe_training_images

    out = None if arguments.out is None else output_file(arguments.out, PREDICTIONS, arguments.images)
    run, classifier, images = _open(arguments)
    if classifier.card.per_point:
        if arguments.top_k != parser.get_default("top_k"):
            raise ConfigError(f"--top-k {arguments.top_k} is for classes of whole inputs; points get one part")
        table, summary = _predict_parts(arguments, classifier, images)
    elif classifier.card.modality is VIDEO:
        table, summary = _predict_videos(arguments, classifier, images)
    else:
        table = predict_files(
            classifier, images, top_k=arguments.top_k, batch_size=arguments.batch_size, tta=arguments.tta
        )
        summary = f"{plural(len(table), classifier.card.modality.singular)} classified"
    for path, problem in images.source.left_out:
        print(f"left out: {path} ({problem})", file=sys.stderr)
    text = table.to_csv(index=False)
    if out is None:
        print(text, end="")
    else:
        write_text(out, text)
        print(f"{summary}; written to {arguments.out}")
    if run is not None and (line := describe_training_images(run, images)) is not None:
        print(line, file=sys.stderr)
    return 0


def _predict_parts(arguments: Namespace, classifier: Classifier, clouds: ImageData) -> tuple[pd.DataFrame, str]:
    """Label the points of clouds, and draw them where --overlay asks for it; return the table and a summary."""
    from vitrail.cli.outputs import files_to_write, output_folder
    from vitrail.deploy.parts import label_clouds, part_table, write_part_pictures
    from vitrail.files import file_names

    folder = files = None
    if arguments.overlay is not None:
        folder, keys = output_folder(arguments.overlay, arguments.images, "--overlay"), clouds.source.keys
        names = [f"{name}.png" for name in file_names(keys)]
        files = files_to_write(folder, names, arguments.images, keys, "--overlay")
    labelled = list(label_clouds(classifier, clouds, arguments.batch_size))
    table = part_table(labelled)
    summary = f"{plural(len(table), 'point')} of {plural(len(labelled), 'point cloud')} labelled"
    if folder is not None and files is not None:
        write_part_pictures(labelled, files, folder)
        summary += f"; {plural(len(files), 'picture')} and clouds.html in {folder}"
    return table, summary


def _predict_videos(arguments: Namespace, classifier: Classifier, videos: ImageData) -> tuple[pd.DataFrame, str]:
    """Classify videos by sliding clips, and write those that --overlay asks for; return the table and a summary."""
    from vitrail.deploy.videos import classify_videos, decision_table, leave_out, write_overlay

    targets = None if arguments.overlay is None else _overlays(arguments, videos)
    decisions, overlays = [], 0
    for decision in classify_videos(
        classifier,
        videos,
        window=arguments.window,
        step=arguments.step,
        batch_size=arguments.batch_size,
        tta=arguments.tta,
    ):
        decisions.append(decision)
        if targets is not None:
            try:
                write_overlay(classifier, videos, decision, targets[decision.video])
                overlays += 1
            except DataError as error:
                leave_out(videos, decision.video, error)
    if not decisions:
        raise DataError(
            f"no video can be decoded to its end: {few([f'{path} {why}' for path, why in videos.source.left_out])}"
        )
    clips = sum(len(decision.windows) for decision in decisions)
    summary = f"{plural(len(decisions), 'video')} classified by {plural(clips, 'clip')}"
    if targets is not None:
        summary += f"; {plural(overlays, 'overlay')} in {targets[0].parent}"
    return decision_table(classifier, videos, decisions, arguments.top_k), summary


def _overlays(arguments: Namespace, videos: ImageData) -> list[Path]:
    """Return the file of each video's overlay, if no video is replaced."""
    from vitrail.cli.outputs import files_to_write, output_folder
    from vitrail.deploy.videos import video_source
    from vitrail.files import file_names

    folder, source = output_folder(arguments.overlay, arguments.images, "--overlay"), video_source(videos)
    names = [f"{name}.mp4" for name in file_names(source.keys)]
    files = [source.video(index).path for index in range(len(source))]
    return files_to_write(folder, names, arguments.images, files, "--overlay")


def _open(arguments: Namespace) -> tuple[RunFolder | None, Classifier, ImageData]:
    """Open the run (None for an export), its classifier, and the images as it reads them."""
    from vitrail.cli.recipes import data_for_files, for_files
    from vitrail.deploy.exported import load_exported
    from vitrail.deploy.images import open_files
    from vitrail.engines.load import find_export
    from vitrail.runs.folder import RunFolder
    from vitrail.runs.trained import choose_device, load_classifier

    if find_export(arguments.run) is not None:
        if arguments.device not in ("auto", "cpu"):
            raise ConfigError(f"--device {arguments.device} is not supported for an export, which runs on the CPU")
        exported = load_exported(arguments.run)
        _check_needs(arguments, exported.card)
        data = for_files(exported.reading, arguments)
        return None, exported, open_files(exported.card, data, arguments.images, spectral=arguments.spectral)
    run = RunFolder.open(arguments.run)
    trained = load_classifier(run).to(choose_device(arguments.device))
    _check_needs(arguments, trained.card)
    data = data_for_files(run, arguments)
    return run, trained, open_files(trained.card, data, arguments.images, spectral=arguments.spectral)


def _check_needs(arguments: Namespace, card: ModelCard) -> None:
    """Refuse options that the run's kind of inputs does not take; warn of views that change the class of a clip."""
    from vitrail.data.augment.directions import warn_mirrored
    from vitrail.models.modality import VIDEO, check_need

    given = {"tta": arguments.tta != "none"} | {
        name: getattr(arguments, name) is not None for name in ("step", "window", "overlay")
    }
    # An overlay shows what changes within an input: decisions over time, or parts of points.
    given["overlay"] = given["overlay"] and not card.per_point
    for name, is_given in given.items():
        if is_given:
            check_need(f"predict --{name}", card.modality, card.name)
    if card.modality is VIDEO:
        warn_mirrored(arguments.tta, card.classes)
