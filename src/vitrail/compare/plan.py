"""Which runs a suite needs, and which of them are done: known from the run folders alone, at any moment."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitrail.compare.suite import PRETRAINED, Suite, resolve_run
from vitrail.config.augment import augment_settings
from vitrail.config.data import DataConfig
from vitrail.config.schema import PRETRAINING, ModelConfig, Recipe
from vitrail.errors import ConfigError, DataError, RunError, WeightsError
from vitrail.models.registry import complete_settings, find_family
from vitrail.runs.folder import EvaluationFiles, RunFolder
from vitrail.runs.input_hashes import input_hashes, weights_hash
from vitrail.runs.lock import lock_holder
from vitrail.weights.hub import HUB_PREFIX

State = Literal["done", "evaluate", "resume", "run", "elsewhere"]
# What a state is, for people.
STATES: dict[State, str] = {
    "done": "done",
    "evaluate": "to evaluate",
    "resume": "to resume",
    "run": "to run",
    "elsewhere": "being trained",
}
# What a result does not depend on: where it is written, what is written beside it, and how images are fetched.
_WITHOUT_EFFECT = (
    ("run", "dir"), ("run", "overwrite"), ("run", "tensorboard"), ("data", "num_workers"), ("data", "cache"),
    ("data", "check_copies"),
)  # fmt: skip

# Settings of a model that the data decides where the recipe does not.
_BY_DATA = ("num_classes", "in_chans", "spectral_chans", "img_size")


@dataclass(frozen=True)
class Run:
    """One run that a suite needs.

    Attributes:
        identity: A hash of all that its result depends on.
        variant: Of which variant it is; of a run without labels the name it has in the suite.
        seed: Of the run.
        fold: Number of the fold; None where there is one split.
        recipe: Resolved.
        tta: Views that are averaged when it is evaluated; several variants may evaluate a run in different ways.
        needs: Identity of the run that must be done before; None where there is none.
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
        """Where it lies."""
        return RunFolder(self.recipe.run_dir)

    @property
    def is_pretraining(self) -> bool:
        """Whether it is a pre-training, which is not evaluated."""
        return self.recipe.task.name in PRETRAINING

    @property
    def label(self) -> str:
        """What it is called."""
        return f"{self.variant}, seed {self.seed}" + ("" if self.fold is None else f", fold {self.fold}")

    @property
    def task(self) -> tuple[str, str]:
        """What carrying it out consists of; runs that several variants share are carried out once."""
        return self.identity, self.tta

    def evaluation(self) -> dict[str, Any] | None:
        """The measures of its evaluation; None where there is none yet."""
        run = self.folder
        top = EvaluationFiles(run.evaluation_of("", primary=True)).metrics
        if not top.is_file():
            return None
        metrics: dict[str, Any] = run.read_json(top)
        if self.tta != "none":
            # The evaluation without views says on which split the run is judged.
            file = EvaluationFiles(run.evaluation_of(f"{metrics['name']}-{self.tta}")).metrics
            if not file.is_file():
                return None
            metrics = run.read_json(file)
        return metrics if run.predictions(metrics["name"]).is_file() else None

    def state(self) -> State:
        """How far it is."""
        run = self.folder
        if lock_holder(run.path) is not None:
            return "elsewhere"
        if not run.recipe.is_file():
            return "run"
        if not run.finished:
            return "resume"
        return "done" if self.is_pretraining or self.evaluation() is not None else "evaluate"


def plan(suite: Suite) -> list[Run]:
    """All runs of a suite, those that others need first.

    Args:
        suite: The suite.

    Returns:
        The runs without labels, each once, then the variants' in order; of equal variants' seeds and folds both.

    Raises:
        ConfigError: Two variants that are the same, a setting that does not fit, or weights that are not there.
    """
    folds = [None] if suite.folds is None else [(i, suite.folds) for i in range(suite.folds)]
    before: dict[str, Run] = {}
    runs: list[Run] = []
    known: dict[object, dict[str, str]] = {}
    for variant in suite.variants:
        for fold in folds:
            for seed in suite.seeds:
                who = f"{suite.file}: variant {variant.name}"
                recipe, needed = variant.recipe, None
                weights = recipe.model.weights
                if weights is not None and weights.startswith(PRETRAINED):
                    needed = _plan_pretraining(suite, weights.removeprefix(PRETRAINED), fold, seed, known)
                    before.setdefault(needed.identity, needed)
                    model = dataclasses.replace(recipe.model, weights=needed.recipe.run_dir)
                    recipe = dataclasses.replace(recipe, model=model)
                needs = None if needed is None else needed.identity
                code = identity(resolve_run(recipe, None, seed, fold, who), needs, who, known)
                recipe = resolve_run(recipe, suite.runs_dir / code, seed, fold, who)
                number = None if fold is None else fold[0]
                runs.append(
                    Run(
                        code,
                        variant.name,
                        seed,
                        number,
                        recipe,
                        variant.tta,
                        needs,
                    )
                )
    _refuse_equals(suite, runs)
    return [*before.values(), *runs]


def _plan_pretraining(
    suite: Suite, name: str, fold: tuple[int, int] | None, seed: int, known: dict[object, dict[str, str]]
) -> Run:
    """Plan the pre-training of a seed, on the images of the fold; one with the recipe's own seed where it is shared.

    The seed of pre-training decides results as that of fine-tuning does: an interval holds both only where each seed
    has its own.
    """
    who = f"{suite.file}: pretrained.{name}"
    begun = suite.pretrained[name]
    seed = begun.run.seed if name in suite.shared else seed
    code = identity(resolve_run(begun, None, seed, fold, who), None, who, known)
    recipe = resolve_run(begun, suite.runs_dir / code, seed, fold, who)
    return Run(code, name, seed, None if fold is None else fold[0], recipe)


