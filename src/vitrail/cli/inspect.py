"""``vitrail inspect``: walk one image through a model."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.cli.arguments import VerbParser, parse_settings
from vitrail.cli.tables import format_table
from vitrail.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from vitrail.models.base import VisionModel
    from vitrail.models.profile import Step


def main(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: Arguments after ``vitrail inspect``.

    Returns:
        0.

    Raises:
        ConfigError: An unknown model, setting or option, or a value out of range.
        DataError: An image that cannot be read.
    """
    arguments = _parser().parse_args(argv)
    settings = _settings(arguments)
    if arguments.no_time and arguments.image:
        raise ConfigError("--no-time runs without values, so that an image has no use; leave out --image")

    import torch

    from vitrail.models.profile import walk

    with torch.device("meta" if arguments.no_time else "cpu"):
        model = _build(arguments.name, settings)
    inputs, told = _inputs(model, arguments.batch, arguments.image, meta=arguments.no_time)
    steps = walk(model, inputs, arguments.depth, repeats=arguments.repeats)
    print(f"{arguments.name}: {told}\n")
    print(_table(steps, arguments.batch))
    print("\n" + _legend(steps))
    if arguments.csv:
        from vitrail.files import write_text

        write_text(arguments.csv, _csv(steps))
        print(f"\nwrote {arguments.csv}")
    return 0


def _parser() -> VerbParser:
    parser = VerbParser(
        "inspect", "Walk one image through a model: shapes, parameters, multiply-adds and time of each step."
    )
    parser.add_argument("name", metavar="NAME", help="a variant (vit_tiny_patch16_224) or a family (vit)")
    parser.add_argument(
        "--img-size",
        nargs="+",
        type=_positive,
        default=None,
        metavar="PIXELS",
        help="build the model for this input: one number, or height and width",
    )
    parser.add_argument("--batch", type=_positive, default=1, metavar="N", help="images at a time")
    parser.add_argument("--image", default=None, metavar="FILE", help="an image file; random noise without one")
    parser.add_argument(
        "--depth",
        type=_depth,
        default="parts",
        help="'blocks', 'parts' (norm, attention and perceptron of each block) or a number of levels to open",
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
        help="a setting of the model, e.g. depth=6 or depths=[2,2,6,2]; may be given several times",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _depth(text: str) -> int | str:
    return text if text in ("blocks", "parts") else _positive(text)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if arguments.img_size is not None:
        if len(arguments.img_size) > 2:
            raise ConfigError(f"--img-size takes one number, or height and width, got {len(arguments.img_size)}")
        settings["img_size"] = arguments.img_size[0] if len(arguments.img_size) == 1 else tuple(arguments.img_size)
    for key, value in parse_settings(arguments.set).items():
        if key in settings:
            raise ConfigError(f"the setting {key!r} is given twice; keep one of them")
        settings[key] = value
    return settings


def _build(name: str, settings: dict[str, Any]) -> VisionModel:
    from vitrail.models.registry import create_model

    try:
        return create_model(name, **settings)
    except TypeError as error:
        # What a config class does not check itself fails at the first sum: still the value's fault.
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise ConfigError(f"{name} cannot be built with {given}: {error}") from error


def _inputs(model: VisionModel, batch: int, image: str | None, meta: bool) -> tuple[list[torch.Tensor], str]:
    """One tensor for each stream, and a sentence on what they are."""
    import torch

    from vitrail.models.profile import example_inputs

    shapes = ", ".join(f"{s.name} {batch} x {s.chans} x {s.size[0]} x {s.size[1]}" for s in model.streams)
    if meta:
        return example_inputs(model, batch), f"{shapes}; counted without running, so no time"
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(x.shape, generator=generator) for x in example_inputs(model, batch)]
    if image is None:
        return inputs, f"{shapes}; random noise (--image FILE walks a real one)"
    stream = model.streams[0]
    colors = {3: "rgb", 1: "gray"}
    if stream.chans not in colors:
        raise ConfigError(f"the model takes {stream.chans} bands and an image file has 3 or 1; leave out --image")
    from vitrail.data.images import read_image

    pixels = read_image(Path(image), colors[stream.chans], stream.size, "squash", convert=True)
    inputs[0] = ((pixels / 255 - 0.5) / 0.5).expand(batch, -1, -1, -1)
    told = f"{shapes}; {image}, resized"
    return inputs, told if len(inputs) == 1 else f"{told}; random noise for the other inputs"


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
    """What each kind of step does, once."""
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
