"""The table of shared settings names the families that have them, as their configs do."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from vitrail.errors import ConfigError
from vitrail.layers.mlp import MLPS
from vitrail.layers.norms import NORMS
from vitrail.models import list_families
from vitrail.models.catalogue import is_foreign
from vitrail.models.layer_settings import LayerSettings
from vitrail.models.registry import create_model

PAGE = Path(__file__).parents[2] / "docs" / "architectures" / "README.md"
FAMILIES = {
    name: family
    for name, family in list_families().items()
    if issubclass(family.config, LayerSettings) and not is_foreign(family)
}
ALSO = {"pos_drop_rate", "drop_path_rate", "global_pool", "pos_embed"}
REGISTRIES = {"norm_layer": NORMS, "mlp_layer": MLPS}


def _rows():
    """Setting, values, families of each row."""
    section = PAGE.read_text(encoding="utf-8").split("## Settings that families share")[1].split("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("| `"):
            first, families = line.split(" | ")[:2]
            setting, *values = re.findall(r"`([^`]*)`", first)
            yield setting, [value.strip('"') for value in values], families.split(", ")


def _choices(name, setting):
    """Values that a family's config allows."""
    if setting in REGISTRIES:
        return set(REGISTRIES[setting])
    return set(typing.get_args(typing.get_type_hints(FAMILIES[name].config)[setting]))


@pytest.mark.parametrize(("setting", "values", "families"), _rows(), ids=lambda cell: "-".join([*cell]))
@pytest.mark.fast_cases(
    "q-k-_-n-o-r-m--vit-swin-maxvit-hvt-vivit-swin3d",
    "c-l-a-s-s-_-t-o-k-e-n--vit-vivit",
    "p-o-s-_-e-m-b-e-d-learned+relative-sincos2d+relative-swin",
)
def test_families_of_a_setting(setting, values, families):
    having = [name for name, family in FAMILIES.items() if setting in family.settings]
    assert set(families) == {name for name in having if not values or set(values) <= _choices(name, setting)}


def test_every_shared_setting_and_every_value_has_a_row():
    rows = list(_rows())
    absent = {key for family in FAMILIES.values() for key in getattr(family.config, "absent", {}) if "=" not in key}
    expected = {field.name for field in dataclasses.fields(LayerSettings)} | absent | ALSO
    assert {setting for setting, *_ in rows} == expected
    for setting in ("global_pool", "pos_embed", *REGISTRIES):
        listed = [value for name, values, _ in rows if name == setting for value in values]
        possible = {choice for name in FAMILIES for choice in _choices(name, setting)}
        assert sorted(listed) == sorted(possible), setting


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_family_lacks_is_refused_with_the_reason(name):
    absent = getattr(FAMILIES[name].config, "absent", {})
    for setting in {setting for setting, *_ in _rows()} - set(FAMILIES[name].settings):
        with pytest.raises(ConfigError, match=re.escape(absent[setting])):
            create_model(name, **{**FAMILIES[name].test_config, setting: 1})
