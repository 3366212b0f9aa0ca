"""What explaining costs, in turn with a plain forward pass of the same model on the same images.

    python benchmarks/explain.py                                             # everything: about 20 minutes on two cores
    python benchmarks/explain.py --models swin_tiny_patch4_window7_224 --methods rollout --rounds 5 --sizes 224 1024

Times are those of a process in which model and methods take turns; memory is that of a process which does nothing else.
Writes benchmarks/results/explain.csv and explain.md; rows that measured the same before are replaced.
"""

from __future__ import annotations

import argparse
import functools
import platform
import sys
from pathlib import Path

import pandas as pd
import torch

from vitrail.bench.memory import Step, peak_memory
from vitrail.bench.speed import Spread, alternate, device_name, speedup
from vitrail.explain import explain
from vitrail.files import replacing, write_text
from vitrail.models import create_model

MODELS = ("swin_tiny_patch4_window7_224", "maxvit_tiny_tf_224", "vit_small_patch16_224", "hvt_small")
METHODS = ("rollout", "gradient_rollout", "attribution", "attention")
SIZES = (224, 512, 1024)
# A rollout of Swin-T takes at most so many forward passes at 224 pixels, and at 1024 so many bytes.
MOST_PASSES, MOST_BYTES = 2.5, 2e9
KEY = ["model", "method", "size", "batch"]


def make_step(model_name: str, method: str, size: int, batch: int) -> Step:
    """Return a forward pass ("forward") or an explanation, as a function without arguments."""
    torch.manual_seed(0)
    model = create_model(model_name).eval()
    inputs = [torch.randn(batch, stream.chans, size, size) for stream in model.streams]
    if method != "forward":
        return functools.partial(explain, model, inputs, method)

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        return model(*inputs)

    return forward


def measure(name: str, methods: list[str], size: int, batch: int, rounds: int) -> list[dict]:
    """Measure the forward pass and each method, a row each."""
    every = ["forward", *methods]
    device = torch.device("cpu")
    times = alternate([make_step(name, method, size, batch) for method in every], device, rounds)
    rows = []
    for method, seconds in zip(every, times, strict=True):
        memory = peak_memory(functools.partial(make_step, name, method, size, batch), device)
        ratio = speedup(times[0], times[0]) if method == "forward" else speedup(seconds, times[0])
        passes = Spread(1 / ratio.median, 1 / ratio.high, 1 / ratio.low)
        rows.append({
            "model": name, "method": method, "size": size, "batch": batch,
            "milliseconds": 1e3 * Spread.of(seconds).median, "passes": passes.median, "passes_low": passes.low,
            "passes_high": passes.high, "rounds": rounds, "mb_before": None if memory is None else memory.before / 1e6,
            "mb_peak": None if memory is None else memory.peak / 1e6,
            "machine": f"{device_name(device)}; torch {torch.__version__}, Python {platform.python_version()}",
        })  # fmt: skip
        print(describe(rows[-1]), flush=True)
    return rows


def describe(row: dict) -> str:
    """One row for a reader."""
    return (
        f"{row['model']} {row['method']} {row['size']} px, batch {row['batch']}: {row['milliseconds']:.0f} ms, "
        f"{row['passes']:.2f} ({row['passes_low']:.2f} to {row['passes_high']:.2f}) forward passes, "
        f"{row['mb_before']:.0f} / {row['mb_peak']:.0f} MB"
    )


def add(file: Path, rows: list[dict]) -> pd.DataFrame:
    """Add rows to a table, in the place of those that measured the same; the whole table."""
    table = pd.DataFrame(rows)
    if file.exists():
        old = pd.read_csv(file)
        same = old.set_index(KEY).index.isin(table.set_index(KEY).index)
        table = pd.concat([old[~same], table], ignore_index=True)
    table = table.sort_values(KEY, kind="stable")
    with replacing(file) as temporary:
        table.to_csv(temporary, index=False)
    return table


def write_page(table: pd.DataFrame, file: Path) -> None:
    """Format the table as a page, with the targets."""
    lines = [
        "# What explaining costs", "",
        f"Recorded on {', '.join(sorted(set(table['machine'])))} by `python benchmarks/explain.py`.", "",
        "A pass is a plain forward pass of the same model on the same images, timed in turn with the method: the "
        "median over the rounds of the ratio within a round, with the lowest and the highest. A method that explains a "
        "class first asks the model which, which is a pass by itself. Memory is that of a process that does nothing "
        "else, with Python, torch and the weights: before the first run, and at most during the second. float32.",
        "",
        "| model | method | pixels | batch | ms | forward passes | MB before / peak | target |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in table.to_dict("records"):
        target = ""
        if row["model"].startswith("swin_tiny") and row["method"] == "rollout":
            if row["size"] == 224:
                target = f"{MOST_PASSES} passes {'met' if row['passes'] <= MOST_PASSES else 'missed'}"
            elif row["size"] == 1024:
                target = f"{MOST_BYTES / 1e6:,.0f} MB {'met' if row['mb_peak'] * 1e6 <= MOST_BYTES else 'missed'}"
        lines.append(
            f"| {row['model']} | {row['method']} | {row['size']} | {row['batch']} | {row['milliseconds']:.0f} | "
            f"{row['passes']:.2f} ({row['passes_low']:.2f} to {row['passes_high']:.2f}) | "
            f"{row['mb_before']:,.0f} / {row['mb_peak']:,.0f} | {target} |"
        )
    write_text(file, "\n".join(lines) + "\n")


def main() -> None:
    """Measure, and write table and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    arguments = parser.parse_args()
    for name in arguments.models:
        for size in arguments.sizes:
            rows = measure(name, list(arguments.methods), size, arguments.batch, arguments.rounds)
            table = add(arguments.out / "explain.csv", rows)
            write_page(table, arguments.out / "explain.md")


if __name__ == "__main__":
    sys.exit(main())
