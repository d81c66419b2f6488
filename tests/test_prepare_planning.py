"""Rows for a planner: motion worked out by hand, borders that hold, a world's own states, and what is refused."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from datasets import Features
from drivelm_source import encode, file_bytes, noise, question, stored_rows
from fakes import dataset, frame

from data_scripts import prepare_planning
from data_scripts.prepare_planning import planning_columns
from data_scripts.schema import (
    CAMERAS,
    PLANNING_FEATURES,
    PLANNING_ROW,
    SCENARIOS,
    SCENE_FEATURES,
    load_scenes,
    read_manifest,
    scene_table,
    validate_row,
)
from data_scripts.shards import open_shard
from data_scripts.sources.nuscenes_tables import ROUTE_FILE, NuScenesTables
from data_scripts.synthesize_world import synthesize
from data_scripts.world import scenarios as world_scenarios
from data_scripts.world.nuscenes import token
from data_scripts.world.simulation import SAMPLES_PER_SCENE, simulate_scene
from modeling_smoldriver.collator_smoldriver import SmolDriverCollator, check_questions, group_questions
from recipes.evaluation.asking import choose_questions
from recipes.evaluation.contestants import Settings
from recipes.metrics.planning.plan_scores import compute_metrics
from recipes.metrics.planning.planning_frames import Agent, PlanningFrame

pytestmark = pytest.mark.usefixtures("own_datasets_cache")

QUARTER = math.pi / 2
START = 1_500_000_000_000_000  # microseconds
# x, y, yaw of scene "a": two metres every half second to the north, then, from the fourth moment on, to the west
PATH_A = [(10.0, 20.0 + 2 * k, QUARTER) for k in range(5)] + [(10.0 - 2 * k, 28.0, 2 * QUARTER) for k in range(1, 5)]
PATH_B = [(1000.0, 500.0 + k, 0.0) for k in range(3)]  # the scene that follows at once, in time and in the tables
CAR = {0: (10.0, 30.0, QUARTER), 1: (10.0, 31.0, QUARTER), 3: (7.0, 33.0, 2 * QUARTER)}  # not annotated at moment 2
EARLY = 100_000  # microseconds that a-1 comes before its half second


def quaternion(yaw):
    return [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]


def where(pose, height=0.0):
    return {"translation": [pose[0], pose[1], height], "rotation": quaternion(pose[2])}


def tables() -> dict[str, list[dict]]:
    """nuScenes' tables of two scenes at 2 Hz, each key frame with LIDAR_TOP and six cameras."""
    channels = ("LIDAR_TOP", *CAMERAS)
    made = {
        "sensor": [{"token": f"sensor-{channel}", "channel": channel} for channel in channels],
        "calibrated_sensor": [{"token": channel, "sensor_token": f"sensor-{channel}"} for channel in channels],
        "category": [{"token": "kind-car", "name": "vehicle.car"}],
        "instance": [{"token": "car", "category_token": "kind-car"}],
        **{name: [] for name in ("scene", "sample", "sample_data", "ego_pose", "sample_annotation")},
    }
    begun = START
    for scene, path in (("a", PATH_A), ("b", PATH_B)):
        made["scene"].append({"token": scene, "first_sample_token": f"{scene}-0"})
        for k, pose in enumerate(path):
            sample = f"{scene}-{k}"
            time = begun + 500_000 * k - (EARLY if sample == "a-1" else 0)
            later = f"{scene}-{k + 1}" if k + 1 < len(path) else ""
            made["sample"].append({"token": sample, "scene_token": scene, "timestamp": time, "next": later})
            for channel in channels:
                of = f"{sample}-{channel}"
                aside = 0.0 if channel == "LIDAR_TOP" else 0.3  # where the ego was when the camera exposed
                made["ego_pose"].append({"token": of, "timestamp": time, **where((pose[0] + aside, pose[1], pose[2]))})
                row = {"sample_token": sample, "ego_pose_token": of, "calibrated_sensor_token": channel}
                file = f"samples/{channel}/{sample}.jpg"
                made["sample_data"].append({**row, "is_key_frame": True, "filename": file})
                made["sample_data"].append(
                    {**row, "is_key_frame": False, "filename": file.replace("samples", "sweeps")}
                )
        begun = time + 500_000
    for k, pose in CAR.items():
        row = {"sample_token": f"a-{k}", "instance_token": "car", "size": [1.9, 4.6, 1.7]}
        made["sample_annotation"].append({**row, **where(pose, height=0.8)})
    return made


