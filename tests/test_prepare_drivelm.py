"""From DriveLM's JSON and nuScenes images to shards of scene rows: real data, splits, options, unusable images."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from drivelm_source import (
    encode,
    file_bytes,
    noise,
    png_of_claimed_size,
    prepare,
    refusal,
    spoil,
    stored_rows,
    write_json,
    write_source,
)
from fakes import SAMPLE, needs_sample

from data_scripts.prepare_drivelm import main
from data_scripts.schema import CAMERAS, load_scenes, read_manifest, split_of

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


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
    assert "again.json: frame 'scene-0-frame-0' is duplicated, first in first.json, scene 'scene-0'" in message


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


def test_unusable_images_are_counted_and_their_cameras_left_empty(tmp_path, capsys):
    write_source(tmp_path)
    huge = png_of_claimed_size(20_000, 20_000)
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


def test_the_output_is_not_the_image_root(tmp_path):
    write_source(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nuscenes")
    for out in ("nuscenes", "link"):
        message = refusal(tmp_path, out=out)
        assert "the output folder" in message and message.endswith("is the --image-root: give another")
    assert [path.name for path in (tmp_path / "nuscenes").iterdir()] == ["samples"]


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


def test_wrong_image_root_is_reported_before_anything_is_written(tmp_path):
    write_source(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "no image of the JSON lies under --image-root" in refusal(tmp_path, "--image-root", str(tmp_path / "empty"))
    assert "is not a folder" in refusal(tmp_path, "--image-root", str(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "path",
    [
        "../nuscenes/../secret.jpg",
        "../secret.jpg",
        "/etc/passwd",
        "//etc/passwd",
        "../nuscenes//etc/passwd",
        "../nuscenes///a.jpg",
        "samples/../../a.jpg",
        "..",
        "",
        "C:\\secret.jpg",  # as Windows reads it
        "..\\secret.jpg",
        "samples\\..\\..\\secret.jpg",
        "\\\\server\\secret.jpg",
    ],
)
def test_path_that_leaves_the_image_root_is_refused(tmp_path, path):
    content = write_source(tmp_path)
    content["scene-0"]["key_frames"]["scene-0-frame-0"]["image_paths"]["CAM_BACK"] = path
    write_json(tmp_path, content)
    message = refusal(tmp_path)
    assert "CAM_BACK leaves the nuScenes folder" in message and "scene-0-frame-0" in message and repr(path) in message


def test_links_on_the_disk_are_followed(tmp_path):
    """A camera's folder on another disk, files as the Hub's cache keeps them, and the root as DriveLM's instructions
    attach it."""
    write_source(tmp_path)
    plain = prepare(tmp_path, out="plain")
    samples = tmp_path / "nuscenes/samples"
    (samples / "CAM_BACK").rename(tmp_path / "other_disk")
    (samples / "CAM_BACK").symlink_to(tmp_path / "other_disk")
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(sorted((samples / "CAM_FRONT").iterdir())):
        path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(f"../../../blobs/{number}")
    (tmp_path / "linked").symlink_to(tmp_path / "nuscenes")
    for root in ("nuscenes", "linked"):
        manifest = prepare(tmp_path, "--image-root", str(tmp_path / root), out=f"from_{root}")
        assert manifest["report"] == plain["report"] and "missing images" not in manifest["report"]
        assert stored_rows(tmp_path / f"from_{root}") == stored_rows(tmp_path / "plain")


def test_other_sensors_are_left_out_and_counted(tmp_path):
    content = write_source(tmp_path)
    plain = prepare(tmp_path, out="plain")
    assert "sensors left out" not in plain["report"]
    frame = content["scene-0"]["key_frames"]["scene-0-frame-0"]
    frame["image_paths"] |= {"LIDAR_TOP": "../nuscenes/samples/LIDAR_TOP/a.bin", "CAM_TOP": 7}
    write_json(tmp_path, content)
    manifest = prepare(tmp_path)
    assert manifest["report"].pop("sensors left out") == {"CAM_TOP": 1, "LIDAR_TOP": 1}
    assert manifest["report"] == plain["report"] and stored_rows(tmp_path / "out") == stored_rows(tmp_path / "plain")
