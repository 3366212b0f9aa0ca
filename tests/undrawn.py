"""Figures that are laid out and not drawn, and short t-SNE, for tests that read what stands around them."""

import functools

import pytest
from PIL import Image


def _blank(figure, targets, dpi, tight=False):
    """Write files of the figure's size with nothing in them."""
    width, height = (round(dpi * inches) for inches in figure.get_size_inches())
    for kind, target in targets.items():
        if kind == "svg":
            target.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"/>')
        else:
            Image.new("L", (width, height)).save(target, "PNG")


@pytest.fixture(autouse=True)
def _undrawn(request, monkeypatch):
    """Drawing takes most of a report's time; a test that is marked ``drawn`` has the real ones."""
    if request.node.get_closest_marker("drawn") is None:
        import sklearn.manifold

        monkeypatch.setattr("vitrail.figures.write.save_figure", _blank)
        monkeypatch.setattr("sklearn.manifold.TSNE", functools.partial(sklearn.manifold.TSNE, max_iter=250))
