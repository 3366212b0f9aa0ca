"""Recipes: what is written is read back, and nothing unknown, repeated or mistyped gets through."""

import dataclasses
import functools
import operator

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vitrail.cli.recipes import load_run_recipe
from vitrail.config import Recipe, dump_recipe, load_recipe, read_yaml
from vitrail.config.data import DataConfig
from vitrail.config.renamed import RENAMED
from vitrail.config.schema import RunConfig, TaskConfig, TrainerConfig
from vitrail.config.text import parse_yaml
from vitrail.errors import ConfigError
from vitrail.models.registry import find_family


def settings_of(name):
    return find_family(name)[0].config


def load(base=None, *overrides):
    return load_recipe(base, overrides, settings_of=settings_of)


# Without ~, which stands for the home folder in paths.
_text = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="~"), min_size=1, max_size=12)
_small = st.floats(0, 0.4, allow_nan=False)
RECIPES = st.fixed_dictionaries(
    {},
    optional={
        "data": st.fixed_dictionaries(
            {},
            optional={
                "source": st.sampled_from(["digits", "folder"]),
                "path": st.none() | _text,
                "img_size": st.none() | st.integers(1, 999) | st.lists(st.integers(1, 99), min_size=2, max_size=2),
                "splitting": st.fixed_dictionaries({"val_fraction": _small, "test_fraction": _small}),
                "augment": st.sampled_from(["none", "light", "standard", "strong", "leaf"]),
                "augmentation": st.dictionaries(st.sampled_from(["mixup", "erase", "rotate"]), st.floats(0, 1)),
                "batch_size": st.integers(1, 4096),
            },
        ),
        "model": st.fixed_dictionaries(
            {"name": st.sampled_from(["vit", "vit_tiny_patch16_224"])},
            optional={
                "embed_dim": st.integers(1, 999),
                "mlp_ratio": st.floats(0.1, 9, allow_nan=False),
                "class_token": st.booleans(),
                "weights": st.none() | _text,
                "token_learner": st.none()
                | st.fixed_dictionaries({"num_tokens": st.integers(1, 99)}, optional={"fuse": st.booleans()}),
            },
        ),
        "task": st.fixed_dictionaries({}, optional={"label_smoothing": _small}),
        "trainer": st.fixed_dictionaries(
            {},
            optional={
                "max_epochs": st.integers(1, 9999),
                "learning_rate": st.floats(1e-5, 1, allow_nan=False),
                "precision": st.sampled_from(["32-true", "bf16-mixed"]),
                "accelerator": st.sampled_from(["auto", "cpu"]),
            },
        ),
        "run": st.fixed_dictionaries({}, optional={"dir": st.none() | _text, "seed": st.integers(0, 2**32 - 1)}),
    },
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(RECIPES)
def test_what_is_written_is_read_back(content):
    recipe = load(content)
    again = load(yaml.safe_load(dump_recipe(recipe)))
    assert again == recipe
    for part, values in content.items():
        for key, value in values.items():
            read = recipe.to_dict()[part][key]
            if isinstance(value, dict):
                assert {k: read[k] for k in value} == value
            else:
                assert read == value


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["data", "task", "trainer", "run", "model"]),
    st.text("abcdefgh_", min_size=3, max_size=12),
)
def test_unknown_keys_are_refused(part, key):
    known = {"data": DataConfig, "task": TaskConfig, "trainer": TrainerConfig, "run": RunConfig}
    names = [f.name for f in dataclasses.fields(known[part])] if part in known else []
    if key in names or f"{part}.{key}" in RENAMED:
        return
    with pytest.raises(ConfigError, match=f"{part}.{key}"):
        load({part: {key: 1}})


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 9999), st.floats(1e-6, 1e-1), st.booleans())
def test_an_option_overrides_the_file(epochs, rate, joined):
    words = [f"--trainer.max_epochs={epochs}"] if joined else ["--trainer.max_epochs", str(epochs)]
    recipe = load(
        {"trainer": {"max_epochs": 1, "min_learning_rate": 0.0}},
        *words,
        "--trainer.learning_rate",
        repr(rate),
    )
    assert recipe.trainer.max_epochs == epochs
    assert recipe.trainer.learning_rate == rate


