"""Reading the golden files: tiny random models, run by the reference implementations."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

FOLDER = Path(__file__).parent / "golden"


@dataclass
class Golden:
    config: dict
    state: dict
    inputs: dict
    outputs: dict


def read_golden(name):
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        parts = {"state": {}, "input": {}, "output": {}}
        for key in file.keys():
            kind, rest = key.split(".", 1)
            parts[kind][rest] = file.get_tensor(key)
        config = json.loads(file.metadata()["config"])
    return Golden(config, parts["state"], parts["input"], parts["output"])


def relative_error(actual, expected):
    """Largest deviation over the output's scale."""
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max()).item() if expected.numel() else 0.0


def run(model, golden):
    model.eval()
    with torch.no_grad():
        return model(*golden.inputs.values())
