"""``vitrail export``: write a trained run as one file of an engine."""

from __future__ import annotations

from vitrail.cli.arguments import VerbParser
from vitrail.cli.next_steps import print_next
from vitrail.errors import ConfigError

FORMATS = ("openvino", "onnx", "torch")
PRECISIONS = ("fp32", "bf16")
INCLUDE = ("embedding", "heatmap")


def main(argv: list[str]) -> int:
    """Export.

    Args:
        argv: Arguments after the verb.
    """
    parser = VerbParser(
        "export", "Write a trained run as one file of an engine, from pixels to probabilities, and compare both."
    )
    parser.add_argument("run", nargs="?", help="the run folder")
    parser.add_argument("--out", metavar="DIR", help="folder of the export; export in the run folder if not given")
    parser.add_argument("--format", choices=FORMATS, default="openvino", help="engine that runs the export")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="precision of the arithmetic")
    parser.add_argument(
        "--include", nargs="*", choices=INCLUDE, default=["embedding"], help="outputs besides logits and probabilities"
    )
    parser.add_argument("--threads", type=int, help="threads of the engine; all cores if not given")
    parser.add_argument("--check", metavar="DIR", help="compare an export's outputs with the recorded ones, and stop")
    arguments = parser.parse_args(argv)
    if arguments.threads is not None and arguments.threads < 1:
        raise ConfigError(f"--threads must be at least 1, got {arguments.threads}")
    if (arguments.run is None) == (arguments.check is None):
        raise ConfigError("vitrail export takes a run folder, or --check DIR for an earlier export")
    if arguments.check is not None:
        return _check(arguments.check, arguments.threads)

    from vitrail.cli.outputs import output_folder
    from vitrail.cli.recipes import load_run_recipe
    from vitrail.deploy.export import export
    from vitrail.runs.folder import RunFolder

    run = RunFolder.open(arguments.run)
    out = run.export if arguments.out is None else output_folder(arguments.out, [arguments.run])
    exported, compared = export(
        run,
        load_run_recipe(run.recipe, prog="vitrail export").data,
        out=out,
        format=arguments.format,
        precision=arguments.precision,
        include=arguments.include,
        threads=arguments.threads,
    )
    print(
        f"{compared['images']} validation images: logits differ by {compared['difference']:.2g} of their scale, "
        f"{compared['other_classes']} other classes"
    )
    size = sum(file.stat().st_size for file in exported.folder.iterdir())
    print(f"{arguments.format} {exported.engine.precision}, {size / 1e6:.1f} MB; written to {exported.folder}")
    print_next(["vitrail", "predict", out, "IMAGES"])
    return 0


def _check(folder: str, threads: int | None) -> int:
    from vitrail.engines.load import load_export

    export = load_export(folder, threads, check=False)
    differences = export.check()
    for name, value in differences.items():
        print(f"{name}: differs by {value:.2g} of its scale")
    print(f"{export.folder}: as recorded (bound {export.record['check']['bound']:g})")
    return 0
