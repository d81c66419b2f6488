"""The planning metrics: agreement with implementations written here from their definition, hand-made cases, masks,
intervals, bad input.

`written_out_*` are slow loops over frames, steps and cells; they share no code with the module. `PUBLIC_CODE` is what
the public repositories' own functions gave for `random_frames(60, seed=7)`.
"""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from metric_rows import freedom_of
from processes import HIDE_PROJECT

from recipes.metrics.planning.occupancy_grid import fill_polygon
from recipes.metrics.planning.oriented_boxes import boxes_overlap, plan_headings
from recipes.metrics.planning.plan_scores import compute_metrics, subsets
from recipes.metrics.planning.planning_frames import Agent, EgoBox, PlanningFrame
from recipes.metrics.planning.protocols import PROTOCOLS
from recipes.metrics.planning.scene_intervals import t_quantile

ROOT = Path(__file__).resolve().parents[1]
DRIVELM_INTERVALS = ROOT / "recipes" / "metrics" / "drivelm" / "scene_intervals.py"
TOLERANCE = 1e-6
LIDAR = 0.985793
LENGTH, WIDTH = 4.084, 1.85

SIZES = {  # width, length, height
    "vehicle.car": (1.9, 4.6, 1.7),
    "vehicle.truck": (2.5, 7.0, 3.0),
    "vehicle.bus.rigid": (2.9, 11.0, 3.4),
    "vehicle.bicycle": (0.6, 1.7, 1.3),
    "vehicle.emergency.police": (1.9, 4.8, 1.7),
    "human.pedestrian.adult": (0.7, 0.7, 1.8),
    "human.pedestrian.stroller": (0.6, 0.9, 1.2),
    "movable_object.barrier": (2.2, 0.6, 1.0),
}
VEHICLES = ("vehicle.car", "vehicle.truck", "vehicle.bus.rigid", "vehicle.bicycle")

# UniAD dd161b2, VAD 1688c4b, BEV-Planner 01c28d6, SparseDrive ec0225d
PUBLIC_CODE = {
    "uniad": {
        "l2_1s": 2.504629618,
        "l2_2s": 4.900322689,
        "l2_3s": 7.221481954,
        "collision_1s": 6 / 60,
        "collision_2s": 3 / 60,
        "collision_3s": 2 / 60,
    },
    "stp3": {
        "l2_1s": 2.132614734,
        "l2_2s": 3.810604943,
        "l2_3s": 5.768518019,
        "collision_1s": 0.0625,
        "collision_2s": 0.04375,
        "collision_3s": 0.05,
    },
    "bevplanner": {
        "l2_1s": 2.132614734,
        "l2_2s": 3.810604943,
        "l2_3s": 5.768518019,
        "collision_1s": 0.1,
        "collision_2s": 0.2,
        "collision_3s": 0.225,
    },
    "sparsedrive": {
        "l2_1s": 2.132614734,
        "l2_2s": 3.810604943,
        "l2_3s": 5.768518019,
        "collision_1s": 0.05,
        "collision_2s": 0.06875,
        "collision_3s": 0.070833333,
    },
}


def random_path(generator):
    speed, turn, gain = generator.uniform(0, 9), generator.normal(0, 0.25), generator.normal(0, 0.8)
    t = np.arange(1, 7) * 0.5
    way, half = np.maximum(speed * t + gain * t * t / 2, 0), turn * t / 2
    chord = way * np.sinc(half / np.pi)
    return np.stack([chord * np.cos(half), chord * np.sin(half)], axis=1) + generator.normal(0, 0.05, (6, 2))


def random_agent(generator):
    category = str(generator.choice(list(SIZES)))
    start, speed = generator.normal([8, 0], [9, 5]), generator.normal(0, 3, 2)
    yaw, turn = generator.uniform(-4, 4), generator.normal(0, 0.3)
    t = np.arange(7)[:, None] * 0.5
    poses = np.concatenate([start + speed * t, yaw + turn * t], axis=1)
    mask, kind = np.ones(7, dtype=bool), generator.integers(0, 4)
    if kind == 0:
        mask[generator.integers(1, 7) :] = False
    if kind == 1:
        mask[: generator.integers(1, 5)] = False
    return Agent(category, SIZES[category], poses, mask)


def random_frames(count, seed):
    """Plans and frames: some stand still, a third of the futures are cut short, six scenes of unequal size."""
    generator = np.random.default_rng(seed)
    plans, frames = [], []
    for i in range(count):
        plan, future = random_path(generator), random_path(generator)
        if i % 9 == 0:
            plan = plan * 0 if i % 2 else generator.normal(0, 0.01, (6, 2))
        mask = np.arange(6) < (6 if i % 3 else generator.integers(0, 6))
        agents = [random_agent(generator) for _ in range(generator.integers(0, 9))]
        speed = float(generator.uniform(0, 9)) if i % 5 else None
        frames.append(PlanningFrame(f"frame{i}", f"scene{i * i % 10}", speed, future, mask, agents, i < 10))
        plans.append(plan)
    return plans, frames


