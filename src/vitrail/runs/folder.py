"""The names of the files in a run folder, known here and nowhere else."""

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
from vitrail.outputs import CHECKPOINTS, ENVIRONMENT_FILE, METRICS_FILE, RECIPE_FILE
from vitrail.weights.hashes import file_hash, tensors_hash
from vitrail.weights.locations import CARD_FILE, WEIGHTS_FILE


class EvaluationFiles:
    """The files that an evaluation may leave behind.

    Args:
        folder: Where they lie: what :meth:`RunFolder.evaluation_of` gives.
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
        self.mistakes = folder / "mistakes.csv"
        self.mistakes_sheet = folder / "mistakes.png"
        self.ood = folder / "ood.json"
        self.robustness = folder / "robustness.json"
        self.corruptions = folder / "corruptions.csv"
        self.missing = folder / "missing.csv"
        self.attacks = folder / "attacks.csv"

    @property
    def of_the_model(self) -> dict[str, Path]:
        """What was measured with the model and is worth nothing beside other weights."""
        return {"ood": self.ood, "corruptions": self.corruptions, "missing": self.missing, "attacks": self.attacks}


class RunFolder:
    """A run on disk. Every file is written whole or not at all.

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
        self.report = self.path / "report.html"
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
        """The folder's own name, also where the path is "."."""
        return self.path.resolve().name

    @classmethod
    def create(cls, path: str | Path, *, overwrite: bool = False) -> RunFolder:
        """Make the folder for a new run.

        Args:
            path: The folder.
            overwrite: Delete the run that it holds.

        Raises:
            RunError: It holds a run or other files, or cannot be written.
        """
        run = cls(path)
        run.refuse_taken(overwrite=overwrite)
        try:
            if run.path.is_dir() and any(run.path.iterdir()):
                # Aside first: a kill in the middle leaves no half-deleted run under this name.
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
        """Refuse a place at which no new run may be made.

        Args:
            overwrite: Whether a run that lies there may be deleted.

        Raises:
            RunError: It is a file, or holds a run or other files, or cannot be read.
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
            raise RunError(f"{self.path} holds files that are no run (no recipe.yaml); vitrail will not delete them")

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Open an existing run.

        Raises:
            RunError: No such folder, or it holds no recipe.
        """
        run = cls(path)
        if not run.path.is_dir():
            raise RunError(f"no run folder at {path}; `vitrail train` makes one")
        run.require(run.recipe)
        return run

    def require(self, file: Path, remedy: str = "is this a run folder?") -> Path:
        """Give ``file`` back if it exists.

        Raises:
            RunError: It does not.
        """
        if not file.is_file():
            raise RunError(f"{self.path} lacks {file.relative_to(self.path)}; {remedy}")
        return file

    @property
    def finished(self) -> bool:
        """Whether training has come to its end: all epochs, or stopped early or by the clock as the recipe says."""
        return self.environment.is_file() and "finished" in self.read_json(self.environment)

    def remove_leftovers(self) -> None:
        """Remove the temporary files of a run that was killed while it wrote, in its own folders and nowhere else."""
        figures = self.figures, self.explanation(0).parent
        for folder in (self.path, self.checkpoints, self.evaluation, *figures, self.path / "predictions"):
            for file in folder.glob(".*.????????.tmp"):
                if file.is_file():
                    file.unlink(missing_ok=True)

    def explanation(self, epoch: int) -> Path:
        """The picture of what the model looked at after so many epochs."""
        return self.figures / "explanations" / f"epoch_{epoch:03d}.png"

    # -- metrics -----------------------------------------------------------------------------------------

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write metrics.csv: one row an epoch."""
        rows = list(rows)
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.metrics, text.getvalue())

    def read_metrics(self) -> pd.DataFrame:
        """The rows of metrics.csv.

        Raises:
            RunError: The file is missing or no table.
        """
        self.require(self.metrics, "train the run first")
        try:
            return pd.read_csv(self.metrics)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise RunError(f"{self.metrics} is no table of metrics ({error})") from error

    def write_unreadable(self, files: Iterable[tuple[str, str]]) -> None:
        """Write unreadable.csv: the files that the run goes on without, and why."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("path", "problem"), *files])
        write_text(self.unreadable, text.getvalue())

    # -- predictions -------------------------------------------------------------------------------------

    def predictions(self, split: str) -> Path:
        """The file with a split's predictions."""
        return self.path / "predictions" / f"{split}.parquet"

    def embeddings(self, split: str) -> Path:
        """The file with what the classifier saw of a split."""
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
    ) -> None:
        """Write a split's predictions: index, path, target and logits of each image, and its embedding beside.

        Args:
            split: Name of the split, or of other data.
            index: Of each image.
            paths: What identifies it.
            targets: Its class, or its labels.
            logits: Shape ``(N, K)``.
            embeddings: Shape ``(N, C)``.
            groups: Its group, where images belong together.
            origin: What the predictions were made from, and with which weights; plain values, kept with the table.
        """
        table = pd.DataFrame(
            {"index": list(index), "path": list(paths), "target": list(targets), "logits": list(logits)}
        )
        if groups is not None:
            table["group"] = list(groups)
        table.attrs.update(origin or {})
        # The predictions last: they name the weights of both files.
        with replacing(self.embeddings(split)) as temporary, temporary.open("wb") as file:
            np.save(file, embeddings)
        with replacing(self.predictions(split)) as temporary:
            table.to_parquet(temporary)

    def saved_predictions(self) -> list[str]:
        """Names of the splits and other data that predictions were saved of."""
        return sorted(path.stem for path in (self.path / "predictions").glob("*.parquet"))

    def weights_hash(self) -> str | None:
        """A hash of this run's weights by their values; None where there are none."""
        if not self.weights.is_file():
            return None
        status = self.weights.stat()
        state = status.st_ino, status.st_mtime_ns, status.st_size
        if self._code is None or self._code[0] != state:
            self._code = state, tensors_hash(self.weights)
        return self._code[1]

    def made_with(self, code: object) -> bool:
        """Check that a result was computed with the weights that the run holds now.

        All that is read from a run folder and depends on its weights passes this check.

        Args:
            code: :meth:`weights_hash` at that time, as the result recorded it.

        Returns:
            True also where the run holds no weights to compare with.
        """
        now = self.weights_hash()
        # Earlier versions recorded the hash of the file.
        return now is None or code == now or (code is not None and code == file_hash(self.weights))

    def origin_of_predictions(self, split: str) -> dict[str, Any]:
        """What saved predictions were made from, without reading them; empty where there are none.

        Raises:
            RunError: The file cannot be read.
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
        """Index, path, target and logits of a split's images.

        Raises:
            RunError: There are none, they are of other weights than the run holds, or the file cannot be read.
        """
        path = self.require(self.predictions(split), f"`vitrail evaluate {self.path}` writes it")
        self._refuse_stale(split)
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {path} ({error}); delete it and evaluate the run again") from error

    def read_embeddings(self, split: str) -> npt.NDArray[np.float32]:
        """What the classifier saw of each image of a split, shape ``(N, C)``, in the order of the predictions.

        Raises:
            RunError: There are none, they are of other weights than the run holds, or the file cannot be read.
        """
        path = self.require(self.embeddings(split), f"`vitrail evaluate {self.path}` writes it")
        self._refuse_stale(split)
        try:
            array: npt.NDArray[np.float32] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise RunError(f"cannot read {path} ({error}); delete it and evaluate the run again") from error
        return array

    def read_measures(self, folder: Path) -> dict[str, Any]:
        """The overall measures of an evaluation.

        Args:
            folder: The evaluation's.

        Raises:
            RunError: There are none, they are damaged, or of other weights than the run holds.
        """
        measures: dict[str, Any] = self.read_json(EvaluationFiles(folder).metrics)
        code = measures.get("weights")
        if code is not None and (self.weights_hash() is None or not self.made_with(code)):
            raise RunError(
                f"{self} was evaluated with other weights than it holds now; `vitrail evaluate {self}` does it"
            )
        return measures

    def evaluation_of(self, name: str, primary: bool = False) -> Path:
        """The folder with an evaluation.

        Args:
            name: Of the split, or of other data.
            primary: Whether it is the evaluation that speaks for the run (of its test split, or of its validation
                split where it has no other). That one lies at the top, the others below it by name.
        """
        return self.evaluation if primary else self.evaluation / name

    def evaluations(self) -> dict[str, Path]:
        """The folder of each evaluation by its name, the primary one first.

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
