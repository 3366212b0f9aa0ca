"""Capture how layers mix their tokens while a model runs."""
