"""Maps that know nothing of the model, for every table of methods: what a method must beat."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from vitrail.errors import ConfigError
from vitrail.explain.capture.forwarding import Inputs, check_count, given
from vitrail.explain.methods.maps import StreamMap, as_streams, upsample
from vitrail.explain.methods.registry import register_method
from vitrail.models.base import VisionModel


@register_method("random", by_class=False)
def _random(
    model: VisionModel, inputs: Inputs, target: Tensor | None, cells: int = 8, seed: int = 0
) -> dict[str, StreamMap]:
    """A map of random cells: what a method is worth that knows nothing.

    Not signed. As coarse as ``cells`` cells along a side, interpolated like other maps: scattered pixels would be a
    weaker opponent, since taking them away hardly takes anything from an image. The map is drawn from the seed and the
    image itself, so that it is the same in any batch and another for every image.
    """
    check_count("cells", cells)
    _try(model, inputs)
    maps = {}
    for name, x in given(model, inputs).items():
        drawn = [_cells(image, cells, seed) for image in x]
        tokens = torch.stack(drawn).to(x.device)
        maps[name] = StreamMap(upsample(tokens, (x.shape[2], x.shape[3])), tokens)
    return maps


def _try(model: VisionModel, inputs: Inputs) -> None:
    """Let the model judge inputs that it is not asked about otherwise: a control is compared with what it explains."""
    with torch.no_grad():
        model(*inputs)


def _cells(image: Tensor, cells: int, seed: int) -> Tensor:
    content = zlib.crc32(image.detach().float().cpu().contiguous().numpy().tobytes(), seed & 0xFFFFFFFF)
    return torch.rand(cells, cells, generator=torch.Generator().manual_seed(content))


@register_method("centre", by_class=False)
def _centre(model: VisionModel, inputs: Inputs, target: Tensor | None, width: float = 0.25) -> dict[str, StreamMap]:
    """A blob in the middle, where photographers put things: what knowing only that is worth.

    Not signed. A Gaussian with ``width`` of each side as its standard deviation.
    """
    if not width > 0:
        raise ConfigError(f"width must be above 0, got {width}")
    _try(model, inputs)
    images = given(model, inputs)
    maps = []
    for x in images.values():
        down, right = (
            torch.exp(-(((torch.arange(side, device=x.device) + 0.5) / side - 0.5) ** 2) / (2 * width**2))
            for side in x.shape[2:]
        )
        maps.append((down[:, None] * right[None]).expand(len(x), -1, -1).contiguous())
    return as_streams(list(images), maps)
