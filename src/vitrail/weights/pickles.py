"""Read pickles without executing them: unknown classes and functions become inert placeholders."""

from __future__ import annotations

import builtins
import io
import math
import pickle
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vitrail.errors import WeightsError

# No data comes from these modules. All of their names would be inert; a file that names one is refused aloud.
_RUNS_CODE = {
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "runpy", "pty", "importlib", "ctypes", "code",
    "webbrowser", "commands", "pip", "timeit", "pdb", "bdb", "cProfile", "profile", "trace",
}  # fmt: skip
_WITH_OPEN = {"io", "_io", "codecs", "gzip", "bz2", "lzma", "tempfile", "pathlib"}
# NumPy's letters for types whose values torch has.
_NUMPY_TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")


class Foreign:
    """Placeholder for an object of a class that is not constructed: it stores the pickled parts.

    Attributes:
        name: Module and name of the class or function.
        arguments: Positional arguments of the constructor or function.
        state: State of the object, as its class would restore it.
        items: Items of a mapping.
        elements: Elements of a sequence or set.
    """

    name: ClassVar[str] = "?"
    arguments: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]
    elements: list[Any]

    def __new__(cls, *arguments: Any, **_: Any) -> Foreign:
        """Store the arguments."""
        self = object.__new__(cls)
        self.arguments, self.state, self.items, self.elements = arguments, None, {}, []
        return self

    def __init__(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def __call__(self, *arguments: Any, **_: Any) -> Foreign:
        """Return a placeholder for the result of a call."""
        return type(self)(*arguments)

    def __setstate__(self, state: Any) -> None:
        """Store the state."""
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Store an item of a mapping."""
        self.items[key] = value

    def append(self, value: Any) -> None:
        """Store an element of a sequence."""
        self.elements.append(value)

    def add(self, value: Any) -> None:
        """Store an element of a set."""
        self.elements.append(value)

    def extend(self, values: Any) -> None:
        """Store elements of a sequence."""
        self.elements.extend(values)

    @property
    def attributes(self) -> Mapping[Any, Any]:
        """Return the state of an ordinary object: its attributes by name."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        return state if isinstance(state, Mapping) else {}


class _Allowed:
    """Function that a pickle may call; without attributes, so that a pickle cannot change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


def _bytes(data: str | bytes = b"", encoding: str = "latin1") -> bytes:
    """Convert to bytes from bytes or old pickles' text; a number would allocate memory."""
    if not isinstance(data, str | bytes) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes of a {type(data).__name__} in encoding {encoding!r:.20}")
    return data.encode("latin1") if isinstance(data, str) else data


def _new(kind: Any, *arguments: Any) -> Any:
    if not (isinstance(kind, type) and issubclass(kind, Foreign)):
        raise pickle.UnpicklingError(f"no class to make an object of: {kind!r:.60}")
    return kind(*arguments)


# What torch.load itself calls; without types.
_TORCH: Any = torch._utils


# Functions by the name that pickles of torch have for them. Parameters and subclasses become plain tensors.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": dict,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.bytearray": _bytes,
    "builtins.complex": complex,
    "builtins.slice": slice,
    "_codecs.encode": _bytes,
    "copyreg._reconstructor": lambda kind, *_: _new(kind),
    "copyreg.__newobj__": _new,
    "torch._utils._rebuild_tensor": lambda *given: _TORCH._rebuild_tensor(*given[:4]),
    "torch._utils._rebuild_tensor_v2": lambda *given: _TORCH._rebuild_tensor(*given[:4]),
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._utils._rebuild_qtensor": lambda *given: _TORCH._rebuild_qtensor(*given),
    "torch._utils._rebuild_sparse_tensor": lambda *given: _TORCH._rebuild_sparse_tensor(*given),
    "torch._utils._rebuild_meta_tensor_no_storage": lambda *given: _TORCH._rebuild_meta_tensor_no_storage(*given),
    "torch._tensor._rebuild_from_type_v2": lambda function, _, arguments, __: function(*arguments),
    "torch.nn.parameter.Parameter": lambda data, *_: data,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch.serialization._get_layout": lambda name: {"torch.strided": torch.strided}[name],
}
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg", "torch.tensor": "torch._tensor"}


