"""Shards do what the whole model does, and what a run leaves behind is whole."""

import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

import vitrail
from tests.train import pair
from vitrail.cli.recipes import make_recipe
from vitrail.data.normalization import NormalizeStreams
from vitrail.errors import ConfigError
from vitrail.runs import RunFolder
from vitrail.tasks.classification import ClassificationTask
from vitrail.tasks.mae import MAETask
from vitrail.train.sharding import units, whole_state

VIT = (
    "--model.name vit --model.img_size 8 --model.patch_size 2 --model.embed_dim 16 --model.depth 2 --model.num_heads 2"
)
SWIN = (
    "--model.name swin --model.img_size 8 --model.patch_size 1 --model.window_size 3 --model.embed_dim 8 "
    "--model.depths [2,1] --model.num_heads [1,2]"
)
MAXVIT = (
    "--model.name maxvit --model.img_size 16 --model.stem_width 6 --model.embed_dim [8] --model.depths [2] "
    "--model.dim_head 4 --model.window_size 2"
)
HVT = (
    "--model.name hvt --model.img_size 8 --model.patch_size 2 --model.embed_dim 8 --model.depths [1,2] "
    "--model.num_heads [2,2] --data.spectral.derive edges"
)
RATES = "--trainer.accelerator cpu --trainer.devices 2 --trainer.learning_rate 0.003 --trainer.warmup_epochs 0"
DATA = "--data.batch_size 60 --data.classes.label_fraction 0.5 --data.loader.num_workers 0 --run.tensorboard false"
EXACT = f"{SWIN} {RATES} {DATA} --trainer.precision 32-true --trainer.max_epochs 3 --model.drop_path_rate 0.2 " \
    "--data.augment light --trainer.accumulate 2 --trainer.layer_decay 0.7"  # fmt: skip
# Trained twice, under ddp and under fsdp: the verb and what is special.
TWICE = {
    "vit": ("train", f"{VIT} --trainer.accumulate 2 --trainer.layer_decay 0.7 --trainer.gradient_clip 0.3"),
    "swin": ("train", f"{SWIN} --trainer.gradient_clip 0.1 --trainer.grad_checkpointing true"),
    "maxvit": ("train", f"{MAXVIT} --trainer.freeze_epochs 1"),
    "hvt": ("train", f"{HVT} --trainer.gradient_clip 0 --trainer.precision bf16-mixed"),
    "simclr": ("pretrain", f"{VIT} --task.name simclr --task.watch_every 1"),
    "simmim": ("pretrain", f"{HVT} --task.name simmim --task.watch_every 1 --trainer.grad_checkpointing true"),
}  # fmt: skip
STEPS = {
    "vit": ["vit", "classification"],
    "vit, learned tokens": ["vit", "classification", {"token_learner": {"num_tokens": 4}}, True],
    "swin": ["swin", "classification"],
    "swin, blocks of their own": ["swin", "classification", {"depths": [1, 1]}, True],
    "maxvit": ["maxvit", "classification"],
    "maxvit, recomputed": ["maxvit", "simmim", {}, True],
    "hvt": ["hvt", "classification"],
    "hvt, masked": ["hvt", "simmim", {}, True],
    "mae": ["vit", "mae"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 1}, "trainer.strategy 'fsdp' is for several processes, .* trainer.strategy auto"),
        ({"ema_decay": 0.9}, "trainer.ema_decay 0.9 is not supported with trainer.strategy 'fsdp'.*leave it out"),
        ({"compile": True}, "trainer.compile True is not supported"),
        ({"precision": "16-mixed"}, "trainer.precision '16-mixed' is not supported.* use bf16-mixed"),
        ({"run.explain_images": 2}, "run.explain_images 2 is not supported.* `vitrail explain` on the run"),
    ],
)
def test_what_shards_cannot_do_is_refused(changes, message):
    run = {"explain_images": changes.pop("run.explain_images", 0)}
    with pytest.raises(ConfigError, match=message):
        make_recipe({"trainer": {"strategy": "fsdp", "devices": 2, **changes}, "run": run})


