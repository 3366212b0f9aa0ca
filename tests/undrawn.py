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


@pytest.fixture(autouse=True, scope="module")
def _undrawn():
    """Drawing takes most of a report's time: neither fixtures nor tests draw; gives the real functions."""
    import sklearn.manifold

    from vitrail.figures import write

    real = write.save_figure, sklearn.manifold.TSNE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "save_figure", _blank)
        patch.setattr(sklearn.manifold, "TSNE", functools.partial(sklearn.manifold.TSNE, max_iter=250))
        yield real


@pytest.fixture(autouse=True)
def _drawn(request, monkeypatch, _undrawn):
    """A test that is marked ``drawn`` has the real functions."""
    if request.node.get_closest_marker("drawn"):
        save_figure, tsne = _undrawn
        monkeypatch.setattr("vitrail.figures.write.save_figure", save_figure)
        monkeypatch.setattr("sklearn.manifold.TSNE", tsne)
