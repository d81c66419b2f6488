"""The closed-loop metrics: scores by hand, rules against implementations written out here, bad input.

`written_out_*` share no code with the module: polygons are clipped against each other instead of tested on axes.
"""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import HIDE_PROJECT

from recipes.metrics.driving.drive_scores import (
    compare,
    compute_metrics,
    efficiency,
    failure_of,
    infraction_factor,
    score_of_scene,
)
from recipes.metrics.driving.driven_scenes import DrivenEvent, DrivenScene
from recipes.metrics.driving.hits import hit_kinds, is_at_fault
from recipes.metrics.driving.motion_comfort import comfortable_moments, derivative
from recipes.metrics.driving.plan_replay import PLAN_FIELDS, ReplayedPlan, plan_scores

ROOT = Path(__file__).resolve().parents[1]
METRICS = ROOT / "recipes" / "metrics"
STEP = 0.05


def motion_of(seconds: float = 4.0, speed: float = 5.0, step: float = STEP) -> list:
    """Straight on at one speed."""
    return [[speed * step * k, 0.0, 0.0, speed] for k in range(1, round(seconds / step) + 1)]


def scene_of(token: str = "a", **changes) -> DrivenScene:
    values = {
        "scene_token": token,
        "metres": 20.0,
        "expert_metres": 25.0,
        "driven_metres": 20.0,
        "outside_metres": 0.0,
        "events": [],
        "ended": "time",
        "motion_seconds": STEP,
        "motion": motion_of(),
        "traffic_speeds": [4.0, None, 5.0, 6.0],
    }
    return DrivenScene(**{**values, **changes})


def event(kind: str, at_fault: bool = True, where: str = "") -> DrivenEvent:
    return DrivenEvent(kind, at_fault, 3.0, 0.0, 0.0, where)


# ---------------------------------------------------------------- driving score


def test_driving_score_by_hand():
    events = [event("red light"), event("vehicle", at_fault=False), event("pedestrian")]
    scene = scene_of(metres=15.0, outside_metres=2.0, events=events, ended="hit")
    found = score_of_scene(scene)
    # 15 of 25 m, a red light, a pedestrian, a tenth of the way outside the lane
    assert found["driving_score"] == pytest.approx(100 * 0.6 * 0.7 * 0.5 * 0.9)
    assert (found["success"], found["ran_red"], found["at_fault_hit"]) == (0.0, 1.0, 1.0)
    assert found["completion"] == 0.6 and found["outside"] == pytest.approx(0.1)
    clean = scene_of(metres=26.0)
    assert score_of_scene(clean)["driving_score"] == 100.0 and score_of_scene(clean)["success"] == 1.0
    assert score_of_scene(scene_of(expert_metres=0.2, metres=0.0, driven_metres=0.0))["driving_score"] == 100.0


@pytest.mark.parametrize(
    "kind, factor",
    [("pedestrian", 0.5), ("vehicle", 0.6), ("thing", 0.65), ("red light", 0.7), ("left the route", 1.0)],
)
def test_each_infraction_has_its_factor(kind, factor):
    assert infraction_factor(scene_of(events=[event(kind)])) == pytest.approx(factor)
    assert infraction_factor(scene_of(events=[event(kind), event("red light")])) == pytest.approx(factor * 0.7)
    assert infraction_factor(scene_of(events=[event(kind, at_fault=False)])) == 1.0


def test_failures_are_counted_by_first_cause():
    scenes = [
        scene_of("a", metres=24.0),
        scene_of(
            "b", events=[event("vehicle", at_fault=False), event("vehicle", where="oncoming"), event("red light")]
        ),
        scene_of("c", outside_metres=0.5, metres=24.0),
        scene_of("d", metres=10.0),
        scene_of("e", events=[event("left the route")], ended="left the route"),
    ]
    causes = [None, "vehicle: oncoming", "outside the lane", "too slow", "left the route"]
    assert [failure_of(scene) for scene in scenes] == causes
    found = compute_metrics(scenes)
    assert found["failures"] == dict.fromkeys(causes[1:], 1)
    assert found["events"] == {"vehicle": 1, "red light": 1, "left the route": 1, "hits of others": 1}
    assert found["success"] == pytest.approx(0.2) and found["scenes"] == 5


