"""A SmolDriver as an Inference Endpoint of Hugging Face: this file lies beside the model, and needs the model's alone.

A request is JSON. Pictures are base64 or data URIs, their names are the model's cameras:

    {"inputs": {"images": {"CAM_FRONT": "/9j/4AAQ...", ...}, "questions": ["Is it raining?"], "scene": "frame 7"},
     "parameters": {"visual_tokens": 9, "max_new_tokens": 32}}

With `scene` the encoded pictures are kept by that name: later requests give the name without `images`. Chat messages
are taken too, as {"inputs": {"messages": [...]}}. The answer is JSON:

    {"answers": ["No."], "scene": "frame 7", "scene_reused": false, "cameras": ["CAM_FRONT", ...],
     "visual_tokens": 9, "seconds": 0.2}

Every request that cannot be served raises a ValueError of one line, which the endpoint answers with status 400.
"""

import base64
import os
import threading
import time
import urllib.request
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

URL_HOSTS = "SMOLDRIVER_URL_HOSTS"
"""Environment variable: hosts whose https URLs are fetched, with commas between them; without it none is."""
URL_SECONDS = 10

MAX_SCENES, MAX_SCENE_BYTES = 256, 2_000_000_000  # kept; whichever is reached first drops the scene unused for longest
MAX_QUESTIONS = 100
MAX_NEW_TOKENS = 256
MAX_BYTES = 20_000_000  # of one picture's file
MAX_NAME = 200  # characters of a scene's name

INPUTS = ("images", "questions", "scene", "scene_description", "messages")
PARAMETERS = ("visual_tokens", "max_new_tokens")


@dataclass
class KeptScene:
    """An encoded frame and how it was encoded."""

    cache: Any
    cameras: list[str]
    visual_tokens: int
    scene_description: str | None