@pytest.mark.slow_cases("text17-is not YAML")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "data:\n  source: digits\n  source: folder\n",
            r"line 3: 'source' is given again \(first in line 2\)",
        ),
        ("data: {}\nmodel: {}\ndata: {}\n", "line 3: 'data' is given again"),
        ("data: [1, 2\n", "is not YAML"),
        ("- a\n- b\n", "must hold a mapping"),
        ("data: 3\n", "data must hold settings"),
        ("dta: {}\n", "did you mean 'data'"),
        ("data:\n  batchsize: 3\n", "did you mean 'data.batch_size'"),
        ("model:\n  name: vit\n  embeddim: 3\n", "did you mean 'embed_dim'"),
        ("model:\n  name: vit\n  token_learner: {numtokens: 3}\n", "did you mean 'num_tokens'"),
        ("model:\n  name: vitt\n", "did you mean 'vit'"),
        ("model:\n  name: 3\n", "must be a name"),
        ("trainer:\n  max_epochs: many\n", "trainer.max_epochs must be of type int, got 'many'"),
        ("trainer:\n  precision: 8bit\n", "must be one of 'auto', '32-true'"),
        ("trainer:\n  learning_rate: -1\n", "above 0"),
        ("data:\n  splitting: {val_fraction: 0.6, test_fraction: 0.6}\n", "below 1"),
        ("? [1, 2]\n: 3\n", "plain word"),
        ("run: {seed: !!int foo}\n", "is not YAML"),
        ("[" * 3000, "is not YAML"),
        ("model: {name: vit, token_learner: 3}\n", "token_learner"),
        ("data: {path: 7}\n", "data.path must be one of str, null, got 7"),
        ("data: {loader: {workers: 7}}\n", "data.loader.workers; did you mean 'data.loader.num_workers'"),
        ("data: {bandnames: [a]}\n", "data.bandnames; did you mean 'data.bands.names'"),
        ("data: {values: 7}\n", "data.values must hold settings \\(key: value\\), got 7"),
        ("data: {values: 7, range: [0, 1]}\n", r"data.values must hold settings \(key: value\), got 7"),
        (
            "data: {range: [0, 1], values: {range: [0, 2]}}\n",
            "keep data.values.range",
        ),
    ],
)
def test_wrong_files_are_refused(tmp_path, text, message):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.batch_siz", "3"], "did you mean '--data.batch_size'"),
        (["--model.embed_dims", "3"], "did you mean '--model.embed_dim'"),
        (["--model.name", "vit_tiny_patch16_22"], "did you mean 'vit_tiny_patch16_224'"),
        (["--data.batch_size", "3", "--data.batch_size=4"], "given twice"),
        (["--data.batch_size", "x"], "must be one of int, 'auto', got x"),
        (["--data.batch_size"], "expected one argument"),
    ],
)
def test_wrong_options_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        load(None, *words)


def test_nested_settings_by_option():
    recipe = load(None, "--model.token_learner.num_tokens", "3", "--model.token_learner.fuse", "true")
    assert recipe.model.settings["token_learner"].num_tokens == 3
    assert recipe.model.settings["token_learner"].fuse


@pytest.mark.fast_cases("1e3", "2024-13-45", "[a", "null")
@pytest.mark.parametrize(
    "name",
    [
        "1e3",
        "1E5",
        ".5e3",
        "1_0e2",
        "007",
        "0x1f",
        "yes",
        "a: b",
        "- x",
        "\x85",
        "#",
        "1:30",
        "null",
        "2024-13-45",
        "[a",
    ],
)
def test_words_that_look_like_something_else_stay_words(tmp_path, name):
    recipe = Recipe(run=RunConfig(dir=name))
    file = tmp_path / "r.yaml"
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    assert read_yaml(file)["run"]["dir"] == name
    assert load(file) == recipe


STRANGE = (
    ["010", "0o10", "0x1f", "1_000", "1:30", "1e3", ".5", "5.", "-.inf", ".nan", "no", "on", "Y", "off", "true", "null",
     "Null", "~", "", "2024-01-01", "2024-01-01 10:00:00", "=", "<<", "photos #2", "a: b", "- a", "[x]", "{x}", "'q'",
     "*a", "&a", "!x", "|", "%", "@", " x ", "x\n", "\udcff", "\x00", "--x"]
)  # fmt: skip
WORDS = st.text(max_size=12) | st.sampled_from(STRANGE)


@settings(max_examples=2, deadline=None)
@example("~", STRANGE)
@given(WORDS, st.lists(WORDS.filter(bool), min_size=1, max_size=4, unique=True))
def test_any_text_survives_being_written(text, names):
    """In settings that are any text, and in lists of them; read by YAML 1.2 and by readers of YAML 1.1 too."""
    classes = {"names": tuple(filter(None, names))}
    recipe = Recipe(data=DataConfig(source="table", table={"label_column": text}, classes=classes))
    written = dump_recipe(recipe)
    assert load(parse_yaml(written)) == recipe
    assert load(yaml.safe_load(written)) == recipe


