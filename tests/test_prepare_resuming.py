"""A preparation that is killed, damaged or repeated ends with the same bytes, or is refused."""

import signal
import subprocess
import sys
import time

import pytest
from drivelm_source import file_bytes, prepare, refusal, stored_rows, write_json, write_source
from fakes import ROOT

from data_scripts.schema import load_scenes, read_manifest
from smoldriver_common.whole_files import sole_writer

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def test_killed_run_resumes_and_ends_with_the_same_bytes(tmp_path):
    content = write_source(tmp_path, scenes=("scene-0",), frames=1, size=(1600, 900))
    frame = content["scene-0"]["key_frames"].popitem()[1]
    content["scene-0"]["key_frames"] = {f"frame-{number}": frame for number in range(32)}
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
    assert 3 <= len(kept) < 16

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


def test_images_that_come_later_are_added(tmp_path):
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