def read_pickle(path: Path) -> tuple[Any, tuple[str, ...]]:
    """Read a file of ``torch.save`` or ``pickle.dump`` without constructing foreign classes.

    Args:
        path: The file.

    Returns:
        Its content, in which :class:`Foreign` stands for every object of another class; and the names of those
        classes and functions.

    Raises:
        WeightsError: The pickle names a function that runs code or commands.
        Exception: Any that torch or pickle raises on damaged bytes.
    """
    foreign: dict[str, type[Foreign]] = {}
    with path.open("rb") as file:
        try:
            content = _load(file, foreign)
        except (RuntimeError, pickle.UnpicklingError):
            # A plain pickle, which has no header of torch.
            file.seek(0)
            if file.read(1) != b"\x80":
                raise
            file.seek(0)
            content = _module(foreign).Unpickler(file).load()
    running = [name for name in foreign if _runs_code(name)]
    if running:
        raise WeightsError(
            f"cannot read {path} as weights: it is a pickle that would run code ({', '.join(running[:3])}), which "
            "vitrail refuses; nothing was run. Get the weights from a source that you trust, as safetensors"
        )
    return content, tuple(foreign)


def _runs_code(name: str) -> bool:
    module, _, function = name.rpartition(".")
    if module in _WITH_OPEN and function == "open":
        return True
    # Of the built-in functions only getattr stands in pickles of data: it makes members of an enumeration.
    found = getattr(builtins, function, int)  # names of Python 2 (long) are types, too
    built_in = module == "builtins" and function != "getattr" and not isinstance(found, type)
    return built_in or module.partition(".")[0] in _RUNS_CODE


def _load(file: Any, foreign: dict[str, type[Foreign]]) -> Any:
    return torch.load(file, map_location="cpu", pickle_module=_module(foreign), weights_only=False)


def _module(foreign: dict[str, type[Foreign]]) -> Any:
    """Build a pickle module for torch: an unpickler that creates and records placeholders."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            full = f"{_OLD_MODULES.get(module, module)}.{name}"
            if full == "torch.storage._load_from_bytes":
                return _Allowed(lambda data: _load(io.BytesIO(data), foreign))
            if full in _FUNCTIONS:
                return _Allowed(_FUNCTIONS[full])
            if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype | torch.layout):
                return getattr(torch, name)
            if full not in foreign:
                foreign[full] = type(name, (Foreign,), {"name": full})
            return foreign[full]

    module = types.ModuleType("vitrail_pickle")
    module.__dict__["Unpickler"] = Unpickler
    module.__dict__["load"] = lambda file, **options: Unpickler(file, **options).load()
    return module


def as_tensor(value: Any) -> Tensor | None:
    """Convert a tensor or a NumPy array to a tensor; None for anything else.

    Args:
        value: Value from :func:`read_pickle`, or an array.
    """
    if isinstance(value, Tensor):
        return value.detach()
    array = value if isinstance(value, np.ndarray) else _array(value) if isinstance(value, Foreign) else None
    if array is None or array.dtype.str[1:] not in _NUMPY_TYPES:
        return None
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _array(value: Foreign) -> np.ndarray[Any, Any] | None:
    """Read a NumPy array from the parts of its pickle."""
    if value.name.endswith("multiarray._reconstruct") and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, kind, fortran, data = value.state
    elif value.name.endswith("numeric._frombuffer") and len(value.arguments) == 4:
        data, kind, shape, order = value.arguments
        fortran = order == "F"
    else:
        return None
    if not (isinstance(kind, Foreign) and kind.name == "numpy.dtype" and isinstance(kind.state, tuple)):
        return None
    letters, byte_order = kind.arguments[0] if kind.arguments else None, kind.state[1]
    sizes = isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)
    if letters not in _NUMPY_TYPES or byte_order not in ("<", ">", "|", "=") or not sizes:
        return None
    dtype = np.dtype(byte_order + letters)
    if not isinstance(data, bytes | bytearray) or len(data) != math.prod(shape) * dtype.itemsize:
        return None
    return np.frombuffer(bytes(data), dtype).reshape(shape, order="F" if fortran else "C")
