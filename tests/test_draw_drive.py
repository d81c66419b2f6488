"""The drawing of a drive: a frame per plan, the drive's own places, records that no longer replay are refused."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from fakes import tiny_model
from PIL import Image

from data_scripts.world.vehicle import WAYPOINTS
from recipes import draw_drive
from recipes.driving import drives
from recipes.driving.drawing import KEPT, in_colours, write_png
from recipes.driving.drives import DriveOptions, begin_folder, drive_scene
from recipes.driving.policies import CONSTANT_VELOCITY, PolicySpec
from recipes.driving.replay import Replay, busiest, read_drives
from recipes.planning.guard import LIGHT, SIGNAL_QUESTION, Guard

SEED, SIZE, NAME = 9, (32, 18), "guarded"


def sees_red(pictures, questions):
    """A light that is red for the guard, to make it brake."""
    return ["Red light." if question == SIGNAL_QUESTION else "No." for question in questions]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two scenes, in the second with a guard."""
    folder = tmp_path_factory.mktemp("drives")
    spec, options = PolicySpec(NAME, CONSTANT_VELOCITY), DriveOptions(SEED, SIZE, plans=False)
    begin_folder(folder / NAME, spec, options)
    drive_scene(spec, options, folder / NAME, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drives, "new_guard", lambda spec: Guard(sees_red))
        patch.setattr(drives.DrivingWorld, "is_over", property(lambda world: world.time >= 4.0))
        drive_scene(spec, options, folder / NAME, 1)
    return folder


def run(monkeypatch, folder, output, *arguments):
    command = ["draw_drive.py", "--drives", folder, "--policy", NAME, "--output", output, *arguments]
    monkeypatch.setattr("sys.argv", list(map(str, command)))
    draw_drive.main()


def test_a_gif_has_a_frame_per_plan_in_real_time(folder, tmp_path, monkeypatch, capsys, config, processor):
    model = tmp_path / "model"
    tiny_model(config).save_pretrained(model)
    processor.save_pretrained(model)
    run(monkeypatch, folder, tmp_path / "drive.gif", "--scene", 1, "--smoldriver", model)
    drive = read_drives(folder, NAME)[1]
    with Image.open(tmp_path / "drive.gif") as gif:
        assert gif.n_frames == len(drive.trace) == 4 and gif.size == (900, 752) and gif.info["loop"] == 0
        seen = []
        for k in range(gif.n_frames):
            gif.seek(k)
            assert gif.info["duration"] == 500
            seen.append(gif.convert("RGB").tobytes())
    assert len(set(seen)) == 4
    assert "scene 1 of guarded, 4 frames" in capsys.readouterr().out


def test_a_moment_is_that_of_the_drive(folder):
    drive = read_drives(folder, NAME)[1]
    rules = []
    for replay in Replay(drive):
        moment, recorded = replay.moment(), drive.trace[replay.k]
        assert (moment.time, moment.command) == (recorded["time"], recorded["command"])
        assert np.array_equal(moment.plan, recorded["plan"]) and moment.expert.shape == (WAYPOINTS, 2)
        assert len(moment.boxes) == len(moment.agents) and len(moment.pictures) == 6
        assert moment.pictures["CAM_FRONT"].size == SIZE
        rules.append((moment.guard, moment.interventions))
    assert rules[0] == (LIGHT, 1) and max(count for _, count in rules) == 1  # it brakes on


def test_one_frame_is_drawn_and_stays_small(folder, tmp_path, monkeypatch):
    run(monkeypatch, folder, tmp_path / "one.png", "--scene", 1, "--frame", 2.5)
    assert (tmp_path / "one.png").stat().st_size < 200_000
    with Image.open(tmp_path / "one.png") as picture:
        colours = Counter(picture.convert("RGB").getdata())
    assert colours[(0, 114, 178)] > 200  # the ego, and the policy's name
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    assert write_png(noise, tmp_path / "noise.png", 80_000) <= 80_000
    assert len(in_colours(noise, 64).getcolors()) <= 64 and len(KEPT) < 32
    with pytest.raises(ValueError, match=r"noise.png would have .* bytes, more than 1,000"):
        write_png(noise, tmp_path / "noise.png", 1000)


def test_the_scene_with_the_most_events_is_chosen(folder):
    first, second = read_drives(folder, NAME)
    assert len(first.scene.events) > len(second.scene.events) == 0 and busiest([second, first]) is first
    assert second.slowed > 1.0


def changed(record: dict) -> None:
    record["trace"][1]["plan"][1][0] -= 3.0


def not_a_plan(record: dict) -> None:
    record["trace"][0]["plan"] = [[1.0, 0.0]]


def cut(record: dict) -> None:
    del record["scene"]["motion"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (changed, r"scene-00001.json no longer replays: at 3.0 s the car is .* drive the scene again"),
        (not_a_plan, r"scene-00001.json: .* step 4 \(2.0 s\): the plan is not six finite waypoints"),
        (cut, r"scene-00001.json is not a record of recipes/drive.py"),
    ],
)
def test_a_record_that_does_not_replay_is_refused_in_one_line(folder, tmp_path, monkeypatch, spoil, message):
    shutil.copytree(folder, tmp_path / "drives")
    path = tmp_path / "drives" / NAME / "scene-00001.json"
    record = json.loads(path.read_text())
    spoil(record)
    path.write_text(json.dumps(record))
    with pytest.raises(SystemExit, match=message) as ended:
        run(monkeypatch, tmp_path / "drives", tmp_path / "x.png", "--scene", 1, "--frame", 2.0)
    assert "\n" not in str(ended.value) and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "nobody"), "no drives of 'nobody'; it has those of: guarded"),
        (("--scene", 7), "--scene 7: .* has 0, 1"),
        (("--output", "x.png"), r"a drive is written as \*.gif"),
        (("--frame", 2.0), r"one frame is written as \*.png"),
        (("--frame", 2.2, "--output", "x.png"), "--frame 2.2: scene 0 has a frame at 2.0, 2.5 .. "),
    ],
)
def test_bad_input_is_refused_in_one_line(folder, tmp_path, monkeypatch, arguments, message):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, folder, tmp_path / "x.gif", *arguments)


def test_drives_of_another_world_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "drives")
    path = tmp_path / "drives" / NAME / "settings.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"world_version": 1}))
    with pytest.raises(ValueError, match="was driven in a world of version 1, not"):
        read_drives(tmp_path / "drives", NAME)
