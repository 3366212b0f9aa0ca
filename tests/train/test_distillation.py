"""Training with a teacher: a run or an export, classes in any order, resuming, and every misuse in one line."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from tests.cli.test_verbs import SMALL, fails
from tests.deploy.eager import run_eagerly
from tests.deploy.exporting import QUICK
from tests.images import make_folder
from vitrail.cli.main import main
from vitrail.errors import ConfigError
from vitrail.runs import RunFolder, load_trained
from vitrail.runs.trained import ModelCard, StreamCard
from vitrail.train.teacher import LoadedTeacher, teacher_hash


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"), splits=("train", "val"), per_class=6)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, images):
    run = tmp_path_factory.mktemp("runs") / "teacher"
    assert main(["train", "--data.source", "folder", "--data.path", str(images), *SMALL, "--run.dir", str(run)]) == 0
    return run


def _distill(images, teacher, run, *words):
    return ["train", "--data.source", "folder", "--data.path", str(images), *SMALL, "--task.name", "distill",
            "--task.teacher", str(teacher), "--run.dir", str(run), *words]  # fmt: skip


def test_a_run_with_the_token(images, teacher, tmp_path, capsys):
    run = tmp_path / "student"
    words = _distill(images, teacher, run, "--model.dist_token", "true", "--task.distillation", "hard")
    assert main(words) == 0
    metrics = RunFolder(run).read_metrics()
    assert len(metrics) == 2
    trained = load_trained(run)
    assert trained.model.head_dist is not None
    assert trained.classify({"image": torch.rand(2, 3, 16, 16)})[0].shape == (2, 2)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["inputs"]["task.teacher"] == RunFolder(teacher).weights_hash()
    checkpoint = torch.load(RunFolder(run).last_checkpoint, weights_only=False)
    assert not [key for key in checkpoint["state_dict"] if "teacher" in key]
    words[words.index("--trainer.max_epochs") + 1] = "3"
    assert main([*words, "--resume"]) == 0
    assert len(RunFolder(run).read_metrics()) == 3
    assert main(["evaluate", str(run)]) == 0


@pytest.fixture(scope="module")
def exported(teacher):
    """An export of the teacher, run in eager mode."""
    out = teacher.parent / "exported"
    with run_eagerly():
        assert main(["export", str(teacher), "--out", str(out), *QUICK]) == 0
        yield out


@pytest.mark.slow
def test_an_export(images, teacher, exported, tmp_path, capsys):
    run = tmp_path / "student"
    assert main(_distill(images, exported, run)) == 0
    environment = json.loads((run / "environment.json").read_text())
    assert environment["inputs"]["task.teacher"] == teacher_hash(exported)
    assert len(RunFolder(run).read_metrics()) == 2
    capsys.readouterr()


@pytest.mark.parametrize("size", [16, 24])
def test_an_export_sees_the_levels_of_augmented_images(teacher, exported, size):
    card = load_trained(teacher).card
    student = dataclasses.replace(card, classes=card.classes[::-1])
    x = torch.rand(5, 3, size, size) * 1.4 - 0.2
    resized = F.interpolate(x, size=(16, 16), mode="bilinear", antialias=True) if size > 16 else x
    levels = (resized.clamp(0, 1) * 255).round() / 255
    found = LoadedTeacher(exported, student)({"image": x})
    assert torch.allclose(found, LoadedTeacher(teacher, student)({"image": levels}), atol=1e-5)


def _card(classes, bands=("red", "green", "blue")):
    return ModelCard("vit", {}, classes, {"image": StreamCard(bands, (0.5,) * 3, (0.2,) * 3, (16, 16), "uint8")})


def test_classes_are_ordered_as_the_students(teacher):
    trained = load_trained(teacher)
    x = torch.rand(3, 3, 16, 16)
    expected = trained.classify(x)[0]
    names, bands = trained.card.classes, trained.card.streams["image"].bands
    assert torch.allclose(LoadedTeacher(teacher, _card(names, bands))({"image": x}), expected)
    turned = LoadedTeacher(teacher, _card(names[::-1], bands))
    assert torch.allclose(turned({"image": x}), expected.flip(1))
    logits = turned({"image": torch.rand(2, 3, 24, 24)})  # resized to the teacher's size
    assert logits.shape == (2, 2)
    assert not logits.is_inference()


def test_misuse_is_one_clear_line(images, teacher, tmp_path, capsys):
    run = tmp_path / "x"
    fails(capsys, _distill(images, tmp_path / "none", run), 1, "no run folder at")
    without = [w for w in _distill(images, teacher, run) if w not in ("--task.teacher", str(teacher))]
    fails(capsys, without, 2, "task.teacher is missing")
    fails(capsys, _distill(images, teacher, run, "--task.alpha", "1.5"), 2, "task.alpha must be from 0 to 1, got 1.5")
    other = make_folder(tmp_path / "other", classes=("light", "green"), splits=("train", "val"), per_class=4)
    fails(capsys, _distill(other, teacher, run), 2, "other classes than the data: it lacks green; the data lacks dark")


def test_other_inputs_and_classes_are_refused(teacher, exported):
    card = load_trained(teacher).card
    gray = StreamCard(("gray",), (0.5,), (0.2,), (16, 16), "uint8")
    students = {
        r"red, green, blue \(uint8\), and the data has image: gray \(uint8\)": {"streams": {"image": gray}},
        "it lacks green; the data lacks dark": {"classes": ("green", "light")},
        "needs one label an image": {"label_separator": ";"},
    }
    for path in (teacher, exported):
        for message, changes in students.items():
            with pytest.raises(ConfigError, match=message):
                LoadedTeacher(path, dataclasses.replace(card, **changes))
