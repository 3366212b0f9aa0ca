"""README.md of an export: code for the plain engine, inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitrail.engines.inputs import takes_any_size
from vitrail.engines.load import ENGINES

_CODE = {
    "openvino": """import numpy as np, openvino{pillow}
model = openvino.Core().compile_model("{file}", "CPU", {{"INFERENCE_PRECISION_HINT": "{hint}"}})
{arrays}
outputs = model({{{feed}}})
print(outputs["probabilities"].argmax(1))""",
    "onnx": """import numpy as np, onnxruntime{pillow}
session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])
{arrays}
logits, probabilities, *_ = session.run(None, {{{feed}}})
print(probabilities.argmax(1))""",
    "torch": """import torch
program = torch.export.load("{file}").module({guards})
{arrays}
outputs = program({positional})
print(outputs["probabilities"].argmax(1))""",
    "inductor": """import torch, torch._inductor
model = torch._inductor.aoti_load_package("{file}")
{arrays}
outputs = model({positional})
print(outputs["probabilities"].argmax(1))""",
}
_PHOTOGRAPH = """np.asarray(PIL.Image.open("photo.jpg").convert("RGB"))[None].transpose(0, 3, 1, 2)"""
_CASTS = """
OpenVINO converts other types in silence: float pixels in 0..1 given to a uint8 input become black. Check the type
before the call, or load the folder with `vitrail.engines.load_export`, which refuses other types and sizes.
"""
_UNCHECKED = """
The package checks neither types nor sizes: others are read as if they were these. Check them before the call, or load
the folder with `vitrail.engines.load_export`. It holds machine code for the processor that exported it.
"""
_WARNINGS = {"openvino": _CASTS, "inductor": _UNCHECKED}
_DECODING = """ Decode JPEG files in full and turn them as their EXIF tag says;
Pillow, OpenCV (whose order of colors is blue, green, red) and simplejpeg then give the pixels of `vitrail predict`, up
to a quarter of a level of 255 on average."""


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
        pillow=", PIL.Image" if _PHOTOGRAPH in arrays else "",
        hint="f32" if facts["precision"] == "fp32" else "bf16",
        arrays=arrays,
        feed=", ".join(f'"{name}": {name}' for name in names),
        positional=", ".join(names),
        guards="check_guards=False" if takes_any_size(inputs) else "",
    )
    rows = "\n".join(_row(entry) for entry in inputs)
    return f"""# {card["name"]}: {len(card["classes"])} classes, {facts["precision"]}

```python
{code}
```

| input | shape (batch, bands, height, width) | values | bands, in order |
|---|---|---|---|
{rows}

Outputs: {", ".join(f"`{name}`" for name in facts["outputs"])}; `model.classes` in `export.json` names the classes in
order. {_entries(facts)}
{_sizes(next(entry for entry in inputs if entry["entry"] == "resized"))}
{_WARNINGS.get(engine, "")}
`vitrail export --check DIR` compares the outputs on `check.npz` with the recorded ones.
"""


def _array(entry: Mapping[str, Any], used: str, module: str) -> str:
    """Write the line that makes an input: one image of the used entry, an empty batch of the other."""
    _, bands, height, width = entry["shape"]
    batch = 1 if entry["entry"] == used else 0
    shape = (batch, bands, height or (480 if batch else 1), width or (640 if batch else 1))
    comment = "or: pixels at the model's size"
    if batch:
        comment = _PHOTOGRAPH if (module, bands, entry["dtype"]) == ("np", 3, "uint8") else "your pixels"
    return f"{entry['name']} = {module}.zeros({shape}, dtype={module}.{entry['dtype']})  # {comment}"


def _sizes(entry: Mapping[str, Any]) -> str:
    """Describe the sizes that an input without resize takes."""
    if entry["shape"][2] is None:
        least = " x ".join(map(str, entry["least"]))
        return f"Inputs of any size are neither cropped nor resized; the smallest size is {least} pixels."
    size = " x ".join(map(str, entry["shape"][2:]))
    return f"Inputs at the model's size are neither cropped nor resized; another size than {size} is an error."


def _row(entry: Mapping[str, Any]) -> str:
    shape = " x ".join("N" if axis == 0 else str(dim or "any") for axis, dim in enumerate(entry["shape"]))
    low, high = (", ".join(f"{value:g}" for value in entry[side]) for side in ("low", "high"))
    values = f"{entry['dtype']}, {low} to {high}"
    if entry["dtype"] == "float32":
        values += ", NaN where there is no data"
    return f"| `{entry['name']}` | {shape} | {values} | {', '.join(entry['bands'])} |"


def _entries(facts: Mapping[str, Any]) -> str:
    if not facts["no_photographs"]:
        return (
            "Photographs of any size are cropped and resized\nin the graph, as the run evaluates them. A batch takes "
            "photographs of one size, or pixels at the model's size; the\nother inputs stay empty (0 images)."
            + (_DECODING if facts["decoding"] else "")
        )
    return f"There is no input for photographs of any size: {facts['no_photographs']}."
