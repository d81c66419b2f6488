"""Planners that differ in one thing, several seeds of each, compared by scene on the same frames, pairs or drives."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from recipes.evaluation.tables import aligned
from recipes.metrics.counterfactual.pair_scores import CounterfactualPair, lengths, responses
from recipes.metrics.planning.plan_scores import SPEED_CHANGE, subsets
from recipes.metrics.planning.planning_frames import SECONDS_PER_STEP, PlanningFrame, checked_plans
from recipes.metrics.planning.protocols import frame_statistics_of_many, mean_of_ratios
from recipes.metrics.planning.scene_intervals import SceneIntervals, SceneScore


@dataclass(frozen=True)
class Measure:
    """What is compared.

    Fields:
        name: with its unit.
        digits: behind the point, in tables.
        highest: of a score between 0 and this; None: a scale without ends.
    """

    name: str
    digits: int = 2
    highest: float | None = None


L2 = Measure("L2 (m)")
L2_UNIAD = Measure("L2 (m), UniAD's")
RESPONSE = Measure("response")
BRAKES = Measure("brakes as the expert (%)", digits=0, highest=100.0)
BRAKES_ALONE = Measure("brakes, expert does not (%)", digits=0, highest=100.0)
PROTOCOLS = {"ours": L2, "uniad": L2_UNIAD}


@dataclass
class Comparison:
    """One kind of planner against the reference, by one measure on one subset of the frames, pairs or drives.

    Example: Comparison(L2_UNIAD, "all", "questions", [1.29, 1.31, 1.27], 1.29, -0.21, [-0.29, -0.13], 0.0001)
    """

    measure: Measure
    subset: str
    name: str
    seeds: list[float]
    value: float
    difference: float | None = None  # this less the reference's
    interval: list[float] | None = None
    p_value: float | None = None


def compare_planners(
    plans: dict[str, list[np.ndarray]], frames: list[PlanningFrame], reference: str
) -> list[Comparison]:
    """The distance to the expert of every kind of planner, on every subset of the frames.

    Args:
        plans: {name: plans `(frames, 6, 2)` in metres, one per seed}.
        reference: the name that the others are compared with.

    Raises:
        ValueError: see `checked_plans`.
    """
    return compare_l2(plans, frames, reference, subsets(frames))


def compare_l2(
    plans: dict[str, list[np.ndarray]], frames: list[PlanningFrame], reference: str, of: dict[str, np.ndarray]
) -> list[Comparison]:
    """As [`compare_planners`]; `of`: {subset, as the tables call it: indices of its frames}."""
    alone = [replace(frame, agents=[]) for frame in frames]  # hits are not compared, and take most of the time
    statistics = {
        name: frame_statistics_of_many([checked_plans(made, alone) for made in of_seeds], alone)
        for name, of_seeds in plans.items()
    }
    intervals, results = SceneIntervals([frame.scene_token for frame in frames]), []
    for subset, rows in of.items():
        for protocol, measure in PROTOCOLS.items():
            columns = {name: [one[protocol]["l2_avg"] for one in of_seeds] for name, of_seeds in statistics.items()}
            results += _compared(measure, subset, columns, mean_of_ratios, intervals, rows, reference)
    return results


def compare_responses(
    plans: dict[str, list[np.ndarray]], pairs: list[CounterfactualPair], reference: str
) -> list[Comparison]:
    """How much of the wanted change plans show, over all pairs and by kind; 1: as the expert, 0: none.

    Args:
        plans: {name: plans `(pairs, 2, 6, 2)`, one per seed}.
    """
    wanted = np.array([np.diff(lengths(np.asarray(pair.expert)))[0] for pair in pairs])
    values = {
        name: np.array([responses(np.diff(lengths(made), axis=1)[:, 0], wanted) for made in of_seeds])
        for name, of_seeds in plans.items()
    }
    results = []
    for kind in ("all", *sorted({pair.kind for pair in pairs})):
        of_kind = np.array([kind in ("all", pair.kind) for pair in pairs])
        tokens = [pair.scene_token for pair, inside in zip(pairs, of_kind, strict=True) if inside]
        of_names = {name: made[:, of_kind] for name, made in values.items()}
        results += compare_means(RESPONSE, of_names, tokens, reference, kind)
    return results


def compare_braking(
    plans: dict[str, list[np.ndarray]], frames: list[PlanningFrame], reference: str, subset: str, rows: np.ndarray
) -> list[Comparison]:
    """The share of the frames where the expert brakes in which the plan does too, and the share of the others in which
    the plan brakes alone. Of the frames with these indices those count whose whole future is known.

    Args:
        plans, reference: as of [`compare_planners`].
    """
    rows = np.array([row for row in rows if all(frames[row].mask)], dtype=int)
    speeds = np.array([frames[row].speed for row in rows])
    expert = brakes(np.array([np.asarray(frames[row].future)[:, :2] for row in rows]).reshape(-1, 6, 2), speeds)
    found = {name: [100.0 * brakes(made[rows], speeds) for made in of_seeds] for name, of_seeds in plans.items()}
    results = []
    for measure, chosen in ((BRAKES, expert), (BRAKES_ALONE, ~expert)):
        tokens = [frames[row].scene_token for row in rows[chosen]]
        values = {name: [one[chosen] for one in of_seeds] for name, of_seeds in found.items()}
        results += compare_means(measure, values, tokens, reference, subset)
    return results


def brakes(ways: np.ndarray, speeds: np.ndarray) -> np.ndarray:
    """`(n, 6, 2)` metres, `(n,)` m/s now -> `(n,)` bool: in one of the steps more than 2 m/s slower than now."""
    steps = np.linalg.norm(np.diff(ways, axis=1, prepend=0.0), axis=-1) / SECONDS_PER_STEP
    return steps.min(axis=1) < speeds - SPEED_CHANGE


def compare_means(
    measure: Measure,
    values: dict[str, Sequence[Sequence[float]]],
    scene_tokens: list[str],
    reference: str,
    subset: str = "all",
) -> list[Comparison]:
    """A measure that is a mean of values, one per planner, seed and frame, pair or drive. No values: no comparison.

    Args:
        values: {name: `(seeds, n)`}.
        scene_tokens: n, of the values.
    """
    if not scene_tokens:
        return []
    columns = {}
    for name, of_seeds in values.items():
        of_seeds = np.asarray(of_seeds, dtype=np.float64)
        columns[name] = list(np.stack([of_seeds, np.ones_like(of_seeds)], axis=-1))
    intervals, rows = SceneIntervals(scene_tokens), np.arange(len(scene_tokens))
    return _compared(measure, subset, columns, _mean, intervals, rows, reference)


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def _compared(measure, subset, columns, score, intervals: SceneIntervals, rows, reference: str) -> list[Comparison]:
    """Scores of sums over `rows`; columns: {name: statistics (n, k), one per seed}."""
    # The seeds share their denominators, so the mean of their numerators gives their mean score.
    means = {name: (np.mean(of_seeds, axis=0), score) for name, of_seeds in columns.items()}
    scores, results = intervals.score(means, rows), []
    for name, found in scores.items():
        seeds = [float(score(one[rows].sum(axis=0))) for one in columns[name]]
        result = Comparison(measure, subset, name, seeds, found.value)
        results.append(_with_difference(result, found, scores[reference]))
    return results


def _with_difference(result: Comparison, score: SceneScore, reference: SceneScore) -> Comparison:
    difference, highest = score.minus(reference), result.measure.highest
    interval = difference.interval_of_difference(highest) if highest else difference.interval_without_ends()
    if score is not reference and interval is not None:
        result.difference, result.interval = difference.value, interval
        result.p_value = difference.p_value(highest or 1.0)
    return result


def comparison_table(results: list[Comparison], reference: str) -> str:
    lines = [["measure", "of", "planner", "value", "seeds", f"minus {reference}", "p"]]
    for one in results:
        digits = one.measure.digits
        seeds = " ".join(f"{value:.{digits}f}" for value in one.seeds)
        difference, p_value = "", "" if one.p_value is None else f"{one.p_value:.4f}"
        if one.interval is not None:
            low, high = one.interval
            difference = f"{one.difference:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
        value = f"{one.value:.{digits}f}"
        lines.append([one.measure.name, one.subset, one.name, value, seeds, difference, p_value])
    return aligned(lines)
