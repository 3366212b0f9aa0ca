"""Compare exports of tiny models with their runs, by family, engine, precision and size; write the table of the page.

    python benchmarks/export_matrix.py                                  # all that is not recorded yet, an hour or more
    python benchmarks/export_matrix.py --models swin --engines onnx --again
    python benchmarks/export_matrix.py --page                           # only write the table into docs/export.md

Each model, size and engine runs in a process of its own, which is ended after ``--limit`` seconds. Results are recorded
after each, so that an interrupted run goes on where it stopped. Weights are random: int8 shows that operations become
int8 and run at all batch sizes, not that decisions stay; the gate of an export shows that.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vitrail.errors import first_line

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "export_matrix.json"
PAGE = ROOT / "docs" / "export.md"
BEGIN, END = "<!-- written by benchmarks/export_matrix.py -->\n\n", "\n<!-- end -->"
# Label on the page -> case of tests/deploy/test_export_families.py.
MODELS = {
    "ViT": "vit",
    "ViT with TokenLearner": "vit, TokenLearner",
    "ViT with TokenLearner and fuser": "vit, TokenFuser",
    "Swin": "swin",
    "Swin, padded windows": "swin, padded",
    "MaxViT": "maxvit, small",
    "HVT, one stream": "hvt, one stream",
    "HVT, two streams": "hvt",
    "HVT, windows": "hvt, windows",
    "HVT, concatenated streams": "hvt, concat",
}
PRECISIONS = {"openvino": ("fp32", "bf16", "int8"), "torch": ("fp32",), "onnx": ("fp32", "int8")}
LABELS = {"openvino": "OpenVINO", "torch": "torch", "onnx": "ONNX Runtime"}
SIZES = ("fixed", "any")
BATCHES = (1, 2, 3)
# Largest difference in fp32 from the run, as a share of an output's scale.
TOLERANCE = 1e-5
# Height and width of pixels of any size; those of the second stream follow.
ANY_SIZES = ((32, 32), (17, 70), (40, 36))
_IMAGES = 8


def key(case: str, size: str, engine: str, precision: str) -> str:
    """Key of a result."""
    return " | ".join((case, size, engine, precision))


def measure(case: str, size: str, engine: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Export a model for one engine and compare all precisions with the run; results by precision."""
    sys.path.insert(0, str(ROOT))
    import torch
    from tests.deploy.test_export_families import CASES, trained

    from vitrail.deploy.export.convert import convert, trace
    from vitrail.deploy.export.graph import ExportGraph
    from vitrail.deploy.export.sizes import lacks_any, least_of_any
    from vitrail.engines.load import ENGINES, open_engine

    torch.set_num_threads(1)
    model = trained(*CASES[case])
    reason = lacks_any(model.model, engine) if size == "any" else ""
    if reason:
        return {precision: {"failure": reason} for precision in PRECISIONS[engine]}
    least = least_of_any(model.model) if size == "any" else None
    types = dict.fromkeys(model.card.streams, torch.uint8)
    graph = ExportGraph(model, types, {}, ("embedding", "heatmap"), least=least)
    convert(trace(graph), graph, engine, folder, {"inputs": [entry.describe() for entry in graph.inputs]})
    batches = list(_batches(model, size))
    wanted = [_run(model, batch) for batch in batches]
    found: dict[str, dict[str, Any]] = {}
    for precision in PRECISIONS[engine] if size == "fixed" else ("fp32",):
        begun = time.monotonic()
        try:
            if precision == "int8":
                _quantize(graph, model, engine, folder)
            place = folder / "int8" if precision == "int8" else folder
            assert (place / ENGINES[engine]).exists()
            loaded = open_engine(place, engine, precision, 1)
            away = 0.0
            for batch, outputs in zip(batches, wanted, strict=True):
                inputs = {entry.name: batch[entry.stream].numpy() for entry in graph.inputs}
                away = max(away, _difference(loaded.run(inputs), outputs, precision))
        # Converters and engines raise errors of many kinds, which are the result here.
        except Exception as error:
            found[precision] = {"failure": first_line(error)[:200]}
            continue
        found[precision] = {"difference": away, "int8": loaded.operations().get("int8", 0),
                            "seconds": round(time.monotonic() - begun, 1)}  # fmt: skip
    return found


def _batches(model: Any, size: str) -> Any:
    """Pixels of each batch size; of several sizes, and of unlike ones for two streams, if any size."""
    import torch

    streams = model.card.streams
    all_sizes = [[stream.img_size for stream in streams.values()]]
    if size == "any":
        all_sizes = [[own] * len(streams) for own in ANY_SIZES]
        all_sizes += [list(ANY_SIZES[: len(streams)])] * (len(streams) > 1)
    for sizes in all_sizes:
        for count in BATCHES:
            generator = torch.Generator().manual_seed(count)
            yield {
                name: torch.randint(0, 256, (count, len(stream.bands), *own), generator=generator, dtype=torch.uint8)
                for (name, stream), own in zip(streams.items(), sizes, strict=True)
            }


def _run(model: Any, batch: Any) -> dict[str, Any]:
    """Compute the outputs of the run in eager mode, its heatmaps by vitrail.explain."""
    from vitrail.deploy.exported import heatmap_of
    from vitrail.explain import explain

    unit = {name: pixels.float() / 255 for name, pixels in batch.items()}
    logits, embedding = model.classify(unit)
    rollout = explain(model, unit, "rollout")
    outputs = {"logits": logits, "probabilities": logits.softmax(1), "embedding": embedding}
    outputs |= {heatmap_of(name): rollout[name].map for name in batch}
    return {name: values.numpy() for name, values in outputs.items()}


