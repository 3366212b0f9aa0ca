"""README.md of an export: code for the plain engine, inputs and outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vitrail.engines.inputs import takes_any_size
from vitrail.engines.load import ENGINES, fill_shape
from vitrail.errors import plural
from vitrail.models.modality import is_per_point

_CODE = {
    "openvino": """import numpy as np, openvino{pillow}
model = openvino.Core().compile_model("{file}", "CPU", {{"INFERENCE_PRECISION_HINT": "{hint}"}})
{arrays}
outputs = model({{{feed}}})
print(outputs["probabilities"].argmax(-1))""",
    "onnx": """import numpy as np, onnxruntime{pillow}
session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])
{arrays}
logits, probabilities, *_ = session.run(None, {{{feed}}})
print(probabilities.argmax(-1))""",
    "torch": """import torch
program = torch.export.load("{file}").module({guards})
{arrays}
outputs = program({positional})
print(outputs["probabilities"].argmax(-1))""",
    "inductor": """import torch, torch._inductor
model = torch._inductor.aoti_load_package("{file}")
{arrays}
outputs = model({positional})
print(outputs["probabilities"].argmax(-1))""",
}
# Entry of stored inputs -> expression of one of them.
_STORED = {
    "photographs": """np.asarray(PIL.Image.open("photo.jpg").convert("RGB"))[None].transpose(0, 3, 1, 2)""",
    "frames": "your frames, see below",
    "clouds": "your points, see below",
}
_PREPARED = {
    "photographs": "pixels at the model's size",
    "frames": "frames at the model's size",
    "clouds": "centred and scaled points",
}
_OF_POINTS = (
    "Each point has a row of logits and probabilities, shape N x points x classes; logits are 0 where there is no\n"
    "point. "
)
_CASTS = """
OpenVINO converts other types in silence: float pixels in 0..1 given to a uint8 input become black. Check types
before the call, or load the folder with `vitrail.engines.load_export`, which refuses other types and sizes.

vitrail computes a batch in parts at once (`"PERFORMANCE_HINT": "THROUGHPUT"`, a request for each part), and compiles
small models for fixed sizes of the parts (`model.reshape` before `compile_model`). Both are faster than this code.
"""
_UNCHECKED = """
The package checks neither types nor sizes: others are read as if they were these. Check them before the call, or load
the folder with `vitrail.engines.load_export`. It holds machine code for the processor that exported it.
"""
_WARNINGS = {"openvino": _CASTS, "inductor": _UNCHECKED}
_DECODING = """ Decode JPEG files in full and turn them as their EXIF tag says;
Pillow, OpenCV (whose order of colors is blue, green, red) and simplejpeg then give the pixels of `vitrail predict`, up
to a quarter of a level of 255 on average."""


_FRAMES = """
Frames of a video file, decoded by PyAV:

```python
import av, numpy as np
container = av.open("clip.mp4")
frames = [frame.to_ndarray(format="{format}") for frame in container.decode(video=0)]
{chosen}
{name} = np.stack([frames[i] for i in chosen]){axes}
```

Turn frames that are stored in another orientation by their `frame.rotation`.
"""
_EVENLY = "chosen = [int((i + 0.5) * len(frames) / {frames}) for i in range({frames})]"
_BY_RATE = """step = float(container.streams.video[0].average_rate) / {rate:g}
chosen = [int(min(max(len(frames) / 2 + (i - {middle:g}) * step, 0), len(frames) - 1)) for i in range({frames})]"""
_POINTS = """
Points of a file, those at the same coordinates once:

```python
import numpy as np
cloud = np.loadtxt("cloud.xyz", ndmin=2)
cloud = cloud[np.sort(np.unique(cloud[:, :3], axis=0, return_index=True)[1])]
{chosen}
{name} = np.full((1, {count}, 3), np.nan, np.float32)
{name}[0, : len(chosen)] = cloud[chosen, :3] - cloud[0, :3]{features}
```

Points that a smaller cloud lacks are NaN. Coordinates are relative to one of the points, since float32 rounds large
ones.
"""
_FEATURES = """
{name} = np.zeros((1, {count}, {bands}), np.float32)
{name}[0, : len(chosen)] = cloud[chosen][:, {columns}]  # columns of {names}"""
_CHOOSE = {
    "farthest": """chosen, nearest = [0], np.full(len(cloud), np.inf)
while len(chosen) < min({count}, len(cloud)):
    nearest = np.minimum(nearest, np.square(cloud[:, :3] - cloud[chosen[-1], :3]).sum(1))
    chosen.append(int(nearest.argmax()))""",
    "random": "chosen = np.random.default_rng(0).choice(len(cloud), min({count}, len(cloud)), replace=False)",
}


