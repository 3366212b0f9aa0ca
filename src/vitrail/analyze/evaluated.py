"""Evaluations of runs: their records, and the models and images that they were made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pandas as pd

from vitrail.config.data import DataConfig
from vitrail.config.renamed import rename
from vitrail.config.schema import Recipe
from vitrail.config.typed import as_tuples
from vitrail.data.dataset import ImageData
from vitrail.errors import RunError
from vitrail.evaluate.run import OTHER
from vitrail.figures.clouds import show_inputs
from vitrail.runs.folder import EvaluationFiles, RunFolder
from vitrail.runs.images import as_recorded, has_other_paths, open_images, open_prepared
from vitrail.runs.trained import TrainedModel, load_trained


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one run.

    Attributes:
        run: The run.
        files: Its files.
        metrics: Content of its metrics.json.
    """

    run: RunFolder
    files: EvaluationFiles
    metrics: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the evaluated images: a split, or other data."""
        return str(self.metrics["name"])

    @property
    def multi_label(self) -> bool:
        """Whether the run's targets are multi-label."""
        return self.run.read_json(self.run.card).get("label_separator") is not None

    @classmethod
    def read(cls, run: RunFolder, folder: Path) -> Evaluation:
        """Read an evaluation.

        Raises:
            RunError: It is damaged, or of other weights than the run holds.
        """
        return cls(run, EvaluationFiles(folder), run.read_measures(folder))

    def of_these_weights(self, content: Mapping[str, Any]) -> bool:
        """Check whether another result of the run is of the evaluated weights.

        Args:
            content: The result, with the hash of its weights.
        """
        code = content.get("weights")
        return bool(code == self.metrics.get("weights")) or (
            self.run.weights_hash() is not None and self.run.made_with(code)
        )

    def table(self, file: Path, *columns: str) -> pd.DataFrame | None:
        """Read one of the evaluation's tables; None where it was not measured.

        Args:
            file: The table.
            columns: Required columns.

        Raises:
            RunError: It is damaged.
        """
        if not file.is_file():
            return None
        try:
            # A class may be called 0 or NA.
            table = pd.read_csv(file, keep_default_na=False, na_values=[""], dtype={"class": str})
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise RunError(f"{file} is damaged ({error}); `vitrail evaluate {self.run}` writes it again") from error
        lacking = [column for column in columns if column not in table]
        if lacking or len(table) == 0:
            raise RunError(
                f"{file} holds no {', '.join(lacking) or 'rows'}; `vitrail evaluate {self.run}` writes it again"
            )
        return table

    def robustness(self, name: str, *columns: str) -> pd.DataFrame | None:
        """Read a table that was measured with the model; None where it was not, or with other weights."""
        file = self.files.of_the_model[name]
        if not file.is_file() or not self.files.robustness.is_file():
            return None
        known = self.run.read_json(self.files.robustness).get(name, {})
        return self.table(file, *columns) if self.of_these_weights(known) else None

    def confusion(self) -> pd.DataFrame:
        """Read the confusion matrix: counts, a row a true class.

        Raises:
            RunError: It is missing or damaged.
        """
        table = self.table(self.run.require(self.files.confusion, f"`vitrail evaluate {self.run}` writes it"))
        assert table is not None, "the file is there"
        return table.set_index(table.columns[0])

    def mistakes(self) -> pd.DataFrame | None:
        """Read the most confident mistakes; None where they were not recorded."""
        if not self.files.mistakes.is_file():
            return None
        texts = {"path": str, "true": str, "predicted": str}
        try:
            return pd.read_csv(self.files.mistakes, dtype=texts, keep_default_na=False)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise RunError(f"{self.files.mistakes} is damaged ({error}); evaluate the run again") from error

    def content(self, file: Path) -> dict[str, Any] | None:
        """Read one of the evaluation's JSON files; None where it was not measured."""
        if not file.is_file():
            return None
        content: dict[str, Any] = self.run.read_json(file)
        return content


class OpenedRuns:
    """Models and images of evaluated runs, opened on first use; the images of a run once.

    Args:
        read_recipe: Reads a run's recipe.
        read_moved: Reads the data of a recipe at its present path; the recipe's path by default.
    """

    def __init__(
        self, read_recipe: Callable[[Path], Recipe], read_moved: Callable[[Path], DataConfig] | None = None
    ) -> None:
        self._read_recipe, self._read_moved = read_recipe, read_moved
        self._images: dict[Path, ImageData] = {}
        # One model at a time: those of a suite together may not fit.
        self._model: tuple[Path, TrainedModel] | None = None

    def trained(self, evaluation: Evaluation) -> TrainedModel:
        """Load a run's model.

        Raises:
            RunError: A missing or damaged model.
        """
        run = evaluation.run
        if self._model is None or self._model[0] != run.path:
            self._model = run.path, load_trained(run)
        return self._model[1]

    def images(self, evaluation: Evaluation) -> ImageData:
        """Open the evaluated images, prepared as in training, under the keys of the evaluation.

        Raises:
            DataError: They cannot be opened.
        """
        if evaluation.run.path not in self._images:
            self._images[evaluation.run.path] = self._open(evaluation)
        return self._images[evaluation.run.path]

    def _open(self, evaluation: Evaluation) -> ImageData:
        run, card = evaluation.run, self.trained(evaluation).card
        own = self._read_recipe(run.recipe).data
        now = own if self._read_moved is None else self._read_moved(run.recipe)
        form = as_tuples(evaluation.metrics["data"])
        recorded = own.changed({rename(f"data.{name}").removeprefix("data."): value for name, value in form.items()})
        if str(evaluation.metrics.get("name", "")).startswith(OTHER):
            return open_prepared(card, recorded, split=False)
        if not has_other_paths(now, own):
            now = recorded  # the paths of the evaluation
        opened = open_images(run, card, now, own, verb="report").data
        return opened if not has_other_paths(now, recorded) else as_recorded(opened)

    def pictures(self, evaluation: Evaluation, keys: Sequence[str]) -> list[npt.NDArray[Any]]:
        """Show images by their keys, each of shape ``(H, W)`` or ``(H, W, 3)``, in 0..1.

        Raises:
            DataError: Images that cannot be opened.
        """
        data = self.images(evaluation)
        streams = data.load(data.source.indices_of(keys))
        return list(show_inputs(streams, data.source.bands))
