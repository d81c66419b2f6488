"""Question types are told from the text alone, for DriveLM's own templates."""

import json
from collections import Counter

import pytest
from fakes import SAMPLE, needs_sample

from data_scripts.question_types import QUESTION_TYPES, names_object_tag, question_type
from data_scripts.sources.drivelm_json import filter_question, read_drivelm

CAR, SIGN = "<c1,CAM_BACK,1088.3,497.5>", "<c2,CAM_FRONT,1043.2,82.2>"
OPTIONS = (
    " Please select the correct answer from the following options: A. Stopped. B. Is it? C. How many. D. Back up."
)

EXAMPLES = [
    ("yes_no", "perception", "Are there barriers to the front left of the ego car?"),
    ("yes_no", "perception", "Is there any traffic element in the front view?"),
    ("yes_no", "prediction", f"Is {CAR} a traffic sign or a road barrier?"),
    ("yes_no", "prediction", f"Would {CAR} be in the moving direction of the ego vehicle?"),
    ("yes_no", "prediction", f"Will {CAR} change its motion state based on {SIGN}?"),
    ("yes_no", "planning", f"Is {CAR} an object that the ego vehicle should consider in the current scene?"),
    ("yes_no", "planning", "Does the ego vehicle have to stop?"),
    ("status", "perception", "What is the status of the trucks that are to the back left of the ego car?"),
    ("status", "perception", f"What is the moving status of object {CAR}?"),
    ("status", "perception", f"What is the moving status of object {CAR}?{OPTIONS}"),
    ("status", "perception", f"What is the observed status of object {CAR}?"),
    ("status", "prediction", f"What is the future state of {CAR}?"),
    ("listing", "perception", "What are objects to the front right of the ego car?"),
    ("counting", "perception", "How many moving cars are to the front of the ego car?"),
    ("counting", "planning", "How many objects should the ego vehicle consider?"),
    ("description", "perception", "Please describe the current scene."),
    ("description", "perception", f"What is the visual description of {CAR}?"),
    ("planning", "planning", f"What actions could the ego vehicle take based on {CAR}? Why take this action?"),
    ("planning", "planning", "What is the target action of the ego vehicle?"),
    ("planning", "planning", "In this scenario, what are dangerous actions to take for the ego vehicle?"),
    ("planning", "planning", f"What actions taken by the ego vehicle can lead to a collision with {CAR}?"),
    ("planning", "planning", f"Based on {CAR} in this scene, what is the most possible action of the ego vehicle?"),
    ("description", "planning", "What's your comment on this scene?"),
    ("description", "planning", "What will affect driving judgment in this scene?"),
    ("other", "planning", f"What is the probability of colliding with {CAR} after the ego vehicle goes straight?"),
    ("other", "planning", f"Based on the observation of {SIGN}, what actions may {CAR} take?"),
    (
        "other",
        "prediction",
        f"Based on the observations of {SIGN}, what are possible actions to be taken by {CAR}? What is the reason?",
    ),
    ("coordinates", "perception", "What are the important objects in the current scene?"),
    ("coordinates", "perception", "What is the relative positioning of the important objects in the current scene?"),
    ("coordinates", "perception", "Which lanes are each important object on in the scene?"),
    (
        "coordinates",
        "prediction",
        "What object should the ego vehicle notice first when the ego vehicle is getting there?",
    ),
    ("other", "prediction", f"What object would consider {CAR} to be most relevant to its decision?"),
    ("other", "prediction", f"Except for the ego vehicle, what object would consider {CAR} to be most relevant?"),
    ("other", "prediction", f"In this scenario, what object is most likely to consider {CAR}?"),
    (
        "other",
        "prediction",
        f"Which object is most likely to be occluded by {CAR}? Would this object affect the ego vehicle? Based on this"
        " object, what action of the ego vehicle is dangerous?",
    ),
    ("coordinates", "planning", "What is the priority of the objects that the ego vehicle should consider?"),
    ("behavior", "behavior", "Predict the behavior of the ego vehicle."),
    ("behavior", "behavior", f"Predict the behavior of the ego vehicle.{OPTIONS}"),
    ("other", "prediction", f"Are {CAR} and {SIGN} traffic signs?"),
    ("other", "prediction", f"What does {SIGN} mean?"),
    ("other", "prediction", f"What kind of traffic sign is {SIGN}?"),
]


@pytest.mark.parametrize(("kind", "task", "question"), EXAMPLES)
def test_drivelm_template_has_its_type(kind, task, question):
    assert question_type(question, task) == kind


def test_every_type_has_an_example():
    assert {kind for kind, _, _ in EXAMPLES} == set(QUESTION_TYPES)


