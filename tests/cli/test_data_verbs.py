"""vitrail data: stats, audit and split from the command line, and what training makes of them."""

import json
import re
import shlex

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.images import make_folder, save_image
from vitrail.cli.main import main

MODEL = ["--model.name", "vit", "--model.img_size", "16", "--model.patch_size", "8", "--model.embed_dim", "8",
         "--model.depth", "1", "--model.num_heads", "2"]  # fmt: skip
QUICK = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--data.loader.num_workers", "0",
         "--run.tensorboard", "false", "--data.batch_size", "4"]  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    return make_folder(tmp_path / "photos", per_class=6)


@pytest.mark.slow
def test_stats_are_printed_written_and_trained_with(photos, tmp_path, capsys):
    data = ["--data.source", "folder", "--data.path", str(photos)]
    out = tmp_path / "stats.json"
    assert main(["data", "stats", *data, "--data.img_size", "16", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert [line.split()[:2] for line in said.out.splitlines()[1:4]] == [["image", b] for b in ("red", "green", "blue")]
    assert "12 training images" in said.out
    content = json.loads(out.read_text())
    content["streams"]["image"][1]["mean"] = 0.123
    out.write_text(json.dumps(content))
    run = tmp_path / "run"
    assert main(["train", *data, *MODEL, *QUICK, "--data.values.statistics", str(out), "--run.dir", str(run)]) == 0
    assert json.loads((run / "model.json").read_text())["streams"]["image"]["mean"][1] == 0.123
    capsys.readouterr()
    assert main(["data", "stats", str(run / "recipe.yaml"), "--json", "--most", "5"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 5


def test_audit_tells_a_leak_by_its_exit_code_and_mends_it(photos, tmp_path, capsys):
    audit = ["data", "audit", "--data.source", "folder", "--data.path", str(photos)]
    rng = np.random.default_rng(0)
    for i, path in enumerate(sorted(photos.rglob("*.*"))):  # noise of one brightness hashes at random
        save_image(path, (24, 24), level=int(rng.integers(60, 190)), seed=i)
    assert main(audit) == 0
    assert "a split leaks" not in capsys.readouterr().out
    first = sorted((photos / "train" / "dark").iterdir())[0]
    (photos / "test" / "dark" / f"copy{first.suffix}").write_bytes(first.read_bytes())
    page, groups = tmp_path / "page.html", tmp_path / "groups.csv"
    assert main([*audit, "--out", str(page), "--groups", str(groups)]) == 1
    said = capsys.readouterr().out
    assert "duplicates across splits" in said
    assert f"copy{first.suffix} (test) = " in said or f"= test/dark/copy{first.suffix} (test)" in said
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 2
    assert "http" not in text.replace("http://www.w3.org", "")
    assert main([*audit, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["split_leaks"] is True
    mended = ["data", "audit", "--data.source", "table", "--data.path", str(groups), "--data.split", "grouped"]
    assert main(mended) == 0


def test_split_shows_and_writes_a_table_that_trains(photos, tmp_path, capsys):
    out = tmp_path / "split.csv"
    assert main(["data", "split", "--data.source", "folder", "--data.path", str(photos), "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["all", "12", "12", "12"]
    table = pd.read_csv(out)
    assert table.groupby(["split", "label"]).size().tolist() == [6] * 6
    assert main(["data", "split", "--data.source", "table", "--data.path", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["all", "12", "12", "12"]


def test_files_that_cannot_be_read_are_refused_or_listed_in_the_run(photos, tmp_path, capsys):
    broken = [photos / "train" / "dark" / f"broken{i}.jpg" for i in range(5)]
    for path in broken:
        path.write_bytes(b"\xff\xd8\xff nothing")
    command = ["train", "--data.source", "folder", "--data.path", str(photos), *MODEL, *QUICK, "--run.dir"]
    assert main([*command, str(tmp_path / "a")]) == 1
    said = capsys.readouterr().err
    assert all(path.name in said for path in broken)
    assert "on_unreadable skip" in said
    assert not (tmp_path / "a").exists()
    run = tmp_path / "b"
    assert main([*command, str(run), "--data.errors.on_unreadable", "skip"]) == 0
    listed = pd.read_csv(run / "unreadable.csv")
    assert listed["path"].tolist() == [f"train/dark/{path.name}" for path in broken]
    assert "5 files are left out, unreadable" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--split", "train"]) == 0
    said = capsys.readouterr().out
    assert "12 images" in said
    assert "5 files left out, unreadable" in said


@pytest.mark.slow
def test_a_run_of_two_streams_does_not_take_pictures_alone(tmp_path, capsys):
    run = tmp_path / "run"
    hvt = ["--model.name", "hvt", "--model.img_size", "16", "--model.patch_size", "4", "--model.embed_dim", "8",
           "--model.depths", "[1,1]", "--model.num_heads", "[1,2]", "--model.spectral_embed_dim", "8",
           "--model.fusion_heads", "2"]  # fmt: skip
    leaves = ["--data.source", "synthetic_leaves", "--data.leaves.num_images", "120"]
    assert main(["train", *leaves, *hvt, *QUICK, "--run.dir", str(run)]) == 0
    assert main(["evaluate", str(run)]) == 0
    capsys.readouterr()
    picture = save_image(tmp_path / "x.png")
    assert main(["predict", str(run), str(picture)]) == 2
    assert (
        "has the bands red_edge_1, red_edge_2, nir, swir_1, swir_2, which image files do not bring"
        in capsys.readouterr().err
    )


def test_wrong_words(capsys):
    assert main(["data"]) == 2
    assert main(["data", "--help"]) == 0
    assert "audit" in capsys.readouterr().out
    for words, message in (
        (["stat"], "did you mean 'stats'"),
        (["stats"], "needs a recipe or settings"),
        (["stats", "--data.source", "digits", "--most", "0"], "--most must be at least 1"),
        (["audit", "--data.source", "digits", "--distance", "16"], "--distance must be from 0 to 15"),
        (["stats", "--data.sauce", "digits"], "did you mean"),
        (["stats", "--data.source", "digits", "--oot", "x"], "unknown option '--oot'"),
    ):
        assert main(["data", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_turned_copies_are_kept_together_by_the_printed_commands(tmp_path, capsys, monkeypatch):
    """Originals and copies of them, turned or mirrored and recompressed, each in a folder of its own."""
    rng = np.random.default_rng(7)
    turns = list(Image.Transpose)
    for name in "ab":
        for i in range(10):
            knots = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
            pixels = np.asarray(knots.resize((64, 64), Image.Resampling.BICUBIC)) + rng.normal(0, 6, (64, 64, 3))
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            for kind, made in (("orig", image), ("rotated", image.transpose(turns[i % 7]))):
                path = tmp_path / "d" / name / kind / f"{kind}{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                made.save(path, quality=90)
    monkeypatch.chdir(tmp_path)
    assert main(["data", "audit", "--data.source", "folder", "--data.path", "d"]) == 1
    output = capsys.readouterr().out
    assert re.search(r"near duplicates\s+20\b", output)
    commands = [shlex.split(line)[1:] for line in output.splitlines() if line.startswith("  vitrail ")]
    assert [command[0] for command in commands] == ["data", "train"]
    main(commands[0])
    groups = pd.read_csv("groups.csv")
    assert len(groups) == 40
    assert (groups.groupby("group").size() == 2).all()
    capsys.readouterr()
    assert main(["data", "audit", *commands[1][1:]]) == 0
    assert re.search(r"duplicates across splits\s+0\b", capsys.readouterr().out)


def test_groups_of_a_multi_label_table_are_trained_on(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(3)
    rows = []
    for i in range(24):
        pixels = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((5, 5, 1))).astype(np.uint8)
        for name, made in ((f"{i}.png", pixels), (f"x{i}.png", pixels[::-1])):
            Image.fromarray(made).save(tmp_path / name)
            rows.append({"file": name, "tags": ("sun|rain", "sun", "")[i % 3]})
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.chdir(tmp_path)
    settings = ["--data.source", "table", "--data.path", "t.csv", "--data.table.image_column", "file",
                "--data.table.label_column", "tags", "--data.table.label_separator", "|"]  # fmt: skip
    assert main(["data", "audit", *settings]) == 1
    commands = [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("  vitrail ")]
    main(commands[0])
    assert set(pd.read_csv("groups.csv", keep_default_na=False)["label"]) == {"rain;sun", "sun", ""}
    assert main(["data", "audit", *commands[1][1:]]) == 0