# ---------------------------------------------------------------- the definitions, written out


def corners_of(x, y, yaw, length, width):
    cos, sin = math.cos(yaw), math.sin(yaw)
    return [
        (x + a * length / 2 * cos - b * width / 2 * sin, y + a * length / 2 * sin + b * width / 2 * cos)
        for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1))
    ]


def written_out_cells(corners):
    """Cells that OpenCV fills: Bresenham's outline by its running error, the inside by edges in 1/65536 of a cell."""
    cells, edges = set(), []
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if x0 > x1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        dx, dy, down = x1 - x0, abs(y1 - y0), 1 if y1 > y0 else -1
        steep = dy > dx
        long, short = (dy, dx) if steep else (dx, dy)
        x, y, error = x0, y0, long - 2 * short
        for _ in range(long + 1):
            cells.add((x, y))
            sidestep = error < 0
            error += 2 * long - 2 * short if sidestep else -2 * short
            x += 1 if not steep or sidestep else 0
            y += down if steep or sidestep else 0
        if y0 != y1:
            edges.append((x0, y0, x1, y1) if y0 < y1 else (x1, y1, x0, y0))
    for row in range(min(y for _, y in corners), max(y for _, y in corners)):
        crossings = []
        for x0, y0, x1, y1 in edges:
            if y0 <= row < y1:
                crossings.append(x0 * 65536 + (row - y0) * math.trunc((x1 - x0) * 65536 / (y1 - y0)))
        crossings.sort()
        for left, right in zip(crossings[::2], crossings[1::2], strict=True):
            cells |= {(x, row) for x in range((left + 32768) // 65536, (right + 32768) // 65536 + 1)}
    return cells


def in_lidar_frame(agent, step):
    x, y, yaw = agent.poses[step]
    return -y, x - LIDAR, yaw + math.pi / 2, agent.size[1], agent.size[0]


def clip(value, cells):
    return min(max(value, 0), cells - 1)


def written_out_uniad(plan, step, agents, flipped=False):
    """One step on 0.5 m cells: does the ego, without yaw, share a cell with an agent? (`flipped`: VAD's row order.)"""
    taken = set()
    for agent in agents:
        if agent.mask[step + 1]:
            corners = corners_of(*in_lidar_frame(agent, step + 1))
            sign = -1 if flipped else 1
            taken |= written_out_cells([(round((x + 50) / 0.5), round((sign * y + 50) / 0.5)) for x, y in corners])
    for column in range(90, 110):
        for row in range(90, 110):  # the cells round the origin, of 200 x 200
            right, forward = -49.75 + 0.5 * column, -49.75 + 0.5 * row
            if abs(right) > WIDTH / 2 or abs(forward - 0.5) > LENGTH / 2:
                continue
            x, y = column - plan[step][1] / 0.5, row + plan[step][0] / 0.5
            y = 200 - y if flipped else y
            if (clip(int(x), 200), clip(int(y), 200)) in taken:
                return True
    return False


def written_out_stp3(plan, step, agents):
    seen = []
    for agent in agents:
        right, forward, *_ = in_lidar_frame(agent, 0)
        detected = agent.category in (*VEHICLES, "human.pedestrian.adult")
        if detected and agent.mask[0] and -15 < right < 15 and -30 < forward < 30:
            seen.append(agent)
    return written_out_uniad(plan, step, seen, flipped=True)


def written_out_bevplanner(plan, step, agents):
    taken = set()
    for agent in agents:
        if agent.mask[step + 1] and agent.category in VEHICLES:
            corners = corners_of(*agent.poses[step + 1], agent.size[1], agent.size[0])
            taken |= written_out_cells([(int((x + 49.95) / 0.1), int((y + 49.95) / 0.1)) for x, y in corners])
    before = plan[step - 1] if step else (0.0, 0.0)
    dx, dy = plan[step][0] - before[0], plan[step][1] - before[1]
    yaw = math.atan2(dy, dx) if math.hypot(dx, dy) >= 1 else 0.0
    for i in range(480, 560):  # the cells round the origin, of 1000 x 1000
        x = (i - 499.5) / 10
        if abs(x - LIDAR - 0.5) > LENGTH / 2:
            continue
        for j in range(480, 520):
            y = (j - 499.5) / 10
            if abs(y) > WIDTH / 2:
                continue
            column = round((i - 499.5) * math.cos(yaw) - (j - 499.5) * math.sin(yaw) + 499.5)
            row = round((i - 499.5) * math.sin(yaw) + (j - 499.5) * math.cos(yaw) + 499.5)
            cell = clip(int(column + plan[step][0] / 0.1), 1000), clip(int(row + plan[step][1] / 0.1), 1000)
            if cell in taken:
                return True
    return False


def polygons_touch(one, other):
    """Convex polygons touch if a corner of one lies in the other or two of their sides cross."""

    def side(a, b, p):
        return (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])

    def sides(polygon):
        return list(zip(polygon, polygon[1:] + polygon[:1], strict=True))

    def contains(polygon, p):
        return all(side(a, b, p) >= 0 for a, b in sides(polygon))

    if any(contains(other, p) for p in one) or any(contains(one, p) for p in other):
        return True
    return any(
        side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
        for a, b in sides(one)
        for c, d in sides(other)
    )


def written_out_sparsedrive(plan, step, agents):
    path = [(-y, x) for x, y in plan]
    points = [(0.0, 0.0), *path]
    if math.dist(path[0], path[5]) < 0.5:
        yaw = math.pi / 2
    else:
        (x0, y0), (x1, y1) = points[step] if step < 5 else points[5], points[step + 2] if step < 5 else points[6]
        yaw = math.atan2(y1 - y0, x1 - x0)
    ego = corners_of(path[step][0] + 0.5 * math.cos(yaw), path[step][1] + 0.5 * math.sin(yaw), yaw, LENGTH, WIDTH)
    return any(
        polygons_touch(ego, corners_of(*in_lidar_frame(agent, step + 1))) for agent in agents if agent.mask[step + 1]
    )


def written_out_headings(plan):
    points, heading, headings = [(0.0, 0.0), *plan], 0.0, []
    for k in range(1, 7):
        start, end = (points[k - 1], points[k + 1]) if k < 6 else (points[5], points[6])
        turn = math.remainder(math.atan2(end[1] - start[1], end[0] - start[0]) - heading, 2 * math.pi)
        if abs(turn) > math.pi / 2:  # in reverse
            turn = math.remainder(turn + math.pi, 2 * math.pi)
        if math.dist(start, end) >= (0.5 if k < 6 else 0.25):
            heading += turn if k < 6 else 2 * turn
        headings.append(heading)
    return headings


def written_out_ours(plan, step, agents):
    yaw = written_out_headings(plan)[step]
    ahead = LIDAR + 0.5
    ego = corners_of(plan[step][0] + ahead * math.cos(yaw), plan[step][1] + ahead * math.sin(yaw), yaw, LENGTH, WIDTH)
    road_users = [agent for agent in agents if agent.category.split(".")[0] in ("vehicle", "human")]
    return any(
        polygons_touch(ego, corners_of(*agent.poses[step + 1], agent.size[1], agent.size[0]))
        for agent in road_users
        if agent.mask[step + 1]
    )


def written_out_scores(plans, frames):
    """-> {protocol: {metric: value}} at 1, 2 and 3 s and for the expert, by one loop over the frames per protocol."""
    vehicles_only = [[agent for agent in frame.agents if agent.category in VEHICLES] for frame in frames]
    everyone = [frame.agents for frame in frames]
    rules = {
        "ours": (written_out_ours, everyone),
        "uniad": (written_out_uniad, vehicles_only),
        "stp3": (written_out_stp3, everyone),
        "bevplanner": (written_out_bevplanner, everyone),
        "sparsedrive": (written_out_sparsedrive, everyone),
    }
    result = {}
    for protocol, (hit, agents) in rules.items():
        kept = {}

        def keep(metric, value, kept=kept):
            kept.setdefault(metric, []).append(value)

        for plan, frame, others in zip(plans, frames, agents, strict=True):
            known = int(sum(frame.mask))
            expert = [tuple(p) for p in frame.future[:known, :2]]
            expert += [expert[-1] if expert else (0.0, 0.0)] * (6 - known)
            error = [math.dist(plan[k], expert[k]) if k < known else 0.0 for k in range(6)]
            hits = [hit(plan, k, others) for k in range(known)]
            floor = [hit(expert, k, others) for k in range(known)]
            for seconds in (1, 2, 3):
                steps = 2 * seconds
                if protocol == "uniad":
                    keep(f"l2_{seconds}s", error[steps - 1])
                    keep(f"collision_{seconds}s", steps <= known and hits[steps - 1] and not floor[steps - 1])
                    if steps <= known:
                        keep(f"expert_collision_{seconds}s", floor[steps - 1])
                elif protocol == "ours":
                    if steps <= known:
                        keep(f"l2_{seconds}s", error[steps - 1])
                        keep(f"collision_{seconds}s", any(hits[:steps]))
                        keep(f"expert_collision_{seconds}s", any(floor[:steps]))
                elif known == 6:
                    alone = [hits[k] and not floor[k] for k in range(steps)]
                    share = any if protocol == "bevplanner" else lambda flags: sum(flags) / len(flags)
                    keep(f"l2_{seconds}s", sum(error[:steps]) / steps)
                    keep(f"collision_{seconds}s", share(alone))
                    keep(f"expert_collision_{seconds}s", share(floor[:steps]))
        result[protocol] = {metric: sum(values) / len(values) for metric, values in kept.items()}
        for name in ("l2", "collision", "expert_collision"):
            result[protocol][f"{name}_avg"] = sum(result[protocol][f"{name}_{s}s"] for s in (1, 2, 3)) / 3
    return result


@pytest.fixture(scope="module")
def sample():
    return random_frames(60, seed=7)


@pytest.fixture(scope="module")
def scores(sample):
    return compute_metrics(*sample)


def test_each_protocol_agrees_with_its_definition_written_out(sample, scores):
    expected = written_out_scores(*sample)
    for protocol, metrics in expected.items():
        for metric, value in metrics.items():
            assert scores["all"][protocol][metric] == pytest.approx(value, abs=TOLERANCE), (protocol, metric)
        assert 0 < metrics["collision_3s"] < 1 and 0 < metrics["expert_collision_3s"] < 1, "the sample must decide"
    assert len({round(metrics["collision_3s"], 9) for metrics in expected.values()}) == 5, "no two protocols agree"


def test_the_public_code_gave_the_same_for_these_frames(scores):
    for protocol, metrics in PUBLIC_CODE.items():
        for metric, value in metrics.items():
            assert scores["all"][protocol][metric] == pytest.approx(value, abs=TOLERANCE), (protocol, metric)


def test_paradrive_averages_six_steps_and_leaves_out_first_frames(sample, scores):
    plans, frames = sample
    errors = [[] for _ in range(6)]
    for plan, frame in zip(plans, frames, strict=True):
        for k in range(6):
            if frame.mask[k] and not frame.first_of_scene:
                errors[k].append(math.dist(plan[k], frame.future[k, :2]))
    means = [sum(column) / len(column) for column in errors]
    paradrive = scores["all"]["paradrive"]
    assert paradrive["l2_all"] == pytest.approx(sum(means) / 6, abs=TOLERANCE)
    assert paradrive["l2_2s"] == pytest.approx(means[3], abs=TOLERANCE)
    assert paradrive["l2_avg"] == pytest.approx((means[1] + means[3] + means[5]) / 3, abs=TOLERANCE)
    assert paradrive["l2_3s_count"] == len(errors[5])
    assert not [name for name in paradrive if "collision" in name]


# ---------------------------------------------------------------- the parts

OPENCV_FILL = {  # corners, and the rows of cells that cv2.fillPoly of OpenCV 4.10 sets
    ((2, 0), (9, 3), (7, 8), (0, 5)): [
        "..##......",
        "..####....",
        ".#######..",
        ".#########",
        "##########",
        "#########.",
        "..#######.",
        "....####..",
        "......##..",
    ],
    ((0, 1), (1, 0), (2, 1), (1, 2)): [".#.", "###", ".#."],
    ((0, 0), (5, 2), (5, 2), (0, 0)): ["##....", "..##..", "....##"],
    ((0, 0), (1, 2), (2, 2), (1, 0)): ["##.", "###", ".##"],
    ((0, 7), (3, 0), (10, 4), (7, 11)): [
        "...#.......",
        "...###.....",
        "..######...",
        "..########.",
        ".##########",
        ".##########",
        "##########.",
        "##########.",
        ".########..",
        "...######..",
        ".....###...",
        ".......#...",
    ],
}


def test_polygons_are_filled_as_opencv_fills_them():
    for corners, rows in OPENCV_FILL.items():
        lowest, cells = fill_polygon(corners)
        assert ["".join(".#"[int(cell)] for cell in row) for row in cells] == rows, corners
        assert lowest.tolist() == np.min(corners, axis=0).tolist()
        found = {(x + lowest[0], y + lowest[1]) for y, x in np.argwhere(cells)}
        assert found == written_out_cells([tuple(corner) for corner in corners])


def test_overlap_of_boxes_is_exact_where_their_sides_cross_without_corners_inside():
    cross = boxes_overlap(np.array([0, 0, 0, 6, 1.0]), np.array([0, 0, np.pi / 2, 6, 1.0]))
    corner_to_corner = boxes_overlap(np.array([0, 0, 0, 2, 2.0]), np.array([2.3, 0, np.pi / 4, 2, 2.0]))
    apart = boxes_overlap(np.array([0, 0, 0, 2, 2.0]), np.array([2.45, 0, np.pi / 4, 2, 2.0]))
    diagonal = boxes_overlap(np.array([0, 0, np.pi / 4, 10, 0.5]), np.array([2, -2, np.pi / 4, 10, 0.5]))
    assert (bool(cross), bool(corner_to_corner), bool(apart), bool(diagonal)) == (True, True, False, False)


def test_headings_are_exact_on_an_arc_and_kept_while_standing():
    angles = np.arange(1, 7) * 0.2
    arc = 14 * np.stack([np.sin(angles), 1 - np.cos(angles)], axis=-1)
    assert np.allclose(plan_headings(arc), angles, atol=1e-12)
    stops = np.concatenate([arc[:3], arc[2:3].repeat(3, axis=0)])
    assert plan_headings(stops)[3:] == pytest.approx(plan_headings(stops)[2])
    assert plan_headings(np.full((6, 2), [0.01, -0.01])).tolist() == [0] * 6


def test_a_plan_that_reverses_keeps_facing_forward():
    back = np.stack([-np.arange(1.0, 7), np.zeros(6)], axis=-1)
    assert plan_headings(back) == pytest.approx(0)
    assert plan_headings(back + [[0, -0.1 * k] for k in range(1, 7)]) == pytest.approx(math.atan(0.1))


# ---------------------------------------------------------------- by hand


def frame_of(agents=(), future=None, mask=None, token="f", scene="s", speed=5.0, **options):
    future = straight(5.0) if future is None else future
    mask = np.ones(6, dtype=bool) if mask is None else np.array(mask, dtype=bool)
    return PlanningFrame(token, scene, speed, np.array(future, dtype=float), mask, list(agents), **options)


def straight(speed):
    return np.stack([np.arange(1, 7) * 0.5 * speed, np.zeros(6)], axis=-1)


def parked(category="vehicle.car", x=10.0, y=0.0, yaw=0.0, mask=(True,) * 7):
    return Agent(category, SIZES[category], np.tile([x, y, yaw], (7, 1)), np.array(mask, dtype=bool))


def score_one(plan, frame, **options):
    return compute_metrics([plan], [frame], **options)["all"]


def test_l2_at_a_time_and_up_to_a_time():
    """1 m/s too fast: 0.5 m further off with each step."""
    result = score_one(straight(6.0), frame_of())
    for protocol in ("ours", "uniad", "paradrive"):
        assert [result[protocol][f"l2_{s}s"] for s in (1, 2, 3)] == pytest.approx([1, 2, 3])
        assert result[protocol]["l2_avg"] == pytest.approx(2)
    for protocol in ("stp3", "bevplanner", "sparsedrive"):
        assert [result[protocol][f"l2_{s}s"] for s in (1, 2, 3)] == pytest.approx([0.75, 1.25, 1.75])
        assert result[protocol]["l2_avg"] == pytest.approx(1.25)
    assert result["paradrive"]["l2_all"] == pytest.approx(1.75)


def test_a_hit_counts_at_its_step_on_average_or_from_then_on():
    """The front bumper is 3.53 m ahead of the axle and meets the box from 7.7 to 12.3 m at 5 m: after 1 s at 5 m/s.
    Its tail, 0.56 m behind the axle, has passed 12.3 m when the axle is at 12.86 m: it is clear at 3 s."""
    result = score_one(straight(5.0), frame_of([parked()], future=straight(0.0)))
    assert [result["ours"][f"collision_{s}s"] for s in (1, 2, 3)] == [1, 1, 1]
    assert [result["bevplanner"][f"collision_{s}s"] for s in (1, 2, 3)] == [1, 1, 1]
    assert [result["uniad"][f"collision_{s}s"] for s in (1, 2, 3)] == [1, 1, 0]
    for protocol in ("stp3", "sparsedrive"):
        assert [result[protocol][f"collision_{s}s"] for s in (1, 2, 3)] == pytest.approx([1 / 2, 3 / 4, 4 / 6])
    assert all(result[name]["expert_collision_3s"] == 0 for name in PROTOCOLS if name != "paradrive")


def test_steps_that_the_expert_hits_are_left_out_by_the_public_protocols_alone():
    result = score_one(straight(5.0), frame_of([parked()]))
    for protocol in ("uniad", "stp3", "bevplanner", "sparsedrive"):
        assert result[protocol]["collision_avg"] == 0 and result[protocol]["expert_collision_avg"] > 0
    assert result["ours"]["collision_avg"] == result["ours"]["expert_collision_avg"] == 1


def test_the_experts_own_waypoints_score_zero_metres_and_the_floor(sample):
    _, frames = sample
    whole = [frame for frame in frames if frame.mask.all()]
    result = compute_metrics([frame.future for frame in whole], whole)["all"]
    for protocol in PROTOCOLS:
        assert result[protocol]["l2_avg"] == 0
    assert result["ours"]["collision_3s"] == result["ours"]["expert_collision_3s"] > 0


@pytest.mark.parametrize(
    ("category", "protocols"),
    [
        ("vehicle.car", {"ours", "uniad", "stp3", "bevplanner", "sparsedrive"}),
        ("human.pedestrian.adult", {"ours", "stp3", "sparsedrive"}),
        ("human.pedestrian.stroller", {"ours", "sparsedrive"}),
        ("vehicle.emergency.police", {"ours", "sparsedrive"}),
        ("movable_object.barrier", {"sparsedrive"}),
    ],
)
def test_which_protocol_counts_which_category(category, protocols):
    result = score_one(straight(4.0), frame_of([parked(category, x=9.0)], future=straight(0.0)))
    assert {name for name in PROTOCOLS if result[name].get("collision_avg")} == protocols


def test_vad_does_not_see_who_is_out_of_range_or_not_annotated_yet():
    late = parked(mask=[False] * 2 + [True] * 5)
    far = Agent("vehicle.car", SIZES["vehicle.car"], [[40 - 10 * k, 0, 0] for k in range(7)], np.ones(7, dtype=bool))
    for agent in (late, far):
        result = score_one(straight(5.0), frame_of([agent], future=straight(0.0)))
        assert result["stp3"]["collision_avg"] == 0
        assert all(result[name]["collision_3s"] > 0 for name in ("ours", "bevplanner", "sparsedrive"))


def test_the_ego_turns_its_box_where_the_protocol_has_a_heading():
    """A quarter of a circle of 4 m radius: at its end the ego points to the left, its nose 3.5 m beside its axle."""
    angles = np.arange(1, 7) * np.pi / 12
    plan = 4 * np.stack([np.sin(angles), 1 - np.cos(angles)], axis=-1)
    nose = parked("vehicle.bicycle", x=4.6, y=6.7)
    side = parked("vehicle.bicycle", x=7.2, y=4.0, yaw=np.pi / 2)
    at_nose = score_one(plan, frame_of([nose], future=straight(0.0)))
    at_side = score_one(plan, frame_of([side], future=straight(0.0)))
    turning = {"ours", "bevplanner", "sparsedrive"}
    assert {name for name in PROTOCOLS if at_nose[name].get("collision_3s")} == turning
    assert {name for name in PROTOCOLS if at_side[name].get("collision_3s")} == {"uniad", "stp3"}


def test_our_ego_box_can_be_another_car():
    frame = frame_of([parked(x=6.5)], future=straight(0.0))  # its back is at 4.2 m
    assert score_one(straight(0.0), frame)["ours"]["collision_3s"] == 0
    assert score_one(straight(0.0), frame, ego=EgoBox(9.0, 2.5, 0.5))["ours"]["collision_3s"] == 1


# ---------------------------------------------------------------- masks


def test_beyond_the_scenes_end_uniad_counts_zero_and_the_others_count_nothing():
    cut = frame_of([parked()], straight(0.0) * [np.nan, 1], [True] * 2 + [False] * 4, "cut")
    cut = dataclasses.replace(cut, future=np.concatenate([straight(0.0)[:2], np.full((4, 2), np.nan)]))
    whole = frame_of([], token="whole")
    result = compute_metrics([straight(5.0), straight(6.0)], [cut, whole])["all"]
    assert [result["uniad"][f"l2_{s}s"] for s in (1, 2, 3)] == pytest.approx([(5 + 1) / 2, 2 / 2, 3 / 2])
    assert [result["uniad"][f"collision_{s}s"] for s in (1, 2, 3)] == [0.5, 0, 0]
    assert [result["ours"][f"l2_{s}s"] for s in (1, 2, 3)] == pytest.approx([3, 2, 3])
    assert [result["ours"][f"collision_{s}s"] for s in (1, 2, 3)] == [0.5, 0, 0]
    assert "l2_1s_count" not in result["ours"] and result["ours"]["l2_2s_count"] == 1
    for protocol in ("stp3", "bevplanner", "sparsedrive"):
        assert result[protocol]["l2_avg"] == pytest.approx(1.25) and result[protocol]["l2_avg_count"] == 1
        assert result[protocol]["collision_avg"] == 0


def test_a_metric_that_no_frame_counts_for_is_absent():
    result = score_one(straight(5.0), frame_of(mask=[True] * 2 + [False] * 4))
    assert "l2_1s" in result["ours"] and "l2_3s" not in result["ours"] and result["ours"]["l2_avg"] is None
    assert result["stp3"] == {} and result["uniad"]["l2_3s"] == 0


def test_an_agent_hits_only_while_it_is_annotated():
    gone = parked(mask=[True] * 2 + [False] * 5)  # 5 m/s reach it after 1 s
    result = score_one(straight(5.0), frame_of([gone], future=straight(0.0)))
    assert all(result[name]["collision_avg"] == 0 for name in PROTOCOLS if name != "paradrive")


# ---------------------------------------------------------------- subsets and intervals


def test_subsets_follow_the_experts_future_and_the_speed():
    left = np.stack([np.arange(1, 7) * 2.0, np.arange(1, 7) * 0.34], axis=-1)
    frames = [
        frame_of(token="steady"),
        frame_of(future=left, speed=4.0, token="to the left"),
        frame_of(future=left, mask=[True] * 5 + [False], speed=4.0, token="too short to be one"),
        frame_of(future=straight(2.9), token="slower"),
        frame_of(future=straight(1.0), speed=0.2, token="off it goes"),
        frame_of(future=straight(0.5), speed=0.2, token="creeps"),
        frame_of(future=straight(9.0), speed=None, token="speed unknown"),
        frame_of(mask=[False] * 6, token="no future"),
    ]
    named = {subset: [frames[row].token for row in rows] for subset, rows in subsets(frames).items()}
    assert named["all"] == [frame.token for frame in frames]
    assert named["not_straight"] == ["to the left"]
    assert named["speed_changes"] == ["slower"]
    assert named["stands_and_goes"] == ["off it goes"]


def test_an_empty_subset_is_printed_with_its_count():
    result = compute_metrics([straight(5.0)], [frame_of()])
    assert result["not_straight"]["count"] == 0 and result["not_straight"]["uniad"] == {}


def test_intervals_are_students_t_over_scenes():
    """Scenes of equal size: the mean of their means, plus and minus t times their standard error."""
    offsets = [0.8, 1.0, 1.6, 2.6]
    frames = [frame_of(token=f"{i}{j}", scene=f"s{i}") for i in range(4) for j in range(3)]
    plans = [straight(5.0) + [0, offset] for offset in offsets for _ in range(3)]
    result = compute_metrics(plans, frames)["all"]
    reach = 3.182446305 * np.std(offsets, ddof=1) / 2  # t of 3 degrees of freedom at 97.5%
    for protocol in PROTOCOLS:
        assert result[protocol]["l2_3s"] == pytest.approx(1.5)
        assert result[protocol]["l2_3s_ci"] == pytest.approx([1.5 - reach, 1.5 + reach], abs=TOLERANCE)
    assert result["scenes"] == 4


def test_intervals_of_scenes_of_unequal_size_leave_out_each_scene_in_turn(sample, scores):
    errors = {}
    for plan, frame in zip(*sample, strict=True):
        if frame.mask[5]:
            errors.setdefault(frame.scene_token, []).append(math.dist(plan[5], frame.future[5, :2]))
    assert len({len(of_scene) for of_scene in errors.values()}) > 1

    def mean_without(scene):
        kept = [error for name, of_scene in errors.items() if name != scene for error in of_scene]
        return sum(kept) / len(kept)

    mean, scenes = mean_without(None), len(errors)
    assert scenes == 6
    without = [mean_without(scene) for scene in errors]
    middle = sum(without) / scenes
    deviation = math.sqrt((scenes - 1) / scenes * sum((value - middle) ** 2 for value in without))
    reach = t_quantile(freedom_of([len(of_scene) for of_scene in errors.values()])) * deviation
    assert scores["all"]["ours"]["l2_3s"] == pytest.approx(mean, abs=TOLERANCE)
    assert scores["all"]["ours"]["l2_3s_ci"] == pytest.approx([mean - reach, mean + reach], abs=TOLERANCE)


def test_an_interval_needs_three_scenes():
    for scenes in (2, 3):
        frames = [frame_of(token=str(i), scene=f"s{i}") for i in range(scenes)]
        result = compute_metrics([straight(5 + i) for i in range(scenes)], frames)
        assert (result["all"]["ours"]["l2_3s_ci"] is None) == (scenes < 3)
        assert result["info"]["interval"].startswith("none: 2 scenes" if scenes < 3 else "95% t interval")


def test_intervals_of_rates_stay_between_0_and_1(scores):
    for subset in ("all", "not_straight", "speed_changes"):
        for protocol in PROTOCOLS:
            for name, value in scores[subset][protocol].items():
                if name.endswith("_ci") and "collision" in name and value:
                    assert 0 <= value[0] <= scores[subset][protocol][name[:-3]] <= value[1] <= 1, (protocol, name)


def test_t_quantiles_are_those_of_the_tables():
    for freedom, value in {2: 4.302653, 3: 3.182446, 9: 2.262157, 149: 1.976013}.items():
        assert t_quantile(freedom) == pytest.approx(value, abs=1e-5)


def test_the_intervals_are_those_of_the_drivelm_module():
    """`evaluate` copies the files of one folder, so each module carries the file."""
    copy = ROOT / "recipes" / "metrics" / "planning" / "scene_intervals.py"
    assert copy.read_bytes() == DRIVELM_INTERVALS.read_bytes()


# ---------------------------------------------------------------- bad input


def spoilt(row, column, value):
    plan = straight(5.0)
    plan[row, column] = value
    return plan


@pytest.mark.parametrize(
    ("plan", "change", "message"),
    [
        (spoilt(3, 1, np.nan), {}, r"frame a3f1: the plan is not finite: \[\[2.5, 0.0\].*nan"),
        (spoilt(0, 0, -np.inf), {}, r"frame a3f1: the plan is not finite: \[\[-inf"),
        (np.zeros((5, 2)), {}, r"frame a3f1: the plan has shape \(5, 2\), \(6, 2\) was expected"),
        (np.zeros((6, 3)), {}, r"frame a3f1: the plan has shape \(6, 3\)"),
        (straight(5.0), {"speed": -1.0}, r"frame a3f1: speed -1.0 must be finite and at least 0 m/s"),
        (straight(5.0), {"speed": math.nan}, r"frame a3f1: speed nan must be finite"),
        (straight(5.0), {"future": np.zeros((6, 4))}, r"frame a3f1: future has shape \(6, 4\)"),
        (straight(5.0), {"future": spoilt(2, 0, np.nan)}, r"frame a3f1: future is not finite where its mask is True"),
        (straight(5.0), {"mask": np.ones(5, dtype=bool)}, r"frame a3f1: mask is .*: 6 values True or False"),
        (straight(5.0), {"mask": np.ones(6)}, r"frame a3f1: mask is \[1.0, .*: 6 values True or False"),
        (
            straight(5.0),
            {"agents": [Agent("vehicle.car", (0.0, 4.0, 1.0), np.zeros((7, 3)), np.ones(7, dtype=bool))]},
            r"frame a3f1: agent 0 \(vehicle.car\): size \(0.0, 4.0, 1.0\) must be width, length and height above 0 m",
        ),
        (
            straight(5.0),
            {"agents": [Agent("vehicle.car", (2.0, 4.0, 1.0), np.full((7, 3), np.nan), np.ones(7, dtype=bool))]},
            r"frame a3f1: agent 0 \(vehicle.car\): poses is not finite where its mask is True",
        ),
    ],
)
def test_bad_input_is_refused_with_the_frame_and_the_value(plan, change, message):
    frame = dataclasses.replace(frame_of(token="a3f1"), **change)
    with pytest.raises(ValueError, match=message):
        compute_metrics([straight(5.0), plan], [frame_of(token="good"), frame])


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="1 plans for 2 frames: one plan per frame is needed"):
        compute_metrics([straight(5.0)], [frame_of(token="a"), frame_of(token="b")])
    with pytest.raises(ValueError, match="frame f is duplicated: score each frame once"):
        compute_metrics([straight(5.0)] * 2, [frame_of(), frame_of()])
    with pytest.raises(ValueError, match="nothing to score"):
        compute_metrics([], [])
    with pytest.raises(ValueError, match="length and width must be above 0 m"):
        EgoBox(length=0.0)


