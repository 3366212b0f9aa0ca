"""Speed, memory and scaling of the models, in turn with timm's and torchvision's on the same weights.

    .venv-peers/bin/python benchmarks/models.py                                      # everything, on the CPU
    .venv-peers/bin/python benchmarks/models.py --sections speed --models maxvit_tiny_tf_224 --modes train
    .venv-peers/bin/python benchmarks/models.py --device cuda --precisions bf16 --batch 256

Each section adds its rows to a table in benchmarks/results, in the place of those that measured the same before;
the page is written from the tables. What it says under "What was tried" is written by hand and stays.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from vitrail.bench.side_by_side import Plan, Subject, measure
from vitrail.bench.speed import Spread, Workload, alternate, device_name, make_step
from vitrail.files import replacing, write_text
from vitrail.machine import keep_large_buffers
from vitrail.models.profile import count_multiply_adds
from vitrail.runs.trained import choose_device

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("vit_small_patch16_224", "swin_tiny_patch4_window7_224", "maxvit_tiny_tf_224")
# Ours over timm's default on two cores, batch 8, 224 pixels, float32, not compiled; compiled it is 1.0 for all.
TARGETS = {
    ("vit_small_patch16_224", "forward"): 1.03,
    ("swin_tiny_patch4_window7_224", "forward"): 1.1,
    ("maxvit_tiny_tf_224", "forward"): 1.4,
    ("vit_small_patch16_224", "train"): 1.0,
    ("swin_tiny_patch4_window7_224", "train"): 1.05,
    ("maxvit_tiny_tf_224", "train"): 1.2,
}
SIZES = (224, 448, 672, 896)
COLORS = dict(zip(MODELS, ("#0072B2", "#009E73", "#D55E00"), strict=True))
SPEED_KEY = ["model", "library", "against", "mode", "precision", "compiled", "batch_size", "img_size"]
SCALING_KEY = ["model", "batch_size", "size"]
TRIED = "## What was tried"


def prepare_peers() -> None:
    """Make torchvision importable beside a CPU build of torch, in whichever process this is."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from tests.peers import define_missing_operators

    define_missing_operators()


def measure_speed(arguments: argparse.Namespace, plan: Plan) -> Iterator[dict]:
    """Forward and training step of each model beside its counterparts."""
    subjects = [Subject(name) for name in arguments.models]
    for row in measure(subjects, arguments.against, plan):
        yield row.cells()


def measure_memory(arguments: argparse.Namespace, plan: Plan) -> Iterator[dict]:
    """One large image: Swin-T as it is, and each model beside timm's where that takes the size."""
    large = {"maxvit_tiny_tf_224": (896, 896)}  # no multiple of its windows would be a size that timm refuses
    swin = "swin_tiny_patch4_window7_224"
    alone = Plan([Workload()], 1, plan.device, min(plan.rounds, 3))
    beside = Plan([Workload()], 1, plan.device, min(plan.rounds, 3), prepare=plan.prepare)
    if swin in arguments.models:
        for row in measure([Subject(swin, {}, (1024, 1024))], (), alone):
            yield row.cells()
    for name in arguments.models:
        # The map is not a multiple of the window: ours is told to pad it as timm does.
        settings = {"mask_padding": False, "pad_after_shift": True} if name == swin else {}
        for row in measure([Subject(name, settings, large.get(name, (1024, 1024)))], arguments.against[:1], beside):
            yield row.cells()


def measure_scaling(arguments: argparse.Namespace, plan: Plan) -> Iterator[dict]:
    """Forward passes over images of all sizes, in turn, where buffers are kept as the command line keeps them."""
    keep_large_buffers()
    for name in arguments.models:
        subjects = [Subject(name, {}, (size, size)) for size in SIZES]
        models = [subject.build() for subject in subjects]
        batch = arguments.scaling_batch
        inputs = [subject.inputs(model, batch) for subject, model in zip(subjects, models, strict=True)]
        operations = [2 * count_multiply_adds(m, *x) for m, x in zip(models, inputs, strict=True)]
        steps = [make_step(m, x, Workload(), plan.device) for m, x in zip(models, inputs, strict=True)]
        times = alternate(steps, plan.device, plan.rounds, plan.least)
        for size, seconds, count in zip(SIZES, times, operations, strict=True):
            cost = Spread.of(
                [t / size**2 / (first / SIZES[0] ** 2) for t, first in zip(seconds, times[0], strict=True)]
            )
            yield {
                "model": name,
                "batch_size": batch,
                "size": size,
                "milliseconds": 1e3 * Spread.of(seconds).median,
                "gigaflop": count / 1e9,
                "per_pixel": cost.median,
                "per_pixel_low": cost.low,
                "per_pixel_high": cost.high,
                "flop_per_pixel": count / size**2 / (operations[0] / SIZES[0] ** 2),
            }


