"""What every model of vitrail can do, whatever its family."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from vitrail.errors import ConfigError, ShapeError
from vitrail.layers.shapes import divide_up, to_pair
from vitrail.layers.symbolic import resolve_annotations
from vitrail.models.scripting import as_traced
from vitrail.weights.kernels import InputKernel
from vitrail.weights.rules import KeyMap


class FeatureInfo(dict[str, Any]):
    """One level of a feature pyramid; also timm's dictionary with ``module``, ``num_chs`` and ``reduction``.

    Args:
        name: The module that produces it.
        channels: Its channels.
        stride: Input pixels per position, height and width.
    """

    def __init__(self, name: str, channels: int, stride: tuple[int, int]) -> None:
        super().__init__(module=name, num_chs=channels, reduction=stride[0])
        self.name, self.channels, self.stride = name, channels, stride

    def __reduce__(self) -> tuple[type[FeatureInfo], tuple[str, int, tuple[int, int]], None, None, Iterator[Any]]:
        return FeatureInfo, (self.name, self.channels, self.stride), None, None, iter(self.items())


class Stream(NamedTuple):
    """One input of a model.

    Attributes:
        name: Its key in a batch (``"image"``, ``"spectral"``).
        chans: Bands.
        size: Height and width that the model was built for; others work too.
    """

    name: str
    chans: int
    size: tuple[int, int]


class LevelTokens(NamedTuple):
    """Tokens at one level of a feature pyramid.

    Attributes:
        map: Those of the grid, shape ``(B, H, W, C)``.
        prefix: Class and other tokens before the grid, shape ``(B, P, C)``; None without any.
    """

    map: Tensor
    prefix: Tensor | None = None


class Ends(NamedTuple):
    """Where the tokens of one stream begin and where they end.

    Attributes:
        stream: Its name.
        first_dim: Width of its first tokens.
        first_stride: Pixels per first token, height and width.
        last_dim: Width of its last tokens.
        last_stride: Pixels per last token.
    """

    stream: str
    first_dim: int
    first_stride: tuple[int, int]
    last_dim: int
    last_stride: tuple[int, int]


class VisionModel(nn.Module, ABC):
    """Base of the families.

    Attributes:
        key_maps: How to read the checkpoints of other libraries, the family's own first.
        classifier: Name of the module that gives the logits.
        input_kernels: Convolutions that see the bands, by the name of their weight.
        stream_prefixes: For a family of several streams, what their keys begin with, by stream.
        channels_first: Whether :meth:`forward_features` gives a map ``(B, C, H, W)`` instead of tokens.
        name: What the model was created as, a variant or a family.
        config: The settings the model was built with.
        num_features: Width of what the classifier sees.
        num_prefix: Class and other tokens before those of the patches.
        feature_info: The levels that :meth:`forward_intermediates` can return, in order.
    """

    key_maps: ClassVar[Sequence[KeyMap]] = ()
    classifier: ClassVar[str] = "head"
    input_kernels: ClassVar[Mapping[str, InputKernel]] = {"patch_embed.proj.weight": InputKernel("image")}
    stream_prefixes: ClassVar[Mapping[str, str]] = {}
    channels_first: ClassVar[bool] = False
    name: str = ""
    _num_classes: int = 0
    config: Any
    num_features: int
    norm: nn.Module
    num_prefix: int = 0
    feature_info: list[FeatureInfo]

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "forward" in cls.__dict__:
            resolve_annotations(cls.forward)

    @property
    def num_classes(self) -> int:
        """Width of the logits, as the classifier at hand has it; 0 without one."""
        head = self.get_classifier()
        if head is None or isinstance(head, nn.Identity):
            return 0 if head is not None else self._num_classes
        # The last linear layer decides: a classifier may be wrapped or have hidden layers.
        found = (getattr(part, "out_features", None) for part in head.modules())
        widths = [width for width in found if isinstance(width, int)]
        return widths[-1] if widths else self._num_classes

    @num_classes.setter
    def num_classes(self, value: int) -> None:
        # For a classifier that does not tell its width.
        self._num_classes = value

    def mixers(self) -> list[str]:
        """Names of the modules in which blocks mix tokens, in the order of the blocks.

        Of each block in a container ``blocks`` those children whose names begin with ``attn``; a block without such a
        child stands for itself.
        """
        found: list[str] = []
        for name, module in self.named_modules():
            if name.rpartition(".")[2] == "blocks":
                for index, block in module.named_children():
                    parts = [child for child, _ in block.named_children() if child.startswith("attn")]
                    found += [f"{name}.{index}.{part}" for part in parts] or [f"{name}.{index}"]
        return found

    def get_classifier(self) -> nn.Module | None:
        """The module that gives the logits, also where another has taken its place; None for a family without one."""
        module: nn.Module = self
        for name in self.classifier.split("."):
            part = module._modules.get(name)
            if part is None:
                break
            module = part
        return None if module is self else module

    @property
    @abstractmethod
    def streams(self) -> tuple[Stream, ...]:
        """The inputs that ``forward`` takes, in order."""

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Classify: one tensor ``(B, C, H, W)`` for each of :attr:`streams` to logits ``(B, num_classes)``.

        Raises:
            ShapeError: Another number of bands, another type of number, or an image smaller than a patch.
        """

    @abstractmethod
    def forward_features(self, *args: Any, **kwargs: Any) -> Tensor:
        """Tokens after the last norm: ``(B, N, C)``, ``(B, H, W, C)`` or ``(B, C, H, W)``, as the family has them."""

    @property
    @abstractmethod
    def ends(self) -> tuple[Ends, ...]:
        """What :meth:`embed` gives and :meth:`forward_embedded` returns, for each of :attr:`streams`.

        Empty where the last tokens lie on no grid.
        """

    @abstractmethod
    def embed(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """The first tokens of each stream, ``(B, H, W, C)``, before positions are added.

        Between this and :meth:`forward_embedded`, which together are the model without its head, tokens can be
        replaced: masked image modelling does so. Inputs are those of :meth:`forward`; none may be left out.
        """

    @abstractmethod
    def forward_embedded(self, *embedded: Tensor) -> tuple[Tensor, ...]:
        """From first tokens to the last ones that know each stream, ``(B, h, w, C')``.

        Args:
            *embedded: What :meth:`embed` gave.
        """

    @property
    def mask_unit(self) -> tuple[int, int]:
        """Height and width in pixels of the smallest part of the image that :meth:`forward_visible` can leave out.

        The first tokens' stride, unless a family leaves out larger parts (windows).
        """
        return self.ends[0].first_stride

    def lacks_visible(self) -> str:
        """Reason why :meth:`forward_visible` is not possible; empty where it is."""
        return f"{type(self).__name__} runs on whole grids of tokens"

    def lacks_grid(self) -> str:
        """Reason why the last tokens form no grid, with the remedy; empty where they do."""
        return "" if self.ends else f"the last tokens of this {type(self).__name__} form no grid"

    def lacks_positions(self) -> str:
        """Reason why no layer with attention works on tokens of a grid; empty where one does."""
        return ""

    def forward_visible(self, embedded: Tensor, keep: Tensor) -> Tensor:
        """Run a subset of the first tokens, as if the image had no others.

        Args:
            embedded: Output of :meth:`embed`, shape ``(B, H, W, C)``.
            keep: Indices of the visible parts, row-major on the grid of :attr:`mask_unit`, shape ``(B, K)``.

        Returns:
            Tokens after the last norm, shape ``(B, num_prefix + K, C)``, prefix tokens first.

        Raises:
            ConfigError: The family cannot, with :meth:`lacks_visible`.
        """
        raise ConfigError(f"forward_visible is not possible: {self.lacks_visible()}")

    def level_module(self, index: int) -> nn.Module:
        """Return the module whose output carries the values of a level of :attr:`feature_info`.

        A gradient with respect to its output is the gradient with respect to the level. It is the module of the
        level's name, unless the level is a sum to which a later module adds.
        """
        return self.get_submodule(self.feature_info[index].name)

    def level_as_map(self, index: int, output: Tensor, size: tuple[int, int]) -> Tensor:
        """Bring an output of :meth:`level_module`, or a gradient of its shape, into the layout of a feature map.

        Args:
            index: Index of the level in :attr:`feature_info`.
            output: Shape ``(B, N, C)`` with prefix tokens first; or ``(B, h, w, C)``, or ``(B, C, h, w)`` where
                :attr:`channels_first` is true.
            size: Height and width of the level's map.

        Returns:
            Shape ``(B, C, h, w)``.
        """
        if output.ndim == 3:
            patches = output[:, output.shape[1] - size[0] * size[1] :]
            return patches.transpose(1, 2).reshape(len(output), -1, *size)
        return output if self.channels_first else output.permute(0, 3, 1, 2)

    def reads_level(self, index: int) -> bool:
        """Whether the logits depend on the patches of a level; not where only a class token is read after it."""
        return True

    @abstractmethod
    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify what :meth:`forward_features` gave; ``pre_logits`` stops before the classifier."""

    def forward_intermediates(
        self,
        x: Tensor | Sequence[Tensor | None],
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Compute the feature pyramid; arguments and results are timm's.

        Args:
            x: Images, shape ``(B, C, H, W)``, or a list with a tensor for each of :attr:`streams`.
            indices: Levels of :attr:`feature_info` by index (negative: from the end), how many of the last, or None for
                all.
            return_prefix_tokens: Whether each level is a pair of its map and its prefix tokens, where the model has
                prefix tokens.
            norm: Whether the last norm is applied to the levels that it fits, see :meth:`norm_level`.
            stop_early: Whether to stop after the last wanted level. Without the features no layer after it runs either.
            output_fmt: "NCHW", "NHWC" or "NLC".
            intermediates_only: Whether to return the levels alone.

        Returns:
            The features of :meth:`forward_features` (with ``stop_early`` the tokens at the last wanted level) and the
            list of levels, in order of their indices; or that list alone.

        Raises:
            ConfigError: A level that does not exist, or another format.
            ShapeError: As :meth:`forward_features`.
        """
        wanted = sorted(set(self.level_indices(indices)))
        stop = wanted[-1] + 1 if wanted and (stop_early or intermediates_only) else None
        inputs = x if isinstance(x, list | tuple) else (x,)
        if len(inputs) != len(self.streams):
            names = ", ".join(stream.name for stream in self.streams)
            raise ShapeError(f"expected one tensor for each input ({names}), got the list {describe(inputs)}")
        features, levels = self.run_levels(inputs, wanted, stop)
        maps: list[Any] = []
        for index in wanted:
            parts = [self.norm_level(index, part) if norm else part for part in levels[index] if part is not None]
            level = as_format(parts[0], output_fmt)
            maps.append((level, parts[1]) if return_prefix_tokens and len(parts) > 1 else level)
        return maps if intermediates_only else (features, maps)

    @abstractmethod
    def run_levels(
        self, inputs: Sequence[Any], wanted: Sequence[int], stop: int | None
    ) -> tuple[Tensor, dict[int, LevelTokens]]:
        """Run the layers up to a level.

        Args:
            inputs: One tensor for each of :attr:`streams`.
            wanted: Indices of the wanted levels.
            stop: How many levels to run; None for the whole model without its head.

        Returns:
            The features of :meth:`forward_features`, or with ``stop`` those so far; the wanted levels, before any norm.
        """

    def norm_level(self, index: int, tokens: Tensor) -> Tensor:
        """Apply the last norm to tokens ``(..., C)`` of a level; only the last level has the width that it fits."""
        out: Tensor = self.norm(tokens) if index == len(self.feature_info) - 1 else tokens
        return out

    @abstractmethod
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one; 0 classes leaves the features as they are.

        Args:
            num_classes: Width of the logits.
            global_pool: How tokens are pooled from now on; as they were when not given.
        """

    @abstractmethod
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Turn gradient checkpointing on, as Hugging Face's Trainer calls it.

        Args:
            activation_checkpointing_kwargs: Settings of ``torch.utils.checkpoint``, which every block has already.
            every_n_layers: 1; every block is recomputed.
            offload: False; the inputs of the blocks stay on the device.

        Raises:
            ConfigError: Another value.
        """
        if every_n_layers != 1 or offload:
            raise ConfigError(
                f"every_n_layers {every_n_layers} and offload {offload} are not supported: every block is recomputed, "
                "on its device; use every_n_layers=1 and offload=False"
            )
        self.set_grad_checkpointing(True)

    def activation_checkpointing_disable(self) -> None:
        """Turn gradient checkpointing off."""
        self.set_grad_checkpointing(False)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        """Turn gradient checkpointing on, by :meth:`activation_checkpointing_enable` under its older name."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **settings)

    def gradient_checkpointing_disable(self) -> None:
        """Turn gradient checkpointing off."""
        self.set_grad_checkpointing(False)

    def __prepare_scriptable__(self) -> nn.Module:
        """Trace the model for ``torch.jit.script``, in its mode and for images of its own size."""
        return as_traced(self, [(stream.chans, *stream.size) for stream in self.streams])

    @property
    def global_pool(self) -> str:
        """Pooling of the last tokens, as the setting says; "avg" for a family without that setting."""
        return str(getattr(getattr(self, "config", None), "global_pool", "avg"))

    @property
    def num_prefix_tokens(self) -> int:
        """:attr:`num_prefix` under timm's name."""
        return self.num_prefix

    @property
    def head_hidden_size(self) -> int:
        """Width of what the classifier sees."""
        return self.num_features

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What timm's tools read of a model: input size, classifier, first convolution."""
        first = self.streams[0]
        return {
            "architecture": self.name,
            "url": "",
            "num_classes": self.num_classes,
            "input_size": (first.chans, *first.size),
            "fixed_input_size": False,
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406) if first.chans == 3 else (0.5,) * first.chans,
            "std": (0.229, 0.224, 0.225) if first.chans == 3 else (0.5,) * first.chans,
            "first_conv": next(iter(self.input_kernels)).removesuffix(".weight"),
            "classifier": self.classifier,
        }

    @property
    def default_cfg(self) -> dict[str, Any]:
        """The same, under timm's older name."""
        return self.pretrained_cfg

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers after the last wanted level.

        Args:
            indices: Levels as for :meth:`forward_intermediates`.
            prune_norm: Whether the last norm is removed too; it always is where it would not fit.
            prune_head: Whether the classifier is removed too; it always is where it would not fit.

        Returns:
            The wanted levels.

        Raises:
            ConfigError: A level that the model does not have, or a family that cannot be pruned.
        """
        wanted = self.level_indices(indices)
        last = max(wanted)
        shortened = last < len(self.feature_info) - 1
        self._keep_levels(last + 1)
        self.feature_info = self.feature_info[: last + 1]
        if prune_norm or (shortened and self.feature_info[-1].channels != self.num_features):
            self._drop_norm()
        if prune_head or shortened:
            if shortened:
                self.num_features = self.feature_info[-1].channels
            self.reset_classifier(0, "")
        return wanted

    def _keep_levels(self, count: int) -> None:
        """Keep the layers up to a number of levels."""
        raise ConfigError(f"{type(self).__name__} cannot be pruned; give forward_intermediates the indices")

    def _drop_norm(self) -> None:
        """Replace the last norm by nothing."""
        self.norm = nn.Identity()

    @abstractmethod
    def no_weight_decay(self) -> set[str]:
        """Parameters that should not decay besides biases and norms (positions, class tokens)."""

    @abstractmethod
    def layer_groups(self) -> list[list[str]]:
        """Names of all parameters in groups from the input to the head, for layer-wise learning rates."""

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Give the layer of a parameter or module by its name, as timm's layer-wise learning rates take it.

        Args:
            coarse: Not used; layers are those of :meth:`layer_groups`.
        """
        layers = {name: layer for layer, group in enumerate(self.layer_groups()) for name in group}

        def find(name: str) -> int:
            inside = (layer for parameter, layer in layers.items() if parameter.startswith(f"{name}."))
            return layers[name] if name in layers else next(inside, 0)

        return find

    def fit_tensor(
        self, key: str, value: Tensor, state: Mapping[str, Tensor], made_for: Mapping[str, Any]
    ) -> tuple[Tensor, str] | None:
        """Make a checkpoint's tensor of another shape fit.

        Args:
            key: Our name of the tensor.
            value: The tensor.
            state: The whole checkpoint, by our names.
            made_for: Settings of the model that the checkpoint was made for; empty where they are not known.

        Returns:
            The fitting tensor and what was done, or None where that is impossible.
        """
        return None

    @classmethod
    def first_width(cls, config: Any) -> int | None:
        """Channels of the first tokens that a config asks for; None where the config does not show it.

        Recognising a checkpoint skips the variants of another width.
        """
        width = getattr(config, "embed_dim", None)
        return width if isinstance(width, int) else None

    @classmethod
    def read_settings(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Settings that can be read off a checkpoint, to recognise what it was made for.

        Args:
            state: Tensors by our names.

        Returns:
            Number of classes, bands, patch and image size, where the shapes show them.
        """
        head = state.get(f"{cls.classifier}.weight")
        settings: dict[str, Any] = {"num_classes": 0 if head is None else head.shape[0]}
        for key, role in cls.input_kernels.items():
            kernel = state.get(key)
            if kernel is None or kernel.ndim != 4:
                continue
            prefix = "" if role.stream == "image" else f"{role.stream}_"
            settings[f"{prefix}chans" if prefix else "in_chans"] = kernel.shape[1]
            if not role.is_patch:
                continue
            patch = (kernel.shape[2], kernel.shape[3])
            settings[f"{prefix}patch_size"] = patch
            positions = state.get(key.replace("patch_embed.proj.weight", "pos_embed"))
            if positions is not None and positions.ndim == 3:
                grid = old_grid(positions.shape[1] - int("cls_token" in state), patch, {}, prefix)
                if grid is not None:
                    settings[f"{prefix}img_size"] = (grid[0] * patch[0], grid[1] * patch[1])
        return settings

    @classmethod
    def read_structure(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read settings of depth and width off a checkpoint; none for a family that does not say how.

        Args:
            state: Tensors by our names.
        """
        return {}

    def level_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Which levels of :attr:`feature_info` are wanted.

        Args:
            indices: Their numbers (negative ones count from the end), how many of the last, or None for all.

        Raises:
            ConfigError: A level that the model does not have.
        """
        levels = len(self.feature_info)
        if indices is None:
            return list(range(levels))
        wanted = range(levels - indices, levels) if isinstance(indices, int) else indices
        for index in wanted:
            if not -levels <= index < levels or (isinstance(indices, int) and index < 0):
                raise ConfigError(f"{type(self).__name__} has {levels} feature levels, asked for {indices}")
        return [index % levels for index in wanted]


def as_config(kind: type[Any], config: Any) -> Any:
    """A config from its settings as a mapping, as a file of Hugging Face's hub holds them; a config as it is."""
    return kind(**config) if isinstance(config, Mapping) else config


def count_numbered(state: Mapping[str, Tensor], prefix: str) -> int:
    """Number of the modules ``prefix.0``, ``prefix.1``, ... in a checkpoint, up to the highest index."""
    indices = {key[len(prefix) + 1 :].partition(".")[0] for key in state if key.startswith(f"{prefix}.")}
    return max((int(index) + 1 for index in indices if index.isdigit()), default=0)


def read_width(state: Mapping[str, Tensor], kernel: str, setting: str = "embed_dim") -> dict[str, int]:
    """Channels that a convolution in a checkpoint returns, under the name of the setting; empty without it."""
    weight = state.get(kernel)
    return {} if weight is None or weight.ndim != 4 else {setting: weight.shape[0]}


def read_stages(state: Mapping[str, Tensor], stages: str) -> dict[str, tuple[int, ...]]:
    """Number of blocks of each of ``stages.0``, ``stages.1``, ... in a checkpoint, as ``depths``; empty without any."""
    depths = tuple(count_numbered(state, f"{stages}.{i}.blocks") for i in range(count_numbered(state, stages)))
    return {"depths": depths} if depths and all(depths) else {}


def as_format(x: Tensor, output_fmt: str) -> Tensor:
    """Bring a map ``(B, H, W, C)`` into another format.

    Args:
        x: The map.
        output_fmt: "NCHW", "NHWC" or "NLC".

    Raises:
        ConfigError: Another format.
    """
    if output_fmt == "NCHW":
        return x.permute(0, 3, 1, 2)
    if output_fmt == "NLC":
        return x.flatten(1, 2)
    if output_fmt != "NHWC":
        raise ConfigError(f"output_fmt must be 'NCHW', 'NHWC' or 'NLC', got {output_fmt!r}")
    return x


def check_pool(pool: str, pools: Sequence[str]) -> None:
    """Refuse another way of pooling.

    Raises:
        ConfigError: Naming the ways that there are and the value.
    """
    if pool not in pools:
        raise ConfigError(f"global_pool must be {' or '.join(map(repr, pools))}, got {pool!r}")


def describe(inputs: Sequence[object]) -> str:
    """What a model was given, for an error: the shapes of tensors, the types of other things."""
    said = ("None" if x is None else str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in inputs)
    return " and ".join(said) or "nothing"


def old_grid(
    count: int, patch_size: tuple[int, int], made_for: Mapping[str, Any], prefix: str = ""
) -> tuple[int, int] | None:
    """The grid that a checkpoint's positions were learned for.

    Args:
        count: Positions on it.
        patch_size: Height and width of a patch, where the checkpoint's settings do not give it.
        made_for: Settings of the model that the checkpoint was made for; empty where they are not known.
        prefix: Of the settings' names (``"spectral_"``).

    Returns:
        Height and width; where no settings tell them, those of a square. None where there is no such square.
    """
    size = made_for.get(f"{prefix}img_size") or made_for.get("img_size")
    patch = made_for.get(f"{prefix}patch_size") or made_for.get("patch_size") or patch_size
    if size is not None:
        (height, width), (ph, pw) = to_pair(size, "img_size"), to_pair(patch, "patch_size")
        grid = (divide_up(height, ph), divide_up(width, pw))
        if grid[0] * grid[1] == count:
            return grid
    side = math.isqrt(max(count, 0))
    return (side, side) if side * side == count and count > 0 else None


def old_window(count: int, made_for: Mapping[str, Any]) -> tuple[int, int] | None:
    """The window that a checkpoint's table of relative positions was learned for.

    Args:
        count: Rows of the table.
        made_for: Settings of the model that the checkpoint was made for; empty where they are not known.

    Returns:
        Height and width; where no settings tell them, those of a square. None where there is no such square.
    """
    if made_for.get("window_size"):
        window = to_pair(made_for["window_size"], "window_size")
        if (2 * window[0] - 1) * (2 * window[1] - 1) == count:
            return window
    side = math.isqrt(max(count, 0))
    return ((side + 1) // 2, (side + 1) // 2) if side * side == count and side % 2 == 1 else None


def check_at_least(config: object, minimum: int, *names: str) -> None:
    """Refuse settings that are no whole numbers or too small.

    Raises:
        ConfigError: Naming the setting, the minimum and the value.
    """
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise ConfigError(f"{name} must be a whole number of at least {minimum}, got {value!r}")


def check_mlp_ratio(ratio: float, dim: int) -> None:
    """Refuse a perceptron without width.

    Args:
        ratio: Hidden width over the token width.
        dim: The token width.

    Raises:
        ConfigError: Naming the value.
    """
    if not 0 < ratio < math.inf or int(dim * ratio) < 1:
        raise ConfigError(f"mlp_ratio must be above 0 and give a width of at least 1, got {ratio}")


def group_parameters(model: nn.Module, prefixes: Sequence[Sequence[str]]) -> list[list[str]]:
    """Sort a model's parameters into groups by the beginnings of their names.

    Args:
        model: The model.
        prefixes: For each group, beginnings of module or parameter names; what none claims joins the last.

    Returns:
        Names by group; together exactly all parameters.
    """
    groups: list[list[str]] = [[] for _ in prefixes]
    for name, _ in model.named_parameters():
        owner = next(
            (i for i, group in enumerate(prefixes) if any(name == p or name.startswith(p + ".") for p in group)),
            len(prefixes) - 1,
        )
        groups[owner].append(name)
    return groups
