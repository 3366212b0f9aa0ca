"""What TokenLearner and token merging gain in each engine of an export: a ViT with and without, in turns.

    .venv/bin/python benchmarks/fewer_tokens.py                         # about 10 minutes
    .venv/bin/python benchmarks/fewer_tokens.py --seconds 10 --engines openvino

Weights are random: speed alone is measured. Ratios of accuracy need a trained run: `vitrail export RUN --shrink`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from export import build, pictures, quantized, time_in_turns

from vitrail.deploy.export.convert import convert, trace
from vitrail.deploy.export.graph import ExportGraph
from vitrail.deploy.export.shrink import merging
from vitrail.engines.load import open_engine
from vitrail.engines.openvino import OpenVINOEngine
from vitrail.files import write_text
from vitrail.machine import cores, processor

OUT = Path(__file__).parent / "results" / "fewer_tokens.md"
NAME = "vit_small_patch16_224"
LEARNED, MERGED = "TokenLearner, 8 tokens after block 6", (8, 13)
CALIBRATION = 16
Step = Callable[[], object]


def engines_of(kind: str, settings: dict[str, object], merges: int, engines: list[str], batch: int) -> dict[str, Step]:
    """Build a model, and return a call of each engine and precision by its name."""
    trained = merging(build(NAME, settings), merges)
    pixels = pictures(batch, 0)
    unit = torch.from_numpy(pixels).float() / 255
    graph = ExportGraph(trained, {"image": torch.uint8}, {}, ())
    program = trace(graph)
    steps: dict[str, Step] = {"eager fp32": lambda: trained.classify(unit)}
    for engine in engines:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            convert(program, graph, engine, folder, {"inputs": [entry.describe() for entry in graph.inputs]})
            loaded = {f"{engine} fp32": open_engine(folder, engine, "fp32")}
            if engine == "openvino":
                loaded[f"{engine} bf16"] = open_engine(folder, engine, "bf16")
                if not merges:
                    loaded[f"{engine} int8"] = OpenVINOEngine(
                        quantized(folder / "model.xml", CALIBRATION).model, "int8"
                    )
        for name, own in loaded.items():
            steps[name] = lambda own=own: own.run({"image_resized": pixels})
    print(f"  {kind}: {', '.join(steps)}", flush=True)
    return steps


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnx", "torch"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=40, help="of the calls of each engine")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(cores())
    kinds = {"all tokens": ({}, 0), LEARNED: ({"token_learner": {"num_tokens": 8, "layer": 6}}, 0)}
    kinds |= {f"token merging, r = {r}": ({}, r) for r in MERGED}
    steps = {
        kind: engines_of(kind, settings, merges, arguments.engines, arguments.batch)
        for kind, (settings, merges) in kinds.items()
    }
    lines = [f"| engine | {' | '.join(steps)} |", f"|---|{'---|' * len(steps)}"]
    for engine in steps["all tokens"]:
        own = {kind: calls[engine] for kind, calls in steps.items() if engine in calls}
        times = time_in_turns(own, arguments.seconds, least=5)
        cells = []
        for kind in steps:
            if kind not in times:
                cells.append("")
                continue
            ratios = [plain / other for plain, other in zip(times["all tokens"], times[kind], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            speed = f"{arguments.batch / statistics.median(times[kind]):.1f}"
            cells.append(speed if kind == "all tokens" else f"{speed}: {middle:.2f} ({low:.2f} to {high:.2f})")
        lines.append(f"| {engine} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    text = f"""# Fewer tokens in exports

`benchmarks/fewer_tokens.py` on {processor()}, {cores()} threads, load {os.getloadavg()[0]:.1f}: {NAME} with
random weights, batches of {arguments.batch} in turns. Images a second, and how many times those of all tokens
(medians of the rounds, quartiles).

""" + "\n".join(lines)
    write_text(arguments.out, text + "\n")


if __name__ == "__main__":
    main()
