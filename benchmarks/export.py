"""Images per second of exports, in turns with timm and with vitrail in eager mode, in one process.

    .venv-peers/bin/python benchmarks/export.py                                   # all models, about 20 minutes
    .venv-peers/bin/python benchmarks/export.py --models vit_small_patch16_224 --rounds 31
    .venv-peers/bin/python benchmarks/export.py --seconds 20 --images 8           # fewer rounds of long calls

Each model is timed on all cores at a large batch, and on one core with one image.

Weights are random, with all biases and norms changed, since zeros and ones would be left out of the graph. The
agreement of int8 with fp32 on random images is printed; it says nothing about trained models.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.bench.speed import alternate
from vitrail.deploy.export.convert import convert, trace
from vitrail.deploy.export.graph import ExportGraph
from vitrail.deploy.export.quantize import Quantized, QuantizeSettings, quantize
from vitrail.engines.openvino import OpenVINOEngine
from vitrail.errors import ConfigError
from vitrail.files import write_text
from vitrail.machine import cores, processor
from vitrail.models.registry import create_model
from vitrail.runs.trained import ModelCard, StreamCard, TrainedModel

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "benchmarks" / "results" / "export_speed"
# Least speed of int8 over timm in eager mode.
TARGETS = {"vit_small_patch16_224": 3.7, "swin_tiny_patch4_window7_224": 4.0, "maxvit_tiny_tf_224": 5.6}
SIZE, CLASSES = (224, 224), 10
BANDS = ("red", "green", "blue")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(name: str, settings: dict[str, Any] | None = None) -> TrainedModel:
    """Build a model with random weights, as a run's."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=CLASSES, **(settings or {})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    card = ModelCard(
        name, settings or {}, tuple(map(str, range(CLASSES))), {"image": StreamCard(BANDS, MEAN, STD, SIZE, "uint8")}
    )
    return TrainedModel(model, card.normalization(), card)


def pictures(count: int, seed: int) -> np.ndarray:
    """Random pictures of soft patches, uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, 3, 8, 8), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")
    return ((smooth + torch.rand(smooth.shape, generator=generator) * 0.1).clamp(0, 1) * 255).to(torch.uint8).numpy()


def measure_model(name: str, batch: int, rounds: int, seconds: float, images: int) -> dict:
    """Measure one model: on all cores at a batch, and on one core with one image."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from tests.peers import define_missing_operators

    define_missing_operators()
    import timm

    trained = build(name)
    graph = ExportGraph(trained, {"image": torch.uint8}, {}, ("embedding",))
    peer = timm.create_model(name, num_classes=CLASSES).eval()
    with tempfile.TemporaryDirectory() as folder:
        convert(trace(graph), graph, "openvino", Path(folder), {})
        file = Path(folder) / "model.xml"
        found = quantized(file, images, lambda line: print(f"  {line}", flush=True))
        models = {"fp32": file, "bf16": file, "int8": found.model}
        tables = [
            time_engines(models, peer, trained, count, threads, rounds, seconds)
            for count, threads in ((batch, cores()), (1, 1))
        ]
    return {"model": name, "tables": tables, "int8": {"scheme": found.scheme.name, **vars(found.change)}}


def quantized(file: Path, images: int, report: Callable[[str], None] = lambda line: None) -> Quantized:
    """Quantise an export's OpenVINO model by the first variant, on random pictures."""
    import openvino

    return quantize(
        openvino.Core().read_model(file),
        {"image_resized": pictures(images, 1)},
        {"image_resized": pictures(images, 2)},
        lambda change: True,
        settings=QuantizeSettings(smooth=(0.95,), budget=0, threads=cores()),
        report=report,
    )


def time_in_turns(
    steps: Mapping[str, Callable[[], object]], seconds: float, most: int | None = None, least: int = 3
) -> dict[str, list[float]]:
    """Time steps in turns, as many rounds as fit into the seconds; the times of each, by name."""
    with torch.inference_mode():
        for step in steps.values():
            step()
        start = time.perf_counter()
        for step in steps.values():
            step()
        rounds = int(seconds / (time.perf_counter() - start))
        rounds = max(least, rounds if most is None else min(most, rounds))
        # One call of each in a round.
        return dict(zip(steps, alternate(list(steps.values()), rounds=rounds, least=0), strict=True))


