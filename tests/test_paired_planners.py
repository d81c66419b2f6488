"""Planners of several seeds are compared by scene: the mean over the seeds, and the interval of the difference."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from recipes.driving.drives import read_all_records
from recipes.metrics.counterfactual.pair_scores import CounterfactualPair, compute_metrics
from recipes.metrics.driving.drive_scores import compare, score_of_scene
from recipes.metrics.driving.driven_scenes import DrivenEvent, DrivenScene
from recipes.metrics.planning.planning_frames import PlanningFrame
from recipes.metrics.planning.scene_intervals import t_quantile
from recipes.planning.guidance_results import PlannerRuns, compare_drives
from recipes.planning.paired_figure import draw_comparisons
from recipes.planning.paired_planners import (
    BRAKES,
    BRAKES_ALONE,
    L2,
    L2_UNIAD,
    Measure,
    brakes,
    compare_braking,
    compare_means,
    compare_planners,
    compare_responses,
    comparison_table,
)

WAY = np.stack([np.arange(1, 7) * 2.5, np.zeros(6)], axis=-1)


def frame(number: int, mask=(True,) * 6, way=WAY) -> PlanningFrame:
    return PlanningFrame(f"frame{number}", f"scene{number // 2}", 5.0, way, list(mask), [])


def beside(frames: list[PlanningFrame], metres) -> np.ndarray:
    """Plans that are `metres` (one or one per frame) to the left of the expert's way."""
    offset = np.broadcast_to(metres, len(frames))
    return np.array([np.asarray(one.future) + [0.0, by] for one, by in zip(frames, offset, strict=True)])


def test_difference_is_paired_by_scene_and_averaged_over_the_seeds():
    frames = [frame(number) for number in range(8)]  # four scenes
    gains = np.repeat([0.1, 0.2, 0.3, 0.6], 2)
    plans = {
        "plain": [beside(frames, 1.0), beside(frames, 2.0)],
        "guided": [beside(frames, 1.0 - gains), beside(frames, 2.0 - gains)],
    }
    results = compare_planners(plans, frames, "plain")
    plain, guided = [one for one in results if (one.subset, one.measure) == ("all", L2)]
    assert (plain.name, plain.value, plain.seeds, plain.interval) == ("plain", pytest.approx(1.5), [1.0, 2.0], None)
    assert guided.value == pytest.approx(1.2) and guided.seeds == pytest.approx([0.7, 1.7])
    assert guided.difference == pytest.approx(-0.3)
    reach = t_quantile(3) * np.std([0.1, 0.2, 0.3, 0.6], ddof=1) / 2
    assert guided.interval == pytest.approx([-0.3 - reach, -0.3 + reach])
    assert 0.05 < guided.p_value < 0.1
    table = comparison_table(results, "plain")
    assert "minus plain" in table and "-0.30 [-0.64, +0.04]" in table and "0.70 1.70" in table


def test_masked_waypoints_count_in_uniads_protocol_alone():
    frames = [frame(number, mask=(True,) * 4 + (False,) * 2) for number in range(6)]
    results = compare_planners({"plain": [beside(frames, 3.0)]}, frames, "plain")
    found = {one.measure: one.value for one in results if one.subset == "all"}
    assert found == {L2: pytest.approx(float("nan"), nan_ok=True), L2_UNIAD: pytest.approx(2.0)}


def test_plans_for_other_frames_are_refused():
    frames = [frame(number) for number in range(2)]
    with pytest.raises(ValueError, match="1 plans for 2 frames"):
        compare_planners({"plain": [beside(frames[:1], 1.0)]}, frames, "plain")


def way_at(*speeds: float) -> np.ndarray:
    """(6, 2): straight ahead, with these speeds (m/s) in the six steps; the last one stays."""
    steps = [*speeds, *[speeds[-1]] * (6 - len(speeds))]
    return np.stack([np.cumsum(steps) * 0.5, np.zeros(6)], axis=-1)


def test_to_brake_is_to_be_more_than_two_metres_per_second_slower_in_a_step():
    ways = np.array([way_at(5.0), way_at(5.0, 3.1), way_at(5.0, 2.9), way_at(5.0, 2.0, 5.0), way_at(0.0)])
    assert brakes(ways, np.full(5, 5.0)).tolist() == [False, False, True, True, True]
    assert not brakes(ways[-1:], np.zeros(1))[0]  # who stands cannot brake


def test_braking_is_counted_where_the_expert_brakes_and_apart_where_it_does_not():
    stops, drives = way_at(4.0, 2.0, 0.0), way_at(5.0)
    ways = [stops, stops, drives, drives] * 3
    frames = [frame(number, way=way) for number, way in enumerate(ways)]
    frames += [frame(12, way=stops, mask=(True,) * 5 + (False,)), frame(13, way=stops)]  # cut by the end; not in rows
    careful, blind = np.array([stops] * 14), np.array([drives] * 14)
    half = blind.copy()
    half[[0, 4, 8]] = stops  # one of the two frames of scenes 0, 2 and 4
    plans = {"plain": [blind, half], "guided": [half, half], "careful": [careful, careful]}
    results = compare_braking(plans, frames, "plain", "some", np.arange(13))
    found = {(one.measure, one.name): one for one in results}
    assert [found[BRAKES, name].value for name in plans] == [25.0, 50.0, 100.0]
    assert found[BRAKES, "plain"].seeds == [0.0, 50.0]
    assert found[BRAKES, "guided"].difference == pytest.approx(25.0) and found[BRAKES, "guided"].p_value < 0.5
    assert [found[BRAKES_ALONE, name].value for name in plans] == [0.0, 0.0, 100.0]
    assert {one.subset for one in results} == {"some"}
    assert compare_braking(plans, frames, "plain", "none", np.array([12])) == []


