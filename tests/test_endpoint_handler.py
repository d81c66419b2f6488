"""The endpoint's handler: answers equal the model's own, scenes are kept within bounds, bad requests get one line."""

import base64
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib

import pytest
from fakes import QUESTIONS, picture
from processes import HIDE_PROJECT

from modeling_smoldriver import CAMERAS
from recipes.serving import handler as handler_file
from recipes.serving.handler import EndpointHandler, KeptScene, KeptScenes

pytestmark = pytest.mark.contract

CLEAN_PROCESS = (
    HIDE_PROJECT
    + """
import json, sys

import torch

torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from handler import EndpointHandler

json.dump(EndpointHandler(sys.argv[1])(json.load(open("request.json"))), open("result.json", "w"))
"""
)


def file_of(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture(scope="module")
def handler(model_folder):
    return EndpointHandler(str(model_folder))


@pytest.fixture(scope="module")
def pictures():
    return {camera: encoded(file_of(picture(seed))) for seed, camera in enumerate(CAMERAS)}


def own_answers(handler, cameras, questions=QUESTIONS, **options):
    images = {camera: picture(CAMERAS.index(camera)) for camera in cameras}
    scene = handler.model.encode_scene(**handler.processor.encode_scene(images, **options))
    return handler.model.answer(scene, handler.processor, questions, max_new_tokens=8)


def ask(handler, parameters=None, **inputs):
    return handler({"inputs": inputs, "parameters": {"max_new_tokens": 8, **(parameters or {})}})


def test_answers_are_those_of_the_model(handler, pictures):
    result = ask(handler, images=dict(reversed(pictures.items())), questions=QUESTIONS)
    assert result.pop("seconds") > 0
    expected = own_answers(handler, CAMERAS)
    assert len(set(expected)) == len(QUESTIONS)
    about = {"scene": None, "scene_reused": False, "cameras": list(CAMERAS), "visual_tokens": 9}
    assert result == {"answers": expected, **about}
    two = {"CAM_BACK": "data:image/png;base64," + pictures["CAM_BACK"], "CAM_FRONT": pictures["CAM_FRONT"]}
    result = ask(handler, {"visual_tokens": 4}, images=two, questions=QUESTIONS[0], scene_description="A road.")
    assert result["answers"] == own_answers(
        handler, ["CAM_FRONT", "CAM_BACK"], QUESTIONS[:1], visual_tokens=4, scene_description="A road."
    )
    assert result["cameras"] == ["CAM_FRONT", "CAM_BACK"] and result["visual_tokens"] == 4


def test_a_named_scene_is_kept_between_requests(handler, pictures, monkeypatch):
    first = ask(handler, images=pictures, questions=QUESTIONS[:1], scene="frame 7")
    assert (first["scene"], first["scene_reused"]) == ("frame 7", False)
    with monkeypatch.context() as patch:
        patch.setattr(handler.model, "encode_scene", None)  # must not be called again
        again = ask(handler, questions=QUESTIONS, scene="frame 7")
    assert again["scene_reused"] and again["answers"] == own_answers(handler, CAMERAS)
    for parameters, more, wrong in (
        ({"visual_tokens": 4}, {}, "is kept with visual_tokens=9"),
        ({}, {"scene_description": "A road."}, "is kept with scene_description=None"),
    ):
        with pytest.raises(ValueError, match=f"the scene 'frame 7' {wrong}; send its images again"):
            ask(handler, parameters, questions=QUESTIONS, scene="frame 7", **more)
    replaced = ask(handler, images={"CAM_BACK": pictures["CAM_BACK"]}, questions=QUESTIONS, scene="frame 7")
    assert not replaced["scene_reused"] and replaced["cameras"] == ["CAM_BACK"]


def test_chat_messages_are_answered_as_by_the_model(handler, pictures):
    question = {"type": "text", "text": QUESTIONS[0]}
    expected = own_answers(handler, ["CAM_FRONT", "CAM_BACK"], QUESTIONS[:1])

    def said(*parts, **parameters):
        messages = [{"role": "user", "content": [*parts, question]}]
        results = [ask(handler, parameters, messages=messages)]
        results.append(handler({"inputs": messages, "parameters": {"max_new_tokens": 8, **parameters}}))
        assert results[0]["answers"] == results[1]["answers"]
        return results[0]

    keyed = [{"type": "image", "camera": camera, "image": pictures[camera]} for camera in ("CAM_FRONT", "CAM_BACK")]
    result = said(*keyed)
    assert [answer.strip() for answer in expected] == result["answers"] and result["cameras"] == [
        "CAM_FRONT",
        "CAM_BACK",
    ]
    labelled = [
        part
        for camera in ("CAM_FRONT", "CAM_BACK")
        for part in (
            {"type": "text", "text": f"{camera}:"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + pictures[camera]}},
        )
    ]
    assert said(*labelled)["answers"] == result["answers"]
    by_place = [{"type": "image", "image": pictures[camera]} for camera in CAMERAS]
    four = said(*by_place, visual_tokens=4)
    assert four["cameras"] == list(CAMERAS) and four["visual_tokens"] == 4
    assert four["answers"] == [text.strip() for text in own_answers(handler, CAMERAS, QUESTIONS[:1], visual_tokens=4)]


