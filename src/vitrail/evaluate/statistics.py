"""Paired statistics of trained models, over training runs and test images.

Which of two recipes looks better depends on two random factors: the training seed and the test images. Inference about
recipes accounts for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from vitrail.errors import DataError

Floats = npt.NDArray[np.float64]

# Maximum number of runs that a recommendation names.
MAX_SEEDS = 1000
# Relative spread below which values count as equal up to rounding.
_ROUNDING = 1e-12


def mean_interval(
    values: npt.ArrayLike, confidence: float = 0.95, *, least: float = -math.inf, most: float = math.inf
) -> tuple[float, float, float]:
    """Compute the mean of independent runs and its Student interval.

    Args:
        values: Value of each run, shape ``(S,)``.
        confidence: Confidence level.
        least: Smallest possible value; the interval is clipped there, which does not change its coverage.
        most: Largest possible value.

    Returns:
        Mean, low and high. The bounds are NaN for a single run, and for runs without spread (accuracies are counts and
        may agree by coincidence).

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
    """A mean difference and its variance components; fields are arrays for several differences at once.

    The quantile of the sum of two variances with different degrees of freedom is Cochran and Cox's weighted mean of
    Student's quantiles. It is conservative, unlike Satterthwaite's approximation for two or three runs.

    Attributes:
        value: The mean difference.
        runs: Variance component that decreases with the number of runs.
        images: Variance component that decreases with the number of test images only.
        df_runs: Degrees of freedom of ``runs``.
        df_images: Degrees of freedom of ``images``.
        num_runs: Number of pairs of runs.
        what: Population of the inference, for people.
        centre: Centre of the interval, shrunk by pseudo-images (:func:`with_pseudo_images`); by default the value.
        largest: Largest possible absolute difference, at which intervals are clipped; 1 for accuracy.

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
        """Whether there is any spread to infer from."""
        known: npt.NDArray[np.bool_] = self.error > _ROUNDING * np.abs(self.value)
        return known

    def limit(self, alpha: float | Floats = 0.05) -> Floats:
        """Compute the two-sided critical value in standard errors."""
        variance = self.runs + self.images
        share = np.where(variance > 0, self.runs / np.where(variance > 0, variance, 1), 1.0)
        half = np.asarray(alpha) / 2
        # The quantiles of stats.t, whose checks take 40 times as long.
        few, many = (-special.stdtrit(df, half) for df in (self.df_runs, self.df_images))
        mixed: Floats = share * few + (1 - share) * many
        return mixed

    def interval(self, confidence: float = 0.95) -> tuple[Floats, Floats]:
        """Compute the confidence interval; NaN without spread."""
        half = np.where(self._inferable, self.limit(1 - confidence) * self.error, np.nan)
        low = np.maximum(np.minimum(self._middle - half, self.value), -self.largest)
        high = np.minimum(np.maximum(self._middle + half, self.value), self.largest)
        return low, high

    def p_value(self) -> Floats:
        """Compute the two-sided p-value; 1 without spread."""
        return self._level(np.abs(self._middle))

    def equivalence_p(self, margin: float) -> Floats:
        """Compute the p-value of equivalence by two one-sided tests (TOST).

        It is below ``alpha`` where the interval of confidence ``1 - 2 alpha`` lies within the margin.

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
        """Invert :meth:`limit`: the two-sided level of a distance from the centre, by bisection."""
        error = self.error
        t = np.where(self._inferable, distance / np.where(error > 0, error, 1.0), 0.0)
        low, high = np.full(t.shape, -690.0), np.zeros(t.shape)  # logarithms of p
        for _ in range(45):
            middle = (low + high) / 2
            beyond = t > self.limit(np.exp(middle))
            low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
        p: Floats = np.exp(high)
        return p


