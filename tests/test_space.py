"""What the Space's page rests on: checked pictures and questions, scenes kept in bounded memory, the model's answers.

The page itself runs in a browser: `make app-check`.
"""

import base64
import io
import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from broken_pictures import huge_png
from fakes import QUESTIONS, picture, scene_row, write_scenes
from PIL import Image

from modeling_smoldriver import CAMERAS
from recipes import build_space
from recipes.serving.space_files import PAGE, space_files, varied

sys.path.insert(0, str(PAGE))  # as the Space runs it
import answering
import showing


def file_of(seed: int, size=(32, 18), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture(seed, size).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures():
    return {camera: file_of(seed) for seed, camera in enumerate(CAMERAS)}


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    monkeypatch.setattr(answering, "MAX_NEW_TOKENS", 8)


@pytest.fixture
def asked(model, processor):
    return answering.Answering(model, processor)


def test_answers_come_in_parts_and_equal_the_models(asked, model, processor, pictures):
    questions = [*QUESTIONS, "Are there barriers?", "Why?"]
    images = {camera: Image.open(io.BytesIO(file)) for camera, file in pictures.items()}
    expected = model.answer(
        model.encode_scene(**processor.encode_scene(images)), processor, questions, max_new_tokens=8
    )
    parts = list(asked.stream(pictures, questions, None))
    assert [len(part.answers) for part in parts] == [0, 4, 6]
    assert parts[-1].answers == expected and len(set(expected)) > 3
    assert [part.answers for part in parts] == [expected[: len(part.answers)] for part in parts]
    assert parts[-1].cameras == list(CAMERAS) and parts[-1].visual_tokens == 9


def test_a_scene_is_kept_for_the_same_pictures_at_the_same_budget(asked, pictures):
    def kept(shown, budget=None):
        return next(asked.stream(shown, ["Why?"], budget)).scene_kept

    assert not kept(pictures)
    assert kept(dict(reversed(pictures.items()))) and kept(pictures, 9)
    assert not kept(pictures, 4)
    assert not kept({**pictures, "CAM_BACK": pictures["CAM_FRONT"]})
    assert not kept({camera: pictures[camera] for camera in CAMERAS[:5]})
    assert kept(pictures)


def test_memory_of_kept_scenes_is_bounded(model, processor, pictures):
    limit = 60_000
    asked = answering.Answering(model, processor, limit)
    often = {"CAM_FRONT": pictures["CAM_FRONT"]}
    first = next(asked.stream(often, ["Why?"], 1))
    for number in range(24):
        told = next(asked.stream({"CAM_BACK": file_of(number)}, ["Why?"], 1))
        assert not told.scene_kept
        if number % 3 == 0:
            assert next(asked.stream(often, ["Why?"], 1)).scene_kept, number
    held = sum(scene.nbytes for scene in asked.store.scenes.values())
    assert asked.store.nbytes == held <= limit and 4 < len(asked.store) < 20
    assert not first.scene_kept


def test_a_scene_larger_than_the_memory_is_kept_alone(model, processor, pictures):
    asked = answering.Answering(model, processor, limit=10)
    front = {"CAM_FRONT": pictures["CAM_FRONT"]}
    kept = [next(asked.stream(shown, ["Why?"], None)).scene_kept for shown in (pictures, pictures, front, pictures)]
    assert kept == [False, True, False, False] and len(asked.store) == 1


def test_a_stream_that_is_left_in_the_middle_leaves_nothing_locked(asked, pictures):
    left = asked.stream(pictures, QUESTIONS * 3, None)
    next(left), next(left)
    left.close()
    *_, last = asked.stream(pictures, QUESTIONS[:1], None)
    assert last.scene_kept and len(last.answers) == 1


def test_grey_pictures_give_the_input_of_the_blank_control(processor):
    grey = Image.open(io.BytesIO(answering.grey_picture()))
    blank = Image.new("RGB", (160, 90), (128, 128, 128))
    one, other = (processor.encode_scene({"CAM_FRONT": image})["pixel_values"] for image in (grey, blank))
    assert one.equal(other)


@pytest.mark.parametrize(
    "questions, said",
    [
        ("Why?", "must be a list of strings, not str"),
        ([], "there is no question"),
        (["Why?", "  "], "question 2 is empty or not a string: '  '"),
        (["Why?", None], "question 2 is empty or not a string: None"),
        (["Why?"] * 101, "101 questions are too many: ask at most 100"),
        (["?" * 501], "question 1 has 501 characters"),
    ],
)
def test_bad_questions_are_refused_by_their_number(questions, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        answering.check_questions(questions)


def test_good_questions_are_stripped():
    assert answering.check_questions([" Why? "] + ["Why?"] * 99) == ["Why?"] * 100


@pytest.mark.parametrize(
    "questions, pictures, budget, said",
    [
        (["What is <image>?"], ["CAM_FRONT"], None, "special token <image>"),
        (["Why?"], [], None, "no picture at all"),
        (["Why?"], ["CAM_TOP"], None, "unknown camera 'CAM_TOP'; the cameras are CAM_FRONT_LEFT"),
        (["Why?"], ["CAM_FRONT"], 5, "visual_tokens=5 is not a budget; choose one of [9, 4, 1]"),
    ],
)
def test_what_the_processor_refuses_is_refused_before_an_answer(asked, questions, pictures, budget, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        next(asked.stream({camera: file_of(0) for camera in pictures}, questions, budget))


def wide_png() -> bytes:
    file = io.BytesIO()
    Image.new("1", (4001, 4000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "file, said",
    [
        (b"not a picture", "CAM_BACK: the file is not a picture; give JPEG, PNG, WEBP"),
        (b"", "CAM_BACK: the file is not a picture"),
        (file_of(0, kind="GIF"), "CAM_BACK: the file is not a picture"),
        (huge_png(), "CAM_BACK: the picture is too large; at most 16,000,000 pixels"),
        (wide_png(), "CAM_BACK: the picture has 4,001 x 4,000 pixels"),
        (b"0" * 20_000_001, "CAM_BACK: the file has 20,000,001 bytes"),
    ],
    ids=["text", "empty", "gif", "bomb", "wide", "long"],
)
def test_bad_pictures_are_refused_by_their_camera(file, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        answering.check_picture(file, "CAM_BACK")


def test_a_picture_that_is_cut_short_is_refused_by_its_camera(asked):
    cut = file_of(0, (640, 360), "JPEG")[:3000]
    with pytest.raises(ValueError, match="CAM_BACK: the picture cannot be read"):
        next(asked.stream({"CAM_BACK": answering.check_picture(cut, "CAM_BACK")}, ["Why?"], None))


def test_base64_is_decoded_with_and_without_a_data_uri():
    text = base64.b64encode(file_of(3)).decode()
    assert answering.decoded(text, "CAM_BACK") == file_of(3)
    assert answering.decoded(f"data:image/png;base64,{text}", "CAM_BACK") == file_of(3)


@pytest.mark.parametrize(
    "text, said",
    [
        ("http://127.0.0.1/a.png", "CAM_BACK: addresses are not fetched here"),
        ("HTTPS://example.org/a.png", "CAM_BACK: addresses are not fetched here"),
        ("/etc/hostname.png", "CAM_BACK: '/etc/hostname.png' is not base64"),
        ("???", "CAM_BACK: '???' is not base64"),
        (7, "CAM_BACK: give the picture as a base64 string, not int"),
        ("A" * 27_000_000, "CAM_BACK: the file has 20,250,000 bytes"),
    ],
    ids=["http", "https", "path", "signs", "number", "long"],
)
def test_what_is_not_base64_is_refused(text, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        answering.decoded(text, "CAM_BACK")


def test_answers_are_shown_with_their_truth_and_without_markup():
    told = answering.Answered(["CAM_FRONT"], 9, True, 0.0, ["<b>?", "Why?", "How?", "Who?"], ["yes.", "<i>No"], 0.5)
    html = showing.answers_html(told, {"<b>?": "Yes.", "Why?": "No."}, "as above")
    assert "<b>&lt;b&gt;?</b>" in html and '"answer right">yes.<' in html and '"answer wrong">&lt;i&gt;No<' in html
    assert html.count("truth: ") == 2 and html.count("pending") == 2
    assert "1 picture (as above) at 9 tokens per camera: the scene was kept" in html
    assert "2 of 4 answers in 0.500 s, 0.250 s each" in html
    assert showing.error_html("<script>") == '<p class="error">&lt;script&gt;</p>'


# The files of a Space


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), [], tuple(scene_row(number, 4) for number in range(20)))


def front_matter(readme: bytes) -> dict:
    return yaml.safe_load(readme.decode().split("---")[1])


def test_a_space_names_its_model_and_the_gradio_that_it_needs():
    files = space_files("user/smoldriver")
    card = front_matter(files["README.md"])
    assert card["models"] == ["user/smoldriver"] and card["sdk"] == "gradio" and card["app_file"] in files
    assert f"gradio=={card['sdk_version']}\n" in files["requirements.txt"].read_text()
    assert json.loads(files["settings.json"]) == {"model": "user/smoldriver"}
    assert showing.read_examples(Path("nowhere")) == []


def test_a_spaces_code_needs_what_its_requirements_bring():
    code = "\n".join(path.read_text() for path in PAGE.glob("*.py"))
    imported = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)) - set(sys.stdlib_module_names)
    brought = set(re.findall(r"^(\w+)", (PAGE / "requirements.txt").read_text(), re.MULTILINE)) | {"PIL"}
    assert imported - {path.stem for path in PAGE.glob("*.py")} <= brought


def test_examples_are_frames_of_different_scenes_with_their_own_pictures_and_truth(
    scenes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        sys, "argv", ["build_space.py", "--model", "user/x", "--scenes", str(scenes), "--output-dir", str(tmp_path)]
    )
    build_space.main()
    assert "for the model user/x" in capsys.readouterr().out
    examples = showing.read_examples(tmp_path / "examples")
    rows = [scene_row(number, 4) for number in range(20)]
    assert len(examples) == 6 and all(list(example.pictures) == list(CAMERAS) for example in examples)
    shown = []
    for example in examples:
        row = next(row for row in rows if row["CAM_BACK"]["bytes"] == example.pictures["CAM_BACK"].read_bytes())
        assert all(example.pictures[camera].read_bytes() == row[camera]["bytes"] for camera in CAMERAS)
        assert example.truth == {qa["question"]: qa["answer"] for qa in row["qa"]}
        shown.append(row["scene_token"])
    assert len(set(shown)) == 6


def test_suggested_questions_are_of_many_types():
    texts = ["Are there cars?", "Are there buses?", "Are there trucks?", "How many cars are there?", QUESTIONS[3]]
    qa = [{"question": text, "task": "perception"} for text in texts]
    assert [entry["question"] for entry in varied(qa, 4)] == [texts[0], texts[3], texts[4], texts[1]]
