"""The choice among an export's candidates: gated from the safest to the fastest, ended by the first refusal.

Two chains of candidates are tested in this way: reduced precisions of the run's model, and models with merged tokens,
which are another computation, so that a refusal of one says nothing of the other. Where both have candidates, they
share the error, a half each; a chain that passes as a whole leaves its half to the other.

A wrong candidate is then chosen in at most 5 % of exports, for any number of candidates and any dependence of their
errors: before a later one can pass, the first wrong candidate of a chain must, at the chain's share of the error.
Choosing the fastest of five that pass on the same images would choose a wrong one in 22 %.

The order, the speeds and the limits must be fixed before the gate images are used.

Source: fixed-sequence procedure: Maurer et al. 1995, in Biometrie in der chemisch-pharmazeutischen Industrie 6, 3-18;
Wiens 2003, Pharm. Stat. 2, 211-215. Chains that pass on their error: Bretz et al. 2009, Stat. Med. 28, 586-604.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitrail.deploy.export.bounds import LEVEL
from vitrail.deploy.export.gate import Criterion
from vitrail.deploy.export.verdict import Result, Verdict, percent
from vitrail.errors import ConfigError

# A candidate of reduced precision must be faster than a safer one by this factor: less is within the noise of speeds.
LEAST_GAIN = 1.03


@dataclass(frozen=True)
class Candidate:
    """An engine at a precision, of the run's model or with merged tokens.

    Attributes:
        name: Unique name, such as "openvino bf16".
        engine: Engine, which fp32 and reduced precision share the converted graph of.
        criterion: "equality" (fp32), "agreement" (reduced precision) or "drop" (merged tokens).
        images_per_second: Measured speed; None if it could not be built or run.
        failure: Reason why it could not be built or run.
        slower: Ratio to the time of the run in eager mode, as text; such a candidate must not be chosen. Empty if it is
            not slower.
    """

    name: str
    engine: str
    criterion: Criterion
    images_per_second: float | None
    failure: str = ""
    slower: str = ""


# Judges a candidate on the gate images, at a confidence level.
Judge = Callable[[Candidate, float], Verdict]


def choose(candidates: Sequence[Candidate], judge: Judge, level: float = LEVEL) -> list[Result]:
    """Gate candidates, and choose the fastest of those that pass.

    fp32 candidates are all judged, by numerical equality: whether they pass does not depend on the sampled images, so
    that they need no place in the order. Those of each chain follow in their order until its first refusal. Left out
    without ending the tests, since the gate images have no part in it:

    - a candidate that could not be built,
    - one that is not faster by :data:`LEAST_GAIN` than a safer candidate of its chain that passed, or than fp32, which
      it could not replace,
    - one whose engine computes something else in fp32 already.

    One that is slower than the run is not chosen.

    Args:
        candidates: Candidates from the safest to the riskiest; fp32 in any order.
        judge: Judges a candidate; called for tested candidates only, and once more, for the same outputs, for one that
            was refused where the other chain leaves its error.
        level: Confidence level of the choice: one minus the probability that a wrong candidate is chosen.

    Returns:
        Results in the order of the candidates. At most one is chosen; none if no candidate passes, or
        all are slower.

    Raises:
        ConfigError: A name is repeated, or a speed is missing without a failure.
    """
    _check(candidates)
    verdicts = {c.name: judge(c, level) for c in candidates if c.criterion == "equality" and not c.failure}
    different = {c.engine for c in candidates if c.name in verdicts and verdicts[c.name].status == "refused"}
    equal = [c for c in candidates if c.name in verdicts and verdicts[c.name].status == "passed"]
    for c in candidates:
        if c.failure:
            verdicts[c.name] = Verdict("not built", c.failure)
        elif c.engine in different and c.criterion != "equality":
            verdicts[c.name] = Verdict("not tested", f"{c.engine} in fp32 is not equal to the original")
    left = [c for c in candidates if c.name not in verdicts]
    precisions, merged = (_Chain([c for c in left if c.criterion == own], equal) for own in ("agreement", "drop"))
    _test(precisions, merged, judge, level)
    verdicts |= precisions.verdicts | merged.verdicts
    # As within a chain: merged tokens must be faster than what is safer.
    safe, fast = (_fastest([c for c in own if not c.slower]) for own in (precisions.passed, merged.passed))
    chosen = fast if safe is None or (fast is not None and _speed(fast) >= LEAST_GAIN * _speed(safe)) else safe
    return [Result(c.name, c.images_per_second, c is chosen, _with_speed(verdicts[c.name], c)) for c in candidates]


class _Chain:
    """Candidates that are tested in their order, up to the first refusal.

    Args:
        candidates: Candidates from the safest to the riskiest.
        equal: fp32 candidates that passed.

    Attributes:
        passed: Candidates that passed, fp32 among them.
        verdicts: Verdicts by name.
    """

    def __init__(self, candidates: Sequence[Candidate], equal: Sequence[Candidate]) -> None:
        self.waiting, self.passed = list(candidates), list(equal)
        self.verdicts: dict[str, Verdict] = {}

    def test(self, judge: Judge, level: float, of: float) -> bool:
        """Test from the first candidate that has not passed, as long as the judge has time; return whether all have.

        Args:
            judge: Judges a candidate.
            level: Confidence level.
            of: Confidence level of the whole choice, which needs no mention.
        """
        while self.waiting:
            c = self.waiting[0]
            if slower_than := _replaced_by(c, self.passed):
                self.verdicts[c.name] = Verdict("not tested", f"not faster than {slower_than.name}, which is safer")
            else:
                self.verdicts[c.name] = _with_level(judge(c, level), level, of)
                if self.verdicts[c.name].status != "passed":
                    reason = f"{c.name}, which is safer, was {self.verdicts[c.name].status}"
                    self.verdicts |= {later.name: Verdict("not tested", reason) for later in self.waiting[1:]}
                    return False
                self.passed.append(c)
            self.waiting.pop(0)
        return True


def _test(first: _Chain, second: _Chain, judge: Judge, level: float) -> None:
    """Test two chains at a half of the error each; the one that passes as a whole leaves its half to the other."""
    half = level if not (first.waiting and second.waiting) else (1 + level) / 2
    first_passed = first.test(judge, half, level)
    second_passed = second.test(judge, level if first_passed else half, level)
    if second_passed and not first_passed and half > level:
        first.test(judge, level, level)


def _with_level(verdict: Verdict, level: float, of: float) -> Verdict:
    """Add to a verdict that its level is above that of the choice."""
    if level == of:
        return verdict
    reason = f"{verdict.reason} (level {percent(level)}: precisions and merged tokens share the error)"
    return dataclasses.replace(verdict, reason=reason)


def _with_speed(verdict: Verdict, candidate: Candidate) -> Verdict:
    """Add to the verdict that a candidate which passed is too slow to be chosen."""
    if verdict.status != "passed" or not candidate.slower:
        return verdict
    return dataclasses.replace(verdict, reason=f"{verdict.reason}; not chosen: {candidate.slower}")


def _replaced_by(candidate: Candidate, passed: Sequence[Candidate]) -> Candidate | None:
    fastest = _fastest(passed)
    return fastest if fastest is not None and _speed(candidate) < LEAST_GAIN * _speed(fastest) else None


def _fastest(candidates: Sequence[Candidate]) -> Candidate | None:
    return max(candidates, key=_speed, default=None)


def _speed(candidate: Candidate) -> float:
    return candidate.images_per_second or 0.0


def _check(candidates: Sequence[Candidate]) -> None:
    names = [c.name for c in candidates]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"candidate {repeated!r} is listed twice; give each a name of its own")
    for c in candidates:
        if not c.failure and not _speed(c) > 0:
            raise ConfigError(f"candidate {c.name!r} has no speed; measure it, or give the failure")
