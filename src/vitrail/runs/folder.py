"""Run folder: names of its files, reading and writing. No other module knows these names."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vitrail.errors import RunError
from vitrail.files import replacing, write_json, write_text
from vitrail.models.modality import IMAGE, MODALITIES, Modality, is_per_point, reword
from vitrail.outputs import CHECKPOINTS, ENVIRONMENT_FILE, METRICS_FILE, RECIPE_FILE
from vitrail.weights.hashes import file_hash, tensors_hash
from vitrail.weights.locations import CARD_FILE, WEIGHTS_FILE


class EvaluationFiles:
    """Files of an evaluation.

    Args:
        folder: The folder; see :meth:`RunFolder.evaluation_of`.
    """

    def __init__(self, folder: Path) -> None:
        self.metrics = folder / "metrics.json"
        self.per_class = folder / "per_class.csv"
        self.curves = folder / "curves.csv"
        self.confusion = folder / "confusion.csv"
        self.confusion_shares = folder / "confusion_normalized.csv"
        self.confusion_clustered = folder / "confusion_clustered.csv"
        self.calibration = folder / "calibration.json"
        self.reliability = folder / "reliability.csv"
        self.conformal = folder / "conformal.json"
        self.selective = folder / "selective.csv"
        # Of labels of points.
        self.parts = folder / "parts.csv"
        self.clouds = folder / "clouds.csv"
        self.parts_sheet = folder / "parts.png"
        self.mistakes = folder / "mistakes.csv"
        self.mistakes_sheet = folder / "mistakes.png"
        self.ood = folder / "ood.json"
        self.robustness = folder / "robustness.json"
        self.corruptions = folder / "corruptions.csv"
        self.missing = folder / "missing.csv"
        self.attacks = folder / "attacks.csv"
        self.rotations = folder / "rotations.csv"

    @property
    def of_the_model(self) -> dict[str, Path]:
        """Tables that are computed with the model, and invalid for other weights."""
        names = ("ood", "corruptions", "missing", "attacks", "rotations")
        return {name: getattr(self, name) for name in names}


def _modality(card: Mapping[str, Any]) -> Modality:
    return MODALITIES.get(next(iter(card.get("streams") or {}), IMAGE.name), IMAGE)


class RunFolder:
    """A run on disk. Files are written atomically.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / RECIPE_FILE
        self.environment = self.path / ENVIRONMENT_FILE
        self.metrics = self.path / METRICS_FILE
        self.weights = self.path / WEIGHTS_FILE
        self.card = self.path / CARD_FILE
        self.checkpoints = self.path / CHECKPOINTS
        self.last_checkpoint = self.checkpoints / "last.ckpt"
        self.best_checkpoint = self.checkpoints / "best.ckpt"
        self.diverged_batch = self.path / "diverged_batch.safetensors"
        self.evaluation = self.path / "evaluation"
        self.figures = self.path / "figures"
        self.features = self.path / "features"
        self.structure = self.path / "structure"
        self.report = self.path / "report.html"
        self.export = self.path / "export"
        self.unreadable = self.path / "unreadable.csv"
        self.balance = self.path / "data.json"
        # Hashes of the images that its weights were trained on.
        self.seen = self.path / "images_seen.txt"
        self.images = self.path / "images.parquet"
        self.audit = self.path / "audit.json"
        self.audit_page = self.path / "audit.html"
        # Hash of the weights by the state of their file.
        self._code: tuple[tuple[int, int, int], str] | None = None

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """Name of the folder, also for the path "."."""
        return self.path.resolve().name

    @property
    def modality(self) -> Modality:
        """Kind of its inputs; images where it has no model yet."""
        return _modality(self._read_card())

    @property
    def per_point(self) -> bool:
        """Whether its model labels points instead of whole clouds."""
        return is_per_point(self._read_card().get("settings", {}))

    @property
    def own_names(self) -> tuple[str, ...]:
        """Its name, its path and its classes, as quoted in texts about it."""
        return self._names(self._read_card())

    def reword(self, text: str) -> str:
        """Name its inputs by their modality in a text about images."""
        card = self._read_card()
        return reword(text, _modality(card), names=self._names(card))

    def _read_card(self) -> dict[str, Any]:
        """Read the card; nothing where it has no model yet."""
        return self.read_json(self.card) if self.card.is_file() else {}

    def _names(self, card: Mapping[str, Any]) -> tuple[str, ...]:
        return self.name, str(self), *(card.get("classes") or ())

    @classmethod
    def create(cls, path: str | Path, *, overwrite: bool = False) -> RunFolder:
        """Create the folder of a new run.

        Args:
            path: The folder.
            overwrite: Whether to delete an existing run.

        Raises:
            RunError: The folder holds a run or other files, or cannot be written.
        """
        run = cls(path)
        run.refuse_taken(overwrite=overwrite)
        try:
            if run.path.is_dir() and any(run.path.iterdir()):
                # Renamed first, so that an interruption leaves no half-deleted run under this name.
                aside = Path(tempfile.mkdtemp(prefix=f".{run.path.name}.", suffix=".tmp", dir=run.path.parent))
                run.path.rename(aside / run.path.name)
                shutil.rmtree(aside)
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"cannot write the run folder {path}: {error.strerror or error}; choose another --run.dir"
            ) from error
        return run

    def refuse_taken(self, *, overwrite: bool = False) -> None:
        """Check that a new run may use the folder.

        Args:
            overwrite: Whether an existing run may be deleted.

        Raises:
            RunError: The path is a file, holds a run or other files, or is unreadable.
        """
        try:
            if self.path.exists() and not self.path.is_dir():
                raise RunError(f"{self.path} is a file; choose another run.dir")
            if not self.path.is_dir() or not any(self.path.iterdir()):
                return
        except OSError as error:
            raise RunError(f"cannot read the run folder {self.path}: {error.strerror or error}") from error
        if not overwrite:
            raise RunError(
                f"{self.path} holds a run or other files; resume it with --resume, choose another --run.dir, or "
                "replace it with --run.overwrite true"
            )
        if not self.recipe.exists():
            raise RunError(f"{self.path} holds files but no run (no recipe.yaml); vitrail will not delete them")

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run.

        Raises:
            RunError: The folder does not exist or holds no recipe.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise RunError(f"no run folder at {path}; `vitrail train` makes one")
        run.require(run.recipe)
        return run

    def require(self, file: Path, remedy: str = "is this a run folder?") -> Path:
        """Return ``file`` if it exists.

        Raises:
            RunError: The file does not exist.
        """
        if not file.is_file():
            raise RunError(f"{self.path} lacks {file.relative_to(self.path)}; {remedy}")
        return file

    @property
    def finished(self) -> bool:
        """Whether training is complete: after all epochs, early stopping or the recipe's time limit."""
        return self.environment.is_file() and "finished" in self.read_json(self.environment)

    def remove_leftovers(self) -> None:
        """Delete temporary files of an interrupted process, in the run's own folders only."""
        figures = self.figures, self.explanation(0).parent, self.structure
        for folder in (self.path, self.checkpoints, self.evaluation, *figures, self.path / "predictions"):
            for file in folder.glob(".*.????????.tmp"):
                if file.is_file():
                    file.unlink(missing_ok=True)

    def explanation(self, epoch: int) -> Path:
        """Return the path of the explanations figure of an epoch."""
        return self.figures / "explanations" / f"epoch_{epoch:03d}.png"

    # -- metrics -----------------------------------------------------------------------------------------

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write metrics.csv: one row per epoch."""
        rows = list(rows)
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.metrics, text.getvalue())

    def read_metrics(self) -> pd.DataFrame:
        """Read metrics.csv.

        Raises:
            RunError: The file is missing or not a table.
        """
        self.require(self.metrics, "train the run first")
        try:
            return pd.read_csv(self.metrics)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise RunError(f"{self.metrics} is not a table of metrics ({error}); restore it or train again") from error

    def trained_epochs(self) -> int:
        """Count the epochs that have a row of metrics."""
        return len(self.read_metrics()) if self.metrics.is_file() else 0

    def write_unreadable(self, files: Iterable[tuple[str, str]]) -> None:
        """Write unreadable.csv: files that were skipped, with the reason."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("path", "problem"), *files])
        write_text(self.unreadable, text.getvalue())

    # -- predictions -------------------------------------------------------------------------------------

    def predictions(self, split: str) -> Path:
        """Return the path of a split's predictions."""
        return self.path / "predictions" / f"{split}.parquet"

    def embeddings(self, split: str) -> Path:
        """Return the path of a split's embeddings (pre-logit features)."""
        return self.path / "predictions" / f"{split}_embeddings.npy"

    def write_predictions(
        self,
        split: str,
        index: Sequence[int],
        paths: Sequence[str],
        targets: Sequence[int] | Sequence[Sequence[int]],
        logits: npt.NDArray[np.float32],
        embeddings: npt.NDArray[np.float32],
        groups: Sequence[str] | None = None,
        origin: Mapping[str, Any] | None = None,
        clips: Sequence[float] | None = None,
    ) -> None:
        """Write the predictions of a split (index, path, target, logits of each image) and its embeddings.

        Args:
            split: Name of the split or of other data.
            index: Index of each image, length N.
            paths: Key of each image, length N.
            targets: Class or labels of each image, length N.
            logits: Shape ``(N, K)``.
            embeddings: Pre-logit features, shape ``(N, C)``.
            groups: Group of each image, if any.
            origin: Data and weights of the predictions, plain values, stored as metadata of the table.
            clips: Share of each video's views that are classified correctly, where logits are their means.
        """
        table = pd.DataFrame(
            {"index": list(index), "path": list(paths), "target": list(targets), "logits": list(logits)}
        )
        if groups is not None:
            table["group"] = list(groups)
        if clips is not None:
            table["clips_correct"] = list(clips)
        table.attrs.update(origin or {})
        # Predictions last: their metadata name the weights of both files.
        with replacing(self.embeddings(split)) as temporary, temporary.open("wb") as file:
            np.save(file, embeddings)
        with replacing(self.predictions(split)) as temporary:
            table.to_parquet(temporary)

    def write_part_predictions(
        self,
        split: str,
        index: Sequence[int],
        paths: Sequence[str],
        parts: Sequence[npt.NDArray[np.int64]],
        predicted: Sequence[npt.NDArray[np.int64]],
        groups: Sequence[str] | None = None,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the predicted labels of points of a split, which :meth:`read_predictions` reads.

        Args:
            split: Name of the split or of other data.
            index: Index of each cloud, length N.
            paths: Key of each cloud, length N.
            parts: Part of each point of each cloud; -1 without a label.
            predicted: Its predicted part; -1 where there is no point.
            groups: Group of each cloud, if any.
            origin: As in :meth:`write_predictions`.
        """
        table = pd.DataFrame(
            {"index": list(index), "path": list(paths), "parts": list(parts), "predicted": list(predicted)}
        )
        if groups is not None:
            table["group"] = list(groups)
        table.attrs.update(origin or {})
        with replacing(self.predictions(split)) as temporary:
            table.to_parquet(temporary)

    def saved_predictions(self) -> list[str]:
        """List the names of saved predictions."""
        return sorted(path.stem for path in (self.path / "predictions").glob("*.parquet"))

    def weights_hash(self) -> str | None:
        """Hash the run's weights by their values; None without weights."""
        if not self.weights.is_file():
            return None
        status = self.weights.stat()
        state = status.st_ino, status.st_mtime_ns, status.st_size
        if self._code is None or self._code[0] != state:
            self._code = state, tensors_hash(self.weights)
        return self._code[1]

    def made_with(self, code: object) -> bool:
        """Check that a result was computed with the current weights of the run.

        Every result that depends on the weights is checked when it is read.

        Args:
            code: :meth:`weights_hash` that the result recorded.

        Returns:
            Whether they match; True for a run without weights.
        """
        now = self.weights_hash()
        # Earlier versions recorded the hash of the file.
        return now is None or code == now or (code is not None and code == file_hash(self.weights))

    def origin_of_predictions(self, split: str) -> dict[str, Any]:
        """Read the origin of saved predictions from the file's metadata; empty without predictions.

        Raises:
            RunError: The file is unreadable.
        """
        path = self.predictions(split)
        if not path.is_file():
            return {}
        try:
            content = (pq.read_schema(path).pandas_metadata or {}).get("attributes")
        except (OSError, ValueError, pa.ArrowException) as error:
            raise RunError(f"cannot read {path} ({error}); delete it and evaluate the run again") from error
        return dict(content or {})

    def _refuse_stale(self, split: str) -> None:
        if not self.made_with(self.origin_of_predictions(split).get("weights")):
            raise RunError(
                f"{self.predictions(split)} is of other weights than {self.path} holds now; "
                f"`vitrail evaluate {self.path}` renews it"
            )

    def read_predictions(self, split: str) -> pd.DataFrame:
        """Read index, path, target and logits of a split's images.

        Raises:
            RunError: The file is missing or unreadable, or the predictions are of other weights.
        """
        path = self.require(self.predictions(split), f"`vitrail evaluate {self.path}` writes it")
        self._refuse_stale(split)
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {path} ({error}); delete it and evaluate the run again") from error

    def read_embeddings(self, split: str) -> npt.NDArray[np.float32]:
        """Read the embeddings of a split, shape ``(N, C)``, in the order of the predictions.

        Raises:
            RunError: The file is missing or unreadable, or the embeddings are of other weights.
        """
        path = self.require(self.embeddings(split), f"`vitrail evaluate {self.path}` writes it")
        self._refuse_stale(split)
        try:
            array: npt.NDArray[np.float32] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise RunError(f"cannot read {path} ({error}); delete it and evaluate the run again") from error
        return array

    def read_measures(self, folder: Path) -> dict[str, Any]:
        """Read the overall measures of an evaluation.

        Args:
            folder: Folder of the evaluation.

        Raises:
            RunError: They are missing, damaged, or of other weights.
        """
        measures: dict[str, Any] = self.read_json(EvaluationFiles(folder).metrics)
        code = measures.get("weights")
        if code is not None and (self.weights_hash() is None or not self.made_with(code)):
            raise RunError(
                f"{self} was evaluated with other weights than it holds now; `vitrail evaluate {self}` renews it"
            )
        return measures

    def evaluation_of(self, name: str, primary: bool = False) -> Path:
        """Return the path of an evaluation's folder.

        Args:
            name: Name of the split or of other data.
            primary: Whether it is the run's primary evaluation (test split, or validation split without one), which is
                in the top folder; others are in sub-folders by name.
        """
        return self.evaluation if primary else self.evaluation / name

    def evaluations(self) -> dict[str, Path]:
        """List the folders of evaluations by name, the primary one first.

        Raises:
            RunError: The primary evaluation is damaged.
        """
        found: dict[str, Path] = {}
        top = EvaluationFiles(self.evaluation).metrics
        if top.is_file():
            found[str(self.read_json(top).get("name", "test"))] = self.evaluation
        for file in sorted(self.evaluation.glob(f"*/{top.name}")):
            found.setdefault(file.parent.name, file.parent)
        return found

    # -- JSON --------------------------------------------------------------------------------------------

    @staticmethod
    def write_json(file: Path, value: Any) -> None:
        """Write one of the run's JSON files."""
        write_json(file, value)

    def read_json(self, file: Path, remedy: str = "is this a run folder?") -> Any:
        """Read one of the run's JSON files.

        Raises:
            RunError: It is missing or damaged.
        """
        self.require(file, remedy)
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{file} is damaged ({error}); restore it or repeat the run") from error
