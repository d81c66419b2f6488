"""The synthetic world: same bytes from one seed, answers that the pictures show, balance, kills and full disks."""

import hashlib
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_scripts import schema
from data_scripts.question_types import OBJECT_TAG, question_type
from data_scripts.synthesize_world import synthesize
from data_scripts.world import lidar
from data_scripts.world.agents import Agent
from data_scripts.world.cameras import CAMERA_CALIBRATION, CAMERAS
from data_scripts.world.driving import crowded_sides, future_state, moving_status
from data_scripts.world.folder import WORLD_VERSION
from data_scripts.world.ground import GroundMap
from data_scripts.world.nuscenes import CATEGORIES, TABLES, UNSEEN, token
from data_scripts.world.questions import scene_questions
from data_scripts.world.render import Look, Renderer
from data_scripts.world.road import lane_offset
from data_scripts.world.sight import MIN_PIXELS, frame_of
from data_scripts.world.simulation import SAMPLES_PER_SCENE, simulate_scene
from data_scripts.world.surroundings import Source, surroundings
from data_scripts.world.traffic import EGO_FRONT, EGO_REAR
from data_scripts.world.words import CLASSES, DIRECTIONS, PLURALS
from modeling_smoldriver.processing_smoldriver import END_OF_TURN
from recipes.tiny.pretrain_towers import PHRASES, BoxLabels
from recipes.tiny.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "data_scripts/synthesize_world.py"
SCENES, EVERY = 24, 5


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "world"
    synthesize(folder, scenes=SCENES, seed=3, size=(160, 90), every=EVERY, workers=1)
    return folder


@pytest.fixture(scope="module")
def drivelm(world):
    return json.loads((world / "drivelm.json").read_text())


@pytest.fixture(scope="module")
def tables(world):
    """{table: {token: row}}"""
    files = {name: world / "v1.0-mini" / f"{name}.json" for name in TABLES}
    return {name: {row["token"]: row for row in json.loads(path.read_text())} for name, path in files.items()}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(folder, *options, **popen):
    command = [sys.executable, str(SCRIPT), "--output-dir", str(folder), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **popen)


def questions_of(drivelm):
    """(scene token, frame token, task, question, answer) of every question."""
    for scene_token, scene in drivelm.items():
        for frame_token, frame in scene["key_frames"].items():
            for task, items in frame["QA"].items():
                for item in items:
                    yield scene_token, frame_token, task, item["Q"], item["A"]


def test_phrases_of_the_demo_are_the_worlds_and_one_token(drivelm):
    asked = [(question, answer) for *_, question, answer in questions_of(drivelm)]
    texts = [f"\nQuestion: {question}{END_OF_TURN}\nAssistant: {answer}" for question, answer in asked]
    missing = [phrase for phrase in PHRASES if not any(phrase in text for text in texts)]
    assert not missing
    tokenizer = train_tokenizer(texts, whole=PHRASES)
    for phrase in PHRASES:
        assert len(tokenizer(phrase, add_special_tokens=False)["input_ids"]) == 1
    for text in texts[:200]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_cameras_are_the_projects():
    assert CAMERAS == tuple(schema.CAMERAS)


# Of two scenes of seed 5 with every eighth moment. Numbers are rounded: their last bits differ between machines.
PINNED = {
    "simulation": "3f6f3bdcace08c91",
    "drivelm": "f53df7398ce11aeb",
    "captions": "6744c66ea2bcacb2",
    "tables": "dd20886e5715fe7e",
    "picture": "3240663aed998a84",
}


