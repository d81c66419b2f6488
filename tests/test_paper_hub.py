"""The paper's two tables become scene rows, or are refused."""

import re

import datasets
import pytest
from drivelm_source import TAG, encode, noise, stored_rows

from data_scripts.prepare_drivelm import main
from data_scripts.schema import CAMERAS, read_manifest

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


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


def test_paper_tables_in_a_folder_with_brackets_are_its_own(tmp_path):
    for name in ("a", "[ab]"):
        (tmp_path / name).mkdir()
        write_paper_tables(tmp_path / name, lambda split, questions, _, name=name: questions[0].update(answer=name))
    prepare_paper(tmp_path / "[ab]", "--split", "train")
    answers = {item["answer"] for row in stored_rows(tmp_path / "[ab]/out") for item in row["qa"]}
    assert "[ab]" in answers and "a" not in answers


def test_folder_without_paper_tables_is_refused(tmp_path):
    (tmp_path / "qa").mkdir()
    with pytest.raises(SystemExit, match="cannot load .*no Parquet file"):
        prepare_paper(tmp_path)
