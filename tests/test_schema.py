"""The scene row: its checks, its shards, and what `load_scenes` reads and refuses."""

import io
import json
import re

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_scripts.schema import (
    CAMERAS,
    PLANNING_ROW,
    SCENE_FEATURES,
    check_disjoint,
    load_scenes,
    open_shard,
    read_manifest,
    scene_table,
    shard_path,
    split_of,
    validate_row,
    write_manifest,
)

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def jpeg(color):
    out = io.BytesIO()
    Image.new("RGB", (32, 18), color).save(out, "JPEG")
    return out.getvalue()


def scene_row(scene="scene-a", frame="frame-a", missing=(), **changes):
    row = {"scene_token": scene, "frame_token": frame, "scene_description": None}
    for number, camera in enumerate(CAMERAS):
        image = {"bytes": jpeg((40 * number, 0, 0)), "path": f"{camera}.jpg"}
        row[camera] = None if camera in missing else image
    row["qa"] = [{"task": "perception", "question": "Is it?", "answer": "Yes.", "tag": [0]}]
    return row | changes


def write_folder(folder, splits, complete=True):
    """A prepared folder with one shard per split; `splits`: {split: rows}."""
    counts = {}
    for split, rows in splits.items():
        with open_shard(shard_path(folder, split, 0)) as shard:
            shard.write_table(scene_table(rows))
        counts[split] = {"scenes": len(rows), "frames": len(rows), "questions": len(rows), "shards": 1}
    write_manifest(folder, {"complete": complete, "source": {}, "options": {}, "splits": counts, "report": {}})


def test_columns_are_those_of_the_design():
    assert list(SCENE_FEATURES) == ["scene_token", "frame_token", "scene_description", *CAMERAS, "qa"]
    assert CAMERAS == (
        "CAM_FRONT_LEFT",
        "CAM_FRONT",
        "CAM_FRONT_RIGHT",
        "CAM_BACK_LEFT",
        "CAM_BACK",
        "CAM_BACK_RIGHT",
    )


def test_split_of_a_scene_never_changes():
    # Written down once: a change here would move scenes between the splits of models that are already trained.
    assert split_of("f0f120e4d4b0441da90ec53b16ee169d") == "train"  # sha256 % 10 is 2
    assert [split_of(f"scene-{number}") for number in (0, 2, 4)] == ["train", "eval", "test"]  # 0, 8, 9
    shares = [split_of(f"scene-{number}") for number in range(4000)]
    assert shares.count("train") == pytest.approx(3200, abs=100)
    assert shares.count("eval") == pytest.approx(400, abs=80)
    assert shares.count("test") == pytest.approx(400, abs=80)


def test_overlapping_splits_are_refused_by_name():
    check_disjoint({"train": ["a", "a", "b"], "eval": iter(["c"]), "test": []})
    with pytest.raises(ValueError, match=r"'train' and 'test' share 1 scenes \(b\)"):
        check_disjoint({"train": ["a", "b"], "eval": ["c"], "test": iter(["b", "d"])})


