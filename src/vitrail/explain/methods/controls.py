"""Control maps that do not depend on the model: lower bounds for the measures of a method."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from vitrail.explain.capture.forwarding import Inputs, check_count, check_positive, inputs_by_stream
from vitrail.explain.methods.maps import StreamMap, as_streams, upsample
from vitrail.explain.methods.registry import register_method
from vitrail.models.base import VisionModel


@register_method("random", by_class=False)
def _random(
    model: VisionModel, inputs: Inputs, target: Tensor | None, cells: int = 8, seed: int = 0
) -> dict[str, StreamMap]:
    """Random cells: the value of a map without information.

    Not signed. ``cells`` cells along a side, interpolated like other maps: removing single random pixels would hardly
    change an image, a weaker control. The map depends on the seed and on the image, so that it is the same in any
    batch and differs between images.
    """
    check_count("cells", cells)
    _check_inputs(model, inputs)
    maps = {}
    for name, x in inputs_by_stream(model, inputs).items():
        tokens = torch.stack([_cells(image, cells, seed) for image in x]).to(x.device)
        maps[name] = StreamMap(upsample(tokens, (x.shape[2], x.shape[3])), tokens)
    return maps


def _check_inputs(model: VisionModel, inputs: Inputs) -> None:
    """Run the model, which raises for inputs that other methods could not explain either."""
    with torch.no_grad():
        model(*inputs)


def _cells(image: Tensor, cells: int, seed: int) -> Tensor:
    content = zlib.crc32(image.detach().float().cpu().contiguous().numpy().tobytes(), seed & 0xFFFFFFFF)
    return torch.rand(cells, cells, generator=torch.Generator().manual_seed(content))


@register_method("centre", by_class=False)
def _centre(model: VisionModel, inputs: Inputs, target: Tensor | None, width: float = 0.25) -> dict[str, StreamMap]:
    """Gaussian at the centre, where objects of photographs often are.

    Not signed. The standard deviation is the share ``width`` of each side.
    """
    check_positive("width", width)
    _check_inputs(model, inputs)
    images = inputs_by_stream(model, inputs)
    maps = []
    for x in images.values():
        down, right = (
            torch.exp(-(((torch.arange(side, device=x.device) + 0.5) / side - 0.5) ** 2) / (2 * width**2))
            for side in x.shape[2:]
        )
        maps.append((down[:, None] * right[None]).expand(len(x), -1, -1).contiguous())
    return as_streams(list(images), maps)
