"""The rule of choice: simulated exports at the border, and the cases of its order."""

import importlib
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import norm

from tests.tiers import fast_first
from vitrail.deploy.export.bounds import misses_allowed
from vitrail.deploy.export.budget import Budget
from vitrail.deploy.export.candidates import Variant
from vitrail.deploy.export.choice import LEAST_GAIN, Candidate, choose
from vitrail.deploy.export.gate import GateImages, Limits, Outputs
from vitrail.deploy.export.measure import Measured, Ratio, Speed
from vitrail.deploy.export.verdict import Verdict
from vitrail.errors import ConfigError

EXPORTS = 4000
FIVE = [Candidate(f"c{i}", "engine", "agreement", 10.0 * (i + 1)) for i in range(5)]


SIX = [
    *(Candidate(f"c{i}", "engine", "agreement", 10.0 * (i + 1)) for i in range(3)),
    *(Candidate(f"c{i}", "engine", "drop", 10.0 * (i + 1)) for i in range(3, 6)),
]


@cache
def _allowed(n, level=0.95):
    allowed = misses_allowed(n, 0.99, level)
    return -1 if allowed is None else allowed


def _verdict(passed):
    return Verdict("passed" if passed else "refused", "")


def _misses(rng, n, agreements, shared, exports):
    """Misses of candidates on n images with the given true agreements; ``shared``: correlation of latent margins."""
    if shared == 0:
        return rng.binomial(n, 1 - np.asarray(agreements), (exports, len(agreements)))
    limits = norm.ppf(1 - np.asarray(agreements))
    root = np.float32(np.sqrt(shared)), np.float32(np.sqrt(1 - shared))
    found = []
    for _ in range(exports):
        common = rng.standard_normal((n, 1), np.float32)
        latent = root[0] * common + root[1] * rng.standard_normal((n, len(agreements)), np.float32)
        found.append((latent < limits).sum(axis=0))
    return np.array(found)


def _wrong(candidates, n, agreements, shared, exports=EXPORTS, seed=0, rule=choose):
    """Shares of exports with a wrong candidate: by the rule, and by choosing the fastest that passes."""
    misses = _misses(np.random.default_rng(seed), n, agreements, shared, exports)

    @cache
    def by_rule(passed, at_half):
        """Whether the rule chooses a wrong one of candidates that pass at 95 %, and at 97.5 %."""

        def judge(candidate, level):
            return _verdict((at_half if level > 0.96 else passed)[int(candidate.name[1])])

        chosen = next((r for r in rule(candidates, judge) if r.chosen), None)
        return chosen is not None and agreements[int(chosen.name[1])] <= 0.99

    passed, at_half = (misses <= _allowed(n, level) for level in (0.95, 0.975))
    wrong = sum(by_rule(tuple(own), tuple(half)) for own, half in zip(passed.tolist(), at_half.tolist(), strict=True))
    fastest = np.where(passed.any(axis=1), len(agreements) - 1 - passed[:, ::-1].argmax(axis=1), -1)
    by_speed = (fastest >= 0) & (np.asarray(agreements)[fastest] <= 0.99)
    return wrong / exports, by_speed.mean()


@pytest.mark.parametrize("shared", fast_first([0.0, 0.95, 0.7], 2))
@pytest.mark.parametrize(
    ("n", "agreements"),
    fast_first(
        [
            (299, [0.99] * 5),
            (299, [0.99, 0.9999, 0.99, 0.9999, 0.98]),
            (299, [0.9999, 0.9999, 0.9999, 0.99, 0.99]),
            (628, [0.99] * 5),
        ],
        1,
    ),
)
def test_wrong_candidates_pass_in_at_most_5_percent(n, agreements, shared):
    exports = EXPORTS if shared == 0 else 1500
    rule, _ = _wrong(FIVE, n, agreements, shared, exports)
    assert rule <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / exports)


BAD, GOOD = 0.99, 0.9999


