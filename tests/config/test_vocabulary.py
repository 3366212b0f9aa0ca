"""Suggestions for unknown settings: names of other libraries, names that mean something else, misspellings."""

import pytest

from vitrail import create_model
from vitrail.cli.main import main
from vitrail.config import vocabulary
from vitrail.config.vocabulary import suggest
from vitrail.errors import ConfigError
from vitrail.models.layer_settings import LayerSettings
from vitrail.models.registry import list_families


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--lr", "did you mean '--trainer.learning_rate'?"),
        ("--trainer.lr", "did you mean '--trainer.learning_rate'?"),
        ("--model.lr", "did you mean '--trainer.learning_rate'?"),
        ("--epochs", "did you mean '--trainer.max_epochs'?"),
        ("--seed", "did you mean '--data.leaves.seed' or '--data.points.seed' or '--run.seed'?"),
        ("--model.heads", "did you mean '--model.num_heads'?"),
        ("--model.patch", "did you mean '--model.patch_size'?"),
        ("--model.classes", "did you mean '--model.num_classes'?"),
        ("--trainer.max_epoch", "did you mean '--trainer.max_epochs'?"),
        ("--trainr.max_epochs", "did you mean '--trainer.max_epochs'?"),
        ("--data.batch-size", "did you mean '--data.batch_size'?"),
        ("--trainer.max_steps", "training is counted in passes over the images: --trainer.max_epochs"),
        ("--model.dropout", "did you mean '--model.drop_rate'?"),
        ("--model.attn_drop", "did you mean '--model.attn_drop_rate'?"),
        ("--resum", "did you mean '--resume'?"),
        ("--data.workers", "did you mean '--data.loader.num_workers'?"),
        ("--data.loader.workers", "did you mean '--data.loader.num_workers'?"),
        ("--data.loader.val_fraction", "did you mean '--data.splitting.val_fraction'?"),
        ("--data.val_fracton", "did you mean '--data.splitting.val_fraction'?"),
        ("--data.band_name", "did you mean '--data.bands.names'?"),
        ("--data.classes.class_names", "did you mean '--data.classes.names'?"),
        ("--spectral_path", "did you mean '--data.spectral.path'?"),
        ("--data.values.rnge", "did you mean '--data.values.range'?"),
        ("--data.augmentation_settings", "did you mean '--data.augmentation'?"),
    ],
)
@pytest.mark.parametrize("form", ["{} 3", "{}=3"])
def test_options_of_train(capsys, option, expected, form):
    assert main(["train", *form.format(option).split(), "--print_config"]) == 2
    told = capsys.readouterr().err
    assert f"unknown setting '{option}'; {expected}" in told
    assert ("did you mean" in told) == ("did you mean" in expected)


def test_nothing_is_suggested_where_nothing_is_near(capsys):
    assert main(["train", "--model.zzz", "3"]) == 2
    assert "unknown setting '--model.zzz' (`" in capsys.readouterr().err


@pytest.mark.parametrize("family", [n for n, f in list_families().items() if issubclass(f.config, LayerSettings)])
@pytest.mark.parametrize(
    "name", ["drop_rate", "dropout", "attn_drop_rate", "heads", "classes", "channels", "drop_path"]
)
@pytest.mark.fast_cases("dropout-maxvit", "heads-maxvit", "heads-swin3d")
def test_settings_of_a_model(family, name):
    known = list_families()[family].settings
    if name in known:
        pytest.skip(f"{family} has it")
    with pytest.raises(ConfigError) as caught:
        create_model(family, **{name: 1})
    assert "did you mean" in str(caught.value)


def test_a_setting_that_becomes_known_is_suggested_itself():
    known = ["drop_rate", "drop_path_rate", "embed_dim"]
    assert suggest("dropout", known) == "; did you mean 'drop_rate'?"
    assert suggest("--model.dropout", [f"--model.{name}" for name in known]) == "; did you mean '--model.drop_rate'?"


def test_every_entry_names_a_setting():
    from vitrail.config.data import DataConfig
    from vitrail.config.data_groups import GROUPS, LoaderConfig
    from vitrail.config.schema import ModelConfig, RunConfig, TaskConfig, TrainerConfig

    parts = (DataConfig, LoaderConfig, ModelConfig, RunConfig, TaskConfig, TrainerConfig)
    known = {name for kind in parts for name in kind.__dataclass_fields__ if name not in GROUPS}
    known |= {name for family in list_families().values() for name in family.settings} | {"drop_rate", "attn_drop_rate"}
    for name, others in vocabulary._SAME.items():
        assert set(others) <= known, name
    assert {other for other, _ in vocabulary._DIFFERENT.values()} <= known
    assert not {name for name in vocabulary._SAME if name in known} - {"depth", "depths", "patch"}
