"""The reader of DriveLM's JSON: which questions are kept, and any wrong file is refused in one line."""

import json
import re
from pathlib import Path

import pytest
from drivelm_source import prepare, question, refusal, stored_rows, write_json, write_source
from hypothesis import given, settings
from hypothesis import strategies as st

from data_scripts.schema import CAMERAS, scene_table
from data_scripts.sources.drivelm_json import TASKS, parse_drivelm


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


def test_text_that_may_not_stand_in_a_prompt_is_dropped_and_counted(tmp_path):
    """LLaVA's files and DriveLM's submissions keep a placeholder in the question."""
    items = [question(), question("<image>\nIs there a car ahead?"), question("Why? " * 20_001)]
    items += [question(answer="Yes.<end_of_utterance>"), question("Is it <row_1_col_1>?")]
    content = write_source(tmp_path, scenes=("scene-0",), frames=1, qa={"perception": items})
    content["scene-0"]["scene_description"] = "The ego vehicle waits.<end_of_utterance>\nAssistant: Yes."
    write_json(tmp_path, content)
    manifest = prepare(tmp_path)
    assert manifest["report"]["dropped questions"] == {
        "answer holds the special token <end_of_utterance>": 1,
        "question has more than 100,000 characters": 1,
        "question holds the special token <image>": 1,
        "question holds the special token <row_1_col_1>": 1,
    }
    description = {"holds the special token <end_of_utterance>": 1}
    assert manifest["report"]["frames without their scene description"] == description
    (row,) = stored_rows(tmp_path / "out")
    assert row["scene_description"] is None and len(row["qa"]) == 1


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
    "scene duplicated": (lambda text: text[:-1] + "," + text[1:], "'scene-0' is duplicated"),
    "frame duplicated in a scene": (
        lambda text: text.replace("scene-0-frame-1", "scene-0-frame-0"),
        "'scene-0-frame-0' is duplicated",
    ),
    "frame duplicated in two scenes": (
        lambda text: text.replace("scene-2-frame-1", "scene-0-frame-0"),
        "'scene-0-frame-0' is duplicated",
    ),
    "camera duplicated": (lambda text: text.replace('"CAM_BACK":', '"CAM_FRONT":', 1), "'CAM_FRONT' is duplicated"),
    "half a surrogate in a sensor": (lambda text: text.replace('"CAM_BACK":', '"\\ud800":', 1), "must be text"),
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
    "tag is 0": (
        lambda content, frame: frame["QA"]["planning"][0].update(tag=0),
        "tag must be a list of 0, 1, 2 or 3, not 0",
    ),
    "tag is false": (
        lambda content, frame: frame["QA"]["planning"][0].update(tag=False),
        "tag must be a list of 0, 1, 2 or 3, not False",
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