def rounded(value):
    """A JSON value with its numbers rounded to 6 decimals."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 6) + 0.0 if isinstance(value, float) else value


def digest(value) -> str:
    return hashlib.sha256(json.dumps(rounded(value)).encode()).hexdigest()[:16]


def test_a_world_of_this_version_never_changes(tmp_path):
    assert WORLD_VERSION == 8, "pin the digests of the new version"
    folder = tmp_path / "world"
    synthesize(folder, scenes=2, seed=5, size=(160, 90), every=8, workers=1)
    scenes = [simulate_scene(5, index) for index in range(2)]
    arrays = ("ego", "ego_s", "ego_d", "poses", "road", "statuses", "light_colours")
    images, _ = Renderer(160, 90).render(scenes[0], GroundMap(scenes[0]), 8)
    found = {
        "simulation": digest([getattr(scene, name).tolist() for scene in scenes for name in arrays]),
        "drivelm": digest(json.loads((folder / "drivelm.json").read_text())),
        "captions": digest(json.loads((folder / "captions.json").read_text())),
        "tables": digest([json.loads(path.read_text()) for path in sorted((folder / "v1.0-mini").glob("*.json"))]),
        "picture": hashlib.sha256(images[CAMERAS.index("CAM_FRONT")].tobytes()).hexdigest()[:16],
    }
    changed = [name for name in PINNED if found[name] != PINNED[name]]
    assert not changed, f"{changed} differ for the same seed: raise WORLD_VERSION in world/folder.py and pin {found}"


def test_same_seed_gives_the_same_bytes_with_one_and_two_workers(tmp_path):
    options = ("--scenes", 3, "--seed", 8, "--frames-every", 8)
    assert run(tmp_path / "one", *options, "--workers", 1).returncode == 0
    assert run(tmp_path / "two", *options, "--workers", 2).returncode == 0
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert run(tmp_path / "other", *options[:3], 9, *options[4:], "--workers", 1).returncode == 0
    pictures = [set(digests(tmp_path / name / "samples").values()) for name in ("one", "other")]
    assert not pictures[0] & pictures[1]


def test_a_larger_world_begins_with_the_smaller_one(world, tmp_path):
    synthesize(tmp_path / "small", scenes=2, seed=3, size=(160, 90), every=EVERY, workers=1)
    small, large = digests(tmp_path / "small" / "samples"), digests(world / "samples")
    assert len(small) == 2 * 8 * 7 and small.items() <= large.items()
    questions = json.loads((tmp_path / "small/drivelm.json").read_text())
    assert questions.items() <= json.loads((world / "drivelm.json").read_text()).items()


def test_questions_do_not_depend_on_the_picture_size(world, tmp_path):
    synthesize(tmp_path / "large", scenes=1, seed=3, size=(400, 225), every=EVERY, workers=1)
    large = json.loads((tmp_path / "large/drivelm.json").read_text())
    assert large.items() <= json.loads((world / "drivelm.json").read_text()).items()


def test_killed_run_resumes_to_the_same_bytes(tmp_path):
    options = ("--scenes", 8, "--seed", 1, "--frames-every", 4, "--workers", 2)
    command = [sys.executable, str(SCRIPT), "--output-dir", str(tmp_path / "killed"), *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed/work").glob("scene-*.txt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = list((tmp_path / "killed/work").glob("scene-*.txt"))
    assert done and not (tmp_path / "killed/world.json").exists(), "the kill came too late to test anything"
    time.sleep(1.5)  # orphaned workers end by themselves
    again = run(tmp_path / "killed", *options[:-1], 1)
    assert again.returncode == 0, again.stderr
    assert run(tmp_path / "clean", *options).returncode == 0
    assert digests(tmp_path / "killed") == digests(tmp_path / "clean")


def test_killed_worker_ends_the_run_with_one_line(tmp_path):
    options = ("--scenes", 40, "--frames-every", 4, "--workers", 2)
    command = [sys.executable, str(SCRIPT), "--output-dir", str(tmp_path / "world"), *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "world/work").glob("scene-*.txt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(workers[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "the same command resumes it" in errors and "Traceback" not in errors


def test_full_disk_leaves_no_half_scene(tmp_path):
    """A limit on file sizes stands in for the full disk: the scene's own file is larger than any picture."""

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    options = ("--scenes", 2, "--seed", 5, "--frames-every", 8, "--workers", 1)
    full = run(tmp_path / "world", *options, preexec_fn=small_files)
    assert full.returncode == 1 and full.stderr.strip().splitlines()[-1].startswith("synthesize_world: ")
    assert "Traceback" not in full.stderr
    assert os.listdir(tmp_path / "world/work") == ["options.json"]
    assert run(tmp_path / "world", *options).returncode == 0
    assert run(tmp_path / "clean", *options).returncode == 0
    assert digests(tmp_path / "world") == digests(tmp_path / "clean")