# 368 images show 99 % at a half of the error, 473 with a miss at the whole of it and without one at a half.
@pytest.mark.parametrize(("shared", "seed"), fast_first([(0.0, 0), (0.0, 1), (0.95, 2), (0.7, 3)], 1))
@pytest.mark.parametrize(
    ("n", "agreements"),
    fast_first(
        [
            (368, [BAD] * 6),
            (473, [GOOD, GOOD, GOOD, BAD, BAD, BAD]),
            (473, [BAD, BAD, BAD, GOOD, GOOD, GOOD]),
            (368, [GOOD, BAD, BAD, GOOD, GOOD, BAD]),
            (773, [BAD] * 6),
            (773, [GOOD, GOOD, BAD, GOOD, BAD, GOOD]),
        ],
        3,
    ),
)
def test_two_chains_share_the_error(n, agreements, shared, seed):
    exports = EXPORTS if shared == 0 else 1500
    rule, _ = _wrong(SIX, n, agreements, shared, exports, seed)
    assert rule <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / exports)


def test_two_chains_with_the_whole_error_each_would_not_hold():
    def each_alone(candidates, judge):
        chains = [choose([c for c in candidates if c.criterion == own], judge) for own in ("agreement", "drop")]
        return chains[1] if any(r.chosen for r in chains[1]) else chains[0]

    # 299 images: 0.0495 of each chain, in closed form.
    found, _ = _wrong(SIX, 299, [BAD] * 6, 0.0, rule=each_alone)
    assert found == pytest.approx(1 - (1 - 0.99**299) ** 2, abs=0.015)
    assert found > 0.08
    # 368 images at a half of the error each: 0.0248 of each.
    assert _wrong(SIX, 368, [BAD] * 6, 0.0)[0] == pytest.approx(1 - (1 - 0.99**368) ** 2, abs=0.01)


def test_the_simulation_finds_a_rule_that_fails():
    _, fastest = _wrong(FIVE, 299, [0.99] * 5, 0.0)
    assert fastest == pytest.approx(1 - (1 - 0.99**299) ** 5, abs=0.03)  # 22 %, in closed form
    assert fastest > 0.19
    _, strongly_shared = _wrong(FIVE, 299, [0.99] * 5, 0.95, 1500)
    assert 0.08 < strongly_shared < 0.2


def test_a_good_candidate_is_chosen_with_the_printed_power():
    rng = np.random.default_rng(3)
    chosen = 0
    for passed in _misses(rng, 2000, [0.995], 0.0, EXPORTS)[:, 0] <= _allowed(2000):
        chosen += any(r.chosen for r in choose(FIVE[:1], lambda c, level, p=passed: _verdict(p)))
    assert chosen / EXPORTS == pytest.approx(0.79, abs=0.03)


def _choose(candidates, refused=()):
    tested = []

    def judge(candidate, level):
        tested.append(candidate.name)
        return _verdict(candidate.name not in refused)

    results = choose(candidates, judge)
    return tested, {r.name: r.verdict for r in results}, next((r.name for r in results if r.chosen), None)


FP32 = Candidate("openvino fp32", "openvino", "equality", 20.0)
ONNX = Candidate("onnx fp32", "onnx", "equality", 18.0)
BF16 = Candidate("openvino bf16", "openvino", "agreement", 40.0)
INT8 = Candidate("openvino int8", "openvino", "agreement", 70.0)
ONNX8 = Candidate("onnx int8", "onnx", "agreement", 80.0)
ALL = [FP32, ONNX, BF16, INT8, ONNX8]


def test_the_fastest_of_those_that_pass_is_chosen():
    tested, _, chosen = _choose(ALL)
    assert tested == [c.name for c in ALL]
    assert chosen == "onnx int8"