def _difference(found: Any, wanted: Any, precision: str) -> float:
    """Largest difference of all outputs; of the probabilities alone in reduced precision."""
    from vitrail.engines.load import difference

    names = wanted if precision == "fp32" else ["probabilities"]
    return max(difference(found[name], wanted[name]) for name in names)


def _quantize(graph: Any, model: Any, engine: str, folder: Path) -> None:
    """Write the model in int8 to the folder ``int8``."""
    import numpy as np

    from vitrail.deploy.export.quantize import QuantizeSettings, Scheme, quantize, quantize_onnx

    random = np.random.default_rng(0)
    images = {
        entry.name: random.integers(0, 256, (_IMAGES, *entry.shape[1:])).astype(np.uint8) for entry in graph.inputs
    }
    settings = QuantizeSettings(smooth=(0.95,), threads=1, budget=0)
    (folder / "int8").mkdir()
    if engine == "onnx":
        import onnx

        made = quantize_onnx(onnx.load(folder / "model.onnx"), images, images, Scheme(0.95), settings)
        onnx.save_model(made, folder / "int8" / "model.onnx")
        return
    import openvino

    model = openvino.Core().read_model(folder / "model.xml")
    made = quantize(model, images, images, lambda change: True, settings=settings).model
    openvino.save_model(made, folder / "int8" / "model.xml", compress_to_fp16=False)


def _work(case: str, size: str, engine: str, connection: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = measure(case, size, engine, Path(folder))
        # As above: a failed trace or conversion is the result of all precisions.
        except Exception as error:
            found = {precision: {"failure": first_line(error)[:200]} for precision in PRECISIONS[engine]}
    connection.send(found)


def in_process(case: str, size: str, engine: str, limit: float) -> dict[str, dict[str, Any]]:
    """Measure in a process of its own, which is ended after a time."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(case, size, engine, there))
    process.start()
    there.close()
    try:
        found = here.recv() if here.poll(limit) else None
    except EOFError:
        found = None
    reason = f"no result in {limit:.0f} s" if process.is_alive() and found is None else "the process ended"
    if found is None:
        process.kill()
        found = {precision: {"failure": reason} for precision in PRECISIONS[engine]}
    process.join()
    return found


def table(results: dict[str, Any]) -> str:
    """Format the table of the page, and the failures below it."""
    rows = [["model", "fp32", "bf16", "int8 operations", "any size"]]
    failures, missing = [], []
    for label, case in MODELS.items():
        if not any(name.startswith(f"{case} | ") for name in results):
            missing.append(label)
            continue
        cells = []
        for size, precision in (("fixed", "fp32"), ("fixed", "bf16"), ("fixed", "int8"), ("any", "fp32")):
            parts = []
            for engine in LABELS:
                own = results.get(key(case, size, engine, precision))
                if own is None:
                    continue
                if "failure" in own:
                    failures.append((label, engine, precision if size == "fixed" else "any size", own["failure"]))
                elif precision == "fp32" and own["difference"] > TOLERANCE:
                    reason = f"differs by {own['difference']:.0e}"
                    failures.append((label, engine, precision if size == "fixed" else "any size", reason))
                else:
                    what = own["int8"] if precision == "int8" else f"{own['difference']:.0e}"
                    parts.append(f"{LABELS[engine]} {what}")
            cells.append(", ".join(parts) or "-")
        rows.append([label, *cells])
    rows.insert(1, ["---"] * len(rows[0]))
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    if failures:
        lines += ["", "Not exported:", ""]
        lines += [f"- {label}, {LABELS[engine]}, {what}: {reason}" for label, engine, what, reason in failures]
    if missing:
        lines += ["", f"Not recorded: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def write_results(results: dict[str, Any]) -> None:
    """Write the record, a result a line."""
    lines = (f"{json.dumps(name)}: {json.dumps(found)}" for name, found in results.items())
    RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def write_page(results: dict[str, Any]) -> None:
    """Write the table into docs/export.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + BEGIN + table(results) + END + rest.split(END.strip(), 1)[1], encoding="utf-8")


def main() -> None:
    """Run what is asked for, and record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS.values(), default=list(MODELS.values()), metavar="CASE")
    parser.add_argument("--engines", nargs="+", choices=LABELS, default=list(LABELS))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--limit", type=float, default=900, help="seconds for a model, size and engine")
    parser.add_argument("--again", action="store_true", help="also what is recorded")
    parser.add_argument("--page", action="store_true", help="write the table from what is recorded, and stop")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not arguments.page:
        for engine in arguments.engines:
            for size in arguments.sizes:
                for case in arguments.models:
                    if not arguments.again and key(case, size, engine, "fp32") in results:
                        continue
                    begun = time.monotonic()
                    for precision, found in in_process(case, size, engine, arguments.limit).items():
                        results[key(case, size, engine, precision)] = found
                        print(key(case, size, engine, precision), found, flush=True)
                    print(f"  {time.monotonic() - begun:.0f} s", flush=True)
                    write_results(results)
    write_page(results)


if __name__ == "__main__":
    main()