def test_efficiency_is_the_share_of_the_traffics_speed():
    # 20 m of 25 m in 4 s at 5 m/s: each moment of the traffic stands for a quarter of the way
    ratios = []
    for number in range(16):  # of 20 checkpoints of 1.25 m
        inside = [k for k in range(80) if min(int(0.25 * k / 1.25), 19) == number]
        near = {round(k * 3 / 79) for k in inside}
        speeds = [v for v in ([4.0, None, 5.0, 6.0][place] for place in near) if v is not None]
        if speeds:
            ratios.append(500.0 / (sum(speeds) / len(speeds)))
    assert efficiency(scene_of()) == pytest.approx(sum(ratios) / len(ratios))
    assert efficiency(scene_of(traffic_speeds=[None, None])) is None
    assert efficiency(scene_of(traffic_speeds=[0.0, 1e-12])) is None  # it waits at a light


def test_intervals_and_paired_differences_are_over_scenes():
    rng = np.random.default_rng(0)
    metres = rng.uniform(5, 25, 12)
    scenes = [scene_of(f"s{k}", metres=float(m)) for k, m in enumerate(metres)]
    found = compute_metrics(scenes)
    scores = 100 * metres / 25
    low, high = found["driving_score_ci"]
    assert found["driving_score"] == pytest.approx(scores.mean()) and low < scores.mean() < high
    better = [dataclasses.replace(scene, metres=scene.metres * 1.2) for scene in scenes]
    gains = 100 * np.minimum(metres * 1.2, 25) / 25 - scores
    paired = compare(better[::-1], scenes)["driving_score"]  # the order of the scenes does not matter
    assert paired["difference"] == pytest.approx(gains.mean())
    reach = 2.200985 * gains.std(ddof=1) / math.sqrt(12)  # Student's t with 11 degrees of freedom
    assert paired["ci"] == pytest.approx([gains.mean() - reach, gains.mean() + reach], abs=1e-4)
    with pytest.raises(ValueError, match="the same scenes; 1 differ"):
        compare(better[1:], scenes)
    assert compute_metrics(scenes[:2])["driving_score_ci"] is None


# ---------------------------------------------------------------- hits and their fault


def written_out_corners(box) -> list:
    x, y, yaw, length, width = box
    signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    return [
        (
            x + a * length / 2 * math.cos(yaw) - b * width / 2 * math.sin(yaw),
            y + a * length / 2 * math.sin(yaw) + b * width / 2 * math.cos(yaw),
        )
        for a, b in signs
    ]


def written_out_overlap(one, other) -> bool:
    """What is left of one polygon after it is cut by every edge of the other (Sutherland and Hodgman)."""
    polygon, knife = written_out_corners(one), written_out_corners(other)
    for (ax, ay), (bx, by) in zip(knife, knife[1:] + knife[:1], strict=True):
        kept = []
        sides = [(bx - ax) * (y - ay) - (by - ay) * (x - ax) for x, y in polygon]
        for k, (point, side) in enumerate(zip(polygon, sides, strict=True)):
            before, last = polygon[k - 1], sides[k - 1]
            if (side >= 0) != (last >= 0):
                part = last / (last - side)
                kept.append((before[0] + part * (point[0] - before[0]), before[1] + part * (point[1] - before[1])))
            if side >= 0:
                kept.append(point)
        polygon = kept
    return bool(polygon)


def written_out_kind(ego, axle, speed, box, other_speed):
    if not written_out_overlap(ego, box):
        return None
    if speed <= 0.05:
        return "ego stands"
    if other_speed <= 0.05:
        return "they stand"
    toward = (box[0] - axle[0], box[1] - axle[1])
    cos = (toward[0] * math.cos(ego[2]) + toward[1] * math.sin(ego[2])) / math.hypot(*toward)
    if cos < math.cos(math.radians(150)):
        return "rear"
    front = [written_out_corners(ego)[k] for k in (0, 3)]
    for k in range(2001):  # points of the front edge, some millimetres apart
        x, y = (front[0][axis] + (front[1][axis] - front[0][axis]) * k / 2000 for axis in (0, 1))
        dx, dy = x - box[0], y - box[1]
        along, across = dx * math.cos(box[2]) + dy * math.sin(box[2]), dy * math.cos(box[2]) - dx * math.sin(box[2])
        if abs(along) <= box[3] / 2 and abs(across) <= box[4] / 2:
            return "front"
    return "side"


