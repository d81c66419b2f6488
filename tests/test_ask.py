"""Asking a saved model about a frame: bad input is named, and only an answer with a truth is coloured."""

import json
import sys

import pytest
from fakes import picture, scene_row, write_scenes
from PIL import Image

from modeling_smoldriver import CAMERAS
from recipes import ask


def refusal(monkeypatch, *options) -> str:
    monkeypatch.setattr(sys, "argv", ["ask.py", *map(str, options)])
    with pytest.raises(SystemExit) as caught:
        ask.main()
    return caught.value.code


def test_bad_input_is_reported_in_one_line(monkeypatch, tmp_path):
    scenes = tmp_path / "scenes"
    said = refusal(monkeypatch, "--model", tmp_path / "none", "--scenes", scenes)
    assert said == f"ask: there is no model folder {tmp_path}/none"
    said = refusal(monkeypatch, "--model", tmp_path, "--scenes", scenes)
    assert said == f"ask: {scenes} is not a folder of prepared scene rows: it has no manifest.json"
    scenes.mkdir()
    (scenes / "manifest.json").write_text(json.dumps({"complete": False}))
    assert "was not finished: run the same command again" in refusal(
        monkeypatch, "--model", tmp_path, "--scenes", scenes
    )
    (scenes / "manifest.json").write_text(json.dumps({"complete": True}))
    assert "has no shards of the split 'test'" in refusal(monkeypatch, "--model", tmp_path, "--scenes", scenes)
    (scenes / "test").mkdir()
    (scenes / "test" / "shard-00000.parquet").write_bytes(b"PAR1 cut short")
    said = refusal(monkeypatch, "--model", tmp_path, "--scenes", scenes)
    assert said.startswith("ask: ") and "\n" not in said


def test_brackets_in_a_folders_name_are_not_a_pattern(tmp_path):
    """`set[ab]` as a pattern matches the folder `seta` beside it."""
    for name, number in (("set[ab]", 0), ("seta", 1)):
        write_scenes(tmp_path / name, [scene_row(number, 1)])
    assert ask.read_frame(tmp_path / "set[ab]", "train", 0)["frame_token"] == "frame0"


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(monkeypatch, tmp_path):
    """Where code of that name would be run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "smoldriver-2b-merged").mkdir(parents=True)
    for name in ("outputs/smoldriver-2b-mergd", "/smoldriver-2b-merged"):
        assert refusal(monkeypatch, "--model", name, "--scenes", "s") == f"ask: there is no model folder {name}"


def test_an_answer_without_a_truth_is_neither_green_nor_red(tmp_path):
    row = {camera: picture(seed) for seed, camera in enumerate(CAMERAS)}

    def colours(truth):
        ask.paint(row, [("Are there cars?", "Yes.", truth)], tmp_path / "answers.png")
        with Image.open(tmp_path / "answers.png") as image:
            text = image.convert("RGB").crop((0, image.height * 9 // 10, image.width, image.height))
        return {colour for _, colour in text.getcolors(100_000) if max(colour) - min(colour) > 60}

    assert colours("Yes.") and colours("No.") and not colours(None)
