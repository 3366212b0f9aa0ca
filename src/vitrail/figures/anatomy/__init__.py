"""Figures of the steps that a model takes an image through, from the arrays that the model computed."""