def readme(facts: Mapping[str, Any]) -> str:
    """Explain an export in one page.

    Args:
        facts: Content of export.json.
    """
    engine, card, inputs = facts["engine"], facts["model"], facts["inputs"]
    names = [entry["name"] for entry in inputs]
    module = "np" if engine in ("openvino", "onnx") else "torch"
    arrays = "\n".join(_array(entry, inputs[0]["entry"], module) for entry in inputs)
    code = _CODE[engine].format(
        file=ENGINES[engine],
        pillow=", PIL.Image" if "PIL.Image" in arrays else "",
        hint="f32" if facts["precision"] == "fp32" else "bf16",
        arrays=arrays,
        feed=", ".join(f'"{name}": {name}' for name in names),
        positional=", ".join(names),
        guards="check_guards=False" if takes_any_size(inputs) else "",
    )
    rows = "\n".join(_row(entry) for entry in inputs)
    of_points = ("part of points", "parts of points") if is_per_point(card["settings"]) else ("class",)
    classes = plural(len(card["classes"]), *of_points)
    return f"""# {card["name"]}: {classes}, {facts["precision"]}

```python
{code}
```

| input | shape ({", ".join(inputs[0]["axes"])}) | values | bands, in order |
|---|---|---|---|
{rows}

Outputs: {", ".join(f"`{name}`" for name in facts["outputs"])}; `model.classes` in `export.json` names the classes in
order. {_OF_POINTS if of_points else ""}{_entries(facts)}
{_sizes(next(entry for entry in inputs if entry["prepared"]))}
{_reading(facts)}{_WARNINGS.get(engine, "")}
`vitrail export --check DIR` compares the outputs on `check.npz` with the recorded ones.
"""


def _array(entry: Mapping[str, Any], used: str, module: str) -> str:
    """Write the line that makes an input: one of the used entry, an empty batch of the other."""
    batch = 1 if entry["entry"] == used else 0
    shape = fill_shape(entry["shape"], batch, (480, 640) if batch else (1, 1))
    if not batch:
        comment = f"or: {_PREPARED[used]}"
    elif used != "photographs" or (module, shape[1], entry["dtype"]) == ("np", 3, "uint8"):
        comment = _STORED.get(used, "your pixels")
    else:
        comment = "your pixels"
    return f"{entry['name']} = {module}.zeros({shape}, dtype={module}.{entry['dtype']})  # {comment}"


def _reading(facts: Mapping[str, Any]) -> str:
    """Write the code that reads clips and clouds as the run does; empty for photographs."""
    first = facts["inputs"][0]
    how = facts["preparation"].get(first["stream"], {})
    if first["entry"] == "frames":
        frames, rate = how["frames"], how["frames_per_second"]
        chosen = _EVENLY if rate is None else _BY_RATE
        gray = len(first["bands"]) == 1
        return _FRAMES.format(
            name=first["name"],
            format="gray" if gray else "rgb24",
            axes="[None, None]" if gray else "[None].transpose(0, 4, 1, 2, 3)",
            chosen=chosen.format(frames=frames, rate=rate, middle=(frames - 1) / 2),
        )
    if first["entry"] == "clouds":
        count = how["points"]
        others = [entry for entry in facts["inputs"][1:] if entry["entry"] == "clouds"]
        features = (
            _FEATURES.format(
                name=entry["name"], count=count, bands=len(entry["bands"]), columns=_columns(entry["bands"]),
                names=", ".join(entry["bands"]),
            )
            for entry in others
        )  # fmt: skip
        return _POINTS.format(
            name=first["name"],
            count=count,
            chosen=_CHOOSE[how["subsample"]].format(count=count),
            features="".join(features),
        )
    return ""


def _columns(names: Sequence[str]) -> list[int]:
    """Return the columns of attributes behind x, y and z: of unnamed ones by their index, of others in their order."""
    if all(re.fullmatch(r"feature\d+", name) for name in names):
        return [3 + int(name.removeprefix("feature")) for name in names]
    return list(range(3, 3 + len(names)))


def _sizes(entry: Mapping[str, Any]) -> str:
    """Describe the sizes that a prepared input takes."""
    if "height" not in entry["axes"]:
        return f"Another number of points than {entry['shape'][1]} is an error."
    if entry["shape"][-1] is None:
        least = " x ".join(map(str, entry["least"]))
        return f"Inputs of any size are neither cropped nor resized; the smallest size is {least} pixels."
    size = " x ".join(map(str, entry["shape"][2:]))
    return f"Inputs at the model's size are neither cropped nor resized; another size than {size} is an error."


def _row(entry: Mapping[str, Any]) -> str:
    shape = " x ".join("N" if axis == 0 else str(dim or "any") for axis, dim in enumerate(entry["shape"]))
    values = entry["dtype"]
    if entry["low"]:
        low, high = (", ".join(f"{value:g}" for value in entry[side]) for side in ("low", "high"))
        values += f", {low} to {high}"
    if entry["dtype"] == "float32":
        values += ", NaN where there is no " + ("data" if entry["low"] else "point")
    return f"| `{entry['name']}` | {shape} | {values} | {', '.join(entry['bands'])} |"


_ENTRIES = {
    "photographs": (
        "Photographs of any size are cropped and resized\nin the graph, as the run evaluates them. A batch takes "
        "photographs of one size, or pixels at the model's size; the\nother inputs stay empty (0 images)."
    ),
    "frames": (
        "Frames of any size are cropped and resized in the\ngraph, as the run evaluates them: {sampling}.\n"
        "A batch takes clips of one size, or frames at the model's size; the other input stays empty (0 clips)."
    ),
    "clouds": (
        "Clouds in units of their files are turned (up: {up}),\ncentred and scaled in the graph, as the run evaluates "
        "them.\nSampling: {sampling}.\nA batch takes such clouds, or centred and scaled ones; the other inputs stay "
        "empty (0 clouds)."
    ),
}


def _entries(facts: Mapping[str, Any]) -> str:
    """Describe both entries."""
    if facts["no_photographs"]:
        return f"There is no input for photographs of any size: {facts['no_photographs']}."
    first = facts["inputs"][0]
    text = _ENTRIES[first["entry"]].format(**facts["preparation"][first["stream"]])
    return text + (_DECODING if facts["decoding"] else "")
