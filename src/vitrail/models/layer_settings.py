"""Settings of the layers inside of blocks and of the head, which families have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitrail.errors import ConfigError
from vitrail.layers.activations import ACTIVATIONS
from vitrail.layers.attention import AttentionOptions
from vitrail.layers.block import BlockOptions
from vitrail.layers.checks import check_named
from vitrail.layers.mlp import MLPS
from vitrail.layers.norms import NORMS
from vitrail.models.checks import check_rates


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """Settings of blocks and head, named as in timm; rates act in training alone.

    Attributes:
        drop_rate: Dropout of the classifier's input.
        proj_drop_rate: Dropout of the outputs of attention, and of both layers of the MLPs.
        attn_drop_rate: Dropout of the attention weights.
        act_layer: Activation of the MLPs: "gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "leaky_relu", "elu",
            "mish", "hard_swish" or "tanh". When not given the family's GELU, and SiLU for "swiglu".
        norm_layer: Norm of tokens: "layernorm", "rmsnorm" or "simplenorm".
        mlp_layer: "mlp", or "swiglu", whose hidden layer is gated (Shazeer 2020, arXiv:2002.05202).
        init_values: Initial value of the layer scale of each residual branch (Touvron et al. 2021, arXiv:2103.17239);
            none when not given.
        qk_norm: Whether queries and keys are normalised in each head (Henry et al. 2020, arXiv:2010.04245).
    """

    drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    act_layer: str | None = None
    norm_layer: str = "layernorm"
    mlp_layer: str = "mlp"
    init_values: float | None = None
    qk_norm: bool = False

    def check_layers(self) -> None:
        """Refuse rates and an initial layer scale out of range, and names that no registry of layers has.

        Raises:
            ConfigError: Naming the setting, the value, and the known names or the remedy.
        """
        check_rates(self, "drop_rate", "proj_drop_rate", "attn_drop_rate")
        if self.act_layer is not None:
            check_named("act_layer", self.act_layer, ACTIVATIONS)
        check_named("norm_layer", self.norm_layer, NORMS)
        check_named("mlp_layer", self.mlp_layer, MLPS)
        if self.init_values is not None and not 0 < self.init_values < math.inf:
            raise ConfigError(f"init_values must be above 0, or null for no layer scale, got {self.init_values!r}")

    @property
    def attention_options(self) -> AttentionOptions:
        """Options of every attention layer."""
        return {
            "attn_drop": self.attn_drop_rate,
            "proj_drop": self.proj_drop_rate,
            "qk_norm": self.qk_norm,
            "norm_layer": self.norm_layer,
        }

    @property
    def block_options(self) -> BlockOptions:
        """Options of every block."""
        return {
            "act_layer": self.act_layer,
            "norm_layer": self.norm_layer,
            "mlp_layer": self.mlp_layer,
            "drop": self.proj_drop_rate,
            "init_values": self.init_values,
        }
