"""Shorten a golden file: weights and inputs that a random generator repeats become positions in its stream.

The reference implementations ran on weights and inputs drawn by torch's CPU generator or by numpy. A short file keeps
the outputs, and of a weight or an input the generator, seed, position, shift and scale. Only tensors that are repeated
bit for bit are replaced; all others stay in the file.

``python -m tests.golden.pack FOLDER/*.safetensors`` reads full files and writes the short ones beside this module;
``--without PREFIX`` leaves out tensors that no test reads, for example ``output.hidden``.
"""

import argparse
import functools
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.golden_files import CHUNK, FOLDER, Draw, draw_tensors

SEEDS = {"torch": (18, 11), "numpy": (5, 11, 12)}
# Weights are drawn first; inputs by a generator that has initialised models before.
STREAM = {"state": 1_000_000, "input": 8_000_000}
TOLERANCE = 1e-4


def pack(source, target, without=()):
    """Write the short form of a golden file; return the names of its weights and inputs that stay as they are."""
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys() if not key.startswith(tuple(without))}
    draws = {}
    for name, tensor in tensors.items():
        kind = name.split(".")[0]
        if kind in STREAM and tensor.dtype == torch.float32 and tensor.numel() >= CHUNK:
            draw = find_draw(tensor, STREAM[kind])
            if draw is not None:
                draws[name] = draw
    kept = {name: tensor for name, tensor in tensors.items() if name not in draws}
    total = sum(tensors[name].double().abs().sum().item() for name in draws)
    save_file(kept, target, metadata={**metadata, "draws": json.dumps(draws), "sum": repr(total)})
    return [name for name in kept if not name.startswith("output.")]


def find_draw(tensor, length):
    """Find a tensor in the streams of the seeds; None where none of them holds it bit for bit."""
    shape = list(tensor.shape)
    for seed in SEEDS["torch"]:
        stream = _torch_words(seed)[:length]
        for shift in (0.0, 1.0):
            # Box-Muller of 8 pairs: the angle of a pair depends on neither the scale nor the other uniform number.
            left, right = np.split(tensor.flatten()[-CHUNK:].double().numpy() - shift, 2)
            angles = np.arctan2(right, left) / (2 * np.pi) % 1
            before = tensor.numel() if tensor.numel() % CHUNK else tensor.numel() - CHUNK
            for at in _find(stream[CHUNK // 2 :], angles) - before:
                draw = _find_scale(tensor, Draw("torch.normal", seed, int(at), shape, shift, 1.0))
                if draw is not None:
                    return draw
        for at in _find(stream, tensor.flatten()[: CHUNK // 2].double().numpy() - 0.5):
            draw = Draw("torch.uniform", seed, int(at), shape, 0.5, 1.0)
            if torch.equal(draw_tensors({"": draw})[""], tensor):
                return draw
    for seed in SEEDS["numpy"]:
        stream = _numpy_normals(seed)
        for shift in (0.0, 1.0):
            first, *further = tensor.flatten()[:3].double().numpy() - shift
            found = np.arange(len(stream) - len(further))
            for step, value in enumerate(further, 1):
                # A ratio to the first value depends on no scale.
                found = found[np.abs(stream[found + step] * first - value * stream[found]) < TOLERANCE * abs(first)]
            for at in found:
                draw = _find_scale(tensor, Draw("numpy.normal", seed, int(at), shape, shift, 1.0))
                if draw is not None:
                    return draw
    return None


def _find_scale(tensor, draw):
    """Complete a draw by the scale that repeats the tensor; None where there is none."""
    if draw.at < 0:
        return None
    normal = draw_tensors({"": draw._replace(shift=0.0)})[""].double()
    scale = ((tensor.double() - draw.shift).norm() / normal.norm()).item()
    near = np.float32(scale)
    # A round number, or a float32 beside the estimate.
    for candidate in (round(scale, 3), *(float(near + step * np.spacing(near)) for step in range(-4, 5))):
        found = draw._replace(scale=candidate)
        if torch.equal(draw_tensors({"": found})[""], tensor):
            return found
    return None


def _find(stream, wanted):
    """Positions at which a stream continues with the wanted numbers."""
    found = np.flatnonzero(np.abs(stream[: 1 - len(wanted)] - np.float32(wanted[0])) < TOLERANCE)
    for step, value in enumerate(wanted[1:], 1):
        found = found[np.abs(stream[found + step] - value) < TOLERANCE]
    return found


@functools.cache
def _torch_words(seed):
    """Uniform numbers that torch makes of the words of its stream: the lowest 24 bits of a Mersenne Twister's."""
    words = np.random.RandomState(seed).randint(0, 2**32, size=max(STREAM.values()), dtype=np.uint32)
    return ((words & 0xFFFFFF) / 2**24).astype(np.float32)


@functools.cache
def _numpy_normals(seed):
    return np.random.default_rng(seed).standard_normal(300_000)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("files", nargs="+", type=Path)
    arguments = parser.parse_args()
    for path in arguments.files:
        left = pack(path, FOLDER / path.name, arguments.without)
        print(f"{path.name}: {path.stat().st_size} -> {(FOLDER / path.name).stat().st_size} bytes; stay: {left}")
