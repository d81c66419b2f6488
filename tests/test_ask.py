"""Asking a saved model about a frame: bad input is named, and only an answer with a truth is coloured."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import picture, scene_row, small_files, write_scenes
from PIL import Image

from data_scripts.schema import SCENE_FEATURES
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
    assert said.startswith(f"ask: there is no folder {scenes}: prepare the scenes first")
    scenes.mkdir()
    said = refusal(monkeypatch, "--model", tmp_path, "--scenes", scenes)
    assert said == f"ask: {scenes} has no manifest.json: it is not a folder of prepared scenes"
    (scenes / "manifest.json").write_text(json.dumps({"complete": False}))
    assert "was not finished: run the same command again" in refusal(
        monkeypatch, "--model", tmp_path, "--scenes", scenes
    )
    splits = {"train": {"frames": 1, "shards": 1}}
    (scenes / "manifest.json").write_text(json.dumps({"complete": True, "splits": splits}))
    said = refusal(monkeypatch, "--model", tmp_path, "--scenes", scenes)
    assert said == f"ask: split 'test' of {scenes} is empty; these have rows: train (1 frames)"
    (scenes / "manifest.json").write_text(json.dumps({"complete": True, "splits": {"test": splits["train"]}}))
    said = refusal(monkeypatch, "--model", tmp_path, "--scenes", scenes)
    assert "shard-00000.parquet is missing though manifest.json lists it" in said
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
    pictures = {camera: picture(seed) for seed, camera in enumerate(CAMERAS)}

    def colours(truth):
        ask.paint(pictures, [("Are there cars?", "Yes.", truth)], tmp_path / "answers.png")
        with Image.open(tmp_path / "answers.png") as image:
            text = image.convert("RGB").crop((0, image.height * 9 // 10, image.width, image.height))
        return {colour for _, colour in text.getcolors(100_000) if max(colour) - min(colour) > 60}

    assert colours("Yes.") and colours("No.") and not colours(None)


@pytest.mark.parametrize(
    "picture", [{"bytes": None, "path": "http://127.0.0.1:9/a.png"}, {"bytes": b"", "path": "/a"}]
)
def test_rows_whose_pictures_lie_elsewhere_are_not_opened(picture, model_folder, monkeypatch, tmp_path):
    scenes = write_scenes(tmp_path / "scenes", [scene_row(0, 1)])
    row = scene_row(0, 1) | {"CAM_BACK": picture}
    pq.write_table(
        pa.Table.from_pylist([row], schema=SCENE_FEATURES.arrow_schema), scenes / "train" / "shard-00000.parquet"
    )
    said = refusal(monkeypatch, "--model", model_folder, "--scenes", scenes, "--split", "train")
    assert "CAM_BACK" in said and ("has no bytes in its row" in said or "is more than a name" in said)


def test_a_question_longer_than_the_context_is_refused(model_folder, monkeypatch, tmp_path):
    scenes = write_scenes(tmp_path / "scenes", [scene_row(0, 1)])
    options = ("--model", model_folder, "--scenes", scenes, "--split", "train", "--questions")
    said = refusal(monkeypatch, *options, "Are there cars?", "cars " * 30_000)
    assert said.startswith("ask: 1 of 2 questions are too long, the first is number 2: 'cars cars")
    assert "the model's context has 1024 tokens" in said and "\n" not in said


def test_a_picture_that_does_not_fit_on_the_disk_is_one_line(model_folder, monkeypatch, tmp_path, capsys):
    scenes = write_scenes(tmp_path / "scenes", [scene_row(0, 1)])
    ask.read_frame(scenes, "train", 0)  # what `datasets` unpacks is written before
    options = ("--model", model_folder, "--scenes", scenes, "--split", "train", "--picture", tmp_path / "answers.png")
    with small_files(10_000):
        said = refusal(monkeypatch, *options)
    assert said.startswith("ask: [Errno 27] File too large") and "\n" not in said
    assert capsys.readouterr().out.startswith("Q ") and not list(tmp_path.glob("answers*"))
