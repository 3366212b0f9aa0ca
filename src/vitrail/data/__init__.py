"""Images with labels: where they come from, how they are split, sized, batched and augmented."""

from vitrail.data.dataset import ImageData, open_data
from vitrail.data.sources import SOURCES, ImageSource

__all__ = ["SOURCES", "ImageData", "ImageSource", "open_data"]