def read(file: Path) -> pd.DataFrame:
    """Read a table that :func:`add` wrote."""
    table = pd.read_csv(file, dtype={"precision": str, "against": str})
    return table.fillna({"against": ""})


def add(file: Path, row: dict, key: list[str]) -> None:
    """Put a row into a table on disk, in the place of one that measured the same."""
    table = pd.DataFrame([row]).fillna({"against": ""})
    if file.exists():
        table = pd.concat([read(file), table], ignore_index=True).drop_duplicates(subset=key, keep="last")
    write_text(file, table.to_csv(index=False))


def describe(device: torch.device) -> str:
    """Describe the machine and the versions, in a line."""
    versions = [f"torch {torch.__version__}", f"Python {platform.python_version()}"]
    for name in ("timm", "torchvision"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{device_name(device)}; {', '.join(versions)}"


def speed_table(table: pd.DataFrame) -> str:
    """Rows of speed and memory as Markdown, pairs together."""
    lines = [
        "| model | pixels | batch | by | work | images/s | ms | GFLOP/s | of peak | MB before / peak | ours/theirs "
        "| target |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table.itertuples():
        work = ", ".join([row.mode, row.precision, *(["compiled"] if row.compiled else [])])
        known = row.library == "vitrail" and row.against == "timm" and row.precision == "32"
        known = known and row.batch_size == 8 and row.img_size == "224x224" and not row.machine.startswith("NVIDIA")
        target = TARGETS.get((row.model, row.mode)) if known else None
        if target is not None and row.compiled:
            target = 1.0
        ratio = "" if pd.isna(row.ratio) else f"**{row.ratio:.2f}** ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
        memory = "" if pd.isna(row.memory_peak_mb) else f"{row.memory_before_mb:,.0f} / {row.memory_peak_mb:,.0f}"
        met = "" if target is None else f"{target:.2f} {'met' if row.ratio >= target else 'missed'}"
        lines.append(
            f"| {row.model} | {row.img_size} | {row.batch_size} | {row.library} | {work} | {row.images_per_second:.4g} "
            f"| {row.milliseconds:.4g} | {row.gflops:.4g} | {row.share_of_peak:.0%} | {memory} | {ratio} | {met} |"
        )
    return "\n".join(lines)


def scaling_table(table: pd.DataFrame) -> str:
    """Cost of a pixel by size, as Markdown."""
    lines = [
        "| model | batch | pixels | ms | time a pixel, 224 = 1 | operations a pixel, 224 = 1 |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.model} | {row.batch_size} | {row.size} | {row.milliseconds:,.0f} | {row.per_pixel:.2f} "
        f"({row.per_pixel_low:.2f} to {row.per_pixel_high:.2f}) | {row.flop_per_pixel:.2f} |"
        for row in table.itertuples()
    ]
    return "\n".join(lines)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Left: time of an image by its size; right: time of a pixel over that at 224."""
    # Here, because the processes that measure memory import this file.
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, rows in table.groupby("model", sort=False):
        color = COLORS.get(name)
        left.plot(rows["size"], rows["milliseconds"] / rows["batch_size"], marker="o", color=color, label=name)
        error = [rows["per_pixel"] - rows["per_pixel_low"], rows["per_pixel_high"] - rows["per_pixel"]]
        right.errorbar(rows["size"], rows["per_pixel"], yerr=error, marker="o", capsize=3, color=color, label=name)
        right.plot(rows["size"], rows["flop_per_pixel"], linestyle=":", color=color)
    left.set(xscale="log", yscale="log", xlabel="side of the image, pixels", ylabel="time of an image, ms")
    left.set_xticks(SIZES, [str(size) for size in SIZES])
    left.minorticks_off()
    left.legend(frameon=False)
    right.axhspan(0.9, 1.1, color="gray", alpha=0.15, linewidth=0)
    right.set(xlabel="side of the image, pixels", ylabel="cost of a pixel, 224 = 1", xticks=SIZES, ylim=(0, None))
    right.set_title("points: time; dotted: operations; gray: within 10 %", fontsize=9)
    # Letters as text, not as outlines: a third of the size.
    with replacing(path) as temporary, plt.rc_context({"svg.fonttype": "none"}):
        figure.savefig(temporary, format="svg")


def write_page(folder: Path, stem: str) -> None:
    """Write the page from the existing tables."""
    page = folder / f"{stem}.md"
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    tried = old[old.index(TRIED) :] if TRIED in old else ""
    tables = {name: folder / f"{stem}_{name}.csv" for name in ("speed", "memory", "scaling")}
    found = {name: read(file) for name, file in tables.items() if file.exists()}
    machines = dict.fromkeys(m for table in found.values() for m in table["machine"])
    commands = dict.fromkeys(c for table in found.values() for c in table["command"])
    parts = [
        "# Speed, memory and scaling of the models",
        "Recorded on " + "; ".join(machines) + " by\n\n```sh\n" + "\n".join(commands) + "\n```",
        "Ours and theirs have the same weights, agree on an image, and take turns in one process; a ratio is the "
        "median over the rounds of theirs over ours (and the lowest and highest round). Theirs are in their "
        "libraries' default form. A training step is forward, cross-entropy, backward and a fused AdamW, and counts "
        "as three forward passes. bf16: weights and images of a forward pass in bfloat16, training under autocast. "
        "The peak is that of the machine's quickest square matrix product. Memory on a CPU is that of a process that "
        "does nothing else, with Python, torch and the weights: before the first step, and at most during the "
        "second; compiled, the compiler is still there.",
    ]
    if "speed" in found:
        parts += ["## Beside timm and torchvision", speed_table(found["speed"])]
    if "memory" in found:
        parts += ["## One large image", speed_table(found["memory"])]
    if "scaling" in found:
        draw(found["scaling"], folder / f"{stem}_scaling.svg")
        parts += [
            "## Scaling",
            "All sizes take turns, in float32, not compiled; windows stay at 7 tokens; the allocator keeps large "
            "buffers, as under the command line (see `vitrail.machine.keep_large_buffers`). The target for Swin and "
            "MaxViT is a cost of a pixel that is constant within 10 %.",
            scaling_table(found["scaling"]),
            f"![time by size]({stem}_scaling.svg)",
        ]
    write_text(page, "\n\n".join([*parts, *([tried.rstrip()] if tried else [])]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ("speed", "memory", "scaling")
    parser.add_argument("--sections", nargs="*", choices=sections, default=sections, help="none: the page alone")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--modes", nargs="+", choices=("forward", "train"), default=["forward", "train"])
    parser.add_argument("--precisions", nargs="+", choices=("32", "bf16"), default=["32"])
    parser.add_argument("--compiled", nargs="+", choices=("no", "yes"), default=["no", "yes"])
    parser.add_argument("--against", nargs="*", choices=("timm", "torchvision"), default=["timm", "torchvision"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--scaling-batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    if arguments.sections and load > 0.5:
        print(f"the machine is busy (load {load:.1f}): others' work will be in the numbers", file=sys.stderr)
    prepare_peers()
    device = choose_device(arguments.device)
    workloads = [
        Workload(mode, precision, compiled == "yes")
        for mode in arguments.modes
        for precision in arguments.precisions
        for compiled in arguments.compiled
    ]
    plan = Plan(workloads, arguments.batch, device, arguments.rounds, prepare=prepare_peers)
    stem = "models" if device.type == "cpu" else f"models_{device.type}"
    machine, command = describe(device), " ".join(["python benchmarks/models.py", *sys.argv[1:]])
    measures = {"speed": measure_speed, "memory": measure_memory, "scaling": measure_scaling}
    for section in arguments.sections:
        key = SCALING_KEY if section == "scaling" else SPEED_KEY
        for row in measures[section](arguments, plan):
            print({name: value for name, value in row.items() if value is not None}, flush=True)
            add(arguments.out / f"{stem}_{section}.csv", {**row, "machine": machine, "command": command}, key)
    write_page(arguments.out, stem)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
