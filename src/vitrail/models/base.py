"""The contract of a model: methods of every family, with defaults for models of one image.

Where a docstring says ``(H, W)`` of tokens, a model of another modality has the axes of its grid.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from vitrail.errors import ConfigError, ShapeError
from vitrail.layers.shapes import product, to_pair
from vitrail.layers.symbolic import resolve_annotations
from vitrail.layers.tap import Grid
from vitrail.models.checkpoint_sizes import count_prefix, embeds_prefix, old_grid
from vitrail.models.facts import Ends, FeatureInfo, LevelTokens, Stream, describe
from vitrail.models.modality import IMAGE, Modality
from vitrail.models.pooling import Pooling
from vitrail.models.scripting import as_traced
from vitrail.weights.kernels import InputKernel
from vitrail.weights.report import LoadReport
from vitrail.weights.rules import KeyMap


class VisionModel(Pooling):
    """Base of the families.

    Other code asks a model what it can do by the methods below, and never by its class. Methods named ``lacks_...``
    give the reason why the model cannot, empty where it can.

    Attributes:
        modality: Modality of the inputs.
        key_maps: Rules that read the checkpoints of other libraries, the family's own first.
        input_kernels: Convolutions that see the bands, by the name of their weight.
        stream_prefixes: Prefix of each stream's keys, for a family of several streams.
        not_decayed: Last parts of the names of parameters without weight decay, besides biases and norms.
        name: Name as for ``create_model``, a variant or a family.
        num_features: Width of the classifier's input.
        num_prefix: Class and other tokens before those of the patches.
        feature_info: The levels that :meth:`forward_intermediates` can return, in order.
    """

    modality: ClassVar[Modality] = IMAGE
    key_maps: ClassVar[Sequence[KeyMap]] = ()
    input_kernels: ClassVar[Mapping[str, InputKernel]] = {"patch_embed.proj.weight": InputKernel("image")}
    stream_prefixes: ClassVar[Mapping[str, str]] = {}
    not_decayed: ClassVar[Sequence[str]] = (
        "pos_embed",
        "cls_token",
        "dist_token",
        "reg_token",
        "relative_position_bias_table",
    )
    name: str = ""
    num_features: int
    norm: nn.Module
    feature_info: list[FeatureInfo]

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "forward" in cls.__dict__:
            resolve_annotations(cls.forward)

    def mixers(self) -> list[str]:
        """Name the modules in which blocks mix tokens, in the order of the blocks.

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

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The inputs that ``forward`` takes, in order: one image, unless a family says otherwise."""
        return (Stream("image", self.config.in_chans, to_pair(self.config.img_size)),)

    @resolve_annotations
    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: Images, shape ``(B, in_chans, H, W)``; a family of several streams takes a tensor for each.

        Returns:
            Logits, shape ``(B, num_classes)``.

        Raises:
            ShapeError: Another number of bands, another type of number, or an image smaller than a patch.
        """
        return self.forward_head(self.forward_features(x))

    @abstractmethod
    def forward_features(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the tokens after the last norm: ``(B, N, C)``, ``(B, H, W, C)`` or ``(B, C, H, W)``, by family."""

    @property
    def ends(self) -> tuple[Ends, ...]:
        """Widths and strides of the tokens of :meth:`embed` and :meth:`forward_embedded`, for each of :attr:`streams`.

        Empty where the last tokens lie on no grid.
        """
        first, last = self.feature_info[0], self.feature_info[-1]
        return (Ends(self.streams[0].name, first.channels, first.stride, last.channels, last.stride),)

    @abstractmethod
    def embed(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Embed the inputs: the first tokens of each stream, ``(B, H, W, C)``, before positions are added.

        Between this and :meth:`forward_embedded`, which together are the model without its head, tokens can be
        replaced: masked image modelling does so. Inputs are those of :meth:`forward`; none may be left out.
        """

    @abstractmethod
    def forward_embedded(self, *embedded: Tensor) -> tuple[Tensor, ...]:
        """Encode embedded patches; return the last tokens of each stream, ``(B, h, w, C')``.

        Args:
            *embedded: First tokens of each stream, as of :meth:`embed`.
        """

    def mask_unit(self) -> Grid:
        """Return the size in pixels of the smallest part of the input that :meth:`forward_visible` can leave out.

        The first tokens' stride, unless a family leaves out larger parts (windows).
        """
        return self.ends[0].first_stride

    def lacks_visible(self) -> str:
        """Return the reason why :meth:`forward_visible` is not possible; empty where it is."""
        return f"{type(self).__name__} runs on whole grids of tokens"

    def lacks_grid(self) -> str:
        """Return the reason why the last tokens form no grid, with the remedy; empty where they do."""
        return "" if self.ends else f"the last tokens of this {type(self).__name__} form no grid"

    def lacks_positions(self) -> str:
        """Return the reason why no layer with attention works on tokens of a grid; empty where one does."""
        return ""

    def forward_visible(self, embedded: Tensor, keep: Tensor) -> Tensor:
        """Run a subset of the first tokens, as if the image had no others.

        Args:
            embedded: Output of :meth:`embed`, shape ``(B, H, W, C)``.
            keep: Indices of the visible parts, row-major on the grid of :meth:`mask_unit`, shape ``(B, K)``.

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

    def level_as_map(self, index: int, output: Tensor, size: Grid) -> Tensor:
        """Convert an output of :meth:`level_module`, or a gradient of its shape, to the layout of a feature map.

        Args:
            index: Index of the level in :attr:`feature_info`.
            output: Shape ``(B, N, C)`` with prefix tokens first; or ``(B, h, w, C)``, or ``(B, C, h, w)`` where
                :attr:`channels_first` is true.
            size: The level's grid.

        Returns:
            Shape ``(B, C, *size)``.
        """
        if output.ndim == 3:
            patches = output[:, output.shape[1] - product(size) :]
            return patches.transpose(1, 2).reshape(len(output), -1, *size)
        return output if self.channels_first else output.movedim(-1, 1)

    def reads_level(self, index: int) -> bool:
        """Return whether the logits depend on the patches of a level; not where only a class token is read after it."""
        return True

    @abstractmethod
    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify the result of :meth:`forward_features`; ``pre_logits`` stops before the classifier."""

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
            stop: Number of levels to run; None for the whole model without its head.

        Returns:
            The features of :meth:`forward_features`, or with ``stop`` those so far; the wanted levels, before any norm.
        """

    def norm_level(self, index: int, tokens: Tensor) -> Tensor:
        """Apply the last norm to tokens ``(..., C)`` of a level; only the last level has the width that it fits."""
        out: Tensor = self.norm(tokens) if index == len(self.feature_info) - 1 else tokens
        return out

    def set_distilled_training(self, enable: bool = True) -> bool:
        """Return the logits of the class token and of the distillation token in training, instead of their mean.

        Args:
            enable: Whether ``forward`` returns both from now on, in training mode alone.

        Returns:
            Whether the model has a distillation token; without one nothing changes.
        """
        return False

    def lacks_merging(self) -> str:
        """Return the reason why blocks cannot merge tokens; empty where they can."""
        reasons: Mapping[str, str] = getattr(type(self.config), "absent", {})
        return reasons.get("token_merging", f"the blocks of a {type(self).__name__} need all of their tokens")

    def set_token_merging(self, r: int | Sequence[int]) -> None:
        """Merge similar tokens in each block from now on; parameters stay as they are.

        Args:
            r: Pairs that each block merges, or one number a block; 0 for none.

        Raises:
            ConfigError: A number below 0, or a model that cannot, with :meth:`lacks_merging`.
        """
        raise ConfigError(f"tokens cannot be merged: {self.lacks_merging()}")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        for module in self.modules():
            if "grad_checkpointing" in vars(module):
                cast(Any, module).grad_checkpointing = enable

    def __prepare_scriptable__(self) -> nn.Module:
        """Trace the model for ``torch.jit.script``, in its mode and for images of its own size."""
        return as_traced(self, [stream.shape for stream in self.streams])

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

    def no_weight_decay(self) -> set[str]:
        """Name the parameters without weight decay besides biases and norms (positions, class tokens)."""
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in self.not_decayed}

    @abstractmethod
    def layer_groups(self) -> list[list[str]]:
        """Group the names of all parameters from the input to the head, for layer-wise learning rates."""

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

    def adapt_state(self, state: dict[str, Tensor], report: LoadReport) -> dict[str, Tensor]:
        """Complete the checkpoint of another kind of model from which this one can start.

        Args:
            state: The checkpoint, by our names.
            report: Receives notes on the changes.

        Returns:
            The tensors to load; ``state`` unless a family says otherwise.
        """
        return state

    @classmethod
    def first_width(cls, config: Any) -> int | None:
        """Return the channels of the first tokens by a config; None where the config does not show it.

        Recognising a checkpoint skips the variants of another width.
        """
        width = getattr(config, "embed_dim", None)
        return width if isinstance(width, int) else None

    @classmethod
    def read_settings(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Read the settings that a checkpoint shows, to recognise the model that it was made for.

        Args:
            state: Tensors by our names.

        Returns:
            Number of classes, bands, patch and image size, pooling by attention, where the shapes show them.
        """
        head = state.get(f"{cls.classifier}.weight")
        settings: dict[str, Any] = {"num_classes": 0 if head is None else head.shape[0]}
        if "attn_pool.latent" in state:
            settings["global_pool"] = "map"
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
                count = positions.shape[1]
                before = count_prefix(state) if embeds_prefix(count, state) else 0
                grid = old_grid(count - before, patch, {}, prefix)
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
        """Resolve the indices of the wanted levels of :attr:`feature_info`.

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


def as_format(x: Tensor, output_fmt: str) -> Tensor:
    """Convert a map ``(B, H, W, C)``, or ``(B, T, H, W, C)`` of a clip, to another format.

    Args:
        x: The map.
        output_fmt: "NCHW" for channels before the grid, "NHWC" for channels last, or "NLC" for one row of tokens.

    Raises:
        ConfigError: Another format.
    """
    if output_fmt == "NCHW":
        return x.movedim(-1, 1)
    if output_fmt == "NLC":
        return x.flatten(1, -2)
    if output_fmt != "NHWC":
        raise ConfigError(f"output_fmt must be 'NCHW', 'NHWC' or 'NLC', got {output_fmt!r}")
    return x


def group_parameters(model: nn.Module, prefixes: Sequence[Sequence[str]]) -> list[list[str]]:
    """Sort a model's parameters into groups by the beginnings of their names.

    Args:
        model: The model.
        prefixes: Beginnings of module or parameter names of each group; parameters without a match join the last.

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
