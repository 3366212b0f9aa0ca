"""``vitrail evaluate``: measure a trained run."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitrail.cli.arguments import VerbParser
from vitrail.cli.data_location import EPILOG, override_run_data, split_arguments
from vitrail.cli.next_steps import print_next
from vitrail.errors import ConfigError, plural

if TYPE_CHECKING:
    from vitrail.config.data import DataConfig
    from vitrail.evaluate.run import Evaluated
    from vitrail.evaluate.saved_predictions import Intervals
    from vitrail.models.modality import Modality
    from vitrail.runs.folder import RunFolder

# Settings of the data that change what is averaged, not what was trained.
_VIEWS = ("video.views", "video.crops")
# What needs the model, and therefore cannot be asked for with --from-predictions.
_OF_THE_MODEL = ("corruptions", "missing", "attacks", "rotations", "ood", "memory")


def _parser() -> VerbParser:
    parser = VerbParser("evaluate", "Measure a trained run on a split of its data, or on other images.")
    parser.add_argument("run", help="the run folder, or the folder of an export")
    parser.add_argument("--split", choices=("test", "val", "train", "new"),
        help="split of the images; test, or val if there is none; new images are unknown to the run",
    )  # fmt: skip
    parser.add_argument(
        "--tta",
        choices=("none", "mirror", "flips", "turns", "crops", "up", "so3"),
        default="none",
        help="average the probabilities over views of each image; of point clouds: turn each once at random, about z "
        "(up) or any way (so3)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument(
        "--from-predictions", action="store_true", help="measure what an earlier evaluation saved, without the model"
    )
    parser.add_argument(
        "--groups",
        metavar="COLUMN_OR_PATTERN",
        help="images that belong together, for intervals: a column of the data's table, or a regular expression on the "
        "path; none for single images; default: as the data or the run's split",
    )
    parser.add_argument("--resamples", type=int, default=2000, help="samples of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap, the corruptions and the attacks")
    parser.add_argument("--memory", action="store_true", help="measure the memory of a pass too")
    parser.add_argument(
        "--corruptions", nargs="*", metavar="NAME", help="accuracy under the 15 common corruptions, or under some"
    )
    parser.add_argument("--missing", action="store_true", help="accuracy with each band, and each stream, missing")
    parser.add_argument(
        "--attacks", nargs="*", type=float, metavar="EPSILON",
        help="accuracy under FGSM and PGD, of 1, 2, 4 and 8 of 255 or of these sizes (pixel values go from 0 to 1)",
    )  # fmt: skip
    parser.add_argument(
        "--rotations", action="store_true", help="accuracy on point clouds: upright, rotated about z, rotated freely"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="do these four on N evenly spaced images")
    parser.add_argument(
        "--ood", metavar="PATH", help="folder of out-of-distribution images: measure how well the run detects them"
    )
    parser.add_argument(
        "--ood-source", default="unlabelled", metavar="SOURCE", help="data.source of PATH; a folder of images"
    )
    parser.add_argument(
        "--ood-spectral", metavar="PATH", help="folder of their second files, for a run with two streams"
    )
    parser.epilog = f"{EPILOG} Other labelled images of the same classes: --data.source folder --data.path OTHER"
    return parser


def main(argv: list[str]) -> int:
    """Evaluate.

    Args:
        argv: Arguments after the verb.
    """
    options, rest = split_arguments(argv, "vitrail evaluate", also=_VIEWS)
    arguments = _parser().parse_args(options)
    _check(arguments, rest)

    from vitrail.engines.load import find_export

    if find_export(arguments.run) is not None:
        return _evaluate_export(arguments, rest)

    from vitrail.evaluate.saved_predictions import Intervals, evaluate_saved
    from vitrail.runs.folder import RunFolder

    run = RunFolder.open(arguments.run)
    own, changed = override_run_data(run.recipe, rest, "vitrail evaluate")
    intervals = Intervals(arguments.groups, arguments.resamples, arguments.seed)
    if arguments.from_predictions:
        folder, metrics = evaluate_saved(run, own, split=arguments.split, tta=arguments.tta, intervals=intervals)
        _print_metrics(run, metrics)
        print(f"written to {folder}, from saved predictions")
        print_next(["vitrail", "report", run])
        return 0
    return _with_model(arguments, run, own, changed, intervals)


def _evaluate_export(arguments: Namespace, rest: list[str]) -> int:
    """Measure an export on labelled images that the command names; nothing is written."""
    import numpy as np

    from vitrail.cli.recipes import load_run_recipe
    from vitrail.data.video.sampling import average_views
    from vitrail.deploy.exported import READING, load_exported
    from vitrail.evaluate.metrics import classification_metrics
    from vitrail.evaluate.multi_label import multi_label_metrics
    from vitrail.evaluate.parts import count_table, part_measures, predict_parts
    from vitrail.evaluate.run import other_views
    from vitrail.evaluate.saved_predictions import Intervals
    from vitrail.models.modality import VIDEO, reword
    from vitrail.runs.images import open_prepared

    given = {name: getattr(arguments, name) not in (None, False) for name in (*_OF_THE_MODEL, "from_predictions")}
    given |= {"tta": arguments.tta != "none", "device": arguments.device not in ("auto", "cpu")}
    for name, is_given in given.items():
        if is_given:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} is not supported for an export; evaluate the run folder")
    exported = load_exported(arguments.run)
    modality = exported.card.modality
    if not rest:
        raise ConfigError(
            f"{arguments.run} is an export and has no {modality.noun} of its own; name labelled {modality.noun} with "
            "--data.path DIR, and --data.source where they are listed in another way than the run's"
        )
    data = load_run_recipe(_listing(exported.export.record, rest), rest, "vitrail evaluate").data
    _check_source(arguments.run, data.source, modality)
    named = {word.partition("=")[0].removeprefix("--data.") for word in rest}
    data = data.changed({name: exported.reading.setting(name) for name in READING if name not in named})
    other_views(exported.card, data, exported.reading)
    images = open_prepared(exported.card, data, split=False)
    split = arguments.split or next(name for name in ("test", "val", "all", "train") if name in images.splits)
    if exported.card.per_point:
        table = predict_parts(exported, images, split)
        bootstrap = Intervals(arguments.groups, arguments.resamples, arguments.seed).bootstrap(table, None)
        measures = part_measures(count_table(table, len(exported.card.classes)), exported.card.classes, bootstrap)
        _print_parts(arguments.run, {"name": split, "images": len(table), **measures})
        return 0
    logits, targets = [], []
    for batch in images.loader(split):
        targets.append(batch["target"].numpy())
        logits.append(average_views(exported.classify(batch)[0], len(targets[-1])).numpy())
    measure = multi_label_metrics if exported.card.multi_label else classification_metrics
    metrics = measure(np.concatenate(logits), np.concatenate(targets), exported.card.classes)
    headline = reword(_headline(metrics, _accuracy_name(metrics)), modality, names=exported.card.classes)
    print(f"{arguments.run} on {split}: {headline}")
    if modality is VIDEO:
        views, crops = images.config.video.views, images.config.video.crops
        clips = f"mean logits of {views} x {plural(crops, 'clip')}" if views * crops > 1 else "the middle clip"
        print(f"  {clips} of each video")
    return 0


def _accuracy_name(metrics: Mapping[str, Any]) -> str:
    return "all labels right" if "map" in metrics else "accuracy"


def _headline(metrics: Mapping[str, Any], accuracy: str, units: str = "") -> str:
    """Format the main measures; ``units`` names the resampled units of the interval."""
    return (
        f"{accuracy} {metrics['accuracy']:.4f} (95 % interval{units} {metrics['accuracy_low']:.4f} to "
        f"{metrics['accuracy_high']:.4f}), "
        + (f"mean average precision {metrics['map']:.4f}, " if "map" in metrics else "")
        + f"macro F1 {metrics['f1_macro']:.4f}, {plural(metrics['images'], 'image')}"
    )


def _listing(record: Mapping[str, Any], rest: Sequence[str]) -> dict[str, Any]:
    """Return the recipe by which labelled images are listed as those of the run.

    Where the source is given the column of the labels of points alone is that of the run.
    """
    listing = record.get("listing", {})
    if any(word.partition("=")[0] == "--data.source" for word in rest):
        listing = {name: value for name, value in listing.items() if name == "points.part"}
    data: dict[str, Any] = {}
    for name, value in listing.items():
        group, _, leaf = name.rpartition(".")
        (data.setdefault(group, {}) if group else data)[leaf] = value
    of_points = "part" in data.get("points", {})
    return ({"data": data} if data else {}) | ({"task": {"name": "parts"}} if of_points else {})


def _check_source(export: str, source: str, modality: Modality) -> None:
    """Refuse sources that take no path: which of their inputs the run was trained on is recorded in its folder alone.

    Raises:
        ConfigError: The source takes no path.
    """
    from vitrail.data.sources.opening import list_labelled, path_of

    if not path_of(source):
        raise ConfigError(
            f"data.source {source} has no path, and its {modality.noun} may be those that {export} was trained on; "
            f"evaluate the run folder, or name other labelled {modality.noun} with --data.path PATH and --data.source "
            f"{' or '.join(list_labelled(modality.name))}"
        )


def _check(arguments: Namespace, rest: list[str]) -> None:
    """Reject contradictory options before reading anything."""
    if arguments.resamples < 100:
        raise ConfigError(f"--resamples must be at least 100, got {arguments.resamples}")
    if arguments.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {arguments.seed}")
    if arguments.from_predictions:
        asked = [name for name in _OF_THE_MODEL if getattr(arguments, name) not in (None, False)]
        if asked or rest:
            what = f"--{asked[0]}" if asked else rest[0]
            raise ConfigError(f"{what} needs the model or the images; leave out --from-predictions")
    wanted = arguments.corruptions is not None or arguments.missing or arguments.attacks is not None
    wanted = wanted or arguments.rotations
    if arguments.sample is not None and (not wanted or arguments.sample < 1):
        raise ConfigError(
            f"--sample {arguments.sample} is for --corruptions, --missing, --attacks and --rotations, and at least 1 "
            "image"
        )
    if arguments.ood is None and (arguments.ood_spectral is not None or arguments.ood_source != "unlabelled"):
        raise ConfigError("--ood-source and --ood-spectral describe --ood PATH; give that too")
    if arguments.attacks is not None and arguments.tta != "none":
        raise ConfigError(f"attacks are made on the model itself, without --tta {arguments.tta}; leave one of them out")


def _with_model(
    arguments: Namespace, run: RunFolder, own: DataConfig, changed: DataConfig, intervals: Intervals
) -> int:
    from vitrail.data.split_checks import describe_split
    from vitrail.evaluate.attacks import check_epsilons
    from vitrail.evaluate.corruptions import check_corruptions
    from vitrail.evaluate.run import measure, open_evaluation
    from vitrail.models.modality import check_need

    check_corruptions(arguments.corruptions or ())
    check_epsilons(arguments.attacks or ())
    evaluated = open_evaluation(
        run, changed, split=arguments.split, own=own, device=arguments.device, tta=arguments.tta
    )
    asked = {f"evaluate --{name}": getattr(arguments, name) not in (None, False) for name in _OF_THE_MODEL}
    for option, given in asked.items():
        if given:
            check_need(option, evaluated.trained.card.modality, evaluated.trained.card.name)
            if evaluated.trained.card.per_point:
                raise ConfigError(f"{option} measures classes of whole inputs, and {run} labels points; leave it out")
    for line in evaluated.opened.lines:
        print(line)
    metrics = measure(evaluated, changed, own, intervals, memory=arguments.memory)
    other = evaluated.of_others
    if arguments.split is None and metrics["split"] != "test" and not other:
        print(f"the data has no test split: measured on {metrics['split']}, which chose the best epoch")
    if not other:
        for line in describe_split(evaluated.images, of_run=True):
            print(run.reword(line))
    if evaluated.trained.card.per_point:
        _print_parts(run, metrics)
        print(f"written to {evaluated.folder}: metrics.json, parts.csv, clouds.csv, confusion.csv, parts.png")
        print_next(["vitrail", "report", run], ["vitrail", "predict", run, "FILES", "--out", "points.csv"])
        return 0
    _print_metrics(run, metrics)
    _draw_mistakes(evaluated, metrics)
    _run_extras(arguments, evaluated, own, changed, intervals)
    if metrics["unreadable"]:
        print(f"{plural(len(metrics['unreadable']), 'file')} left out, unreadable; metrics.json lists them")
    print(f"written to {evaluated.folder}")
    print_next(["vitrail", "report", run], ["vitrail", "explain", run, "--out", run.path / "explanations"])
    return 0


def _print_parts(run: object, metrics: dict[str, Any]) -> None:
    """Print the measures of labels of points, a row for each part."""
    from vitrail.cli.tables import format_table
    from vitrail.evaluate.parts import predicted_only

    miou, accuracy = (
        f"{metrics[name]:.4f} (95 % interval {_interval(metrics[f'{name}_low'], metrics[f'{name}_high'])})"
        for name in ("miou", "accuracy")
    )
    clouds = plural(metrics["images"], "point cloud")
    print(f"{run} on {metrics['name']}: mIoU {miou}, accuracy of points {accuracy}, {clouds}")
    print(f"  mean over clouds of the mIoU of their own parts: {metrics['miou_clouds']:.4f}")
    rows = [
        [row["part"], str(row["points"]), "-" if row["iou"] is None else f"{row['iou']:.3f}",
         _interval(row["low"], row["high"])]
        for row in metrics["parts"]
    ]  # fmt: skip
    print(format_table(["part", "points", "IoU", "95 % interval"], rows, right=(1, 2)))
    if caution := predicted_only(metrics):
        print(f"caution: {caution}")


def _print_metrics(run: RunFolder, metrics: dict[str, Any]) -> None:
    """Print the main metrics of an evaluation."""
    from vitrail.runs.images import describe_counts
    from vitrail.runs.training_images import describe_pretraining_images

    def print_reworded(text: str) -> None:
        print(run.reword(text))

    right = _accuracy_name(metrics)
    trained, chosen = metrics.get("trained_on") or 0, metrics.get("chosen_on") or 0
    if trained or (chosen and metrics["split"] == "all"):
        only = "; --split test measures the test images alone" if metrics["split"] == "all" else ""
        print_reworded(f"of {plural(metrics['images'], 'image')} {describe_counts(trained, chosen)}: not a test{only}")
        right += " (not a test)"
    drawn = metrics["intervals"]
    groups = f" over {plural(drawn['units'], 'group')}" if drawn.get("unit") == "group" else ""
    print_reworded(f"{run} on {metrics['name']}: {_headline(metrics, right, groups)}")
    if clips := metrics.get("clips"):
        print(
            f"  single clips: {right} {clips['accuracy']:.4f} (95 % interval over {'groups' if groups else 'videos'} "
            f"{_interval(clips['low'], clips['high'])}); the line above averages the logits of {clips['views']} x "
            f"{plural(clips['crops'], 'clip')} of each video"
        )
    if line := describe_pretraining_images(metrics.get("seen_in_pretraining"), metrics["images"], metrics["name"]):
        print_reworded(f"  {line}")
    calibration, conformal, selective = (metrics[name] for name in ("calibration", "conformal", "selective"))
    line = f"calibration error {calibration['ece']:.3f} (up to {calibration['ece_of_chance_95']:.3f} is chance)"
    if calibration["temperature"] is not None:
        line += f", {calibration['ece_after']:.3f} at temperature {calibration['temperature']:.2f}"
    print_reworded(f"  {line}")
    if conformal["sets"]:
        ways = "; ".join(
            f"{row['method'].upper()} {row['coverage']:.1%} in {row['mean_size']:.2f} classes"
            for row in conformal["sets"]
            if row["wanted"] == conformal["sets"][0]["wanted"]
        )
        print_reworded(
            f"  sets that should hold the true class of {conformal['sets'][0]['wanted']:.0%}: {ways} "
            f"(by {plural(conformal['images'], 'image')} of {conformal['calibrated_on']})"
        )
        if conformal.get("unreliable"):
            print_reworded(f"  these sets are unreliable: {conformal['unreliable']}")
    if calibration["why_no_temperature"]:
        without = "no temperature" if conformal["sets"] or "map" in metrics else "no temperature and no sets"
        print_reworded(f"  {without}: {calibration['why_no_temperature']}")
    half = selective["accuracy_at"][-1]
    print_reworded(f"  accuracy at {half['coverage']:.0%} coverage: {half['accuracy']:.4f}")


def _run_extras(
    arguments: Namespace, evaluated: Evaluated, own: DataConfig, data: DataConfig, intervals: Intervals
) -> None:
    """Compute and print the optional parts of an evaluation."""
    from vitrail.evaluate import robustness
    from vitrail.evaluate.out_of_distribution import measure_ood
    from vitrail.evaluate.rotations import measure_rotations

    sample, seed = arguments.sample, arguments.seed
    if arguments.corruptions is not None:
        table = robustness.measure_corruptions(
            evaluated, data, arguments.corruptions, intervals=intervals, sample=sample, seed=seed
        )
        print(_grid(table))
    if arguments.missing:
        print(_drops(robustness.measure_missing(evaluated, data, intervals=intervals, sample=sample)))
    if arguments.attacks is not None:
        table = robustness.measure_attacks(
            evaluated, data, arguments.attacks, intervals=intervals, sample=sample, seed=seed
        )
        print(_rows(table, "attack", "epsilon_of_255"))
    if arguments.rotations:
        table = measure_rotations(evaluated, data, own.points.turn, intervals=intervals, sample=sample, seed=seed)
        print(_rows(table, "rotations"))
        print(f"largest change of a logit by a rotation: {table.attrs['deviation']:.2g} of their range")
    if arguments.ood is not None:
        # The images are not the run's own, but what is done with those of other bands may be said for them too.
        own = own.changed(
            {"errors.on_band_mismatch": data.errors.on_band_mismatch, "errors.on_unreadable": data.errors.on_unreadable}
        )
        report = measure_ood(
            evaluated,
            own,
            arguments.ood,
            source=arguments.ood_source,
            spectral_path=arguments.ood_spectral,
            intervals=intervals,
        )
        print(
            f"{plural(report['images_other'], 'image')} of {arguments.ood} beside {report['images_known']} of "
            f"{report['known']}:"
        )
        from vitrail.cli.tables import format_table

        rows = [
            [name, f"{s['auroc']:.3f}", _interval(s["auroc_low"], s["auroc_high"]), f"{s['fpr_at_95_tpr']:.3f}"]
            for name, s in report["scores"].items()
        ]
        print(format_table(["score", "AUROC", "95 % interval", "FPR at 95 % TPR"], rows, right=(1, 3)))


def _grid(table: Any) -> str:
    """Format a row for each corruption and a column for each severity."""
    from vitrail.cli.tables import format_table

    wide = table[table["severity"] > 0].pivot(index="corruption", columns="severity", values="accuracy")
    wide = wide.loc[table["corruption"].drop_duplicates().drop(0)]
    rows = [[str(name), *(f"{value:.3f}" for value in row), f"{row.mean():.3f}"] for name, row in wide.iterrows()]
    rows.append(["mean", *(f"{value:.3f}" for value in wide.mean()), f"{wide.to_numpy().mean():.3f}"])
    clean = table["accuracy"].iloc[0]
    header = [f"accuracy ({clean:.3f} as it is)", *map(str, wide.columns), "mean"]
    return format_table(header, rows, right=range(1, len(header)))


def _rows(table: Any, *keys: str) -> str:
    from vitrail.cli.tables import format_table

    rows = [
        [*(f"{row[key]:g}" if isinstance(row[key], float) else str(row[key]) for key in keys),
         f"{row['accuracy']:.3f}", _interval(row["low"], row["high"])]
        for _, row in table.iterrows()
    ]  # fmt: skip
    return format_table([*keys, "accuracy", "95 % interval"], rows, right=(len(keys),))


def _drops(table: Any) -> str:
    """Format the accuracy drop of each band or stream, with the conclusion if none is significant."""
    from vitrail.cli.tables import format_table

    if "drop" not in table:
        return _rows(table, "stream", "band")
    whole, rest = table.iloc[0], table.iloc[1:].sort_values("drop", ascending=False, kind="stable")
    rows = [
        [str(row["stream"]), str(row["band"]), f"{row['accuracy']:.3f}", f"{row['drop']:.3f}",
         _interval(row["drop_low"], row["drop_high"]), str(row["verdict"])]
        for _, row in rest.iterrows()
    ]  # fmt: skip
    header = ["stream", "band", "accuracy", "drop", "95 % interval", "verdict"]
    lines = [
        f"accuracy {whole['accuracy']:.3f} with all bands; without one:",
        format_table(header, rows, right=(2, 3)),
    ]
    if not (rest["verdict"] == "needed").any():
        first, groups = rest.iloc[0], table.attrs.get("groups")
        units = plural(groups, "group") if groups else plural(int(whole["images"]), "image")
        lines.append(
            f"no band is shown to be needed on {units}; the largest drop, {first['drop']:.3f} without {first['band']}, "
            f"may be random: measure more {'groups' if groups else 'images'} (data.splitting.test_fraction), or all of "
            "them once by folds (`vitrail compare` with folds)"
        )
    return "\n".join(lines)


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _draw_mistakes(evaluated: Evaluated, metrics: dict[str, Any]) -> None:
    from vitrail.analyze.evaluated import Evaluation
    from vitrail.analyze.mistakes import write_mistakes

    table = Evaluation(evaluated.run, evaluated.files, metrics).mistakes()
    if table is not None:
        write_mistakes(evaluated.images, table, evaluated.files.mistakes_sheet)
