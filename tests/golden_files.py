"""Reading the golden files: tiny random models, run by the reference implementations.

The expected outputs are those of the implementation in the file's ``source``. Its weights and inputs were random: a
file holds their positions in the streams of torch's and numpy's generators. ``tests/golden/pack.py`` writes such files
from full ones.
"""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open

FOLDER = Path(__file__).parent / "golden"
# torch draws normal numbers in chunks of this size, from tensors of at least one chunk.
CHUNK = 16


class Draw(NamedTuple):
    """A tensor in a generator's stream: ``shift + scale * draw``.

    ``at`` counts 32-bit words of torch's stream, normal numbers of numpy's.
    """

    kind: str
    seed: int
    at: int
    shape: list
    shift: float
    scale: float


@dataclass
class Golden:
    config: dict
    state: dict
    inputs: dict
    outputs: dict


def read_golden(name):
    config, tensors = _read_tensors(name)
    parts = {"state": {}, "input": {}, "output": {}}
    for key in sorted(tensors):
        kind, rest = key.split(".", 1)
        parts[kind][rest] = tensors[key].clone()
    return Golden(json.loads(config), parts["state"], parts["input"], parts["output"])


@functools.cache
def _read_tensors(name):
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        metadata = file.metadata()
    drawn = draw_tensors({key: Draw(*draw) for key, draw in json.loads(metadata.get("draws", "{}")).items()})
    total = sum(tensor.double().abs().sum().item() for tensor in drawn.values())
    expected = float(metadata.get("sum", 0))
    assert abs(total - expected) <= 1e-6 * expected, (
        f"torch {torch.__version__} or numpy {np.__version__} draws other numbers than {name} needs"
    )
    return metadata["config"], {**tensors, **drawn}


def draw_tensors(draws):
    """Repeat draws; name -> tensor."""
    tensors = {}
    streams = {}
    for name, draw in sorted(draws.items(), key=lambda item: item[1].at):
        library, distribution = draw.kind.split(".")
        stream = streams.get((library, draw.seed))
        if stream is None or stream.position > draw.at:
            stream = streams[library, draw.seed] = STREAMS[library](draw.seed)
        stream.skip(draw.at - stream.position)
        tensors[name] = getattr(stream, distribution)(draw.shape) * draw.scale + draw.shift
    return tensors


class _TorchStream:
    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.position = 0

    def skip(self, words):
        torch.rand(words, generator=self.generator)
        self.position += words

    def uniform(self, shape):
        self.position += math.prod(shape)
        return torch.rand(shape, generator=self.generator)

    def normal(self, shape):
        count = math.prod(shape)
        # A last chunk that is not full is drawn again, from further words.
        self.position += count + (CHUNK if count % CHUNK else 0)
        return torch.randn(shape, generator=self.generator)


class _NumpyStream:
    def __init__(self, seed):
        self.generator = np.random.default_rng(seed)
        self.position = 0

    def skip(self, numbers):
        self.generator.standard_normal(numbers)
        self.position += numbers

    def normal(self, shape):
        self.position += math.prod(shape)
        return torch.from_numpy(self.generator.standard_normal(shape)).float()


STREAMS = {"torch": _TorchStream, "numpy": _NumpyStream}


def relative_error(actual, expected):
    """Largest deviation over the output's scale."""
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item() if expected.numel() else 0.0


def run(model, golden):
    model.eval()
    with torch.no_grad():
        return model(*golden.inputs.values())