BAD_ROWS = {
    "no qa column": (lambda row: row.pop("qa"), "columns"),
    "another column": (lambda row: row.update(CAM_TOP=None), "CAM_TOP"),
    "empty scene token": (lambda row: row.update(scene_token=""), "scene_token must be a non-empty string"),
    "token is a number": (lambda row: row.update(frame_token=7), "frame_token must be a non-empty string, not 7"),
    "description is a list": (lambda row: row.update(scene_description=[]), "scene_description"),
    "image is a path": (lambda row: row.update(CAM_BACK="a.jpg"), "CAM_BACK"),
    "image without bytes": (lambda row: row.update(CAM_BACK={"bytes": None, "path": "a.jpg"}), "CAM_BACK"),
    "no image at all": (lambda row: row.update(dict.fromkeys(CAMERAS)), "none of the cameras CAM_FRONT_LEFT, "),
    "qa is a dict": (lambda row: row.update(qa={}), "qa must be a list"),
    "qa item without tag": (lambda row: row["qa"][0].pop("tag"), "task, question, answer and tag"),
    "answer is a number": (lambda row: row["qa"][0].update(answer=3), "must be strings"),
    "tag is not a list": (lambda row: row["qa"][0].update(tag=0), "tag must be a list"),
    "tag is true": (lambda row: row["qa"][0].update(tag=[True]), "tag must be a list"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_row_is_refused(spoil, message):
    row = scene_row()
    validate_row(row)
    spoil(row)
    with pytest.raises(ValueError, match=message):
        scene_table([row])


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_come_back_as_they_were_written(tmp_path, streaming):
    rows = [scene_row(frame="one"), scene_row(frame="two", missing=("CAM_BACK",), scene_description="Rain.", qa=[])]
    write_folder(tmp_path / "scenes", {"train": rows, "eval": [scene_row(scene="other")]})
    loaded = list(load_scenes(tmp_path / "scenes", "train", streaming=streaming))
    assert [row["frame_token"] for row in loaded] == ["one", "two"]
    assert [row["scene_description"] for row in loaded] == [None, "Rain."]
    assert loaded[0]["qa"] == rows[0]["qa"] and loaded[1]["qa"] == []
    assert loaded[1]["CAM_BACK"] is None
    image = loaded[0]["CAM_FRONT"]
    assert image.size == (32, 18)
    assert image.tobytes() == Image.open(io.BytesIO(rows[0]["CAM_FRONT"]["bytes"])).tobytes()


def test_folder_is_read_by_plain_load_dataset(tmp_path):
    write_folder(tmp_path / "scenes", {"train": [scene_row()]})
    plain = datasets.load_dataset("parquet", data_files={"train": str(tmp_path / "scenes/train/*.parquet")})["train"]
    assert plain.features == SCENE_FEATURES
    assert plain[0]["CAM_FRONT"].size == (32, 18)


def test_rows_can_be_read_by_datasets_2_and_3(tmp_path):
    """Which know no type `List`: a list of structs was a list there, any other a `Sequence`."""
    for features, lists in ((SCENE_FEATURES, {"qa"}), (PLANNING_ROW, {"qa", "agents"})):
        path = tmp_path / f"{len(features)}.parquet"
        with open_shard(path, features):
            pass
        schema = pq.read_schema(path)
        written = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        assert set(re.findall('"_type": "([A-Za-z]+)"', json.dumps(written))) == {"Value", "Image", "Sequence"}
        assert {name for name, feature in written.items() if isinstance(feature, list)} == lists
        assert datasets.Features.from_arrow_schema(schema) == features


def test_shard_without_rows_is_read(tmp_path):
    folder = tmp_path / "scenes"
    write_folder(folder, {"train": [scene_row()]})
    with open_shard(shard_path(folder, "train", 1)) as shard:
        shard.add_key_value_metadata({"note": "every frame of this shard was dropped"})
    manifest = read_manifest(folder)
    manifest["splits"]["train"]["shards"] = 2
    write_manifest(folder, manifest)
    assert len(load_scenes(folder, "train")) == 1
    assert len(list(load_scenes(folder, "train", streaming=True))) == 1


def test_failed_shard_leaves_nothing_behind(tmp_path):
    path = shard_path(tmp_path, "train", 0)
    with pytest.raises(KeyError), open_shard(path) as shard:
        shard.write_table(scene_table([scene_row()]))
        raise KeyError("stop")
    assert list(path.parent.iterdir()) == []


def test_each_table_is_a_row_group(tmp_path):
    path = shard_path(tmp_path, "train", 0)
    with open_shard(path) as shard:
        shard.write_table(scene_table([scene_row(frame="one")]))
        shard.write_table(scene_table([scene_row(frame="two")]))
    assert pq.read_metadata(path).num_row_groups == 2


def test_load_scenes_says_what_is_wrong_with_a_folder(tmp_path):
    folder = tmp_path / "scenes"
    with pytest.raises(FileNotFoundError, match="no folder .*scenes"):
        load_scenes(folder, "train")
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no manifest\.json"):
        load_scenes(folder, "train")
    write_manifest(folder, {"complete": False, "source": {}, "options": {}})
    with pytest.raises(ValueError, match="was not finished"):
        load_scenes(folder, "train")

    write_folder(folder, {"train": [scene_row()], "test": [scene_row(scene="other")]})
    with pytest.raises(ValueError, match="unknown split 'dev'.*train, eval, test"):
        load_scenes(folder, "dev")
    with pytest.raises(ValueError, match=r"split 'eval' .* is empty.*train \(1 frames\), test \(1 frames\)"):
        load_scenes(folder, "eval")
    shard_path(folder, "test", 0).unlink()
    with pytest.raises(FileNotFoundError, match="shard-00000.parquet is missing"):
        load_scenes(folder, "train")
    write_folder(folder, {"train": [scene_row()], "test": [scene_row()]})
    with pytest.raises(ValueError, match=r"'train' and 'test' share 1 scenes \(scene-a\)"):
        load_scenes(folder, "train")


@pytest.mark.parametrize("text", ["{", "[]", '{"complete": "yes"}', '{"complete": true}', "\x00"])
def test_broken_manifest_is_a_clear_error(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        load_scenes(tmp_path, "train")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["set[ab]", "s*t", "what?", "[!s]eta"])
def test_a_folder_name_is_not_read_as_a_pattern(tmp_path, name, streaming):
    for folder in ("seta", "set", "whats", name):
        write_folder(tmp_path / folder, {"train": [scene_row(frame=folder)]})
    assert [row["frame_token"] for row in load_scenes(tmp_path / name, "train", streaming=streaming)] == [name]


def test_a_folder_name_with_two_colons_is_refused(tmp_path):
    write_folder(tmp_path / "a::b", {"train": [scene_row()]})
    with pytest.raises(ValueError, match="rename the folder"):
        load_scenes(tmp_path / "a::b", "train")


def write_foreign(folder, change):
    """A prepared folder whose rows were written without our checks."""
    row = scene_row()
    write_folder(folder, {"train": [row]})
    change(row)
    table = pa.Table.from_pylist([scene_row(frame="fine"), row], schema=SCENE_FEATURES.arrow_schema)
    pq.write_table(table, shard_path(folder, "train", 0))
    return folder


FOREIGN_ROWS = {
    "a file of this machine": {"bytes": None, "path": "/etc/hostname"},
    "a file beside": {"bytes": None, "path": "secret.png"},
    "a URL": {"bytes": None, "path": "http://127.0.0.1:1/a.png"},
    "a URL and bytes": {"bytes": jpeg((0, 0, 0)), "path": "http://127.0.0.1:1/a.png"},
    "neither": {"bytes": None, "path": None},
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("picture", FOREIGN_ROWS.values(), ids=FOREIGN_ROWS)
def test_pictures_outside_of_a_foreign_row_are_refused(tmp_path, picture, streaming):
    write_foreign(tmp_path / "fine", lambda row: row.update(CAM_BACK=None))
    assert len(list(load_scenes(tmp_path / "fine", "train", streaming=streaming))) == 2
    write_foreign(tmp_path / "scenes", lambda row: row.update(CAM_BACK=picture))
    with pytest.raises(ValueError, match="CAM_BACK.* (has no bytes|more than a name)"):
        load_scenes(tmp_path / "scenes", "train", streaming=streaming)


def test_foreign_rows_of_other_columns_are_refused(tmp_path):
    features = datasets.Features({**SCENE_FEATURES, "CAM_BACK": datasets.Value("string")})
    write_folder(tmp_path / "scenes", {"train": [scene_row()]})
    rows = [{**scene_row(frame=name), "CAM_BACK": "/etc/hostname"} for name in ("one", "two")]
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    pq.write_table(table, shard_path(tmp_path / "scenes", "train", 0))
    with pytest.raises(ValueError, match="does not hold scene rows"):
        load_scenes(tmp_path / "scenes", "train")


BAD_COUNTS = {
    "split that climbs out": ({"../../else": {"frames": 1, "shards": 1}}, "unknown split '../../else'"),
    "absolute split": ({"/tmp": {"frames": 1, "shards": 1}}, "unknown split '/tmp'"),
    "counts missing": ({"train": None}, "split 'train' needs a number of frames"),
    "counts as text": ({"train": {"frames": 1, "shards": "1"}}, "split 'train' needs a number of shards"),
}


@pytest.mark.parametrize(("splits", "message"), BAD_COUNTS.values(), ids=BAD_COUNTS)
def test_manifest_of_wrong_splits_is_refused(tmp_path, splits, message):
    write_manifest(tmp_path, {"complete": True, "source": {}, "options": {}, "splits": splits})
    with pytest.raises(ValueError, match=message):
        load_scenes(tmp_path, "train")