def test_the_first_refusal_ends_the_tests_and_fp32_remains():
    tested, verdicts, chosen = _choose(ALL, refused=["openvino bf16"])
    assert tested == ["openvino fp32", "onnx fp32", "openvino bf16"]
    assert verdicts["openvino int8"] == Verdict("not tested", "openvino bf16, which is safer, was refused")
    assert verdicts["onnx int8"].status == "not tested"
    assert chosen == "openvino fp32"


def test_a_candidate_that_is_no_faster_than_a_safer_one_is_left_out_and_ends_nothing():
    slow = replace(BF16, images_per_second=20.0 * LEAST_GAIN - 0.01)
    tested, verdicts, chosen = _choose([FP32, ONNX, slow, INT8, ONNX8], refused=["openvino bf16"])
    assert "openvino bf16" not in tested
    assert verdicts["openvino bf16"] == Verdict("not tested", "not faster than openvino fp32, which is safer")
    assert chosen == "onnx int8"
    slower8 = replace(ONNX8, images_per_second=69.0)
    assert _choose([FP32, ONNX, BF16, INT8, slower8])[2] == "openvino int8"
    # The safer one counts only if it passed.
    tested, _, chosen = _choose([replace(ONNX, images_per_second=60.0), FP32, BF16], refused=["onnx fp32"])
    assert (tested[-1], chosen) == ("openvino bf16", "openvino bf16")


def test_a_candidate_that_could_not_be_built_ends_nothing():
    lost = replace(BF16, images_per_second=None, failure="this processor has no bf16")
    tested, verdicts, chosen = _choose([FP32, lost, INT8])
    assert tested == ["openvino fp32", "openvino int8"]
    assert verdicts["openvino bf16"] == Verdict("not built", "this processor has no bf16")
    assert chosen == "openvino int8"


def test_an_engine_that_differs_in_fp32_is_not_tested_at_reduced_precision():
    tested, verdicts, chosen = _choose(ALL, refused=["openvino fp32"])
    assert tested == ["openvino fp32", "onnx fp32", "onnx int8"]
    assert verdicts["openvino int8"].reason == "openvino in fp32 is not equal to the original"
    assert chosen == "onnx int8"
    assert _choose([FP32, BF16], refused=["openvino fp32"])[2] is None


MERGED = Candidate("openvino fp32 r=8", "openvino", "drop", 50.0)
MORE = Candidate("openvino bf16 r=8", "openvino", "drop", 90.0)
MERGED_TOO = [*ALL, MERGED, MORE]


def _levels(candidates, limits):
    """Tests and their levels, where each candidate passes up to a level; the chosen one."""
    tested = []

    def judge(candidate, level):
        if candidate.criterion != "equality":
            tested.append((candidate.name, round(level, 4)))
        return _verdict(level <= limits.get(candidate.name, 1))

    results = choose(candidates, judge)
    return tested, {r.name: r.verdict for r in results}, next((r.name for r in results if r.chosen), None)


def test_a_refused_precision_does_not_end_the_tests_of_merged_tokens():
    tested, verdicts, chosen = _levels(MERGED_TOO, {"openvino bf16": 0.9})
    # They pass as a whole at their half of the error, so that bf16 is tested again at the whole of it.
    assert tested == [
        ("openvino bf16", 0.975), ("openvino fp32 r=8", 0.975), ("openvino bf16 r=8", 0.975), ("openvino bf16", 0.95),
    ]  # fmt: skip
    assert verdicts["openvino int8"].reason == "openvino bf16, which is safer, was refused"
    assert chosen == "openvino bf16 r=8"
    assert "(level 97.5 %: precisions and merged tokens share the error)" in verdicts[chosen].reason
    assert "level" not in verdicts["openvino bf16"].reason