def time_engines(
    models: dict, peer: torch.nn.Module, trained: TrainedModel, batch: int, threads: int, rounds: int, seconds: float
) -> dict:
    """Time the engines in turns with timm and with eager mode."""
    pixels = pictures(batch, 0)
    unit = torch.from_numpy(pixels).float() / 255
    steps: dict[str, Callable[[], object]] = {
        "timm, eager fp32": lambda: peer(unit),
        "vitrail, eager fp32": lambda: trained.classify(unit),
    }
    engines, missing = {}, {}
    for precision, model in models.items():
        try:
            engines[precision] = OpenVINOEngine(model, precision, threads)
        except ConfigError as error:
            missing[precision] = str(error)
    names = {}
    for precision, engine in engines.items():
        label = f"OpenVINO {precision}" if precision != "int8" else f"OpenVINO int8 + {engine.floating}"
        names[label] = engine
        steps[label] = lambda engine=engine: engine.run({"image_resized": pixels})
    torch.set_num_threads(threads)
    times = time_in_turns(steps, seconds, rounds)
    rounds = len(times["timm, eager fp32"])
    torch.set_num_threads(cores())
    rows = []
    for label, own in times.items():
        ratios = [base / one for base, one in zip(times["timm, eager fp32"], own, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "name": label,
                "images_per_second": batch / statistics.median(own),
                "over_timm": middle,
                "quartiles": [low, high],
                "operations": names[label].operations() if label in names else {},
            }
        )
    return {"batch": batch, "threads": threads, "rounds": rounds, "rows": rows, "missing": missing}


def page(results: list[dict], facts: dict) -> str:
    """Write the page."""
    lines = [
        "# Speed of exports",
        "",
        f"{facts['processor']}, 224 pixels, random weights; rounds in turns, in one process. Load of the machine: "
        f"{facts['load']:.1f}"
        + (" (a trial: other programs ran beside it)." if facts["load"] > facts["threads"] else "."),
        "Ratios are medians over the rounds, with quartiles.",
        "",
        "| model | batch, threads | engine | images/s | over timm | quartiles | products and convolutions | aim |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, table in ((own["model"], table) for own in results for table in own["tables"]):
        for row in table["rows"]:
            low, high = row["quartiles"]
            counts = ", ".join(f"{n} {precision}" for precision, n in row["operations"].items())
            aimed = "int8" in row["name"] and name in TARGETS and table["batch"] > 1
            aim = f">= {TARGETS[name]}" if aimed else ""
            lines.append(
                f"| {name} | {table['batch']}, {table['threads']} | {row['name']} | {row['images_per_second']:.1f} | "
                f"{row['over_timm']:.2f} | "
                f"{low:.2f} to {high:.2f} | {counts} | {aim} |"
            )
    lines.append("")
    for result in results:
        own = result["int8"]
        lines.append(
            f"- {result['model']}, {own['scheme']}: {own['images'] - own['misses']} of {own['images']} decisions as in "
            f"fp32 on random images, probabilities change by {own['mean']:.2g} on average; rounds: "
            f"{', '.join(str(table['rounds']) for table in result['tables'])}."
        )
        lines += [f"- {result['model']}: {reason}." for reason in result["tables"][0]["missing"].values()]
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(TARGETS))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=120, help="time for the rounds of each table; 3 at least")
    parser.add_argument("--images", type=int, default=32, help="images for calibration, and for the agreement")
    parser.add_argument("--out", type=Path, default=OUT, help="path of the two files, without an ending")
    arguments = parser.parse_args()
    torch.set_num_threads(cores())
    results = []
    facts = {"processor": processor(), "threads": cores(), "batch": arguments.batch}
    for name in arguments.models:
        print(name, flush=True)
        results.append(measure_model(name, arguments.batch, arguments.rounds, arguments.seconds, arguments.images))
        facts["load"] = os.getloadavg()[0]
        for table in results[-1]["tables"]:
            print(f"  batch {table['batch']}, {table['threads']} threads", flush=True)
            for row in table["rows"]:
                speed = f"{row['images_per_second']:.1f} images/s, {row['over_timm']:.2f} x timm"
                print(f"  {row['name']}: {speed}", flush=True)
        write_text(arguments.out.with_suffix(".json"), json.dumps({**facts, "models": results}, indent=1) + "\n")
        write_text(arguments.out.with_suffix(".md"), page(results, facts))


if __name__ == "__main__":
    main()
