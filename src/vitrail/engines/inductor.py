"""Run an export with PyTorch: machine code of AOTInductor, which needs no compiler and no code of vitrail."""

from __future__ import annotations

import json
import platform
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from vitrail.engines.base import Arrays
from vitrail.errors import ConfigError, RunError
from vitrail.machine import processor

# File inside of model.pt2 with the description of the model, in the folder that has the file's name.
RECORD = "extra/vitrail.json"
# Names of instruction sets in the package -> torch's test of the processor.
_SUPPORTED = {
    "AVX2": "_is_avx2_supported",
    "AVX512": "_is_avx512_supported",
    "AVX512_VNNI": "_is_vnni_supported",
    "AMX_TILE": "_is_amx_tile_supported",
}


class InductorEngine:
    """Machine code that Inductor compiled, with the weights as constants.

    Args:
        file: The package, model.pt2.
        precision: "fp32".
        threads: Number of threads of this process; unchanged by default.

    Raises:
        ConfigError: Another precision, or machine code for another processor, which would kill the process.
        RunError: The package cannot be loaded.
    """

    def __init__(self, file: Path, precision: str = "fp32", threads: int | None = None) -> None:
        from torch._inductor import aoti_load_package

        if precision != "fp32":
            raise ConfigError(f"precision {precision} is not supported by inductor; use fp32, or openvino")
        if threads is not None:
            torch.set_num_threads(threads)
        self.precision = precision
        try:
            with zipfile.ZipFile(file) as package:
                record = json.loads(package.read(f"{file.stem}/{RECORD}"))
                made_for = next(name for name in package.namelist() if name.endswith("wrapper_metadata.json"))
                _check_processor(json.loads(package.read(made_for)))
            self._names = [entry["name"] for entry in record["inputs"]]
            self.module = aoti_load_package(file)
        except (KeyError, StopIteration, RuntimeError, zipfile.BadZipFile) as error:
            raise RunError(f"inductor cannot load {file.name}: {error}; export again") from error

    def operations(self) -> dict[str, int]:
        """Return nothing: the engine does not report them."""
        return {}

    @torch.no_grad()
    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run a batch; see :class:`vitrail.engines.base.Engine`."""
        outputs = self.module(*(torch.from_numpy(inputs[name]) for name in self._names))
        return {name: tensor.numpy() for name, tensor in outputs.items()}


def _check_processor(made_for: Mapping[str, str]) -> None:
    """Refuse machine code for another processor.

    Args:
        made_for: Metadata that AOTInductor wrote.
    """
    machine, sets = made_for.get("AOTI_MACHINE", ""), made_for.get("AOTI_CPU_ISA", "").split()
    missing = [name for name in sets if name in _SUPPORTED and not getattr(torch.cpu, _SUPPORTED[name])()]
    if machine != platform.machine() or missing:
        raise ConfigError(
            f"the package has machine code for {' '.join([machine, *sets])}, and {processor()} "
            f"({platform.machine()}) lacks {' '.join(missing) or machine}; export again on this processor"
        )
