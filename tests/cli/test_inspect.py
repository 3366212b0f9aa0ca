"""``vitrail inspect``."""

import csv

import numpy as np
import pytest
from PIL import Image

from vitrail.cli.main import main

TINY = ["vit", "--img-size", "32", "--set", "patch_size=8", "--set", "embed_dim=24", "--set", "depth=2",
        "--set", "num_heads=3", "--set", "num_classes=5", "--repeats", "1"]  # fmt: skip


def _run(capsys, *argv):
    code = main(["inspect", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _rows(out):
    """Cells of the table, by the step's name."""
    table = out.split("\n\n")[1].splitlines()
    return {line.split()[0]: [cell.strip() for cell in line.split("  ") if cell.strip()][1:] for line in table}


def test_table(capsys):
    code, out, err = _run(capsys, *TINY)
    assert (code, err) == (0, "")
    assert "random noise" in out
    rows = _rows(out)
    assert rows["patch_embed"][:3] == ["1 x 4 x 4 x 24", "4,632", "73,728"]
    assert rows["blocks.1.attn"][0] == "1 x 17 x 24"
    assert "Multi-head self-attention" in out
    shares = [float(cells[-1].rstrip("%")) for name, cells in rows.items() if name not in ("step", "total")]
    assert sum(shares) == pytest.approx(100, abs=1.5)
    assert rows["total"][-1] == "100.0%"


def test_variant_without_running(capsys, tmp_path):
    file = tmp_path / "steps.csv"
    code, out, _ = _run(
        capsys, "vit_tiny_patch16_224", "--no-time", "--depth", "blocks", "--batch", "2", "--csv", str(file)
    )
    assert code == 0
    assert _rows(out)["total"] == ["5,717,416", f"{2 * 1_253_683_200:,}"]
    assert "multiply-adds of 2 images" in out
    steps = list(csv.DictReader(file.open()))
    assert [s["step"] for s in steps[:4]] == ["patch_embed", "cls_token", "pos_embed", "blocks.0"]
    assert sum(int(s["parameters"]) for s in steps) == 5_717_416
    assert steps[0]["output_shape"] == "2x14x14x192"
    assert steps[0]["share_of_time"] == ""


def test_height_and_width_and_nested_settings(capsys):
    argv = ["vit", "--img-size", "32", "48", "--set", "patch_size=8", "--set", "depth=1",
            "--set", "token_learner={num_tokens: 3, layer: 0}", "--no-time"]  # fmt: skip
    rows = _rows(_run(capsys, *argv)[1])
    assert rows["patch_embed"][0] == "1 x 4 x 6 x 768"
    assert rows["token_learners.0"][0] == "1 x 3 x 768"


@pytest.mark.slow
def test_two_streams(capsys):
    argv = [
        "hvt",
        "--img-size",
        "64",
        "--set",
        "spectral_chans=9",
        "--set",
        "depths=[1, 1, 1, 1]",
        "--no-time",
    ]
    code, out, _ = _run(capsys, *argv)
    assert code == 0
    assert "spectral 1 x 9 x " in out


def test_real_image(capsys, tmp_path):
    file = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 60, 3), dtype=np.uint8)).save(file)
    code, out, _ = _run(capsys, *TINY, "--image", str(file), "--batch", "2")
    assert code == 0
    assert "photo.png, resized" in out
    assert "noise" not in out
    assert _rows(out)["patch_embed"][0] == "2 x 4 x 4 x 24"


def test_unreadable_image(capsys, tmp_path):
    text = tmp_path / "photo.jpg"
    text.write_text("not an image")
    for file in (text, tmp_path / "missing.png", tmp_path):
        code, out, err = _run(capsys, *TINY, "--image", str(file))
        assert (code, out) == (1, "")
        assert str(file) in err
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["vit_tiny_patch16_22"], "did you mean 'vit_tiny_patch16_224'?"),
        (["vit", "--set", "embed_dims=8"], "did you mean 'embed_dim'?"),
        (["vit", "--set", "embed_dim"], "KEY=VALUE"),
        (["vit", "--set", "depth=1", "--set", "depth=2"], "given twice"),
        (["vit", "--img-size", "32", "--set", "img_size=32"], "given twice"),
        (["vit", "--set", "depth={1"], "cannot be read"),
        (["vit", "--set", "mlp_ratio=wide"], "mlp_ratio must be a finite number, got 'wide'"),
        (["vit", "--img-size", "1", "2", "3"], "height and width"),
        (["vit", "--img-size", "0"], "at least 1"),
        (["vit", "--depth", "all"], "--depth"),
        (["vit", "--batch", "-1"], "--batch"),
        (["vit", "--no-time", "--image", "x.png"], "--image cannot be combined with --no-time"),
        ([*TINY, "--set", "in_chans=5", "--image", "x.png"], "takes 5 bands"),
        ([], "NAME"),
    ],
)
def test_wrong_usage(capsys, argv, message):
    code, out, err = _run(capsys, *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.drawn
def test_diagram(tmp_path, capsys):
    """The graph of the modules with its shapes; an earlier diagram is replaced, another file is not."""
    out = tmp_path / "vit.svg"
    for _ in range(2):
        code, text, err = _run(capsys, *TINY, "--diagram", str(out))
        assert (code, err) == (0, "")
    assert f"wrote {out}" in text
    content = out.read_text()
    for words in ("2 x Block", "PatchEmbed", "pos_embed", "4 x 4 x 24", "17 x 24"):
        assert words in content
    out.write_text("<svg/>")
    assert _run(capsys, *TINY, "--diagram", str(out))[0] == 2
    code, _, err = _run(capsys, *TINY, "--diagram", str(tmp_path / "vit.pdf"))
    assert code == 2
    assert "must be called NAME.svg or NAME.png" in err