# ---------------------------------------------------------------- the evaluate module


def test_evaluate_loads_the_folder_and_gives_the_same_scores(tmp_path, sample, scores):
    """In a process that cannot import this package, offline."""
    plans, frames = sample
    arrays = {"plans": plans, "frames": [dataclasses.asdict(frame) for frame in frames]}
    text = json.dumps(arrays, default=lambda value: value.tolist())
    (tmp_path / "inputs.json").write_text(text)
    script = (
        "import evaluate, json, sys\n"
        "inputs = json.load(open('inputs.json'))\n"
        "metric = evaluate.load(sys.argv[1])\n"
        "print(json.dumps(metric.compute(predictions=inputs['plans'], references=inputs['frames'])))\n"
    )
    assert json.loads(run_alone(script, ROOT / "recipes" / "metrics" / "planning", folder=tmp_path)) == scores


def test_the_numbers_need_no_torch(tmp_path):
    script = (
        "import sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import recipes.metrics.planning.plan_scores\n"
        "print('torch' in sys.modules, 'scipy' in sys.modules)\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script, str(ROOT)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert completed.stdout.split() == ["False", "False"]


def run_alone(script, *arguments, folder):
    environment = {
        "PATH": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "HF_MODULES_CACHE": str(folder / "modules"),
    }
    command = [sys.executable, "-c", HIDE_PROJECT + script, *map(str, arguments)]
    completed = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout.splitlines()[-1]