def write_tables(folder, made, version="v1.0-mini"):
    (folder / version).mkdir(parents=True, exist_ok=True)
    for name, rows in made.items():
        (folder / version / f"{name}.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def nuscenes(tmp_path):
    """A nuScenes folder with tables and pictures, and DriveLM's questions about one of its frames."""
    folder = write_tables(tmp_path / "nuscenes", tables())
    for camera in CAMERAS:
        (folder / "samples" / camera).mkdir(parents=True)
        for number, sample in enumerate(f"{scene}-{k}" for scene, count in (("a", 9), ("b", 3)) for k in range(count)):
            (folder / "samples" / camera / f"{sample}.jpg").write_bytes(encode(noise(number)))
    paths = {camera: f"../nuscenes/samples/{camera}/a-2.jpg" for camera in CAMERAS}
    asked = {"QA": {"perception": [question(), question("Where is <c1,CAM_FRONT,1,2>?")]}, "image_paths": paths}
    drivelm = {"a": {"scene_description": "To the north, then west.", "key_frames": {"a-2": asked}}}
    (tmp_path / "drivelm.json").write_text(json.dumps(drivelm))
    return folder


def motion(folder, sample):
    return NuScenesTables(folder).motion(sample)


def prepare(folder, *options, out="out"):
    output = folder.parent / out
    prepare_planning.main(
        ["--nuscenes", str(folder), "--output-dir", str(output), "--workers", "2", "--split", "train", *options]
    )
    return read_manifest(output)


def refusal(folder, *options, out="out"):
    with pytest.raises(SystemExit) as caught:
        prepare(folder, *options, out=out)
    message = caught.value.code
    assert isinstance(message, str) and message.startswith("prepare_planning: ") and "\n" not in message
    return message


def close(poses, expected):
    np.testing.assert_allclose(np.array(poses, dtype=float), np.array(expected, dtype=float), atol=1e-9)


# Motion


def test_future_history_and_speed_are_those_worked_out_by_hand(nuscenes):
    now = motion(nuscenes, "a-0")
    close(now.future, [(2, 0, 0), (4, 0, 0), (6, 0, 0), (8, 0, 0), (8, 2, QUARTER), (8, 4, QUARTER)])
    assert now.future_mask == [True] * 6
    assert now.speed is None and now.history_mask == [False] * 4 and now.timestamp == START
    close(now.history, [(0, 0, 0)] * 4)

    now = motion(nuscenes, "a-2")
    close(now.future, [(2, 0, 0), (4, 0, 0), (4, 2, QUARTER), (4, 4, QUARTER), (4, 6, QUARTER), (4, 8, QUARTER)])
    close(now.history, [(0, 0, 0), (0, 0, 0), (-4, 0, 0), (-2, 0, 0)])
    assert now.history_mask == [False, False, True, True]
    assert now.speed == pytest.approx(2 / 0.6)  # the moment before came 0.1 s early
    assert motion(nuscenes, "a-1").speed == pytest.approx(2 / 0.4)

    now = motion(nuscenes, "a-6")  # to the west: what lies north is to the right, what came before behind
    close(now.history, [(-4, 4, -QUARTER), (-4, 2, -QUARTER), (-4, 0, -QUARTER), (-2, 0, 0)])
    close(now.future, [(2, 0, 0), (4, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0)])


def test_a_scene_ends_at_its_border_and_never_runs_into_the_next(nuscenes):
    for k in range(9):
        now = motion(nuscenes, f"a-{k}")
        assert now.future_mask == [k + step <= 8 for step in range(1, 7)]
        assert now.history_mask == [k - step >= 0 for step in (4, 3, 2, 1)]
        for pose, known in zip(now.history + now.future, now.history_mask + now.future_mask, strict=True):
            assert math.hypot(*pose[:2]) < 30 and (known or pose == (0.0, 0.0, 0.0))
    first = motion(nuscenes, "b-0")
    assert (first.speed, first.history_mask, first.future_mask) == (None, [False] * 4, [True, True] + [False] * 4)
    close(first.future[:2], [(0, 1, 0), (0, 2, 0)])


def test_agents_move_in_the_frame_of_the_key_frame_and_are_masked_where_they_are_not_annotated(nuscenes):
    (car,) = motion(nuscenes, "a-0").agents
    assert (car.category, car.size) == ("vehicle.car", (1.9, 4.6, 1.7))  # width, length, height
    assert car.mask == [True, True, False, True, False, False, False]
    expected = [(10, 0, 0), (11, 0, 0), (0, 0, 0), (13, 3, QUARTER), *[(0, 0, 0)] * 3]
    close(car.poses, expected)
    assert motion(nuscenes, "a-2").agents == [] and motion(nuscenes, "b-0").agents == []


def test_without_a_lidar_the_front_cameras_pose_counts(nuscenes):
    made = tables()
    made["sample_data"] = [row for row in made["sample_data"] if row["calibrated_sensor_token"] != "LIDAR_TOP"]
    for row in made["ego_pose"]:
        if row["token"] == "a-1-CAM_FRONT":
            row["translation"][0] += 0.5
    now = motion(write_tables(nuscenes, made), "a-0")
    close(now.future[:2], [(2, -0.5, 0), (4, 0, 0)])


def test_rotation_is_three_dimensional_and_only_then_flattened(nuscenes):
    """On a slope of 0.1 rad two metres to the north are 2 cos(0.1) metres up the slope's own x axis."""
    made, slope = tables(), 0.1
    pitch, yaw = (math.cos(slope / 2), math.sin(slope / 2)), quaternion(QUARTER)
    turned = [yaw[0] * pitch[0], -yaw[3] * pitch[1], yaw[0] * pitch[1], yaw[3] * pitch[0]]  # yaw, then pitch
    for row in made["ego_pose"]:
        if row["token"] == "a-0-LIDAR_TOP":
            row["rotation"] = turned
    now = motion(write_tables(nuscenes, made), "a-0")
    close(now.future[0][:2], (2 * math.cos(slope), 0))


def test_the_future_gives_a_command_where_there_is_no_route(nuscenes):
    def command(k):
        now = motion(nuscenes, f"a-{k}")
        return now.command, now.command_source

    assert command(0) == command(2) == ("turn left", "future")  # 4 and 8 m to the left after 3 s
    assert command(3) == (None, None)  # the scene ends before
    made = tables()
    for name, side in (("a-6", 1.99), ("a-7", -1.99), ("a-8", -2.01)):  # 3 s after a-0, a-1 and a-2
        for row in made["ego_pose"]:
            if row["token"] == f"{name}-LIDAR_TOP":
                row["translation"][0] = 10.0 - side
    write_tables(nuscenes, made)
    assert [command(k) for k in range(3)] == [
        (name, "future") for name in ("go straight", "go straight", "turn right")
    ]


def test_the_route_comes_before_the_future(nuscenes):
    (nuscenes / "v1.0-mini" / ROUTE_FILE).write_text(json.dumps({"a-0": "change lane right", "a-3": "go straight"}))
    now = {k: motion(nuscenes, f"a-{k}") for k in (0, 2, 3)}
    assert (now[0].command, now[0].command_source) == ("change lane right", "route")
    assert (now[2].command, now[2].command_source) == ("turn left", "future")
    assert (now[3].command, now[3].command_source) == ("go straight", "route")
    said = {"a-0": {"command": "turn right", "scenario": "cut_in"}, "a-3": "go straight"}
    (nuscenes / "v1.0-mini" / ROUTE_FILE).write_text(json.dumps(said))
    now = {k: motion(nuscenes, f"a-{k}") for k in (0, 3)}
    assert (now[0].command, now[0].scenario) == ("turn right", "cut_in")
    assert (now[3].command, now[3].scenario) == ("go straight", None)
    (nuscenes / "v1.0-mini" / ROUTE_FILE).write_text(json.dumps({"a-0": "fly"}))
    assert "route.json: sample a-0 has the command 'fly', not turn left" in refusal(nuscenes)


# A synthetic world


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """The same two scenes with key frames at 2 Hz and every two seconds."""
    root = tmp_path_factory.mktemp("worlds")
    for every in (1, 4):
        synthesize(root / f"every-{every}", 2, 11, (64, 36), every, 1)
    return root


@pytest.mark.parametrize("every", [1, 4])
def test_motion_in_a_world_is_that_of_its_simulation(every, worlds):
    """Also where key frames are rare: the poses between them are in the tables."""
    found = NuScenesTables(worlds / f"every-{every}")
    agents = 0
    for index in range(2):
        scene = simulate_scene(11, index)
        ids = {token("instance", 11, index, n): n for n in range(len(scene.agents))}
        for t in range(0, SAMPLES_PER_SCENE, every):
            now = found.motion(token("sample", 11, index, t))
            here = scene.ego[t]
            for columns, mask, steps in (
                (now.history, now.history_mask, range(-4, 0)),
                (now.future, now.future_mask, range(1, 7)),
            ):
                assert mask == [0 <= t + step < SAMPLES_PER_SCENE for step in steps]
                for pose, known, step in zip(columns, mask, steps, strict=True):
                    if known:
                        assert_near(pose, in_frame(here, scene.ego[t + step]))
            if t:
                speed = math.hypot(*(here[:2] - scene.ego[t - 1, :2])) / 0.5
                assert now.speed == pytest.approx(speed, abs=1e-3)
            for instance, agent in zip(found.annotations[token("sample", 11, index, t)], now.agents, strict=True):
                n = ids.get(instance)
                if n is None:
                    continue
                for step in np.flatnonzero(agent.mask):
                    assert step % every == 0
                    assert_near(agent.poses[step], in_frame(here, scene.poses[t + step, n]))
                    agents += 1
    assert agents > 100


def in_frame(ego, pose):
    dx, dy = pose[:2] - ego[:2]
    cos, sin = math.cos(ego[2]), math.sin(ego[2])
    return cos * dx + sin * dy, cos * dy - sin * dx, pose[2] - ego[2]


def assert_near(pose, expected):
    assert math.hypot(pose[0] - expected[0], pose[1] - expected[1]) <= 1e-3
    assert abs((pose[2] - expected[2] + math.pi) % (2 * math.pi) - math.pi) <= 1e-3


def test_a_world_becomes_rows_with_its_questions(worlds, tmp_path):
    world = worlds / "every-4"
    out = tmp_path / "rows"
    prepare_planning.main(
        [
            *("--nuscenes", str(world), "--json", str(world / "drivelm.json"), "--output-dir", str(out)),
            *("--workers", "1", "--split", "train"),
        ]
    )
    rows = load_scenes(out, "train")
    assert len(rows) == 20 and set(rows.features) == set(PLANNING_ROW) and all(rows["qa"])
    found = NuScenesTables(world)
    for row in stored_rows(out):
        columns = planning_columns(found.motion(row["frame_token"]))
        assert {name: row[name] for name in PLANNING_FEATURES} == json.loads(json.dumps(columns))


# Rows


def test_every_key_frame_becomes_a_row_with_questions_where_drivelm_asks(nuscenes, capsys):
    manifest = prepare(nuscenes, "--json", str(nuscenes.parent / "drivelm.json"), "--object-tags", "drop")
    assert manifest["splits"]["train"] == {"scenes": 2, "frames": 12, "questions": 1, "shards": 1}
    assert manifest["report"]["dropped questions"] == {"names an object tag": 1}
    rows = load_scenes(nuscenes.parent / "out", "train")
    assert rows["frame_token"] == [f"a-{k}" for k in range(9)] + [f"b-{k}" for k in range(3)]
    by_token = {row["frame_token"]: row for row in rows}
    assert [len(row["qa"]) for row in rows] == [0, 0, 1, *[0] * 9]
    assert by_token["a-2"]["scene_description"] == "To the north, then west."
    assert by_token["a-2"]["command"] == "turn left" and by_token["a-2"]["command_source"] == "future"
    close(by_token["a-2"]["ego_future"][2], (4, 2, QUARTER))
    assert by_token["b-0"]["speed"] is None and by_token["b-0"]["command"] is None
    assert by_token["a-0"]["agents"][0]["size"] == [1.9, 4.6, 1.7]
    assert by_token["a-0"]["CAM_BACK"].size == (64, 36)


def test_preparation_is_deterministic_and_resumes(nuscenes):
    prepare(nuscenes, "--shard-size", "5", out="one")
    prepare(nuscenes, "--shard-size", "5", "--workers", "1", out="two")
    one, two = (file_bytes(nuscenes.parent / name) for name in ("one", "two"))
    assert one == two and len(one) == 4
    kept = nuscenes.parent / "two" / "train" / "shard-00000.parquet"
    made_at = kept.stat().st_mtime_ns
    (nuscenes.parent / "two" / "train" / "shard-00001.parquet").unlink()
    manifest = read_manifest(nuscenes.parent / "two")
    (nuscenes.parent / "two" / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    prepare(nuscenes, "--shard-size", "5", out="two")
    assert file_bytes(nuscenes.parent / "two") == one and kept.stat().st_mtime_ns == made_at


def test_a_folder_begun_with_other_tables_or_another_route_is_refused(nuscenes):
    prepare(nuscenes)
    (nuscenes / "v1.0-mini" / ROUTE_FILE).write_text(json.dumps({"a-0": "turn right"}))
    assert "was begun with another source" in refusal(nuscenes)
    prepare(nuscenes, out="new")
    made = tables()
    made["category"][0]["name"] = "vehicle.truck"
    write_tables(nuscenes, made)
    assert "was begun with another source" in refusal(nuscenes, out="new")


# Bad input


def spoiled(nuscenes, table, change):
    made = tables()
    made[table] = change(made[table])
    return write_tables(nuscenes, made)


def test_missing_cut_or_foreign_tables_are_one_clear_line(nuscenes):
    path = nuscenes / "v1.0-mini" / "sample_annotation.json"
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert "sample_annotation.json cannot be read" in refusal(nuscenes) and "cut short" in refusal(nuscenes)
    path.write_text('{"a": 1}')
    assert "sample_annotation.json holds a dict, not a table's list of rows" in refusal(nuscenes)
    path.unlink()
    assert "sample_annotation.json is missing: copy the whole folder" in refusal(nuscenes)
    path.write_text(whole)
    write_tables(nuscenes, tables(), "v1.0-trainval")
    assert "the tables of v1.0-mini, v1.0-trainval: name one with --nuscenes-version" in refusal(nuscenes)
    assert "has no tables v1.0-test; it has v1.0-mini, v1.0-trainval" in refusal(
        nuscenes, "--nuscenes-version", "v1.0-test"
    )
    assert prepare(nuscenes, "--nuscenes-version", "v1.0-trainval")["splits"]["train"]["frames"] == 12
    assert "there is no folder v1.0-*" in refusal(nuscenes / "samples")


@pytest.mark.parametrize(
    "table, change, message",
    [
        ("sample", lambda rows: [{**row, "next": "gone"} for row in rows], "no field or token 'gone'"),
        ("ego_pose", lambda rows: [{"token": row["token"]} for row in rows], "no field or token 'timestamp'"),
        ("ego_pose", lambda rows: rows[1:], "no field or token 'a-0-LIDAR_TOP'"),
        ("sample_annotation", lambda rows: [{**row, "instance_token": "x"} for row in rows], "no field or token 'x'"),
        (
            "sample",
            lambda rows: [{**row, "timestamp": 1} for row in rows],
            "a-1 in scene a is of another scene or not",
        ),
        ("sample", lambda rows: [{**row, "next": row["token"]} for row in rows], "a-0 in scene a is of another scene"),
        ("sample_data", lambda rows: rows[14:], "sample a-0 has no pose of LIDAR_TOP or CAM_FRONT"),
        ("sample", lambda rows: [1, 2], "are not nuScenes v1.0"),
    ],
)
def test_tables_that_do_not_fit_together_are_refused_by_name(table, change, message, nuscenes):
    assert message in refusal(spoiled(nuscenes, table, change))
    assert not (nuscenes.parent / "out").exists()


def test_wrong_folders_and_questions_of_other_frames_are_refused_before_anything_is_written(nuscenes, capsys):
    drivelm = nuscenes.parent / "drivelm.json"
    content = json.loads(drivelm.read_text())
    content["c"] = {"key_frames": {"c-0": content["a"]["key_frames"]["a-2"]}}
    drivelm.write_text(json.dumps(content))
    prepare(nuscenes, "--json", str(drivelm), out="some")
    assert "1 of the 2 frames of --json are not in" in capsys.readouterr().out
    drivelm.write_text(json.dumps({"c": content["c"]}))
    assert "no frame of --json is in" in refusal(nuscenes, "--json", str(drivelm))
    (nuscenes / "samples").rename(nuscenes / "pictures")
    assert "no picture of the tables lies under" in refusal(nuscenes)
    assert not (nuscenes.parent / "out").exists()


def planning_row(nuscenes, sample="a-0", **changes):
    row = {**frame(0), **planning_columns(motion(nuscenes, sample)), **changes}
    return row | {camera: {"bytes": encode(row[camera]), "path": None} for camera in CAMERAS}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"speed": -1.0}, "speed must be a finite number of m/s, 0 or more, or None, not -1.0"),
        ({"speed": math.nan}, "speed must be a finite number"),
        ({"command": "fly", "command_source": "route"}, "the command 'fly' from 'route' must be one of turn left"),
        ({"command": "turn left", "command_source": None}, "the command 'turn left' from None"),
        ({"command": "turn left", "command_source": "guess"}, "from 'guess' must be"),
        ({"ego_future": [[0.0, 0.0, 0.0]] * 5}, "ego_future must have 6 poses and as many masks"),
        ({"ego_history": None}, "ego_history must have 4 poses"),
        ({"ego_history_mask": [1, 1, 1, 1]}, "ego_history has a mask that is not true or false"),
        ({"ego_future": [[0.0, math.inf, 0.0]] * 6}, "ego_future has a pose that is not three finite numbers"),
        ({"timestamp": 1.5}, "timestamp must be whole microseconds, not 1.5"),
        ({"agents": None}, "agents must be a list"),
        ({"scenario": "flood"}, "the scenario 'flood' must be None or"),
    ],
)
def test_rows_that_are_not_a_planners_are_refused_by_value(changes, message, nuscenes):
    validate_row(planning_row(nuscenes))
    with pytest.raises(ValueError, match=message):
        validate_row(planning_row(nuscenes, **changes))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": (0.0, 4.6, 1.7)}, r"has the size \(0.0, 4.6, 1.7\): give width, length and height"),
        ({"mask": [True] * 6}, "an agent of category 'vehicle.car' must have 7 poses and as many masks"),
    ],
)
def test_agents_without_a_size_or_a_future_are_refused(change, message, nuscenes):
    row = planning_row(nuscenes)
    row["agents"] = [{**row["agents"][0], **change}]
    with pytest.raises(ValueError, match=message):
        validate_row(row)


