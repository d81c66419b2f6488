"""Scores of plans by subset and protocol, with intervals over scenes. numpy and siblings alone."""

import numpy as np

from .planning_frames import SECONDS_PER_STEP, checked_plans
from .protocols import ZOE, frame_statistics, mean_of_ratios
from .scene_intervals import SceneIntervals

TURN_OFFSET = 2.0  # metres to the side: from here on UniAD and VAD call a future a turn
SPEED_CHANGE = 2.0  # m/s
STANDING_SPEED = 0.5  # m/s
DEPARTURE = 2.0  # metres


def compute_metrics(predictions, references, *, ego=ZOE):
    """Scores of plans, by subset and protocol.

    -> {subset: {"count": frames, "scenes": scenes,
                 protocol: {metric: value, metric + "_ci": [low, high] or None, metric + "_count": frames that count}},
        "info": {"interval": what the intervals are}}

    Args:
        predictions: list of plans (6, 2): where the rear axle is to be after 0.5, ..., 3 s. Metres in the ego frame, x
            forward, y left.
        references: list of `PlanningFrame`, one per plan.
        ego: `EgoBox` of the car for the protocol `ours`.

    Raises:
        ValueError: lists of unequal length or none at all, a plan that is not finite or of another shape, a duplicated
            frame, or a frame with a bad speed, mask, future or agent. The message names the frame.
    """
    plans = checked_plans(predictions, references)
    return scores_of_statistics(frame_statistics(plans, references, ego), references)


def scores_of_statistics(statistics, references):
    """The result of `compute_metrics` from the `frame_statistics` of its plans."""
    intervals = SceneIntervals([frame.scene_token for frame in references])
    result = {}
    for subset, rows in subsets(references).items():
        result[subset] = {"count": len(rows), **intervals.count_scenes(rows)}
        for protocol, metrics in statistics.items():
            metrics = {name: (columns, mean_of_ratios) for name, columns in metrics.items()}
            result[subset][protocol] = _protocol_scores(intervals.score(metrics, rows), len(rows))
    return {**result, "info": {"interval": intervals.describe()}}


def paired_differences(statistics, others, references):
    """How much higher the first plans score than other plans of the same frames: below 0, the first are better.

    Args:
        statistics, others: the `frame_statistics` of either.
        references: list of `PlanningFrame`.
    -> {subset: {protocol: {metric: {"difference": value, "ci": [low, high] or None, "p_value": p or None}}}}
    """
    intervals = SceneIntervals([frame.scene_token for frame in references])
    result = {}
    for subset, rows in subsets(references).items():
        result[subset] = {}
        for protocol, metrics in statistics.items():
            metrics = {name: columns for name, columns in metrics.items() if not name.startswith("expert")}
            first = intervals.score({name: (columns, mean_of_ratios) for name, columns in metrics.items()}, rows)
            columns = {name: (others[protocol][name], mean_of_ratios) for name in metrics}
            other = intervals.score(columns, rows)
            result[subset][protocol] = {
                name: _difference(name, first[name].minus(other[name])) for name in first if name in other
            }
    return result


def _difference(name, score):
    if np.isnan(score.value):
        return {"difference": None, "ci": None, "p_value": None}
    in_metres = name.startswith("l2") and score.standard_error()
    interval = score.interval_without_ends() if in_metres else score.interval_of_difference()
    return {"difference": score.value, "ci": interval, "p_value": score.p_value()}


def _protocol_scores(scores, count):
    result = {}
    for name, score in scores.items():
        result[name] = None if np.isnan(score.value) else score.value
        result[f"{name}_ci"] = _metres_interval(score) if name.startswith("l2") else score.interval()
        if score.questions != count:
            result[f"{name}_count"] = score.questions
    return result


def _metres_interval(score):
    """95% t interval of a score in metres, which unlike a rate has no upper end. None where there is no interval."""
    interval = score.interval_without_ends()
    return None if interval is None else [max(0.0, interval[0]), interval[1]]


def subsets(frames):
    """-> {subset: row indices}. Which frames, by the expert's future where it is ground truth:

    - all: every frame.
    - not_straight: the last known waypoint is at least 2 m to the side (the command of UniAD and VAD is not straight).
    - speed_changes: over one of the steps the expert is more than 2 m/s faster or slower than `speed`.
    - stands_and_goes: `speed` is below 0.5 m/s and the last known waypoint more than 2 m away.
    """
    chosen = {"all": [], "not_straight": [], "speed_changes": [], "stands_and_goes": []}
    for row, frame in enumerate(frames):
        mask = np.asarray(frame.mask, dtype=bool)
        path = np.asarray(frame.future, dtype=np.float64)[:, :2]
        known = np.flatnonzero(mask)
        chosen["all"].append(row)
        if not len(known):
            continue
        last = path[known[-1]]
        if abs(last[1]) >= TURN_OFFSET:
            chosen["not_straight"].append(row)
        if frame.speed is None:
            continue
        steps = np.diff(path, axis=0, prepend=0.0)[mask & np.concatenate([[True], mask[:-1]])]
        speeds = np.linalg.norm(steps, axis=-1) / SECONDS_PER_STEP
        if (np.abs(speeds - frame.speed) > SPEED_CHANGE).any():
            chosen["speed_changes"].append(row)
        if frame.speed < STANDING_SPEED and np.linalg.norm(last) > DEPARTURE:
            chosen["stands_and_goes"].append(row)
    return {name: np.array(rows, dtype=int) for name, rows in chosen.items()}