def test_folder_of_another_world_is_refused(world, tmp_path):
    again = synthesize(world, scenes=SCENES, seed=3, size=(160, 90), every=EVERY, workers=1)
    assert again["counts"]["scenes"] == SCENES
    with pytest.raises(ValueError, match="seed 3, not 4"):
        synthesize(world, scenes=SCENES, seed=4, size=(160, 90), every=EVERY, workers=1)
    other = tmp_path / "other"
    other.mkdir()
    (other / "world.json").write_text(json.dumps({"options": {"version": 0}}))
    with pytest.raises(ValueError, match="a world with version 0, not"):
        synthesize(other, scenes=1, seed=0, size=(160, 90), every=8, workers=1)
    (other / "world.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        synthesize(other, scenes=1, seed=0, size=(160, 90), every=8, workers=1)
    (other / "world.json").rename(other / "notes.txt")
    with pytest.raises(ValueError, match="holds other files"):
        synthesize(other, scenes=1, seed=0, size=(160, 90), every=8, workers=1)


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--seed", -1, "-1 is out of range: choose 0 to 9999"),
        ("--scenes", 0, "0 is out of range"),
        ("--scenes", "many", "'many' is not a whole number"),
        ("--image-size", "32x18", "32x18 is out of range: choose 64x36 to 1600x900"),
        ("--image-size", "big", "'big' is not WIDTHxHEIGHT"),
        ("--frames-every", 9, "9 is out of range"),
        ("--workers", 0, "0 is out of range"),
    ],
)
def test_bad_options_name_the_value_and_the_range(tmp_path, option, value, message):
    result = run(tmp_path / "world", option, value)
    assert result.returncode == 2 and message in result.stderr
    assert not (tmp_path / "world").exists()


def test_yes_and_no_are_balanced_for_every_template_class_and_direction(drivelm):
    by_text, by_split = defaultdict(Counter), defaultdict(Counter)
    for scene, _, task, question, answer in questions_of(drivelm):
        if question_type(question, task) == "yes_no":
            template = OBJECT_TAG.sub("<c>", question)
            by_text[template][answer.split(",")[0].strip(".")] += 1
            by_split[schema.split_of(scene), template][answer[:2]] += 1
    assert len(by_text) > 60
    assert all(counts["Yes"] == counts["No"] for counts in by_text.values())
    assert all(counts["Ye"] == counts["No"] for counts in by_split.values())
    asked_about = {kind for kind in CLASSES for text in by_text if f" {PLURALS[kind]} " in text}
    assert asked_about == set(CLASSES)


def test_no_constant_answer_dominates(world):
    balance = json.loads((world / "world.json").read_text())["balance"]
    for kind, limit in (("planning", 0.62), ("status", 0.68), ("listing", 0.3), ("counting", 0.3)):
        for template, entry in balance[kind].items():
            assert entry["top_share"] <= limit or entry["count"] < 30, (template, entry)


def test_there_is_enough_to_ask_and_to_see(world):
    counts = json.loads((world / "world.json").read_text())["counts"]
    assert 30 <= counts["questions_per_frame"] <= 70
    assert 1.2 <= counts["objects_per_view"] <= 3.0
    assert counts["median_height_of_96"] >= 10
    assert all(share >= 0.1 for share in counts["share_of_frames_with"].values()), counts["share_of_frames_with"]


def project(tables, data, annotation):
    """Corners of an annotated box in pixels of 1600x900 and their depth, from the tables alone: (8, 3)."""
    camera = tables["calibrated_sensor"][data["calibrated_sensor_token"]]
    pose = tables["ego_pose"][data["ego_pose_token"]]
    width, length, height = annotation["size"]
    signs = np.array([(x, y, z) for x in (1, -1) for y in (1, -1) for z in (1, -1)]) / 2
    points = signs * (length, width, height) @ matrix(annotation["rotation"]).T + annotation["translation"]
    points = (points - pose["translation"]) @ matrix(pose["rotation"])
    points = (points - camera["translation"]) @ matrix(camera["rotation"])
    uvz = points @ np.array(camera["camera_intrinsic"]).T
    scale = np.array([1600 / data["width"], 900 / data["height"]])
    return np.concatenate([uvz[:, :2] / uvz[:, 2:] * scale, points[:, 2:]], axis=1)