@settings(max_examples=12, deadline=None)
@given(WORDS, st.booleans())
def test_the_command_line_takes_texts_as_they_are_written(word, joined):
    if word == "null" or (word.startswith("--") and not joined):
        return
    words = [f"--data.table.label_column={word}"] if joined else ["--data.table.label_column", word]
    assert load(None, *words).data.table.label_column == word
    file = {"data": {"table": {"label_column": "another"}}}
    assert load(file, *words).data.table.label_column == word
    assert load(file, "--data.table.label_column", "null").data.table.label_column is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("064", 64), ("0o10", 8), ("0x10", 16), ("+5", 5), ("1e1", 10.0), (".5", 0.5), ("5.", 5.0),
        ("1_0", None), ("1:30", None), ("1,5", None), ("0b11", None), ("on", None), ("2024-01-01", None), ("3 x", None),
    ],
)  # fmt: skip
@pytest.mark.fast_cases("064-64", ".5-0.5", "1,5-None", "2024-01-01-None")
def test_one_reading_of_numbers(tmp_path, text, value):
    """In a file, in quotes, and on the command line: a number by YAML 1.2, or an error that shows what was written."""
    file = tmp_path / "r.yaml"
    for content, words in (
        (f"trainer: {{weight_decay: {text}}}\n".replace("1,5", "'1,5'"), []),
        (f"trainer: {{weight_decay: '{text}'}}\n", []),
        ("{}\n", ["--trainer.weight_decay", text]),
        ("{}\n", [f"--trainer.weight_decay={text}"]),
    ):
        file.write_text(content)
        if value is None:
            with pytest.raises(ConfigError, match=f"trainer.weight_decay must be of type float, got {text!r}"):
                load(file, *words)
        else:
            assert load(file, *words).trainer.weight_decay == value


