"""The closed loop: the world under another driver, the judge, the recipe and its records."""

import copy
import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from data_scripts.schema import load_scenes
from data_scripts.synthesize_world import synthesize
from data_scripts.world.cameras import CAMERAS
from data_scripts.world.drive import Diverged, DrivingWorld
from data_scripts.world.nuscenes import image_file
from data_scripts.world.road import GO_STRAIGHT
from data_scripts.world.scenarios import CROSSING_PEDESTRIAN
from data_scripts.world.simulation import SAMPLES_PER_SCENE, simulate_scene
from data_scripts.world.vehicle import MAX_ACCELERATION, MIN_ACCELERATION, Car, PlanFollower
from recipes.build_planner import make_planner
from recipes.drive import main
from recipes.driving.drives import (
    DriveOptions,
    Drives,
    begin_folder,
    drive_all,
    drive_scene,
    read_all_records,
    read_records,
    scenes_in,
    scenes_of,
)
from recipes.driving.judge import SceneJudge, replayed_scores
from recipes.driving.policies import CONSTANT_VELOCITY, EXPERT, LANE_FOLLOWER, PolicySpec, load_policy
from recipes.driving.tables import report
from recipes.metrics.planning.planning_frames import PlanningFrame
from recipes.planning.blind_planner import BlindTraining, StatusPlanner, status_planner_file, train_blind_planner
from recipes.planning.ego_rules import BLIND_STATUS, status_features
from recipes.planning.guard import QUESTIONS
from recipes.planning.scored_frames import EgoInput, ScoredFrames

SEED, SIZE = 9, (96, 54)


@pytest.fixture(scope="module")
def world():
    return DrivingWorld(SIZE)


def driven(world: DrivingWorld, kind: str, index: int, seed: int = SEED):
    """The scene as a policy drove it."""
    world.reset(seed, index)
    world.follow(2.0)
    judge, policy = SceneJudge(world), load_policy(PolicySpec(kind, kind))
    while not world.is_over and judge.ended is None:
        judge.watch(world.step(policy.plan(world.observe())))
    return judge.result([])


@pytest.mark.parametrize("index", range(3))
def test_the_scenes_own_driver_drives_as_in_the_simulated_scene(world, index):
    scene = simulate_scene(SEED, index)
    world.reset(SEED, index)
    for t in range(SAMPLES_PER_SCENE):
        state = world.state()
        for name in ("ego", "ego_s", "ego_d", "poses", "road", "statuses", "light_colours"):
            assert np.array_equal(getattr(state, name)[t], getattr(scene, name)[t]), (name, t)
        world.follow(0.5)


def test_an_ego_that_is_put_where_the_scenes_own_driver_goes_changes_nothing(world):
    """The same loop as `step`: everyone else reacts to the ego that is handed in, which is found on the road."""
    world.reset(SEED, 1)
    for t in range(1, SAMPLES_PER_SCENE):
        for _ in range(2):
            own = copy.deepcopy(world.traffic)
            own.step()
            placed = world._ego_of(world._car_of(own.ego))
            assert np.allclose([placed.s, placed.d, placed.speed], [own.ego.s, own.ego.d, own.ego.speed], atol=1e-6)
            world.traffic.step(replace(placed, s=own.ego.s, d=own.ego.d, speed=own.ego.speed))
        assert np.array_equal(world.traffic.poses(), world.scene.poses[t])


def test_pictures_are_those_of_the_world_for_the_same_state(world, tmp_path):
    synthesize(tmp_path / "world", scenes=1, seed=SEED, size=SIZE, every=8, workers=1)
    world.reset(SEED, 0)
    for t in (0, 16):
        world.follow(t / 2)
        now = world.observe()
        for camera in CAMERAS:
            path = tmp_path / "world" / image_file(SEED, 0, t, camera)
            assert now.jpegs[camera] == path.read_bytes()
            assert np.array_equal(np.asarray(now.pictures[camera]), np.asarray(Image.open(path)))


def test_a_picture_shows_where_the_car_is_driven_to(world):
    world.reset(SEED, 0)
    world.follow(1.0)
    before = copy.deepcopy(world.car)
    standing = world.observe().jpegs
    world.step(np.zeros((6, 2)))
    assert world.car.speed < before.speed
    assert world.observe().jpegs["CAM_FRONT"] != standing["CAM_FRONT"]
    assert np.allclose(world.state().ego[world.sample, :2], (world.car.x, world.car.y))


