"""The response to counterfactual pairs: the expert, ego status, hand-made cases, intervals, bad input."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import HIDE_PROJECT

from recipes.metrics.counterfactual.pair_scores import CounterfactualPair, compute_metrics, lengths

METRICS = Path(__file__).resolve().parents[1] / "recipes" / "metrics"
KINDS = ("light switched", "stopped car put")


def straight(length: float) -> list:
    return [[length * step / 6, 0.0] for step in range(1, 7)]


def pair(number: int, first: float, second: float, kind=KINDS[0], scene: str | None = None) -> CounterfactualPair:
    return CounterfactualPair(f"pair {number}", scene or f"scene {number}", kind, [straight(first), straight(second)])


def random_pairs(count: int = 30) -> list[CounterfactualPair]:
    generator = np.random.default_rng(3)
    return [
        CounterfactualPair(
            f"pair {n}",
            f"scene {n // 2}",
            KINDS[n % 2],
            np.cumsum(generator.uniform(0, 4, (2, 6, 2)), axis=1),
        )
        for n in range(count)
    ]


def test_the_expert_scores_one():
    pairs = random_pairs()
    result = compute_metrics([pair.expert for pair in pairs], pairs)
    for name in ("all", *KINDS):
        assert result[name]["response"] == result[name]["right_direction"] == 1.0
        assert result[name]["response_ci"] == [1.0, 1.0]


def test_a_function_of_the_ego_s_status_scores_exactly_nothing():
    pairs, generator = random_pairs(), np.random.default_rng(0)
    blind = [[plan, plan] for plan in generator.normal(size=(len(pairs), 6, 2))]
    result = compute_metrics(blind, pairs)
    for name in ("all", *KINDS):
        assert result[name]["response"] == result[name]["right_direction"] == 0.0
        assert result[name]["response_ci"] == [0.0, 0.0]


def test_a_response_is_the_share_of_the_wanted_change_cut_at_both_ends():
    pairs = [pair(0, 10, 4), pair(1, 2, 10), pair(2, 10, 4, KINDS[1]), pair(3, 10, 4, KINDS[1]), pair(4, 2, 10)]
    plans = [(9, 6), (3, 5), (9, 0), (5, 14), (3, 3.05)]
    result = compute_metrics([[straight(a), straight(b)] for a, b in plans], pairs)
    expected = [3 / 6, 2 / 8, 1.0, -1.0, 0.05 / 8]
    assert result["all"]["response"] == pytest.approx(np.mean(expected))
    assert result["all"]["right_direction"] == pytest.approx(3 / 5)  # 0.05 m is no response
    assert result[KINDS[0]]["response"] == pytest.approx(np.mean([expected[0], expected[1], expected[4]]))
    assert result[KINDS[1]]["response"] == pytest.approx(0.0)
    assert (result["all"]["count"], result["all"]["scenes"], result[KINDS[1]]["count"]) == (5, 5, 2)
    assert result[KINDS[1]]["response_ci"] is None  # two scenes


def test_a_plan_s_length_is_its_way_and_not_how_far_it_ends():
    square = np.array([[3.0, 0], [3, 4], [0, 4], [0, 0], [0, 0], [0, 0]])
    assert lengths(square) == 14.0
    assert lengths(np.stack([square, 2 * square])).tolist() == [14.0, 28.0]


def test_the_interval_counts_scenes_and_not_pairs():
    generator, pairs, plans = np.random.default_rng(1), [], []
    for scene in range(40):
        end = 10 - 6 * generator.uniform(0, 1)
        for copy in range(3):
            pairs.append(pair(3 * scene + copy, 10, 4, scene=f"scene {scene}"))
            plans.append([straight(10), straight(end)])
    three_each = compute_metrics(plans, pairs)["all"]
    one_each = compute_metrics(plans[::3], pairs[::3])["all"]
    assert three_each["response_ci"] == pytest.approx(one_each["response_ci"])
    low, high = one_each["response_ci"]
    assert 0 < low < one_each["response"] < high < 1 and (three_each["count"], three_each["scenes"]) == (120, 40)


@pytest.mark.parametrize(
    "plans, pairs, said",
    [
        ([], [], "no pairs"),
        ([[straight(1)] * 2], [], "1 pairs of plans for 0 pairs"),
        ([[straight(1)]], [pair(0, 1, 9)], r"pair 0: plans has shape \(1, 6, 2\)"),
        ([[straight(1), straight(float("nan"))]], [pair(0, 1, 9)], "pair 0: plans is not finite"),
        ([[straight(1)] * 2] * 2, [pair(0, 1, 9)] * 2, "pair 0 is duplicated"),
        ([[straight(1)] * 2], [pair(0, 9, 9)], "pair 0: the expert drives 9.0 m in both"),
    ],
)
def test_bad_input_is_named(plans, pairs, said):
    with pytest.raises(ValueError, match=said):
        compute_metrics(plans, pairs)


def test_intervals_are_those_of_the_other_metrics():
    own, other = (METRICS / name / "scene_intervals.py" for name in ("counterfactual", "drivelm"))
    assert own.read_bytes() == other.read_bytes()


def test_evaluate_loads_it_where_the_project_is_not_installed(tmp_path):
    pairs = random_pairs(6)
    plans = [np.asarray(pair.expert).tolist() for pair in pairs]
    references = [{**dataclasses.asdict(pair), "expert": np.asarray(pair.expert).tolist()} for pair in pairs]
    (tmp_path / "job.json").write_text(json.dumps({"predictions": plans, "references": references}))
    code = f"""
import json
import evaluate

metric = evaluate.load({str(METRICS / "counterfactual")!r})
print("RESULT" + json.dumps(metric.compute(**json.load(open("job.json")))))
"""
    done = subprocess.run(
        [sys.executable, "-c", HIDE_PROJECT + code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.rpartition("RESULT")[2]) == json.loads(json.dumps(compute_metrics(plans, pairs)))