def test_responses_are_those_of_the_metric_and_paired_by_scene():
    rng = np.random.default_rng(0)
    kinds = ["light switched", "leader removed"] * 4
    expert = np.array([way_at(5.0), way_at(1.0)])
    pairs = [CounterfactualPair(f"p{n}", f"scene{n // 2}", kind, expert) for n, kind in enumerate(kinds)]
    plans = {
        name: [np.array([[way_at(5.0), way_at(5.0 - by)] for by in rng.uniform(low, low + 1, 8)]) for _ in range(2)]
        for name, low in (("plain", 0.0), ("guided", 2.0))
    }
    results = compare_responses(plans, pairs, "plain")
    assert {one.subset for one in results} == {"all", *kinds}
    for one in results:
        expected = [compute_metrics(list(made), pairs)[one.subset]["response"] for made in plans[one.name]]
        assert one.seeds == pytest.approx(expected) and one.value == pytest.approx(np.mean(expected))
    guided = next(one for one in results if (one.name, one.subset) == ("guided", "all"))
    assert guided.interval[0] > 0.2 and guided.p_value < 0.05


def driven(number: int, metres: float, *events: DrivenEvent) -> DrivenScene:
    motion = [[0.0, 0.0, 0.0, 5.0]] * 40
    return DrivenScene(f"s{number}", metres, 80.0, metres, 0.0, list(events), "time", 0.05, motion, [None])


def write_drives(folder, scenes: list[DrivenScene]) -> None:
    folder.mkdir(parents=True)
    for number, scene in enumerate(scenes):
        record = {"scene": asdict(scene)}
        (folder / f"scene-{number:05d}.json").write_text(json.dumps(record))


def test_drives_are_averaged_over_the_seeds_and_paired_by_scene(tmp_path):
    hit = DrivenEvent("pedestrian", True, 3.0, 0.0, 0.0)
    heads = {
        "plain-0": [driven(number, 40.0 + number, hit) for number in range(5)],
        "plain-1": [driven(number, 40.0 + number, hit) for number in range(5)],
        "guided-0": [driven(number, 60.0 + 2 * number) for number in range(5)],
        "guided-1": [driven(number, 40.0, hit) for number in range(5)],
    }
    for head, scenes in heads.items():
        write_drives(tmp_path / "drives" / head.split("-")[0] / head, scenes)
    assert len(read_all_records(tmp_path / "drives" / "plain" / "plain-0")) == 5
    runs = PlannerRuns(tmp_path, {"plain": ["plain-0", "plain-1"], "guided": ["guided-0", "guided-1"]})
    results = compare_drives(runs, tmp_path / "drives", "all", "plain")
    found = {(one.measure.name, one.name): one for one in results}
    score = found["driving score", "guided"]
    values = {name: [score_of_scene(scene)["driving_score"] for scene in scenes] for name, scenes in heads.items()}
    assert score.seeds == pytest.approx([np.mean(values["guided-0"]), np.mean(values["guided-1"])])
    expected = np.mean([values["guided-0"], values["guided-1"]], axis=0) - values["plain-0"]
    reach = t_quantile(4) * expected.std(ddof=1) / np.sqrt(5)
    assert score.difference == pytest.approx(expected.mean())
    assert score.interval == pytest.approx([expected.mean() - reach, expected.mean() + reach])
    assert found["with a pedestrian hit (%)", "plain"].value == 100.0
    assert found["scenes with a hit (%)", "guided"].difference == pytest.approx(-50.0)
    # with one seed it is the comparison that drive.py prints
    alone = PlannerRuns(tmp_path, {"plain": ["plain-0"], "guided": ["guided-0"]})
    one = next(one for one in compare_drives(alone, tmp_path / "drives", "all", "plain") if one.difference is not None)
    assert one.interval == pytest.approx(compare(heads["guided-0"], heads["plain-0"])["driving_score"]["ci"])
    next((tmp_path / "drives" / "guided" / "guided-1").glob("*.json")).unlink()
    with pytest.raises(ValueError, match="guided-1 has 4 scenes"):
        compare_drives(runs, tmp_path / "drives", "all", "plain")


def test_the_picture_has_a_panel_per_measure(tmp_path):
    tokens = [f"s{number}" for number in range(6)]
    values = {"plain": [[1.0] * 6], "guided": [[2.0, 1.5, 2.5, 2.0, 1.0, 2.2]]}
    small = compare_means(Measure("m"), values, tokens, "plain")
    draw_comparisons(small, "plain", tmp_path / "one.png")
    many = [one for number in range(5) for one in compare_means(Measure(f"m{number}"), values, tokens, "plain")]
    draw_comparisons(many, "plain", tmp_path / "five.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "five.png") as five:
        assert (five.width, five.height) == (4 * one.width, 2 * one.height)
    assert compare_means(Measure("m"), {"plain": [[]]}, [], "plain") == []
