"""The runs of a suite and their states, derived from the run folders alone."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitrail.compare.suite import PRETRAINED, Fold, Suite, resolve_run
from vitrail.config.augment import augment_settings
from vitrail.config.data import DEFAULTS, FILE_SETTINGS, DataConfig
from vitrail.config.renamed import earlier
from vitrail.config.schema import PRETRAINING, ModelConfig, Recipe, flat_settings
from vitrail.errors import ConfigError, DataError, RunError, WeightsError
from vitrail.models.registry import complete_settings, find_family
from vitrail.runs.folder import EvaluationFiles, RunFolder
from vitrail.runs.input_hashes import input_hashes, weights_hash
from vitrail.runs.lock import lock_holder
from vitrail.weights.hub import HUB_PREFIX

# Identity and test-time augmentation of a run.
Task = tuple[str, str]
State = Literal["done", "evaluate", "resume", "run", "elsewhere"]
# States for people.
STATES: dict[State, str] = {
    "done": "done",
    "evaluate": "to evaluate",
    "resume": "to resume",
    "run": "to run",
    "elsewhere": "being trained",
}
# Settings without effect on results.
_WITHOUT_EFFECT = (
    ("run", "dir"), ("run", "overwrite"), ("run", "tensorboard"), ("data", "num_workers"), ("data", "cache"),
    ("data", "check_copies"),
)  # fmt: skip

# Settings that earlier versions did not have, and the values at which they change nothing: left out of the identity
# there, so that runs of earlier versions stay those of their suites.
_ADDED: dict[str, dict[str, Any]] = {
    "data": {"crop_pct": 1.0, "up": "z"},
    "task": {"teacher": None, "distillation": None, "alpha": None},
    "trainer": {"schedule": "cosine", "milestones": [], "step_size": None, "gamma": None},
}
# Of models, whose default changes nothing.
_ADDED_TO_MODELS = (
    "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "act_layer", "norm_layer",
    "mlp_layer", "init_values", "qk_norm", "num_class_tokens", "reg_tokens", "no_embed_class", "patch_embed",
    "patch_stride", "patch_padding", "stem", "stem_width", "pos_embed", "dist_token", "token_merging", "per_point",
)  # fmt: skip
_ADDED_TO_PARTS = {"token_learner": {"dropout_rate": 0.0}}

# Settings of a model that default to those of the data.
_DATA_SETTINGS = ("num_classes", "in_chans", "spectral_chans", "img_size")


# Hashes of the files of a recipe, by their paths.
_Hashes = dict[object, dict[str, str]]


@dataclass(frozen=True)
class Run:
    """One run of a suite.

    Attributes:
        identity: Hash of everything that the result depends on.
        variant: Name of the variant, or of the pre-training.
        seed: Seed.
        fold: Index of the fold; None without folds.
        recipe: Resolved recipe.
        tta: Test-time augmentation of the evaluation; variants may share a run and differ in it.
        needs: Identity of the pre-training that must be done before; None without one.
    """

    identity: str
    variant: str
    seed: int
    fold: int | None
    recipe: Recipe
    tta: str = "none"
    needs: str | None = None

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.recipe.run_dir)

    @property
    def is_pretraining(self) -> bool:
        """Whether the run is a pre-training, which is not evaluated."""
        return self.recipe.task.name in PRETRAINING

    @property
    def label(self) -> str:
        """Display name."""
        return f"{self.variant}, seed {self.seed}" + ("" if self.fold is None else f", fold {self.fold}")

    @property
    def task(self) -> Task:
        """Key of the work; variants may share it."""
        return self.identity, self.tta

    def evaluation(self) -> dict[str, Any] | None:
        """Read the overall measures of the evaluation; None before it."""
        run = self.folder
        top = EvaluationFiles(run.evaluation_of("", primary=True)).metrics
        if not top.is_file():
            return None
        metrics: dict[str, Any] = run.read_json(top)
        if self.tta != "none":
            # The evaluation without augmentation determines the split.
            file = EvaluationFiles(run.evaluation_of(f"{metrics['name']}-{self.tta}")).metrics
            if not file.is_file():
                return None
            metrics = run.read_json(file)
        return metrics if run.predictions(metrics["name"]).is_file() else None

    def state(self) -> State:
        """Determine the state of the run from its folder."""
        run = self.folder
        if lock_holder(run.path) is not None:
            return "elsewhere"
        if not run.recipe.is_file():
            return "run"
        if not run.finished:
            return "resume"
        return "done" if self.is_pretraining or self.evaluation() is not None else "evaluate"


def plan(suite: Suite) -> list[Run]:
    """List all runs of a suite, in an order in which they can be executed.

    Args:
        suite: The suite.

    Returns:
        Pre-trainings, each once, then the runs of the variants by fold and seed.

    Raises:
        ConfigError: Two variants are equal, a setting is invalid, or weights are missing.
    """
    folds = [None] if suite.folds is None else [(i, suite.folds) for i in range(suite.folds)]
    pretrainings: dict[str, Run] = {}
    runs: list[Run] = []
    known: _Hashes = {}
    for variant, fold, seed in itertools.product(suite.variants, folds, suite.seeds):
        where = f"{suite.file}: variant {variant.name}"
        recipe, needs = variant.recipe, None
        weights = recipe.model.weights
        if weights is not None and weights.startswith(PRETRAINED):
            pretraining = _plan_pretraining(suite, weights.removeprefix(PRETRAINED), fold, seed, known)
            needs = pretraining.identity
            pretrainings.setdefault(needs, pretraining)
            model = dataclasses.replace(recipe.model, weights=pretraining.recipe.run_dir)
            recipe = dataclasses.replace(recipe, model=model)
        runs.append(_plan_run(suite, variant.name, recipe, fold, seed, where, known, variant.tta, needs))
    _refuse_equal_variants(suite, runs)
    return [*pretrainings.values(), *runs]


def _plan_pretraining(suite: Suite, name: str, fold: Fold | None, seed: int, known: _Hashes) -> Run:
    """Plan the pre-training of a seed on the images of the fold; a shared one has the seed of its recipe.

    Intervals over seeds include the variance of the pre-training only if each seed has its own.
    """
    recipe = suite.pretrained[name]
    seed = recipe.run.seed if name in suite.shared else seed
    return _plan_run(suite, name, recipe, fold, seed, f"{suite.file}: pretrained.{name}", known)


def _plan_run(
    suite: Suite,
    name: str,
    recipe: Recipe,
    fold: Fold | None,
    seed: int,
    where: str,
    known: _Hashes,
    tta: str = "none",
    needs: str | None = None,
) -> Run:
    """Resolve a recipe for a fold and seed; its folder is named by its identity."""
    own = identity(resolve_run(recipe, None, seed, fold, where), needs, where, known)
    resolved = resolve_run(recipe, suite.runs_dir / own, seed, fold, where)
    return Run(own, name, seed, None if fold is None else fold[0], resolved, tta, needs)


def identity(recipe: Recipe, needs: str | None = None, where: str = "recipe", known: _Hashes | None = None) -> str:
    """Hash everything that a run's result depends on.

    Files count by content, not by name: weights by their values, statistics, labels, tables and arrays by their bytes,
    folders of images by samples (:func:`vitrail.runs.input_hashes.input_hashes`).

    Args:
        recipe: Resolved recipe.
        needs: Identity of the run that ``model.weights`` refers to.
        where: Origin of the recipe, for errors.
        known: Cache of hashes of files, shared by recipes.

    Raises:
        ConfigError: ``model.weights`` is missing, or a file is unreadable.
    """
    content = recipe.to_dict()
    if complete := _complete_model(recipe.model):
        # Given settings are among the complete ones, unless they are left out at their defaults.
        content["model"] = {k: v for k, v in content["model"].items() if k not in recipe.model.settings} | complete
    content["data"] = _earlier_names(recipe) | _complete_augmentation(recipe.data)
    weights = recipe.model.weights
    if needs is not None:
        content["model"]["weights"] = f"run {needs}"
        weights = None
    for name, digest in _input_hashes(recipe.data, weights, where, {} if known is None else known).items():
        part, key = earlier(name).split(".")
        content[part][key] = digest
    for part, key in _WITHOUT_EFFECT:
        content[part].pop(key, None)
    for part, added in _ADDED.items():
        for key, value in added.items():
            if content[part].get(key) == value:
                content[part].pop(key, None)
    if content["run"]["explain_method"] == "auto":
        content["run"]["explain_method"] = "rollout"  # the default of earlier versions; results do not depend on it
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _earlier_names(recipe: Recipe) -> dict[str, Any]:
    """Return the data settings by their names in earlier versions, so that identities do not change.

    Settings of groups that earlier versions did not have are left out at their defaults.
    """
    settings = {earlier(name): value for name, value in flat_settings(recipe).items() if name.startswith("data.")}
    names = {name.removeprefix("data."): value for name, value in settings.items()}
    return {
        name: value for name, value in names.items() if "." not in name or recipe.data.setting(name) != DEFAULTS[name]
    }


def _complete_model(config: ModelConfig) -> dict[str, Any]:
    """Complete the settings of a model, so that explicit defaults do not change the identity."""
    family, _ = find_family(config.name)
    try:
        settings = complete_settings(config.name, config.settings)
    except ConfigError:  # required settings may come from the data
        return {}
    defaults = {field.name: field.default for field in dataclasses.fields(family.config)}
    for part, added in _ADDED_TO_PARTS.items():
        for key, value in added.items():
            if settings.get(part) and settings[part][key] == value:
                settings[part].pop(key)
    return {
        "name": family.name,
        **{
            key: value
            for key, value in settings.items()
            if (key in config.settings or key not in _DATA_SETTINGS)
            and not (key in _ADDED_TO_MODELS and value == defaults[key])
        },
    }


def _complete_augmentation(config: DataConfig) -> dict[str, Any]:
    """Complete the settings of the augmentation, from preset and overrides."""
    complete = augment_settings(config.augment, config.augmentation)
    return {"augment": None, "augment_settings": dataclasses.asdict(complete)}


def _input_hashes(data: DataConfig, weights: str | None, where: str, known: _Hashes) -> dict[str, str]:
    """Hash the files of a recipe; each set of files is read once."""
    key = (*map(data.setting, FILE_SETTINGS), weights)
    if key not in known:
        try:
            hashes = input_hashes(data)
            if weights is not None and not weights.startswith(HUB_PREFIX):
                hashes["model.weights"] = weights_hash(weights)
        except WeightsError as error:
            raise ConfigError(f"{where}: model.weights: {error}") from error
        except DataError as error:
            raise ConfigError(f"{where}: {error}") from error
        except OSError as error:
            raise ConfigError(f"{where}: cannot read {error.filename}: {error.strerror or error}") from error
        known[key] = hashes
    return known[key]


def _refuse_equal_variants(suite: Suite, runs: Iterable[Run]) -> None:
    first: dict[Task, Run] = {}
    for run in runs:
        other = first.setdefault(run.task, run)
        if other is not run:
            raise ConfigError(
                f"{suite.file}: the variants {other.variant} and {run.variant} are the same recipe; remove one, or "
                "check whether a setting on the command line made them equal"
            )


@dataclass(frozen=True)
class Expectation:
    """Estimated time of the missing runs.

    Attributes:
        seconds: Total time of the missing epochs in sequence, without start and evaluation of the runs; None before the
            first finished run.
        basis: Number of finished runs that the estimate is based on.
    """

    seconds: float | None
    basis: int


def expect(runs: Iterable[Run], states: Mapping[Task, State]) -> Expectation:
    """Estimate the time from finished runs of the same variant, else of all pre-trainings or of all other runs.

    Args:
        runs: Runs of the suite.
        states: States by task.
    """
    runs = list({run.identity: run for run in runs}.values())
    times: dict[str, list[float]] = {}
    for run in runs:
        if states[run.task] in ("done", "evaluate"):
            times.setdefault(run.variant, []).append(training_seconds(run.folder))
    kind = {run.variant: run.is_pretraining for run in runs}
    total, basis = 0.0, sum(map(len, times.values()))
    for run in runs:
        if states[run.task] not in ("run", "resume"):
            continue
        same_kind = [t for name, values in times.items() if kind[name] == run.is_pretraining for t in values]
        own = times.get(run.variant, same_kind)
        if not own:
            return Expectation(None, basis)
        total += sum(own) / len(own) * (1 - _share_done(run) if states[run.task] == "resume" else 1.0)
    return Expectation(total, basis)


def training_seconds(run: RunFolder) -> float:
    """Sum the time of all epochs of a run, including validation.

    Raises:
        RunError: The run was trained by a version that did not record it.
    """
    rows = run.read_metrics()
    if "epoch_seconds" not in rows:
        raise RunError(f"{run} was written by another version (no epoch_seconds in metrics.csv); train it again")
    return float(rows["epoch_seconds"].sum())


def _share_done(run: Run) -> float:
    return min(1.0, run.folder.trained_epochs() / run.recipe.trainer.max_epochs)


def commands(runs: Iterable[Run], recipes: Mapping[str, Path]) -> list[tuple[Run, list[str]]]:
    """Build the command line of each run that is still to be trained, for a scheduler.

    Args:
        runs: Runs of the suite.
        recipes: Files of the recipes by identity.
    """
    result: dict[str, tuple[Run, list[str]]] = {}
    for run in runs:
        state = run.state()
        if state in ("run", "resume") and run.identity not in result:
            verb = "pretrain" if run.is_pretraining else "train"
            words = ["vitrail", verb, str(recipes[run.identity])] + (["--resume"] if state == "resume" else [])
            result[run.identity] = (run, words)
    return list(result.values())
