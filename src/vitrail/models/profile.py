"""Cost of a model: parameters, multiply-adds, and the walk of an image through its steps.

Multiply-adds are half of the floating-point operations of matrix products, convolutions and attention, which
is what papers call FLOPs or MACs; norms, activations, softmax and sums are left out, as they are there.
Reading a table of relative positions by index counts nothing; the MaxViT of TensorFlow and of timm read it by
products with one-hot matrices, and counts made of those come out higher (0.1 % at 224 pixels, 1.2 % at 512).
"""

from __future__ import annotations

import functools
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from vitrail.errors import ConfigError
from vitrail.layers.modes import evaluation_mode
from vitrail.layers.tap import AttentionTap
from vitrail.models.base import VisionModel

# torch's own modules carry manuals where ours carry one sentence.
_TORCH_MODULES: Mapping[type[nn.Module], str] = {
    nn.Linear: "Map each token by one matrix.",
    nn.Conv2d: "Mix each position with its neighbours by learned filters.",
    nn.LayerNorm: "Bring each token to mean 0 and variance 1, then scale and shift each channel.",
    nn.BatchNorm2d: "Bring each channel to the mean and variance seen in training, then scale and shift it.",
    nn.GELU: "Let large values pass and damp small and negative ones, smoothly.",
    nn.SiLU: "Multiply each value by its own sigmoid.",
    nn.ReLU: "Set negative values to zero.",
    nn.Tanh: "Squeeze each value into -1..1.",
    nn.Sigmoid: "Squeeze each value into 0..1.",
    nn.AvgPool2d: "Average over neighbourhoods.",
    nn.AdaptiveAvgPool2d: "Average over the whole map.",
    nn.Sequential: "One layer after the other.",
}
_BETWEEN = "Residual sums, reshapes and pooling between the steps."
_UNUSED = "Not run for this input."


@dataclass(frozen=True)
class Step:
    """One step of the walk through a model.

    Attributes:
        name: The module's or parameter's name in the model; ``"(between)"`` for the rest of the time.
        kind: Its class.
        what: Purpose of the module, one sentence.
        output_shape: Shape of its output (of a parameter, its own); None without any.
        parameters: Its own, each counted at one step only.
        multiply_adds: Its own, for the whole batch.
        share: Its part of the time of a forward pass, 0..1; None where time was not measured.
    """

    name: str
    kind: str
    what: str
    output_shape: tuple[int, ...] | None
    parameters: int
    multiply_adds: int
    share: float | None


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Count the parameters; shared ones count once, buffers (running statistics) do not count.

    Args:
        model: The model, on any device.
        trainable_only: Leave out those that are frozen.
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def example_inputs(model: VisionModel, batch: int = 1, device: torch.device | str | None = None) -> list[Tensor]:
    """Make zeros of the shapes that a model was built for.

    Args:
        model: The model.
        batch: Images.
        device: Device of the tensors; the model's own when not given.

    Returns:
        For each of the model's streams, shape ``(batch, *stream.shape)``.
    """
    device = next(model.parameters()).device if device is None else device
    return [torch.zeros(batch, *stream.shape, device=device) for stream in model.streams]


def count_multiply_adds(model: nn.Module, *inputs: Tensor) -> int:
    """Count the multiply-adds of one forward pass in evaluation mode, without computing anything.

    The model runs on the meta device, where tensors have shapes and no values, so that the largest variant
    costs no memory; the model itself stays as and where it is.

    Args:
        model: The model.
        *inputs: One tensor ``(B, C, H, W)`` for each input, of which the shape alone counts; when not given,
            one image of the size that the model was built for.

    Returns:
        Half of the floating-point operations of matrix products, convolutions and attention, for the batch.

    Raises:
        ConfigError: No inputs for a model that does not say what it takes.
        ShapeError: Inputs that the model does not take.
    """
    if not inputs:
        if not isinstance(model, VisionModel):
            raise ConfigError(f"{type(model).__name__} does not say which inputs it takes; pass them")
        inputs = tuple(example_inputs(model, device="meta"))
    with evaluation_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        _run_on_meta(model, inputs)
        flops: int = counter.get_total_flops()
    return flops // 2