def with_pseudo_images(scores: npt.ArrayLike, typical: float = 1.0) -> tuple[Floats, Floats]:
    """Compute mean and variance of paired scores with two pseudo-images, one in favour of each model.

    Five images that only one model classifies correctly have a standard error of 0 by coincidence. The pseudo-images
    keep the error above 0, and the test close to McNemar's exact test. Their size is the root mean square of the images
    that differ.

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
    """Determine the largest possible difference; differences that are all -1, 0 or 1 are of counts."""
    if largest is not None:
        return largest
    counts = np.isin(differences, (-1.0, 0.0, 1.0)).all() and bool(differences.any())
    return 1.0 if counts else None


def runs_and_images(differences: npt.ArrayLike, largest: float | None = None) -> PairedDifference:
    """Compute the difference of two recipes from several runs of each on the same test images.

    Runs and images are random effects: inference is about other seeds and other images of the same population. With
    D[s, n] = mu + run[s] + image[n] + rest[s, n], the mean squares MS of the three give the variance of the mean,
    (MS_run + max(MS_image - MS_rest, 0)) / (S N). This is the analysis that radiology uses for several readers and
    cases. For bounded scores it is at least the variance of the image means with two pseudo-images
    (:func:`with_pseudo_images`). With one run of each, inference is about these two models on other images.

    Args:
        differences: Differences of scores by pair of runs and image, shape ``(..., S, N)``. Groups of images are joined
            before (:func:`join_groups`).
        largest: Largest possible absolute difference of the means, 1 for accuracy; None for unbounded scores (log-loss)
            and for counts, which are recognised by their differences -1, 0 and 1.

    Returns:
        The difference, with the leading dimensions.

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

    Training images of folds overlap, so that results vary less than those of independent training sets: the variance is
    corrected by the ratio of test to training images. Folds without spread allow no inference.

    Args:
        differences: Difference of scores of each pair of runs (fold and seed), shape ``(..., J)``.
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
    """Aggregate scores by group, scaled so that their mean equals the mean over images.

    Args:
        scores: Shape ``(..., N)``.
        groups: Group of each image, length N.

    Returns:
        Shape ``(..., G)``.
    """
    x = np.asarray(scores, dtype=np.float64)
    _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    count = int(index.max()) + 1
    joined: Floats = np.zeros((*x.shape[:-1], count))
    np.add.at(joined.reshape(-1, count).T, index, x.reshape(-1, x.shape[-1]).T)
    joined *= count / x.shape[-1]
    return joined


