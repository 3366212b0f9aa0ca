"""Labelled images: sources, splits, resizing, batches and augmentation."""

from vitrail.data.dataset import ImageData, open_data
from vitrail.data.sources import SOURCES, ImageSource, register_source

__all__ = ["SOURCES", "ImageData", "ImageSource", "open_data", "register_source"]
