"""Which files under a folder are images, for every source and verb."""

import os

import numpy as np
import pytest
import tifffile
from matplotlib.figure import Figure
from PIL import Image

from tests.images import make_folder, save_image
from tests.settings import data_config
from vitrail.cli.main import main
from vitrail.config import DataConfig
from vitrail.data import open_data
from vitrail.data.listing import describe_passed_over, is_tiff, list_by_suffix, list_images
from vitrail.errors import DataError
from vitrail.figures.picture import Picture, finish_picture
from vitrail.figures.write import write_both as save_figure
from vitrail.files import is_lfs_pointer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d7a" * 16 + "\nsize 12345\n"


def folder(path, **settings):
    return open_data(data_config(source="folder", path=str(path), **settings), (8, 8))


def names(listing):
    return [file.relative_to(listing.root).as_posix() for file in listing.files]


def encode(path, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (9, 9, 3), "uint8")).save(path, kind)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "TGA"])
@pytest.mark.parametrize("name", ["photo", "photo.dat", "IMG.JPG", "photo.txt", "photo.v2"])
@pytest.mark.fast_cases("photo-BMP", "photo-WEBP", "photo.dat-PPM", "IMG.JPG-JPEG", "photo.v2-GIF")
def test_an_image_is_known_by_its_content(tmp_path, kind, name):
    if kind == "TGA" and name == "photo.txt":
        pytest.skip("TGA has no beginning of its own")
    encode(tmp_path / name, kind)
    assert names(list_images(tmp_path)) == [name]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.xml", b"<annotation/>"), ("b.json", b"{}"), ("notes.txt", b"P5 is patient five"), ("README", b"Photos."),
        ("desktop.ini", b"[x]"), ("Thumbs.db", b"\xd0\xcf\x11\xe0"), ("c.npy", b"\x93NUMPY\1\0"), ("d.csv", b""),
        ("e.tif.ovr", b"II*\0"), ("f.mp4", b"\0\0\0\x18ftypmp42"), ("g.xml", POINTER.encode()), ("h", b"Pages of text"),
        ("i.XML", b"<a/>"), ("j.latin", "caf\u00e9".encode("latin-1")),
    ],
)  # fmt: skip
def test_what_never_was_an_image_is_passed_over_and_counted(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    listing = list_images(tmp_path)
    assert listing.files == []
    assert [file.name for file in listing.passed_over] == [name]
    assert describe_passed_over([listing])[0].startswith("passed over 1 file that is not an image: 1 ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jpg", b""), ("b.PNG", b"text"), ("c", b"\xff\xd8\xff\xe0 cut"), ("d.xyz", b"\x89PNG\r\n\x1a\n"),
        ("e.tiff", b"\0\0"), ("f", POINTER.encode()), ("g.dcm", b"\0" * 200), ("h.txt", b"\x89PNG\r\n\x1a\n"),
    ],
)  # fmt: skip
def test_a_damaged_image_stays_an_error(tmp_path, name, content):
    make_folder(tmp_path, splits=(), per_class=4)
    (tmp_path / "dark" / name).write_bytes(content)
    with pytest.raises(DataError, match=f"1 of 9 files.*{name}"):
        folder(tmp_path)


def test_a_damaged_file_among_images_without_suffix_is_an_error_and_a_text_is_not(tmp_path):
    for name in ("dark", "light"):
        for i in range(8):
            encode(tmp_path / name / f"0{i}ab", "PNG")
        (tmp_path / name / "LICENSE").write_text("free")
    assert len(folder(tmp_path, splitting__val_fraction=0.2).source) == 16
    (tmp_path / "dark" / "broken").write_bytes(b"\0" * 300)
    with pytest.raises(DataError, match=r"1 of 17 files.*broken"):
        folder(tmp_path)