def test_kinds_of_hits_agree_with_the_rule_written_out():
    rng = np.random.default_rng(3)
    found = []
    for _ in range(300):
        yaw = rng.uniform(-np.pi, np.pi)
        ego = np.array([*rng.uniform(-2, 2, 2), yaw, 4.4, 1.85])
        axle = ego[:2] - 1.2 * np.array([np.cos(yaw), np.sin(yaw)])
        boxes = np.stack([[*rng.uniform(-6, 6, 2), rng.uniform(-4, 4), *rng.uniform(0.5, 8, 2)] for _ in range(4)])
        speed, speeds = rng.choice([0.0, 5.0], p=[0.2, 0.8]), rng.choice([0.0, 3.0], 4, p=[0.3, 0.7])
        kinds = hit_kinds(ego, axle, speed, boxes, speeds)
        assert kinds == [written_out_kind(ego, axle, speed, *other) for other in zip(boxes, speeds, strict=True)]
        found += kinds
    assert {kind: found.count(kind) > 5 for kind in (None, "ego stands", "they stand", "rear", "front", "side")} == (
        dict.fromkeys((None, "ego stands", "they stand", "rear", "front", "side"), True)
    )


def test_who_is_at_fault():
    blamed = {(kind, outside) for kind in ("ego stands", "they stand", "rear", "front", "side", None)
              for outside in (False, True) if is_at_fault(kind, outside)}  # fmt: skip
    both = (False, True)
    assert blamed == {(kind, outside) for kind in ("they stand", "front") for outside in both} | {("side", True)}


# ---------------------------------------------------------------- single plans


def replay_of(agents=(), speed=5.0, seconds=3.0, **changes) -> ReplayedPlan:
    """Straight on along x at 10 Hz; agents as (x, y, speed along x, is a thing), boxes of 4 x 2 m."""
    count = round(seconds * 10)
    motion = np.array(motion_of(seconds, speed, 0.1))
    size = np.tile([4.4, 1.85], (count, 1))
    boxes = np.concatenate([motion[:, :1] + 1.2, motion[:, 1:3], size], axis=1)
    times = 0.1 * np.arange(1, count + 1)
    others = np.array([[[x + v * t, y, 0.0, 4.0, 2.0] for x, y, v, _ in agents] for t in times]).reshape(count, -1, 5)
    values = {
        "seconds": 0.1,
        "motion": motion,
        "boxes": boxes,
        "agents": others,
        "agent_speeds": np.tile([abs(v) for _, _, v, _ in agents], (count, 1)).reshape(count, -1),
        "things": np.array([thing for *_, thing in agents], dtype=bool),
        "several_lanes": np.zeros(count, dtype=bool),
        "off_road": np.zeros(count, dtype=bool),
        "ran_red": False,
        "progress": speed * seconds,
        "best_progress": 15.0,
    }
    return ReplayedPlan(**{**values, **changes})


@pytest.mark.parametrize(
    "agents, nc, ttc",
    [
        ((), 1.0, 1.0),
        (((40.0, 0.0, 0.0, False),), 1.0, 1.0),  # too far
        (((12.0, 0.0, 0.0, False),), 0.0, 0.0),  # stands in the way
        (((12.0, 0.0, 0.0, True),), 0.5, 0.0),  # a cone
        (((12.0, 3.5, 0.0, False),), 1.0, 1.0),  # in the next lane
        (((-8.0, 0.0, 7.0, False),), 1.0, 1.0),  # comes from behind and hits
    ],
)
def test_no_collision_and_time_to_collision(agents, nc, ttc):
    found = plan_scores(replay_of(agents))
    assert (found.nc, found.ttc) == (nc, ttc)
    assert found.pdms == pytest.approx(nc * (5 * ttc + 5 * nc + 2) / 12)


def test_who_brakes_late_fails_the_time_to_collision_alone():
    """From 8 m/s to a standstill in 8 m, with 1 m to spare; the front is 3.4 m ahead of the axle."""
    times = 0.1 * np.arange(1, 31)
    speeds = np.maximum(8.0 - 4.0 * times, 0.0)
    x = np.where(times < 2, 8.0 * times - 2.0 * times**2, 8.0)
    motion = np.stack([x, 0 * x, 0 * x, speeds], axis=-1)
    boxes = np.stack([x + 1.2, 0 * x, 0 * x, 0 * x + 4.4, 0 * x + 1.85], axis=-1)
    for middle, expected in ((8.0 + 3.4 + 1.0 + 2.0, 0.0), (8.0 + 3.4 + 4.0 + 2.0, 1.0)):
        found = plan_scores(replay_of(((middle, 0.0, 0.0, False),), motion=motion, boxes=boxes))
        assert (found.nc, found.ttc) == (1.0, expected)


