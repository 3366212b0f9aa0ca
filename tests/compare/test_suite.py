"""A suite file says what it means, or says what is wrong with it."""

import pytest
import yaml

from tests.images import make_folder, save_image
from vitrail.cli.main import main
from vitrail.compare import load_suite, plan
from vitrail.compare.results import comparisons
from vitrail.config.changes import split_words
from vitrail.errors import ConfigError


def test_every_variant_at_every_seed(place):
    suite = load_suite(place(seeds=[3, 5], changes={"trainer.max_epochs": 7, "data.augmentation.mixup": 0.2}))
    runs = plan(suite)
    assert [(r.variant, r.seed) for r in runs] == [(v, s) for v in ("plain", "wide", "slow") for s in (3, 5)]
    assert {r.recipe.trainer.max_epochs for r in runs} == {7}
    assert {tuple(r.recipe.data.augmentation.items()) for r in runs} == {(("mixup", 0.2),)}
    assert [r.recipe.model.settings["embed_dim"] for r in runs] == [16, 16, 32, 32, 16, 16]
    assert [r.recipe.run.seed for r in runs] == [3, 5] * 3
    assert all(r.recipe.run.dir == f"runs/compare/{r.identity}" for r in runs)


def test_folds(place):
    runs = plan(load_suite(place(folds=3, seeds=1, variants={"plain": {}})))
    assert [(r.fold, r.recipe.data.splitting.fold, r.recipe.data.splitting.num_folds) for r in runs] == [
        (i, i, 3) for i in range(3)
    ]
    assert len({r.identity for r in runs}) == 3


def test_what_does_not_change_a_result_does_not_change_the_identity(place):
    file = place()
    first = [r.identity for r in plan(load_suite(file))]
    elsewhere = load_suite(
        file, None, {"data.loader.num_workers": 3, "run.tensorboard": False}, runs_dir="other", out="x"
    )
    assert [r.identity for r in plan(elsewhere)] == first
    for change in ({"trainer.max_epochs": 5}, {"data.leaves.seed": 1}, {"task.label_smoothing": 0.0}):
        assert not set(first) & {r.identity for r in plan(load_suite(file, None, change))}


def test_two_suites_share_equal_runs(place):
    mine = {r.identity for r in plan(load_suite(place()))}
    # The same recipe, said in another way.
    other = place("other.yaml", changes={"model.embed_dim": 32}, variants={"a": {}, "b": {"model.depth": 3}})
    assert len(mine & {r.identity for r in plan(load_suite(other))}) == 2