def test_links_are_entered_once_and_never_in_circles(tmp_path):
    for name in ("a", "b"):
        save_image(tmp_path / "d" / name / "deep" / "0.png")
    (tmp_path / "d" / "a" / "self").symlink_to(".")
    (tmp_path / "d" / "a" / "deep" / "up").symlink_to("..")
    (tmp_path / "d" / "a" / "root").symlink_to(tmp_path / "d")
    (tmp_path / "d" / "a" / "same").symlink_to("deep")
    (tmp_path / "d" / "a" / "endless.png").symlink_to("endless.png")
    listing = list_images(tmp_path / "d" / "a")
    assert names(listing) == ["deep/0.png", "endless.png"]
    assert sorted(path.name for path in listing.loops) == ["root", "self", "up"]
    assert [path.name for path in listing.repeated] == ["same"]
    assert names(list_images(tmp_path / "d" / "a", each=True)) == ["deep/0.png", "endless.png", "same/0.png"]
    # Two folders that link to each other.
    (tmp_path / "d" / "a" / "endless.png").unlink()
    save_image(tmp_path / "x" / "1.png")
    (tmp_path / "x" / "back").symlink_to(tmp_path / "d" / "a")
    (tmp_path / "d" / "a" / "over").symlink_to(tmp_path / "x")
    for each in (False, True):
        assert "over/1.png" in names(list_images(tmp_path / "d" / "a", each=each))


def test_a_link_at_the_top_that_leads_back_is_no_class(tmp_path, capsys):
    make_folder(tmp_path, splits=(), per_class=4)
    (tmp_path / "again").symlink_to(".")
    assert folder(tmp_path).source.classes == ("dark", "light")
    assert "1 link to a folder above, not followed" in capsys.readouterr().err


def test_a_file_behind_several_links_counts_once_a_class(tmp_path, capsys):
    make_folder(tmp_path, splits=("train", "val"), per_class=5)
    for i in range(3):
        first = next(iter(sorted((tmp_path / "train" / "dark").glob("0.*"))))
        (tmp_path / "train" / "dark" / f"link{i}{first.suffix}").symlink_to(first)
    assert len(folder(tmp_path).source) == 20
    assert "3 images reached through links a second time, taken once" in capsys.readouterr().err
    assert len(folder(tmp_path, images__repeated_files="each").source) == 23
    assert "3 images reached through links a second time, taken each time" in capsys.readouterr().err
    other = next((tmp_path / "train" / "light").iterdir())
    (tmp_path / "val" / "light" / other.name).unlink(missing_ok=True)
    (tmp_path / "val" / "light" / f"copy{other.suffix}").symlink_to(other)
    for repeated in ("once", "each"):
        with pytest.raises(DataError, match=r"1 file in several .*\(train/light\) and .*copy.*\(val/light\)"):
            folder(tmp_path, images__repeated_files=repeated)


def test_one_file_in_two_classes_names_both(tmp_path):
    make_folder(tmp_path, splits=())
    first = sorted((tmp_path / "dark").iterdir())[0]
    (tmp_path / "light" / f"too{first.suffix}").symlink_to(first)
    with pytest.raises(DataError, match=rf"{first} \(dark\) and {tmp_path}/light/too.* \(light\)"):
        folder(tmp_path)


def test_what_vitrail_wrote_is_no_data(tmp_path, capsys):
    make_folder(tmp_path / "d", splits=(), per_class=4)
    for root in (tmp_path / "d" / "runs" / "x", tmp_path / "d" / "dark" / "runs" / "y"):
        save_image(root / "figures" / "curves.png")
        (root / "recipe.yaml").write_text("{}")
        (root / "environment.json").write_text("{}")
    save_image(tmp_path / "d" / "light" / "why" / "panels" / "0.png")
    (tmp_path / "d" / "light" / "why" / "explanations.json").write_text("{}")
    data = folder(tmp_path / "d")
    assert data.source.classes == ("dark", "light")
    assert len(data.source) == 8
    assert "passed over 3 folders that vitrail wrote" in capsys.readouterr().err
    pile = open_data(DataConfig(source="unlabelled", path=str(tmp_path / "d")), (8, 8))
    assert len(pile.source) == 8
    # A recipe by itself makes no run of a folder.
    save_image(tmp_path / "e" / "0.png")
    (tmp_path / "e" / "recipe.yaml").write_text("{}")
    assert len(list_images(tmp_path).files) == 9


@pytest.mark.parametrize("system", ["__MACOSX", "@eaDir", ".thumbnails", "$RECYCLE.BIN"])
def test_folders_of_systems_hold_no_data(tmp_path, system):
    make_folder(tmp_path, splits=(), per_class=4)
    save_image(tmp_path / system / "a" / "0.png")
    save_image(tmp_path / "dark" / system / "0.png")
    data = folder(tmp_path)
    assert data.source.classes == ("dark", "light")
    assert len(data.source) == 8


