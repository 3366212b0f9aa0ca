"""The contact sheet shows the images that training would see."""

import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from tests.images import make_folder
from vitrail.cli.data_show import main
from vitrail.cli.recipes import make_recipe
from vitrail.data import open_data
from vitrail.errors import ConfigError
from vitrail.figures.contact_sheet import write_contact_sheet
from vitrail.models.image_size import image_size
from vitrail.train.preview import training_views


def _recipe(**data):
    return make_recipe({"data": data, "model": {"name": "vit", "img_size": 16, "patch_size": 4}})


def test_rows_are_images_and_columns_are_views():
    views = training_views(_recipe(spectral={"derive": "edges"}, augment="strong"), images=12, times=5)
    data = open_data(_recipe(spectral={"derive": "edges"}).data, (16, 16))
    places = {key: i for i, key in enumerate(data.source.keys)}
    assert len(views.rows) == 12
    targets = [int(data.source.targets[places[row.key]]) for row in views.rows]
    assert targets == [*range(10), 0, 1]
    assert all(places[row.key] in data.indices("train") for row in views.rows)
    for row, target in zip(views.rows, targets, strict=True):
        streams = data.source.load([places[row.key]])
        for name, x in streams.items():
            assert torch.equal(row.streams[name][0], x[0])
            assert row.streams[name].shape == (6, *x.shape[1:])
            assert not torch.equal(row.streams[name][1], row.streams[name][2])
        assert row.labels[0] == str(target)
    mixed = [label for row in views.rows for label in row.labels[1:] if "%" in label]
    assert len(mixed) > 30
    for label in mixed:
        shares = [int(part.split("%")[0]) for part in label.split("\n")]
        assert shares == sorted(shares, reverse=True)
        assert 98 <= sum(shares) <= 102
    again = training_views(_recipe(spectral={"derive": "edges"}, augment="strong"), images=12, times=5)
    assert torch.equal(again.rows[3].streams["image"], views.rows[3].streams["image"])
    still = training_views(_recipe(), images=1, times=1)
    assert torch.equal(*still.rows[0].streams["image"])


@pytest.mark.drawn
def test_the_picture_is_drawn(tmp_path, capsys):
    images = make_folder(tmp_path / "images", per_class=3, classes=("a" * 60, "$x_$"))
    out = tmp_path / "sheets" / "x.png"
    main([f"--out={out}", "--data.source", "folder", "--data.path", str(images), "--data.img_size", "24",
          "--data.augment", "leaf", "--images", "2", "--times", "1"])  # fmt: skip
    assert "2 training images, 1 time each" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 100


@pytest.mark.drawn
@pytest.mark.parametrize("seed", [0, 3])
def test_labelled_points_have_the_colours_of_their_parts(tmp_path, seed):
    data = {"source": "solids", "points": {"part": "surface", "num_clouds": 40, "seed": seed, "drop": 0.5}}
    model = {"name": "vnt", "num_points": 64, "num_neighbors": 4}
    recipe = make_recipe({"data": data, "model": model, "task": {"name": "parts"}})
    views = training_views(recipe, 3, 2)
    present = {int(part) for row in views.rows for part in row.streams["parts"].unique()}
    assert present <= set(range(len(views.parts)))
    source = open_data(recipe.data, image_size(recipe)).source
    places = {key: i for i, key in enumerate(source.keys)}
    for row in views.rows:
        own = source.read([places[row.key]])["parts"]
        assert torch.equal(row.streams["parts"], own.expand(3, -1))
        assert row.labels == ["", "", ""]
    out = tmp_path / "parts.png"
    write_contact_sheet([r.streams for r in views.rows], [r.labels for r in views.rows], views.bands, out, views.parts)
    with Image.open(out) as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 24)}
    # The marks of the legend are not shaded, those of parts that do not occur are missing. Letters have the gray one.
    tab10 = [tuple(round(255 * x) for x in color) for color in colormaps["tab10"].colors]
    assert {i for i, color in enumerate(tab10) if color in colors} - {7} == present


def test_wrong_usage():
    for words, message in [
        (["--images", "0"], "from 1 to 50"), (["--times"], "needs one value"), (["--out", "x.jpg"], "PNG"),
        (["--data.augmnt", "none"], "did you mean"), (["--images", "1", "--images", "2"], "one value"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            main(words)
