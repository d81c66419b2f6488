"""`transformers serve` on a saved folder, over HTTP, in a process without our package.

It needs transformers 5.x and its server's packages (`pip install "transformers[serving]"`).
"""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec

import pytest
import transformers
from fakes import QUESTIONS
from processes import HIDE_PROJECT

from modeling_smoldriver import CAMERAS, SmolDriverForConditionalGeneration

MISSING = [name for name in ("fastapi", "openai", "uvicorn") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4.57 serves no model of this kind"),
    pytest.mark.skipif(bool(MISSING), reason=f"transformers' server needs {', '.join(MISSING)}"),
]

SERVER = HIDE_PROJECT + "from transformers.cli.transformers import main\n\nmain()\n"
SENTENCE = "The ego vehicle waits at a crossing."


@pytest.fixture(scope="module")
def address(model_folder, tmp_path_factory):
    work = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment = kept | {"HF_MODULES_CACHE": str(work / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SERVER, "serve", str(model_folder), "--trust-remote-code", "--device", "cpu"]
    with (work / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--dtype", "float32", "--port", str(port)], cwd=work, env=environment, stdout=log, stderr=log
        )
    try:
        for _ in range(600):
            assert server.poll() is None, (work / "log").read_text()[-4000:]
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        server.terminate()
        server.wait(30)


def image_part(image) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    content = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{content}"}}


def labelled(images: dict, style: str = "{}:") -> list[dict]:
    return [
        part
        for camera, image in images.items()
        for part in ({"type": "text", "text": style.format(camera)}, image_part(image))
    ]


def post(address, folder, parts, question=QUESTIONS[0], **options) -> str:
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    body = {"model": str(folder), "messages": messages, "max_tokens": 6, "temperature": 0, **options}
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return response.read().decode()


def served(*arguments, **options) -> str:
    return json.loads(post(*arguments, **options))["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def expected(model_folder, processor):
    model = SmolDriverForConditionalGeneration.from_pretrained(model_folder).eval()

    def answer(images, question=QUESTIONS[0], description=None, visual_tokens=None) -> str:
        named = [{"type": "image", "camera": camera} for camera in images]
        messages = [{"role": "user", "content": [*named, {"type": "text", "text": question}]}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, scene_description=description)
        inputs = processor(images=images, text=text, visual_tokens=visual_tokens, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        return processor.decode(ids, skip_special_tokens=True)

    return answer


def test_served_answers_are_those_of_generate_in_every_style_of_naming(address, model_folder, expected, images):
    reverse = {camera: images[camera] for camera in reversed(CAMERAS)}
    two = {camera: images[camera] for camera in ("CAM_BACK", "CAM_FRONT_LEFT")}
    seen = set()
    for question in QUESTIONS:
        truth = [expected(views, question) for views in (images, images, reverse, two)]
        parts = ([image_part(image) for image in images.values()], labelled(images), labelled(reverse))
        assert truth == [served(address, model_folder, shown, question) for shown in (*parts, labelled(two, "{}"))], (
            question
        )
        seen.update(truth)
    assert len(seen) > len(QUESTIONS)  # the answers differ by question and by pictures


def test_budget_and_scene_description_pass_through(address, model_folder, expected, images):
    options = {"chat_template_kwargs": {"visual_tokens": 4, "scene_description": SENTENCE}}
    answer = served(address, model_folder, labelled(images), **options)
    assert answer == expected(images, description=SENTENCE, visual_tokens=4) != expected(images)


def test_an_answer_is_streamed(address, model_folder, expected, images):
    lines = post(address, model_folder, labelled(images), stream=True).splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    pieces = [event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"]]
    assert "".join(pieces) == expected(images) and len(pieces) > 1


def test_a_picture_without_a_camera_is_refused(address, model_folder, images):
    """The server turns every error into its status 500; the message is in its log."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(address, model_folder, [image_part(images[camera]) for camera in CAMERAS[:2]])
    assert refused.value.code == 500
