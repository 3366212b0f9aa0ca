"""Sources of images: one small class per kind, behind one interface."""

from vitrail.data.sources.base import ImageSource
from vitrail.data.sources.opening import SOURCES, open_source, register_source

__all__ = ["SOURCES", "ImageSource", "open_source", "register_source"]