def test_pointers_are_counted_and_left_out_on_request(tmp_path):
    make_folder(tmp_path, splits=(), per_class=4)
    for i in range(4):
        (tmp_path / "dark" / f"p{i}.jpg").write_text(POINTER)
    with pytest.raises(DataError, match=r"^4 of 12 files are Git LFS pointers .*: run `git lfs pull`") as told:
        folder(tmp_path)
    assert str(told.value).count("git lfs pull") == 1
    skipped = folder(tmp_path, errors__on_unreadable="skip")
    assert len(skipped.source) == 8
    assert all("git lfs pull" in problem for _, problem in skipped.source.left_out)
    for i in range(4):
        (tmp_path / "dark" / f"p{i}.jpg").rename(tmp_path / "dark" / f"p{i}.tif")
    with pytest.raises(DataError, match=r"^4 of 12 files are Git LFS pointers"):
        folder(tmp_path, bands__names=("r", "g", "b"))
    assert is_lfs_pointer(POINTER.encode())
    assert not is_lfs_pointer(POINTER.encode() * 20)


def test_a_class_without_an_image_that_can_be_read_is_named(tmp_path):
    make_folder(tmp_path, splits=(), per_class=4)
    (tmp_path / "rare").mkdir()
    (tmp_path / "rare" / "0.jpg").write_bytes(b"\xff\xd8\xff cut")
    with pytest.raises(DataError, match="no image of rare can be read"):
        folder(tmp_path, errors__on_unreadable="skip")


@pytest.mark.fast_cases(".tif")
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_one_remedy_for_a_whole_set_of_gray_images(tmp_path, suffix):
    for name in ("a", "b"):
        for i in range(4):
            save_image(tmp_path / name / f"{i}{suffix}", mode="L", seed=i)
    with pytest.raises(DataError, match=r"8 of 8 images have 1 band \(L\)") as told:
        folder(tmp_path)
    assert "--data.color gray" in str(told.value)
    assert str(told.value).count("on_band_mismatch") == 1
    assert str(told.value).index("--data.color gray") < str(told.value).index("on_band_mismatch")
    assert len(folder(tmp_path, color="gray").source) == 8
    # A few gray ones among others are not a gray set.
    make_folder(tmp_path / "few", splits=(), per_class=4)
    save_image(tmp_path / "few" / "dark" / f"gray{suffix}", mode="L")
    with pytest.raises(DataError, match="gray") as told:
        folder(tmp_path / "few")
    assert "--data.color gray" not in str(told.value)