def test_progress_lights_road_and_comfort_of_a_plan():
    good = plan_scores(replay_of())
    assert good.as_dict() == {**dict.fromkeys(PLAN_FIELDS, 1.0)}
    assert plan_scores(replay_of(best_progress=30.0)).ep == 0.5
    assert plan_scores(replay_of(best_progress=4.0, progress=0.0)).ep == 1.0
    assert plan_scores(replay_of(ran_red=True)).tlc == 0.0 and plan_scores(replay_of(ran_red=True)).pdms == 1.0
    off = np.arange(30) == 20
    assert plan_scores(replay_of(off_road=off)).dac == 0.0 == plan_scores(replay_of(off_road=off)).pdms
    braking = np.array(motion_of(3.0, 5.0, 0.1))
    braking[:, 3] = np.maximum(20.0 - 6.0 * 0.1 * np.arange(30), 0.0)
    assert plan_scores(replay_of(motion=braking)).comfort == 0.0


def test_derivatives_are_slopes_of_fitted_parabolas():
    times = 0.1 * np.arange(30)
    assert derivative(3 * times**2 - times, 0.1) == pytest.approx(6 * times - 1)
    noisy = np.random.default_rng(1).normal(size=30)
    fitted = np.polyfit(times[5:14], noisy[5:14], 2)  # the window of 9 around moment 9
    assert derivative(noisy, 0.1)[9] == pytest.approx(np.polyval(np.polyder(fitted), times[9]))
    assert len(derivative(np.array([1.0]), 0.1)) == 1


@pytest.mark.parametrize("column, good, bad", [(3, 2.3, 2.5), (3, -4.0, -4.1), (2, 0.94, 0.96)])
def test_the_bounds_of_comfort(column, good, bad):
    for slope, expected in ((good, True), (bad, False)):
        motion = np.zeros((40, 4))
        motion[:, 3] = 4.0
        motion[:, column] += slope * 0.1 * np.arange(40)
        assert comfortable_moments(motion, 0.1).all() == expected


# ---------------------------------------------------------------- bad input and `evaluate`


@pytest.mark.parametrize(
    "scenes, message",
    [
        ([], "no scenes"),
        ([scene_of(), scene_of()], "scene a is duplicated"),
        ([scene_of(metres=math.nan)], "metres nan must be a finite"),
        ([scene_of(outside_metres=21.0)], "21.0 m of 20.0 m driven"),
        ([scene_of(ended="luck")], "it ended by 'luck'"),
        ([scene_of(events=[event("tree")])], "is not one of pedestrian, vehicle"),
        ([scene_of(motion=[[0.0, 0.0, 0.0]])], "motion of shape"),
    ],
)
def test_bad_scenes_are_refused(scenes, message):
    with pytest.raises(ValueError, match=message):
        compute_metrics(scenes)


def test_evaluate_gives_the_same_without_the_project(tmp_path):
    scenes = [
        scene_of(f"s{k}", metres=15.0 + k, events=[event("vehicle", where="oncoming")] * (k == 1),
                 plans=[dict.fromkeys(PLAN_FIELDS, 0.5 + 0.1 * k)])
        for k in range(4)
    ]  # fmt: skip
    given = tmp_path / "scenes.json"
    given.write_text(json.dumps([dataclasses.asdict(scene) for scene in scenes]))
    code = (
        f"{HIDE_PROJECT}\nimport evaluate, json, sys\n"
        f"metric = evaluate.load({str(METRICS / 'driving')!r}, cache_dir={str(tmp_path / 'cache')!r})\n"
        f"print(json.dumps(metric.compute(predictions=json.load(open({str(given)!r})))))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads(json.dumps(compute_metrics(scenes)))


@pytest.mark.parametrize("name", ["oriented_boxes.py", "scene_intervals.py"])
def test_shared_files_are_equal(name):
    """`evaluate` copies the files of one folder only, so two folders hold them."""
    assert (METRICS / "driving" / name).read_bytes() == (METRICS / "planning" / name).read_bytes()