# Beside the other recipes


def test_rows_are_what_the_planning_metrics_score(nuscenes):
    """Standing still is 8 m off after 2 s; driving on straight after 2 s hits the car where the row says it is."""
    prepare(nuscenes)
    rows = {row["frame_token"]: row for row in stored_rows(nuscenes.parent / "out")}
    row = rows["a-0"]
    frame = PlanningFrame(
        row["frame_token"],
        row["scene_token"],
        row["speed"],
        row["ego_future"],
        row["ego_future_mask"],
        [Agent(**agent) for agent in row["agents"]],
    )
    ways = {
        "expert": [pose[:2] for pose in row["ego_future"]],
        "stands": [[0.0, 0.0]] * 6,
        "into the car": [[10.0, 0.0]] * 6,
    }
    scores = {name: compute_metrics([way], [frame])["all"]["ours"] for name, way in ways.items()}
    assert [scores[name]["l2_2s"] for name in ways] == [0.0, 8.0, 2.0]
    assert [scores[name]["collision_1s"] for name in ways] == [0.0, 0.0, 1.0]


def test_rows_without_planning_columns_still_load(tmp_path, nuscenes):
    row = {name: value for name, value in planning_row(nuscenes).items() if name in SCENE_FEATURES}
    with open_shard(tmp_path / "old" / "train" / "shard-00000.parquet") as shard:
        shard.write_table(scene_table([row]))
    counts = {"train": {"scenes": 1, "frames": 1, "questions": 5, "shards": 1}}
    (tmp_path / "old" / "manifest.json").write_text(json.dumps({"complete": True, "splits": counts}))
    (loaded,) = load_scenes(tmp_path / "old", "train")
    assert set(loaded) == set(SCENE_FEATURES) and loaded["frame_token"] == "frame0"
    with pytest.raises(ValueError, match="a scene row has the columns"):
        validate_row({**row, "speed": 1.0})