def matrix(quaternion):
    w, x, y, z = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def test_answers_agree_with_the_nuscenes_tables(drivelm, tables):
    """A yes has such a box in that camera's view, a no has no near one in full view."""
    kinds = {PLURALS[kind]: kind for kind in CLASSES}
    names = {kind: CATEGORIES[kind] for kind in CLASSES}
    pattern = re.compile(
        rf"Are there (?:(\w+) )??({'|'.join(kinds)})(?: (with|without) riders)? to the ([a-z ]+) of the ego car\?"
    )
    category = {token: row["name"] for token, row in tables["category"].items()}
    attribute = {token: row["name"].split(".")[1] for token, row in tables["attribute"].items()}
    cameras = {direction: camera for camera, direction in DIRECTIONS.items()}
    channel = {
        token: tables["sensor"][row["sensor_token"]]["channel"] for token, row in tables["calibrated_sensor"].items()
    }
    data = {
        (row["sample_token"], channel[row["calibrated_sensor_token"]]): row for row in tables["sample_data"].values()
    }
    boxes = defaultdict(list)
    for row in tables["sample_annotation"].values():
        if row["visibility_token"] != UNSEEN:
            boxes[row["sample_token"]].append(row)
    checked = Counter()
    for _, frame, _, question, answer in questions_of(drivelm):
        match = pattern.fullmatch(question)
        if match is None:
            continue
        status, plural, rider, direction = match.groups()
        wanted = {None: None, "with": "with_rider", "without": "without_rider"}[rider] or status
        in_view = full_view = 0
        for row in boxes[frame]:
            if category[tables["instance"][row["instance_token"]]["category_token"]] != names[kinds[plural]]:
                continue
            if wanted and wanted not in [attribute[token] for token in row["attribute_tokens"]]:
                continue
            corners = project(tables, data[frame, cameras[direction]], row)
            x, y, z = corners.T
            if z.max() <= 0.4:
                continue
            if z.min() <= 0.4:  # around the camera
                in_view += 1
                continue
            low, high = corners[:, :2].min(axis=0), corners[:, :2].max(axis=0)
            in_view += bool((high > 0).all() and (low < (1600, 900)).all())
            whole = (low > 0).all() and (high < (1600, 900)).all()
            full_view += bool(whole and z.max() < 12 and row["visibility_token"] == "4")
        if answer == "Yes.":
            assert in_view, (frame, question)
        else:
            assert not full_view, (frame, question)
        checked[answer] += 1
    assert checked["Yes."] > 500 and checked["No."] > 500


def test_tags_are_the_centres_of_boxes_in_the_picture(drivelm):
    seen = 0
    for scene in drivelm.values():
        for frame in scene["key_frames"].values():
            text = json.dumps(frame["QA"])
            assert set(OBJECT_TAG.findall(text)) <= set(frame["key_object_infos"])
            for tag, info in frame["key_object_infos"].items():
                _, camera, x, y = tag.strip("<>").split(",")
                x0, y0, x1, y1 = info["2d_bbox"]
                assert camera in CAMERAS and 0 <= x0 < x1 <= 1600 and 0 <= y0 < y1 <= 900
                assert abs(float(x) - (x0 + x1) / 2) <= 0.06 and abs(float(y) - (y0 + y1) / 2) <= 0.06
                seen += 1
    assert seen > 300


def test_the_lamp_of_a_traffic_light_shines_in_the_stored_picture(world, drivelm):
    """The brightest colour in the tagged box is the one that the description names."""
    checked = Counter()
    for scene in drivelm.values():
        for frame in scene["key_frames"].values():
            for info in frame["key_object_infos"].values():
                colour = info["Visual_description"].split()[0].lower()
                if not info["Visual_description"].endswith("light."):
                    continue
                path = frame["image_paths"]["CAM_FRONT"].removeprefix("../nuscenes/")
                with Image.open(world / path) as image:
                    pixels = np.asarray(image.convert("RGB"), dtype=float)
                x0, y0, x1, y1 = (round(value / 10) for value in info["2d_bbox"])
                part = pixels[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)].reshape(-1, 3)
                red, green, _ = part[part.max(axis=1).argmax()]
                found = "red" if green < 0.5 * red else "yellow" if green < 1.05 * red else "green"
                checked[colour == found] += 1
    assert sum(checked.values()) > 20 and checked[True] / sum(checked.values()) > 0.95, checked


