"""Paired statistics of trained models, over training runs and test images.

Two random factors decide which of two recipes looks better: the seed of the training and the images of the test split.
A claim about recipes holds against both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from vitrail.errors import DataError

Floats = npt.NDArray[np.float64]

# Beyond this many runs of each, "more seeds" is no advice any more.
MOST_SEEDS = 1000
# Spread below this share of the values is rounding of equal numbers.
_ROUNDING = 1e-12


def mean_interval(
    values: npt.ArrayLike, confidence: float = 0.95, *, least: float = -math.inf, most: float = math.inf
) -> tuple[float, float, float]:
    """Compute the mean of independent runs and its Student interval.

    Args:
        values: One a run, shape ``(S,)``.
        confidence: Coverage wanted.
        least: Smallest possible value; the interval is cut there, which leaves its coverage as it is.
        most: Largest possible value.

    Returns:
        Mean, low and high. The ends are NaN where nothing can be inferred: for a single run, and for runs without any
        spread (accuracies are counts and agree at random).

    Raises:
        DataError: No values.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) == 0:
        raise DataError("a mean needs at least one run, got none")
    mean = float(x.mean())
    if len(x) == 1:
        return mean, math.nan, math.nan
    if np.ptp(x) <= _ROUNDING * np.abs(x).max():
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.5 + confidence / 2, len(x) - 1) * stats.sem(x))
    return mean, max(mean - half, least), min(mean + half, most)


@dataclass(frozen=True)
class PairedDifference:
    """A mean difference and its variance components; fields are arrays where several are computed at once.

    Two variances of few and of many degrees of freedom are tested together by Student's quantiles of both, weighted by
    the variances (Cochran and Cox). This is conservative; Satterthwaite's approximation is not, for two or three runs.

    Attributes:
        value: The mean difference.
        runs: Squared standard error that more runs make smaller.
        images: Squared standard error that only more test images make smaller.
        df_runs: Degrees of freedom of the one.
        df_images: Degrees of freedom of the other.
        num_runs: Number of pairs of runs.
        what: Population of the difference, for people.
        centre: Middle of the interval, moved towards 0 by pseudo-images (:func:`with_pseudo_images`); the value itself
            when not given.
        largest: Largest possible absolute difference, at which intervals are cut; 1 for accuracy.

    Source: Cochran & Cox 1957, Experimental Designs, section 4.14.
    """

    value: Floats
    runs: Floats
    images: Floats
    df_runs: float
    df_images: float
    num_runs: int
    what: str
    centre: Floats | None = None
    largest: float = math.inf

    @property
    def error(self) -> Floats:
        """Standard error of the difference."""
        root: Floats = np.sqrt(self.runs + self.images)
        return root

    @property
    def _middle(self) -> Floats:
        return self.value if self.centre is None else self.centre

    @property
    def _inferable(self) -> npt.NDArray[np.bool_]:
        """Whether there is any spread: without, nothing can be inferred."""
        known: npt.NDArray[np.bool_] = self.error > _ROUNDING * np.abs(self.value)
        return known

    def limit(self, alpha: float | Floats = 0.05) -> Floats:
        """Compute how many standard errors a difference must be away from 0, two-sided."""
        variance = self.runs + self.images
        share = np.where(variance > 0, self.runs / np.where(variance > 0, variance, 1), 1.0)
        half = np.asarray(alpha) / 2
        few, many = stats.t.isf(half, self.df_runs), stats.t.isf(half, self.df_images)
        mixed: Floats = share * few + (1 - share) * many
        return mixed

    def interval(self, confidence: float = 0.95) -> tuple[Floats, Floats]:
        """Compute the low and high end; NaN where there is no spread, and so no interval."""
        half = np.where(self._inferable, self.limit(1 - confidence) * self.error, np.nan)
        low = np.maximum(np.minimum(self._middle - half, self.value), -self.largest)
        high = np.minimum(np.maximum(self._middle + half, self.value), self.largest)
        return low, high

    def p_value(self) -> Floats:
        """Compute the two-sided p-value: the level at which the interval ends at 0; 1 without spread."""
        return self._level(np.abs(self._middle))

    def equivalence_p(self, margin: float) -> Floats:
        """Compute the p-value of the claim that the true difference is smaller than a margin, by two one-sided tests.

        It is below ``alpha`` where the interval of confidence ``1 - 2 alpha`` lies inside of the margin.

        Args:
            margin: Largest absolute difference that counts as equal, above 0.

        Returns:
            The larger of the two one-sided p-values; 1 without spread.

        Source: Schuirmann 1987, J. Pharmacokinet. Biopharm. 15, 657-680.
        """
        away = margin - np.abs(self._middle)
        p: Floats = np.where(away > 0, self._level(np.maximum(away, 0)) / 2, 1.0)
        return np.where(self._inferable, p, 1.0)

    def _level(self, distance: Floats) -> Floats:
        """Two-sided level of a distance from the middle of the interval."""
        error = self.error
        t = np.where(self._inferable, distance / np.where(error > 0, error, 1.0), 0.0)
        low, high = np.full(t.shape, -690.0), np.zeros(t.shape)  # logarithms of p
        for _ in range(45):
            middle = (low + high) / 2
            sure = t > self.limit(np.exp(middle))
            low, high = np.where(sure, low, middle), np.where(sure, middle, high)
        p: Floats = np.exp(high)
        return p