def test_the_remedy_for_deep_images_fits_their_format(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            tifffile.imwrite(tmp_path / name / f"{i}.tif", np.full((9, 9), 900 + i, np.uint16))
    with pytest.raises(DataError, match=r"6 of 6 images have more than 8 bits a band .*data.bands.names") as told:
        folder(tmp_path)
    assert "make it a TIFF" not in str(told.value)


def test_a_tiff_is_known_by_its_content(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((9, 9), np.uint16))
    os.rename(tmp_path / "x.tif", tmp_path / "x.dat")
    encode(tmp_path / "y.tif", "PNG")
    (tmp_path / "z.tif").write_bytes(b"cut")
    assert [is_tiff(tmp_path / name) for name in ("x.dat", "y.tif", "z.tif")] == [True, False, True]


def test_animations_palettes_and_transparent_images_have_remedies_of_their_own(tmp_path):
    frames = [Image.fromarray(np.full((16, 16), level, np.uint8)) for level in (40, 90, 200)]
    for name in ("a", "b"):
        (tmp_path / "gif" / name).mkdir(parents=True)
        for i in range(4):
            more = frames[1 : 2 + i % 2]
            frames[0].save(tmp_path / "gif" / name / f"{i}.gif", save_all=True, append_images=more)
            save_image(tmp_path / "clear" / name / f"{i}.png", mode="RGBA", seed=i)
    with pytest.raises(DataError, match=r"^8 of 8 images hold several images .*which takes the first") as told:
        folder(tmp_path / "gif")
    assert "color gray" not in str(told.value)
    assert str(told.value).count("on_band_mismatch") == 1
    assert len(folder(tmp_path / "gif", errors__on_band_mismatch="convert").source) == 8
    with pytest.raises(DataError, match=r"^8 of 8 images have 4 bands \(RGBA\) and are partly transparent") as told:
        folder(tmp_path / "clear")
    assert str(told.value).count("on_band_mismatch") == 1


def test_a_set_of_several_kinds_gives_each_remedy_once(tmp_path):
    make_folder(tmp_path, splits=(), per_class=4)
    for i in range(3):
        save_image(tmp_path / "dark" / f"gray{i}.png", mode="L")
        save_image(tmp_path / "dark" / f"clear{i}.png", mode="RGBA")
    with pytest.raises(DataError, match=r"^6 of 14 images have other bands: 3 of 14 images have .*; 3 of 14") as told:
        folder(tmp_path)
    assert str(told.value).count("convert it") == 1
    assert str(told.value).count("flatten it") == 1


@pytest.mark.drawn
def test_a_figure_of_vitrail_is_no_image(tmp_path, capsys):
    make_folder(tmp_path / "d", splits=(), per_class=4)
    save_figure(Figure(layout="constrained"), tmp_path / "d" / "dark", "anatomy")
    finish_picture(Picture("curves", "", ""), Figure(), tmp_path / "d" / "light")
    assert len(folder(tmp_path / "d").source) == 8
    assert "passed over 2 figures that vitrail drew" in capsys.readouterr().err
    # The folder of a report's figures, which are SVG as well, is not a class.
    finish_picture(Picture("curves", "", ""), Figure(), tmp_path / "d" / "report_figures")
    (tmp_path / "d" / "report_figures" / "curves.svg").write_text("<svg/>")
    assert folder(tmp_path / "d").source.classes == ("dark", "light")


@pytest.mark.parametrize(("source", "name"), [("table", "t.csv"), ("parquet", "t.parquet"), ("arrays", "x.npz")])
def test_a_pointer_in_the_place_of_a_table_or_of_arrays(tmp_path, source, name):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(DataError, match=rf"{name} is a Git LFS pointer .*git lfs pull"):
        open_data(DataConfig(source=source, path=str(tmp_path / name)), (8, 8))


def test_a_folder_of_parquet_files_lists_none_of_a_run(tmp_path):
    for name in ("train-0.parquet", "runs/x/predictions/test.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for name in ("recipe.yaml", "environment.json"):
        (tmp_path / "runs" / "x" / name).write_text("{}")
    assert [file.name for file in list_by_suffix(tmp_path, ".parquet")] == ["train-0.parquet"]


def test_a_run_inside_its_images_resumes_and_is_no_data_of_the_next(tmp_path):
    for i in range(8):
        save_image(tmp_path / "pile" / f"{i}.png", seed=i)
    words = (
        f"--data.source unlabelled --data.path {tmp_path}/pile --data.img_size 16 --data.loader.num_workers 0 "
        "--model.name vit --model.patch_size 8 --model.embed_dim 8 --model.depth 1 --model.num_heads 2 "
        "--trainer.accelerator cpu --run.tensorboard false --task.name simmim --task.mask_size 8 "
        "--task.watch_every 0 --run.explain_images 1"
    ).split()
    run = tmp_path / "pile" / "runs" / "x"
    assert main(["pretrain", *words, "--trainer.max_epochs", "1", "--run.dir", str(run)]) == 0
    assert list(run.glob("figures/**/*.png"))
    assert main(["pretrain", str(run / "recipe.yaml"), "--resume", "--trainer.max_epochs", "2"]) == 0
    data = open_data(DataConfig(source="unlabelled", path=str(tmp_path / "pile")), (8, 8))
    assert len(data.source) == 8


def test_a_hard_link_is_the_same_file(tmp_path, capsys):
    make_folder(tmp_path, splits=(), per_class=8)
    first = sorted((tmp_path / "dark").iterdir())[0]
    (tmp_path / "dark" / f"more{first.suffix}").hardlink_to(first)
    assert len(folder(tmp_path).source) == 16
    assert "1 image reached through links a second time, taken once" in capsys.readouterr().err
    (tmp_path / "light" / f"too{first.suffix}").hardlink_to(first)
    with pytest.raises(DataError, match=r"1 file in several classes or splits through links: .*\(dark\).*\(light\)"):
        folder(tmp_path)


def test_of_many_damaged_files_the_first_are_named(tmp_path):
    make_folder(tmp_path, splits=(), per_class=8)
    for i in range(40):
        (tmp_path / "dark" / f"page{i:02d}.jpg").write_text("<!DOCTYPE html><title>404</title>")
    with pytest.raises(DataError, match=r"40 of 56 files .*page09\.jpg .*and 30 more; remove or replace") as caught:
        folder(tmp_path)
    assert "page10" not in str(caught.value)
