"""Location of a run's images: data settings that a verb may override."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.errors import ConfigError

if TYPE_CHECKING:
    from vitrail.config.data import DataConfig

# Beside those that say where images lie and how they are listed there.
_MACHINE = ("batch_size", "loader.num_workers")
UNFIT = ("errors.on_band_mismatch", "errors.on_unreadable")

EPILOG = (
    "--data.path NEW names the place of the run's images where that is not the one of its recipe; they are recognised "
    "by their content and keep their split. Of images that a table lists it is their folder (or another table). "
    "--data.source and other settings of a place are taken too."
)


def split_arguments(
    argv: Sequence[str], prog: str, own: Sequence[str] = (), also: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Separate a verb's options from settings of the run's data.

    Args:
        argv: Arguments after the verb.
        prog: The command, for errors.
        own: Settings of the data that are options of the verb itself.
        also: Further settings of the data that the verb may change.

    Returns:
        The verb's options, and the settings.

    Raises:
        ConfigError: A setting that decides how images are prepared or split, which is as in training, or one that is
            given by two names.
    """
    from vitrail.config.data import PATH_SETTINGS
    from vitrail.config.renamed import rename_options

    changeable = [name for name in (*PATH_SETTINGS, *_MACHINE, *UNFIT, *also) if name not in own]
    options: list[str] = []
    settings: list[str] = []
    words = iter(rename_options(argv))
    for word in words:
        name = word.partition("=")[0].removeprefix("--data.")
        if not word.startswith("--data.") or name in own:
            options.append(word)
            continue
        if name not in changeable:
            raise ConfigError(
                f"--data.{name} cannot be changed in {prog}: images are prepared and split as in training; only "
                f"{', '.join(changeable)} can"
            )
        settings.append(word)
        if "=" not in word:
            settings += [value for value in [next(words, None)] if value is not None]
    return options, settings


def override_run_data(recipe: Path, settings: Sequence[str], prog: str) -> tuple[DataConfig, DataConfig]:
    """Return the data settings of a run's recipe, and the same with overrides.

    Args:
        recipe: The recipe in the run folder.
        settings: Settings as returned by :func:`split_arguments`.
        prog: The command, for errors.
    """
    from vitrail.cli.recipes import load_run_recipe

    own = load_run_recipe(recipe, prog=prog).data
    return own, _resolve_table_images(own, load_run_recipe(recipe, list(settings), prog).data) if settings else own


def _resolve_table_images(own: DataConfig, data: DataConfig) -> DataConfig:
    """Read ``data.path`` as the folder of a table's images if it is a folder: the table is the run's own.

    A table of the same name in that folder is taken where the run's is gone.

    Args:
        own: The data of the run's recipe.
        data: The same with settings changed.
    """
    if own.source != "table" or data.source != "table" or own.path is None or data.path is None:
        return data
    if data.path == own.path or not Path(data.path).is_dir():
        return data
    beside = Path(data.path) / Path(own.path).name
    table = own.path if Path(own.path).is_file() or not beside.is_file() else str(beside)
    folder = data.path if data.table.image_folder == own.table.image_folder else data.table.image_folder
    return data.changed({"path": table, "table.image_folder": folder})
