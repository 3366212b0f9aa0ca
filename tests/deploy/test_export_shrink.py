"""Candidates of an export with merged tokens."""

import dataclasses

import numpy as np
import pytest
import torch

import vitrail
from tests.deploy.eager import eager_engines as eager_engines
from tests.deploy.exporting import FORMATS, LONG, export, record
from vitrail.deploy.export import convert
from vitrail.deploy.export.candidates import list_variants
from vitrail.deploy.export.graph import ExportGraph
from vitrail.deploy.export.shrink import default_counts, merge_counts, merging
from vitrail.deploy.export.verdict import Verdict
from vitrail.engines.load import difference, open_engine
from vitrail.errors import ConfigError
from vitrail.runs.trained import load_classifier


@pytest.fixture
def trained(run):
    """The run's model with random weights of a size at which tokens differ."""
    found = load_classifier(run)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.normal_(0, 0.3)
    return found


def test_merged_variants_follow_all_others():
    plain = [variant.name for variant in list_variants()]
    names = [variant.name for variant in list_variants(shrink=[8, 13])]
    assert names == [*plain, *(f"{name} r={r}" for r in (8, 13) for name in plain)]
    assert {variant.criterion for variant in list_variants(shrink=[8]) if variant.merges} == {"drop"}
    assert [variant.name for variant in list_variants("onnx", "fp32", [2])] == ["onnx fp32", "onnx fp32 r=2"]
    with pytest.raises(ConfigError, match="no candidates in int8"):
        list_variants("auto", "int8", [2])


def test_default_counts_merge_a_half_and_four_fifths(trained):
    # 16 pixels in patches of 8, one block: 4 tokens.
    assert default_counts(trained) == [2, 3]
    assert merge_counts(trained, [], None) == [2, 3]
    assert merge_counts(trained, None, None) == []
    assert merge_counts(trained, [3, 1, 3], None) == [1, 3]
    small = vitrail.create_model("vit_small_patch16_224", depth=12, embed_dim=12, num_heads=1)
    stream = dataclasses.replace(trained.card.streams["image"], img_size=(224, 224))
    of_paper = dataclasses.replace(
        trained, model=small, card=dataclasses.replace(trained.card, streams={"image": stream})
    )
    assert default_counts(of_paper) == [8, 13]


@pytest.mark.parametrize(
    ("shrink", "size", "message"),
    [
        ([0], None, "at least 1, got 0"),
        ([2, -1], None, "at least 1, got -1"),
        ([2], "any", "give a fixed --image-size"),
    ],
)
def test_counts_out_of_range_are_refused(trained, shrink, size, message):
    with pytest.raises(ConfigError, match=message):
        merge_counts(trained, shrink, size)


def test_a_model_that_cannot_merge_is_refused(trained):
    swin = vitrail.create_model("swin", img_size=16, patch_size=2, embed_dim=8, depths=(1,), num_heads=(1,),
                                window_size=4)  # fmt: skip
    with pytest.raises(ConfigError, match=r"--shrink is not possible: .*windows need the whole grid"):
        merge_counts(dataclasses.replace(trained, model=swin), [2], None)


# The fast tests trace a merged model in tests/layers/test_token_merging.py.
@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"reg_tokens": 2, "global_pool": "avg"}])
@pytest.mark.parametrize("engine", FORMATS)
def test_engines_equal_the_merged_model(trained, engine, settings, tmp_path):
    torch.manual_seed(1)
    model = vitrail.create_model("vit", img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=3, num_classes=2,
                                 **settings).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    merged = merging(dataclasses.replace(trained, model=model), 3)
    graph = ExportGraph(merged, {"image": torch.uint8}, include=["embedding", "heatmap"])
    facts = {"inputs": [entry.describe() for entry in graph.inputs], "outputs": list(graph.outputs)}
    convert.convert(convert.trace(graph), graph, engine, tmp_path, facts)
    loaded = open_engine(tmp_path, engine, "fp32", 1)
    for count in (1, 3):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)
        wanted, found = (one({"image_resized": pixels}) for one in (graph.compute, loaded.run))
        for name, values in wanted.items():
            assert difference(found[name], values) < 1e-4, name


@pytest.mark.usefixtures("eager_engines")
def test_merged_candidates_are_judged_by_their_drop(run, tmp_path, capsys):
    assert export(run, tmp_path / "out", "--format", "openvino", "--precision", "fp32", "--shrink", *LONG) == 0
    text = capsys.readouterr().out
    found = record(tmp_path / "out")
    rows = {row["name"]: row for row in found["candidates"]}
    assert list(rows) == ["openvino fp32", "openvino fp32 r=2", "openvino fp32 r=3"]
    # Eight validation images cannot show a drop of at most 1 %.
    assert rows["openvino fp32"]["chosen"]
    assert rows["openvino fp32 r=2"]["verdict"]["status"] != "passed"
    assert "openvino fp32 r=3" in text
    assert "power of the gate" not in text
    assert found["token_merging"] == 0


@pytest.mark.usefixtures("eager_engines")
def test_a_chosen_count_is_recorded(run, tmp_path, monkeypatch, capsys):
    import importlib

    module = importlib.import_module("vitrail.deploy.export.export")

    def judge(original, outputs, criterion, limits):
        status = "passed" if criterion == "drop" else "refused"
        return Verdict(status, "as the test wants", logit_difference=0.2)

    monkeypatch.setattr(module, "judge", judge)
    monkeypatch.setattr(module, "choose", _choose_last)
    assert export(run, tmp_path / "out", "--format", "openvino", "--precision", "fp32", "--shrink", 1, *LONG) == 0
    assert "openvino fp32, 1 pair of tokens merged in each block, written to" in capsys.readouterr().out
    found = record(tmp_path / "out")
    assert found["token_merging"] == 1
    assert found["model"]["settings"]["token_merging"] == 1
    # The check compares with the merged graph, so that its bounds stay those of equal outputs.
    assert found["check"]["bounds"]["logits"] == pytest.approx(2e-4)


@pytest.mark.usefixtures("eager_engines")
def test_int8_with_merged_tokens_has_a_row_that_says_why_it_is_not_offered(run, tmp_path, capsys):
    assert export(run, tmp_path / "out", "--format", "openvino", "--precision", "auto", "--shrink", 2) == 0
    found = record(tmp_path / "out")
    (row,) = (row for row in found["candidates"] if row["name"] == "openvino int8 r=2")
    assert row["verdict"]["status"] == "not built"
    assert row["verdict"]["reason"].startswith("int8 is not offered with merged tokens")
    capsys.readouterr()


def _choose_last(given, judge, level):
    from vitrail.deploy.export.verdict import Result

    return [Result(c.name, c.images_per_second, c is given[-1], judge(c, level)) for c in given]
