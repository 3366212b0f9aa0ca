"""Views of images for contrastive learning: strong random changes that leave what an image shows."""

from __future__ import annotations

from torch import nn

from vitrail.data.transforms import Augmentation


def build_views(
    size: tuple[int, int], num_bands: int, min_scale: float = 0.2, strength: float = 0.5, flips: bool = True
) -> Augmentation:
    """The random transforms of which each call draws one view.

    Random crop, resized; horizontal flip; change of brightness and contrast, of three bands also of saturation and
    hue, and loss of colour; blur. The geometry is the same for all streams of a view, colours change in the image
    stream alone.

    Args:
        size: Height and width of the images.
        num_bands: Bands of the image stream.
        min_scale: Smallest share of an image that a view may show.
        strength: Of the changes of colour: the s of the source; 0 leaves colours.
        flips: Whether mirrored views are drawn.

    Returns:
        A transform of streams in 0..1.

    Source: Chen et al. 2020, arXiv:2002.05709, appendix A.
    """
    import kornia.augmentation as K

    geometry: list[nn.Module] = [K.RandomResizedCrop(size, scale=(min_scale, 1.0), ratio=(0.75, 4 / 3))]
    if flips:
        geometry.append(K.RandomHorizontalFlip())
    color: list[nn.Module] = []
    s = 0.8 * strength
    if strength and num_bands == 3:
        color += [K.ColorJitter(s, s, s, 0.2 * strength, p=0.8), K.RandomGrayscale(p=0.2)]
    elif strength:
        # Bands that are no colours have no saturation or hue.
        color += [K.RandomBrightness((1 - s, 1 + s), p=0.8), K.RandomContrast((1 - s, 1 + s), p=0.8)]
    kernel = max(3, min(size) // 10 // 2 * 2 + 1)
    if min(size) >= kernel:
        color.append(K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5))
    return Augmentation(nn.Sequential(*geometry), nn.Sequential(*color))