class KeptScenes:
    """The scenes used last, by name; safe for several threads."""

    def __init__(self, most: int = MAX_SCENES, most_bytes: int = MAX_SCENE_BYTES):
        self.most, self.most_bytes = most, most_bytes
        self.scenes: OrderedDict[str, KeptScene] = OrderedDict()
        self.lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        return sum(scene.cache.nbytes for scene in self.scenes.values())

    def keep(self, name: str, scene: KeptScene) -> None:
        with self.lock:
            self.scenes.pop(name, None)
            self.scenes[name] = scene
            while len(self.scenes) > self.most or (len(self.scenes) > 1 and self.nbytes > self.most_bytes):
                self.scenes.popitem(last=False)

    def get(self, name: str) -> KeptScene:
        """
        Raises:
            ValueError: no scene of that name is kept.
        """
        with self.lock:
            if name not in self.scenes:
                raise ValueError(
                    f"no scene named {name!r} is kept (the last {self.most} are): send its images again with the name"
                )
            self.scenes.move_to_end(name)
            return self.scenes[name]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A host of the list must not lead to one that is not."""

    def redirect_request(self, request, response, code, message, headers, address):
        raise ValueError(f"{request.full_url:.200} redirects; give the picture's own address")


def read_picture(camera: str, source) -> bytes:
    """The file of a picture that a request holds as base64, data URI or, where its host is allowed, https URL.

    Raises:
        ValueError: none of them, or too large; names the camera.
    """
    if not isinstance(source, str) or not source.strip():
        raise ValueError(f"{camera}: a picture is a base64 string or a data URI, not {type(source).__name__}")
    if "://" in source[:20]:
        return fetch(camera, source)
    text = source.partition(",")[2] if source.startswith("data:") else source
    if len(text) * 3 // 4 > MAX_BYTES:
        raise ValueError(f"{camera}: the picture has more than {MAX_BYTES:,} bytes")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise ValueError(f"{camera}: the picture is not base64: {source[:40]!r}") from None


def fetch(camera: str, address: str) -> bytes:
    """
    Raises:
        ValueError: fetching is off, the host is not in the list, no answer, or too large a file.
    """
    hosts = [host.strip().lower() for host in os.environ.get(URL_HOSTS, "").split(",") if host.strip()]
    if not hosts:
        raise ValueError(f"{camera}: URLs are switched off here; send the picture as base64")
    parts = urlsplit(address)
    if parts.scheme != "https" or parts.netloc.lower() not in hosts:
        raise ValueError(f"{camera}: {address[:200]!r} is not fetched; only https URLs of {', '.join(hosts)} are")
    try:
        with urllib.request.build_opener(_NoRedirects).open(address, timeout=URL_SECONDS) as response:
            content = response.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{camera}: {address[:200]!r} cannot be fetched: {error}") from None
    if len(content) > MAX_BYTES:
        raise ValueError(f"{camera}: the picture has more than {MAX_BYTES:,} bytes")
    return content


class EndpointHandler:
    """What an Inference Endpoint calls: made once with the model's folder, then called with each request."""

    def __init__(self, path: str = ""):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=True, dtype="auto")
        self.model = model.to(device).eval()
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        self.kept = KeptScenes()
        self.at_work = threading.Lock()

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Answers to one request, see the file's docstring.

        Raises:
            ValueError: one line that says what is wrong with the request.
        """
        started = time.perf_counter()
        data = checked_object("the request", data, ("inputs", "parameters"))
        parameters = checked_object("parameters", data.get("parameters") or {}, PARAMETERS)
        inputs = data.get("inputs")
        inputs = checked_object("inputs", {"messages": inputs} if isinstance(inputs, list) else inputs, INPUTS)
        budgets = self.processor.visual_token_budgets
        if parameters.get("visual_tokens") not in (None, *budgets):
            raise ValueError(f"visual_tokens={parameters['visual_tokens']!r} is not a budget; choose one of {budgets}")
        new_tokens = parameters.get("max_new_tokens", 32)
        if type(new_tokens) is not int or not 1 <= new_tokens <= MAX_NEW_TOKENS:
            raise ValueError(f"max_new_tokens={new_tokens!r} is not a whole number of 1 to {MAX_NEW_TOKENS}")
        answer = self.chat if "messages" in inputs else self.ask
        with self.at_work, torch.inference_mode():
            result = answer(inputs, parameters.get("visual_tokens"), new_tokens)
        return {**result, "seconds": round(time.perf_counter() - started, 3)}

    def ask(self, inputs: dict, visual_tokens: int | None, new_tokens: int) -> dict:
        """Questions about a scene that comes with its pictures or is kept by its name."""
        questions = inputs.get("questions")
        questions = [questions] if isinstance(questions, str) else questions
        if not isinstance(questions, list) or not 1 <= len(questions) <= MAX_QUESTIONS:
            raise ValueError(f"questions is a list of 1 to {MAX_QUESTIONS} texts, got {questions!r:.100}")
        for question in questions:
            self.processor.question_prompt(question)  # refuses what is no question before the pictures are encoded
        name = inputs.get("scene")
        if name is not None and (not isinstance(name, str) or not 0 < len(name) <= MAX_NAME):
            raise ValueError(f"scene is a name of 1 to {MAX_NAME} characters, got {name!r:.100}")
        reused = inputs.get("images") is None and name is not None
        if reused:
            scene = self.kept.get(name)
            check_same(name, "visual_tokens", visual_tokens, scene.visual_tokens)
            check_same(name, "scene_description", inputs.get("scene_description"), scene.scene_description)
        else:
            scene = self.encode(inputs.get("images"), inputs.get("scene_description"), visual_tokens)
            if name is not None:
                self.kept.keep(name, scene)
        answers = self.model.answer(scene.cache, self.processor, questions, max_new_tokens=new_tokens)
        return {
            "answers": answers,
            "scene": name,
            "scene_reused": reused,
            "cameras": scene.cameras,
            "visual_tokens": scene.visual_tokens,
        }

    def encode(self, images, scene_description: str | None, visual_tokens: int | None) -> KeptScene:
        cameras = self.processor.cameras
        if not isinstance(images, dict) or not images:
            raise ValueError(f"images is an object of pictures by camera name ({', '.join(cameras)})")
        unknown = [camera for camera in images if camera not in cameras]
        if unknown:
            raise ValueError(f"unknown camera {unknown[0]!r:.100}; the cameras are {', '.join(cameras)}")
        pictures = {camera: read_picture(camera, image) for camera, image in images.items() if image is not None}
        inputs = self.processor.encode_scene(pictures, scene_description, visual_tokens)
        cache = self.model.encode_scene(**inputs.to(self.model.device))
        tokens = visual_tokens or self.processor.visual_token_budgets[0]
        return KeptScene(cache, [camera for camera in cameras if camera in pictures], tokens, scene_description)

    def chat(self, inputs: dict, visual_tokens: int | None, new_tokens: int) -> dict:
        """The answer to the last of the chat messages, whose pictures are named as in the chat template."""
        others = [name for name in ("images", "questions", "scene") if inputs.get(name) is not None]
        if others:
            raise ValueError(f"give either messages or {', '.join(others)}")
        messages, pictures = read_messages(inputs["messages"])
        prompt = self.processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=False,
            scene_description=inputs.get("scene_description"),
        )
        encoded = self.processor(
            images=[pictures] if pictures else None, text=prompt, visual_tokens=visual_tokens, return_tensors="pt"
        ).to(self.model.device)
        written = self.model.generate(**encoded, max_new_tokens=new_tokens, do_sample=False)
        answer = self.processor.decode(written[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
        seen = encoded["camera_ids"][0].tolist() if pictures else []
        return {
            "answers": [answer.strip()],
            "scene": None,
            "scene_reused": False,
            "cameras": [self.processor.cameras[camera] for camera in seen],
            "visual_tokens": visual_tokens or self.processor.visual_token_budgets[0],
        }


def read_messages(messages) -> tuple[list[dict], list[bytes]]:
    """Chat messages in parts, and the files of their pictures in the same order.

    Raises:
        ValueError: what is no list of messages, or a picture that [`read_picture`] refuses.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages is a list of objects with a role and a content")
    read, pictures = [], []
    for number, message in enumerate(messages, start=1):
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str | list) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {number} has no role, or no content that is a text or a list of parts")
        parts = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                parts.append({"type": "text", "text": part.get("text")})
            elif kind in ("image", "image_url"):
                source = next((part[key] for key in ("image", "url", "base64", "image_url") if part.get(key)), None)
                source = source.get("url") if isinstance(source, dict) else source
                pictures.append(read_picture(f"picture {len(pictures) + 1}", source))
                parts.append({"type": "image", "camera": part.get("camera")})
            else:
                raise ValueError(f"message {number} has a part of type {kind!r:.100}; give text, image or image_url")
        read.append({"role": message["role"], "content": parts})
    return read, pictures


def checked_object(what: str, value, names: tuple[str, ...]) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is an object with some of {', '.join(names)}, got {value!r:.100}")
    unknown = [name for name in value if name not in names]
    if unknown:
        raise ValueError(f"{what} has no {unknown[0]!r:.100}; it may have {', '.join(names)}")
    return value


def check_same(name: str, what: str, asked, encoded) -> None:
    if asked is not None and asked != encoded:
        raise ValueError(f"the scene {name!r} is kept with {what}={encoded!r:.100}; send its images again for another")
