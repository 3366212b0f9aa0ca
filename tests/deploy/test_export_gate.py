"""Verdicts of the gate on outputs with known differences."""

import json
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from vitrail.deploy.export.bounds import agreement_bound, drop_bound
from vitrail.deploy.export.gate import GateImages, Limits, Outputs, cosines, judge, rank_correlations
from vitrail.deploy.export.verdict import Result, Verdict, gate_table, percent, percent_at_least, percent_at_most
from vitrail.errors import ConfigError, DataError


def _gate(n, classes=5, labelled=None, seed=0, wrong=0):
    """Clear decisions, the first ``wrong`` of them incorrect; targets of the first ``labelled``."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, n)
    decided = targets.copy()
    decided[:wrong] = (decided[:wrong] + 1) % classes
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), decided] += 20
    known = np.where(np.arange(n) < (n if labelled is None else labelled), targets, -1)
    return GateImages(Outputs(logits), known), targets


def _with_misses(gate, images, to):
    logits = gate.original.logits.copy()
    for image in images:
        logits[image, to[image]] = 50
    return Outputs(logits)


@pytest.mark.parametrize(
    ("n", "misses", "status", "missing"),
    [(299, 0, "passed", 0), (298, 0, "refused", 1), (179, 0, "refused", 120), (473, 1, "passed", 0),
     (472, 1, "refused", 1), (500, 9, "refused", None)],
)  # fmt: skip
def test_agreement_passes_where_its_bound_does(n, misses, status, missing):
    gate, targets = _gate(n, seed=n)
    verdict = judge(gate, _with_misses(gate, range(misses), (targets + 1) % 5))
    assert (verdict.status, verdict.missing, verdict.misses) == (status, missing, misses)
    assert (verdict.losses, verdict.gains, verdict.labelled) == (misses, 0, n)
    assert verdict.agreement_low == pytest.approx(agreement_bound(n, misses))
    if missing:
        assert f"99.0 % needs {missing} more" in verdict.reason
    elif status == "refused":
        assert "98.2 % of 500 images, 99.0 % is asked" in verdict.reason


def test_fp32_passes_by_equality_alone_on_few_images():
    gate, targets = _gate(12)
    scale = np.abs(gate.original.logits).max()
    near, far = (Outputs(gate.original.logits + step * scale) for step in (0.9e-4, 1.1e-4))
    assert judge(gate, near, "equality").status == "passed"
    refused = judge(gate, far, "equality")
    assert refused.status == "refused"
    assert "differ by 1.1e-04 of their scale, at most 1e-04" in refused.reason
    assert judge(gate, near).status == "refused"  # reduced precision needs images
    # A changed decision is refused even within the tolerance.
    tied = gate.original.logits.copy()
    tied[3, :2] = 30, 30 + 1e-5
    flipped = tied.copy()
    flipped[3, 0] = 30 + 2e-5
    verdict = judge(GateImages(Outputs(tied), targets), Outputs(flipped), "equality")
    assert verdict.status == "refused"
    assert verdict.reason == "1 of 12 decisions differs"


def test_the_drop_counts_losses_and_gains_of_labelled_images():
    gate, targets = _gate(700, wrong=2, labelled=600)
    # Two gains, one loss, a change between incorrect classes, and one change without a label.
    verdict = judge(gate, _with_misses(gate, [0, 1, 5, 650], np.where(np.arange(700) < 2, targets, (targets + 2) % 5)))
    assert (verdict.losses, verdict.gains, verdict.misses, verdict.labelled) == (1, 2, 4, 600)
    assert verdict.drop == pytest.approx(-1 / 600)
    assert verdict.drop_high == pytest.approx(drop_bound(600, 1, 2))


def test_unlabelled_images_serve_only_where_agreement_bounds_the_drop():
    gate, targets = _gate(400, labelled=100)
    same = _with_misses(gate, [], targets)
    assert judge(gate, same).status == "passed"
    assert judge(gate, same).drop_high > 0.01
    looser = Limits(agreement=0.98, max_drop=0.01)
    verdict = judge(gate, same, limits=looser)
    assert verdict.status == "refused"
    assert "100 labelled images (0 lost, 0 gained)" in verdict.reason
    assert "1.0 % needs about 199 more" in verdict.reason
    assert judge(gate, same, "drop").status == "refused"
    unlabelled = GateImages(gate.original, np.full(400, -1))
    assert judge(unlabelled, same).status == "passed"
    assert "no gate image has a label" in judge(unlabelled, same, limits=looser).reason


def test_a_larger_drop_on_the_labelled_images_is_refused_in_spite_of_agreement():
    gate, targets = _gate(4000, labelled=100)
    verdict = judge(gate, _with_misses(gate, [0, 1], (targets + 1) % 5))
    assert verdict.agreement_low > 0.99
    assert verdict.status == "refused"
    assert "accuracy drops by 2.0 % on 100 labelled images" in verdict.reason


def test_a_changed_computation_needs_only_the_drop():
    gate, targets = _gate(600, wrong=60)
    swapped = _with_misses(gate, range(10, 40), (targets + 3) % 5)  # from one incorrect class to another
    assert judge(gate, swapped).status == "refused"
    assert judge(gate, swapped, "drop").status == "passed"


def _labels(n, k=4, seed=0):
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, k)) < 0.4).astype(np.int64)
    return GateImages(Outputs(np.where(targets, 3.0, -3.0) + rng.normal(size=(n, k)) * 0.1), targets)


def test_an_image_agrees_if_all_its_labels_do():
    gate = _labels(473)
    logits = gate.original.logits.copy()
    logits[:3, 0] *= -1  # a label of three images
    logits[0, 1:] *= -1  # other labels of one of them
    verdict = judge(gate, Outputs(logits))
    assert (verdict.misses, verdict.agreement) == (3, pytest.approx(470 / 473))
    assert verdict.agreement_low == pytest.approx(agreement_bound(473, 3))
    assert (verdict.losses, verdict.gains) == (3, 0)
    assert verdict.drop_high == pytest.approx(drop_bound(473, 3, 0))
    # Each of a label's misses alone would pass.
    logits = gate.original.logits.copy()
    for label in range(4):
        logits[label, label] *= -1
    verdict = judge(gate, Outputs(logits))
    assert verdict.status == "refused"
    assert (verdict.misses, verdict.losses) == (4, 4)
    assert agreement_bound(473, 1) >= 0.99
    logits[1:4] = gate.original.logits[1:4]
    assert judge(gate, Outputs(logits)).status == "passed"


@pytest.mark.parametrize("criterion", ["agreement", "drop"])
def test_a_label_that_suffers_is_refused_though_no_image_was_correct_in_all(criterion):
    gate = _labels(600)
    wrong = gate.original.logits.copy()
    wrong[:, 3] *= -1  # the original is incorrect in the last label of every image
    logits = wrong.copy()
    logits[:30, 0] *= -1
    verdict = judge(GateImages(Outputs(wrong), gate.targets), Outputs(logits), criterion)
    assert verdict.status == "refused"
    assert (verdict.losses, verdict.gains) == (30, 0)
    assert "accuracy drops by 5.0 %" in verdict.reason


@pytest.mark.fast_cases("0")
@pytest.mark.parametrize("seed", range(3))
def test_agreement_of_all_labels_bounds_the_drop_of_each_and_of_all(seed):
    rng = np.random.default_rng(seed)
    gate = _labels(200, seed=seed)
    noisy = Outputs(gate.original.logits * np.where(rng.random((200, 4)) < 0.05, -1, 1))
    worse = Outputs(noisy.logits * np.where(rng.random((200, 4)) < 0.02, -1, 1))
    verdict = judge(GateImages(noisy, gate.targets), worse)
    correct, still = ((x.logits >= 0) == (gate.targets > 0) for x in (noisy, worse))
    drops = [*(correct.mean(0) - still.mean(0)), correct.all(1).mean() - still.all(1).mean()]
    assert max(drops) <= 1 - verdict.agreement
    assert verdict.drop_high == pytest.approx(max(
        drop_bound(200, int((a & ~b).sum()), int((b & ~a).sum()))
        for a, b in zip([*correct.T, correct.all(1)], [*still.T, still.all(1)], strict=True)
    ))  # fmt: skip


@pytest.mark.slow
def test_a_multi_label_ranking_that_suffers_is_refused_though_decisions_stay():
    gate = _labels(600)
    rng = np.random.default_rng(1)
    # Original: perfect ranking. Candidate: same signs, and noise among positives has no effect on precision.
    shuffled = np.sign(gate.original.logits) * rng.random(gate.original.logits.shape)
    kept = judge(gate, Outputs(shuffled))
    assert (kept.status, kept.precision_drop) == ("passed", pytest.approx(0))
    # Original undecided about a third of the positives, which it still ranks above negatives; the candidate does not.
    low = (gate.targets > 0) & (rng.random(gate.targets.shape) < 0.3)
    original = np.where(low, -1.0, gate.original.logits)
    worse = judge(GateImages(Outputs(original), gate.targets), Outputs(np.where(low, -5.0, original)))
    assert worse.misses == 0
    assert worse.status == "refused"
    assert "mean average precision drops by up to" in worse.reason
    assert worse.precision_drop_high > worse.precision_drop > 0.01


UNKNOWN = {
    "no gate image has a label": lambda targets: np.full_like(targets, -1),
    "no label has positives among the gate images": np.zeros_like,
}


@pytest.mark.parametrize("why", UNKNOWN)
def test_an_untested_mean_average_precision_is_named(why):
    gate = _labels(300)
    targets = UNKNOWN[why](gate.targets)
    decided = np.where(gate.targets, 3.0, -3.0)
    rng = np.random.default_rng(2)
    signs = Outputs(decided * rng.random(decided.shape))  # decisions stay, their order is random
    unknown = GateImages(Outputs(decided), targets)
    passed = judge(unknown, signs)
    assert passed.status == "passed"
    assert passed.reason.endswith(f"; mean average precision not tested: {why}")
    merged = judge(unknown, signs, "drop")
    assert merged.status == "refused"
    assert f"mean average precision not tested: {why}" in merged.reason
    assert "not tested" not in judge(unknown, unknown.original, "equality").reason


@pytest.mark.parametrize("criterion", ["agreement", "drop"])
@pytest.mark.parametrize("positives", [1, 5, 73, 74])
@pytest.mark.fast_cases("5-agreement", "73-drop")
def test_a_rare_label_is_refused_and_its_missing_positives_are_given(criterion, positives):
    gate = _labels(300)
    gate.targets[:, 2] = np.arange(300) < positives
    gate = GateImages(Outputs(np.where(gate.targets, 3.0, -3.0)), gate.targets, ("a", "b", "rare", "c"))
    verdict = judge(gate, gate.original, criterion)
    # 74 of 4 labels: a share of 4 % of them without a lost one is shown by 74.
    assert (verdict.status, verdict.missing_positives) == ("passed" if positives == 74 else "refused", 74 - positives)
    assert (verdict.rarest_label, verdict.rarest_positives) == ("rare", positives)
    if positives == 5:
        assert "label 'rare' has 5 positives, at least 69 more are needed" in verdict.reason
    gate.targets[:, 2] = 0
    assert "not tested for 1 label without positives" in judge(gate, gate.original, criterion).reason


def test_correlations_and_cosines_against_scipy():
    rng = np.random.default_rng(0)
    maps, others = rng.random((5, 4, 6)), rng.random((5, 4, 6))
    others[1] = maps[1] ** 3
    others[2] = others[2].round(1)  # ties
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(maps, others, strict=True)]
    assert rank_correlations(maps, others) == pytest.approx(np.array(expected))
    flat = np.ones((2, 2, 2))
    flat[1, 0, 0] = 2
    assert rank_correlations(flat, np.ones((2, 2, 2))).tolist() == [1, 0]
    x, y = rng.normal(size=(2, 5, 7))
    assert cosines(x, y) == pytest.approx((x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1)))
    assert cosines(np.eye(2) * [1, 0], np.zeros((2, 2))).tolist() == [0, 1]


@pytest.mark.parametrize("output", ["embedding", "heatmap of image"])
def test_embeddings_and_heatmaps_have_limits_of_their_own(output):
    n, rng = 320, np.random.default_rng(0)
    gate, _ = _gate(n)
    embedding, heatmap = rng.normal(size=(n, 16)), rng.random((n, 5, 5))
    logits = gate.original.logits
    gate = GateImages(Outputs(logits, embedding, {"image": heatmap}), gate.targets)
    good = Outputs(logits, embedding * 1.01, {"image": heatmap * 2})
    assert judge(gate, good).status == "passed"
    assert judge(gate, good, "equality").status == "refused"
    bad_embedding, bad_heatmap = embedding.copy(), heatmap.copy()
    if output == "embedding":
        bad_embedding[:30] *= -1
    else:
        bad_heatmap[:30] = 1 - bad_heatmap[:30]
    verdict = judge(gate, Outputs(logits, bad_embedding, {"image": bad_heatmap}))
    assert verdict.status == "refused"
    assert verdict.reason.startswith(output)
    assert {s.output: s.misses for s in verdict.similarities}[output] == 30


def test_wrong_shapes_missing_outputs_and_infinite_values():
    gate, targets = _gate(300)
    infinite = gate.original.logits.copy()
    infinite[0, 0] = np.nan
    assert judge(gate, Outputs(infinite)).reason == "some outputs are infinite or NaN"
    with pytest.raises(DataError, match="infinite or NaN"):
        judge(GateImages(Outputs(infinite), targets), gate.original)
    with pytest.raises(DataError, match="shape"):
        judge(gate, Outputs(gate.original.logits[:, :3]))
    with pytest.raises(DataError, match="no embedding"):
        judge(GateImages(Outputs(infinite[1:], np.ones((299, 2))), targets[1:]), Outputs(infinite[1:]))
    with pytest.raises(DataError, match="299 targets for 300"):
        GateImages(gate.original, targets[1:])
    none = GateImages(Outputs(np.zeros((0, 3))), np.zeros(0, np.int64))
    for criterion in ("equality", "agreement", "drop"):
        assert "no gate images" in judge(none, Outputs(np.zeros((0, 3))), criterion).reason


@pytest.mark.parametrize("wrong", [{"agreement": 1.0}, {"agreement": 0.0}, {"max_drop": 0.0}, {"alike": 1.5}])
def test_limits_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Limits(**wrong)


def test_results_are_written_as_json_and_the_table_is_in_words():
    gate, targets = _gate(320)
    logits = gate.original.logits
    gate = GateImages(Outputs(logits, np.ones((320, 2))), targets)
    passed = judge(gate, Outputs(logits, np.ones((320, 2))))
    infinite = judge(GateImages(Outputs(logits, np.zeros((320, 2))), targets), Outputs(logits, np.ones((320, 2))))
    results = [
        Result("openvino bf16", 41.63, True, passed),
        Result("zero", 1.0, False, infinite),
        Result("openvino int8", None, False, Verdict("not built", "no AVX512")),
    ]
    text = json.dumps([r.to_json() for r in results], allow_nan=False)
    plain = json.loads(text)
    assert [(x["name"], x["images_per_second"], x["chosen"]) for x in plain] == [
        ("openvino bf16", 41.63, True), ("zero", 1.0, False), ("openvino int8", None, False),
    ]  # fmt: skip
    verdicts = [x["verdict"] for x in plain]
    assert [v["status"] for v in verdicts] == ["passed", "refused", "not built"]
    assert verdicts[0]["agreement_low"] == passed.agreement_low
    assert (infinite.similarities[0].difference, verdicts[1]["similarities"][0]["difference"]) == (math.inf, None)
    assert verdicts[2]["similarities"] == []
    header, rows = gate_table(results)
    assert {len(row) for row in rows} == {len(header)}
    assert rows[0] == [
        "openvino bf16", "41.6", "100.0 % (at least 99.0 %)", "0.0 % (at most 1.0 %)", "passed, chosen",
        "decisions agree for 320 of 320 images, accuracy drops by at most 1.0 %",
    ]  # fmt: skip
    assert rows[2] == ["openvino int8", "-", "-", "-", "not built", "no AVX512"]


def test_percentages_never_flatter():
    assert (percent_at_least(0.98999), percent_at_most(0.01001), percent_at_least(0.99)) == (
        "98.9 %",
        "1.1 %",
        "99.0 %",
    )
    assert [percent(x) for x in (1, 0, 0.9996, 0.0004, -0.0004, 0.995)] == [
        "100.0 %", "0.0 %", "99.96 %", "0.04 %", "-0.04 %", "99.5 %",
    ]  # fmt: skip