def test_refused_merged_tokens_do_not_end_the_tests_of_precisions():
    tested, _, chosen = _levels(MERGED_TOO, {"openvino fp32 r=8": 0.96})
    # The precisions pass as a whole, so that merged tokens are tested at the whole error.
    assert tested[-2:] == [("openvino fp32 r=8", 0.95), ("openvino bf16 r=8", 0.95)]
    assert [name for name, _ in tested] == [c.name for c in MERGED_TOO if c.criterion != "equality"]
    assert chosen == "openvino bf16 r=8"
    tested, verdicts, chosen = _levels(MERGED_TOO, {"openvino fp32 r=8": 0.9})
    assert verdicts["openvino bf16 r=8"].reason == "openvino fp32 r=8, which is safer, was refused"
    assert chosen == "onnx int8"


def test_a_refusal_is_tested_again_where_the_other_chain_leaves_its_error():
    tested, _, chosen = _levels(MERGED_TOO, {"openvino int8": 0.96})
    assert tested.count(("openvino int8", 0.975)) == tested.count(("openvino int8", 0.95)) == 1
    assert tested[-1] == ("onnx int8", 0.95)
    assert chosen == "openvino bf16 r=8"
    # Not where that was refused too.
    tested, _, chosen = _levels(MERGED_TOO, {"openvino int8": 0.96, "openvino bf16 r=8": 0.96})
    assert ("openvino int8", 0.95) not in tested
    assert chosen == "openvino fp32 r=8"


@pytest.mark.parametrize("misses", [1, 3])
def test_a_second_judgement_needs_no_comparison_and_keeps_a_refusal(misses, monkeypatch):
    """473 images with a miss show 99 % at 95 % and not at 97.5 %; with 3 at neither. The budget is spent by then."""
    logits = np.tile([5.0, 0.0], (473, 1))
    moved = logits.copy()
    moved[:misses] = [0.0, 5.0]
    export = importlib.import_module("vitrail.deploy.export.export")
    outputs = {"openvino fp32": logits, "openvino bf16": moved, "openvino int8": moved, "openvino fp32 r=8": logits}
    budget, comparisons = Budget(60), []

    def run(name, *_):
        comparisons.append(name)
        return {"logits": outputs[name]}

    monkeypatch.setattr(export, "export_outputs", run)
    monkeypatch.setattr(budget, "fits", lambda seconds: len(comparisons) < 3)
    with budget.step(export._COMPARISON):
        pass
    variants = [Variant("openvino", "fp32"), Variant("openvino", "bf16"), Variant("openvino", "int8"),
                Variant("openvino", "fp32", 8)]  # fmt: skip
    built = [SimpleNamespace(variant=one, export=one.name, failure="") for one in variants]
    speeds = {one.name: SimpleNamespace(images_per_second=10.0 * (i + 1)) for i, one in enumerate(variants)}
    gate = GateImages(Outputs(logits), np.zeros(473, np.int64))
    graph = SimpleNamespace(include=(), heatmaps={}, stored={})
    results = export._choose(built, speeds, None, gate, [], graph, Limits(), {}, budget)
    verdicts = {result.name: result.verdict for result in results}
    assert comparisons == ["openvino fp32", "openvino bf16", "openvino fp32 r=8"]
    assert verdicts["openvino fp32 r=8"].status == "passed"
    assert verdicts["openvino bf16"].status == ("passed" if misses == 1 else "refused")
    assert verdicts["openvino int8"].status == "not tested"
    assert ("--budget" in verdicts["openvino int8"].reason) == (misses == 1)


def test_a_chain_alone_has_the_whole_error():
    for candidates in (ALL, [FP32, MERGED, MORE], [FP32, replace(BF16, failure="no bf16"), MERGED]):
        tested, _, _ = _levels(candidates, {})
        assert {level for _, level in tested} == {0.95}


def test_merged_tokens_are_chosen_only_if_they_are_faster():
    even = replace(MERGED, images_per_second=80.0 * LEAST_GAIN - 0.01)
    assert _levels([*ALL, even], {})[2] == "onnx int8"
    assert _levels([*ALL, replace(even, images_per_second=80.0 * LEAST_GAIN + 0.01)], {})[2] == even.name
    # Whether one is tested depends on no result of the other chain.
    assert even.name in dict(_levels([*ALL, replace(even, images_per_second=30.0)], {})[0])


