"""Plans and their scores: controls that know less, a file that is scored twice, a run that resumes, a card or none."""

import json
import math
import shutil
import sys
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fakes import command_line, picture, scene_row
from hub_server import TOKEN, Hub
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.utils import _http
from safetensors.torch import load_file, save_file

from data_scripts.schema import CAMERAS, PLANNING_ROW, SCENE_FEATURES, scene_table, shard_path, write_manifest
from data_scripts.shards import open_shard
from recipes import build_planner, evaluate_planner, push_to_hub, score_plans
from recipes.evaluation.predictions import content_digest
from recipes.metrics.planning.plan_scores import paired_differences
from recipes.metrics.planning.protocols import frame_statistics
from recipes.planning import plan_heads, plan_making
from recipes.planning.blind_planner import BlindTraining, features_tensor, train_blind_planner
from recipes.planning.ego_rules import (
    acceleration,
    constant_turn_rate,
    constant_velocity,
    speed_features,
    status_features,
    turn_rate,
)
from recipes.planning.plan_files import CONTROLS, Plans, read_plan_metrics, read_plans, write_plans
from recipes.planning.plan_scoring import score
from recipes.planning.plan_tables import tables
from recipes.planning.scored_frames import (
    NO_COMMAND,
    NO_FUTURE,
    PART_OF_FUTURE,
    SOME_AGENT_MOMENTS,
    UNKNOWN_SPEED,
    WORLD_EGO,
    EgoInput,
    load_frames,
)
from recipes.training.manifest import TrainingManifest

TINY = {
    "visual_tokens": 4,
    "hidden_size": 32,
    "num_decoder_layers": 0,
    "num_attention_heads": 4,
    "num_proposals": 1,
    "ego_inputs": ["speed"],
}
REPO = "user/planner"


def pose(speed, rate, seconds):
    """Where an ego of constant speed (m/s) and turn rate (rad/s) is."""
    if not rate:
        return [speed * seconds, 0.0, 0.0]
    radius, turned = speed / rate, rate * seconds
    return [radius * math.sin(turned), radius * (1 - math.cos(turned)), turned]


def planning_row(number, speed=4.0, rate=0.0, **changes):
    """A frame of a drive of constant speed and turn rate; a car that stands 30 m ahead."""
    car = {"category": "vehicle.car", "size": [1.9, 4.6, 1.7], "poses": [[30.0, 0.0, 0.0]] * 7, "mask": [True] * 7}
    row = {
        **scene_row(number, 0),
        "timestamp": 500_000 * number,
        "ego_history": [pose(speed, rate, -seconds) for seconds in (2.0, 1.5, 1.0, 0.5)],
        "ego_history_mask": [True] * 4,
        "ego_future": [pose(speed, rate, seconds) for seconds in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)],
        "ego_future_mask": [True] * 6,
        "speed": speed,
        "command": "turn left" if rate > 0 else "turn right" if rate < 0 else "go straight",
        "command_source": "route",
        "scenario": None,
        "agents": [car],
    }
    return {**row, **changes}


