"""A training manifest of odd types is refused in one line, which names the file and the field."""

import json

import pytest

from recipes.evaluation.provenance import check_leakage
from recipes.training.manifest import (
    LARGEST_MANIFEST,
    TRAINING_MANIFEST,
    TrainingManifest,
    read_training_manifest,
    write_training_manifest,
)


@pytest.mark.parametrize(
    "field, value, kind",
    [
        ("base", ["a"], "text or null"),
        ("tower", 3, "text or null"),
        ("dtype", {}, "text or null"),
        ("scene_tokens", 7, "a list of text"),
        ("scene_tokens", "scene0", "a list of text"),
        ("scene_tokens", ["a", 1], "a list of text"),
        ("unrecorded", None, "a list of text"),
        ("arguments", None, "an object"),
        ("arguments", ["teacher"], "an object"),
        ("quantization", "nf4", "an object or null"),
        ("merged", True, "an object or null"),
        ("steps", "11000", "a number"),
        ("steps", True, "a number"),
        ("seconds", None, "a number"),
    ],
)
def test_a_field_of_another_type_is_named(field, value, kind, tmp_path):
    (tmp_path / TRAINING_MANIFEST).write_text(json.dumps({"base": None, field: value}))
    for read in (read_training_manifest, TrainingManifest.from_folder):
        with pytest.raises(ValueError) as refused:
            read(tmp_path)
        assert str(refused.value) == f"{tmp_path / TRAINING_MANIFEST}: {field} must be {kind}, not {value!r}"
    with pytest.raises(ValueError, match=f"{field} must be"):
        check_leakage(tmp_path, ["scene0"], "test")


@pytest.mark.parametrize("teacher", ["teacher", "teacher_model"])
def test_a_teacher_is_named_by_text(teacher, tmp_path):
    write_training_manifest(tmp_path, {"base": None, "arguments": {teacher: 4}})
    with pytest.raises(ValueError, match=f"arguments.{teacher} must be text or null, not 4"):
        read_training_manifest(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"[]", "must hold an object, not list"),
        (b"null", "must hold an object, not NoneType"),
        (b'{"base": ', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_what_is_not_an_object_is_named(content, message, tmp_path):
    (tmp_path / TRAINING_MANIFEST).write_bytes(content)
    with pytest.raises(ValueError, match=f"{TRAINING_MANIFEST} {message}"):
        read_training_manifest(tmp_path)


def test_a_huge_manifest_is_not_read(tmp_path):
    with (tmp_path / TRAINING_MANIFEST).open("wb") as file:
        file.truncate(LARGEST_MANIFEST + 1)  # sparse: it takes no room
    with pytest.raises(ValueError, match="has 50,000,001 bytes: it is not a training manifest"):
        read_training_manifest(tmp_path)


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    """With the fields that the readers of every version know, and others."""
    written = {"base": "user/base", "quantization": {"load_in_4bit": True}, "scene_tokens": ["a"], "steps": 0}
    write_training_manifest(tmp_path, written | {"arguments": {"teacher_model": None}, "seconds": 1.5, "new": [1]})
    read = read_training_manifest(tmp_path)
    assert written.items() <= read.items() and read["new"] == [1]
