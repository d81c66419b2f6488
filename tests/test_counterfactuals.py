"""Counterfactual pairs: what stays the same in both versions of a moment, what differs, the folder of rows, and
planners measured on it."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from data_scripts import make_counterfactuals
from data_scripts.schema import load_scenes, validate_row
from data_scripts.world.agents import Agent
from data_scripts.world.cameras import CAMERAS
from data_scripts.world.counterfactuals import (
    KINDS,
    MIN_DIFFERENCE,
    scene_at,
    scene_pairs,
    without,
)
from data_scripts.world.expert import copied, driven_on
from data_scripts.world.ground import GroundMap
from data_scripts.world.nuscenes import token
from data_scripts.world.render import Renderer
from data_scripts.world.road import GO_STRAIGHT, Leg, Path, lane_offset
from data_scripts.world.simulation import MATTERS_FOR, SAMPLES_PER_SCENE, STEPS_PER_SAMPLE
from data_scripts.world.traffic import EGO_FRONT, Traffic
from modeling_smoldriver import SmolDriverForTrajectoryPrediction
from recipes import build_planner, evaluate_pairs
from recipes.evaluate_pairs import BASELINES
from recipes.planning.scored_frames import ego_input
from recipes.training.manifest import TrainingManifest
from recipes.training.planning_data import PlanningSource

SEED, SCENES, WIDTH, HEIGHT = 1000, 6, 96, 54
SAME = ("timestamp", "ego_history", "ego_history_mask", "speed", "command", "command_source", "scene_token")


@pytest.fixture(scope="module")
def renderer():
    return Renderer(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def pairs(renderer):
    found = [pair for index in range(SCENES) for pair in scene_pairs(SEED, index, renderer).pairs]
    assert {pair.kind for pair in found} == set(KINDS)
    return found


def options(folder, scenes=2):
    size = f"{WIDTH}x{HEIGHT}"
    return ["--output-dir", str(folder), "--scenes", str(scenes), "--seed", str(SEED), "--image-size", size]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "made"
    make_counterfactuals.main(options(folder))
    return folder


def rendered(renderer, pair, version):
    """Six pictures as arrays, and what they show."""
    scene = scene_at(pair.scene, pair.t, getattr(pair, version).traffic)
    images, look = renderer.render(scene, GroundMap(pair.scene), pair.t)
    return [np.asarray(image).astype(int) for image in images], look


def test_the_version_as_it_was_is_the_world_s_own(pairs, renderer):
    compared = 0
    for pair in pairs:
        scene, t = pair.scene, pair.t
        images, _ = renderer.render(scene, GroundMap(scene), t)
        own, _ = rendered(renderer, pair, "as_it_was")
        assert all(np.array_equal(image, mine) for image, mine in zip(images, own, strict=True))
        # a light that is switched keeps its colour instead of following its cycle
        if pair.kind != "light switched" and t + MATTERS_FOR < SAMPLES_PER_SCENE:
            egos = [(ego.x, ego.y, ego.yaw, ego.speed) for ego in pair.as_it_was.egos]
            np.testing.assert_array_equal(egos, scene.ego[t : t + MATTERS_FOR + 1])
            np.testing.assert_array_equal(pair.as_it_was.poses, scene.poses[t : t + MATTERS_FOR + 1])
            compared += 1
    assert compared >= 5


def changed_boxes(pair, camera, looks):
    """The silhouettes, in pixels, of what is in one version alone, or of the lights where those were switched."""
    for shown, lacking in (looks, looks[::-1]):
        for source, box in zip(shown.sources, shown.bounds[camera] * WIDTH / 1600, strict=True):
            switched = source.what == "light" and pair.kind == "light switched"
            alone = pair.kind != "light switched" and len(shown.sources) > len(lacking.sources)
            alone = alone and not (lacking.bounds[camera] * WIDTH / 1600 == box).all(axis=1).any()
            if (switched or alone) and not np.isnan(box).any():
                yield box


def test_pictures_differ_only_where_the_change_is_seen(pairs, renderer):
    for pair in pairs:
        before, look = rendered(renderer, pair, "as_it_was")
        after, other = rendered(renderer, pair, "changed")
        for camera, (one, two) in enumerate(zip(before, after, strict=True)):
            differs = (one != two).any(axis=2)
            assert differs.any() or CAMERAS[camera] != "CAM_FRONT", pair.kind
            for x0, y0, x1, y1 in changed_boxes(pair, camera, (look, other)):
                margin = 3 + 0.6 * (x1 - x0)  # its shadow on the road, or the halo of a lamp
                rows = slice(max(int(y0 - margin), 0), int(y1 + margin))
                differs[rows, max(int(x0 - margin), 0) : int(x1 + margin)] = False
            assert not differs.any(), (pair.kind, CAMERAS[camera])


def test_both_labels_are_the_expert_s_and_differ_in_the_direction_of_the_change(pairs):
    for pair in pairs:
        assert abs(pair.wanted) >= MIN_DIFFERENCE
        assert pair.wanted < 0 or pair.kind != "stopped car put"
        assert pair.wanted > 0 or "removed" not in pair.kind
        assert pair.as_it_was.egos[0] == pair.changed.egos[0]
        for version in (pair.as_it_was, pair.changed):
            again = driven_on(version.traffic)  # the traffic of the pair was not moved on
            assert again.egos == version.egos and np.array_equal(again.poses, version.poses)


def test_a_light_is_red_in_one_version_and_green_in_the_other_and_keeps_its_colour(pairs):
    for pair in (pair for pair in pairs if pair.kind == "light switched"):
        ego = pair.as_it_was.egos[0]
        light = [leg.stop_line > ego.s + EGO_FRONT for leg in pair.as_it_was.traffic.light_legs].index(True)
        was, now = ([colours[light] for colours in lights_ahead(v.traffic)] for v in (pair.as_it_was, pair.changed))
        assert {*was, *now} == {"red", "green"} and len(set(was)) == len(set(now)) == 1
        assert now[0] == ("green" if pair.wanted > 0 else "red")


def lights_ahead(traffic):
    """The colours of the lights at each step of the 3 s that the expert is driven on."""
    ahead = copied(traffic)
    for _ in range(MATTERS_FOR * STEPS_PER_SAMPLE):
        yield ahead.lights()
        ahead.step()


def test_who_is_removed_takes_its_trailer_and_leaves_the_others_theirs():
    x = np.arange(-60.0, 400.0, 0.5)

    def pulling(s):
        truck = Agent("truck", "tan", s, lane_offset(0), direction=1, speed=5.0, wanted_speed=7.0)
        return truck, Agent("trailer", "gray", s - 8.0, lane_offset(0), direction=1, speed=5.0)

    agents = [*pulling(40.0), *pulling(90.0)]
    agents[1].towed_by, agents[3].towed_by = 0, 2
    traffic = Traffic(Path(x, 0 * x, 0 * x), [Leg(0.0, 300.0, GO_STRAIGHT, 0, 0)], agents, 8.0, [], ego_speed=8.0)
    left = without(traffic, {0, 1})
    assert [a.kind for a in left.agents] == ["truck", "trailer"] and left.agents[1].towed_by == 0
    left.step()
    assert left.agents[0].s > 90.0 and agents[2].s == 90.0 and traffic.agents[3].towed_by == 2


def test_rows_of_a_pair_share_what_is_not_seen(folder):
    pairs = pq.read_table(folder / make_counterfactuals.PAIRS_FILE).to_pylist()
    rows = {row["frame_token"]: row for row in load_scenes(folder, "test")}
    assert len(rows) == 2 * len(pairs) >= 4
    for pair in pairs:
        one, two = rows[pair["as_it_was"]], rows[pair["changed"]]
        assert {name: one[name] for name in SAME} == {name: two[name] for name in SAME}
        assert one["scene_token"] == pair["scene_token"]
        assert all(one["ego_future_mask"] + two["ego_future_mask"] + one["ego_history_mask"])
        assert one["CAM_FRONT"].size == (WIDTH, HEIGHT) and one["CAM_FRONT"] != two["CAM_FRONT"]
        lengths = [np.hypot(*np.diff([[0, 0, 0], *row["ego_future"]], axis=0)[:, :2].T).sum() for row in (one, two)]
        assert lengths[1] - lengths[0] == pytest.approx(pair["wanted"], abs=1e-9)
        assert {a["category"] for a in one["agents"]} and all(len(a["poses"]) == 7 for a in one["agents"])
    for row in pq.read_table(folder / "test" / "shard-00000.parquet").to_pylist():
        validate_row(row)


def test_the_columns_are_those_of_a_prepared_world(folder, pairs):
    pair = pairs[0]
    rows = {row["frame_token"]: row for row in load_scenes(folder, "test")}
    row = rows[make_counterfactuals.frame_token(pair, "as_it_was")]
    ego, t = pair.scene.ego, pair.t
    assert row["scene_token"] == token("scene", SEED, pair.scene.index)
    before = ego[t - 1, :2] - ego[t, :2]
    assert row["speed"] == pytest.approx(np.hypot(*before) / 0.5)
    c, s = np.cos(ego[t, 2]), np.sin(ego[t, 2])
    last = row["ego_history"][-1]
    assert last[:2] == pytest.approx([c * before[0] + s * before[1], c * before[1] - s * before[0]])
    assert last[2] == pytest.approx(ego[t - 1, 2] - ego[t, 2])


def test_a_stopped_run_resumes_with_the_same_bytes_and_other_options_are_refused(folder, tmp_path, capsys):
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    (again / "test" / "shard-00000.parquet").unlink()
    (again / make_counterfactuals.PAIRS_FILE).unlink()
    make_counterfactuals.main(options(again))
    for path in sorted(folder.rglob("*.parquet")):
        assert (again / path.relative_to(folder)).read_bytes() == path.read_bytes()
    manifest = json.loads((again / "manifest.json").read_text())
    assert (
        manifest["complete"] and sum(manifest["report"]["pairs"].values()) * 2 == manifest["splits"]["test"]["frames"]
    )
    with pytest.raises(SystemExit, match="begun with another options"):
        make_counterfactuals.main(options(again, scenes=1))


def test_pairs_to_learn_from_are_the_same_rows_and_are_not_measured_on(folder, planner, tmp_path, monkeypatch):
    taught = tmp_path / "taught"
    make_counterfactuals.main([*options(taught, scenes=2), "--split", "train"])
    for path in folder.glob("test/*.parquet"):
        assert (taught / "train" / path.name).read_bytes() == path.read_bytes()
    loaded = SmolDriverForTrajectoryPrediction.from_pretrained(planner)
    rows = PlanningSource.read(str(taught), "train", loaded).rows
    assert len(rows) == len(load_scenes(folder, "test"))
    with pytest.raises(SystemExit, match="split 'test' of .* is empty; these have rows: train"):
        out = tmp_path / "measured"
        command(monkeypatch, evaluate_pairs, "--pairs", taught, "--planners", planner, "--output-dir", out)


def command(monkeypatch, recipe, *arguments):
    monkeypatch.setattr("sys.argv", [recipe.__name__, *map(str, arguments)])
    recipe.main()


@pytest.fixture(scope="module")
def planner(model_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("planner") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        sizes = ("--visual-tokens", 4, "--hidden-size", 32, "--num-attention-heads", 4)
        command(patch, build_planner, "--model", model_folder, "--output-dir", out, *sizes)
    return out


def test_planners_are_measured_beside_those_that_see_nothing(folder, planner, tmp_path, monkeypatch, capsys):
    out = tmp_path / "measured"
    arguments = ("--pairs", folder, "--planners", planner, "--output-dir", out)
    command(monkeypatch, evaluate_pairs, *arguments)
    printed = capsys.readouterr().out
    scores = json.loads((out / "scores.json").read_text())["scores"]
    assert set(scores) == {"expert", "tiny", "tiny, without pictures", *BASELINES}
    assert scores["expert"]["all"]["response"] == 1.0 and scores["tiny"]["all"]["response"] != 0.0
    for name in ("tiny, without pictures", *BASELINES):
        assert all(scores[name][kind]["response"] == 0.0 for kind in scores[name] if kind != "info")
        assert f"| {name} | 0.00" in printed
    assert (out / "pairs.png").read_bytes()[:4] == b"\x89PNG"

    plans = pq.read_table(out / "plans" / "tiny.parquet").to_pylist()
    rows = {row["frame_token"]: row for row in load_scenes(folder, "test")}
    row = rows[plans[0]["frame_token"]]
    own = SmolDriverForTrajectoryPrediction.from_pretrained(planner).eval()
    wanted = own.plan({camera: row[camera] for camera in CAMERAS}, row["command"], row["speed"])
    np.testing.assert_allclose(plans[0]["waypoints"], wanted, atol=1e-5)

    def planned_again(*arguments):
        raise AssertionError("finished plans are kept")

    monkeypatch.setattr(SmolDriverForTrajectoryPrediction, "plan", planned_again)
    command(monkeypatch, evaluate_pairs, *arguments)
    assert json.loads((out / "scores.json").read_text())["scores"] == scores
    weights = load_file(planner / "model.safetensors")
    other = shutil.copytree(planner, tmp_path / "tiny")  # the same name, other weights
    save_file(weights | {"way.bias": weights["way.bias"] + 1}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(AssertionError, match="finished plans are kept"):
        command(monkeypatch, evaluate_pairs, "--pairs", folder, "--planners", other, "--output-dir", out)


def test_planners_that_cannot_be_measured_are_named(folder, planner, tmp_path, monkeypatch):
    def refusal(*planners, pairs=folder):
        with pytest.raises(SystemExit) as ended:
            command(monkeypatch, evaluate_pairs, "--pairs", pairs, "--planners", *planners, "--output-dir", tmp_path)
        return str(ended.value)

    assert "holds no planner" in refusal(tmp_path / "nothing")
    assert "the name 'tiny'" in refusal(planner, planner)
    scene = pq.read_table(folder / make_counterfactuals.PAIRS_FILE)["scene_token"][0].as_py()
    learned = shutil.copytree(planner, tmp_path / "learned")
    TrainingManifest(base=None, scene_tokens=[scene]).write(learned)
    assert f"training scenes of {learned}" in refusal(learned)
    lacking = shutil.copytree(folder, tmp_path / "lacking")
    (lacking / make_counterfactuals.PAIRS_FILE).unlink()
    assert "has no pairs.parquet" in refusal(planner, pairs=lacking)


def test_baselines_go_where_speed_and_turn_rate_lead():
    history = [[0.0, 0.0, 0.0]] * 3 + [[-2.0, 0.0, -0.1]]  # turns by 0.2 radians per second
    ego = ego_input({"command": None, "speed": 4.0, "ego_history": history, "ego_history_mask": [True] * 4})
    assert BASELINES["constant velocity"](ego)[-1] == pytest.approx([12.0, 0.0])
    turning = BASELINES["constant turn rate"](ego)
    assert turning[-1] == pytest.approx([20 * np.sin(0.6), 20 * (1 - np.cos(0.6))])
    assert not BASELINES["stands still"](ego).any()
    unknown = {"command": None, "speed": 0.0, "ego_history": [[0.0, 0.0, 0.0]] * 4, "ego_history_mask": [False] * 4}
    assert not BASELINES["constant turn rate"](ego_input(unknown)).any()
