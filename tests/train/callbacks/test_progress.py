"""What a run shows while it trains: a bar on a terminal, lines in a log, for training and pre-training alike."""

import fcntl
import os
import pty
import re
import struct
import termios
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import Timer

from tests.train.test_training import recipe
from vitrail.durations import format_duration
from vitrail.runs.trained import load_trained
from vitrail.train import train
from vitrail.train.callbacks.progress import Progress
from vitrail.train.fit import pretrain

PRETRAINING = {"task__name": "mae", "model__name": "vit", "task__watch_every": 0}
LINE = re.compile(
    r"^epoch (\d)/2: training loss \d+\.\d{4}, validation loss \d+\.\d{4}(, [a-zA-Z ]+ \d\.\d{4})?, [\d,]+ images/s"
    r"(, \d+ (s|min|h) left)?$",
    re.MULTILINE,
)


def _on_terminal(monkeypatch, columns, do):
    """What a pseudo-terminal of this width shows; 0 where it has not been told any."""
    monkeypatch.delenv("COLUMNS", raising=False)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        do()
        os.set_blocking(master, False)
        shown = b""
        while True:
            try:
                shown += os.read(master, 1 << 16)
            except BlockingIOError:
                break
    os.close(master)
    return shown.decode()


@pytest.mark.fast_cases("60")
@pytest.mark.parametrize("columns", [0, 60])
def test_a_terminal_shows_one_bar_for_the_whole_run(tmp_path, monkeypatch, columns):
    monkeypatch.setattr("vitrail.train.callbacks.progress._READ_EVERY", 0.0)
    shown = _on_terminal(monkeypatch, columns, lambda: train(recipe(tmp_path / "x", trainer__max_epochs=2)))
    states = [state for state in re.split(r"[\r\n]+", shown) if "% |" in state]
    assert all(re.match(r"epoch [12]/2 +\d+% \|", state) for state in states)
    shares = [int(re.search(r"(\d+)%", state)[1]) for state in states]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert any("loss" in state for state in states)
    assert any(re.search(r"\d (s|min|h) left", state) for state in states)
    assert any("val_loss" in state and "val_accuracy" in state for state in states) or columns == 60
    assert max(map(len, states)) <= (columns or 80)
    assert "v_num" not in shown
    assert "training loss" not in shown


@pytest.mark.fast_cases("train-changes0")
@pytest.mark.parametrize(("verb", "changes"), [(train, {}), (pretrain, PRETRAINING)])
def test_a_log_has_a_line_an_epoch(tmp_path, capsys, verb, changes):
    verb(recipe(tmp_path / "x", trainer__max_epochs=2, **changes))
    err = capsys.readouterr().err
    assert [match[1] for match in LINE.finditer(err)] == ["1", "2"]
    assert "\r" not in err
    assert " left" in err.split("epoch 2/2")[0]
    assert " left" not in err.split("epoch 2/2")[1]


@pytest.mark.slow
def test_a_run_that_goes_on_says_after_which_epoch(tmp_path, capsys):
    trained = 1
    run = train(recipe(tmp_path / "x", trainer__max_epochs=trained))
    steps = int(run.read_metrics()["step"].iloc[-1])
    capsys.readouterr()
    train(recipe(tmp_path / "x", trainer__max_epochs=3), resume=True)
    err = capsys.readouterr().err
    assert f"resumes after epoch {trained} of 3 (step {steps})" in err
    assert re.findall(r"^epoch (\d)/3", err, re.MULTILINE) == [str(n) for n in range(trained + 1, 4)]


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [(None, 100.0), (0.5, 30.0), (60.0, 100.0)],
)
def test_time_left_counts_all_epochs_and_stops_at_the_time_limit(monkeypatch, minutes, expected):
    """After 2 of 12 steps in 20 s, 10 steps are left; validation is in the 20 s."""
    progress = Progress(SimpleNamespace(rows=[]), "val_accuracy")
    progress._begun, progress._done = 0.0, 2
    monkeypatch.setattr("time.monotonic", lambda: 20.0)
    timer = Timer({"seconds": 60 * minutes}) if minutes else None
    trainer = SimpleNamespace(num_training_batches=4, max_epochs=3, callbacks=[timer] if timer else [])
    assert progress._left(trainer) == [f"{format_duration(expected)} left"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (89.4, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.fast_cases("train-changes0-, 10 classes")
@pytest.mark.parametrize(("verb", "changes", "told"), [(train, {}, ", 10 classes"), (pretrain, PRETRAINING, "\n")])
def test_a_run_begins_with_its_model_images_and_device(tmp_path, capsys, verb, changes, told):
    run = verb(
        recipe(tmp_path / "x", trainer__max_epochs=1, data__batch_size=200, trainer__precision="auto", **changes)
    )
    start = capsys.readouterr().err.split("epoch 1/1")[0]
    parameters = sum(tensor.numel() for tensor in load_trained(run).model.parameters())
    assert "images: 1,259 for training, 179 for validation, 359 for testing\n" in start
    assert "input 1 band, 8 x 8 pixels" + told in start
    assert verb is pretrain or f"model: vit, {parameters:,} parameters" in start
    assert "device: CPU (" in start
    assert "200 images a batch" in start
    assert "precision 32-true: " in start or "precision bf16-mixed: " in start
    assert len(start.splitlines()) < 12
