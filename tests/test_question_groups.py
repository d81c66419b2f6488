"""Groups of a frame's questions: every question once, the same after a restart, behind the pictures it needs."""

import io

import pytest
from fakes import QA, dataset, frame
from PIL import Image

from modeling_smoldriver import CAMERAS
from modeling_smoldriver.collator_smoldriver import camera_asked, group_questions


def asked(rows):
    return [(row["frame_token"], qa["question"]) for row in rows for qa in row["qa"]]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_groups_ask_every_question_once_and_again_the_same(size):
    rows = [frame(0), frame(1, QA[:1]), frame(2, []), frame(3, QA * 3)]
    for number, qa in enumerate(rows[3]["qa"]):
        qa["question"] = f"{number}: {qa['question']}"
    scenes = dataset(rows)
    groups = list(group_questions(scenes, size, seed=0))
    assert sorted(asked(groups)) == sorted(asked(rows))
    assert all(0 < len(group["qa"]) <= size for group in groups)
    assert asked(groups) == asked(group_questions(scenes, size, seed=0))
    assert asked(groups) == asked(group_questions(scenes.to_iterable_dataset(), size, seed=0))
    by_frame = {row["frame_token"]: row for row in scenes}
    for group in groups:
        assert all(group[camera].tobytes() == by_frame[group["frame_token"]][camera].tobytes() for camera in CAMERAS)
        assert group["scene_description"] == by_frame[group["frame_token"]]["scene_description"]


def test_groups_are_drawn_by_seed_and_frame_alone():
    rows = [frame(0), frame(1)]
    groups = {seed: asked(group_questions(dataset(rows), 2, seed)) for seed in range(4)}
    assert len({tuple(group) for group in groups.values()}) > 1
    alone = asked(group_questions(dataset(rows[1:]), 2, seed=0))
    assert alone == [item for item in groups[0] if item[0] == "frame1"]  # whatever the other frames are


def test_frames_with_as_many_questions_are_grouped_unlike():
    pairs = [(str(number), "Yes.") for number in range(20)]
    groups = asked(group_questions(dataset([frame(0, pairs), frame(1, pairs)]), 4, seed=0))
    assert [question for _, question in groups[:20]] != [question for _, question in groups[20:]]


def test_questions_of_a_group_belong_together_with_their_answers():
    pairs = [(f"question {number}", f"answer {number}") for number in range(20)]
    for group in group_questions(dataset([frame(0, pairs)]), 7, seed=3):
        assert all(qa["question"].split()[1] == qa["answer"].split()[1] for qa in group["qa"])


DIRECTED = (
    ("Are there cars to the front left of the ego car?", "Yes."),
    ("How many buses are there to the back of the ego car?", "There is one bus to the back of the ego car."),
    ("What are objects to the front left of the ego car?", "There is one car to the front left of the ego car."),
    ("Please describe the current scene.", "There are no objects in front of or behind the ego car."),
    ("Are there cars to the front of the ego car and to the back of the ego car?", "No."),
)


@pytest.mark.parametrize(
    "question, camera",
    [
        (DIRECTED[0][0], "CAM_FRONT_LEFT"),
        (DIRECTED[1][0], "CAM_BACK"),
        ("What is the traffic signal that the ego vehicle should pay attention to?", "CAM_FRONT"),
        ("Is there any traffic element in the front view?", "CAM_FRONT"),
        ("In this scenario, what are safe actions to take for the ego vehicle?", "CAM_FRONT"),
        ("In this scenario, what are dangerous actions to take for the ego vehicle?", None),
        (DIRECTED[3][0], None),
        (DIRECTED[4][0], None),
    ],
)
def test_camera_asked(question, camera):
    assert camera_asked(question) == camera


@pytest.mark.parametrize("streaming", [False, True])
def test_single_views_ask_about_one_direction_behind_that_picture_alone(streaming):
    scenes = dataset([frame(0, DIRECTED), frame(1, DIRECTED[3:]), frame(2, DIRECTED[:2], missing=["CAM_BACK"])])
    source = scenes.to_iterable_dataset() if streaming else scenes
    rows = list(group_questions(source, 8, seed=0, most_views=1))
    shown = [[camera for camera in CAMERAS if row[camera] is not None] for row in rows]
    kept = [[qa["question"] for qa in row["qa"]] for row in rows]
    questions = [question for question, _ in DIRECTED]
    assert [row["frame_token"] for row in rows] == ["frame0", "frame0", "frame2", "frame2"]
    assert shown[:3] == [["CAM_BACK"], ["CAM_FRONT_LEFT"], [camera for camera in CAMERAS if camera != "CAM_BACK"]]
    assert shown[3] == ["CAM_FRONT_LEFT"]
    assert kept == [questions[1:2], [questions[0], questions[2]], questions[1:2], questions[:1]]
    shown = Image.open(io.BytesIO(rows[1]["CAM_FRONT_LEFT"]["bytes"]))
    assert shown.tobytes() == scenes[0]["CAM_FRONT_LEFT"].tobytes()


def test_few_views_are_one_to_three_with_the_one_that_is_asked_about():
    questions = [(f"Are there cars to the {where} of the ego car?", "No.") for where in ("front", "back left")]
    rows = list(group_questions(dataset([frame(number, questions) for number in range(20)]), 8, seed=0, most_views=3))
    shown = [frozenset(camera for camera in CAMERAS if row[camera] is not None) for row in rows]
    assert len(rows) == 40 and {len(cameras) for cameras in shown} == {1, 2, 3}
    assert all(camera_asked(row["qa"][0]["question"]) in cameras for row, cameras in zip(rows, shown, strict=True))
    assert frozenset.union(*shown) == set(CAMERAS)
    again = group_questions(dataset([frame(number, questions) for number in range(20)]), 8, seed=0, most_views=3)
    assert [frozenset(camera for camera in CAMERAS if row[camera] is not None) for row in again] == shown
