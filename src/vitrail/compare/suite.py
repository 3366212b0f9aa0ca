"""A suite file: a base recipe, named variants, seeds or folds, and the compared metric."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.config.changes import apply_changes
from vitrail.config.checks import expand_home
from vitrail.config.load import load_recipe, read_yaml
from vitrail.config.renamed import print_renamed, rename_changes, rename_content
from vitrail.config.schema import PRETRAINING, ModelConfig, Recipe
from vitrail.data.augment.test_time import tta_views
from vitrail.errors import ConfigError, closest, plural
from vitrail.evaluate.image_scores import ALL_SCORES, PART_SCORES, SCORES
from vitrail.models.image_size import image_size
from vitrail.models.registry import find_family

# Settings that the suite sets for all of its runs, and its keys that decide them.
_OWN = {
    "run.dir": "runs_dir",
    "run.seed": "seeds",
    "run.overwrite": "runs_dir",
    "data.splitting.fold": "folds",
    "data.splitting.num_folds": "folds",
}
_KEYS = {
    "title": "title of the comparison",
    "about": "purpose and expectations",
    "recipe": "recipe of all variants, relative to the suite's file",
    "changes": "dotted settings of all variants that differ from the recipe",
    "variants": "name -> dotted settings",
    "pretrained": "name -> recipe and changes of a pre-training, one for each seed unless shared",
    "seeds": "number of seeds, or a list of seeds",
    "folds": "number of folds of a cross-validation; by default one split",
    "metric": "measure of the comparison",
    "against": "variant that all others are compared with; by default every pair",
    "tta": "test-time augmentation",
    "tests": "name -> evaluate.tta, and changes (dotted settings of training); each variant is tested in each way",
    "alpha": "significance level over all comparisons (family-wise)",
    "margin": "largest difference that counts as equal; by default equality is not tested",
    "speed": "whether to time the variants' models in alternation (true or false)",
    "runs_dir": "folder of the runs, shared by all suites",
    "dir": "folder of this suite's results",
    "sizes": "name -> overrides of these keys",
}
_DEFAULT_RUNS = "runs/compare"
# A reference to an entry of ``pretrained``, as a value of model.weights.
PRETRAINED = "pretrained:"


# Index of a fold and number of folds.
Fold = tuple[int, int]


@dataclass(frozen=True)
class Variant:
    """One variant of a suite.

    Attributes:
        name: Name in tables and figures.
        recipe: Recipe without seed, fold and run folder.
        changes: Settings that differ from the other variants, for people.
        tta: Test-time augmentation.
        subject: Name in the suite's file, which the variants of several tests share.
        test: Name of the test; empty in a suite without tests.
    """

    name: str
    recipe: Recipe
    changes: dict[str, Any]
    tta: str
    subject: str
    test: str = ""


@dataclass(frozen=True)
class Suite:
    """A suite at one of its sizes.

    Attributes:
        name: Name of the file and, of several sizes, the size.
        title: Title.
        about: Purpose.
        file: File of the suite.
        size: Name of the size; empty without sizes.
        recipe: Recipe of the variants that have none of their own.
        variants: Variants in order; of a suite with tests one for each variant of the file and test.
        pretrained: Recipes of pre-trainings by name.
        shared: Names of pre-trainings that all seeds share.
        seeds: Seeds of every variant.
        folds: Number of folds; None for one split.
        metric: Measure of the comparison.
        against: Variant (of each test) that the others are compared with; None for every pair.
        alpha: Family-wise significance level.
        margin: Equivalence margin of the metric (0.01 is one percentage point of accuracy); None without equivalence
            tests.
        speed: Whether to time the variants' models in alternation.
        runs_dir: Folder of the runs.
        dir: Folder of the results.
    """

    name: str
    title: str
    about: str
    file: Path
    size: str
    recipe: str
    variants: tuple[Variant, ...]
    pretrained: Mapping[str, Recipe]
    shared: frozenset[str]
    seeds: tuple[int, ...]
    folds: int | None
    metric: str
    against: str | None
    alpha: float
    margin: float | None
    speed: bool
    runs_dir: Path
    dir: Path

    @property
    def of_parts(self) -> bool:
        """Whether the runs label points."""
        return self.variants[0].recipe.task.name == "parts"


def load_suite(
    file: str | Path,
    size: str | None = None,
    changes: Mapping[str, Any] | None = None,
    *,
    runs_dir: str | None = None,
    out: str | None = None,
    margin: float | None = None,
) -> Suite:
    """Read a suite file.

    Args:
        file: YAML file.
        size: One of the suite's sizes; optional if it has at most one.
        changes: Dotted settings of all variants that override the file; those that select images apply to pre-training
            too.
        runs_dir: Folder of the runs; overrides the file.
        out: Folder of the results; overrides the file.
        margin: Equivalence margin; overrides the file.

    Raises:
        ConfigError: A key or setting is unknown, repeated or has a wrong type; the message names the variant.
    """
    file = Path(file)
    content, notes = _rename(read_yaml(file, "suite"), f"{file}: ")
    extra, notes_of_options = rename_changes(changes or {})
    print_renamed([*notes, *notes_of_options])
    _check_keys(content, _KEYS, f"{file}: unknown key ")
    shared = [_mapping(content.get("changes", {}), f"{file}: changes")]
    sizes = _mapping(content.pop("sizes", {}), f"{file}: sizes")
    chosen = _choose_size(file, sizes, size)
    if chosen:
        more = _mapping(sizes[chosen], f"{file}: sizes.{chosen}")
        _check_keys(more, [k for k in _KEYS if k != "sizes"], f"{file}: unknown key sizes.{chosen}.")
        shared.append(_mapping(more.get("changes", {}), f"{file}: sizes.{chosen}.changes"))
        content = {**content, **more}
    name = f"{file.stem}-{chosen}" if len(sizes) > 1 else file.stem
    where = f"{file}: "
    folds = _whole(content.get("folds"), where + "folds", least=2)
    bases: dict[Path, dict[str, Any]] = {}
    pretrained, once = _read_pretrained(content.get("pretrained", {}), file, shared, extra, bases)
    variants = _read_variants(content, file, shared, extra, pretrained, bases)
    against = None if content.get("against") is None else _text(content["against"], where + "against")
    names = list(dict.fromkeys(variant.subject for variant in variants))
    if against is not None and against not in names:
        raise ConfigError(f"{where}against names no variant: {against!r}{closest(against, names)}")
    metric = _read_metric(content.get("metric"), variants, where)
    if variants[0].recipe.task.name == "parts":
        _check_points(variants, where)
    alpha = content.get("alpha", 0.05)
    if not isinstance(alpha, float) or not 0 < alpha < 0.5:
        raise ConfigError(f"{where}alpha must be above 0 and below 0.5, got {alpha!r}")
    return Suite(
        name=name,
        title=_text(content.get("title", file.stem.replace("_", " ")), where + "title"),
        about=_text(content.get("about", ""), where + "about"),
        file=file,
        size=chosen,
        recipe=_text(content.get("recipe", "recipes of their own"), where + "recipe"),
        variants=variants,
        pretrained=pretrained,
        shared=once,
        seeds=_read_seeds(content.get("seeds", 3), where),
        folds=folds,
        metric=metric,
        against=against,
        alpha=alpha,
        speed=_truth(content.get("speed", False), where + "speed"),
        margin=_read_margin(content.get("margin") if margin is None else margin, metric, where),
        runs_dir=_folder(runs_dir or content.get("runs_dir", _DEFAULT_RUNS), where + "runs_dir"),
        dir=_folder(out or content.get("dir", f"runs/suites/{name}"), where + "dir"),
    )


def resolve_run(recipe: Recipe, folder: Path | None, seed: int, fold: Fold | None, where: str) -> Recipe:
    """Resolve the recipe of one run.

    Args:
        recipe: Recipe without seed, fold and run folder.
        folder: The run folder, if it is known.
        seed: Seed.
        fold: Index of the fold and number of folds.
        where: Origin of the recipe, for errors.

    Raises:
        ConfigError: A setting is incompatible with folds.
    """
    run = dataclasses.replace(recipe.run, dir=None if folder is None else str(folder), seed=seed, overwrite=False)
    try:
        data = (
            recipe.data
            if fold is None
            else recipe.data.changed({"splitting.fold": fold[0], "splitting.num_folds": fold[1]})
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return dataclasses.replace(recipe, run=run, data=data)


def _rename(content: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Translate dotted settings at all levels of a suite; return it with a line for each that was renamed."""
    renamed, notes = rename_changes(content, where)
    for key, value in renamed.items():
        if isinstance(value, Mapping):
            renamed[key], more = _rename(value, f"{where}{key}: ")
            notes += more
    return renamed, notes


