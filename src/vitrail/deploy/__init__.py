"""Putting a trained run to work."""

from vitrail.deploy.predict import predict_files

__all__ = ["predict_files"]