def test_the_car_follows_a_plan_within_its_bounds():
    radius, speed = 14.0, 5.0
    angles = speed * 0.5 * np.arange(1, 7) / radius
    waypoints = radius * np.stack([np.sin(angles), 1 - np.cos(angles)], axis=-1)
    car = start = Car(10.0, -3.0, 1.0, speed)
    follower = PlanFollower(waypoints, start)
    for _ in range(40):
        car = car.driven(*follower.controls(car))
    turned = car.yaw - start.yaw
    assert turned == pytest.approx(speed * 2.0 / radius, abs=0.05) and car.speed == pytest.approx(speed, abs=0.1)
    dx, dy = car.x - start.x, car.y - start.y
    place = np.array([dx * np.cos(1.0) + dy * np.sin(1.0), dy * np.cos(1.0) - dx * np.sin(1.0)])
    assert np.hypot(*(place - waypoints[3])) < 0.3
    fast, slow = car.driven(50.0, 9.0), car.driven(-50.0, 0.0)
    assert fast.speed - car.speed == pytest.approx(MAX_ACCELERATION * 0.05)
    assert slow.speed - car.speed == pytest.approx(MIN_ACCELERATION * 0.05)
    assert abs(fast.yaw - car.yaw) / (fast.speed * 0.05) < 0.21


def test_a_plan_that_trembles_does_not_move_a_standing_car():
    car = Car(0.0, 0.0, 0.0, 0.0)
    follower = PlanFollower(np.array([[0.02, 0.01], [-0.02, 0.0], [0.01, 0.02], [0, 0], [0.02, 0], [0, 0.0]]), car)
    for _ in range(10):
        car = car.driven(*follower.controls(car))
    assert (car.x, car.y, car.speed) == (0.0, 0.0, 0.0)


def test_the_experts_way_from_a_place_beside_the_lane_leads_back_to_it(world):
    world.reset(SEED, 1)
    world.follow(1.0)
    now = world.observe()
    aside = now.world.way_at([0.5 * k for k in range(1, 7)], 6.0)[:, :2] + (0.0, 1.2)
    for _ in range(2):
        world.step(aside)
    beside = world.traffic.ego.d - world.traffic.ego_at(world.traffic.ego.s, 0.0).d
    assert beside > 0.3
    states = world.traffic.places().tobytes(), world.traffic.ego
    expert = world.observe().expert()
    assert states == (world.traffic.places().tobytes(), world.traffic.ego)  # the copy was driven
    assert expert.future.shape == (6, 3) and expert.agents.shape == (7, len(world.scene.agents), 3)
    for _ in range(6):
        world.step(world.observe().expert().future[:, :2])
    assert abs(world.traffic.ego.d - world.traffic.ego_at(world.traffic.ego.s, 0.0).d) < 0.3


def test_the_expert_drives_cleanly_and_who_sees_nothing_does_not(world):
    expert = [driven(world, EXPERT, index) for index in (0, 2)]
    blind = [driven(world, CONSTANT_VELOCITY, index) for index in (0, 2)]
    lane = [driven(world, LANE_FOLLOWER, index) for index in (0, 2)]
    for scene in expert:
        assert not any(event.at_fault for event in scene.events) and scene.outside_metres == 0
        assert scene.ended == "time" and scene.metres > 0.9 * scene.expert_metres
    assert any(event.at_fault for scene in blind for event in scene.events)
    assert any(event.kind == "vehicle" for scene in lane for event in scene.events)
    text, results = report({"expert": expert, CONSTANT_VELOCITY: blind, LANE_FOLLOWER: lane}, [CONSTANT_VELOCITY])
    scores = [results[name]["driving_score"] for name in ("expert", CONSTANT_VELOCITY, LANE_FOLLOWER)]
    assert scores[0] > 90 > max(scores[1:])
    assert "constant velocity - expert" in text and f"{scores[0]:.1f}" in text


def test_an_ego_that_does_not_brake_hits_who_stands_ahead(world):
    """Straight on towards a parked agent that is put into the lane."""
    for index in range(20):
        world.reset(SEED, index)
        if world.scene.legs[0].action == GO_STRAIGHT and world.scene.legs[0].end > 35.0:
            break
    ego, agents = world.traffic.ego, world.traffic.agents
    n = next(n for n, agent in enumerate(agents) if agent.kind == "car" and agent.parked)
    agents[n].s, agents[n].d = ego.s + 20.0, ego.d
    judge = SceneJudge(world)
    speed = max(world.car.speed, 4.0)
    while judge.ended is None and world.time < 8.0:
        judge.watch(world.step(world.way_at([0.5 * k for k in range(1, 7)], speed)[:, :2]))
    scene = judge.result([])
    (event,) = [event for event in scene.events if event.at_fault]
    assert (scene.ended, event.kind, event.where) == ("hit", "vehicle", "parked")
    # bumper to bumper: 20 m less half a car and the ego's front
    assert scene.metres == pytest.approx(20.0 - 4.5 / 2 - 3.4, abs=speed * 0.06)


