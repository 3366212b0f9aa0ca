"""Key maps of the layers TokenLearner and TokenFuser, which can be loaded alone: the authors' code (scenic)."""

from __future__ import annotations

from collections.abc import Mapping

from vitrail.weights.rules import Convert, KeyMap, Rename, transpose_conv, transpose_dense

# flax: layer norms have a scale, dense layers a kernel of (in, out), convolutions one of (H, W, in, out).
_FLAX_MASKS = (
    Rename(r"token_masking/Dense_0/(\w+)", r"masks.fc1.\1"),
    Rename(r"token_masking/Dense_1/(\w+)", r"masks.fc2.\1"),
    Convert(r"(masks\.fc[12]|mix)\.kernel", transpose_dense),
    Rename(r"(.*)\.(?:kernel|scale)", r"\1.weight"),
)

# By the name of the layer's class.
_LAYER_MAPS: Mapping[str, tuple[KeyMap, ...]] = {
    "TokenFuser": (
        KeyMap("vitrail", (r"norm_original\.weight", r"mix\.weight")),
        KeyMap(
            "scenic",
            (r"fuser_mix_norm1/scale", r"Dense_0/kernel"),
            (
                Rename(r"fuser_mix_norm1/(\w+)", r"norm_in.\1"),
                Rename(r"fuser_mix_norm2/(\w+)", r"norm_mixed.\1"),
                Rename(r"LayerNorm_0/(\w+)", r"norm_original.\1"),
                Rename(r"Dense_0/(\w+)", r"mix.\1"),
                *_FLAX_MASKS,
            ),
        ),
    ),
    "TokenLearner": (
        KeyMap("vitrail", (r"norm\.weight", r"masks\..*")),
        KeyMap(
            "scenic",
            (r"LayerNorm_0/scale", r"(Conv_0|token_masking/Dense_0)/kernel"),
            (
                Convert(r"Conv_\d/kernel", transpose_conv),
                Rename(r"Conv_0/kernel", "masks.0.weight"),
                Rename(r"Conv_1/kernel", "masks.2.weight"),
                Rename(r"Conv_2/kernel", "masks.4.weight"),
                Rename(r"Conv_3/kernel", "masks.6.weight"),
                Rename(r"LayerNorm_0/(\w+)", r"norm.\1"),
                *_FLAX_MASKS,
            ),
        ),
    ),
}


def maps_of(kind: type) -> list[KeyMap]:
    """List the key maps of a model's or a layer's class: those that it declares, and those of this file."""
    return [*getattr(kind, "key_maps", ()), *_LAYER_MAPS.get(kind.__name__, ())]
