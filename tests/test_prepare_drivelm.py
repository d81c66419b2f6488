"""From DriveLM's JSON and nuScenes images to shards of scene rows: real data, bad input, kills, workers."""

import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes import SAMPLE, needs_sample
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_scripts import download_drivelm_sample
from data_scripts.prepare_drivelm import main
from data_scripts.schema import CAMERAS, load_scenes, read_manifest, scene_table, split_of
from data_scripts.sources.camera_images import MAX_PIXELS, UnusableImage, usable_image
from data_scripts.sources.drivelm_json import TASKS, parse_drivelm
from smoldriver_common.whole_files import LOCK, sole_writer

ROOT = Path(__file__).parents[1]

TAG = "<c1,CAM_FRONT,1043.2,82.2>"


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


def encode(image, kind="JPEG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(seed, width=64, height=36):
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def question(text="Are there cars to the front of the ego car?", answer="Yes.", **extra):
    return {
        "Q": text,
        "A": answer,
        "C": None,
        "con_up": None,
        "con_down": None,
        "cluster": None,
        "layer": None,
        **extra,
    }


def write_source(folder, scenes=("scene-0", "scene-2", "scene-4"), frames=2, qa=None, size=(64, 36)):
    """A small DriveLM file with its images; scene-0 goes to train, scene-2 to eval, scene-4 to test."""
    content = {}
    for scene in scenes:
        key_frames = {}
        for number in range(frames):
            token = f"{scene}-frame-{number}"
            paths = {}
            for index, camera in enumerate(CAMERAS):
                file = folder / "nuscenes/samples" / camera / f"{token}+0800__{camera}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encode(noise(100 * number + index, *size)))
                paths[camera] = f"../nuscenes/samples/{camera}/{file.name}"
            items = qa or {
                "perception": [question(), question("Please describe the current scene.", "Rain.")],
                "prediction": [question(f"Would {TAG} take the ego vehicle into account?")],
                "planning": [question("What is the target action of the ego vehicle?", "Go ahead.")],
                "behavior": [question("Predict the behavior of the ego vehicle.", "It is going straight.")],
            }
            key_frames[token] = {"key_object_infos": {}, "QA": items, "image_paths": paths}
        content[scene] = {"scene_description": f"Drive {scene}.", "key_frames": key_frames}
    write_json(folder, content)
    return content


def write_json(folder, content):
    (folder / "drivelm.json").write_text(json.dumps(content))


def prepare(folder, *options, out="out"):
    """Run the command line on `folder`'s source; returns the manifest."""
    source = ["--json", str(folder / "drivelm.json"), "--image-root", str(folder / "nuscenes")]
    main([*source, "--output-dir", str(folder / out), "--workers", "2", *options])
    return read_manifest(folder / out)


def refusal(folder, *options, out="out"):
    """The one line with which the command line refuses `folder`'s source."""
    with pytest.raises(SystemExit) as caught:
        prepare(folder, *options, out=out)
    message = caught.value.code
    assert isinstance(message, str) and message.startswith("prepare_drivelm: ") and "\n" not in message
    return message


def stored_rows(folder):
    """Rows of all shards as stored, images not decoded."""
    return [row for path in sorted(folder.glob("*/shard-*.parquet")) for row in pq.read_table(path).to_pylist()]


def file_bytes(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# The real sample


@needs_sample
def test_real_sample_becomes_scene_rows(tmp_path, capsys):
    source = ["--json", str(SAMPLE / "train_sample.json"), "--image-root", str(SAMPLE / "nuscenes")]
    main([*source, "--output-dir", str(tmp_path / "out"), "--split", "train"])
    assert "questions by type: 311" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "out")
    assert manifest["splits"] == {"train": {"scenes": 1, "frames": 4, "questions": 311, "shards": 1}}
    assert manifest["report"]["questions by task"] == {
        "behavior": 4,
        "perception": 143,
        "planning": 65,
        "prediction": 99,
    }
    assert "missing images" not in manifest["report"]

    content = json.loads((SAMPLE / "train_sample.json").read_text())
    for row in stored_rows(tmp_path / "out"):
        frame = content[row["scene_token"]]["key_frames"][row["frame_token"]]
        for camera in CAMERAS:
            original = SAMPLE / frame["image_paths"][camera].removeprefix("../")
            assert row[camera]["bytes"] == original.read_bytes()
        asked = [(task, item["Q"], item["A"]) for task, items in frame["QA"].items() for item in items]
        assert [(item["task"], item["question"], item["answer"]) for item in row["qa"]] == asked
    assert load_scenes(tmp_path / "out", "train")[0]["CAM_BACK"].size == (1600, 900)


@needs_sample
def test_real_challenge_questions_keep_their_tags(tmp_path):
    source = ["--json", str(SAMPLE / "test_eval.json"), "--image-root", str(SAMPLE / "nuscenes")]
    main([*source, "--output-dir", str(tmp_path / "out"), "--split", "test", "--image-height", "90"])
    scenes = load_scenes(tmp_path / "out", "test")
    tags = [item["tag"] for row in scenes for item in row["qa"]]
    assert len(tags) == 31 and set(map(tuple, tags)) == {(0,), (1,), (2,), (3,)}
    assert scenes[0]["scene_description"] is None
    assert scenes[0]["CAM_FRONT"].size == (160, 90)


@needs_sample
def test_real_sample_without_object_tags(tmp_path):
    source = ["--json", str(SAMPLE / "train_sample.json"), "--image-root", str(SAMPLE / "nuscenes")]
    main([*source, "--output-dir", str(tmp_path / "out"), "--split", "train", "--object-tags", "drop"])
    rows = stored_rows(tmp_path / "out")
    kept = [item["question"] + item["answer"] for row in rows for item in row["qa"]]
    assert not any("<c" in text for text in kept)
    report = read_manifest(tmp_path / "out")["report"]
    text = (SAMPLE / "train_sample.json").read_text()
    named = sum(
        "<c" in item["Q"] + item["A"]
        for scene in json.loads(text).values()
        for frame in scene["key_frames"].values()
        for items in frame["QA"].values()
        for item in items
    )
    assert report["dropped questions"] == {"names an object tag": named}
    assert len(kept) + named == 311


# Splits, options, report


def test_scenes_go_to_the_splits_of_their_hash(tmp_path):
    write_source(tmp_path)
    manifest = prepare(tmp_path)
    assert {split: count["frames"] for split, count in manifest["splits"].items()} == {
        "train": 2,
        "eval": 2,
        "test": 2,
    }
    for split in ("train", "eval", "test"):
        assert {split_of(row["scene_token"]) for row in load_scenes(tmp_path / "out", split)} == {split}


def test_image_height_shrinks_and_never_enlarges(tmp_path):
    write_source(tmp_path, scenes=("scene-0",), frames=1)
    prepare(tmp_path, "--image-height", "18", out="small")
    prepare(tmp_path, "--image-height", "36", out="same")
    assert load_scenes(tmp_path / "small", "train")[0]["CAM_FRONT"].size == (32, 18)
    original = (tmp_path / "nuscenes/samples/CAM_FRONT/scene-0-frame-0+0800__CAM_FRONT.jpg").read_bytes()
    assert stored_rows(tmp_path / "same")[0]["CAM_FRONT"]["bytes"] == original


def test_several_files_become_one_folder(tmp_path):
    write_source(tmp_path, scenes=("scene-0",))
    os.rename(tmp_path / "drivelm.json", tmp_path / "first.json")
    write_source(tmp_path, scenes=("scene-2",))
    assert prepare(tmp_path, "--json", str(tmp_path / "first.json"), str(tmp_path / "drivelm.json"))[
        "splits"
    ].keys() == {
        "train",
        "eval",
    }
    again = tmp_path / "again.json"
    again.write_text((tmp_path / "first.json").read_text())
    message = refusal(tmp_path, "--json", str(tmp_path / "first.json"), str(again), out="twice")
    assert "again.json: frame 'scene-0-frame-0' is there twice, first in first.json, scene 'scene-0'" in message


def test_result_does_not_depend_on_the_number_of_workers(tmp_path):
    write_source(tmp_path, frames=20)
    (tmp_path / "nuscenes/samples/CAM_BACK/scene-0-frame-3+0800__CAM_BACK.jpg").unlink()
    prepare(tmp_path, "--shard-size", "18", "--workers", "1", out="one")
    prepare(tmp_path, "--shard-size", "18", "--workers", "7", out="seven")
    one = file_bytes(tmp_path / "one")
    assert len(one) == 7 and one == file_bytes(tmp_path / "seven")
    assert pq.read_metadata(tmp_path / "one/train/shard-00000.parquet").num_row_groups == 2  # never all rows at once
    in_order = [f"scene-0-frame-{number}" for number in range(20)]
    assert [row["frame_token"] for row in load_scenes(tmp_path / "one", "train")] == in_order


def test_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    content = write_source(tmp_path, scenes=("scene-0",), frames=1, size=(1600, 900))
    frame = content["scene-0"]["key_frames"].popitem()[1]
    content["scene-0"]["key_frames"] = {f"frame-{number}": frame for number in range(80)}
    write_json(tmp_path, content)
    options = ["--split", "train", "--shard-size", "2", "--workers", "1"]
    command = [sys.executable, "data_scripts/prepare_drivelm.py", "--json", str(tmp_path / "drivelm.json")]
    command += ["--image-root", str(tmp_path / "nuscenes"), "--output-dir", str(tmp_path / "killed"), *options]
    third = tmp_path / "killed/train/shard-00002.parquet"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as run:
        while not third.exists():
            assert run.poll() is None, "the run ended before it could be killed"
            time.sleep(0.002)
        run.send_signal(signal.SIGKILL)
    assert not read_manifest(tmp_path / "killed")["complete"]
    with pytest.raises(ValueError, match="was not finished"):
        load_scenes(tmp_path / "killed", "train")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed/train").glob("*.parquet")}
    assert 3 <= len(kept) < 40

    assert "image_height was None, now 90" in refusal(tmp_path, *options, "--image-height", "90", out="killed")
    prepare(tmp_path, *options, out="killed")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    prepare(tmp_path, *options, out="whole")
    assert file_bytes(tmp_path / "killed") == file_bytes(tmp_path / "whole")


def test_damaged_shard_is_written_again(tmp_path):
    write_source(tmp_path)
    prepare(tmp_path)
    whole = file_bytes(tmp_path / "out")
    shard = tmp_path / "out/train/shard-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    prepare(tmp_path)
    assert file_bytes(tmp_path / "out") == whole


def test_changed_source_is_not_mixed_into_a_folder(tmp_path):
    write_source(tmp_path)
    prepare(tmp_path)
    write_source(tmp_path, frames=3)
    assert "another source: json sha256 was" in refusal(tmp_path)
    (tmp_path / "out/manifest.json").unlink()
    assert "shards of unknown origin" in refusal(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--json", "a.json"],
        ["--image-root", "."],
        ["--json", "a.json", "--image-root", ".", "--from-paper-hub", "a", "b"],
        ["--json", "a.json", "--image-root", ".", "--workers", "0"],
        ["--json", "a.json", "--image-root", ".", "--image-height", "-3"],
    ],
)
def test_impossible_options_are_refused(options, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--output-dir", "never", *options])
    assert caught.value.code == 2 and "error:" in capsys.readouterr().err
    assert not Path("never").exists()


# Images


def spoil(folder, camera, data=None, frame="scene-0-frame-0"):
    """Replace one camera's file, or remove it."""
    path = folder / f"nuscenes/samples/{camera}/{frame}+0800__{camera}.jpg"
    path.unlink()
    if data is not None:
        path.write_bytes(data)


def test_unusable_images_are_counted_and_their_cameras_left_empty(tmp_path, capsys):
    write_source(tmp_path)
    huge = encode(Image.new("1", (20_000, 20_000)), "PNG")
    spoil(tmp_path, "CAM_FRONT")
    spoil(tmp_path, "CAM_BACK", b"")
    spoil(tmp_path, "CAM_FRONT_LEFT", encode(noise(3))[:-200])
    spoil(tmp_path, "CAM_FRONT_RIGHT", huge)
    spoil(tmp_path, "CAM_BACK_LEFT", b"GIF89a not an image at all")
    content = json.loads((tmp_path / "drivelm.json").read_text())
    del content["scene-0"]["key_frames"]["scene-0-frame-1"]["image_paths"]["CAM_BACK"]
    write_json(tmp_path, content)

    report = prepare(tmp_path)["report"]
    assert report["missing images by camera"] == {
        "CAM_BACK": 2,
        "CAM_BACK_LEFT": 1,
        "CAM_FRONT": 1,
        "CAM_FRONT_LEFT": 1,
        "CAM_FRONT_RIGHT": 1,
    }
    assert report["missing images by reason"] == {
        "cut short or broken (OSError)": 1,
        "empty file": 1,
        "more than 50,000,000 pixels": 1,
        "neither JPEG nor PNG, or cut within its header": 1,
        "no path given": 1,
        "no such file": 1,
    }
    name = "more than 50,000,000 pixels: samples/CAM_FRONT_RIGHT/scene-0-frame-0+0800__CAM_FRONT_RIGHT.jpg"
    assert name in report["missing images"] and name in capsys.readouterr().out
    first, second = load_scenes(tmp_path / "out", "train")
    assert [camera for camera in CAMERAS if first[camera] is not None] == ["CAM_BACK_RIGHT"]
    assert [camera for camera in CAMERAS if second[camera] is None] == ["CAM_BACK"]


@pytest.mark.parametrize("data", [None, b"", encode(noise(3))[:-200]], ids=["absent", "empty", "cut"])
def test_strict_stops_at_an_unusable_image(tmp_path, data):
    write_source(tmp_path)
    spoil(tmp_path, "CAM_BACK", data)
    assert "samples/CAM_BACK/scene-0-frame-0+0800__CAM_BACK.jpg" in refusal(tmp_path, "--strict")
    assert not read_manifest(tmp_path / "out")["complete"]


def test_frame_without_any_image_is_dropped_and_counted(tmp_path):
    write_source(tmp_path)
    for camera in CAMERAS:
        spoil(tmp_path, camera, b"")
    manifest = prepare(tmp_path, "--shard-size", "1")
    assert manifest["splits"]["train"] == {"scenes": 1, "frames": 1, "questions": 5, "shards": 2}
    assert manifest["report"]["dropped frames"] == {"no usable image": 1}
    assert manifest["report"]["dropped questions"] == {"its frame was dropped": 5}
    assert [row["frame_token"] for row in load_scenes(tmp_path / "out", "train")] == ["scene-0-frame-1"]


def test_nothing_usable_is_a_failure(tmp_path):
    write_source(tmp_path, scenes=("scene-0",), frames=1)
    for camera in CAMERAS:
        spoil(tmp_path, camera, b"broken")
    assert "not one frame was usable" in refusal(tmp_path)


def test_wrong_image_root_is_said_before_anything_is_written(tmp_path):
    write_source(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "no image of the JSON lies under --image-root" in refusal(tmp_path, "--image-root", str(tmp_path / "empty"))
    assert "is not a folder" in refusal(tmp_path, "--image-root", str(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "path", ["../nuscenes/../secret.jpg", "../secret.jpg", "/etc/passwd", "samples/../../a.jpg", "..", ""]
)
def test_path_that_leaves_the_image_root_is_refused(tmp_path, path):
    content = write_source(tmp_path)
    content["scene-0"]["key_frames"]["scene-0-frame-0"]["image_paths"]["CAM_BACK"] = path
    write_json(tmp_path, content)
    message = refusal(tmp_path)
    assert "CAM_BACK leaves the nuScenes folder" in message and "scene-0-frame-0" in message and repr(path) in message


def test_link_that_leaves_the_image_root_is_refused(tmp_path):
    write_source(tmp_path)
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(encode(noise(1)))
    link = tmp_path / "nuscenes/samples/CAM_BACK/scene-0-frame-0+0800__CAM_BACK.jpg"
    link.unlink()
    link.symlink_to(secret)
    assert "symbolic link" in refusal(tmp_path)
    # The root itself may be a link: that is how the official instructions attach a nuScenes folder.
    link.unlink()
    link.write_bytes(secret.read_bytes())
    (tmp_path / "linked").symlink_to(tmp_path / "nuscenes")
    assert prepare(tmp_path, "--image-root", str(tmp_path / "linked"), out="linked_out")["complete"]


def test_images_that_come_later_are_taken_in(tmp_path):
    write_source(tmp_path)
    late = tmp_path / "nuscenes/samples/CAM_BACK/scene-0-frame-1+0800__CAM_BACK.jpg"
    late.rename(tmp_path / "late.jpg")
    assert prepare(tmp_path)["report"]["missing images by camera"] == {"CAM_BACK": 1}
    (tmp_path / "late.jpg").rename(late)
    assert "missing images" not in prepare(tmp_path)["report"]
    assert all(row["CAM_BACK"] is not None for row in stored_rows(tmp_path / "out"))


def test_a_folder_that_another_process_prepares_is_refused(tmp_path):
    write_source(tmp_path)
    with sole_writer(tmp_path / "out"):
        assert "another process is writing" in refusal(tmp_path)
    assert prepare(tmp_path)["complete"]


def test_eight_bits_in_a_16_bit_png_are_not_made_black():
    picture = Image.fromarray(np.full((36, 64), 200, dtype=np.uint16))
    stored = Image.open(io.BytesIO(usable_image(encode(picture, "PNG"))))
    assert np.abs(np.asarray(stored, dtype=float) - 200).max() < 5


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK"])
def test_any_colour_mode_is_stored_as_rgb(mode):
    if mode == "I;16":
        picture = Image.fromarray(np.linspace(0, 65535, 64 * 36, dtype=np.uint16).reshape(36, 64))
        expected = np.linspace(0, 255, 64 * 36).reshape(36, 64, 1).repeat(3, axis=2)
    else:
        picture = noise(5).quantize() if mode == "P" else noise(5).convert(mode)
        expected = np.asarray(picture.convert("RGB"), dtype=float)
    stored = Image.open(io.BytesIO(usable_image(encode(picture, "JPEG" if mode == "CMYK" else "PNG"))))
    assert stored.mode == "RGB" and stored.size == (64, 36)
    assert np.abs(np.asarray(stored, dtype=float) - expected).mean() < 12


def test_rgb_png_is_stored_as_it_is():
    data = encode(noise(2), "PNG")
    assert usable_image(data) is data


def png_of_claimed_size(width, height):
    """A small PNG whose header claims another size."""
    data = bytearray(encode(Image.new("RGB", (8, 8)), "PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(20_000, 20_000), (MAX_PIXELS, 1), (7_100, 7_100), (2**31 - 1, 2**31 - 1)])
def test_decompression_bomb_is_told_from_its_header(size):
    width, height = size
    picture = png_of_claimed_size(width, height + (width == MAX_PIXELS))
    with pytest.raises(UnusableImage, match="more than 50,000,000 pixels"):
        usable_image(picture)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 20_000), progressive=st.booleans())
def test_image_that_passes_at_an_eighth_decodes_in_full(cut, progressive):
    whole = encode(noise(7, 320, 180), progressive=progressive)
    data = whole[: cut % (len(whole) + 1)]
    try:
        usable_image(data)
    except UnusableImage:
        assert len(data) < len(whole)
    else:
        Image.open(io.BytesIO(data)).load()
        assert len(data) > 0.95 * len(whole)


@settings(max_examples=80, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=20),
    kind=st.sampled_from(["JPEG", "PNG"]),
)
def test_broken_bytes_give_an_rgb_image_or_a_reason(flips, kind):
    data = bytearray(encode(noise(8), kind))
    for position, value in flips:
        data[position % len(data)] = value
    try:
        stored = usable_image(bytes(data), 20)
    except UnusableImage as reason:
        assert str(reason)
    else:
        assert Image.open(io.BytesIO(stored)).mode == "RGB"


# The JSON


def test_unusable_questions_are_dropped_and_counted(tmp_path):
    items = [question(answer=answer) for answer in ("Yes.", "", "  ", None, 7, ["Yes."], "\ud800")]
    items += [question(text) for text in ("", None, "\udfff")]
    no_answer = question()
    del no_answer["A"]
    write_source(tmp_path, scenes=("scene-0",), frames=1, qa={"perception": [*items, no_answer], "planning": []})
    manifest = prepare(tmp_path)
    assert manifest["splits"]["train"]["questions"] == 1
    assert manifest["report"]["dropped questions"] == {
        "answer is empty": 2,
        "answer is not a string": 4,
        "answer is not valid Unicode": 1,
        "question is empty": 1,
        "question is not a string": 1,
        "question is not valid Unicode": 1,
    }


def test_challenge_file_without_answers_is_kept_for_testing_only(tmp_path):
    unanswered = question()
    del unanswered["A"]
    write_source(tmp_path, qa={"perception": [question(answer="", tag=[0]), unanswered, question(answer=3)]})
    manifest = prepare(tmp_path, "--split", "test", out="test_out")
    assert manifest["splits"]["test"]["questions"] == 12
    assert manifest["report"]["dropped questions"] == {"answer is not a string": 6}
    assert {item["answer"] for row in stored_rows(tmp_path / "test_out") for item in row["qa"]} == {""}
    assert "not one frame was usable" in refusal(tmp_path, out="train_out")


def edited(content, change):
    frame = content["scene-0"]["key_frames"]["scene-0-frame-0"]
    change(content, frame)
    return json.dumps(content)


WRONG_JSON = {
    "cut in half": (lambda text: text[: len(text) // 2], "cut short"),
    "empty": (lambda text: "", "not JSON"),
    "a list": (lambda text: "[]", "must be an object, not list"),
    "null": (lambda text: "null", "must be an object, not missing or null"),
    "too deep": (lambda text: "[" * 200_000, "nested too deeply|not JSON"),
    "a huge number": (lambda text: "9" * 10_000, "digit"),
    "scene twice": (lambda text: text[:-1] + "," + text[1:], "'scene-0' is there twice"),
    "frame twice in a scene": (
        lambda text: text.replace("scene-0-frame-1", "scene-0-frame-0"),
        "'scene-0-frame-0' is there twice",
    ),
    "frame twice in two scenes": (
        lambda text: text.replace("scene-2-frame-1", "scene-0-frame-0"),
        "'scene-0-frame-0' is there twice",
    ),
    "camera twice": (lambda text: text.replace('"CAM_BACK":', '"CAM_FRONT":', 1), "'CAM_FRONT' is there twice"),
    "wrong camera": (
        lambda text: text.replace('"CAM_BACK":', '"CAM_TOP":', 1),
        "unknown camera 'CAM_TOP'.*CAM_FRONT_LEFT, ",
    ),
    "unknown task": (lambda text: text.replace('"planning":', '"parking":', 1), "unknown task 'parking'"),
    "no key frames": (lambda text: text.replace('"key_frames":', '"frames":', 1), "key_frames must be an object"),
    "half a surrogate in a token": (lambda text: text.replace("scene-0-frame-0", "\\ud800", 1), "must be text"),
    "description is a number": (
        lambda text: text.replace('"Drive scene-0."', "5"),
        "scene_description must be text, not 5",
    ),
    "frames one level up": (lambda text: json.dumps(json.loads(text)["scene-0"]["key_frames"]), "key_frames"),
}
WRONG_NESTING = {
    "no QA": (lambda content, frame: frame.pop("QA"), "QA must be an object, not missing"),
    "QA is a list": (lambda content, frame: frame.update(QA=[question()]), "QA must be an object, not list"),
    "task is an object": (lambda content, frame: frame["QA"].update(planning={}), "QA.planning must be a list"),
    "item is text": (
        lambda content, frame: frame["QA"]["planning"].append("Why?"),
        r"QA.planning\[1\] must be an object",
    ),
    "item without Q": (
        lambda content, frame: frame["QA"]["planning"][0].pop("Q"),
        r"QA.planning\[0\] has no question",
    ),
    "tag is 9": (
        lambda content, frame: frame["QA"]["planning"][0].update(tag=[9]),
        "tag must be a list of 0, 1, 2 or 3",
    ),
    "no image paths": (lambda content, frame: frame.pop("image_paths"), "image_paths must be an object"),
    "image path is a list": (
        lambda content, frame: frame["image_paths"].update(CAM_BACK=[]),
        "CAM_BACK must be a string",
    ),
    "image path with a zero": (
        lambda content, frame: frame["image_paths"].update(CAM_BACK="a\0b"),
        "CAM_BACK must be a string",
    ),
    "frame is null": (
        lambda content, frame: content["scene-0"]["key_frames"].update(x=None),
        "frame 'x' must be an object",
    ),
    "scene is text": (lambda content, frame: content.update(x="y"), "scene 'x' must be an object"),
    "empty token": (lambda content, frame: content.update({"": {"key_frames": {}}}), "must be text, not ''"),
}
WRONG_JSON |= {
    name: (lambda text, change=change: edited(json.loads(text), change), message)
    for name, (change, message) in WRONG_NESTING.items()
}


@pytest.mark.parametrize(("spoiled", "message"), WRONG_JSON.values(), ids=WRONG_JSON)
def test_wrong_json_is_refused_in_one_line(tmp_path, spoiled, message):
    content = write_source(tmp_path)
    (tmp_path / "drivelm.json").write_text(spoiled(json.dumps(content)))
    assert re.search(message, line := refusal(tmp_path)), line
    assert "drivelm.json" in line and not (tmp_path / "out").exists()


def test_json_that_is_not_utf8_is_refused(tmp_path):
    write_source(tmp_path)
    (tmp_path / "drivelm.json").write_bytes(b'{"\xff": 1}')
    assert "not UTF-8 text at byte 2" in refusal(tmp_path)
    (tmp_path / "drivelm.json").unlink()
    assert "No such file" in refusal(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
keys = (
    st.sampled_from(["key_frames", "QA", "image_paths", "scene_description", "Q", "A", "tag", *TASKS, *CAMERAS])
    | st.text()
)


def places(value, path=()):
    """Every place in a JSON value, as the keys that lead to it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def mutated(value, place, operation, key, new):
    """A copy of a JSON value with one place replaced, removed, renamed or added to."""
    if not place:
        return new if operation == "replace" else {**value, key: new} if isinstance(value, dict) else value
    head, rest = place[0], place[1:]
    copy = dict(value) if isinstance(value, dict) else list(value)
    if rest or operation in ("replace", "add"):
        copy[head] = mutated(copy[head], rest, operation, key, new)
    elif operation == "remove":
        del copy[head]
    elif isinstance(copy, dict):
        copy[key] = copy.pop(head)
    return copy


VALID = {
    "scene": {
        "scene_description": "A drive.",
        "key_frames": {
            "frame": {
                "QA": {"perception": [question(tag=[0])], "planning": [question(), question()]},
                "image_paths": {camera: f"../nuscenes/samples/{camera}/a.jpg" for camera in CAMERAS},
            }
        },
    }
}


def check_reader(data):
    """Frames that make valid rows, or a ValueError that says something."""
    try:
        frames = parse_drivelm(data, drop_object_tags=False, keep_unlabelled=False)
    except ValueError as error:
        assert str(error)
        return
    image = {"bytes": b"image", "path": None}
    for frame in frames:
        row = {name: frame[name] for name in ("scene_token", "frame_token", "scene_description", "qa")}
        assert scene_table([row | dict.fromkeys(CAMERAS, image)]).num_rows == 1
        assert all(
            not Path(path).is_absolute() and ".." not in Path(path).parts for path in frame["image_paths"].values()
        )


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 10**6), st.sampled_from(["replace", "remove", "rename", "add"]), keys, json_values),
        min_size=1,
        max_size=3,
    )
)
def test_any_mutation_of_the_json_gives_rows_or_a_clear_error(edits):
    value = VALID
    for number, operation, key, new in edits:
        found = places(value)
        value = mutated(value, found[number % len(found)], operation, key, new)
    check_reader(json.dumps(value).encode())


@settings(max_examples=200, deadline=None)
@given(start=st.integers(0, 2000), length=st.integers(0, 2000), inserted=st.binary(max_size=8))
def test_any_damage_to_the_text_gives_rows_or_a_clear_error(start, length, inserted):
    text = json.dumps(VALID).encode()
    check_reader(text[:start] + inserted + text[start + length :])


# The paper's tables


def write_paper_tables(folder, change=None):
    """The two tables with two splits of their own; returns the images' bytes by (split, row, camera)."""
    images = {}
    for number, (split, count) in enumerate({"train": 2, "test": 1}.items()):
        questions, pictures = [], []
        for index in range(count):
            picture = {camera: encode(noise(number * 50 + index * 10 + place)) for place, camera in enumerate(CAMERAS)}
            images |= {(split, index, camera): data for camera, data in picture.items()}
            pictures.append({camera: {"bytes": data, "path": None} for camera, data in picture.items()})
            for text, answer in (("Is it?", "Yes."), (f"Is {TAG} near?", "No."), ("Why?", "")):
                row = {
                    "scene_token": f"scene-{number}",
                    "frame_token": f"{split}-{index}",
                    "scene_description": "A drive.",
                }
                row |= {"task": "perception", "question": text, "answer": answer, "nuscenes_index": index}
                questions.append(row)
        if change:
            change(split, questions, pictures)
        features = datasets.Features({camera: datasets.Image() for camera in pictures[0]})
        (folder / "qa").mkdir(exist_ok=True)
        (folder / "images/data").mkdir(exist_ok=True, parents=True)
        datasets.Dataset.from_list(questions).to_parquet(folder / f"qa/{split}-00000-of-00001.parquet")
        table = datasets.Dataset.from_list(pictures, features=features)
        table.to_parquet(folder / f"images/data/{split}-00000-of-00001.parquet")
    return images


def prepare_paper(folder, *options):
    tables = ["--from-paper-hub", str(folder / "qa"), str(folder / "images"), "--workers", "2"]
    main([*tables, "--output-dir", str(folder / "out"), *options])
    return read_manifest(folder / "out")


def test_paper_tables_become_scene_rows(tmp_path):
    images = write_paper_tables(tmp_path)
    manifest = prepare_paper(tmp_path, "--split", "train", "--object-tags", "drop")
    assert manifest["splits"]["train"] == {"scenes": 2, "frames": 3, "questions": 3, "shards": 1}
    assert manifest["report"]["dropped questions"] == {"answer is empty": 3, "names an object tag": 3}
    for row in stored_rows(tmp_path / "out"):
        split, index = row["frame_token"].split("-")
        assert row["scene_description"] == "A drive."
        assert all(row[camera]["bytes"] == images[split, int(index), camera] for camera in CAMERAS)
        assert row["qa"] == [{"task": "perception", "question": "Is it?", "answer": "Yes.", "tag": []}]
    assert prepare_paper(tmp_path, "--split", "train", "--object-tags", "drop") == manifest


def test_frame_in_two_paper_splits_becomes_one(tmp_path):
    def share(split, questions, pictures):
        if split == "test":
            for row in questions:
                row.update(scene_token="scene-0", frame_token="train-1")

    write_paper_tables(tmp_path, share)
    assert prepare_paper(tmp_path)["splits"] == {"train": {"scenes": 1, "frames": 2, "questions": 6, "shards": 1}}


def test_missing_picture_in_the_paper_table_is_counted(tmp_path):
    write_paper_tables(tmp_path, lambda split, questions, pictures: pictures[0].update(CAM_BACK=None))
    report = prepare_paper(tmp_path, "--split", "train")["report"]
    assert report["missing images by camera"] == {"CAM_BACK": 2}


WRONG_TABLES = {
    "index beyond the images": (
        lambda s, q, p: q[0].update(nuscenes_index=2),
        "nuscenes_index is 2, .*'test' has 1 rows",
    ),
    "negative index": (lambda s, q, p: q[0].update(nuscenes_index=-1), "nuscenes_index is -1"),
    "two frames at one index": (
        lambda s, q, p: q[0].update(frame_token="x"),
        "'test-0' has nuscenes_index 0, which is frame 'x'",
    ),
    "one frame in two scenes": (
        lambda s, q, p: q[0].update(scene_token="x"),
        "'test-0' is in scene 'scene-1' here and in 'x' before",
    ),
    "no task": (lambda s, q, p: q[0].update(task=None), "task must be text"),
    "no frame token": (lambda s, q, p: q[0].update(frame_token=None), "scene_token and frame_token must be text"),
    "no camera column": (lambda s, q, p: [row.pop("CAM_BACK") for row in p], "no column CAM_BACK"),
    "no answer column": (lambda s, q, p: [row.pop("answer") for row in q], "no column answer"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_TABLES.values(), ids=WRONG_TABLES)
def test_wrong_paper_table_is_refused(tmp_path, change, message):
    write_paper_tables(tmp_path, change)
    with pytest.raises(SystemExit) as caught:
        prepare_paper(tmp_path)
    assert re.search(message, str(caught.value.code)), caught.value.code
    assert not (tmp_path / "out").exists()


def test_folder_without_paper_tables_is_refused(tmp_path):
    (tmp_path / "qa").mkdir()
    with pytest.raises(SystemExit, match="cannot load .*no Parquet file"):
        prepare_paper(tmp_path)


# The download of the sample


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def sample_server(tmp_path, monkeypatch):
    """A server on this machine that offers a small sample under the paths of DriveLM's folder `challenge`."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    content = write_source(tmp_path / "source")
    challenge = tmp_path / "challenge"
    (challenge / "data").mkdir(parents=True)
    (challenge / "data/train_sample.json").write_text(json.dumps(content))
    (challenge / "test_eval.json").write_text(json.dumps(content))
    (challenge / "output.json").write_text("[]")
    images = challenge / "llama_adapter_v2_multimodal7b/data/nuscenes"
    images.parent.mkdir(parents=True)
    (tmp_path / "source/nuscenes").rename(images)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=challenge))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", challenge
    server.shutdown()
    server.server_close()


def download(tmp_path, url):
    download_drivelm_sample.main(["--output-dir", str(tmp_path / "sample"), "--base-url", url])


def test_downloaded_sample_can_be_prepared(tmp_path, sample_server, capsys):
    url, challenge = sample_server
    download(tmp_path, url)
    assert "6 key frames, 36 images" in capsys.readouterr().out
    (tmp_path / "sample/train_sample.json").rename(tmp_path / "sample/drivelm.json")
    assert prepare(tmp_path / "sample", "--strict")["splits"]["train"]["frames"] == 2


def test_interrupted_download_goes_on(tmp_path, sample_server):
    url, challenge = sample_server
    image = next(challenge.rglob("CAM_BACK/*.jpg"))
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    with pytest.raises(SystemExit, match="is not the file it should be"):
        download(tmp_path, url)
    image.unlink()
    with pytest.raises(SystemExit, match="404"):
        download(tmp_path, url)
    assert not list((tmp_path / "sample").rglob("*.tmp"))
    image.write_bytes(whole)
    download(tmp_path, url)
    assert len(list((tmp_path / "sample").rglob("*.jpg"))) == 36
    download(tmp_path, "http://127.0.0.1:1")  # everything is there: nothing is fetched


def test_download_without_a_network_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(SystemExit, match="cannot fetch http://127.0.0.1:1/data/train_sample.json.*Is there a network"):
        download(tmp_path, "http://127.0.0.1:1")