def lone_scene(*agents_at):
    """A scene with nothing near the ego but the given (agent, ahead, left), all heading like the ego."""
    scene = simulate_scene(0, 0)
    x, y, yaw, _ = scene.ego[0]
    poses, road = np.zeros((40, len(agents_at), 4)), np.zeros((40, len(agents_at), 2))
    for i, (agent, ahead, left) in enumerate(agents_at):
        c, s = math.cos(yaw), math.sin(yaw)
        poses[:, i] = x + ahead * c - left * s, y + ahead * s + left * c, yaw, agent.speed
        road[:, i] = scene.ego_s[0] + ahead, scene.ego_d[0] + left
    statuses = np.array([[agent.stop_from for agent, _, _ in agents_at]] * 40, dtype=object)
    agents = [agent for agent, _, _ in agents_at]
    return replace(
        scene, agents=agents, poses=poses, road=road, statuses=statuses, light_legs=[], houses=[], weather="clear"
    )


def thing(kind, status="parked", colour=None):
    colours = {"bus": "purple", "pedestrian": "pink", "car": "blue"}
    return Agent(kind, colour or colours[kind], 0.0, 0.0, stop_from=status)


def seen_in(scene, camera):
    _, look = Renderer(160, 90).render(scene, GroundMap(scene), 0)
    return [o.kind for o in frame_of(scene, 0, look).in_camera(camera)], look


def test_what_a_bus_hides_is_not_visible():
    hidden = lone_scene((thing("pedestrian", "standing"), 20.0, 0.0), (thing("bus"), 12.0, 0.0))
    assert seen_in(hidden, "CAM_FRONT")[0] == ["bus"]
    beside = lone_scene((thing("pedestrian", "standing"), 20.0, 6.5), (thing("bus"), 12.0, 0.0))
    assert sorted(seen_in(beside, "CAM_FRONT")[0]) == ["bus", "pedestrian"]


def test_no_box_is_annotated_as_seen_that_no_picture_shows(world, tables):
    """Of the first scene, by the renderer's own count of pixels. A box that no picture shows says so."""
    scene, renderer = simulate_scene(3, 0), Renderer(160, 90)
    ground, boxes = GroundMap(scene), 0
    for t in range(0, SAMPLES_PER_SCENE, EVERY):
        look = renderer.render(scene, ground, t)[1]
        shown = look.pixels.sum(axis=0) > 0
        agents = [index for (what, index), seen in zip(look.sources, shown, strict=True) if what == "agent" and seen]
        near = [i for i in agents if math.dist(scene.poses[t, i, :2], scene.ego[t, :2]) < 50.0]
        sample = token("sample", 3, 0, t)
        rows = [row for row in tables["sample_annotation"].values() if row["sample_token"] == sample]
        annotated = {row["instance_token"] for row in rows if row["visibility_token"] != UNSEEN}
        instances = {token("instance", 3, 0, i) for i in agents}
        assert annotated <= instances and len(annotated & {token("instance", 3, 0, i) for i in near}) == len(near)
        unseen = {row["instance_token"] for row in rows if row["visibility_token"] == UNSEEN}
        assert not unseen & instances
        boxes += len(near)
    assert boxes > 30


def test_an_instance_has_boxes_without_gaps_from_before_it_is_seen_to_after(tables):
    times = defaultdict(list)
    for sample in tables["sample"].values():
        times[sample["scene_token"]].append(sample["timestamp"])
    seen = hidden = 0
    for instance in tables["instance"].values():
        rows, row = [], tables["sample_annotation"][instance["first_annotation_token"]]
        while row:
            rows.append(row)
            row = tables["sample_annotation"].get(row["next"])
        samples = [tables["sample"][row["sample_token"]] for row in rows]
        moments = sorted(times[samples[0]["scene_token"]])
        places = [moments.index(sample["timestamp"]) for sample in samples]
        assert places == list(range(places[0], places[0] + instance["nbr_annotations"]))
        shown = [row["visibility_token"] != UNSEEN for row in rows]
        assert (shown[0] or shown[1]) and (shown[0] is False or places[0] == 0)
        assert (shown[-1] or shown[-2]) and (shown[-1] is False or places[-1] == len(moments) - 1)
        seen, hidden = seen + sum(shown), hidden + len(shown) - sum(shown)
    assert seen > 300 and hidden > 100