def test_no_candidates_and_mistaken_ones():
    assert choose([], _verdict) == []
    with pytest.raises(ConfigError, match="'onnx fp32' is listed twice"):
        choose([ONNX, ONNX], _verdict)
    with pytest.raises(ConfigError, match="has no speed"):
        choose([replace(ONNX, images_per_second=None)], _verdict)


def test_a_candidate_that_is_slower_than_the_run_is_not_chosen():
    candidates = [replace(FP32, slower="1.2 times as slow"), replace(ONNX, images_per_second=15.0), BF16]
    tested, _, chosen = _choose(candidates)
    assert tested == [c.name for c in candidates]
    assert chosen == "openvino bf16"
    assert _choose(candidates, refused=["openvino bf16"])[2] == "onnx fp32"
    assert _choose([replace(c, slower="1.2 times as slow") for c in ALL])[2] is None


def test_a_candidate_that_passed_says_that_it_is_too_slow():
    own, other = choose([replace(FP32, slower="it takes 1.2 times as long"), ONNX], lambda *_: _verdict(True))
    assert own.verdict.reason.endswith("not chosen: it takes 1.2 times as long")
    assert "not chosen" not in other.verdict.reason


def _times(rng, ratio, turns, noise):
    """Times of a candidate and of the run under a load that changes from turn to turn, and noise of each call."""
    load = np.exp(np.cumsum(rng.normal(0, 0.5, turns)))
    own, run = load * np.exp(np.abs(rng.normal(0, noise, (2, turns))))
    return (ratio * own).tolist(), run.tolist()


def _shown(ratio, turns, noise, times=1000, seed=0):
    """Share of measurements that show a candidate to be slower than the run."""
    rng = np.random.default_rng(seed)
    found = [Ratio.of(*_times(rng, ratio, turns, noise)).low > LEAST_GAIN for _ in range(times)]
    return sum(found) / times


@pytest.mark.parametrize("turns", [8, 13, 40])
@pytest.mark.parametrize("noise", [0.05, 0.4])
@pytest.mark.fast_cases("0.05-8", "0.4-40")
def test_a_candidate_as_fast_as_the_run_is_rarely_shown_to_be_slower(turns, noise):
    assert _shown(1.0, turns, noise) <= 0.01
    # At the border: half of the two-sided error, and the noise of 1,000 measurements.
    assert _shown(LEAST_GAIN, turns, noise) <= 0.005 + 3 * np.sqrt(0.005 / 1000)


def test_a_slower_candidate_is_shown_to_be_slower_even_under_load():
    assert _shown(1.3, 20, 0.1) > 0.99
    assert _shown(1.3, 20, 0.1, seed=1) > 0.99


@pytest.mark.parametrize("turns", [1, 7])
def test_too_few_turns_show_nothing(turns):
    ratio = Ratio.of([9.0] * turns, [1.0] * turns)
    assert (ratio.median, ratio.low, ratio.high) == (9, 0, float("inf"))
    assert not ratio.shows(LEAST_GAIN)
    assert ratio.to_json() == {"turns": turns, "median": 9.0, "low": None, "high": None}
    assert Measured((Speed(8, turns, 9, 9, 9),), None, None, "fp32", {}, ratio).slower == ""


def test_the_words_of_a_slower_candidate_have_ratio_and_bound():
    ratio = Ratio.of([1.2, 1.3, 1.4] * 6, [1.0] * 18)
    own = Measured((Speed(8, 18, 1.3, 2, 1),), None, None, "fp32", {}, ratio)
    assert own.slower == "a call takes 1.30 times that of the run (at least 1.20)"
    assert ratio.shows(LEAST_GAIN)
    assert ratio.shows(1.5)
    assert not ratio.shows(1.3)