def test_words_of_yaml_1_1_are_words(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(
        "data: {path: no, table: {image_column: 2024-01-01}, arrays: {cube: on, labels: 1:30}, "
        "classes: {names: [yes, y, off]}}\n"
    )
    read = load(file).data
    assert (read.path, read.table.image_column) == ("no", "2024-01-01")
    assert (read.arrays.cube, read.arrays.labels) == ("on", "1:30")
    assert read.classes.names == ("yes", "y", "off")
    assert load(None, "--data.classes.names=[no, 010, true]").data.classes.names == ("no", "010", "true")
    for word, message in (("yes", "must be of type bool, got 'yes'; write true or false"), ("3 #2", "got '3 #2'")):
        with pytest.raises(ConfigError, match=message):
            load(None, "--data.loader.cache", word)
    with pytest.raises(ConfigError, match=r"data.path must be one of str, null, got 10; .* written in quotes"):
        load({"data": {"path": 10}})
    with pytest.raises(ConfigError, match=r"trainer.max_epochs must be of type int, got null"):
        load({"trainer": {"max_epochs": None}})
    with pytest.raises(ConfigError, match=r"unexpected text '#3' after \[1, 2\]"):
        load(None, "--data.img_size", "[1, 2] #3")


def test_keys_are_names_as_they_are_written(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("no: 1\n010: 2\n~: 3\ntrue: 4\n1e3: 5\n2024-01-01: 6\n")
    assert list(read_yaml(file)) == ["no", "010", "~", "true", "1e3", "2024-01-01"]


def test_mappings_merge_key_by_key():
    base = {"data": {"augmentation": {"mixup": 0.2, "erase": 0.1}}}
    for words, expected in (
        (["--data.augmentation.erase", "0.3"], {"mixup": 0.2, "erase": 0.3}),
        (["--data.augmentation", "{cutmix: 1}"], {"mixup": 0.2, "erase": 0.1, "cutmix": 1}),
        (["--data.augmentation", "{}"], {}),
        (["--data.augmentation.padding=border"], {"mixup": 0.2, "erase": 0.1, "padding": "border"}),
    ):
        assert load(base, *words).data.augmentation == expected
    with pytest.raises(ConfigError, match=r"augmentation.erase is given twice, by .* and by .*keep one"):
        load(base, "--data.augmentation.erase", "0.3", "--data.augmentation", "{erase: 0.2}")
    learner = {"model": {"name": "vit", "token_learner": {"num_tokens": 4, "layer": 2}}}
    kept = load(learner, "--model.token_learner.num_tokens", "8").model.settings["token_learner"]
    assert (kept.num_tokens, kept.layer) == (8, 2)
    assert load(learner, "--model.token_learner", "null").model.settings["token_learner"] is None


@pytest.mark.fast_cases("data-spectral.path", "model-weights", "run-dir")
@pytest.mark.parametrize(
    ("part", "name"),
    [("run", "dir"), ("data", "path"), ("data", "spectral.path"), ("data", "values.statistics"),
     ("data", "arrays.labels"), ("model", "weights")],
)  # fmt: skip
def test_home_is_the_home_folder(tmp_path, monkeypatch, part, name):
    monkeypatch.setenv("HOME", str(tmp_path))

    def given(value):
        group, _, leaf = name.partition(".")
        return {part: {group: {leaf: value} if leaf else value}}

    def read(recipe):
        return functools.reduce(operator.getitem, name.split("."), recipe.to_dict()[part])

    for recipe in (
        load(given("~/x")),
        load(None, f"--{part}.{name}=~/x"),
        load(None, f"--{part}.{name}", "~/x"),
    ):
        assert read(recipe) == str(tmp_path / "x")
        assert load(parse_yaml(dump_recipe(recipe))) == recipe
    with pytest.raises(
        ConfigError, match=f"{part}.{name} '~nobody_here/x' begins with '~nobody_here'.*write ./~nobody"
    ):
        load(given("~nobody_here/x"))
    assert read(load(given("./~x"))) == "./~x"


def test_merge_keys(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("data: {a: &m {x: 1, y: 2}, b: {<<: *m, y: 3}}\n")
    assert read_yaml(file)["data"]["b"] == {"x": 1, "y": 3}


def test_yaml_numbers(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("trainer: {learning_rate: 1e-4, weight_decay: 5E-2}\n")
    assert read_yaml(file)["trainer"] == {"learning_rate": 1e-4, "weight_decay": 5e-2}
    assert load(file).trainer.learning_rate == 1e-4


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.yaml")
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00data")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(binary)


def test_defaults_are_a_recipe():
    assert load() == Recipe()
    assert Recipe().run_dir == "runs/vit_tiny_patch16_224"


def test_settings_of_a_task_are_its_own():
    focal = TaskConfig(loss="focal", focal_gamma=1.0, label_smoothing=0.0, class_weights="balanced")
    assert focal.temperature is None
    assert focal.watch_every is None
    foreign = [
        ("classification", {"temperature": 0.1}),
        ("classification", {"watch_every": 2}),
        ("classification", {"teacher": "runs/x"}),
        ("simclr", {"alpha": 0.5}),
        ("simclr", {"mask_ratio": 0.5}),
        ("mae", {"mask_size": 8}),
        ("simmim", {"loss": "focal"}),
    ]
    for name, wrong in foreign:
        with pytest.raises(ConfigError, match=f"task.{next(iter(wrong))} belongs to .*, and task.name is {name}"):
            TaskConfig(name=name, **wrong)
    assert TaskConfig(name="mae", watch_every=0).watch_every == 0
    # What has been settled is read back as it is, whatever the task.
    for name in ("classification", "simclr", "mae", "simmim"):
        recipe = Recipe(task=TaskConfig(name=name))
        assert load(recipe.to_dict()) == recipe


def test_what_the_command_line_gave_is_not_the_file_s_fault(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("model: {name: vit, depth: 2}\ntrainer: {max_epochs: 3}\n")
    for words, message in (
        (["--trainer.learning_rate=-1"], "trainer.learning_rate must be above 0 and finite, got -1"),
        (["--data.batch_size", "many"], "data.batch_size must be one of"),
        (["--run.dir", ""], "run.dir must be the name of a folder, or left out, got ''"),
    ):
        with pytest.raises(ConfigError, match=f"^{message}"):
            load(file, *words)
    file.write_text("model: {name: vit, depth: 2}\ntrainer: {max_epochs: 0}\n")
    with pytest.raises(ConfigError, match=r"r.yaml: trainer.max_epochs must be at least 1, got 0"):
        load(file, "--trainer.learning_rate", "1")
    with pytest.raises(ConfigError, match=r"r.yaml: unknown setting model.depth of swin, which --model.name asks for"):
        load(file, "--model.name", "swin")


def test_a_file_that_is_read_again_gives_a_recipe_of_its_own(tmp_path, monkeypatch):
    """Values are kept from one reading to the next: changes of a recipe, of the file and of the home folder show."""
    file = tmp_path / "recipe.yaml"
    text = "model:\n  name: swin\n  depths: [1, 1]\n  num_heads: [1, 2]\ndata:\n  source: folder\n  path: ~/images\n"
    file.write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path / "one"))
    first = load_run_recipe(file)
    first.model.settings["depths"] = (9, 9)
    again = load_run_recipe(file)
    assert again.model.settings["depths"] == (1, 1)
    assert again.data.path == str(tmp_path / "one" / "images")
    monkeypatch.setenv("HOME", str(tmp_path / "two"))
    assert load_run_recipe(file).data.path == str(tmp_path / "two" / "images")
    file.write_text(text.replace("[1, 1]", "[1, 2]"))
    assert load_run_recipe(file).model.settings["depths"] == (1, 2)
    assert load_run_recipe(file, ["--model.depths", "[2, 2]"]).model.settings["depths"] == (2, 2)
