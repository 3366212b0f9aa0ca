"""A model of stages on ever coarser maps: the part of the contract that all such families share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.models.base import VisionModel, group_parameters
from vitrail.models.facts import LevelTokens


class Pyramid(VisionModel):
    """One image through a stem and stages, each of which is a level of the feature pyramid.

    A subclass sets in its ``__init__`` the stem, the stages, ``norm``, ``head``, ``config``, ``num_features`` and
    ``feature_info``. Stem and stages give maps ``(B, H, W, C)``, or ``(B, C, H, W)`` where ``channels_first`` is true.

    Attributes:
        stem_name: Attribute that holds the stem or patch embedding.
        stages_name: Attribute that holds the list of stages.
        stem_is_level: Whether the stem's map is the first level.
        per_stage: Settings with a value for each stage.
    """

    stem_name: ClassVar[str] = "patch_embed"
    stages_name: ClassVar[str] = "stages"
    stem_is_level: ClassVar[bool] = False
    per_stage: ClassVar[Sequence[str]] = ("depths", "num_heads")

    @property
    def stage_list(self) -> nn.ModuleList:
        """The stages."""
        stages: nn.ModuleList = getattr(self, self.stages_name)
        return stages

    def embed(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the stem's map ``(B, H, W, C)``, as :meth:`VisionModel.embed`."""
        return (self._swap(getattr(self, self.stem_name)(x), to_tokens=True),)

    def add_positions(self, patches: Tensor) -> Tensor:
        """Add absolute positions to the stem's map ``(B, H, W, C)``, where the family has any."""
        return patches

    def forward_embedded(self, *embedded: Tensor) -> tuple[Tensor, ...]:
        """Run the stages and the norm, ``(B, h, w, C)``, as :meth:`VisionModel.forward_embedded`."""
        return (self.norm(self._run(embedded[0], (), None)[0]),)

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the last stage's map after the norm.

        Args:
            x: Images, shape ``(B, in_chans, H, W)``.

        Returns:
            Shape ``(B, H / stride, W / stride, C)``, rounded up, with the stride of the last stage; or
            ``(B, C, H / stride, W / stride)`` where ``channels_first`` is true.

        Raises:
            ShapeError: No batch of images of the right number of bands and type, or smaller than a patch.
        """
        return self._swap(self.forward_embedded(*self.embed(x))[0])

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool a map and classify: ``(B, num_classes)``, or ``(B, C)`` with ``pre_logits``."""
        pooled = self.pool(features, (2, 3) if self.channels_first else (1, 2))
        logits: Tensor = pooled if pre_logits else self.head(pooled)
        return logits

    def run_levels(
        self, inputs: Sequence[Any], wanted: Sequence[int], stop: int | None
    ) -> tuple[Tensor, dict[int, LevelTokens]]:
        """Run the stages, as :meth:`VisionModel.run_levels`."""
        last, levels = self._run(self.embed(*inputs)[0], wanted, stop)
        return self._swap(self.norm(last) if stop in (None, len(self.feature_info)) else last), levels

    def _run(self, x: Tensor, wanted: Sequence[int], stop: int | None) -> tuple[Tensor, dict[int, LevelTokens]]:
        """Run the stages up to a level on the stem's map ``(B, H, W, C)``; the last map and the wanted levels."""
        first = int(self.stem_is_level)
        levels = {0: LevelTokens(x)} if first and 0 in wanted else {}
        x = self._swap(self.add_positions(x))
        for index, stage in enumerate(self.stage_list[: None if stop is None else stop - first], first):
            x = stage(x)
            if index in wanted:
                levels[index] = LevelTokens(self._swap(x, to_tokens=True))
        return self._swap(x, to_tokens=True), levels

    def _swap(self, x: Tensor, to_tokens: bool = False) -> Tensor:
        """Permute between maps ``(B, H, W, C)`` and the layout of this family's stages."""
        if not self.channels_first:
            return x
        return x.permute(0, 2, 3, 1) if to_tokens else x.permute(0, 3, 1, 2)

    def _keep_levels(self, count: int) -> None:
        stages = count - int(self.stem_is_level)
        if stages < 1:
            raise ConfigError(f"{type(self).__name__} keeps its stem and a stage at least; give indices from 1")
        setattr(self, self.stages_name, self.stage_list[:stages])
        shorter = {name: getattr(self.config, name)[:stages] for name in self.per_stage}
        self.config = dataclasses.replace(self.config, **shorter)

    def layer_groups(self) -> list[list[str]]:
        """Group the stem, then each block with the downsampling before it, then norm and head."""
        groups: list[list[str]] = [[self.stem_name, "pos_embed"]]
        for index, stage in enumerate(self.stage_list):
            prefix = f"{self.stages_name}.{index}"
            blocks = [[f"{prefix}.blocks.{name}"] for name, _ in stage.get_submodule("blocks").named_children()]
            blocks[0].append(f"{prefix}.downsample")
            groups += blocks
        return group_parameters(self, [*groups, ["norm", "attn_pool", "head"]])