def test_lidar_points_lie_on_what_is_there(world, tables):
    """Those on the ground are at height 0; a box holds those that its row counts, and hardly any others."""
    data = [row for row in tables["sample_data"].values() if row["fileformat"] == "pcd"]
    assert len(data) == len(tables["sample"]) and all((world / row["filename"]).is_file() for row in data)
    counted = foreign = 0
    for row in data[:: len(data) // 12]:
        points = np.fromfile(world / row["filename"], dtype="<f4").reshape(-1, 5)
        mount = tables["calibrated_sensor"][row["calibrated_sensor_token"]]
        pose = tables["ego_pose"][row["ego_pose_token"]]
        assert pose["timestamp"] == row["timestamp"] == tables["sample"][row["sample_token"]]["timestamp"]
        places = points[:, :3].astype(float) @ matrix(mount["rotation"]).T + mount["translation"]
        places = places @ matrix(pose["rotation"]).T + pose["translation"]
        above = places[:, 2] > 0.01
        assert 0.3 < np.mean(~above) < 1 and np.abs(places[~above, 2]).max() < 0.01
        assert ((points[:, 3] >= 0) & (points[:, 3] <= 255)).all() and set(points[:, 4]) <= set(range(32))
        boxes = [box for box in tables["sample_annotation"].values() if box["sample_token"] == row["sample_token"]]
        inside = np.empty((len(boxes), len(places)), dtype=bool)
        for k, box in enumerate(boxes):
            local = (places - box["translation"]) @ matrix(box["rotation"])
            width, length, height = box["size"]
            inside[k] = (np.abs(local) <= np.array([length, width, height]) / 2 + 0.05).all(axis=1)
        shared = inside.sum(axis=0) > 1  # pedestrians who meet
        for k, box in enumerate(boxes):
            assert box["num_lidar_pts"] <= inside[k].sum(), box
            foreign += max(0, (inside[k] & above & ~shared).sum() - box["num_lidar_pts"])
            counted += box["num_lidar_pts"]
    assert counted > 1000 and foreign < 0.01 * counted  # in bends a truck's corner reaches into its trailer's box


def test_lidar_rays_hit_the_nearest_quad():
    """The same rays against every triangle, one by one (Moeller and Trumbore)."""
    things = surroundings(simulate_scene(0, 0), 15)
    metres = np.where(lidar.RAYS[:, 2] < 0, lidar.POSITION[2] / np.maximum(-lidar.RAYS[:, 2], 1e-9), np.inf)
    for n in np.flatnonzero(things.solid):
        corners = things.corners[n] - lidar.POSITION
        if not things.both_sides[n] and corners[0] @ things.normals[n] >= 0:
            continue  # its back
        for first, second, third in (corners[[0, 1, 2]], corners[[0, 2, 3]]):
            a, b = second - first, third - first
            across = np.cross(lidar.RAYS, b)
            with np.errstate(all="ignore"):
                u, side = -(across @ first) / (across @ a), np.cross(-first, a)
                v, far = lidar.RAYS @ side / (across @ a), (side @ b) / (across @ a)
            hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (far > 0)
            metres[hit] = np.minimum(metres[hit], far[hit])
    points = lidar.scan(things, 80.0).points
    expected = lidar.RAYS[metres < lidar.RANGE] * metres[metres < lidar.RANGE, None]
    assert len(points) == len(expected) > 3000
    np.testing.assert_allclose(points[:, [1, 0]] * [1, -1], expected[:, :2], atol=1e-4)
    np.testing.assert_allclose(points[:, 2], expected[:, 2], atol=1e-4)


def test_labels_of_a_tower_leave_out_what_no_picture_shows(world, tables):
    labels = BoxLabels(world)
    shown = [row for row in tables["sample_annotation"].values() if row["visibility_token"] != UNSEEN]
    assert sum(map(len, labels.boxes.values())) == len(shown) < len(tables["sample_annotation"])
    assert set(labels.cameras) == set(CAMERAS) and labels.size == (160, 90)
    assert labels(next(iter(tables["sample"]))).any()


def test_the_route_names_the_action_twelve_metres_ahead(world, tables):
    route = json.loads((world / "v1.0-mini/route.json").read_text())
    assert set(route) == set(tables["sample"])
    said = Counter()
    for index in range(6):
        scene = simulate_scene(3, index)
        for t in range(0, SAMPLES_PER_SCENE, EVERY):
            s = scene.ego_s[t] + 12.0
            leg = next(leg for leg in scene.legs if leg.start <= s < leg.end)
            turn = float(scene.path.at(leg.end)[2] - scene.path.at(leg.start)[2])
            aside = lane_offset(leg.new_lane) - lane_offset(leg.lane)
            side = "left" if turn + aside > 0 else "right"
            expected = f"turn {side}" if abs(turn) > 0.1 else f"change lane {side}" if aside else "go straight"
            said_here = route[token("sample", 3, index, t)]
            assert said_here == {"command": expected, "scenario": scene.scenario_at(t)}
            said[expected] += 1
    assert len(said) >= 4, said


def test_splits_hold_the_names_of_all_scenes(world, tables):
    splits = json.loads((world / "v1.0-mini/splits.json").read_text())
    assert splits == {"synthetic": [scene["name"] for scene in tables["scene"].values()]}


def test_a_signal_is_seen_by_the_head_that_the_front_camera_shows_most_of():
    scenes = (simulate_scene(0, index) for index in range(20))
    scene = next(scene for scene in scenes if scene.light_legs and scene.light_legs[0].stop_line < scene.ego_s[-1])
    pixels = np.zeros((len(CAMERAS), 2))
    pixels[CAMERAS.index("CAM_FRONT_LEFT"), 0] = 10 * MIN_PIXELS  # another head, larger, beside the road
    pixels[CAMERAS.index("CAM_FRONT"), 1] = 2 * MIN_PIXELS
    bounds = np.tile([700.0, 100.0, 760.0, 200.0], (len(CAMERAS), 2, 1))
    lamps = np.ones((len(CAMERAS), 2), dtype=bool)
    look = Look([Source("light", 0), Source("light", 0)], pixels, bounds, ids=np.empty(0), lamps=lamps)
    frame = frame_of(scene, 0, look)
    assert [(o.kind, o.camera, o.main) for o in frame.seen] == [("traffic light", "CAM_FRONT", True)]
    assert frame.unclear == {("CAM_FRONT_LEFT", "traffic light")}  # no caption of that view, which does show one
    lamps[CAMERAS.index("CAM_FRONT"), 1] = False
    dark = frame_of(scene, 0, look)  # its colour cannot be told
    assert not dark.seen and ("CAM_FRONT", "traffic light") in dark.unclear
    lamps[:] = True
    passed = next(t for t in range(SAMPLES_PER_SCENE) if scene.ego_s[t] + EGO_FRONT > scene.light_legs[0].stop_line)
    assert not frame_of(scene, passed, look).seen


def test_a_lamp_shows_where_its_whole_panel_is_in_the_picture_and_not_hidden():
    """A light 14 m ahead is drawn whole; one 3 m ahead has its head in the picture and its red lamp above it."""
    scene = next(scene for scene in (simulate_scene(0, index) for index in range(40)) if scene.light_legs)
    renderer, leg, shown = Renderer(160, 90), scene.light_legs[0], {}
    scene = replace(
        scene, agents=[], poses=np.zeros((40, 0, 4)), road=np.zeros((40, 0, 2)), statuses=np.empty((40, 0))
    )
    for to_line in (14.0, -1.5):
        s = leg.stop_line - to_line
        x, y, yaw = (float(value) for value in scene.path.at(s, lane_offset(0)))
        ego = np.tile([x, y, yaw, 5.0], (40, 1))
        for colour in ("red", "green"):
            colours = np.full((40, len(scene.light_legs)), colour, dtype=object)
            at = replace(
                scene, ego=ego, ego_s=np.full(40, s), ego_d=np.full(40, lane_offset(0)), light_colours=colours
            )
            look = renderer.render(at, GroundMap(at), 0)[1]
            head = look.sources.index(Source("light", 0))
            front = CAMERAS.index("CAM_FRONT")
            assert look.pixels[front, head] > MIN_PIXELS
            shown[to_line, colour] = bool(look.lamps[front, head])
    assert shown == {(14.0, "red"): True, (14.0, "green"): True, (-1.5, "red"): False, (-1.5, "green"): True}


def test_a_road_user_turns_goes_ahead_or_stands_and_in_doubt_nothing_is_said():
    scene = lone_scene((thing("car", "moving"), 11.0, 0.0), (thing("bus", "moving"), 20.0, 0.0))
    scene.poses[:, 0, 2] = 0.1 * np.arange(40)  # 0.2 radians in a second
    scene.poses[:, 1, 2] = np.where(np.arange(40) < 20, 0.0, -0.05 * (np.arange(40) - 20))  # 0.1 in a second: doubtful
    assert [moving_status(scene, 10, i) for i in range(2)] == ["Turn left.", "Going ahead."]
    assert moving_status(scene, 30, 1) is None
    assert [future_state(scene, 0, i) for i in range(2)] == ["Turn left.", "Keep going straight."]
    assert future_state(scene, 20, 1) is None  # 0.3 radians
    scene.statuses[16:, 0] = "stopped"
    assert moving_status(scene, 20, 0) == "Stopped." and future_state(scene, 10, 0) == "Stationary."
    scene.statuses[30:, 0] = "moving"
    assert future_state(scene, 24, 0) == "Start moving." and future_state(scene, 34, 0) is None


def test_behaviour_is_asked_where_the_coming_second_is_known():
    scene, renderer = simulate_scene(0, 0), Renderer(160, 90)
    ground, times = GroundMap(scene), (36, 37, 38, 39)
    frames = [frame_of(scene, t, renderer.render(scene, ground, t)[1]) for t in times]
    asked = [len(tasks["behavior"]) for tasks in scene_questions(scene, frames)]
    assert asked == [1, 1, 0, 0]


@pytest.mark.parametrize("camera", CAMERAS)
def test_an_object_is_seen_by_the_camera_that_looks_at_it(camera):
    (x, y, _), yaw, _, _ = CAMERA_CALIBRATION[camera]
    yaw = math.radians(yaw)
    scene = lone_scene((thing("pedestrian", "standing"), x + 8 * math.cos(yaw), y + 8 * math.sin(yaw)))
    for other in CAMERAS:
        kinds, look = seen_in(scene, other)
        assert kinds == (["pedestrian"] if other == camera else [])
    number = CAMERAS.index(camera)
    assert look.pixels[number, 0] > MIN_PIXELS
    x0, y0, x1, y1 = look.bounds[number, 0]
    assert abs((x0 + x1) / 2 - 800) < 60 and y0 < 500 < y1


@pytest.mark.parametrize("heading", [0.0, math.pi])
def test_moving_stopped_and_parked_cars_look_different_from_front_and_back(heading):
    pictures = {}
    for status in ("moving", "stopped", "parked"):
        scene = lone_scene((thing("car", status), 11.0, 0.0))
        scene.poses[:, :, 2] += heading
        images, _ = Renderer(160, 90).render(scene, GroundMap(scene), 0)
        pictures[status] = np.asarray(images[1], dtype=float)
    for a, b in (("moving", "stopped"), ("moving", "parked"), ("stopped", "parked")):
        assert (np.abs(pictures[a] - pictures[b]).max(axis=-1) > 40).sum() >= 25, (a, b)


@pytest.mark.parametrize(
    "places, sides",
    [
        ([(2.0, 3.5)], (True, False)),
        ([(-7.0, -4.0), (2.0, 3.5)], (True, True)),
        ([(20.0, 3.5)], (False, False)),
        ([(2.0, 3.5), (-11.0, -4.0)], None),  # close enough to the right or not: no picture tells
        ([(2.0, 6.0)], None),
    ],
)
def test_sides_are_crowded_or_clear_beyond_doubt(places, sides):
    scene = lone_scene(*((thing("car"), ahead, left) for ahead, left in places))
    _, look = Renderer(160, 90).render(scene, GroundMap(scene), 0)
    assert crowded_sides(scene, frame_of(scene, 0, look)) == sides


def test_nobody_drives_through_the_ego():
    for index in range(12):
        scene = simulate_scene(1, index)
        for i, agent in enumerate(scene.agents):
            width, length, _ = agent.size
            ahead, left = scene.road[:, i, 0] - scene.ego_s, scene.road[:, i, 1] - scene.ego_d
            beside = np.abs(left) < width / 2 + 0.7
            along = (ahead > -EGO_REAR - length / 2 + 0.2) & (ahead < EGO_FRONT + length / 2 - 0.2)
            assert not (beside & along).any(), (index, agent.kind)


def test_prepare_drivelm_reads_the_world_like_the_real_data(world, tmp_path):
    command = [sys.executable, str(ROOT / "data_scripts/prepare_drivelm.py"), "--json", str(world / "drivelm.json")]
    command += ["--image-root", str(world), "--output-dir", str(tmp_path / "scenes"), "--strict"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    manifest = schema.read_manifest(tmp_path / "scenes")
    assert manifest["complete"] and sum(split["frames"] for split in manifest["splits"].values()) == SCENES * 8