def test_single_plans_are_scored_on_the_experts_way(world):
    world.reset(SEED, 1)
    world.follow(2.0)
    good = replayed_scores(world, world.observe().expert().future[:, :2])
    assert (good.nc, good.dac, good.tlc) == (1.0, 1.0, 1.0) and good.ep > 0.9
    off = replayed_scores(world, np.stack([np.linspace(4, 24, 6), np.linspace(-4, -24, 6)], axis=-1))
    assert off.dac == 0.0 and off.pdms == 0.0


def test_a_plan_that_is_not_a_number_ends_the_run_with_scene_and_step(world, tmp_path, monkeypatch):
    class Broken:
        def plan(self, now):
            return np.full((6, 2), np.nan) if now.time >= 3.0 else np.zeros((6, 2))

    monkeypatch.setattr("recipes.driving.drives.load_policy", lambda spec: Broken())
    options = DriveOptions(SEED, SIZE, plans=False)
    with pytest.raises(Diverged, match=rf"scene seed {SEED}, index 2, step 6 \(3.0 s\): the plan is not finite"):
        drive_scene(PolicySpec("broken", EXPERT), options, tmp_path, 2)
    assert not list(tmp_path.iterdir())
    with pytest.raises(Diverged, match="index 2, step 6"):
        world.reset(SEED, 2)
        world.follow(3.0)
        world.step(np.full((6, 2), np.inf))


def test_records_resume_and_hold_what_a_drawing_needs(tmp_path):
    spec, options = PolicySpec("lanes", LANE_FOLLOWER), DriveOptions(SEED, SIZE, plans=False)
    begin_folder(tmp_path, spec, options)
    drives = Drives(spec, options, tmp_path)
    list(drive_all([(drives, 0)], workers=1))
    before = (tmp_path / "scene-00000.json").stat().st_mtime_ns
    assert drives.missing([0, 1]) == [1]
    list(drive_all([(drives, 1)], workers=1))
    assert (tmp_path / "scene-00000.json").stat().st_mtime_ns == before
    first, second = read_records(tmp_path, [0, 1])
    assert (first["seed"], first["index"], second["index"]) == (SEED, 0, 1)
    assert first["trace"][0]["time"] == 2.0 and len(first["trace"][0]["plan"]) == 6
    assert len(first["scene"]["motion"]) > 10 * (len(first["trace"]) - 1)
    scene = scenes_of([first])[0]
    assert asdict(scene) == first["scene"]
    for other in (replace(options, seed=SEED + 1), replace(options, image_size=(160, 90))):
        with pytest.raises(ValueError, match="holds drives with"):
            begin_folder(tmp_path, spec, other)
    settings = json.loads((tmp_path / "settings.json").read_text())
    (tmp_path / "settings.json").write_text(json.dumps({**settings, "world_version": 1}))
    with pytest.raises(ValueError, match="drives with world_version 1, not"):
        begin_folder(tmp_path, spec, options)


def test_two_workers_drive_all_policies_as_one_does(tmp_path):
    options = DriveOptions(SEED, SIZE, plans=False)
    specs = [PolicySpec(kind, kind) for kind in (CONSTANT_VELOCITY, LANE_FOLLOWER)]
    for workers in (1, 2):
        drives = [Drives(spec, options, tmp_path / str(workers) / spec.name) for spec in specs]
        jobs = [(of_policy, index) for of_policy in drives for index in (0, 1)]
        assert len(list(drive_all(jobs, workers))) == 4
        assert not any(of_policy.missing([0, 1]) for of_policy in drives)
    for spec in specs:
        alone, shared = (read_records(tmp_path / folder / spec.name, [0, 1]) for folder in ("1", "2"))
        for record in alone + shared:
            for moment in record["trace"]:
                moment.pop("seconds")
        assert alone == shared and alone[0]["policy"] == spec.name


