"""The convolution of vectors along edges: vitrail's forms and the published layout, in alternation.

    .venv/bin/python benchmarks/vector_edges.py

"fast" maps points instead of edges (``layers/fast/vector_edges.py``), "plain" builds the features of all edges in
vitrail's layout ``(B, N, k, 3, C)``, "published" builds them as ``(B, C, 3, N, k)`` and moves channels to the end and
back for each linear layer, as the code of arXiv:2104.12229 does. All give the same numbers, which is checked first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vitrail.files import write_text
from vitrail.layers.fast.dispatch import without_fast_paths
from vitrail.layers.point_graphs import VNEdgeConv, nearest_points, take_neighbours
from vitrail.machine import processor

OUT = Path(__file__).parent / "results" / "vector_edges.md"
# Clouds, points, neighbours, channels in and out: layers of VN-DGCNN and of a small vnt.
CASES = ((8, 256, 20, 21, 21), (4, 1024, 20, 21, 42), (32, 128, 8, 1, 32))


def run_fast(layer: VNEdgeConv, x: Tensor, index: Tensor) -> Tensor:
    """Run the layer as it is."""
    out: Tensor = layer(x, index)
    return out


def run_plain(layer: VNEdgeConv, x: Tensor, index: Tensor) -> Tensor:
    """Run the layer without fast paths."""
    with without_fast_paths():
        return run_fast(layer, x, index)


def run_published(layer: VNEdgeConv, x: Tensor, index: Tensor) -> Tensor:
    """Run the same steps in the layout ``(B, C, 3, N, k)``."""
    neighbours = take_neighbours(x, index)
    centres = x[:, :, None].repeat(1, 1, index.shape[2], 1, 1)
    edges = torch.cat([neighbours - centres, centres], dim=-1).permute(0, 4, 3, 1, 2).contiguous()
    features = layer.map_to_feat(edges.transpose(1, -1)).transpose(1, -1)
    length = features.norm(dim=2) + 1e-6
    bn = layer.batchnorm.bn
    normed = torch.nn.functional.batch_norm(
        length, bn.running_mean, bn.running_var, bn.weight, bn.bias, layer.training, 0.1, bn.eps
    )
    features = features / length.unsqueeze(2) * normed.unsqueeze(2)
    directions = layer.map_to_dir(edges.transpose(1, -1)).transpose(1, -1)
    along = (features * directions).sum(2, keepdim=True)
    mask = (along >= 0).float()
    squared = (directions * directions).sum(2, keepdim=True)
    clipped = mask * features + (1 - mask) * (features - (along / (squared + 1e-6)) * directions)
    out = layer.negative_slope * features + (1 - layer.negative_slope) * clipped
    return out.mean(dim=-1).permute(0, 3, 2, 1)


FORMS = {"fast": run_fast, "plain": run_plain, "published": run_published}


def make_step(form: Callable[..., Tensor], layer: VNEdgeConv, x: Tensor, index: Tensor, mode: str) -> None:
    """Run a forward pass without gradients, or forward and backward pass."""
    layer.train(mode == "train")
    if mode == "forward":
        with torch.no_grad():
            form(layer, x, index)
        return
    layer.zero_grad()
    form(layer, x.requires_grad_(), index).sum().backward()


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = [
        "| clouds x points, neighbours, channels | mode | fast, ms | plain / fast | published / fast |",
        "|---|---|---|---|---|",
    ]
    for clouds, points, k, before, after in CASES:
        x, index = torch.randn(clouds, points, 3, before), nearest_points(torch.randn(clouds, points, 3), k)
        layer = VNEdgeConv(before, after).eval()
        with torch.no_grad():
            expected = run_plain(layer, x, index)
            for name, form in FORMS.items():
                error = (form(layer, x, index) - expected).abs().max() / expected.abs().max()
                assert error < 1e-5, f"{name} differs by {error}"
        for mode in ("forward", "train"):
            times: dict[str, list[float]] = {name: [] for name in FORMS}
            for number in range(arguments.rounds + 1):
                for name in sorted(FORMS, reverse=bool(number % 2)):
                    step = partial(make_step, FORMS[name], layer, x.detach(), index, mode)
                    start = time.process_time()
                    step()
                    if number:  # the first round warms up
                        times[name].append(time.process_time() - start)
            cells = [f"{1e3 * statistics.median(times['fast']):.1f}"]
            for name in ("plain", "published"):
                ratios = [other / fast for other, fast in zip(times[name], times["fast"], strict=True)]
                low, _, high = statistics.quantiles(ratios, n=4)
                cells.append(f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})")
            lines.append(f"| {clouds} x {points}, {k}, {before} to {after} | {mode} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    text = f"""# Convolution of vectors along edges

`benchmarks/vector_edges.py` on {processor()}, one thread, torch {torch.__version__}, float32, mean over neighbours.
Processor time of one pass, and ratios of processor time: median of {arguments.rounds} alternating rounds (quartiles).

"""
    write_text(arguments.out, text + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