def identity(
    recipe: Recipe, needs: str | None = None, who: str = "recipe", known: dict[object, dict[str, str]] | None = None
) -> str:
    """A hash of all that a run's result depends on, and of nothing else.

    Files count by what they hold, whatever they are called: weights by their values, statistics, labels, tables and
    arrays by their bytes, folders of images as :func:`vitrail.runs.input_hashes.input_hashes` samples them.

    Args:
        recipe: Resolved.
        needs: Identity of the run that ``model.weights`` is.
        who: Whose recipe, for errors.
        known: Codes of files that were read already, for several recipes with the same files.

    Raises:
        ConfigError: ``model.weights`` is not there, or a file cannot be read.
    """
    content = recipe.to_dict()
    for part, key in _WITHOUT_EFFECT:
        content[part].pop(key)
    content["model"] |= _whole_model(recipe.model)
    content["data"] |= _whole_augmentation(recipe.data)
    weights = recipe.model.weights
    if needs is not None:
        content["model"]["weights"] = f"run {needs}"
        weights = None
    for name, code in _codes(recipe.data, weights, who, {} if known is None else known).items():
        part, key = name.split(".")
        content[part][key] = code
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _whole_model(config: ModelConfig) -> dict[str, Any]:
    """Family and all settings, so that a default counts alike whether it is given or not."""
    family, _ = find_family(config.name)
    try:
        settings = complete_settings(config.name, config.settings)
    except ConfigError:  # what the data decides may be what is missing
        return {}
    return {
        "name": family.name,
        **{key: value for key, value in settings.items() if key in config.settings or key not in _BY_DATA},
    }


def _whole_augmentation(config: DataConfig) -> dict[str, Any]:
    """All settings of the augmentation, whether they are the preset's or single ones."""
    whole = augment_settings(config.augment, config.augment_settings)
    return {"augment": None, "augment_settings": dataclasses.asdict(whole)}


def _codes(data: DataConfig, weights: str | None, who: str, known: dict[object, dict[str, str]]) -> dict[str, str]:
    """Hashes of the files that a recipe names, each set of files read once."""
    key = (data.path, data.spectral_path, data.statistics, data.labels, weights)
    if key not in known:
        try:
            codes = input_hashes(data)
            if weights is not None and not weights.startswith(HUB_PREFIX):
                codes["model.weights"] = weights_hash(weights)
        except WeightsError as error:
            raise ConfigError(f"{who}: model.weights: {error}") from error
        except DataError as error:
            raise ConfigError(f"{who}: {error}") from error
        except OSError as error:
            raise ConfigError(f"{who}: cannot read {error.filename}: {error.strerror or error}") from error
        known[key] = codes
    return known[key]


def _refuse_equals(suite: Suite, runs: Iterable[Run]) -> None:
    seen: dict[tuple[str, str], Run] = {}
    for run in runs:
        other = seen.setdefault(run.task, run)
        if other is not run:
            raise ConfigError(
                f"{suite.file}: the variants {other.variant} and {run.variant} are the same recipe and would not "
                "differ; take one out, or see whether a setting on the command line made them equal"
            )


@dataclass(frozen=True)
class Expectation:
    """How long what is missing will take.

    Attributes:
        seconds: Of all missing runs one after the other; None where nothing is known yet.
        basis: How many finished runs that is told from.
    """

    seconds: float | None
    basis: int


def expect(runs: Iterable[Run], states: Mapping[tuple[str, str], State]) -> Expectation:
    """Guess the time from the recorded times of finished runs: of the same variant, else of all of its kind.

    A run without labels sees other images than one with labels, and tells nothing of its time.

    Args:
        runs: Of the suite.
        states: What a run consists of (:attr:`Run.task`) -> state.
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
        alike = [t for name, values in times.items() if kind[name] == run.is_pretraining for t in values]
        own = times.get(run.variant, alike)
        if not own:
            return Expectation(None, basis)
        total += sum(own) / len(own) * (1 - _share_done(run) if states[run.task] == "resume" else 1.0)
    return Expectation(total, basis)


def training_seconds(run: RunFolder) -> float:
    """Time of all epochs of a run, validation among it.

    Raises:
        RunError: It was trained by a version that did not record it.
    """
    rows = run.read_metrics()
    if "epoch_seconds" not in rows:
        raise RunError(f"{run} was written by another version (no epoch_seconds in metrics.csv); train it again")
    return float(rows["epoch_seconds"].sum())


def epochs_done(run: RunFolder) -> int:
    """How many epochs of a run are trained."""
    return len(run.read_metrics()) if run.metrics.is_file() else 0


def _share_done(run: Run) -> float:
    return min(1.0, epochs_done(run.folder) / run.recipe.trainer.max_epochs)


def commands(runs: Iterable[Run], recipes: Mapping[str, Path]) -> list[tuple[Run, list[str]]]:
    """One command line a run that is still to be trained, for a scheduler.

    Args:
        runs: Of the suite.
        recipes: Identity -> file of its recipe.
    """
    result: dict[str, tuple[Run, list[str]]] = {}
    for run in runs:
        state = run.state()
        if state in ("run", "resume") and run.identity not in result:
            verb = "pretrain" if run.is_pretraining else "train"
            words = ["vitrail", verb, str(recipes[run.identity])] + (["--resume"] if state == "resume" else [])
            result[run.identity] = (run, words)
    return list(result.values())
