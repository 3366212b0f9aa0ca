"""``vitrail data show``: contact sheet of augmented training images."""

from __future__ import annotations

from collections.abc import Mapping

from vitrail.cli.outputs import PICTURE, output_file
from vitrail.cli.recipes import read_recipe_arguments
from vitrail.errors import ConfigError, plural

_OPTIONS = {"--out": "data.png", "--images": "6", "--times": "6"}
_DESCRIPTION = (
    "Draw a few training images, each several times as training would change them (data.augment and "
    "data.augmentation), with both streams and the shares of mixed classes."
)
_MEANINGS = {
    "--out FILE": "the picture to write (default: data.png)",
    "--images N": "how many images, spread over the classes (default: 6)",
    "--times N": "how often each is changed (default: 6)",
}


def main(argv: list[str]) -> int:
    """Draw the sheet.

    Args:
        argv: Arguments after ``data show``: a recipe, its settings, and the options above.
    """
    own, rest = _split_arguments(argv)
    recipe, _ = read_recipe_arguments("vitrail data show", _DESCRIPTION, rest, {}, _MEANINGS)
    if recipe is None:
        return 0
    images, times = (_count(name, own[name]) for name in ("--images", "--times"))

    from vitrail.figures.contact_sheet import write_contact_sheet
    from vitrail.models.modality import MODALITIES
    from vitrail.train.preview import training_views

    out = output_file(own["--out"], PICTURE, (recipe.data.path,))
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out must be a PNG file, got {out}")
    views = training_views(recipe, images, times)
    rows = views.rows
    write_contact_sheet([row.streams for row in rows], [row.labels for row in rows], views.bands, out, views.parts)
    noun = MODALITIES[next(iter(views.bands))].noun
    print(
        f"{len(views.rows)} training {noun}, {plural(times, 'time')} each with data.augment {recipe.data.augment}: "
        f"{out}"
    )
    if not views.changed:
        print(_remedy(views.bands))
    return 0


def _remedy(bands: Mapping[str, tuple[str, ...]]) -> str:
    if "points" in bands:
        return "nothing changes them: --data.points.turn up or so3, zoom, shift, jitter or drop does"
    return "nothing changes them: --data.augment light, standard, strong or leaf does"


def _split_arguments(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """Separate the verb's options from those of the recipe."""
    own, rest = dict(_OPTIONS), []
    seen: set[str] = set()
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in _OPTIONS:
            rest.append(word)
            continue
        given = value if equals else next(words, None)
        if given is None or name in seen:
            raise ConfigError(f"{name} needs one value (`vitrail data show --help` explains)")
        seen.add(name)
        own[name] = given
    return own, rest


def _count(name: str, text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 50:
        raise ConfigError(f"{name} must be a whole number from 1 to 50, got {text!r}")
    return int(text)