def test_multiple_choice_keeps_the_type_of_its_stem():
    for kind, task, question in EXAMPLES:
        assert question_type(question + OPTIONS, task) == kind


@pytest.mark.parametrize(
    ("kind", "question"),
    [
        ("other", "Are {} and {} traffic signs?"),
        ("other", "What object would consider {} to be most relevant to its decision?"),
        ("other", "Based on the observation of {}, what actions may {} take?"),
        ("yes_no", "Would {} take {} into account?"),
        ("status", "What is the moving status of object {}?"),
        ("planning", "What actions could the ego vehicle take based on {}? Why take this action?"),
    ],
)
def test_type_does_not_depend_on_how_the_object_is_written(kind, question):
    """With tags, with tags with blanks, and with what stands in their place after masking."""
    for written in (CAR, "<c1, CAM_BACK, 1088.3, 497.5>", "<object>", "<c>"):
        assert question_type(question.format(written, written), "planning") == kind
    if "may" not in question:  # in words, the actions of the ego vehicle and of others look alike
        assert question_type(question.format("the black car", "the sign ahead"), "planning") == kind


def test_object_tags_are_found_with_blanks_and_other_cameras():
    """The cases of a file that another project wrote: only the first tag has DriveLM's own form."""
    tags = ("<c1,CAM_FRONT,10.5,20.5>", "<c1, CAM_FRONT, 10.5, 20.5>", "<c1,CAM_F0,10.5,20.5>")
    tags += ("<C1,CAM_FRONT,10.5,20.5>", "< c12 , cam_front , 10 , 20 >")
    for tag in tags:
        question = f"What is the status of {tag}?"
        assert names_object_tag(question)
        assert filter_question(question, "Moving.", drop_object_tags=True, keep_unlabelled=False) == (
            "names an object tag"
        )
        assert filter_question(question, "Moving.", drop_object_tags=False, keep_unlabelled=False) == (
            question,
            "Moving.",
        )


@pytest.mark.parametrize("handling", ["drop", "keep"])
def test_prepared_rows_hold_object_tags_only_if_kept(tmp_path, handling):
    questions = [f"What is the status of {tag}?" for tag in ("<c1,CAM_BACK,1.5,2.5>", "<c1, CAM_BACK, 1.5, 2.5>")]
    questions.append("Is there a car?")
    frame = {"QA": {"perception": [{"Q": question, "A": "Moving."} for question in questions]}}
    frame["image_paths"] = {"CAM_FRONT": "samples/CAM_FRONT.jpg"}
    path = tmp_path / "tags.json"
    path.write_text(json.dumps({"s0": {"key_frames": {"f0": frame}}}))
    frames, _ = read_drivelm([path], drop_object_tags=handling == "drop", keep_unlabelled=False)
    kept = [qa["question"] for qa in frames[0]["qa"]]
    assert kept == (questions[2:] if handling == "drop" else questions)
    assert frames[0]["dropped"] == ({"names an object tag": 2} if handling == "drop" else {})


def test_object_tags_are_told_from_other_angle_brackets():
    assert names_object_tag(f"Is {CAR} moving?")
    assert not names_object_tag("Is <image> moving? x < 3, y > 4 <c1> <c1,FRONT,1,2>")


@needs_sample
def test_types_of_the_real_sample():
    scenes = json.loads((SAMPLE / "train_sample.json").read_text())
    counts, closed_answers, open_answers, tagged, untagged = (Counter() for _ in range(5))
    for scene in scenes.values():
        for frame in scene["key_frames"].values():
            for task, items in frame["QA"].items():
                for item in items:
                    kind = question_type(item["Q"], task)
                    counts[kind] += 1
                    closed = item["A"].split()[0].strip(".,").lower() in ("yes", "no")
                    (closed_answers if closed else open_answers)[kind] += 1
                    pointed = names_object_tag(item["A"]) or "[(" in item["A"]
                    (tagged if pointed else untagged)[kind] += 1
    assert sum(counts.values()) == 311
    assert counts["behavior"] == 4 and counts["listing"] == 21
    # An independent check: by their answers, the questions called yes_no are closed, and no others are.
    assert open_answers["yes_no"] == 0
    assert sum(closed_answers.values()) - closed_answers["yes_no"] <= 0.1 * closed_answers["yes_no"]
    # The same for coordinates: their answers name objects by tag or box, and few others do.
    assert untagged["coordinates"] == 0 and tagged["coordinates"] == 21
    assert tagged.total() - tagged["coordinates"] <= 0.05 * untagged.total()
