"""Every verb on clips and on point clouds: it works, or one line says what it takes and what to do instead."""

import contextlib
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.cli.main import main
from vitrail.models.modality import MODALITIES, NEEDS, check_need, describe_unmet

FAST = ["--data.batch_size", "4", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
        "--trainer.precision", "32-true"]  # fmt: skip
SMALL = {
    "video": ("vivit", {"num_frames": "4", "img_size": "12", "tubelet_size": "[2,6,6]", "embed_dim": "16",
                        "depth": "2", "num_heads": "2"}),
    "points": ("vnt", {"num_points": "24", "num_neighbors": "4", "embed_dim": "8", "depth": "1", "num_heads": "2",
                       "head_hidden_size": "8"}),
}  # fmt: skip


def _write_inputs(folder, kind):
    """Write 12 inputs of two classes: gray clips as folders of frames, or clouds."""
    rng = np.random.default_rng(0)
    for label, number in ((label, i) for label in ("a", "b") for i in range(6)):
        path = folder / label / f"{number}"
        if kind == "points":
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savetxt(path.with_suffix(".xyz"), rng.normal(size=(40, 3)) * (1, 1, 1 if label == "a" else 0.1))
            continue
        path.mkdir(parents=True)
        for frame in range(5):
            pixels = rng.integers(0, 255, (14, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(path / f"{frame}.png")


class Place:
    """A folder with inputs and a tiny run on them."""

    def __init__(self, root, kind):
        self.root, self.kind = root, kind
        self.name, self.settings = SMALL[kind]
        _write_inputs(root / "inputs", kind)
        source = ["videos", "--data.color", "gray"] if kind == "video" else ["points"]
        model = [word for key, value in self.settings.items() for word in (f"--model.{key}", value)]
        self.data = ["--data.source", *source, "--data.path", "inputs", "--data.split", "exact",
                     "--model.name", self.name, *model, *FAST]  # fmt: skip
        self.file = "inputs/a/0" if kind == "video" else "inputs/a/0.xyz"
        sets = [f"{key}={value}" for key, value in self.settings.items() if key != "img_size"]
        self.set = ["--set", *sets, *(["--img-size", "12"] if kind == "video" else [])]

    def words(self, command):
        for word in command:
            yield from {"DATA": self.data, "FILE": [self.file], "MODEL": [self.name], "SET": self.set}.get(word, [word])


def _call(argv):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module", params=["video", "points"])
def place(request, tmp_path_factory):
    found = Place(tmp_path_factory.mktemp(request.param), request.param)
    with contextlib.chdir(found.root):
        code, _, err = _call(["train", *found.data, "--run.dir", "run"])
        assert code == 0, err
        code, _, err = _call(["evaluate", "run", "--resamples", "100"])
        assert code == 0, err
    return found


# Command -> the need that it has, where not every input will do.
COMMANDS = {
    "models MODEL": "",
    "inspect run": "",
    "inspect run --diagram run.svg": "",
    "inspect run --image FILE": "inspect --image",
    "inspect run --spectral FILE": "inspect --spectral",
    "inspect run --figures drawn": "inspect --figures",
    "weights run": "",
    "data stats DATA": "data stats",
    "data audit DATA": "data audit",
    "data audit --run run": "data audit",
    "data split DATA": "",
    "data show DATA --out shown.png --images 2 --times 1": "",
    "pretrain DATA --task.name mae --task.mask_ratio 0.5 --run.dir pretrained": "pretrain",
    "pretrain DATA --task.name simmim --run.dir pretrained": "task.name simmim",
    "pretrain DATA --task.name simclr --run.dir pretrained_by_views": "pretrain",
    "train DATA --run.dir run --resume": "",
    "evaluate run --resamples 100 --missing": "",
    "evaluate run --resamples 100 --tta mirror": "evaluate --tta",
    "evaluate run --resamples 100 --tta turns": "evaluate --tta",
    "evaluate run --resamples 100 --tta crops": "evaluate --tta",
    "evaluate run --resamples 100 --tta up": "evaluate --tta up",
    "evaluate run --resamples 100 --tta so3": "evaluate --tta so3",
    "evaluate run --resamples 100 --data.video.views 2": "evaluate --data.video.views/crops",
    "evaluate run --resamples 100 --corruptions": "evaluate --corruptions",
    "evaluate run --resamples 100 --attacks": "evaluate --attacks",
    "evaluate run --resamples 100 --ood inputs": "evaluate --ood",
    "evaluate run --resamples 100 --rotations": "evaluate --rotations",
    "explain run --out explained": "",
    "explain run FILE --out explained_file": "",
    "explain run --out measured --measure": "explain --measure",
    "explain run --out resized --size 24": "explain --size",
    "explain run --structure all --out structure --split train": "",
    "explain run --structure position_similarity": "explain --structure position_similarity",
    "explain run --structure attention_distance --number 4": "explain --structure attention_distance",
    "explain run --structure head_focus": "explain --structure head_focus",
    "features run --layout pca --split train": "",
    "predict run inputs": "",
    "predict run FILE": "",
    "predict run FILE --tta mirror": "predict --tta",
    "predict run FILE --window 0.1 --data.video.folder_fps 25": "predict --window",
    "predict run FILE --window 0.1 --step 0.05 --data.video.folder_fps 25": "predict --step",
    "predict run FILE --overlay overlaid": "predict --overlay",
    "export run --image-size 24": "export --image-size",
    "bench run --rounds 1 --no-memory --batch 2": "",
    "bench MODEL SET --rounds 1 --no-memory --batch 2 --mode train": "",
    "bench run --rounds 1 --no-memory --batch 2 --img-size 18": "bench --img-size",
    "report run": "",
}


@pytest.fixture(autouse=True)
def _known_peak(monkeypatch):
    """The machine's matrix products are not measured again for every command."""
    monkeypatch.setattr("vitrail.bench.side_by_side.matrix_peak", lambda device, precision: 1e9)


@pytest.mark.slow_cases(
    "points-bench MODEL SET --rounds 1 --no-memory --batch 2 --mode train",
    "points-bench run --rounds 1 --no-memory --batch 2",
    "points-data audit DATA",
    "points-evaluate run --resamples 100 --attacks",
    "points-evaluate run --resamples 100 --ood inputs",
    "points-evaluate run --resamples 100 --tta up",
    "points-explain run --out explained",
    "points-explain run --structure all --out structure --split train",
    "points-features run --layout pca --split train",
    "points-inspect run",
    "points-inspect run --diagram run.svg",
    "points-inspect run --spectral FILE",
    "points-predict run FILE",
    "points-predict run inputs",
    "points-pretrain DATA --task.name mae --task.mask_ratio 0.5 --run.dir pretrained",
    "video-bench MODEL SET --rounds 1 --no-memory --batch 2 --mode train",
    "video-bench run --rounds 1 --no-memory --batch 2 --img-size 18",
    "video-data audit --run run",
    "video-data audit DATA",
    "video-data split DATA",
    "video-evaluate run --resamples 100 --corruptions",
    "video-evaluate run --resamples 100 --data.video.views 2",
    "video-evaluate run --resamples 100 --missing",
    "video-evaluate run --resamples 100 --rotations",
    "video-evaluate run --resamples 100 --tta crops",
    "video-evaluate run --resamples 100 --tta mirror",
    "video-evaluate run --resamples 100 --tta turns",
    "video-explain run --out explained",
    "video-inspect run",
    "video-pretrain DATA --task.name mae --task.mask_ratio 0.5 --run.dir pretrained",
    "video-pretrain DATA --task.name simclr --run.dir pretrained_by_views",
    "video-train DATA --run.dir run --resume",
    "video-weights run",
)
@pytest.mark.parametrize("command", COMMANDS)
def test_works_or_is_refused_in_one_line(place, command, monkeypatch):
    monkeypatch.chdir(place.root)
    code, out, err = _call([*place.words(command.split())])
    unmet = describe_unmet(COMMANDS[command], MODALITIES[place.kind], "")
    if unmet is None:
        assert code == 0, err
        return
    assert code == 2
    assert not out
    lines = err.splitlines()
    assert len(lines) == 1
    # The name of what has these inputs stands in the parentheses.
    start, _, end = unmet.partition("()")
    assert lines[0].startswith(f"vitrail: error: {start}(")
    assert end in lines[0]


@pytest.mark.slow
def test_methods_explain_or_state_the_reason(place, monkeypatch):
    from vitrail.explain.methods.registry import METHODS
    from vitrail.runs import load_trained

    monkeypatch.chdir(place.root)
    model = load_trained("run").model
    able = [name for name, method in METHODS.items() if method.refusal(model) is None]
    code, _, err = _call(["explain", "run", "--number", "1", "--out", "methods", "--method", *able])
    assert code == 0, err
    for name in set(METHODS) - set(able):
        code, _, err = _call(["explain", "run", "--number", "1", "--out", "refused", "--method", name])
        assert code == 2
        assert len(err.splitlines()) == 1
        assert name in err


def test_weights_are_of_their_family(place, monkeypatch):
    monkeypatch.chdir(place.root)
    code, out, err = _call(["weights", "run"])
    assert code == 0, err
    assert f"family       {place.name}\n" in out or f"family      {place.name}\n" in out


def test_every_need_is_tried():
    assert set(NEEDS) == {need for need in COMMANDS.values() if need}
    for what, need in NEEDS.items():
        assert need.remedy
        for modality in MODALITIES.values():
            with contextlib.nullcontext() if modality in need.takes else pytest.raises(ValueError, match=what):
                check_need(what, modality, "x")


def test_files_are_predicted_as_the_run_sees_them(place, monkeypatch):
    """Probabilities of the test inputs as files equal those of the evaluation; the class is that of the folder."""
    from vitrail.cli.recipes import load_run_recipe
    from vitrail.deploy.images import open_files
    from vitrail.runs import RunFolder, load_trained

    monkeypatch.chdir(place.root)
    trained, run = load_trained("run"), RunFolder.open("run")
    saved = run.read_predictions("test")
    files = [str(Path("inputs", path)) for path in saved["path"]]
    images = open_files(trained.card, load_run_recipe(run.recipe).data, files)
    assert images.source.keys == files
    assert images.source.targets.tolist() == saved["target"].tolist()
    batch = images.batch(range(len(files)))
    assert np.allclose(trained.classify(batch)[0].numpy(), np.stack(saved["logits"]), atol=1e-5)
    code, out, _ = _call(["predict", "run", "inputs"])
    assert code == 0
    assert len(list(csv.DictReader(io.StringIO(out)))) == 12
    assert main(["predict", "run", "absent"]) == 1


def test_views_of_clips_turn_all_frames():
    import torch

    from vitrail.data.augment.test_time import VIEWS

    clips = torch.rand(2, 3, 4, 6, 6)
    for views in VIEWS.values():
        for view in views:
            frames = [view(clips[:, :, time]) for time in range(4)]
            assert torch.equal(view(clips), torch.stack(frames, dim=2))


def test_variants_side_by_side_or_the_reason(place, monkeypatch):
    """The page of `vitrail compare` draws clips of several models, and states why it draws no clouds."""
    from vitrail.analyze.evaluated import Evaluation, OpenedRuns
    from vitrail.analyze.side_by_side import models_side_by_side
    from vitrail.cli.recipes import load_run_recipe
    from vitrail.runs import RunFolder

    monkeypatch.chdir(place.root)
    run = RunFolder.open("run")
    found = models_side_by_side([("x", Evaluation.read(run, run.evaluation))], OpenedRuns(load_run_recipe))
    assert bool(found.cells) is (place.kind == "video")
    assert bool(found.problems) is (place.kind == "points")


def test_explanations_of_clips_are_animated(place, monkeypatch):
    monkeypatch.chdir(place.root)
    code, out, err = _call(["explain", "run", place.file, "--method", "rollout", "gradcam", "--out", "animated"])
    assert code == 0, err
    noun = MODALITIES[place.kind]
    assert out.startswith(f"of 1 {noun.singular} 1 was trained on: ")
    assert f"\n1 {noun.singular} explained by rollout, gradcam; written to animated\n" in out
    (entry,) = json.loads(Path("animated/explanations.json").read_text())["images"]
    for method, said in entry["methods"].items():
        files = said.get("animations", [])
        assert bool(files) is (place.kind == "video")
        assert files[:1] == [f"animations/0_{method}.gif"][: len(files)]
        for file in files:
            assert Path("animated", file).stat().st_size > 100
        if files:
            assert np.load(Path("animated", said["streams"]["video"]["map"])).shape == (4, 12, 12)


def test_the_page_names_its_inputs_and_plays_clips(place, monkeypatch):
    monkeypatch.chdir(place.root)
    if not Path("run/report.html").is_file():
        code, _, err = _call(["report", "run"])
        assert code == 0, err
    prose = Path("run/report.md").read_text().split("\n## Runs\n")[0]
    assert re.findall(r"(?i)[^\n]*\bimages?\b[^\n]*", re.sub("`[^`]*`", "", prose)) == []
    assert f"unseen {MODALITIES[place.kind].noun}" in prose
    page = Path("run/report.html").read_text()
    tested = len(Path("run/evaluation/mistakes.csv").read_text().splitlines()) - 1
    if place.kind == "points":
        assert "<video" not in page
        return
    assert page.count("<video controls") + page.count('src="data:image/gif') in range(max(1, tested), 7)
    assert "http" not in re.sub(r"data:[^\"]*", "", page.split("<main>")[1].split('<section id="runs">')[0])
    for file in re.findall(r"figures/clip_[^>]*gif", prose):
        assert Path("run", file).is_file()