def test_bad_input_ends_in_one_line_before_anyone_drives(model_folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "world.json").write_text(json.dumps({"options": {"version": 3, "seed": 1}}))
    (tmp_path / "planner").mkdir()
    (tmp_path / "planner" / "config.json").write_text("{}")
    planner = "--planner", f"mine={tmp_path / 'planner'}"
    output = "--output-dir", tmp_path / "out", "--scenes", 2
    for arguments, message in (
        (("--world", tmp_path / "old"), "is a world of version 3, not"),
        (("--planner", f"mine={tmp_path / 'nowhere'}"), "is not a planner's folder"),
        (("--planner", f"expert={tmp_path / 'planner'}"), "--planner expert=...: another driver has this name"),
        (("--guard", tmp_path / "planner"), "is not a SmolDriver's folder"),
        (("--guard", model_folder, "--guard-rate", "nan"), "rate=nan must be a finite number"),
        (("--guard", model_folder), "guards planners: there is no --planner"),
        ((*planner, "--guard", model_folder, "--guarded", "his"), "no --planner is named his"),
        (("--collect", tmp_path / "rows"), "give one --planner, not 0"),
        ((*planner, "--collect", tmp_path / "file" / "rows"), "cannot be written"),
    ):
        monkeypatch.setattr("sys.argv", ["drive.py", *map(str, (*output, *arguments))])
        with pytest.raises(SystemExit) as ended:
            main()
        assert str(ended.value).startswith("drive: ") and message in str(ended.value)
        assert not list((tmp_path / "out").glob("*/scene-*.json"))


def test_scenes_of_a_scenario_have_it_once_a_policy_drives(monkeypatch, tmp_path, capsys):
    assert scenes_in(SEED, 3, None) == [0, 1, 2]
    chosen = scenes_in(SEED, 2, CROSSING_PEDESTRIAN)
    for index in range(chosen[-1] + 1):
        active = simulate_scene(SEED, index).active[4:]
        assert (index in chosen) == any(CROSSING_PEDESTRIAN in names for names in active)
    command = ["drive.py", "--scenario", CROSSING_PEDESTRIAN, "--scenes", 2, "--seed", SEED, "--image-size", "96x54"]
    command += ["--policies", LANE_FOLLOWER, "--no-plans", "--output-dir", tmp_path]
    monkeypatch.setattr("sys.argv", list(map(str, command)))
    main()
    records = read_all_records(tmp_path / LANE_FOLLOWER)
    assert [record["index"] for record in records] == chosen
    assert all(CROSSING_PEDESTRIAN in record["scenarios"] for record in records)
    assert json.loads((tmp_path / "scores.json").read_text())["scenes"] == 2


@pytest.fixture(scope="module")
def planner_folder(model_folder, tmp_path_factory):
    """An untrained planner on the tiny model."""
    source, folder = model_folder, tmp_path_factory.mktemp("planner") / "planner"
    options = {"visual_tokens": 4, "hidden_size": 32, "num_attention_heads": 4, "ego_inputs": ["speed", "history"]}
    planner, planner_processor = make_planner(source, options)
    planner.save_pretrained(folder)
    planner_processor.save_pretrained(folder)
    return folder


def test_a_planner_drives_is_scored_and_collects_rows(planner_folder, tmp_path, monkeypatch, capsys):
    rows, output = tmp_path / "rows", tmp_path / "drive"
    command = [
        "drive.py",
        "--planner",
        f"tiny={planner_folder}",
        "--scenes",
        2,
        "--seed",
        SEED,
        "--image-size",
        "96x54",
    ]
    command += ["--policies", LANE_FOLLOWER, "--output-dir", output, "--collect", rows, "--no-plans"]
    monkeypatch.setattr("sys.argv", list(map(str, command)))
    main()
    printed = capsys.readouterr().out
    assert "tiny - lane follower" in printed and "per plan" in printed and "recovery rows" in printed
    scores = json.loads((output / "scores.json").read_text())
    assert set(scores["policies"]) == {LANE_FOLLOWER, "tiny"} and scores["scenes"] == 2
    traces = [record["trace"] for record in read_records(output / "tiny", [0, 1])]

    found = load_scenes(rows, "train")
    assert found.num_rows == sum(map(len, traces))
    assert len(set(found["scene_token"])) == 2 and len(set(found["frame_token"])) == found.num_rows
    first = found[0]
    assert first["speed"] > 0 and first["command"] == traces[0][0]["command"] and all(first["ego_history_mask"])
    assert first["CAM_FRONT"].size == (96, 54)
    world = DrivingWorld(SIZE)
    world.reset(SEED, 0)
    world.follow(2.0)
    assert np.allclose(first["ego_future"], world.observe().expert().future)
    # where its own driver drives, the label is what it does next
    pose = world.scene.ego[5, :2] - world.scene.ego[4, :2]
    c, s = np.cos(world.car.yaw), np.sin(world.car.yaw)
    assert np.allclose(first["ego_future"][0][:2], [pose @ (c, s), pose @ (-s, c)], atol=0.05)
    main()  # nothing is left to do: the same scores
    assert json.loads((output / "scores.json").read_text()) == scores
    monkeypatch.setattr("sys.argv", [*map(str, command), "--seed", "10", "--output-dir", str(tmp_path / "other")])
    with pytest.raises(SystemExit, match="holds rows of other drives"):
        main()


