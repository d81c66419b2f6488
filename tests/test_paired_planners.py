"""Planners of several seeds are compared by scene: the mean over the seeds, and the interval of the difference."""

import numpy as np
import pytest

from recipes.metrics.planning.planning_frames import PlanningFrame
from recipes.metrics.planning.scene_intervals import t_quantile
from recipes.planning.paired_planners import compare_planners, comparison_table

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
    plain, guided = [one for one in results if (one.subset, one.protocol) == ("all", "ours")]
    assert (plain.name, plain.l2_avg, plain.seeds, plain.interval) == ("plain", pytest.approx(1.5), [1.0, 2.0], None)
    assert guided.l2_avg == pytest.approx(1.2) and guided.seeds == pytest.approx([0.7, 1.7])
    assert guided.difference == pytest.approx(-0.3)
    reach = t_quantile(3) * np.std([0.1, 0.2, 0.3, 0.6], ddof=1) / 2
    assert guided.interval == pytest.approx([-0.3 - reach, -0.3 + reach])
    assert 0.05 < guided.p_value < 0.1
    table = comparison_table(results, "plain")
    assert "minus plain" in table and "-0.30 [-0.64, +0.04]" in table and "0.70 1.70" in table


def test_masked_waypoints_count_in_uniads_protocol_alone():
    frames = [frame(number, mask=(True,) * 4 + (False,) * 2) for number in range(6)]
    results = compare_planners({"plain": [beside(frames, 3.0)]}, frames, "plain")
    found = {one.protocol: one.l2_avg for one in results if one.subset == "all"}
    assert found == {"ours": pytest.approx(float("nan"), nan_ok=True), "uniad": pytest.approx(2.0)}


def test_plans_for_other_frames_are_refused():
    frames = [frame(number) for number in range(2)]
    with pytest.raises(ValueError, match="1 plans for 2 frames"):
        compare_planners({"plain": [beside(frames[:1], 1.0)]}, frames, "plain")
