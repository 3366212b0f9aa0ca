"""Convert the graph to the file of an engine, by way of ``torch.export``."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sysconfig
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._decomp import get_decompositions
from torch.export import Dim, ExportedProgram
from torch.fx import config as fx_config

from vitrail.deploy.export.graph import ExportGraph, GraphInput
from vitrail.deploy.export.layout import rewrite
from vitrail.engines import inductor
from vitrail.engines.load import ENGINES
from vitrail.engines.torch import RECORD
from vitrail.errors import ConfigError
from vitrail.extras import import_extra

_OPSET = 20
# Largest batch, height or width.
_MOST_INPUTS, _MOST_PIXELS = 4096, 65535
_INDUCTOR = {
    "freezing": True,
    "cpp.dynamic_threads": True,  # otherwise the number at export is fixed
    "cpp.march": "",  # only the instruction sets that the package names, by which its processor is checked
    "aot_inductor.enable_line_tables": False,
}
# Key of the record inside the model file.
METADATA = "vitrail"


def trace(graph: ExportGraph) -> ExportedProgram:
    """Record the graph as a program of torch's operators, for any batch size.

    The program holds no paths of source files.
    """
    # A batch of its own size for each entry, so that they are not taken for one.
    sizes = {entry: size for size, entry in enumerate(dict.fromkeys(entry.entry for entry in graph.inputs), start=2)}
    example = tuple(entry.example(sizes[entry.entry]) for entry in graph.inputs)
    dynamic = tuple(
        {axis: _free_size(graph, entry, axis) for axis, size in enumerate(entry.shape) if size is None}
        for entry in graph.inputs
    )
    with torch.no_grad(), _without_stack_traces():
        program = torch.export.export(graph.eval(), example, dynamic_shapes=(dynamic,))
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
            node.meta.pop(key, None)
    return program


@contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Record no Python stacks: nothing reads them, and they take a sixth of the time of an export.

    torch 2.11 has no such setting, and records them.
    """
    name = "do_not_emit_stack_traces"
    if not hasattr(fx_config, name):
        yield
        return
    before = getattr(fx_config, name)
    setattr(fx_config, name, True)
    try:
        yield
    finally:
        setattr(fx_config, name, before)


def _free_size(graph: ExportGraph, entry: GraphInput, axis: int) -> Any:
    """Return the range of a batch, height or width."""
    if axis == 0:
        return Dim(entry.entry, min=0, max=_MOST_INPUTS)
    side = axis - len(entry.shape)
    least = entry.least[side]
    if graph.any_size:
        # The model branches by size where both branches are equal, which torch.export cannot prove.
        return Dim.DYNAMIC(min=least, max=_MOST_PIXELS)
    return Dim(f"{entry.name}_{entry.axes[axis]}", min=least, max=_MOST_PIXELS)