def test_weights_count_by_their_content(place, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"one")
    file = place(variants={"from": {"model.weights": "w.safetensors"}}, seeds=1)
    before = plan(load_suite(file))[0].identity
    (tmp_path / "v.safetensors").write_bytes(b"one")
    assert plan(load_suite(file, None, {"model.weights": "v.safetensors"}))[0].identity == before
    (tmp_path / "w.safetensors").write_bytes(b"two")
    assert plan(load_suite(file))[0].identity != before
    (tmp_path / "w.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"variant from: model\.weights: no file"):
        plan(load_suite(file))


def test_files_count_by_their_content(place, tmp_path):
    """Statistics, tables, arrays and folders: another content is another run, another name of the same is not."""
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("{}")
    (tmp_path / "table.csv").write_text("path,label\n0.png,a\n")
    images = make_folder(tmp_path / "images", per_class=2)
    file = place(seeds=1)
    for setting, path, other in (
        ("data.values.statistics", tmp_path / "a.json", tmp_path / "b.json"),
        ("data.arrays.labels", tmp_path / "a.json", tmp_path / "b.json"),
        ("data.path", tmp_path / "table.csv", None),
        ("data.path", images, tmp_path / "renamed"),
        ("data.spectral.path", images, tmp_path / "renamed"),
    ):
        changes = {setting: str(path)}
        before = [run.identity for run in plan(load_suite(file, None, changes))]
        assert [run.identity for run in plan(load_suite(file, None, changes))] == before
        if other is not None:
            if not other.exists():
                path.rename(other)
            assert [run.identity for run in plan(load_suite(file, None, {setting: str(other)}))] == before
            if not path.exists():
                other.rename(path)
        if path.is_file():
            content = path.read_text()
            path.write_text(content + " ")
        else:
            one = next((path / "train" / "dark").iterdir())
            content = one.read_bytes()
            save_image(one, (9, 9), seed=12)
        assert not set(before) & {run.identity for run in plan(load_suite(file, None, changes))}
        path.write_text(content) if path.is_file() else one.write_bytes(content)


def _pretrained(place, tmp_path, **entry):
    pre = {"data": {"source": "digits"}, "model": {"name": "vit", "img_size": 8, "patch_size": 4, "embed_dim": 16,
           "depth": 2, "num_heads": 2}, "task": {"name": "mae", "decoder_dim": 32}}  # fmt: skip
    (tmp_path / "pre.yaml").write_text(yaml.safe_dump(pre))
    return place(
        pretrained={"mae": {"recipe": "pre.yaml", "changes": {"trainer.max_epochs": 3}, **entry}},
        variants={"with": {"model.weights": "pretrained:mae"}, "without": {}},
    )


def test_shared_pretraining_comes_first_and_once(place, tmp_path):
    file = _pretrained(place, tmp_path, shared=True)
    first, *rest = plan(load_suite(file))
    assert (first.variant, first.is_pretraining, first.recipe.trainer.max_epochs) == ("mae", True, 3)
    assert [r.needs for r in rest] == [first.identity, first.identity, None, None]
    assert rest[0].recipe.model.weights == first.recipe.run.dir
    # The folder moves, the identity stays; another pre-training is another run.
    moved = plan(load_suite(file, runs_dir="elsewhere"))
    assert [r.identity for r in moved] == [first.identity, *(r.identity for r in rest)]
    assert moved[1].recipe.model.weights == f"elsewhere/{first.identity}"
    content = yaml.safe_load(file.read_text())
    content["pretrained"]["mae"]["changes"]["trainer.max_epochs"] = 2
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    changed = plan(load_suite(file))
    assert changed[1].identity != rest[0].identity
    assert changed[3].identity == rest[2].identity
    # Images are the same for both: where they lie is said once. Nobody pre-trains on the test images of a fold.
    assert (
        plan(load_suite(file, None, {"data.splitting.test_fraction": 0.4}))[0].recipe.data.splitting.test_fraction
        == 0.4
    )
    file.write_text(yaml.safe_dump({**content, "folds": 2}, sort_keys=False))
    folds = plan(load_suite(file, None, {"data.split": "stratified"}))
    assert [r.recipe.data.splitting.fold for r in folds if r.is_pretraining] == [0, 1]


def test_each_seed_has_its_own_pretraining(place, tmp_path, capsys):
    file = _pretrained(place, tmp_path)
    runs = plan(load_suite(file))
    before = [run for run in runs if run.is_pretraining]
    assert [run.seed for run in before] == [run.recipe.run.seed for run in before] == [0, 1]
    needing = [run for run in runs if run.variant == "with"]
    assert [run.needs for run in needing] == [run.identity for run in before]
    assert [run.seed for run in needing] == [0, 1]
    assert main(["compare", str(file), "--plan"]) == 0
    assert "Each seed has its own pre-training (mae)" in capsys.readouterr().out
    file = _pretrained(place, tmp_path, shared=True)
    assert main(["compare", str(file), "--plan"]) == 0
    assert "All seeds share one pre-training (mae): intervals cover" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"pretrained.mae.shared must be true"):
        load_suite(_pretrained(place, tmp_path, shared="yes"))


@pytest.mark.parametrize("margin", [0, 1, -0.1, "wide", True])
@pytest.mark.fast_cases("0", "True")
def test_a_margin_is_a_share(place, margin):
    with pytest.raises(ConfigError, match="margin must be above 0 and below 1"):
        load_suite(place(margin=margin))
    assert load_suite(place(margin=0.02)).margin == 0.02
    assert load_suite(place(metric="nll", margin=2)).margin == 2
    assert load_suite(place(margin=0.02), margin=0.01).margin == 0.01


def test_sizes(place):
    file = place(sizes={"quick": {"seeds": 1, "changes": {"trainer.max_epochs": 1}},
                        "full": {"variants": {"deep": {"model.depth": 8}}}})  # fmt: skip
    with pytest.raises(ConfigError, match="quick, full; choose one with --size"):
        load_suite(file)
    quick, full = load_suite(file, "quick"), load_suite(file, "full")
    assert (quick.name, len(quick.variants), quick.seeds) == ("suite-quick", 3, (0,))
    assert [v.name for v in full.variants] == ["deep"]
    assert str(full.dir) == "runs/suites/suite-full"
    with pytest.raises(ConfigError, match="unknown size 'quik'; did you mean 'quick'"):
        load_suite(file, "quik")