def drives(first, count):
    """Frames of drives, two in a scene: straight, to the left, to the right, at speeds from 3 to 6 m/s."""
    rates = (0.0, 0.3, -0.3)
    return [planning_row(number, 3.0 + number % 4, rates[number // 2 % 3]) for number in range(first, first + count)]


def write_rows(folder, tables_of="route.json", features=PLANNING_ROW, **splits):
    counts = {}
    for split, rows in splits.items():
        with open_shard(shard_path(folder, split, 0), features) as shard:
            shard.write_table(scene_table(rows, features))
        scenes = len({row["scene_token"] for row in rows})
        counts[split] = {"scenes": scenes, "frames": len(rows), "shards": 1, "questions": 0}
    source = {"tables sha256": {tables_of: "0"}}
    write_manifest(folder, {"complete": True, "source": source, "options": {}, "splits": counts, "report": {}})
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """24 training frames; 12 test frames, some of which lack a speed, a future, a command or agents."""
    test = drives(100, 12)
    test[0] |= {"speed": None, "ego_history_mask": [False] * 4}
    test[3] |= {"ego_future_mask": [False] * 6, "ego_future": [[0.0] * 3] * 6}
    test[5] |= {"ego_future_mask": [True] * 2 + [False] * 4}
    test[7] |= {"command": None, "command_source": None}
    test[9]["agents"][0] |= {"mask": [True] * 2 + [False] * 5}
    return write_rows(tmp_path_factory.mktemp("rows") / "planning", train=drives(0, 24), test=test)


@pytest.fixture(scope="module")
def planner(model_folder, tmp_path_factory):
    """The folder of a planner with a fresh head, as a training on the first scene would leave it."""
    folder = tmp_path_factory.mktemp("planner") / "planner"
    torch.manual_seed(0)
    made, processor = build_planner.make_planner(model_folder, TINY)
    with torch.no_grad():
        made.way.weight.mul_(4.0)  # so that plans differ visibly
    made.save_pretrained(folder)
    processor.save_pretrained(folder)
    TrainingManifest(base=None, machine="CPU", scene_tokens=["scene0"], steps=7, seconds=90).write(folder)
    return folder


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    monkeypatch.setattr(plan_making, "BlindTraining", partial(BlindTraining, steps=30, hidden_size=16))


def evaluate(folder, planner, rows, *options):
    options = command_line({"planner": planner, "scenes": rows, "output-dir": folder}, *map(str, options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate_planner.py", *options])
        evaluate_planner.main()
    return folder


def rescore(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["score_plans.py", *map(str, arguments)])
        score_plans.main()


def refusal(call, *arguments):
    with pytest.raises(SystemExit) as caught:
        call(*arguments)
    assert isinstance(caught.value.code, str) and "\n" not in caught.value.code
    return caught.value.code


@pytest.fixture(scope="module")
def evaluated(planner, rows, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_making, "BlindTraining", partial(BlindTraining, steps=30, hidden_size=16))
        return evaluate(tmp_path_factory.mktemp("evaluation") / "eval", planner, rows)


# Controls


def test_constant_velocity_and_turn_rate_are_exact_on_their_own_drives():
    rows = [planning_row(0, 5.0), planning_row(1, 5.0, 0.3)]
    straight, turning = [EgoInput(row["command"], row["speed"], row["ego_history"]) for row in rows]
    ways = [np.array(row["ego_future"])[:, :2] for row in rows]
    np.testing.assert_allclose(constant_velocity(straight), ways[0], atol=1e-9)
    np.testing.assert_allclose(constant_turn_rate(straight), ways[0], atol=1e-9)
    np.testing.assert_allclose(constant_turn_rate(turning), ways[1], atol=1e-9)
    assert np.linalg.norm(constant_velocity(turning)[-1] - ways[1][-1]) > 5
    unknown = EgoInput(None, 5.0, [None] * 4)
    assert turn_rate(unknown) is None and acceleration(unknown) is None
    np.testing.assert_array_equal(constant_turn_rate(unknown), constant_velocity(unknown))


def test_acceleration_is_that_of_the_last_two_half_seconds():
    assert acceleration(EgoInput(None, 5.0, [None, None, [-4.5, 0.0, 0.0], [-2.5, 0.0, 0.0]])) == pytest.approx(2.0)


def test_features_tell_unknown_values_from_zero():
    known, unknown = EgoInput("turn left", 0.0, [[0.0] * 3] * 4), EgoInput(None, 0.0, [None] * 4)
    for features in (speed_features, status_features):
        assert len(features(known)) == len(features(unknown)) and features(known) != features(unknown)
    assert sum(speed_features(unknown)) == sum(status_features(unknown)) == 0


def test_blind_planners_learn_the_drives_that_their_inputs_tell(tmp_path):
    """A turn's command comes late: the history knows the turn, speed and command do not."""
    rows = [row | {"command": "go straight"} for row in drives(0, 24)]
    train = load_frames(write_rows(tmp_path / "late", train=rows), "train")
    future = np.array([frame.future for frame in train.frames])[..., :2]
    options = BlindTraining(steps=200, hidden_size=32, batch_size=24, learning_rate=1e-2)
    errors, made = {}, []
    for features in (speed_features, status_features, status_features):
        planner = train_blind_planner("blind", features, train, options)
        with torch.no_grad():
            made.append(planner(features_tensor(features, train.inputs)).numpy())
        errors[features] = np.linalg.norm(made[-1] - future, axis=-1).mean()
    np.testing.assert_array_equal(made[1], made[2])
    assert errors[status_features] < 0.3 < 1.0 < errors[speed_features]


# A whole evaluation


@pytest.mark.contract
def test_expert_is_the_floor_and_each_control_plans_something_of_its_own(evaluated):
    plans, metrics = read_plans(evaluated), read_plan_metrics(evaluated)
    assert list(plans.plans) == ["planner", *CONTROLS] and list(metrics.results) == ["planner", "expert", *CONTROLS]
    made = list(plans.plans.values())
    assert all(not np.array_equal(one, other) for at, one in enumerate(made) for other in made[:at])
    for protocol, scores in metrics.results["expert"]["all"].items():
        if isinstance(scores, dict):
            assert scores["l2_avg"] == 0.0, protocol
    assert not plans.plans["stands_still"].any()
    assert metrics.results["constant_turn_rate"]["all"]["ours"]["l2_avg"] < 1e-9
    assert metrics.results["constant_velocity"]["all"]["ours"]["l2_avg"] > 0.5
    assert list(metrics.differences) == list(CONTROLS)
    planner = metrics.results["planner"]["all"]["ours"]["l2_avg"]
    stands = metrics.results["stands_still"]["all"]["ours"]["l2_avg"]
    difference = metrics.differences["stands_still"]["all"]["ours"]["l2_avg"]
    assert difference["difference"] == pytest.approx(planner - stands)
    assert difference["ci"][0] < difference["difference"] < difference["ci"][1]


def test_what_frames_lack_is_counted_and_named(evaluated):
    metrics = read_plan_metrics(evaluated)
    counted = {
        what: [token.removeprefix("frame") for token in tokens] for what, tokens in metrics.record.counted.items()
    }
    assert counted == {
        UNKNOWN_SPEED: ["100"],
        NO_FUTURE: ["103"],
        PART_OF_FUTURE: ["105"],
        NO_COMMAND: ["107"],
        SOME_AGENT_MOMENTS: ["109"],
    }
    everything = metrics.results["planner"]["all"]
    assert everything["count"] == 11 and everything["scenes"] == 6
    assert everything["ours"]["l2_3s_count"] == 9
    assert metrics.record.ego == WORLD_EGO and metrics.record.command_sources == {"route": 10}
    text = (evaluated / "tables.md").read_text()
    assert f"1 frames: {UNKNOWN_SPEED} (such as frame100)." in text


def test_every_table_names_its_frames_and_scenes_and_shows_everyone(evaluated):
    metrics = read_plan_metrics(evaluated)
    made = tables(metrics.results, metrics.differences)
    assert [table.title for table in made] == [
        "Ours", "Subsets", "L2 in every protocol", "Hits in every protocol", "Differences"
    ]  # fmt: skip
    for table in made:
        assert [line[0] for line in table.lines[-2:]] == ["frames", "scenes"]
        assert {len(line) for line in table.lines} == {len(table.heads)}
        assert {line[0] for line in table.lines} >= CONTROLS.keys()
    assert made[2].heads == ["", "ours", "uniad", "stp3", "bevplanner", "sparsedrive", "paradrive"]
    html = (evaluated / "report.html").read_text()
    assert all(name in html for name in (*CONTROLS, "expert", "data:image/png;base64,"))
    assert (evaluated / "figures" / "birds_eye.png").stat().st_size > 10_000


def test_heads_plan_from_kept_tokens_what_they_plan_from_pictures(evaluated, planner, rows, tmp_path, capsys):
    other = shutil.copytree(planner, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file(weights | {"way.bias": weights["way.bias"] + 1.0}, other / "model.safetensors", {"format": "pt"})
    options = ["--planners", planner, other, "--scenes", rows, "--feature-cache", tmp_path / "frames"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, ["plan_heads.py", *options, "--output-dir", tmp_path / "plans"])))
        plan_heads.main()
        assert len(list((tmp_path / "frames").iterdir())) == 1  # one vision model
        assert capsys.readouterr().out.count("11 plans for") == 2
        plan_heads.main()
        assert "plans for" not in capsys.readouterr().out  # kept
        save_file(weights, other / "model.safetensors", {"format": "pt"})
        plan_heads.main()
        assert capsys.readouterr().out.count("other: 11 plans for") == 1
    expected = read_plans(evaluated)
    for name in (planner.name, "other"):
        made = read_plans(tmp_path / "plans" / name / rows.name)
        assert (made.frame_tokens, made.scene_tokens) == (expected.frame_tokens, expected.scene_tokens)
        assert np.allclose(made.plans[name], expected.plans["planner"], atol=0.1)  # tokens are rounded to bfloat16
        assert np.ptp(made.plans[name]) > 1.0


def test_plans_scored_again_give_the_same_file(evaluated, tmp_path):
    again = shutil.copytree(evaluated, tmp_path / "again")
    before = (again / "metrics.json").read_bytes()
    (again / "metrics.json").unlink()
    rescore("--plans", again)
    assert (again / "metrics.json").read_bytes() == before
    assert (again / "tables.md").read_bytes() == (evaluated / "tables.md").read_bytes()


def test_a_stopped_evaluation_resumes_and_ends_as_if_it_had_not_been_stopped(
    evaluated, planner, rows, tmp_path, monkeypatch
):
    monkeypatch.setattr(plan_making, "CHUNK", 4)
    controls = ("--controls", "constant_velocity", "no_command", "blank_images")
    whole = evaluate(tmp_path / "whole", planner, rows, *controls)
    plan, calls = plan_making.PlannerPlans.__call__, []

    def counted(self, numbers):
        calls.append((self.control, numbers))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return plan(self, numbers)

    monkeypatch.setattr(plan_making.PlannerPlans, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "resumed", planner, rows, *controls)
    assert not (tmp_path / "resumed" / "plans.parquet").exists()
    resumed = evaluate(tmp_path / "resumed", planner, rows, *controls)
    assert len(calls) == 5 + (3 * 3 - 4)  # three chunks of the planner and of two controls, of which four were done
    assert (resumed / "plans.parquet").read_bytes() == (whole / "plans.parquet").read_bytes()
    same = [read_plan_metrics(folder) for folder in (resumed, whole)]
    assert same[0] == same[1] and not list(resumed.glob(".parts-*"))
    np.testing.assert_allclose(read_plans(whole).plans["planner"], read_plans(evaluated).plans["planner"], atol=1e-5)


def test_a_better_plan_has_a_difference_below_zero_that_is_the_mean_over_frames(rows):
    frames = load_frames(rows, "train").frames
    future = np.array([frame.future for frame in frames])[..., :2]
    near, far = (frame_statistics(future + [0.0, shift], frames) for shift in (0.5, 1.5))
    found = paired_differences(near, far, frames)["all"]
    assert found["ours"]["l2_avg"]["difference"] == pytest.approx(-1.0)
    assert found["ours"]["l2_avg"]["ci"][1] < 0 and found["ours"]["l2_avg"]["p_value"] < 0.01
    swapped = paired_differences(far, near, frames)["all"]
    assert swapped["uniad"]["l2_3s"]["difference"] == pytest.approx(1.0)


def test_some_frames_are_evenly_spread_and_a_single_control_is_enough(planner, rows, tmp_path):
    folder = evaluate(tmp_path / "few", planner, rows, "--max-frames", 4, "--controls", "constant_velocity")
    plans = read_plans(folder)
    assert list(plans.plans) == ["planner", "constant_velocity"] and len(plans.frame_tokens) == 4
    assert plans.frame_tokens[0] == "frame101" and plans.frame_tokens[-1] > "frame108"


def test_controls_that_the_rows_do_not_allow_are_named(planner, tmp_path):
    only = write_rows(tmp_path / "rows", test=drives(100, 2), tables_of="sample.json")
    folder = evaluate(tmp_path / "eval", planner, only)
    record = read_plan_metrics(folder).record
    assert set(record.left_out_controls) == {"blind_speed", "blind_ego_status", "other_scene_images"}
    assert "one scene only" in record.left_out_controls["other_scene_images"]
    assert record.ego.length == 4.084  # nuScenes' car


# Several planners


def test_evaluations_of_the_same_frames_stand_side_by_side(evaluated, planner, rows, tmp_path, capsys):
    other = evaluate(
        tmp_path / "other", planner, rows, "--name", "another", "--controls", "constant_velocity", "no_command"
    )
    plans = read_plans(other)
    plans.plans["another"] += 0.5
    plans.plans["no_command"] += 0.5
    write_plans(other, plans)
    rescore("--plans", evaluated, other, "--output-dir", tmp_path / "both")
    content = json.loads((tmp_path / "both" / "comparison.json").read_text())
    expected = ["planner", "another", "expert", *CONTROLS]
    assert sorted(content["results"]) == sorted([*expected, "another: no_command"])
    assert list(content["differences"])[0] == "another"
    assert content["results"]["planner"] == json.loads((evaluated / "metrics.json").read_text())["results"]["planner"]
    assert "another: no_command" in capsys.readouterr().out
    few = evaluate(tmp_path / "few", planner, rows, "--name", "few", "--max-frames", 3, "--controls")
    message = refusal(rescore, "--plans", evaluated, few, "--output-dir", tmp_path / "both")
    assert "few has no plan for 8 frames of the 11 to be scored" in message
    assert "a folder is named twice" in refusal(rescore, "--plans", few, few, "--output-dir", tmp_path / "both")
    assert "is an evaluation itself" in refusal(rescore, "--plans", evaluated, few, "--output-dir", other)


# Bad input


def test_bad_input_is_one_line(model_folder, planner, rows, tmp_path):
    output = tmp_path / "eval"
    assert "is a 'smoldriver', not a planner: build one" in refusal(evaluate, output, model_folder, rows)
    assert "there is no model folder" in refusal(evaluate, output, tmp_path / "gone", rows)
    asked = write_rows(tmp_path / "asked", features=SCENE_FEATURES, test=[scene_row(0, 2)])
    assert "holds rows without ego motion: prepare it with" in refusal(evaluate, output, planner, asked)
    assert "split 'eval' of" in refusal(evaluate, output, planner, rows, "--split", "eval")
    unknown = write_rows(tmp_path / "unknown", test=[planning_row(0, speed=4.0) | {"speed": None}])
    assert "no frame in split 'test' of" in refusal(evaluate, output, planner, unknown)
    leaking = write_rows(tmp_path / "leaking", test=drives(0, 4))
    assert "are training scenes of" in refusal(evaluate, output, planner, leaking)
    other = shutil.copytree(planner, tmp_path / "four waypoints")
    (other / "config.json").write_text(
        json.dumps(json.loads((other / "config.json").read_text()) | {"num_waypoints": 4})
    )
    assert "plans 4 waypoints of 0.5 s: the metrics score 6" in refusal(evaluate, output, other, rows)
    assert not output.exists()


def test_damaged_plans_are_refused_by_frame(evaluated, tmp_path):
    folder = shutil.copytree(evaluated, tmp_path / "damaged")
    plans, table = read_plans(evaluated), pq.read_table(evaluated / "plans.parquet")

    def refused(changed):
        pq.write_table(changed, folder / "plans.parquet")
        return refusal(rescore, "--plans", folder)

    assert "has the format None, not 'plans 1'" in refused(table.replace_schema_metadata(None))
    assert "frame frame101 of planner is duplicated" in refused(table.take([0, *range(len(table))]))
    assert "have other frames, such as frame101" in refused(table.slice(1))
    broken = Plans(plans.record, plans.frame_tokens, plans.scene_tokens, {"planner": plans.plans["planner"].copy()})
    broken.plans["planner"][2, 1, 0] = math.nan
    write_plans(folder, broken)
    assert "the plan of planner for frame frame103 is" in refusal(rescore, "--plans", folder)
    (folder / "plans.parquet").unlink()
    assert "has no plans.parquet" in refusal(rescore, "--plans", folder)
    assert "there is no folder" in refusal(rescore, "--plans", tmp_path / "gone")


def test_a_plan_that_is_not_finite_names_its_frame(planner, rows):
    made = plan_making.load_planner(str(planner))
    with torch.no_grad():
        made.way.bias[3] = math.nan
    frames = load_frames(rows, "test")
    pictures = [dict.fromkeys(CAMERAS) | {"CAM_FRONT": picture(0)}] * 12
    plans = plan_making.PlannerPlans(made, None, pictures, frames)
    with pytest.raises(ValueError, match="frame frame102: the plan is not finite"):
        plans([1])


def test_a_planner_is_not_scored_on_rows_of_other_cameras(planner, rows):
    """It would plan as if those pictures were missing."""
    made = plan_making.load_planner(str(planner))
    plans = plan_making.PlannerPlans(made, None, [{"CAM_FRONT": picture(0)}] * 12, load_frames(rows, "test"))
    with pytest.raises(ValueError, match="the rows have no camera CAM_FRONT_LEFT, CAM_FRONT_RIGHT, CAM_BACK_LEFT"):
        plans([1])


def test_scores_of_no_planner_are_not_read_as_a_planners(evaluated, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(ValueError, match="has format 2, a planner's has 'plans 1'"):
        read_plan_metrics(tmp_path)


def test_planners_of_one_name_are_told_apart_by_their_folder(evaluated, rows):
    plans = read_plans(evaluated)
    with pytest.raises(ValueError, match="planners with the same name: planner .planner., planner .planner."):
        score([plans, plans], load_frames(rows, "test"))


# The card and the push


def push(planner, evaluation, *more):
    options = {"model": planner, "evaluation": evaluation, "repo-id": REPO, "data": "synthetic"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["push_to_hub.py", *command_line(options, *more)])
        push_to_hub.main()


@pytest.mark.contract
def test_a_planner_is_pushed_in_one_commit_with_a_card_that_shows_its_controls(evaluated, planner, monkeypatch):
    with Hub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        if hasattr(_http, "reset_sessions"):
            _http.reset_sessions()
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(push_to_hub, "HfApi", lambda: HfApi(hub.endpoint, token=TOKEN))
        push(planner, evaluated)
        files = hub.files(REPO)
    assert {"config.json", "processor_config.json", "model.safetensors", "planning_smoldriver.py"} < files.keys()
    assert {"figures/birds_eye.png", "report.html", "training_manifest.json", "README.md"} < files.keys()
    assert not [name for name in files if name.startswith(("tokenizer", "metrics", "plans"))]
    card = files["README.md"].decode()
    results = json.loads((evaluated / "metrics.json").read_text())["results"]
    found = {entry.metric_type: entry for entry in ModelCard(card).data.eval_results}
    l2 = found["ours_l2_avg"]
    assert l2.metric_value == round(results["planner"]["all"]["ours"]["l2_avg"], 4)
    assert set(l2.metric_args["controls"]) == {"expert", *CONTROLS} and len(l2.metric_args["interval_95"]) == 2
    assert {"ours_collision_3s", "uniad_l2_avg", "stp3_l2_avg"} < found.keys()
    assert "it must not drive a car" in card and "**Not clearly better than these controls**" in card
    assert "`constant_turn_rate` (+" in card and "| 1 | random weights | 1 | 7 | 2 min (90 s) | CPU |" in card
    assert str(planner.parent) not in card and str(evaluated.parent) not in card


def changed_weights(planner, evaluation):
    weights = load_file(planner / "model.safetensors")
    save_file({**weights, "way.bias": weights["way.bias"] + 1}, planner / "model.safetensors", {"format": "pt"})
    return "with other weights than those in .*: run recipes/evaluate_planner.py --planner .* first"


def changed_config(planner, evaluation):
    config = json.loads((planner / "config.json").read_text())
    (planner / "config.json").write_text(json.dumps(config | {"status_dropout": 0.1}))
    return "config.json of .* changed after the evaluation .*: run recipes/evaluate_planner.py --planner .* again"


def edited_scores(planner, evaluation):
    content = json.loads((evaluation / "metrics.json").read_text())
    content["results"]["planner"]["all"]["ours"]["l2_avg"] = 0.1
    (evaluation / "metrics.json").write_text(json.dumps(content))
    return "metrics.json was edited after the evaluation"


def change_metrics(evaluation, change):
    content = json.loads((evaluation / "metrics.json").read_text())
    change(content)
    (evaluation / "metrics.json").write_text(json.dumps(content | {"sha256": content_digest(content)}))


def no_control(planner, evaluation):
    def change(content):
        del content["results"]["blind_ego_status"]
        content["record"]["left_out_controls"] = {"blind_ego_status": "no training split"}

    change_metrics(evaluation, change)
    return (
        r"the evaluation lacks blind_ego_status \(blind_ego_status: no training split\): evaluate with all --controls"
    )


def no_interval(planner, evaluation):
    change_metrics(evaluation, lambda content: content["results"]["planner"]["all"]["ours"].update(l2_avg_ci=None))
    return "the headline number ours l2_avg lacks its interval"


def training_frames(planner, evaluation):
    change_metrics(evaluation, lambda content: content["record"]["settings"].update(split="train"))
    return "planned for training frames"


def of_a_language_model(planner, evaluation):
    change_metrics(evaluation, lambda content: content.update(format=2))
    return "has format 2, a planner's has 'plans 1'"


def no_code(planner, evaluation):
    (planner / "planning_processing_smoldriver.py").unlink()
    return "lacks planning_processing_smoldriver.py: it is not a whole model folder"


@pytest.mark.parametrize(
    "spoil",
    [
        changed_weights,
        changed_config,
        edited_scores,
        no_control,
        no_interval,
        training_frames,
        of_a_language_model,
        no_code,
    ],
)
def test_a_planner_is_not_pushed_without_its_evidence(spoil, planner, evaluated, tmp_path):
    model, evaluation = shutil.copytree(planner, tmp_path / "planner"), shutil.copytree(evaluated, tmp_path / "eval")
    push(model, evaluation, "--dry-run")
    expected = spoil(model, evaluation)
    with pytest.raises(SystemExit, match=expected) as caught:
        push(model, evaluation, "--dry-run")
    assert caught.value.code.startswith("push_to_hub: ") and "\n" not in caught.value.code
