"""Scores of driven scenes with intervals over scenes, and the failures by kind. numpy and siblings alone."""

from collections import Counter

import numpy as np

from .driven_scenes import HITS, check_scenes
from .motion_comfort import comfortable_moments
from .plan_replay import PLAN_FIELDS
from .scene_intervals import SceneIntervals

# Bench2Drive's and CARLA's factors (Thinklab-SJTU/Bench2Drive @7ec25d1, statistics_manager.py)
FACTORS = {"pedestrian": 0.5, "vehicle": 0.6, "thing": 0.65, "red light": 0.7}
SUCCESS_PROGRESS = 0.8
CHECKPOINTS = 20
WINDOW_SECONDS = 1.0  # of comfort: 20 moments at 20 Hz
CRAWL = 0.1  # m/s: traffic that is slower stands, and nobody is measured by it
STANDSTILL = 0.5  # metres: an expert that moves less gives no measure of progress
OUTSIDE = 0.05  # metres: less is not an infraction
UNITS = {"driving_score": 100.0, "efficiency": None}  # the highest value; None: open; all others: 1


def compute_metrics(predictions):
    """Scores of one policy's scenes.

    -> {"scenes": count, metric: value, metric + "_ci": [low, high] or None,
        "failures": {kind: scenes}, "events": {kind: count}, "info": {"interval": what the intervals are}}

    Args:
        predictions: list of `DrivenScene`.

    Raises:
        ValueError: no scene, a scene that is duplicated, or a value that makes no sense. The message names the scene.
    """
    check_scenes(predictions)
    result = {"scenes": len(predictions)}
    for name, score in scene_scores(predictions).items():
        result[name], result[f"{name}_ci"] = score.value, interval_of(name, score)
    failures = Counter(failure for scene in predictions if (failure := failure_of(scene)) is not None)
    events = Counter(event.kind for scene in predictions for event in scene.events if event.at_fault)
    events["hits of others"] = sum(not event.at_fault for scene in predictions for event in scene.events)
    intervals = SceneIntervals([scene.scene_token for scene in predictions])
    return {
        **result,
        "failures": dict(failures.most_common()),
        "events": dict(events),
        "info": {"interval": intervals.describe()},
    }


def compare(one, other):
    """Differences of two policies' scores over the same scenes: {metric: {"difference", "ci", "p"}}.

    Raises:
        ValueError: the two have driven other scenes.
    """
    names = [scene.scene_token for scene in one], [scene.scene_token for scene in other]
    if set(names[0]) != set(names[1]):
        raise ValueError(f"policies are compared on the same scenes; {len(set(names[0]) ^ set(names[1]))} differ")
    scores, others = scene_scores(one), scene_scores(other)
    result = {}
    for name in scores.keys() & others.keys():
        difference, highest = scores[name].minus(others[name]), UNITS.get(name, 1.0) or 1.0
        ci, p = difference.interval_of_difference(highest), difference.p_value(highest)
        result[name] = {"difference": difference.value, "ci": ci, "p": p}
    return result


def scene_scores(scenes):
    """{metric: `SceneScore`}: the mean over scenes, or over the replayed plans of all scenes."""
    parts = [score_of_scene(scene) for scene in scenes]
    scores = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        scores |= means({name: values}, [scene.scene_token for scene in scenes])
    plans = [(scene.scene_token, plan) for scene in scenes for plan in scene.plans]
    if plans:
        values = {f"plan_{name}": [plan[name] for _, plan in plans] for name in PLAN_FIELDS}
        scores |= means(values, [token for token, _ in plans])
    return scores


def means(values, scene_tokens):
    """{metric: `SceneScore`} of the means of values, where None does not count."""
    statistics = {}
    for name, column in values.items():
        known = np.array([value is not None for value in column])
        sums = np.array([0.0 if value is None else value for value in column])
        statistics[name] = (np.stack([sums, known], axis=-1), lambda sums: sums[..., 0] / sums[..., 1])
    return SceneIntervals(scene_tokens).score(statistics, np.arange(len(scene_tokens)))


def interval_of(name, score):
    highest = UNITS.get(name, 1.0)
    return score.interval(highest) if highest else score.interval_of_difference(100.0)


def score_of_scene(scene):
    """{metric: value of one scene}, None where it does not count.

    driving_score 0 .. 100; success, completion and factor 0 .. 1; outside: share of the way outside the lane;
    efficiency in percent; smoothness 0 .. 1.
    """
    completion, factor = route_completion(scene), infraction_factor(scene)
    return {
        "driving_score": 100.0 * completion * factor,
        "success": float(is_success(scene)),
        "completion": completion,
        "factor": factor,
        "outside": outside_share(scene),
        "at_fault_hit": float(any(event.at_fault and event.kind in HITS for event in scene.events)),
        "ran_red": float(any(event.kind == "red light" for event in scene.events)),
        "efficiency": efficiency(scene),
        "smoothness": smoothness(scene),
    }


def route_completion(scene):
    """Progress over the expert's in the same time, 0 .. 1."""
    if scene.expert_metres < STANDSTILL:
        return 1.0
    return float(np.clip(scene.metres / scene.expert_metres, 0.0, 1.0))


def outside_share(scene):
    return scene.outside_metres / scene.driven_metres if scene.driven_metres > STANDSTILL else 0.0


def infraction_factor(scene):
    """Product of the factors of what the driver is to blame for, and of the share of the way inside the lane."""
    factor = 1.0 - outside_share(scene)
    for event in scene.events:
        if event.at_fault:
            factor *= FACTORS.get(event.kind, 1.0)
    return factor


def is_success(scene):
    """No infraction, to the end, and at least 0.8 of the expert's way."""
    clean = not any(event.at_fault for event in scene.events) and scene.outside_metres <= OUTSIDE
    return clean and scene.ended == "time" and route_completion(scene) > SUCCESS_PROGRESS


def failure_of(scene):
    """What made the scene fail, the first cause: None for a success."""
    for event in scene.events:
        if event.at_fault:
            return f"{event.kind}: {event.where}" if event.where else event.kind
    if scene.outside_metres > OUTSIDE:
        return "outside the lane"
    return None if is_success(scene) else "too slow"


def efficiency(scene):
    """Mean over the checkpoints of 100 x mean speed of the ego / mean speed of the traffic near it since the last
    checkpoint. A checkpoint comes after each 1/20 of the expert's way; None where no traffic drove near."""
    motion = np.asarray(scene.motion, dtype=float)
    way = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(motion[:, :2], axis=0).T))])
    every = max(scene.expert_metres, STANDSTILL) / CHECKPOINTS
    stretch = np.minimum((way / every).astype(int), CHECKPOINTS - 1)
    traffic = np.array([np.nan if speed is None else speed for speed in scene.traffic_speeds], dtype=float)
    places = np.linspace(0, max(len(traffic) - 1, 0), len(motion)).round().astype(int)
    ratios = []
    for number in np.unique(stretch):
        inside = stretch == number
        around = traffic[np.unique(places[inside])] if len(traffic) else traffic
        around = around[~np.isnan(around)]
        if len(around) and around.mean() > CRAWL:
            ratios.append(100.0 * motion[inside, 3].mean() / around.mean())
    return float(np.mean(ratios)) if ratios else None


def smoothness(scene):
    """Share of the windows of 1 s that keep the six bounds of comfort throughout; None below 1 s of driving."""
    size = round(WINDOW_SECONDS / scene.motion_seconds)
    good = comfortable_moments(scene.motion, scene.motion_seconds)
    windows = good[: len(good) // size * size].reshape(-1, size)
    return float(windows.all(axis=1).mean()) if len(windows) else None
