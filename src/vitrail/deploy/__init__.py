"""Prediction on image files."""

from vitrail.deploy.images import open_files
from vitrail.deploy.predict import predict_files

__all__ = ["open_files", "predict_files"]
