"""How plans respond to counterfactual pairs, with intervals over scenes. numpy and siblings alone."""

from dataclasses import dataclass

import numpy as np

from .scene_intervals import SceneIntervals

WAYPOINTS = 6
MOVED = 0.1  # metres: a plan whose length changes by less has not responded


@dataclass(frozen=True)
class CounterfactualPair:
    """The expert's way in both versions of a moment, as it was first and changed second.

    Example: the expert drives on at 5 m/s, and stops after 1 s for the car that was put:
        as_it_was = [[2.5, 0.0], [5.0, 0.0], [7.5, 0.0], [10.0, 0.0], [12.5, 0.0], [15.0, 0.0]]
        changed = [[2.0, 0.0], [3.0, 0.0]] + [[3.0, 0.0]] * 4
        CounterfactualPair("a3f1", "scene-0103", "stopped car put", [as_it_was, changed])

    Fields:
        token: the pair's name, in every error message.
        scene_token: its scene's name; intervals are over scenes.
        kind: what was changed; each kind also has scores of its own.
        expert: (2, 6, 2): the expert's rear axle after 0.5 .. 3 s, metres in the ego frame (x forward, y left).
    """

    token: str
    scene_token: str
    kind: str
    expert: np.ndarray


def compute_metrics(predictions, references):
    """How much of the wanted change plans show.

    -> {"all" or a kind: {"response", "right_direction": value, each also + "_ci": [low, high] or None,
                          "count": pairs, "scenes": scenes},
        "info": {"interval": what the intervals are}}

    Args:
        predictions: list of (2, 6, 2): the plan for the moment as it was and the plan for the changed one. Metres in
            the ego frame.
        references: list of `CounterfactualPair`, one per pair of plans.

    Raises:
        ValueError: lists of unequal length or none at all, a plan or an expert's way that is not finite or of another
            shape, a duplicated pair, or a pair whose two ways have the same length. The message names the pair.
    """
    plans, experts = checked_pairs(predictions, references)
    change, wanted = (np.diff(lengths(ways), axis=1)[:, 0] for ways in (plans, experts))
    counted = np.ones(len(change))
    statistics = {
        "response": np.stack([responses(change, wanted), counted], axis=1),
        "right_direction": np.stack([np.sign(wanted) * change >= MOVED, counted], axis=1).astype(np.float64),
    }
    intervals = SceneIntervals([pair.scene_token for pair in references])
    kinds = np.array([pair.kind for pair in references])
    result = {"all": _scores(intervals, statistics, np.arange(len(kinds)))}
    for kind in sorted(set(kinds.tolist())):
        result[kind] = _scores(intervals, statistics, np.flatnonzero(kinds == kind))
    return {**result, "info": {"interval": intervals.describe()}}


def lengths(ways):
    """(..., 6, 2) -> (...): metres from the origin through all waypoints."""
    steps = np.diff(ways, axis=-2, prepend=np.zeros_like(ways[..., :1, :]))
    return np.hypot(steps[..., 0], steps[..., 1]).sum(axis=-1)


def responses(change, wanted):
    """Of each pair the change of the plan's length over the wanted one, from -1 to 1.

    Cut at both ends alike: a plan that changes at random then has a mean of 0, and a change that is too large does
    not make up for another that is missing.
    """
    return np.clip(change / wanted, -1.0, 1.0)


def checked_pairs(predictions, references):
    """-> plans and experts, both (pairs, 2, 6, 2) float64. Raises ValueError, naming the pair and the bad value."""
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} pairs of plans for {len(references)} pairs: one per pair is needed")
    if not len(references):
        raise ValueError("no pairs: there is nothing to score")
    seen = set()
    for pair, plans in zip(references, predictions, strict=True):
        if pair.token in seen:
            raise ValueError(f"pair {pair.token} is duplicated: score each pair once")
        seen.add(pair.token)
        for what, ways in (("plans", plans), ("expert", pair.expert)):
            ways = np.asarray(ways, dtype=np.float64)
            if ways.shape != (2, WAYPOINTS, 2):
                raise ValueError(f"pair {pair.token}: {what} has shape {ways.shape}, (2, 6, 2) was expected")
            if not np.isfinite(ways).all():
                raise ValueError(f"pair {pair.token}: {what} is not finite: {ways.tolist()}")
        first, second = lengths(np.asarray(pair.expert, dtype=np.float64))
        if first == second:
            raise ValueError(f"pair {pair.token}: the expert drives {first} m in both versions: nothing is wanted")
    expert = [np.asarray(pair.expert, dtype=np.float64) for pair in references]
    return np.asarray(predictions, dtype=np.float64), np.array(expert)


def _scores(intervals, statistics, rows):
    scores = intervals.score({name: (columns, _mean) for name, columns in statistics.items()}, rows)
    result = {}
    for name, score in scores.items():
        result[name] = score.value
        result[f"{name}_ci"] = score.interval() if name == "right_direction" else _response_interval(score)
    return {**result, "count": len(rows), **intervals.count_scenes(rows)}


def _mean(sums):
    return sums[..., 0] / sums[..., 1]


def _response_interval(score):
    """95% t interval of a score between -1 and 1; None below three scenes."""
    interval = score.interval_without_ends()
    return None if interval is None else [max(-1.0, interval[0]), min(1.0, interval[1])]
