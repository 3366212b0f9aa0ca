"""Export of a trained run to an engine."""

from vitrail.deploy.export.export import export

__all__ = ["export"]