def _read_base(file: Path, name: Any, where: str, known: dict[Path, dict[str, Any]]) -> dict[str, Any]:
    """Read the base recipe of a variant; a file is read, and its renamed settings are reported, once."""
    path = _beside(file, name, where)
    if path not in known:
        known[path], notes = rename_content(read_yaml(path), f"{path}: ")
        print_renamed(notes)
    return known[path]


def _read_recipe(content: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], where: str) -> Recipe:
    """Apply layers of dotted settings to a recipe; the last layer is the command line's."""
    for layer in layers:
        _refuse_own(layer, where)
    try:
        *below, last = layers
        _check_family(content, below)
        changed = apply_changes(content, *below)
        return load_recipe(changed, last, settings_of=lambda name: find_family(name)[0].config, prog="vitrail compare")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _check_family(content: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> None:
    """Reject another family by name over a recipe whose settings of the model are those of its own family."""
    model = content.get("model")
    named = next((layer["model.name"] for layer in reversed(layers) if "model.name" in layer), None)
    if not isinstance(model, Mapping) or not isinstance(named, str) or any("model" in layer for layer in layers):
        return
    base = str(model.get("name", ModelConfig.name))
    known = {*find_family(named)[0].settings, *(field.name for field in dataclasses.fields(ModelConfig))}
    foreign = [key for key in model if key not in known]
    if foreign and find_family(base)[0] is not find_family(named)[0]:
        raise ConfigError(
            f"{', '.join(foreign)} come{'s' * (len(foreign) == 1)} from the base recipe, whose model is {base}; "
            f"give the whole `model: {{name: {named}, ...}}` for another family"
        )


def _refuse_own(changes: Mapping[str, Any], where: str) -> None:
    """Reject settings that the suite sets itself."""
    for dotted, key in _OWN.items():
        if dotted in changes:
            raise ConfigError(f"{where}: {dotted} is set by the suite; use the key {key!r}")


def _read_pretrained(
    given: Any,
    file: Path,
    shared: Sequence[Mapping[str, Any]],
    extra: Mapping[str, Any],
    bases: dict[Path, dict[str, Any]],
) -> tuple[dict[str, Recipe], frozenset[str]]:
    """Read the pre-trainings, and the names of those that all seeds share."""
    result = {}
    shared_names = set()
    for name, entry in _mapping(given, f"{file}: pretrained").items():
        where = f"{file}: pretrained.{name}"
        entry = _mapping(entry, where)
        _check_keys(entry, ("recipe", "changes", "shared"), f"{where}: unknown key ")
        if not isinstance(entry.get("shared", False), bool):
            raise ConfigError(f"{where}.shared must be true (one run for all seeds) or false, got {entry['shared']!r}")
        if entry.get("shared", False):
            shared_names.add(str(name))
        if "recipe" not in entry:
            raise ConfigError(f"{where} lacks the key 'recipe'")
        content = _read_base(file, entry["recipe"], where, bases)
        *data, last = ({k: v for k, v in c.items() if k in _PRETRAINING_DATA} for c in (*shared, extra))
        recipe = _read_recipe(content, [*data, _mapping(entry.get("changes", {}), f"{where}.changes"), last], where)
        if recipe.task.name not in PRETRAINING:
            raise ConfigError(f"{where}: its task needs labels; task.name must be one of {', '.join(PRETRAINING)}")
        result[str(name)] = recipe
    return result, frozenset(shared_names)


# Settings of all variants that apply to pre-training too: those that select images.
_PRETRAINING_DATA = (
    "data.source", "data.path", "data.leaves.num_images", "data.leaves.seed", "data.split", "data.splitting.group",
    "data.splitting.val_fraction", "data.splitting.test_fraction", "data.errors.on_unreadable",
    "data.loader.num_workers", "data.loader.cache", "data.arrays.block",
)  # fmt: skip


def _read_variants(
    content: Mapping[str, Any],
    file: Path,
    shared: Sequence[Mapping[str, Any]],
    extra: Mapping[str, Any],
    pretrained: Mapping[str, Any],
    bases: dict[Path, dict[str, Any]],
) -> tuple[Variant, ...]:
    tests = _read_tests(content.get("tests", {}), content, file)
    given = _mapping(content.get("variants"), f"{file}: variants")
    if not given:
        raise ConfigError(f"{file}: variants are missing; give at least one name with its settings ({{}} for none)")
    result = []
    for name, own in given.items():
        where = f"{file}: variant {name}"
        changes = dict(_mapping(own, where))
        base = changes.pop("recipe", content.get("recipe"))
        if tests and "evaluate.tta" in changes:
            raise ConfigError(f"{where}: evaluate.tta is set by the tests of the suite; leave one of them out")
        tta = changes.pop("evaluate.tta", content.get("tta", "none"))
        tta_views(_text(tta, f"{where}: evaluate.tta"))
        if base is None:
            raise ConfigError(f"{where} has no recipe; give the suite the key 'recipe'")
        recipe = _read_recipe(_read_base(file, base, where, bases), [*shared, changes, extra], where)
        _check_weights(recipe, pretrained, where)
        for test, (views, more) in (tests or {"": (tta, {})}).items():
            trained = recipe
            if more:
                layers = [*shared, changes, more, extra]
                trained = _read_recipe(_read_base(file, base, where, bases), layers, f"{file}: tests.{test}")
                _check_weights(trained, pretrained, f"{file}: tests.{test}")
            shown = changes | dict(more) | ({} if views == "none" else {"evaluate.tta": views})
            result.append(Variant(f"{name}, {test}" if test else str(name), trained, shown, views, str(name), test))
    return tuple(result)


def _check_weights(recipe: Recipe, pretrained: Mapping[str, Any], where: str) -> None:
    """Reject weights of a pre-training that the suite does not have."""
    weights = recipe.model.weights
    if weights is not None and weights.startswith(PRETRAINED):
        wanted = weights.removeprefix(PRETRAINED)
        if wanted not in pretrained:
            raise ConfigError(
                f"{where}: model.weights {weights!r} names no entry of pretrained{closest(wanted, pretrained)}"
            )


def _check_points(variants: Sequence[Variant], where: str) -> None:
    """Reject variants that label other points of the same clouds, which cannot be paired."""
    sizes = {variant.name: image_size(variant.recipe)[0] for variant in variants}
    (first, number), *others = sizes.items()
    for name, own in others:
        if own != number:
            raise ConfigError(
                f"{where}the variants {first} and {name} label {number} and {plural(own, 'point')} of each cloud; give "
                "all variants and tests the same model.num_points (or data.points.num_points)"
            )


def _read_tests(given: Any, content: Mapping[str, Any], file: Path) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Read the tests of a suite: name -> test-time augmentation, and settings of the runs that are trained for it."""
    tests = {}
    for name, settings in _mapping(given, f"{file}: tests").items():
        where = f"{file}: tests.{name}"
        own = _mapping(settings, where)
        _check_keys(own, ("evaluate.tta", "changes"), f"{where}: unknown key ")
        views = _text(own.get("evaluate.tta", "none"), f"{where}.evaluate.tta")
        tta_views(views)
        tests[str(name)] = views, _mapping(own.get("changes"), f"{where}.changes")
    if tests and "tta" in content:
        raise ConfigError(f"{file}: tta and tests both set the evaluation; leave one of them out")
    return tests


def _read_metric(given: Any, variants: Sequence[Variant], where: str) -> str:
    """Return the measure of the comparison: by default mIoU of parts of points, else the accuracy."""
    of_parts = {variant.recipe.task.name == "parts" for variant in variants}
    if len(of_parts) > 1:
        raise ConfigError(f"{where}variants with task.name parts and others have no common measure; compare them apart")
    known = PART_SCORES if of_parts == {True} else SCORES
    metric = next(iter(known)) if given is None else given
    if metric not in known:
        raise ConfigError(f"{where}unknown metric {metric!r}{closest(str(metric), known)}")
    return str(metric)


def _read_margin(given: Any, metric: str, where: str) -> float | None:
    if given is None:
        return None
    most = 1.0 if ALL_SCORES[metric] else math.inf
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given < most:
        limit = f"above 0 and below {most:g}" if ALL_SCORES[metric] else "above 0"
        raise ConfigError(
            f"{where}margin must be {limit}, got {given!r}; 0.01 is one percentage point of a share such as accuracy"
        )
    return float(given)


def _read_seeds(given: Any, where: str) -> tuple[int, ...]:
    if isinstance(given, int) and not isinstance(given, bool) and given >= 1:
        return tuple(range(given))
    if isinstance(given, list) and given and all(isinstance(s, int) and not isinstance(s, bool) for s in given):
        if len(set(given)) == len(given):
            return tuple(given)
        raise ConfigError(f"{where}seeds must differ, got {given}")
    raise ConfigError(f"{where}seeds must be a number (at least 1) or a list of integers, got {given!r}")


def _choose_size(file: Path, sizes: Mapping[str, Any], size: str | None) -> str:
    if size is None and len(sizes) > 1:
        raise ConfigError(f"{file} has the sizes {', '.join(sizes)}; choose one with --size")
    if size is None:
        return next(iter(sizes), "")
    if size not in sizes:
        raise ConfigError(f"{file}: unknown size {size!r}{closest(size, sizes) if sizes else '; it has none'}")
    return size


def _check_keys(content: Mapping[str, Any], known: Sequence[str] | Mapping[str, Any], prefix: str) -> None:
    for key in content:
        if key not in known:
            raise ConfigError(f"{prefix}{key}{closest(str(key), known)}")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must hold names and values (key: value), got {value!r}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where} must be a text, got {value!r}; write it in quotes")
    return value


def _folder(value: Any, where: str) -> Path:
    return Path(expand_home(where, _text(value, where)))


def _truth(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{where} must be true or false, got {value!r}")
    return value


def _whole(value: Any, where: str, least: int) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise ConfigError(f"{where} must be a whole number from {least} on, got {value!r}")
    return value


def _beside(file: Path, name: Any, where: str) -> Path:
    path = file.parent / _folder(name, f"{where}: recipe")
    if not path.is_file():
        raise ConfigError(f"{where}: there is no recipe {path}")
    return path
