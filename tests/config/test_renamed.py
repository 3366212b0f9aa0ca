"""Names of earlier versions: all are known, none is lost, both together are refused."""

import json

import pytest
import yaml

from vitrail.cli.arguments import VerbParser
from vitrail.config import Recipe, dump_recipe, load_recipe
from vitrail.config.data import DEFAULTS
from vitrail.config.renamed import EARLIER, RENAMED, earlier, rename, rename_changes, rename_content, rename_options
from vitrail.errors import ConfigError
from vitrail.models.registry import find_family

FIRST = {"source", "path", "img_size", "color", "scale", "split", "augment", "batch_size", "up"}


def test_names_are_translated_one_to_one():
    assert len(set(RENAMED.values())) == len(RENAMED)
    assert not FIRST & {old.removeprefix("data.") for old in RENAMED}
    assert not FIRST & set(EARLIER)
    for old, new in RENAMED.items():
        assert rename(old) == new
        assert rename(new) == new
        assert earlier(new) == old


@pytest.mark.parametrize("order", [1, -1])
def test_old_and_new_names_mix(order):
    data = {"source": "folder", "bands": ["r"], "spectral": {"path": "x"}, "spectral_scale": 3, "val_fraction": 0.2,
            "splitting": {"fold": 1}, "augment_settings": {"mixup": 0.1}}  # fmt: skip
    content, notes = rename_content({"data": dict(list(data.items())[::order]), "model": {"name": "vit"}})
    assert content == {
        "data": {
            "source": "folder", "bands": {"use": ["r"]}, "spectral": {"path": "x", "scale": 3},
            "splitting": {"fold": 1, "val_fraction": 0.2}, "augmentation": {"mixup": 0.1},
        },
        "model": {"name": "vit"},
    }  # fmt: skip
    assert len(notes) == 4
    assert rename_content(content) == (content, [])


@pytest.mark.parametrize("order", [1, -1])
def test_both_names_are_refused(order):
    data = {"val_fraction": 0.2, "splitting": {"val_fraction": 0.1}}
    with pytest.raises(ConfigError, match=r"r: data.val_fraction and data.splitting.val_fraction are the same setting"):
        rename_content({"data": dict(list(data.items())[::order])}, "r: ")
    changes = {"data.val_fraction": 0.2, "data.splitting.val_fraction": 0.1}
    with pytest.raises(ConfigError, match=r"keep data.splitting.val_fraction"):
        rename_changes(dict(list(changes.items())[::order]))


def test_options_are_translated_and_stated():
    changes = {"data.augment_settings.mixup": 0.1, "data.bands": "[r]", "data.spectral.path": "x", "run.dir": "y"}
    renamed, notes = rename_changes(changes)
    assert list(renamed) == ["data.augmentation.mixup", "data.bands.use", "data.spectral.path", "run.dir"]
    assert notes == [
        "data.augment_settings.mixup is now data.augmentation.mixup", "data.bands is now data.bands.use",
    ]  # fmt: skip


def load(base, *words, **more):
    return load_recipe(base, words, settings_of=lambda name: find_family(name)[0].config, **more)


def test_an_earlier_recipe_is_the_same_recipe(tmp_path, capsys):
    """With each setting by its earlier name and a value of its own; one line names all of them."""
    data = {
        "source": "table", "scale": 2.0, "resize": "squash", "color": "gray", "max_pixels": 5, "repeated_files": "each",
        "band_names": ["a", "b"], "bands": ["b"], "wavelengths": [400.0, 500.0], "allow_constant": ["a"],
        "offset": 1.0, "nodata": -9999, "value_type": "uint16", "statistics": "s.json", "spectral": "edges",
        "spectral_path": "second", "spectral_range": [0, 2], "spectral_bands": [], "image_column": "file",
        "label_column": "kind", "separator": "tab", "label_separator": ";", "multi_label": True,
        "class_names": ["x", "y"], "label_values": [1, 2], "merge_labels": "similar", "label_fraction": 0.5,
        "label_seed": 3, "cube": "c", "patch": 5, "num_images": 7, "seed": 8, "group": "plant", "fold": 1,
        "num_folds": 4, "val_fraction": 0.3, "check_copies": False, "num_workers": 0, "cache": True,
        "sampling": "balanced", "on_unreadable": "skip", "on_band_mismatch": "convert",
        "augment_settings": {"mixup": 0.2},
    }  # fmt: skip
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({"data": data}))
    recipe = load(file)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    for old, value in data.items():
        new = rename(f"data.{old}")
        assert (f"data.{old} is now {new}" in lines[0]) == (new != f"data.{old}")
        read = recipe.data.setting(new.removeprefix("data."))
        assert read == (tuple(value) if isinstance(value, list) else value)
    assert load(recipe.to_dict()) == recipe
    words = [
        f"--data.{name}={json.dumps(value) if not isinstance(value, str) else value}" for name, value in data.items()
    ]
    assert load(None, *words) == recipe
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert load(file, recorded=True) == recipe
    assert capsys.readouterr().err == ""
    file.write_text(dump_recipe(recipe))
    assert load(file) == recipe
    assert capsys.readouterr().err == ""


def test_every_earlier_name_is_read():
    for old, new in RENAMED.items():
        default = Recipe().data.setting(new.removeprefix("data."))
        value = list(default) if isinstance(default, tuple) else default
        assert load({"data": {old.removeprefix("data."): value}}) == Recipe()
    assert {name for name in DEFAULTS if name not in FIRST and not name.startswith(("points.", "video."))} == {
        new.removeprefix("data.") for new in RENAMED.values()
    }


@pytest.mark.parametrize("words", [["--data.cache", "true", "--data.loader.cache", "false"],
                                   ["--data.loader.cache=true", "--data.cache=true"]])  # fmt: skip
def test_an_option_by_both_names_is_refused(words):
    with pytest.raises(
        ConfigError, match=r"data\.cache and data\.loader\.cache are the same setting; keep data\.loader"
    ):
        load(None, *words)
    with pytest.raises(
        ConfigError, match=r"data\.cache and data\.loader\.cache are the same setting; keep data\.loader"
    ):
        rename_options(words)


def test_an_option_goes_before_the_file_by_whatever_names():
    assert load({"data": {"loader": {"num_workers": 3}}}, "--data.num_workers", "1").data.loader.num_workers == 1
    assert load({"data": {"num_workers": 3}}, "--data.loader.num_workers", "1").data.loader.num_workers == 1


def test_options_of_verbs(capsys):
    assert rename_options(["r", "--data.on_unreadable", "skip", "--data.label_column=x", "--json"]) == [
        "r", "--data.errors.on_unreadable", "skip", "--data.table.label_column=x", "--json",
    ]  # fmt: skip
    assert capsys.readouterr().err.splitlines() == [
        "warning: data.on_unreadable is now data.errors.on_unreadable; data.label_column is now data.table.label_column"
    ]
    parser = VerbParser("predict", "Predict.")
    parser.add_unfit_files()
    assert parser.parse_args(["--data.on_unreadable", "skip"]).on_unreadable == "skip"
    assert "data.on_unreadable is now data.errors.on_unreadable" in capsys.readouterr().err