def convert(program: ExportedProgram, graph: ExportGraph, engine: str, folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the files of an engine.

    Args:
        program: Result of :func:`trace`.
        graph: The graph that it was made from.
        engine: Key of :data:`vitrail.engines.load.ENGINES`.
        folder: Existing folder.
        facts: Description that is stored inside the model file.
    """
    # The same text for the same facts, so that two exports are the same file.
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True)
    with warnings.catch_warnings(), _without_stack_traces():
        # torch copies its own specifications of trees in a way that it deprecates.
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        _WRITERS[engine](program, graph, folder / ENGINES[engine], text)


def _joined_slices(x: torch.Tensor, shifts: Sequence[int], dims: Sequence[int]) -> torch.Tensor:
    """Compute a roll, also of axes of any size."""
    for shift, dim in zip(shifts, dims, strict=True):
        size = x.shape[dim]
        # The remainder of a division by size; OpenVINO converts no remainder of sizes.
        first = size - shift - (size - shift) // size * size
        x = torch.cat([x.narrow(dim, first, size - first), x.narrow(dim, 0, first)], dim)
    return x


# Operations that OpenVINO 2026.4 computes wrongly, and what computes the same: it does not read the dim of a cross
# product, and where a model has several streams, the same roll gives other values in some of its compilations.
_FAULTY = {
    **get_decompositions([torch.ops.aten.linalg_cross.default]),
    torch.ops.aten.roll.default: _joined_slices,
}


def _write_openvino(program: ExportedProgram, graph: ExportGraph, file: Path, facts: str) -> None:
    openvino = import_extra("openvino", "export")
    model = openvino.convert_model(replace_faulty(program))
    model.reshape({index: _openvino_shape(openvino, entry) for index, entry in enumerate(graph.inputs)})
    for port, entry in zip(model.inputs, graph.inputs, strict=True):
        port.get_tensor().set_names({entry.name})
    for port, name in zip(model.outputs, graph.outputs, strict=True):
        port.get_tensor().set_names({name})
    rewrite(model)
    model.set_rt_info(facts, [METADATA, "export"])
    # Default names count all operations of the process: two exports would differ.
    model.set_friendly_name(METADATA)
    for index, operation in enumerate(model.get_ordered_ops()):
        name, kind = operation.get_friendly_name(), operation.get_type_name()
        if name.removeprefix(f"{kind}_").isdigit():
            operation.set_friendly_name(f"{kind}_{index}")
    # By default weights are compressed to float16, which moves logits by 1e-3.
    openvino.save_model(model, file, compress_to_fp16=False)


def replace_faulty(program: ExportedProgram) -> ExportedProgram:
    """Replace operations that OpenVINO computes wrongly by others that compute the same."""
    faulty = any(node.target in _FAULTY for node in program.graph.nodes)
    return program.run_decompositions(dict(_FAULTY)) if faulty else program


def _openvino_shape(openvino: Any, entry: GraphInput) -> list[Any]:
    """Return the shape of an input; OpenVINO refuses lengths below the smallest."""
    sides = [
        openvino.Dimension(least, _MOST_PIXELS) if size is None and least > 1 else (-1 if size is None else size)
        for size, least in zip(entry.shape[-2:], entry.least, strict=True)
    ]
    return [-1, *entry.shape[1:-2], *sides]


def _write_onnx(program: ExportedProgram, graph: ExportGraph, file: Path, facts: str) -> None:
    onnx = import_extra("onnx", "export")
    import_extra("onnxscript", "export")
    names = [entry.name for entry in graph.inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        converted = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=_OPSET,
            external_data=False,
            input_names=names,
            output_names=graph.outputs,
            verbose=False,
        )
    assert converted is not None, "the dynamo exporter returns a program"
    model = converted.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces, with paths of source files
    model.metadata_props.add(key=METADATA, value=facts)
    onnx.save_model(model, file)


def _write_torch(program: ExportedProgram, graph: ExportGraph, file: Path, facts: str) -> None:
    torch.export.save(program, file, extra_files={RECORD: facts})


def _write_inductor(program: ExportedProgram, graph: ExportGraph, file: Path, facts: str) -> None:
    from torch._inductor import aoti_compile_and_package, config

    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(f"inductor needs the C++ compiler {compiler}, which is not installed; use --format openvino")
    known = config.get_config_copy()
    settings = {name: value for name, value in _INDUCTOR.items() if name in known}
    compiled = file.with_suffix(".compiled.pt2")
    with torch.no_grad():
        aoti_compile_and_package(program, package_path=str(compiled), inductor_configs=settings)
    _without_sources(compiled, file, facts)
    compiled.unlink()


def _without_sources(source: Path, target: Path, facts: str) -> None:
    """Copy a package of AOTInductor without its C++ code and without paths of this machine, and add the description."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    paths = [
        cache_dir(),
        sysconfig.get_path("purelib"),
        sysconfig.get_path("include"),
        str(Path(torch.__file__).parent),
    ]
    with zipfile.ZipFile(source) as package, zipfile.ZipFile(target, "w") as made:
        for name in package.namelist():
            if name.endswith((".cpp", ".h")):
                continue
            content = package.read(name)
            for path in map(str.encode, paths):
                content = content.replace(path, b"." * len(path))
            made.writestr(f"{target.stem}/{name.partition('/')[2]}", content)
        made.writestr(f"{target.stem}/{inductor.RECORD}", facts)


_WRITERS: dict[str, Callable[[ExportedProgram, ExportGraph, Path, str], None]] = {
    "openvino": _write_openvino,
    "onnx": _write_onnx,
    "torch": _write_torch,
    "inductor": _write_inductor,
}