def walk(
    model: nn.Module,
    inputs: Tensor | Sequence[Tensor],
    depth: int | Literal["blocks", "parts"] = "parts",
    repeats: int | None = None,
) -> list[Step]:
    """Follow a batch through a model, step by step, in the order in which the steps run.

    Args:
        model: The model; it is run in evaluation mode and comes back in the mode it had, without hooks.
        inputs: One tensor ``(B, C, H, W)``, or one for each stream, on the model's device.
        depth: Depth to which modules are opened. ``"parts"``: down to the attention layers and what stands beside
            them, such as norms, MLPs and convolution blocks; ``"blocks"``: no further than blocks. A
            number counts levels: 1 shows the model's own children, each further one opens one level more
            (lists of modules are not levels).
        repeats: Forward passes over which time is measured (each step's least counts); 0 measures none. When not
            given, as many as three seconds allow, 5 to 50. On the meta device there is no time to measure.

    Returns:
        The steps. Their parameters sum to the model's, their multiply-adds to those of the pass, their shares
        to one. Parameters that an opened module holds itself (positions, class tokens) are steps of their
        own; matrix products of an opened module outside its children are a step with the module's name; what
        happens between the steps (residual sums, reshapes, pooling) is the last one. Modules that do nothing
        (identities, stochastic depth in evaluation) are left out.

    Raises:
        ConfigError: ``depth`` is none of those, or ``repeats`` is below 0.
        ShapeError: Inputs that the model does not take.
    """
    if depth not in ("blocks", "parts") and (not isinstance(depth, int) or depth < 1):
        raise ConfigError(f"depth must be 'blocks', 'parts' or a number of at least 1, got {depth!r}")
    if repeats is not None and repeats < 0:
        raise ConfigError(f"repeats must be at least 0, got {repeats}")
    images = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    plan = _Plan(depth)
    plan.add_children(model, "", 1)
    seen = _Record()
    with evaluation_mode(model), torch.no_grad():
        with FlopCounterMode(display=False) as counter, _watching(plan, _Meter(counter.get_total_flops)) as flops:
            _run_on_meta(model, images)
        # The first pass shows the order and the shapes, and warms up; its time does not count.
        with _watching(plan, _Meter(time.perf_counter), seen), torch.device(images[0].device):
            seen.output_shape[""] = _shape_of(model(*images))
        meters: list[_Meter] = []
        while not images[0].is_meta and _again(meters, repeats):
            with _watching(plan, _Meter(_clock(images))) as meter:
                model(*images)
            meters.append(meter)
    multiply_adds = {name: int(count) // 2 for name, count in flops.charges.items()}
    return _assemble(model, plan, seen, multiply_adds, _quickest(meters))


class _Plan:
    """Modules that are steps, modules that are opened, and the parameters that opened ones hold themselves."""

    def __init__(self, depth: int | Literal["blocks", "parts"]) -> None:
        self.depth = depth
        self.steps: dict[str, nn.Module] = {}
        self.opened: dict[str, nn.Module] = {}
        self.loose: dict[str, nn.Parameter] = {}
        self._known: set[nn.Module] = set()

    def add_children(self, module: nn.Module, name: str, level: int) -> None:
        """Add the modules below an opened module; ``level`` is that of its children."""
        prefix = f"{name}." if name else ""
        for key, parameter in module.named_parameters(recurse=False):
            if all(parameter is not other for other in self.loose.values()):
                self.loose[prefix + key] = parameter
        for key, child in module.named_children():
            if child in self._known:
                continue
            self._known.add(child)
            if _is_list(child):
                self.add_children(child, prefix + key, level)
            elif self._opens(child, level):
                self.opened[prefix + key] = child
                self.add_children(child, prefix + key, level + 1)
            else:
                self.steps[prefix + key] = child

    def _opens(self, module: nn.Module, level: int) -> bool:
        if isinstance(self.depth, int):
            return level < self.depth and next(module.children(), None) is not None
        if _has_tap(module) or not _mixes(module):
            return False
        return self.depth == "parts" or any(_is_list(child) and _mixes(child) for child in module.modules())


def _has_tap(module: nn.Module) -> bool:
    return any(isinstance(value, AttentionTap) for value in vars(module).values())


def _mixes(module: nn.Module) -> bool:
    return any(map(_has_tap, module.modules()))


def _is_list(module: nn.Module) -> bool:
    """Return whether a module only holds others: its name is neither a step nor a level."""
    if isinstance(module, nn.Sequential):
        return _mixes(module)
    return type(module).forward is nn.Module.forward


@dataclass
class _Record:
    """Record of a pass, by the name of the step.

    Attributes:
        order: Names in the order of first use.
        output_shape: Shapes that came out.
        idle: Names that gave back the very object that they got.
    """

    order: list[str] = field(default_factory=list)
    output_shape: dict[str, tuple[int, ...] | None] = field(default_factory=dict)
    idle: set[str] = field(default_factory=set)

    def see(self, name: str) -> None:
        if name not in self.output_shape:
            self.output_shape[name] = None
            self.order.append(name)


class _Meter:
    """Charges the growth of a reading (a clock, a counter) to the innermost step that runs.

    Args:
        read: Gives the reading.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        self.charges: dict[str, float] = defaultdict(float)
        self._read = read
        self._running = [""]
        self._last = 0.0

    def start(self) -> None:
        self._last = self._read()

    def enter(self, name: str) -> None:
        self.charge()
        self._running.append(name)

    def leave(self) -> None:
        self.charge()
        self._running.pop()

    def charge(self) -> None:
        now = self._read()
        self.charges[self._running[-1]] += now - self._last
        self._last = now


@contextmanager
def _watching(plan: _Plan, meter: _Meter, record: _Record | None = None) -> Iterator[_Meter]:
    """Attach meters and records to the plan's modules as hooks; remove them on exit, also after an error."""
    with ExitStack() as stack:
        for name, module in (*plan.steps.items(), *plan.opened.items()):
            # A step stands where it begins; an opened module, after its parts.
            begins = record if name in plan.steps else None
            enter = module.register_forward_pre_hook(functools.partial(_on_enter, name, meter, begins))
            stack.callback(enter.remove)
            leave = module.register_forward_hook(functools.partial(_on_leave, name, meter, record))
            stack.callback(leave.remove)
        if record is not None:
            stack.enter_context(_ParameterUse(plan.loose, record))
        meter.start()
        yield meter
        meter.charge()


def _on_enter(name: str, meter: _Meter, record: _Record | None, module: nn.Module, args: Any) -> None:
    if record is not None:
        record.see(name)
    meter.enter(name)


def _on_leave(name: str, meter: _Meter, record: _Record | None, module: nn.Module, args: Any, output: Any) -> None:
    meter.leave()
    if record is not None:
        record.see(name)
        record.output_shape[name] = _shape_of(output)
        if args and output is args[0]:
            record.idle.add(name)


class _ParameterUse(TorchFunctionMode):
    """Notes when a parameter is first used.

    Args:
        parameters: The parameters of interest.
        record: Record of the first uses.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], record: _Record) -> None:
        super().__init__()
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._record = record

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ != "__get__":  # asking for a shape or a device is no use
            for value in (*args, *kwargs.values()):
                for item in value if isinstance(value, list | tuple) else (value,):
                    if id(item) in self._names:
                        self._record.see(self._names[id(item)])
        return func(*args, **kwargs)


def _assemble(
    model: nn.Module, plan: _Plan, seen: _Record, multiply_adds: Mapping[str, int], times: Mapping[str, float]
) -> list[Step]:
    """Assemble plan, record and measurements into steps whose columns sum to the model's totals."""
    total_time = sum(times.values())
    between = times.get("", 0.0)
    counted: set[int] = set()

    def count(parameters: Iterable[nn.Parameter]) -> int:
        fresh = {id(p): p.numel() for p in parameters if id(p) not in counted}
        counted.update(fresh)
        return sum(fresh.values())

    def share(seconds: float) -> float | None:
        return seconds / total_time if total_time else None

    steps: list[Step] = []
    unused = [name for name in (*plan.steps, *plan.opened, *plan.loose) if name not in seen.output_shape]
    for name in (*seen.order, *unused):
        shape, cost, seconds = seen.output_shape.get(name), multiply_adds.get(name, 0), times.get(name, 0.0)
        if name in plan.loose:
            parameter = plan.loose[name]
            kind, what, shape, parameters = (
                "Parameter",
                "Learned.",
                tuple(parameter.shape),
                count([parameter]),
            )
        elif name in plan.opened:
            kind, parameters = type(plan.opened[name]).__name__, 0
            what = f"What {kind} computes outside its parts."
        else:
            module = plan.steps[name]
            kind, what, parameters = type(module).__name__, _what(module), count(module.parameters())
        idle = name in plan.opened or name in unused or name in seen.idle
        if idle and not parameters and not cost:
            between += seconds
        else:
            what = _UNUSED if name in unused else what
            steps.append(Step(name, kind, what, shape, parameters, cost, share(seconds)))
    shape, cost = seen.output_shape[""], multiply_adds.get("", 0)
    return [*steps, Step("(between)", type(model).__name__, _BETWEEN, shape, 0, cost, share(between))]


def _what(module: nn.Module) -> str:
    """Return the first sentence of a module's documentation."""
    if type(module) in _TORCH_MODULES:
        return _TORCH_MODULES[type(module)]
    if type(module).__module__.startswith("torch."):
        return f"torch's {type(module).__name__}."
    text = inspect.getdoc(type(module)) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("``", "")


def _shape_of(output: Any) -> tuple[int, ...] | None:
    if isinstance(output, list | tuple):
        output = next((item for item in output if isinstance(item, Tensor)), None)
    return tuple(output.shape) if isinstance(output, Tensor) else None


def _again(meters: Sequence[_Meter], repeats: int | None) -> bool:
    if repeats is not None:
        return len(meters) < repeats
    spent = sum(sum(meter.charges.values()) for meter in meters)
    return len(meters) < 5 or (len(meters) < 50 and spent < 3.0)


def _quickest(meters: Sequence[_Meter]) -> dict[str, float]:
    """Return the least time of each step: the rest of its time was other load of the machine."""
    names = {name for meter in meters for name in meter.charges}
    return {name: min(meter.charges.get(name, 0.0) for meter in meters) for name in names}


def _clock(images: Sequence[Tensor]) -> Callable[[], float]:
    """Return a clock that waits for the accelerator, where there is one, before it is read."""
    if images[0].device.type in ("cpu", "meta"):
        return time.perf_counter

    def read() -> float:
        torch.accelerator.synchronize(images[0].device)
        return time.perf_counter()

    return read


def _run_on_meta(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Run a model on tensors that have shapes and no values; where the model itself is makes no difference.

    What a device computes in its own way (the CPU may do parts of a map twice) does not enter the count.
    """
    # Detached: the counter of torch looks for the gradient of a parameter that a layer takes as its input.
    tensors = (*model.named_parameters(), *model.named_buffers())
    state = {name: tensor.detach().to("meta") for name, tensor in tensors}
    # The device as a context is for masks and indices that a forward pass makes without saying where.
    with torch.device("meta"):
        torch.func.functional_call(model, state, tuple(x.to("meta") for x in inputs))
