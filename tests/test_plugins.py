"""Methods and sources of other distributions are found by their entry points."""

import sys

import pytest
import torch

import vitrail
from vitrail.config import DataConfig
from vitrail.data import open_data, register_source
from vitrail.data.sources import opening
from vitrail.errors import ConfigError
from vitrail.explain import explain, list_methods
from vitrail.explain.methods import registry

CODE = """
from vitrail.data import register_source
from vitrail.data.sources.digits import DigitsSource
from vitrail.explain import StreamMap, register_method


@register_source("numerals")
def open_numerals(config, img_size):
    return DigitsSource(img_size)


@register_method("brightness", by_class=False)
def brightness(model, inputs, target):
    "Mean over bands."
    return {"image": StreamMap(inputs[0].mean(dim=1), inputs[0].mean(dim=1))}
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    (tmp_path / "vitrail_more.py").write_text(CODE)
    facts = tmp_path / "vitrail_more-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: vitrail-more\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(
        "[vitrail.methods]\nbrightness = vitrail_more\n[vitrail.sources]\nnumerals = vitrail_more\n"
    )
    tables = [(table, dict(table)) for table in (registry.METHODS, opening.SOURCES, opening._REGISTERED)]
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("vitrail_more", None)
    for table, content in tables:
        table.clear()
        table.update(content)


def test_a_method(installed):
    assert "brightness" in list_methods()
    model = vitrail.create_model("vit", img_size=16, patch_size=4, embed_dim=12, depth=1, num_heads=2).eval()
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(explain(model, images, "brightness").map, images.mean(dim=1))


def test_a_source(installed):
    data = open_data(DataConfig(source="numerals"), img_size=(16, 16))
    assert len(data.source) == 1797
    with pytest.raises(ConfigError, match="'digits' is built in; choose another name"):
        register_source("digits")
