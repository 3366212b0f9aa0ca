"""The choice among an export's candidates: gated from the safest to the fastest, ended by the first refusal.

A wrong candidate of reduced precision is chosen in at most 5 % of exports, for any number of candidates and any
dependence of their errors: the first wrong one in the order must pass before another can. Choosing the fastest of five
that pass on the same images would choose a wrong one in 22 %.

The order, the speeds and the limits must be fixed before the gate images are used.

Source: fixed-sequence procedure: Maurer et al. 1995, in Biometrie in der chemisch-pharmazeutischen Industrie 6, 3-18;
Wiens 2003, Pharm. Stat. 2, 211-215.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitrail.deploy.export.gate import Criterion
from vitrail.deploy.export.verdict import Result, Verdict
from vitrail.errors import ConfigError

# A candidate of reduced precision must be faster than a safer one by this factor: less is within the noise of speeds.
LEAST_GAIN = 1.03


@dataclass(frozen=True)
class Candidate:
    """An engine at a precision, of the run's model or with merged tokens.

    Attributes:
        name: Unique name, such as "openvino bf16".
        engine: Engine, which fp32 and reduced precision share the converted graph of.
        criterion: "equality" (fp32), "agreement" (reduced precision, merged tokens) or "drop" (a changed computation).
        images_per_second: Measured speed; None if it could not be built or run.
        failure: Why it could not be built or run.
        slower: How much slower than the run in eager mode it is, which must not be chosen then; empty if it is not.
    """

    name: str
    engine: str
    criterion: Criterion
    images_per_second: float | None
    failure: str = ""
    slower: str = ""


def choose(candidates: Sequence[Candidate], judge: Callable[[Candidate], Verdict]) -> list[Result]:
    """Gate candidates, and choose the fastest of those that pass.

    fp32 candidates are all judged, by numerical equality: whether they pass does not depend on the sampled images, so
    that they need no place in the order. Others follow in their order until the first refusal. Left out without ending
    the tests, since the gate images have no part in it:

    - a candidate that could not be built,
    - one that is not faster by :data:`LEAST_GAIN` than a safer candidate that passed, which it could not replace,
    - one whose engine computes something else in fp32 already.

    One that is slower than the run is not chosen.

    Args:
        candidates: From the safest to the riskiest; fp32 in any order.
        judge: Judges a candidate on the gate images; called for tested candidates only.

    Returns:
        Results in the order of the candidates. At most one is chosen; none if no candidate passes, or
        all are slower.

    Raises:
        ConfigError: A name is repeated, or a speed is missing without a failure.
    """
    _check(candidates)
    verdicts = {c.name: judge(c) for c in candidates if c.criterion == "equality" and not c.failure}
    different = {c.engine for c in candidates if c.name in verdicts and verdicts[c.name].status != "passed"}
    passed = [c for c in candidates if c.name in verdicts and verdicts[c.name].status == "passed"]
    refused: Candidate | None = None
    for c in candidates:
        if c.name in verdicts:
            continue
        if c.failure:
            verdicts[c.name] = Verdict("not built", c.failure)
        elif c.engine in different:
            verdicts[c.name] = Verdict("not tested", f"{c.engine} in fp32 is not equal to the original")
        elif refused is not None:
            verdicts[c.name] = Verdict("not tested", f"{refused.name}, which is safer, was refused")
        elif slower_than := _replaced_by(c, passed):
            verdicts[c.name] = Verdict("not tested", f"not faster than {slower_than.name}, which is safer")
        else:
            verdicts[c.name] = judge(c)
            if verdicts[c.name].status == "passed":
                passed.append(c)
            else:
                refused = c
    chosen = max((c for c in passed if not c.slower), key=_speed, default=None)
    return [Result(c.name, c.images_per_second, c is chosen, _with_speed(verdicts[c.name], c)) for c in candidates]


def _with_speed(verdict: Verdict, candidate: Candidate) -> Verdict:
    """Add to the verdict that a candidate which passed is too slow to be chosen."""
    if verdict.status != "passed" or not candidate.slower:
        return verdict
    return dataclasses.replace(verdict, reason=f"{verdict.reason}; not chosen: {candidate.slower}")


def _replaced_by(candidate: Candidate, passed: Sequence[Candidate]) -> Candidate | None:
    fastest = max(passed, key=_speed, default=None)
    return fastest if fastest is not None and _speed(candidate) < LEAST_GAIN * _speed(fastest) else None


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