def test_rows_of_the_format_without_scenarios_are_refused_with_the_command_that_remakes_them(tmp_path, nuscenes):
    row = planning_row(nuscenes)
    del row["scenario"]
    old = Features({name: feature for name, feature in PLANNING_ROW.items() if name != "scenario"})
    with open_shard(tmp_path / "old" / "train" / "shard-00000.parquet", old) as shard:
        shard.write_table(pa.Table.from_pylist([row], schema=old.arrow_schema))
    counts = {"train": {"scenes": 1, "frames": 1, "questions": 5, "shards": 1}}
    (tmp_path / "old" / "manifest.json").write_text(json.dumps({"complete": True, "splits": counts}))
    with pytest.raises(ValueError, match="without the column 'scenario': delete .*/old and run python .*--output-dir"):
        load_scenes(tmp_path / "old", "train")


def test_scenarios_have_one_list():
    assert SCENARIOS == world_scenarios.SCENARIOS


@pytest.mark.parametrize("streaming", [False, True])
def test_training_on_questions_takes_planning_rows_and_leaves_out_frames_without(streaming, nuscenes, processor):
    prepare(nuscenes, "--json", str(nuscenes.parent / "drivelm.json"))
    scenes = load_scenes(nuscenes.parent / "out", "train", streaming=streaming)
    check_questions(scenes)
    rows = list(group_questions(scenes, 8, seed=0))
    assert [row["frame_token"] for row in rows] == ["a-2"] and len(rows[0]["qa"]) == 2
    batch = SmolDriverCollator(processor, scene_packing=True)(rows)
    assert batch["frame_tokens"] == ["a-2"] and batch["pixel_values"].shape[:2] == (1, 6)


def test_questions_are_trained_on_and_scored_only_where_there_are_some(nuscenes):
    prepare(nuscenes, "--json", str(nuscenes.parent / "drivelm.json"), out="asked")
    prepare(nuscenes, out="unasked")
    settings = Settings(model="m", name="m", scenes="s", split="train")
    asked = choose_questions(load_scenes(nuscenes.parent / "asked", "train"), settings)
    assert asked.texts["frame_token"] == ["a-2"] and asked.chosen == [[0, 1]]
    unasked = load_scenes(nuscenes.parent / "unasked", "train")
    with pytest.raises(ValueError, match="no frame in split 'train' of s has a question"):
        choose_questions(unasked, settings)
    with pytest.raises(ValueError, match="no frame has a question: prepare the scenes with DriveLM's JSON"):
        group_questions(unasked, 8, seed=0)
    with pytest.raises(ValueError, match="no frame has a question"):
        group_questions(dataset([frame(0, [])]), 8, seed=0)