def test_the_command_line_has_the_last_word_and_equal_variants_are_refused(place):
    file = place()
    assert {r.recipe.model.settings["depth"] for r in plan(load_suite(file, None, {"model.depth": 1}))} == {1}
    with pytest.raises(ConfigError, match="plain and wide are the same recipe"):
        plan(load_suite(file, None, {"model.embed_dim": 32}))


@pytest.mark.parametrize(
    "same",
    [
        {"model.mlp_ratio": 4}, {"model.drop_path_rate": 0}, {"data.augmentation": {"mixup": 0}},
        {"data.augmentation.rotate": 0.0}, {"data.loader.num_workers": 1}, {"data.loader.cache": True},
        {"task.focal_gamma": 2},
    ],
)  # fmt: skip
@pytest.mark.fast_cases("same2", "same3", "same5")
def test_variants_that_differ_in_nothing_are_refused(place, same):
    """A default that is given, a whole number for a fraction, and what has no effect on a result."""
    with pytest.raises(ConfigError, match="a and b are the same recipe"):
        plan(load_suite(place(variants={"a": {}, "b": same}, seeds=1)))
    differs = {"a": {}, "b": {"model.mlp_ratio": 3}, "c": {"data.augmentation.mixup": 0.1}}
    assert len({run.identity for run in plan(load_suite(place(variants=differs, seeds=1)))}) == 3


def test_variants_that_differ_in_their_evaluation_alone_share_a_run(place):
    runs = plan(load_suite(place(variants={"one": {}, "views": {"evaluate.tta": "flips"}}, seeds=1)))
    assert runs[0].identity == runs[1].identity
    assert runs[0].task != runs[1].task


def test_each_variant_is_tested_in_each_way(place):
    tests = {"upright": {}, "mirrored": {"evaluate.tta": "flips"}}
    suite = load_suite(place(variants={"a": {}, "b": {"model.depth": 1}}, tests=tests, seeds=1, against="b"))
    assert [(v.name, v.subject, v.test, v.tta) for v in suite.variants] == [
        ("a, upright", "a", "upright", "none"), ("a, mirrored", "a", "mirrored", "flips"),
        ("b, upright", "b", "upright", "none"), ("b, mirrored", "b", "mirrored", "flips"),
    ]  # fmt: skip
    assert len({run.identity for run in plan(suite)}) == 2
    names = [variant.name for variant in suite.variants]
    expected = [("a, upright", "a, mirrored"), ("a, upright", "b, upright"), ("a, mirrored", "b, mirrored"),
                ("b, upright", "b, mirrored")]  # fmt: skip
    assert comparisons(suite, names) == expected
    assert comparisons(suite, names[1:]) == expected[2:]


def test_a_test_may_train_runs_of_its_own(place):
    tests = {"plain": {}, "mirrored": {"evaluate.tta": "flips"},
             "both": {"evaluate.tta": "flips", "changes": {"data.augment": "none"}}}  # fmt: skip
    variants = {"a": {"data.augment": "light"}, "b": {"data.augment": "light", "model.depth": 1}}
    suite = load_suite(place(variants=variants, tests=tests, seeds=1))
    runs = {run.variant: run for run in plan(suite)}
    assert {name: (run.tta, run.recipe.data.augment, run.recipe.model.settings["depth"]) for name, run in runs.items()
            if run.variant.startswith("b")} == {
        "b, plain": ("none", "light", 1), "b, mirrored": ("flips", "light", 1), "b, both": ("flips", "none", 1)
    }  # fmt: skip
    assert runs["a, plain"].identity == runs["a, mirrored"].identity != runs["a, both"].identity
    assert suite.variants[2].changes == {"data.augment": "none", "evaluate.tta": "flips"}
    assert ("a, mirrored", "a, both") in comparisons(suite, list(runs))


BASE = "vit, embed_dim: 32, depth: 2, num_heads: 2, img_size: 8, patch_size: 4"


def _recipes(place, tmp_path, text, *words):
    """The variants' recipes of a suite that is written as text, with settings of the command line."""
    (tmp_path / "words.yaml").write_text(
        "data: {source: digits, augment_settings: {mixup: 0.2}}\nmodel: {name: " + BASE + "}\n"
    )
    file = tmp_path / "written.yaml"
    file.write_text("recipe: words.yaml\nseeds: 1\n" + text)
    suite = load_suite(file, None, split_words(words)[0])
    return {variant.name: variant.recipe for variant in suite.variants}, suite


