"""Each fast path of the layers alone, on and off in alternation, and all of them in whole models.

    .venv/bin/python benchmarks/fast_paths.py                      # everything, a few minutes on one thread
    .venv/bin/python benchmarks/fast_paths.py --only mlp --rounds 31

Times are those of the processor in this process, so that other processes disturb them little. The gain is the median
over the rounds of the time without the fast path over the time with it; in brackets are the quartiles.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

import vitrail
from vitrail.files import write_text
from vitrail.layers.activations import Gelu
from vitrail.layers.fast.dispatch import without_fast_paths
from vitrail.layers.mbconv import TENSORFLOW, MBConv
from vitrail.layers.mlp import Mlp
from vitrail.layers.patches import PatchEmbed
from vitrail.layers.window_attention import WindowAttention
from vitrail.machine import processor

OUT = Path(__file__).parent / "results" / "fast_paths.md"
MODELS = ("vit_small_patch16_224", "swin_tiny_patch4_window7_224", "maxvit_tiny_tf_224")
BOTH = ("forward", "train")
Build = Callable[[], nn.Module]


def _windows(dim: int, shift: int = 3) -> Build:
    return lambda: WindowAttention(dim, dim // 32, 7, (shift, shift))


# Fast path, layer, how it is built, shape of its input, modes: the layers of ViT-S, Swin-T and MaxViT-T at 224 pixels.
CASES: tuple[tuple[str, str, Build, tuple[int, ...], tuple[str, ...]], ...] = (
    ("window_attention", "Swin-T, stage 1, shifted", _windows(96), (8, 56, 56, 96), BOTH),
    ("window_attention", "Swin-T, stage 1, shifted", _windows(96), (1, 56, 56, 96), BOTH),
    ("window_attention", "Swin-T, stage 3, shifted", _windows(384), (8, 14, 14, 384), BOTH),
    ("window_attention", "Swin-T, stage 3, shifted", _windows(384), (1, 14, 14, 384), BOTH),
    ("attention_mask", "Swin-T, stage 1, shifted", _windows(96), (8, 56, 56, 96), BOTH),
    ("attention_mask", "Swin-T, stage 1, shifted", _windows(96), (1, 56, 56, 96), BOTH),
    ("attention_mask", "Swin-T, stage 3, shifted", _windows(384), (8, 14, 14, 384), BOTH),
    ("attention_mask", "Swin-T, stage 3, shifted", _windows(384), (1, 14, 14, 384), BOTH),
    ("attention_bias", "Swin-T, stage 1, shifted", _windows(96), (8, 56, 56, 96), BOTH),
    ("attention_bias", "Swin-T, stage 1, shifted", _windows(96), (1, 56, 56, 96), BOTH),
    ("attention_bias", "Swin-T, stage 3, shifted", _windows(384), (8, 14, 14, 384), BOTH),
    ("attention_bias", "Swin-T, stage 3, shifted", _windows(384), (1, 14, 14, 384), BOTH),
    ("position_bias", "Swin-T, stage 1", _windows(96, 0), (8, 56, 56, 96), BOTH),
    ("position_bias", "Swin-T, stage 1", _windows(96, 0), (1, 56, 56, 96), BOTH),
    ("position_bias", "Swin-T, stage 4", _windows(768, 0), (1, 7, 7, 768), BOTH),
    ("attention", "Swin-T, stage 1, shifted", _windows(96), (8, 56, 56, 96), BOTH),
    ("attention", "Swin-T at 448 pixels, stage 1, shifted", _windows(96), (8, 112, 112, 96), ("forward",)),
    ("attention", "Swin-T, stage 3, shifted", _windows(384), (8, 14, 14, 384), BOTH),
    ("mlp", "ViT-S", lambda: Mlp(384, 1536), (8, 197, 384), BOTH),
    ("mlp", "Swin-T, stage 1", lambda: Mlp(96, 384), (8, 56, 56, 96), BOTH),
    ("mlp", "MaxViT-T, stage 1", lambda: Mlp(64, 256, act_layer="gelu_tanh"), (8, 56, 56, 64), BOTH),
    ("gelu", "MaxViT-T, stage 1, hidden layer, one image", lambda: Gelu("tanh"), (1, 56, 56, 256), ("forward",)),
    ("gelu", "MaxViT-T, stage 3, hidden layer, one image", lambda: Gelu("tanh"), (1, 14, 14, 1024), ("forward",)),
    ("mbconv", "MaxViT-T, stage 1, stride 2", lambda: MBConv(64, 64, 2, TENSORFLOW), (8, 64, 112, 112), BOTH),
    ("mbconv", "MaxViT-T, stage 1, stride 1", lambda: MBConv(64, 64, 1, TENSORFLOW), (8, 64, 56, 56), BOTH),
    ("mbconv", "MaxViT-T, stage 3, stride 1", lambda: MBConv(256, 256, 1, TENSORFLOW), (8, 256, 14, 14), BOTH),
    ("patch_embed", "Swin-T", lambda: PatchEmbed(3, 96, 4, "layernorm"), (8, 3, 224, 224), BOTH),
)


def make_step(layer: nn.Module, x: Tensor, mode: str) -> Callable[[], None]:
    """Build a forward pass without gradients, or forward and backward pass."""
    if mode == "forward":
        layer.eval()

        @torch.no_grad()
        def forward() -> None:
            layer(x)

        return forward
    x = x.requires_grad_(x.ndim == 4 and x.shape[1] != 3)

    def train() -> None:
        layer.zero_grad()
        layer.train()(x).sum().backward()

    return train


def seconds(step: Callable[[], None], calls: int) -> float:
    """Processor seconds of one call."""
    gc.collect(1)
    start = time.process_time()
    for _ in range(calls):
        step()
    return (time.process_time() - start) / calls


def measure(step: Callable[[], None], names: tuple[str, ...], rounds: int, least: float) -> list[float]:
    """Time a step without and with fast paths; return the ratio of each round."""

    def off() -> without_fast_paths:  # type: ignore[valid-type]
        return without_fast_paths(*names)

    for context in (off(), nullcontext()):
        with context:
            step()
    calls = max(1, round(least / max(seconds(step, 1), 1e-6)))
    ratios = []
    for number in range(rounds):
        times = {}
        for fast in (True, False) if number % 2 else (False, True):
            with nullcontext() if fast else off():
                times[fast] = seconds(step, calls)
        ratios.append(times[False] / times[True])
    return ratios


def cell(ratios: list[float]) -> str:
    """Median and quartiles."""
    low, _, high = statistics.quantiles(ratios, n=4)
    return f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="fast paths to measure; then nothing is written")
    parser.add_argument("--rounds", type=int, default=15, help="at least 2")
    parser.add_argument("--least", type=float, default=0.15, help="seconds of a step in a round")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    lines = ["| fast path | layer, input | forward | training step |", "|---|---|---|---|"]
    for name, layer_name, build, shape, modes in CASES:
        if arguments.only and name not in arguments.only:
            continue
        layer, x = build(), torch.randn(shape)
        if isinstance(layer, MBConv):
            x = x.contiguous(memory_format=torch.channels_last)
        cells = []
        for mode in BOTH:
            step = make_step(layer, x, mode)
            cells.append(cell(measure(step, (name,), arguments.rounds, arguments.least)) if mode in modes else "")
        lines.append(f"| `{name}` | {layer_name}, {' x '.join(map(str, shape))} | {cells[0]} | {cells[1]} |")
        print(lines[-1], flush=True)
    if arguments.only:
        return

    lines += ["", "| all fast paths | forward | training step |", "|---|---|---|"]
    for name in MODELS:
        model, x = vitrail.create_model(name), torch.randn(4, 3, 224, 224)
        cells = [cell(measure(make_step(model, x, mode), (), max(5, arguments.rounds // 2), 0.0)) for mode in BOTH]
        lines.append(f"| `{name}`, batch 4 | {cells[0]} | {cells[1]} |")
        print(lines[-1], flush=True)
    text = f"""# Fast paths of the layers

`benchmarks/fast_paths.py` on {processor()}, one thread, torch {torch.__version__}, float32.
Processor time without the fast path over processor time with it: median of {arguments.rounds} alternating rounds
(quartiles); above 1 the fast path gains. `resample_positions` serves graphs for dynamic sizes and is not measured.

"""
    write_text(arguments.out, text + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
