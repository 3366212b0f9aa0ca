"""Where images come from: one small class a kind, behind one interface."""

from vitrail.data.sources.base import ImageSource
from vitrail.data.sources.digits import DigitsSource
from vitrail.data.sources.edges import WithEdges
from vitrail.data.sources.folder import FolderSource
from vitrail.data.sources.table import TableSource
from vitrail.data.sources.unlabelled import UnlabelledSource

# What `data.source` may say.
SOURCES = ("digits", "folder", "table", "unlabelled")

__all__ = ["SOURCES", "DigitsSource", "FolderSource", "ImageSource", "TableSource", "UnlabelledSource", "WithEdges"]