def test_the_handler_works_beside_the_model_without_the_project(handler, model_folder, pictures, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    shutil.copyfile(handler_file.__file__, tmp_path / "model" / "handler.py")
    request = {"inputs": {"images": pictures, "questions": QUESTIONS}, "parameters": {"max_new_tokens": 8}}
    (tmp_path / "request.json").write_text(json.dumps(request))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_PROCESS, str(tmp_path / "model")],
        cwd=tmp_path,
        env=kept | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((tmp_path / "result.json").read_text())["answers"] == own_answers(handler, CAMERAS)


# Memory


def test_memory_stays_bounded_over_a_thousand_scenes(handler):
    images = {"CAM_BACK": picture(0)}
    scene = handler.model.encode_scene(**handler.processor.encode_scene(images))
    by_number, by_bytes = KeptScenes(most=50), KeptScenes(most_bytes=20 * scene.nbytes)
    for number in range(1000):
        for kept in (by_number, by_bytes):
            kept.keep(f"scene {number}", KeptScene(scene, ["CAM_BACK"], 9, None))
            assert kept.get("scene 0") and len(kept.scenes) <= 50  # used all the time, never dropped
            assert kept.nbytes <= kept.most * scene.nbytes and kept.nbytes <= kept.most_bytes
    assert list(by_number.scenes)[-2:] == ["scene 999", "scene 0"] and len(by_number.scenes) == 50
    assert len(by_bytes.scenes) == 20
    with pytest.raises(
        ValueError, match="no scene named 'scene 900' is kept .the last 50 are.: send its images again"
    ):
        by_number.get("scene 900")


# Bad requests