def _task(name, kind=ClassificationTask, **settings):
    with torch.device("meta"):
        model = vitrail.create_model(name, **settings)
        return kind(model, NormalizeStreams({}))


@pytest.mark.fast_cases("vit_base_patch16_224-settings0-12")
@pytest.mark.parametrize(
    ("name", "settings", "number"),
    [
        ("vit_base_patch16_224", {}, 12),
        ("swin_tiny_patch4_window7_224", {}, 12 + 3 + 1),
        ("maxvit_tiny_tf_224", {}, 2 + 2 + 5 + 2 + 1),
        ("hvt", {"spectral_chans": 5, "depths": (2, 3), "num_heads": (2, 4)}, 2 * (5 + 1) + 2),
    ],
)
def test_a_model_is_gathered_in_small_parts(name, settings, number):
    task = _task(name, **settings)
    found = units(task)
    sizes = [sum(p.numel() for p in unit.parameters()) for unit in found]
    assert len(found) == number
    parameters = [id(p) for unit in found for p in unit.parameters()]
    assert len(parameters) == len(set(parameters))
    total = sum(p.numel() for p in task.parameters())
    assert sum(sizes) > 0.9 * total
    assert max(sizes) < 0.35 * total


def test_a_decoder_is_gathered_layer_by_layer():
    task = _task("vit_base_patch16_224", MAETask)
    assert len(units(task)) == 12 + len(task.decoder.blocks)


def test_what_is_not_sharded_is_whole_already():
    layer = torch.nn.BatchNorm2d(3)
    state = whole_state(layer)
    assert list(state) == list(layer.state_dict())
    assert torch.equal(state["weight"], layer.weight)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    names = ("family", "task", "settings", "checkpointing")
    cases = {name: ["steps", dict(zip(names, values, strict=False))] for name, values in STEPS.items()}
    return pair.run(tmp_path_factory.mktemp("steps") / "pair", cases)


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_shards_take_the_steps_of_the_whole(name, steps):
    for result in steps[name]:
        assert result["gradients"] < 1e-5
        assert result["weights"] < 1e-5
    # Rows are whole, so that a row left over, or a table of one row, is the first's.
    assert [result["held"] for result in steps[name]] == pytest.approx([0.5, 0.5], abs=0.12)
    assert sum(result["held"] for result in steps[name]) == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak is Linux's")