def with_pseudo_images(scores: npt.ArrayLike, typical: float = 1.0) -> tuple[Floats, Floats]:
    """Compute the mean of paired scores and its variance with two pseudo-images, one for either side.

    Counts have no spread by coincidence: five images that the one model alone has correct have a standard error of 0.
    One more image for each side keeps the error above 0, and the test close to the exact one of McNemar. The two are as
    large as the images that differ at all (their root mean square).

    Args:
        scores: Mean difference of each image, shape ``(..., N)``.
        typical: Size of the pseudo-images where no image differs.

    Returns:
        Mean and its squared standard error.

    Source: Bonett & Price 2012, J. Educ. Behav. Stat. 37, 479-488.
    """
    x = np.asarray(scores, dtype=np.float64)
    differing = (x != 0).sum(-1)
    squares = (x**2).sum(-1)
    size = np.where(differing > 0, squares / np.maximum(differing, 1), typical**2)
    n = x.shape[-1] + 2
    mean: Floats = x.sum(-1) / n
    variance: Floats = ((squares + 2 * size) / n - mean**2) / (n - 1)
    return mean, variance


def _largest_of_counts(differences: Floats, largest: float | None) -> float | None:
    """The largest possible difference where it is known, or seen: differences of counts are -1, 0 and 1."""
    if largest is not None:
        return largest
    counts = np.isin(differences, (-1.0, 0.0, 1.0)).all() and bool(differences.any())
    return 1.0 if counts else None


