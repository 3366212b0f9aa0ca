"""``vitrail features``: embeddings of images by one or several runs, side by side."""

from __future__ import annotations

import sys

from vitrail.cli.arguments import VerbParser
from vitrail.cli.data_location import EPILOG, override_run_data, split_arguments
from vitrail.cli.outputs import output_folder
from vitrail.errors import ConfigError


def main(argv: list[str]) -> int:
    """Embed features in two dimensions.

    Args:
        argv: Arguments after the verb.
    """
    options, settings = split_arguments(argv, "vitrail features")
    arguments = _parser().parse_args(options)
    if arguments.most < 1:
        raise ConfigError(f"--most must be at least 1, got {arguments.most}")

    from vitrail.analyze.features import check_layouts, open_space
    from vitrail.report.features import write_features
    from vitrail.runs.folder import RunFolder
    from vitrail.runs.trained import choose_device

    check_layouts(arguments.layout)
    runs = [RunFolder.open(path) for path in arguments.runs]
    owner = None if arguments.data_of is None else RunFolder.open(arguments.data_of)
    spaces = []
    for run in runs:
        own, changed = override_run_data((owner or run).recipe, settings, "vitrail features")
        space = open_space(
            run,
            changed,
            own,
            owner=owner,
            split=arguments.split,
            layer=arguments.layer,
            most=arguments.most,
            device=str(choose_device(arguments.device)),
        )
        for line in space.lines:
            print(run.reword(f"{run.name}: {line}"), file=sys.stderr)
        spaces.append(space)
    beside = runs[0].features if len(runs) == 1 else runs[0].path.parent / "features"
    out = output_folder(arguments.out, arguments.runs) if arguments.out else beside
    table = write_features(spaces, arguments.layout, out)
    print(table.to_string(index=False))
    print(f"written to {out} ({out / 'features.html'} shows the {runs[0].modality.noun})")
    return 0


def _parser() -> VerbParser:
    parser = VerbParser("features", "Lay out what runs make of images in the plane, side by side; measure the classes.")
    parser.epilog = EPILOG
    parser.add_argument("runs", nargs="+", help="run folders, with classes or pre-trained")
    parser.add_argument("--layout", nargs="+", default=["tsne"], metavar="LAYOUT", help="tsne, pca, umap")
    parser.add_argument(
        "--layer", default="embedding", help="a level of the model; the classifier's input when not given"
    )
    parser.add_argument("--split", choices=("test", "val", "train"), help="split of the images; test, else val")
    parser.add_argument(
        "--data-of", metavar="RUN", help="use this run's images for all; each run its own when not given"
    )
    parser.add_argument("--most", type=int, default=2000, metavar="N", help="images at most, evenly spaced")
    parser.add_argument("--out", metavar="DIR", help="folder; features in the run folder, or beside several runs")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    return parser