def test_each_process_takes_half_of_the_memory(tmp_path):
    peaks = {s: pair.run(tmp_path / s, {"": ["peak", {"strategy": s}]})[""] for s in ("ddp", "fsdp")}
    assert max(peaks["fsdp"]) < 0.6 * min(peaks["ddp"]), peaks


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Where the runs are of which the tests below compare two."""
    folder = tmp_path_factory.mktemp("runs")
    cases = {}

    def words(text, name, strategy, *more):
        return [*text.split(), "--run.dir", str(folder / name), "--trainer.strategy", strategy, *more]

    for name, (verb, text) in TWICE.items():
        precision = "" if "precision" in text else "--trainer.precision 32-true"
        for strategy in ("ddp", "fsdp"):
            given = words(f"{text} {RATES} {DATA} {precision} --trainer.max_epochs 2", f"{name}-{strategy}", strategy)
            cases[f"{name}-{strategy}"] = ["command", {"verb": verb, "words": given}]
    cases["whole"] = ["command", {"verb": "train", "words": words(EXACT, "whole", "fsdp")}]
    for first, second in (("fsdp", "fsdp"), ("fsdp", "ddp"), ("ddp", "fsdp")):
        name = f"{first} then {second}"
        cases[name] = ["interrupted", {"words": words(EXACT, name, first), "epoch": 1, "step": 2}]
        cases[f"{name}, on"] = ["command", {"verb": "train", "words": words(EXACT, name, second, "--resume")}]
    pair.run(folder / "pair", cases)
    return folder


def _differences(a, b):
    """The largest of values in two nests of the same form, by what they belong to."""
    assert type(a) is type(b), (a, b)
    if isinstance(a, torch.Tensor):
        assert type(a) is torch.Tensor
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
    if isinstance(a, (dict, list, tuple)):
        keys = list(a) if isinstance(a, dict) else range(len(a))
        assert list(keys) == (list(b) if isinstance(b, dict) else list(range(len(b))))
        return max((_differences(a[key], b[key]) for key in keys), default=0.0)
    return 0.0


def _assert_same_metrics(a, b, close):
    a, b = a.read_metrics(), b.read_metrics()
    assert list(a) == list(b)
    for name in a:
        if name != "epoch_seconds" and not name.endswith("per_second"):
            assert a[name].tolist() == pytest.approx(b[name].tolist(), abs=close, nan_ok=True), name


@pytest.mark.slow
@pytest.mark.parametrize("name", TWICE)
def test_shards_end_where_replicas_do(name, runs):
    ddp, fsdp = (RunFolder(runs / f"{name}-{strategy}") for strategy in ("ddp", "fsdp"))
    _assert_same_metrics(ddp, fsdp, 5e-3 if name in ("maxvit", "hvt") else 2e-5)
    mine, theirs = load_file(ddp.weights), load_file(fsdp.weights)
    assert list(mine) == list(theirs)
    # Biases whose effect a norm or a softmax takes away have gradients of mere rounding, and Adam makes steps of these.
    close = 2e-2 if name in ("maxvit", "hvt") else 1e-4
    assert _differences(mine, theirs) < close
    for file in ("last_checkpoint", "best_checkpoint"):
        saved = [torch.load(getattr(run, file), weights_only=True) for run in (ddp, fsdp)]
        # Also the form is the same, so that either goes on under the other.
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops"):
            assert _differences(*(checkpoint[part] for checkpoint in saved)) < close, part
    assert sorted(f.name for f in ddp.path.rglob("*")) == sorted(f.name for f in fsdp.path.rglob("*"))
    assert f"strategy: {'fsdp'}" in fsdp.recipe.read_text()
    model = vitrail.from_pretrained(fsdp.path)
    assert sum(p.numel() for p in model.parameters()) > 0


@pytest.mark.slow
def test_a_sharded_run_goes_on_exactly(runs):
    whole, again = RunFolder(runs / "whole"), RunFolder(runs / "fsdp then fsdp")
    _assert_same_metrics(whole, again, 0.0)
    assert _differences(load_file(whole.weights), load_file(again.weights)) == 0
    saved = [torch.load(run.last_checkpoint, weights_only=True) for run in (whole, again)]
    assert _differences(*(checkpoint["optimizer_states"] for checkpoint in saved)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp then ddp", "ddp then fsdp"])
def test_a_run_goes_on_under_another_strategy(name, runs):
    whole, again = RunFolder(runs / "whole"), RunFolder(runs / name)
    assert again.read_metrics()["epoch"].tolist() == [0, 1, 2]
    _assert_same_metrics(whole, again, 2e-4)
    assert _differences(load_file(whole.weights), load_file(again.weights)) < 1e-3


@pytest.mark.slow
def test_killed_and_resumed(tmp_path, runs):
    """kill -9 of both processes at some moment of the training: nothing is left in half, and the end is the same."""
    run = RunFolder(tmp_path / "run")
    words = [*EXACT.split(), "--run.dir", str(run.path), "--trainer.strategy", "fsdp"]
    case = {"": ["command", {"verb": "train", "words": words}]}
    processes = pair.begin(tmp_path / "first", case, start_new_session=True)
    while not run.best_checkpoint.is_file():
        assert all(process.poll() is None for process in processes), (tmp_path / "first" / "0.log").read_text()
        time.sleep(0.02)
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for checkpoint in run.checkpoints.glob("*.ckpt"):
        torch.load(checkpoint, weights_only=True)
    pair.run(tmp_path / "second", {"": ["command", {"verb": "train", "words": [*words, "--resume"]}]})
    whole = RunFolder(runs / "whole")
    _assert_same_metrics(whole, run, 0.0)
    assert _differences(load_file(whole.weights), load_file(run.weights)) == 0
