"""Faster, or compiler-friendly, equals of the layers' plain code; :mod:`~vitrail.layers.fast.dispatch` chooses.

Each module registers the fast paths of the layer file with its name. They are loaded after the layers.
"""