def test_names_are_those_that_are_written(place, tmp_path):
    names = ["no", "on", "010", "2024-01-01", "1e3"]
    text = "variants: {" + ", ".join(f"{name}: {{model.depth: {i}}}" for i, name in enumerate(names, 3)) + "}\n"
    recipes, suite = _recipes(place, tmp_path, text + "against: no\n")
    assert list(recipes) == names
    assert suite.against == "no"
    with pytest.raises(ConfigError, match="against must be a text, got 10; write it in quotes"):
        _recipes(place, tmp_path, text + "against: 010\n")
    assert _recipes(place, tmp_path, text + "against: '010'\n")[1].against == "010"


@pytest.mark.parametrize("word", ["photos #2", "a: b", "010", "no", "2024-01-01", "[x]", "true", "1:30"])
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.fast_cases("False-photos #2", "True-010")
def test_words_of_the_command_line_are_taken_as_written(place, tmp_path, word, joined):
    words = [f"--data.path={word}"] if joined else ["--data.path", word]
    recipes, _ = _recipes(place, tmp_path, "variants: {a: {}, b: {model.depth: 3}}\n", *words)
    assert {recipe.data.path for recipe in recipes.values()} == {word}


def test_what_the_more_specific_says_holds_and_nothing_is_lost(place, tmp_path):
    other = "{model: {name: vit, embed_dim: 64, num_heads: 2, img_size: 8, patch_size: 4}, model.depth: 3}"
    for changes in ("{}", "{model.depth: 1}", "{model: {name: vit, depth: 7}}", "{model: {name: vit}, model.depth: 1}"):
        recipes, _ = _recipes(place, tmp_path, f"changes: {changes}\nvariants: {{a: {{}}, b: {other}}}\n")
        assert (recipes["b"].model.settings["depth"], recipes["b"].model.settings["embed_dim"]) == (3, 64)
    # What all variants have in common holds for those of another family too.
    shared = "changes: {model.drop_path_rate: 0.2, model.num_heads: 4}\n"
    recipes, _ = _recipes(place, tmp_path, shared + "variants: {a: {}, b: {model: {name: vit, num_heads: 8}}}\n")
    assert [r.model.settings["drop_path_rate"] for r in recipes.values()] == [0.2, 0.2]
    assert [r.model.settings["num_heads"] for r in recipes.values()] == [4, 8]
    # Mappings merge: recipe, changes, variant, command line.
    text = (
        "changes: {data.augmentation: {erase: 0.1}}\n"
        "variants: {a: {}, b: {data.augmentation.rotate: 5}, c: {data.augmentation: {mixup: 0.4}}, "
        "d: {data.augmentation: {}}}\n"
    )
    recipes, _ = _recipes(place, tmp_path, text, "--data.augmentation.blur", "0.5")
    assert {name: dict(recipe.data.augmentation) for name, recipe in recipes.items()} == {
        "a": {"mixup": 0.2, "erase": 0.1, "blur": 0.5},
        "b": {"mixup": 0.2, "erase": 0.1, "rotate": 5, "blur": 0.5},
        "c": {"mixup": 0.4, "erase": 0.1, "blur": 0.5},
        "d": {"blur": 0.5},
    }
    with pytest.raises(ConfigError, match=r"variant b: model\.depth is given twice, by model and by model.depth"):
        _recipes(place, tmp_path, "variants: {a: {}, b: {model: {name: vit, depth: 3}, model.depth: 4}}\n")


