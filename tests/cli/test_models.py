"""``vitrail models``."""

import csv
import io
import json
import subprocess
import sys

import pandas as pd
import pytest

import vitrail
from vitrail.catalogue import read_catalogue
from vitrail.cli.main import main


def _run(capsys, *argv):
    code = main(["models", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _names(out):
    return [line.split()[0] for line in out.splitlines()[1:] if line and line.split()[0] in vitrail.list_models()]


def test_lists_all(capsys):
    code, out, err = _run(capsys)
    assert (code, err) == (0, "")
    assert _names(out) == vitrail.list_models()
    assert "published by the authors, not measured by vitrail" in out
    row = next(line for line in out.splitlines() if line.startswith("vit_tiny_patch16_224 "))
    assert row.split() == ["vit_tiny_patch16_224", "224", "3", "5,717,416", "1.25"]


def test_family_and_pattern(capsys):
    assert _names(_run(capsys, "vit_small*")[1]) == vitrail.list_models("vit_small*")
    assert _names(_run(capsys, "--family", "vit")[1]) == vitrail.list_models("vit")
    out = _run(capsys, "vit")[1]
    assert _names(out) == vitrail.list_models("vit")
    assert "drop_path_rate" in out


def test_limits(capsys):
    out = _run(capsys, "vit*", "--max-parameters", "30M", "--max-gmacs", "1.25368")[1]
    names = _names(out)
    assert "vit_small_patch32_224" in names
    assert "vit_base_patch32_224" not in names  # too many parameters
    assert "vit_tiny_patch16_224" not in names  # 1.2536832 G
    out = _run(capsys, "vit*", "--max-parameters", "5k")[1]
    assert "0 of" in out
    assert "fewest parameters: 5,717,416 (vit_tiny_patch16_224)" in out


def test_details(capsys):
    out = _run(capsys, "vit_base_patch16_384")[1]
    assert "77.9" in out
    assert "not measured by vitrail" in out
    assert "arXiv:2010.11929" in out
    assert "blocks.0 ... blocks.11" in out
    assert "12 x Block" in out
    assert "create_model('vit_base_patch16_384'" in out
    changed = [line.split()[0] for line in out.splitlines() if " * " in line and not line.startswith("settings")]
    assert changed == ["img_size"]


def test_json(capsys):
    records = json.loads(_run(capsys, "vit_tiny*", "--json")[1])
    assert [record["name"] for record in records] == vitrail.list_models("vit_tiny*")
    assert records[0]["parameters"] == 5_717_416
    assert "parts" not in records[0]
    (record,) = json.loads(_run(capsys, "vit_tiny_patch16_224", "--json")[1])
    assert record["settings"]["embed_dim"] == 192
    assert sum(part["count"] * part["parameters"] for part in record["parts"]) == 5_717_416
    assert json.loads(_run(capsys, "--max-parameters", "1", "--json")[1]) == []


def test_csv(capsys):
    rows = list(csv.DictReader(io.StringIO(_run(capsys, "vit", "--csv")[1])))
    assert [row["name"] for row in rows] == vitrail.list_models("vit")
    row = next(row for row in rows if row["name"] == "vit_base_patch16_384")
    assert (row["height"], row["width"], row["bands"], row["published_top1"]) == ("384", "384", "3", "77.91")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["vit_tiny_patch16_22"], "did you mean 'vit_tiny_patch16_224'?"),
        (["resnet*"], "no model matches 'resnet*'"),
        (["--family", "vitt"], "did you mean 'vit'?"),
        (["--max-parameters", "many"], "not a number such as"),
        (["--max-gmacs", "-1"], "--max-gmacs"),
        (["--max-gmacs", "nan"], "not a number of billions"),
        (["--json", "--csv"], "not allowed with"),
        (["--famly", "vit"], "did you mean '--family'?"),
    ],
)
def test_wrong_usage(capsys, argv, message):
    code, out, err = _run(capsys, *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.fast_cases("argv0")
@pytest.mark.parametrize("argv", [["--help"], ["models", "vit_tiny_patch16_224"]])
def test_torch_is_not_imported(argv):
    code = (
        "import sys; from vitrail.cli.main import main; "
        f"assert main({argv!r}) == 0; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.drawn
def test_chart_of_published_results(tmp_path, capsys):
    speeds = tmp_path / "speeds.csv"
    speeds.write_text(
        "model,mode,precision,images_per_second\nswin_tiny_patch4_window7_224,forward,32,12.5\n"
        "swin_tiny_patch4_window7_224,train,32,99\n"
    )
    out = tmp_path / "chart.png"
    assert main(["models", "--chart", str(out), "--speeds", str(speeds)]) == 0
    assert out.is_file()
    table = pd.read_csv(tmp_path / "chart.csv")
    expected = sum(len(variant.results) for variant in read_catalogue().variants.values())
    assert len(table) == expected
    assert table.set_index("name").loc["swin_tiny_patch4_window7_224", "images_per_second"] == 12.5
    jft = table[(table["name"] == "maxvit_xlarge_tf_512") & (table["group"] == "JFT-300M")]
    assert jft["top1"].tolist() == [89.53]
    assert table["source"].str.contains("arXiv:").all()
    assert main(["models", "--chart", str(out)]) == 0  # an earlier chart is replaced


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--chart", "chart.pdf"], "must be called NAME.png or NAME.svg"),
        (["--runs", "runs/x"], "belong to --chart FILE"),
        (["pointnet_cls", "--chart", "x.svg"], "no published result among these variants"),
        (["--chart", "x.svg", "--runs", "none"], "no run folder at none"),
    ],
)
def test_charts_that_are_refused(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["models", *words]) in (1, 2)
    assert message in capsys.readouterr().err