def test_a_guarded_planner_is_a_row_of_its_own_and_what_its_guard_did_is_counted_apart(
    planner_folder, model_folder, tmp_path, monkeypatch, capsys
):
    class RedLight:
        def __call__(self, pictures, questions):
            return ["Red light." if "signal" in question else "?" for question in questions]

    monkeypatch.setattr("recipes.driving.policies.load_answers", lambda folder: RedLight())
    monkeypatch.setattr("recipes.driving.policies.Planner", lambda folder: load_policy(PolicySpec("", LANE_FOLLOWER)))
    options = "--scenes", 1, "--seed", SEED, "--image-size", "96x54", "--no-plans", "--policies", LANE_FOLLOWER
    guarded = "--planner", f"free={planner_folder}", "--guard", model_folder, "--output-dir", tmp_path
    monkeypatch.setattr("sys.argv", ["drive.py", *map(str, (*options, *guarded))])
    main()
    free, braked = (read_records(tmp_path / name, [0])[0] for name in ("free", "free + guard"))
    assert "guard" not in free and "guard" not in free["trace"][0]
    assert braked["trace"][0]["guard"]["rule"] == "light" and set(braked["trace"][0]["guard"]["answers"]) == set(
        QUESTIONS
    )
    assert braked["scene"]["metres"] < 0.5 * free["scene"]["metres"]
    guard = braked["guard"]
    assert guard["asked"] == len(braked["trace"]) and guard["unparsed"] == guard["asked"] * (len(QUESTIONS) - 1)
    assert guard["interventions"][0]["rule"] == "light" and guard["interventions"][0]["false_alarm"] in (True, False)
    scores = json.loads((tmp_path / "scores.json").read_text())["policies"]
    assert set(scores) == {LANE_FOLLOWER, "free", "free + guard"}
    assert scores["free"] == scores[LANE_FOLLOWER]  # the guard leaves no trace in the planner's own row
    table = re.search(r" guard +plans .*\n *free \+ guard +(\d+)", capsys.readouterr().out)
    assert int(table[1]) == guard["asked"]


def test_the_blind_planner_learns_the_way_from_its_history_and_is_kept_in_a_file(tmp_path):
    """Straight on, and round a bend that only the history tells of."""
    rng, train = np.random.default_rng(0), ScoredFrames()
    for number in range(200):
        speed, bend = rng.uniform(2, 8), rng.uniform(-0.08, 0.08)
        way = speed * 0.5 * np.arange(-4, 7)
        poses = np.stack([np.sin(bend * way) / bend, (1 - np.cos(bend * way)) / bend, bend * way], axis=-1)
        train.inputs.append(EgoInput("go straight", speed, poses[:4].tolist()))
        train.frames.append(PlanningFrame(str(number), str(number), speed, poses[5:].tolist(), [True] * 6, []))
    options = BlindTraining(steps=400, learning_rate=2e-3)
    file = tmp_path / "blind.safetensors"
    train_blind_planner(BLIND_STATUS, status_features, train, options).save(file, tmp_path / "rows")
    planner = StatusPlanner(file)
    plans = np.array([planner.plan(ego) for ego in train.inputs])
    futures = np.array([frame.future for frame in train.frames])[..., :2]
    assert np.linalg.norm(plans - futures, axis=-1).mean() < 0.3
    assert np.isfinite(planner.plan(EgoInput(None, 3.0, [None] * 4))).all()
    assert status_planner_file(tmp_path / "rows", tmp_path) == file  # what is there is not trained again
    with pytest.raises(ValueError, match="was trained on .*rows, not on .*others: delete it"):
        status_planner_file(tmp_path / "others", tmp_path)