def test_home_is_the_home_folder(place, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    _, suite = _recipes(place, tmp_path, "variants: {a: {}}\nruns_dir: ~/runs\ndir: ~/results\n")
    assert (suite.runs_dir, suite.dir) == (tmp_path / "home" / "runs", tmp_path / "home" / "results")
    with pytest.raises(ConfigError, match="runs_dir '~nobody_here/x' begins with '~nobody_here'"):
        _recipes(place, tmp_path, "variants: {a: {}}\nruns_dir: ~nobody_here/x\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"varants": {}}, "unknown key varants; did you mean 'variants'"),
        ({"variants": {}}, "variants are missing"),
        ({"variants": {"x": {"trainer.max_epoch": 3}}}, r"variant x: .*max_epoch; did you mean 'max_epochs'"),
        ({"variants": {"x": {"traner.max_epochs": 3}}}, r"names no setting; did you mean 'trainer'"),
        ({"variants": {"x": {"depth": 3}}}, "settings are named PART.SETTING"),
        ({"variants": {"x": {"model.depth.more": 3}}}, "depth is 2, which has no nested settings"),
        ({"variants": {"x": {"run.seed": 3}}}, "run.seed is set by the suite; use the key 'seeds'"),
        ({"variants": {"x": {"model.weights": "pretrained:no"}}}, "names no entry of pretrained"),
        ({"variants": {"x": {"evaluate.tta": "flip"}}}, "flips"),
        ({"variants": {"x": {"recipe": "gone.yaml"}}}, r"there is no recipe .*gone\.yaml"),
        ({"recipe": None}, "has no recipe"),
        ({"seeds": 0}, "seeds must be a number"),
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"folds": 1}, "folds must be a whole number from 2 on"),
        ({"metric": "acuracy"}, "unknown metric 'acuracy'; did you mean 'accuracy'"),
        ({"against": "plane"}, "against names no variant: 'plane'; did you mean 'plain'"),
        ({"alpha": 2}, "alpha must be"),
        ({"tests": {"z": {"trainer.max_epochs": 3}}}, "unknown key tests.z: trainer.max_epochs|tests.z: unknown key"),
        ({"tests": {"z": {"evaluate.tta": "so"}}}, "did you mean 'so3'"),
        ({"tests": {"z": {"changes": {"run.seed": 1}}}}, "tests.z: run.seed is set by the suite"),
        ({"tests": {"z": {}}, "tta": "flips"}, "tta and tests both set the evaluation"),
        ({"tests": {"z": {}}, "variants": {"x": {"evaluate.tta": "flips"}}}, "evaluate.tta is set by the tests"),
        ({"sizes": {"quick": {"seed": 1}}}, "unknown key sizes.quick.seed; did you mean 'seeds'"),
        ({"pretrained": {"p": {"recipe": "base.yaml"}}}, "its task needs labels"),
    ],
)  # fmt: skip
def test_mistakes_are_named(place, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_suite(place(**changes))


def test_a_repeated_key_is_refused(place):
    file = place()
    file.write_text(file.read_text() + "seeds: 4\n")
    with pytest.raises(ConfigError, match="'seeds' is given again"):
        load_suite(file)
    with pytest.raises(ConfigError, match="cannot read the suite"):
        load_suite(file.with_name("none.yaml"))


def test_a_family_by_name_over_a_recipe_of_another(place):
    with pytest.raises(
        ConfigError, match=r"variant swin: .*depth.* from the base recipe, whose model is vit; give the w"
    ):
        load_suite(place(variants={"plain": {}, "swin": {"model.name": "swin"}}))


def test_a_suite_of_an_earlier_version_plans_the_same_runs(place, tmp_path, capsys):
    """Runs that it has trained are found again; the suite and its base recipe have a warning each."""
    parts = {
        "changes": {"data.loader.sampling": "balanced"},
        "variants": {"a": {}, "b": {"data.augmentation.mixup": 0.2}, "c": {"data.augmentation": {"cutmix": 0.1}}},
        "sizes": {"small": {"changes": {"data.splitting.val_fraction": 0.2}}},
    }
    words = {"data.splitting.test_fraction": 0.3}
    runs = plan(load_suite(place(**parts), None, words))
    assert "is now" not in capsys.readouterr().err
    base = yaml.safe_load((tmp_path / "base.yaml").read_text())
    base["data"]["num_workers"] = 0
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    parts = {
        "changes": {"data.sampling": "balanced"},
        "variants": {
            "a": {},
            "b": {"data.augment_settings.mixup": 0.2},
            "c": {"data.augment_settings": {"cutmix": 0.1}},
        },
        "sizes": {"small": {"changes": {"data.val_fraction": 0.2}}},
    }
    file = place(**parts)
    again = plan(load_suite(file, None, {"data.test_fraction": 0.3}))
    assert [run.identity for run in again] == [run.identity for run in runs]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("warning: data.")
    assert lines[0].endswith("data.test_fraction is now data.splitting.test_fraction")
    for name in ("data.loader.sampling", "data.augmentation.mixup", "data.augmentation", "data.splitting.val_fraction"):
        assert f"is now {name}" in lines[0]
    assert lines[1] == "warning: data.num_workers is now data.loader.num_workers"
    both = {"a": {"data.cache": True, "data.loader.cache": False}}
    with pytest.raises(ConfigError, match=r"variants: a: data\.cache and data\.loader\.cache are the same setting"):
        load_suite(place(variants=both))
    with pytest.raises(ConfigError, match=r"data\.splitting\.fold is set by the suite"):
        load_suite(place(changes={"data.fold": 1}))
