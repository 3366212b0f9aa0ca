"""The catalogue equals the registry."""

import json

import pytest

import vitrail
from vitrail.catalogue import from_json, read_catalogue, show, to_json
from vitrail.errors import ConfigError
from vitrail.models.catalogue import describe_family, describe_variant
from vitrail.models.registry import find_family, list_families

STALE = "vitrail/models/catalogue.json is out of date; run `python -m vitrail.models.catalogue` and commit it"


def _smallest():
    smallest = {}
    for variant in sorted(read_catalogue().variants.values(), key=lambda v: v.parameters):
        smallest.setdefault(variant.family, variant.name)
    return sorted(smallest.values())


def test_lists_what_is_registered():
    assert list(read_catalogue().variants) == vitrail.list_models(), STALE
    assert list(read_catalogue().families) == list(list_families()), STALE


@pytest.mark.parametrize("name", list(list_families()))
def test_families(name):
    assert read_catalogue().families.get(name) == describe_family(list_families()[name]), STALE
    # Every setting is explained where it is defined.
    assert [key for key, setting in describe_family(list_families()[name]).settings.items() if not setting.help] == []


@pytest.mark.parametrize("name", vitrail.list_models())
@pytest.mark.fast_cases("deit_small_distilled_patch16_224", "vit_huge_patch14_224", "vnt_tiny")
def test_variants_say_what_is_registered(name):
    variant = read_catalogue().variants.get(name)
    assert variant is not None, STALE
    family, settings = find_family(name)
    assert variant.family == family.name, STALE
    assert variant.settings == json.loads(json.dumps(settings)), STALE
    assert variant.published == family.published.get(name), STALE


@pytest.mark.fast_cases("pointnet_cls", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "vn_dgcnn_mean")
@pytest.mark.parametrize("name", _smallest())
def test_smallest_of_each_family_costs_what_is_said(name):
    assert read_catalogue().variants[name] == describe_variant(name), STALE


@pytest.mark.slow
@pytest.mark.parametrize("name", vitrail.list_models())
def test_every_variant_costs_what_is_said(name):
    assert read_catalogue().variants[name] == describe_variant(name), STALE


def test_parts_sum_to_the_whole():
    for variant in read_catalogue().variants.values():
        assert sum(part.count * part.parameters for part in variant.parts) == variant.parameters
        assert sum(part.count * part.multiply_adds for part in variant.parts) == variant.multiply_adds


def test_written_and_read_again():
    catalogue = read_catalogue()
    assert from_json(to_json(catalogue)) == catalogue


def test_patterns():
    catalogue = read_catalogue()
    assert [v.name for v in catalogue.find("vit_tiny_patch16_224")] == ["vit_tiny_patch16_224"]
    assert [v.name for v in catalogue.find("vit")] == vitrail.list_models("vit")
    assert [v.name for v in catalogue.find("vit_small*")] == vitrail.list_models("vit_small*")
    with pytest.raises(ConfigError, match="did you mean 'vit_tiny_patch16_224'"):
        catalogue.find("vit_tiny_patch16_225")


def test_values_in_few_characters():
    assert show([2, 2, 6, 2]) == "2-2-6-2"
    assert show({"num_tokens": 8, "fuse": True}) == "(num_tokens 8, fuse true)"
    assert show(None) == "none"