def bootstrap_images(
    differences: npt.ArrayLike, confidence: float = 0.95, repeats: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """Compute the bootstrap percentile interval of the mean difference over test images, with fixed runs.

    Args:
        differences: Shape ``(S, N)``.
        confidence: Confidence level.
        repeats: Number of resamples.
        seed: Seed of the resampling.

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
    """Compute the bootstrap interval of the mean difference over runs and images, both resampled independently.

    Quantiles are widened as Student's for few runs. The interval is conservative if most of the variance is residual.

    Args:
        differences: Shape ``(S, N)``, at least two runs.
        confidence: Confidence level.
        repeats: Number of resamples.
        seed: Seed of the resampling.

    Raises:
        DataError: One run.

    Source: Owen 2007, Ann. Appl. Stat. 1, 386-411 (both factors resampled); Hesterberg 2015, Am. Stat. 69, 371-386
    (expanded percentiles).
    """
    d = np.asarray(differences, dtype=np.float64)
    S, N = d.shape
    if S < 2:
        raise DataError("1 run cannot be resampled; use bootstrap_images")
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
    """Compute the two-sided p-value of the sign-flip permutation test, exact for few differences.

    Over images, inference is about these models; over runs, about these images.

    Args:
        values: Paired differences, shape ``(N,)``.
        repeats: Number of random flips, if there are more possible ones.
        seed: Seed of the flips.

    Returns:
        The p-value; 1 where all differences are 0.

    Source: Fisher 1935, The Design of Experiments, section 21; computed by :func:`scipy.stats.permutation_test`.
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[x != 0]  # sign-symmetric
    if len(x) < 2:
        return 1.0
    found = stats.permutation_test(
        (x,), lambda v, axis: v.sum(axis=axis), permutation_type="samples", vectorized=True, n_resamples=repeats,
        batch=max(1, 4_000_000 // len(x)), rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.pvalue)


@dataclass(frozen=True)
class McNemar:
    """Discordant images of two models.

    Attributes:
        first: Images that only the first model classifies correctly, over all pairs of runs.
        second: Images that only the second model classifies correctly.
        odds_ratio: ``first / second``; NaN where both are 0.
        p: Exact p-value; for several pairs of runs twice their median.
    """

    first: int
    second: int
    odds_ratio: float
    p: float


def mcnemar(first: npt.ArrayLike, second: npt.ArrayLike) -> McNemar:
    """Compute McNemar's exact test of equal accuracy on the same images.

    Inference is about these trained models. Pairs of runs share test images; twice the median of their p-values is
    valid under any dependence.

    Args:
        first: Whether each image is correct, by run, shape ``(S, N)``.
        second: The same for the second model.

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
    """Correct p-values by Holm's method, which controls the family-wise error rate.

    Args:
        p_values: Shape ``(m,)``.

    Returns:
        Corrected p-values in the same order.

    Source: Holm 1979, Scand. J. Stat. 6, 65-70.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    result = np.empty_like(p)
    result[order] = np.minimum(raised, 1.0)
    return result


def cohens_dz(differences: npt.ArrayLike) -> float:
    """Compute Cohen's d_z, mean over standard deviation of paired differences; NaN for one value or without spread.

    Source: Cohen 1988, Statistical Power Analysis, section 2.3.5.
    """
    d = np.asarray(differences, dtype=np.float64)
    spread = float(d.std(ddof=1)) if len(d) > 1 else 0.0
    return float(d.mean()) / spread if spread > 0 else math.nan


def power(difference: float, runs: float, images: float, num_runs: int, alpha: float = 0.05) -> float:
    """Compute the power of the two-sided test for a true difference.

    Args:
        difference: True difference.
        runs: Variance of the difference between pairs of runs.
        images: Variance component of the test images, independent of the number of runs.
        num_runs: Number of pairs of runs, at least 2.
        alpha: Significance level.

    Source: Cohen 1988, chapter 2, by the noncentral t distribution (:data:`scipy.stats.nct`).
    """
    value, own = np.asarray(difference), np.asarray(runs / num_runs)
    found = PairedDifference(value, own, np.asarray(images), num_runs - 1, math.inf, num_runs, "")
    error = float(found.error)
    if error == 0:
        return 1.0 if difference else alpha
    # Satterthwaite's degrees of freedom for the distribution of t; the critical value is the test's.
    df = 1e6 if runs == 0 else min(1e6, (error**2 / float(own)) ** 2 * (num_runs - 1))
    shift, limit = abs(difference) / error, float(found.limit(alpha))
    if shift > 37:
        return 1.0  # scipy.stats.nct fails beyond; the power is 1 to machine precision
    # scipy.stats.nct fails in the far tail, which is negligible.
    wrong_side = float(stats.nct.cdf(-limit, df, shift)) if shift < 5 else 0.0
    return float(stats.nct.sf(limit, df, shift)) + wrong_side


def runs_needed(found: PairedDifference, alpha: float = 0.05, wanted: float = 0.8) -> int | None:
    """Compute the number of pairs of runs for a given power at the estimated difference and variances.

    Estimates from few runs are imprecise: the number is a guide.

    Args:
        found: A single difference from at least two pairs of runs.
        alpha: Significance level, corrected for multiple comparisons.
        wanted: Power.

    Returns:
        The smallest number from 2 on; None where :data:`MAX_SEEDS` are not enough: there are too few test images, or
        the difference is 0.

    Raises:
        DataError: One run.
    """
    if found.num_runs < 2:
        raise DataError("the number of runs needed cannot be estimated from 1 run; train another seed")
    difference, images = float(found.value), float(found.images)
    runs = float(found.runs) * found.num_runs
    if difference == 0 or power(difference, runs, images, MAX_SEEDS, alpha) < wanted:
        return None
    low, high = 1, MAX_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, runs, images, middle, alpha) >= wanted else (middle, high)
    return high