def runs_and_images(differences: npt.ArrayLike, largest: float | None = None) -> PairedDifference:
    """Compute the difference of two recipes from several runs of each on the same test images.

    Runs and images are both random samples: the result is about other seeds and other images of the same kind. With
    D[s, n] = mu + run[s] + image[n] + rest[s, n], the mean squares MS of the three give the variance of the mean,
    (MS_run + max(MS_image - MS_rest, 0)) / (S N). This is the analysis that radiology uses for several readers and
    cases. For scores with a largest possible difference, it is at least the variance of the image means with two
    pseudo-images (:func:`with_pseudo_images`), because counts agree by coincidence. One run of each says nothing of
    other seeds: the result is then about these two models alone.

    Args:
        differences: Score of the one minus score of the other on each image, shape ``(..., S, N)``: a row a pair of
            runs. Images that belong together (groups) are to be joined first (:func:`join_groups`).
        largest: Largest possible absolute difference of the means, 1 for accuracy; differences that are all -1, 0 or 1
            are taken for counts. None for scores without a limit (log-loss).

    Returns:
        For each of the leading dimensions.

    Raises:
        DataError: Fewer than two images.

    Source: Dorfman, Berbaum & Metz 1992, Invest. Radiol. 27, 723-731; Hillis 2007, Stat. Med. 26, 596-619.
    """
    d = np.asarray(differences, dtype=np.float64)
    S, N = d.shape[-2:]
    if N < 2:
        raise DataError(f"a comparison needs at least 2 test images (or groups of them), got {N}")
    largest = _largest_of_counts(d, largest)
    value = d.mean((-2, -1))
    run_means, image_means = d.mean(-1), d.mean(-2)
    ms_image = S * image_means.var(-1, ddof=1)
    if S == 1:
        runs, images = np.zeros_like(value), ms_image / N
        num_runs, df, what = 1, N - 1, "these two models, on other images"
    else:
        ms_run = N * run_means.var(-1, ddof=1)
        rest = d - run_means[..., None] - image_means[..., None, :] + value[..., None, None]
        ms_rest = (rest**2).sum((-2, -1)) / ((S - 1) * (N - 1))
        runs, images = ms_run / (S * N), np.maximum(ms_image - ms_rest, 0) / (S * N)
        num_runs, df, what = S, S - 1, "other seeds and other images"
    if largest is None:
        return PairedDifference(value, runs, images, df, N - 1, num_runs, what)
    centre, least = with_pseudo_images(image_means, largest)
    images = np.maximum(images, least - runs)
    return PairedDifference(value, runs, images, df, N - 1, num_runs, what, centre, largest)


def over_folds(differences: npt.ArrayLike, test_share: float, largest: float = math.inf) -> PairedDifference:
    """Compute the difference of two recipes from cross-validation.

    The training images of two folds overlap, so their results vary less than those of independent trainings; the
    variance is raised by the ratio of test to training images. Folds that agree exactly have no spread: they show
    nothing.

    Args:
        differences: Score of the one minus score of the other, one a pair of runs (fold and seed), shape ``(..., J)``.
        test_share: Test images of a fold divided by its training images.
        largest: Largest possible absolute difference, 1 for accuracy.

    Raises:
        DataError: Fewer than two pairs.

    Source: Nadeau & Bengio 2003, Mach. Learn. 52, 239-281; repeated: Bouckaert & Frank 2004, PAKDD, 3-12.
    """
    d = np.asarray(differences, dtype=np.float64)
    J = d.shape[-1]
    if J < 2:
        raise DataError(f"a comparison over folds needs at least 2 pairs of runs, got {J}")
    value, variance = d.mean(-1), d.var(-1, ddof=1)
    return PairedDifference(
        value, variance / J, variance * test_share, J - 1, J - 1, J, "other images, by folds", None, largest
    )


def join_groups(scores: npt.ArrayLike, groups: Sequence[str] | npt.NDArray[np.object_]) -> Floats:
    """One score a group of images that belong together, so that their mean is still the mean over images.

    Args:
        scores: Shape ``(..., N)``.
        groups: Of each image.

    Returns:
        Shape ``(..., G)``.
    """
    x = np.asarray(scores, dtype=np.float64)
    _, number = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    count = int(number.max()) + 1
    joined: Floats = np.zeros((*x.shape[:-1], count))
    np.add.at(joined.reshape(-1, count).T, number, x.reshape(-1, x.shape[-1]).T)
    joined *= count / x.shape[-1]
    return joined


