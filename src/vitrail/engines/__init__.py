"""Inference engines: load an exported model and run it, without the run folder that it was made from."""

from vitrail.engines.load import Export, load_export

__all__ = ["Export", "load_export"]