def huge_png(side: int) -> bytes:
    """A picture of `side` x `side` pixels in some kB, as its head and a broken body."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


BACK = {"CAM_BACK": encoded(file_of(picture(0)))}
OK = {"images": BACK, "questions": ["Why?"]}


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"images": {"CAM_TOP": BACK["CAM_BACK"]}}, "unknown camera 'CAM_TOP'; the cameras are CAM_FRONT_LEFT, CAM_"),
        ({"images": {}}, "images is an object of pictures by camera name (CAM_FRONT_LEFT, CAM_FRONT, "),
        ({"images": None}, "images is an object of pictures by camera name"),
        ({"images": [BACK["CAM_BACK"]]}, "images is an object of pictures by camera name"),
        ({"images": {"CAM_BACK": None}}, "the scene has no picture at all; give at least one of"),
        ({"images": {"CAM_BACK": 3}}, "CAM_BACK: a picture is a base64 string or a data URI, not int"),
        ({"images": {"CAM_BACK": "%%%"}}, "CAM_BACK: the picture is not base64: '%%%'"),
        ({"images": {"CAM_BACK": BACK["CAM_BACK"][:-5]}}, "CAM_BACK: the picture is not base64: 'iVBOR"),
        ({"images": {"CAM_BACK": BACK["CAM_BACK"][:400]}}, "CAM_BACK: the picture cannot be read: "),
        ({"images": {"CAM_BACK": encoded(b"text")}}, "CAM_BACK: the picture cannot be read: "),
        ({"images": {"CAM_BACK": encoded(huge_png(20_000))}}, "CAM_BACK: the picture cannot be read: "),
        (
            {"images": {"CAM_BACK": encoded(huge_png(10_000))}},
            "a picture of 10000 x 10000 pixels; give one of 1 to 50,",
        ),
        ({"images": {"CAM_BACK": "A" * 30_000_000}}, "CAM_BACK: the picture has more than 20,000,000 bytes"),
        ({"images": {"CAM_BACK": "/etc/hostname"}}, "CAM_BACK: the picture "),
        (
            {"images": {"CAM_BACK": "http://169.254.169.254/"}},
            "CAM_BACK: URLs are switched off here; send the picture",
        ),
        ({"images": {"CAM_BACK": "file:///etc/passwd"}}, "CAM_BACK: URLs are switched off here"),
        ({"questions": []}, "questions is a list of 1 to 100 texts, got []"),
        ({"questions": None}, "questions is a list of 1 to 100 texts, got None"),
        ({"questions": ["Why?"] * 101}, "questions is a list of 1 to 100 texts, got ['Why?'"),
        ({"questions": ["Why?", "  "]}, "the question is empty or not a string: '  '"),
        ({"questions": ["Why?", 3]}, "the question is empty or not a string: 3"),
        ({"questions": ["<image>"]}, "the question holds the special token <image>"),
        ({"images": None, "scene": "gone"}, "no scene named 'gone' is kept (the last 256 are): send its images again"),
        ({"scene": ""}, "scene is a name of 1 to 200 characters, got ''"),
        ({"scene": ["a"]}, "scene is a name of 1 to 200 characters, got ['a']"),
        ({"scene_description": "<image>"}, "the scene description holds the special token <image>"),
        ({"picture": "x"}, "inputs has no 'picture'; it may have images, questions, scene"),
        ({"messages": [{"role": "user", "content": "Why?"}]}, "give either messages or images, questions"),
    ],
)
def test_a_bad_request_is_refused_in_one_line(handler, inputs, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        handler({"inputs": {**OK, **inputs}})
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "request_, message",
    [
        (
            {"inputs": OK, "parameters": {"visual_tokens": 5}},
            "visual_tokens=5 is not a budget; choose one of [9, 4, 1]",
        ),
        ({"inputs": OK, "parameters": {"visual_tokens": [9]}}, "visual_tokens=[9] is not a budget"),
        ({"inputs": OK, "parameters": {"max_new_tokens": 0}}, "max_new_tokens=0 is not a whole number of 1 to 256"),
        ({"inputs": OK, "parameters": {"max_new_tokens": "9"}}, "max_new_tokens='9' is not a whole number"),
        ({"inputs": OK, "parameters": {"top_k": 3}}, "parameters has no 'top_k'; it may have visual_tokens, max_new_"),
        ({"inputs": OK, "parameters": [1]}, "parameters is an object with some of visual_tokens"),
        ({"inputs": "Why?"}, "inputs is an object with some of images, questions, scene, "),
        ({}, "inputs is an object with some of images"),
        ([1], "the request is an object with some of inputs, parameters"),
        ({"inputs": []}, "messages is a list of objects with a role and a content"),
        ({"inputs": [{"role": "user"}]}, "message 1 has no role, or no content"),
        ({"inputs": [{"role": "user", "content": [{"type": "video"}]}]}, "message 1 has a part of type 'video'"),
        (
            {"inputs": [{"role": "user", "content": [{"type": "text"}]}]},
            "the text of the user is empty or not a string",
        ),
        (
            {"inputs": [{"role": "user", "content": [{"type": "image", "image": BACK["CAM_BACK"]}] * 2}]},
            "2 pictures, 0 of them with a camera name: name each",
        ),
        ({"inputs": [{"role": "user", "content": [{"type": "image"}]}]}, "picture 1: a picture is a base64 string"),
    ],
)
def test_a_request_of_another_form_is_refused_in_one_line(handler, request_, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        handler(request_)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_urls_are_fetched_from_the_hosts_of_a_list_alone(handler, monkeypatch):
    monkeypatch.setenv("SMOLDRIVER_URL_HOSTS", "pictures.example, 127.0.0.1:1")
    for address in (
        "https://other.example/a.png",
        "http://pictures.example/a.png",
        "https://pictures.example@evil.example/",
    ):
        with pytest.raises(ValueError, match="is not fetched; only https URLs of pictures.example, 127.0.0.1:1 are"):
            ask(handler, images={"CAM_BACK": address}, questions=["Why?"])
    with pytest.raises(ValueError, match="CAM_BACK: 'https://127.0.0.1:1/a.png' cannot be fetched: .*refused"):
        ask(handler, images={"CAM_BACK": "https://127.0.0.1:1/a.png"}, questions=["Why?"])
