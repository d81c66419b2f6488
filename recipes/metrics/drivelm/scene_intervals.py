"""Intervals and p-values over scenes: the questions of one scene are not independent, so scenes are counted.

Each scene is left out in turn (jackknife). How far the score moves is that scene's contribution; this works for a
ratio such as accuracy over all questions and for corpus BLEU. The contributions give a standard error. Student's t
turns it into an interval and a p-value. Both need at least 3 scenes. n scenes with equally many questions leave n - 1
degrees of freedom, and fewer where scenes are unequal, since the largest decide (Bell & McCaffrey, 2002,
"Bias reduction in standard errors for linear regression with multi-stage samples").
The interval of a score is made on the scale of log-odds. It stays inside the score's range, and near 0 or 1 it reaches
further towards the middle, as a small sample needs. `python recipes/metrics/check_intervals.py` measures both.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

MIN_SCENES = 3
ALIKE = 1e-6  # scenes whose contributions differ by less than this part of the range count as equal


@dataclass
class SceneScore:
    """A score of a set of questions, or the difference of two such scores.

    Example, 21 questions of 4 scenes, none of them in the third:
        SceneScore(value=0.6, questions=21, weights=[9, 8, 0, 4], contributions=[0.1, -0.3, 0.0, 0.2])

    Fields:
        value: the score.
        questions: the number of questions that count for it.
        weights: (scenes,): the number of such questions of each scene; None where scenes are unknown.
        contributions: (scenes,): (n - 1) times what the score loses when the scene is left out, n scenes count;
            0 for a scene without such a question, NaN where the score without the scene does not exist; or None.
    """

    value: float
    questions: int
    weights: np.ndarray | None
    contributions: np.ndarray | None

    @property
    def counts(self):
        """(scenes,) bool: the scenes that have such a question."""
        return self.weights > 0

    @property
    def scenes(self):
        """How many scenes count, None where scenes are unknown."""
        return None if self.weights is None else int(self.counts.sum())

    @property
    def freedom(self):
        """Degrees of freedom of `standard_error`, from 1 to scenes - 1: those of a weighted mean of one value per
        scene, with values of equal variance (Satterthwaite)."""
        weights = self.weights[self.counts]
        contributions_of_values = np.diag(weights) - np.outer(weights, weights) / weights.sum()
        moments = contributions_of_values @ contributions_of_values
        return float(np.trace(moments) ** 2 / (moments**2).sum())

    def minus(self, other):
        """This score less another one of the same scenes; the two may count other questions."""
        if self.weights is None:
            return SceneScore(self.value - other.value, self.questions, None, None)
        moves = self.contributions - other.contributions
        return SceneScore(self.value - other.value, self.questions, (self.weights + other.weights) / 2, moves)

    def standard_error(self):
        """-> float; None below 3 scenes or where the score, or the score without one of the scenes, does not exist."""
        if self.weights is None or self.scenes < MIN_SCENES:
            return None
        with np.errstate(invalid="ignore"):
            error = self.contributions[self.counts].std(ddof=1) / math.sqrt(self.scenes)
        return None if np.isnan(error) or np.isnan(self.value) else float(error)

    def interval(self, highest=1.0):
        """95% interval [low, high] of a score between 0 and `highest`; None where `standard_error` is None."""
        error = self.standard_error()
        if error is None:
            return None
        if error <= ALIKE * highest:
            return self._interval_of_equal_scenes(0.0, highest)
        reach = t_quantile(self.freedom) * error
        if not 0 < self.value < highest:  # BERTScore may be negative
            return [self.value - reach, self.value + reach]
        odds = self.value / (highest - self.value)
        factor = math.exp(min(reach * highest / (self.value * (highest - self.value)), 500.0))
        return [highest / (1 + factor / odds), highest / (1 + 1 / (factor * odds))]

    def interval_of_difference(self, highest=1.0):
        """95% interval [low, high] of a difference of scores between 0 and `highest`, or None as above."""
        error = self.standard_error()
        if error is None:
            return None
        if error <= ALIKE * highest:
            same = abs(self.value) <= ALIKE * highest
            return [self.value, self.value] if same else self._interval_of_equal_scenes(-highest, highest)
        return self.interval_without_ends()

    def interval_without_ends(self):
        """95% interval [low, high] of a score or difference on a scale without ends, such as metres; None where
        `standard_error` is None."""
        error = self.standard_error()
        if error is None:
            return None
        reach = t_quantile(self.freedom) * error
        return [self.value - reach, self.value + reach]

    def p_value(self, highest=1.0):
        """Two-sided p of a difference being 0, or None as above. Scenes that all differ by the same amount leave t
        nothing to estimate: p is then that of all their signs being equal by chance."""
        error = self.standard_error()
        if error is None:
            return None
        if error <= ALIKE * highest:
            return 1.0 if abs(self.value) <= ALIKE * highest else 2.0 ** (1 - self.scenes)
        return t_p_value(self.value / error, self.freedom)

    def _interval_of_equal_scenes(self, lowest, highest):
        """All n scenes agree. Of all scenes a share of up to 1 - 0.025 ** (1 / n) may still differ, at worst by being
        at an end of the range."""
        share = 1 - 0.025 ** (1 / self.scenes)
        return [self.value - share * (self.value - lowest), self.value + share * (highest - self.value)]


class SceneIntervals:
    """Scores sets of questions, on all of a set's scenes and with each scene left out.

    Args:
        scene_tokens: list of str, one per question, or None: then scores have no interval.
    """

    def __init__(self, scene_tokens):
        self.scenes, self.count = None, None
        if scene_tokens is not None:
            names, self.scenes = np.unique(scene_tokens, return_inverse=True)
            self.count = len(names)

    def describe(self):
        """What the intervals are, or why there are none: a line to print beside them."""
        if self.scenes is None:
            return "none: needs scene_tokens"
        if self.count < MIN_SCENES:
            scenes = "1 scene" if self.count == 1 else f"{self.count} scenes"
            return f"none: {scenes}, at least {MIN_SCENES} are needed"
        text = "95% t interval over scenes (jackknife), p-values by the same t"
        return f"{text}; null where fewer than {MIN_SCENES} scenes count"

    def count_scenes(self, rows):
        """-> {"scenes": how many the questions of these row indices come from}, empty where scenes are unknown."""
        return {} if self.scenes is None else {"scenes": len(np.unique(self.scenes[rows]))}

    def score(self, statistics, rows):
        """Scores of the questions of these row indices.

        statistics: {metric: (array (questions, k), score function of its sums)}.
        -> {metric: SceneScore}; a metric is left out if no question counts for it (all its statistics are 0).
        """
        scored = {}
        for name, (columns, score) in statistics.items():
            columns = columns[rows]
            chosen = (columns != 0).any(axis=1)
            if not chosen.any():
                continue
            total = columns.sum(axis=0)
            value, weights, contributions = float(score(total)), None, None
            if self.scenes is not None:
                scenes = self.scenes[rows]
                sums = np.zeros((self.count, columns.shape[1]))
                np.add.at(sums, scenes, columns)
                weights = np.bincount(scenes[chosen], minlength=self.count).astype(float)
                counts = weights > 0
                contributions = np.zeros(self.count)
                with np.errstate(divide="ignore", invalid="ignore"):
                    contributions[counts] = (counts.sum() - 1) * (value - score(total - sums[counts]))
            scored[name] = SceneScore(value, int(chosen.sum()), weights, contributions)
        return scored


# Nodes and weights of an integral over [-1, 1].
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)


def t_p_value(t, freedom):
    """Two-sided p-value of Student's t with `freedom` degrees of freedom (>= 1, whole or not)."""
    # With t = sqrt(freedom) * tan(angle) the density is cos(angle) ** (freedom - 1), up to its integral.
    angle = math.atan(abs(t) / math.sqrt(freedom))
    half = (math.pi / 2 - angle) / 2
    tail = half * (WEIGHTS * np.cos(angle + half * (NODES + 1)) ** (freedom - 1)).sum()
    whole = math.sqrt(math.pi) * math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2)) / 2
    return min(1.0, float(tail / whole))


@cache
def t_quantile(freedom):
    """The t that a two-sided test exceeds with probability 0.05."""
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_p_value(middle, freedom) > 0.05 else (low, middle)
    return high