def bootstrap_images(
    differences: npt.ArrayLike, confidence: float = 0.95, repeats: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Compute the percentile interval of the mean difference over other test images, with the runs as they are.

    Args:
        differences: Shape ``(S, N)``.
        confidence: Coverage wanted.
        repeats: Resamples.
        seed: Of the resampling.

    Source: Efron 1979, Ann. Stat. 7, 1-26; computed by :func:`scipy.stats.bootstrap`.
    """
    mean = np.asarray(differences, dtype=np.float64).mean(0)
    batch = max(1, 4_000_000 // len(mean))
    found = stats.bootstrap(
        (mean,), np.mean, n_resamples=repeats, batch=batch, confidence_level=confidence, method="percentile",
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def bootstrap_runs_and_images(
    differences: npt.ArrayLike, confidence: float = 0.95, repeats: int = 4999, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean difference over other runs and other images: both are drawn anew, each on its own.

    The quantiles are moved outwards as Student's are for as few runs, since a bootstrap of few is too narrow. What is
    left errs on the wide side where most of the variance is neither of the runs nor of the images.

    Args:
        differences: Shape ``(S, N)``, at least two runs.
        confidence: Coverage wanted.
        repeats: Resamples.
        seed: Of the resampling.

    Raises:
        DataError: One run.

    Source: Owen 2007, Ann. Appl. Stat. 1, 386-411 (both factors resampled); Hesterberg 2015, Am. Stat. 69, 371-386
    (expanded percentiles).
    """
    d = np.asarray(differences, dtype=np.float64)
    S, N = d.shape
    if S < 2:
        raise DataError("the seeds of 1 run cannot be resampled; use bootstrap_images")
    rng = np.random.default_rng(seed)
    rows = rng.multinomial(S, np.full(S, 1 / S), size=repeats) / S
    means = np.empty(repeats)
    step = max(1, 4_000_000 // N)
    for start in range(0, repeats, step):
        part = slice(start, min(start + step, repeats))
        columns = rng.multinomial(N, np.full(N, 1 / N), size=part.stop - part.start) / N
        means[part] = np.einsum("rs,rs->r", rows[part], columns @ d.T)
    tail = stats.norm.cdf(-math.sqrt(S / (S - 1)) * stats.t.ppf(0.5 + confidence / 2, S - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def sign_flip(values: npt.ArrayLike, repeats: int = 9999, seed: int = 0) -> float:
    """Two-sided p-value of differences whose signs are as likely as their opposites: exact where there are few.

    Over the images of given models it is about these models alone; over the runs of given images, about these images.

    Args:
        values: Paired differences, shape ``(N,)``.
        repeats: Random flips, where there are more ways than that.
        seed: Of the flips.

    Returns:
        The p-value; 1 where all differences are 0.

    Source: Fisher 1935, The Design of Experiments, section 21; computed by :func:`scipy.stats.permutation_test`.
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[x != 0]  # flipping these changes nothing
    if len(x) == 0:
        return 1.0
    if len(x) == 1:
        return 1.0  # both signs are as far from 0
    found = stats.permutation_test(
        (x,), lambda v, axis: v.sum(axis=axis), permutation_type="samples", vectorized=True, n_resamples=repeats,
        batch=max(1, 4_000_000 // len(x)), rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.pvalue)


@dataclass(frozen=True)
class McNemar:
    """Images that one of two models alone has right.

    Attributes:
        first: Right by the first alone, over all pairs of runs.
        second: Right by the second alone.
        odds_ratio: The first divided by the second; no number where both are 0.
        p: Exact; of several pairs of runs twice the median of theirs.
    """

    first: int
    second: int
    odds_ratio: float
    p: float


def mcnemar(first: npt.ArrayLike, second: npt.ArrayLike) -> McNemar:
    """Exact test of whether two models have equally many images right, on the same images.

    It is about these trained models. Several pairs of runs are not independent, as they are tested on the same images;
    twice the median of their p-values is valid whatever they share.

    Args:
        first: Whether each image is right, shape ``(S, N)``: a row a run.
        second: The same for the other.

    Source: McNemar 1947, Psychometrika 12, 153-157, as an exact binomial test; twice the median: Rüger 1978, Metrika
    25, 171-178.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    alone, other = (a & ~b).sum(1), (~a & b).sum(1)
    values = [
        1.0 if x + y == 0 else float(stats.binomtest(int(x), int(x + y)).pvalue)
        for x, y in zip(alone, other, strict=True)
    ]
    p = values[0] if len(values) == 1 else min(1.0, 2 * float(np.median(values)))
    total, rest = int(alone.sum()), int(other.sum())
    ratio = math.nan if total + rest == 0 else (math.inf if rest == 0 else total / rest)
    return McNemar(total, rest, ratio, p)


def holm(p_values: npt.ArrayLike) -> Floats:
    """P-values raised so that the chance of any false claim among all of them stays at the level of one.

    Args:
        p_values: Shape ``(m,)``.

    Returns:
        Corrected, in the same order.

    Source: Holm 1979, Scand. J. Stat. 6, 65-70.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    result = np.empty_like(p)
    result[order] = np.minimum(raised, 1.0)
    return result


def cohens_dz(differences: npt.ArrayLike) -> float:
    """Mean of paired differences in units of their standard deviation; no number for fewer than two, or without spread.

    Source: Cohen 1988, Statistical Power Analysis, section 2.3.5.
    """
    d = np.asarray(differences, dtype=np.float64)
    spread = float(d.std(ddof=1)) if len(d) > 1 else 0.0
    return float(d.mean()) / spread if spread > 0 else math.nan


def power(difference: float, runs: float, images: float, num_runs: int, alpha: float = 0.05) -> float:
    """Chance that a two-sided test shows a true difference of this size.

    Args:
        difference: The true difference.
        runs: Variance of the difference from one pair of runs to another.
        images: Squared standard error that comes from the test images, whatever the number of runs.
        num_runs: Pairs of runs, at least 2.
        alpha: Level of the test.

    Source: Cohen 1988, chapter 2, by the noncentral t distribution (:data:`scipy.stats.nct`).
    """
    value, own = np.asarray(difference), np.asarray(runs / num_runs)
    found = PairedDifference(value, own, np.asarray(images), num_runs - 1, math.inf, num_runs, "")
    error = float(found.error)
    if error == 0:
        return 1.0 if difference else alpha
    # Satterthwaite's degrees of freedom for how the ratio spreads; the limit is the test's own.
    df = 1e6 if runs == 0 else min(1e6, (error**2 / float(own)) ** 2 * (num_runs - 1))
    shift, limit = abs(difference) / error, float(found.limit(alpha))
    if shift > 37:
        return 1.0  # beyond what the noncentral distribution can be computed for, and long certain
    # Far in the tail it cannot be computed either, and is nothing.
    wrong_side = float(stats.nct.cdf(-limit, df, shift)) if shift < 5 else 0.0
    return float(stats.nct.sf(limit, df, shift)) + wrong_side


def runs_needed(found: PairedDifference, alpha: float = 0.05, wanted: float = 0.8) -> int | None:
    """How many pairs of runs would show a difference as large as the one found.

    The difference and its variances are taken as they were estimated, which few runs do badly: a guide, no promise.

    Args:
        found: A single difference from at least two pairs of runs.
        alpha: Level of the test, corrected for the number of comparisons where there are several.
        wanted: Chance of showing it.

    Returns:
        The smallest number from 2 on; None where no number up to :data:`MOST_SEEDS` will do: the test images are too
        few, or there is no difference to show.

    Raises:
        DataError: One run.
    """
    if found.num_runs < 2:
        raise DataError("how many runs are needed cannot be told from 1; train another seed")
    difference, images = float(found.value), float(found.images)
    runs = float(found.runs) * found.num_runs
    if difference == 0 or power(difference, runs, images, MOST_SEEDS, alpha) < wanted:
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, runs, images, middle, alpha) >= wanted else (middle, high)
    return high
