"""``vitrail predict``: classify image files with a trained run."""

from __future__ import annotations

from vitrail.cli.arguments import VerbParser


def main(argv: list[str]) -> int:
    """Predict.

    Args:
        argv: Arguments after the verb.
    """
    parser = VerbParser("predict", "Classify image files, or all files of folders, with a trained run.")
    parser.add_argument("run", help="the run folder")
    parser.add_argument("images", nargs="+", help="image files or folders")
    parser.add_argument("--out", help="CSV file to write; printed when not given")
    parser.add_argument("--top-k", type=int, default=5, help="most likely classes to give")
    parser.add_argument("--batch-size", type=int, default=32, help="images a pass")
    parser.add_argument(
        "--tta",
        choices=("none", "mirror", "flips", "turns", "crops"),
        default="none",
        help="average the probabilities over views of each image",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_on_band_mismatch()
    arguments = parser.parse_args(argv)

    from vitrail.deploy.predict import find_images, predict_files
    from vitrail.files import write_text
    from vitrail.runs.trained import choose_device, load_classifier

    trained = load_classifier(arguments.run).to(choose_device(arguments.device))
    table = predict_files(
        trained,
        find_images(arguments.images),
        top_k=arguments.top_k,
        batch_size=arguments.batch_size,
        convert=arguments.on_band_mismatch == "convert",
        tta=arguments.tta,
    )
    text = table.to_csv(index=False)
    if arguments.out is None:
        print(text, end="")
    else:
        write_text(arguments.out, text)
        print(f"{len(table)} images classified; written to {arguments.out}")
    return 0
