# ruff: noqa: T201 - a script, not a test: what it prints is its report
"""Serves a model with vLLM and SmolDriver's plugin and compares every answer with `generate` (`make vllm-check`).

    .venv-vllm/bin/python tests/check_vllm.py outputs/space

The folder is that of recipes/build_space.py: the model's name and frames with questions. One cold server gets the
frames in wrong orders first, so that a camera lost in a cache would show in the right order at the end. Then 1 to 93
questions per frame are timed against `model.answer`, and a server without the plugin must not start.
"""

import argparse
import json
import sys
import urllib.error
from pathlib import Path

import torch
from PIL import Image, ImageOps
from transformers import AutoModelForImageTextToText, AutoProcessor

from recipes.benchmark_serving import as_png, contestants, table, take_turns
from recipes.serving.vllm_server import ask, labelled_parts, picture_part, running_server

FRAMES, QUESTIONS = 3, 7
REFUSED = ("placeholders have no camera name before them", "does not dispatch through the Transformers attention")


class Reference:
    """The model in this process."""

    def __init__(self, name: str):
        torch.set_num_threads(1)
        self.processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
        self.model = AutoModelForImageTextToText.from_pretrained(name, trust_remote_code=True).eval()

    def generate(self, views: list[tuple[str, Image.Image]], question: str, visual_tokens: int | None) -> str:
        """`generate`'s answer, the pictures in the order of `views`."""
        content = [{"type": "image", "camera": camera} for camera, _ in views]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        pictures = dict(views)
        inputs = self.processor(images=pictures, text=text, visual_tokens=visual_tokens, return_tensors="pt")
        ids = self.model.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        return self.processor.decode(ids, skip_special_tokens=True).strip()


def labelled(views) -> list[dict]:
    return labelled_parts([(camera, as_png(picture)) for camera, picture in views])


def keyed(views) -> list[dict]:
    return [picture_part(as_png(picture), camera=camera) for camera, picture in views]


def unnamed(views) -> list[dict]:
    return [picture_part(as_png(picture)) for _, picture in views]


def check_cases(address: str, reference: Reference, scenes: list[tuple[dict, list[str]]]) -> None:
    """Every way to name cameras, wrong orders first, on a cold server."""
    few = reference.processor.visual_token_budgets[1]
    grey = [
        ({camera: Image.new("RGB", one.size, (128,) * 3) for camera, one in frame.items()}, asked)
        for frame, asked in scenes
    ]
    two = [({camera: frame[camera] for camera in ("CAM_BACK", "CAM_FRONT")}, asked) for frame, asked in scenes]
    turned = [(dict(reversed(frame.items())), asked) for frame, asked in scenes]
    cases = {
        "reversed order, named by label": (turned, labelled, None),
        "reversed order, named by key": (turned, keyed, None),
        "six unnamed": (scenes, unnamed, None),
        "two cameras": (two, labelled, None),
        f"budget {few}": (scenes, labelled, few),
        "blank pictures": (grey, labelled, None),
        "the right order again": (scenes, labelled, None),
    }
    for name, (frames, written, visual_tokens) in cases.items():
        equal = asked = reused = prompts = 0
        for frame, questions in frames:
            views = list(frame.items())
            for question in questions:
                answer, cached = ask(address, written(views), question, visual_tokens)
                equal += answer == reference.generate(views, question, visual_tokens)
                asked, reused, prompts = asked + 1, reused + cached, prompts + (cached > 0)
        print(f"{name:32} {equal}/{asked} equal to generate; {reused} cached tokens in {prompts} prompts", flush=True)
        assert equal == asked, name
        assert prompts, f"{name}: nothing was cached"


def refusal(address: str, parts: list[dict], question: str, visual_tokens: int | None = None) -> str:
    try:
        answer, _ = ask(address, parts, question, visual_tokens)
    except urllib.error.HTTPError as error:
        message = json.load(error)["error"]["message"]
        assert error.code == 400, (error.code, message)
        return message
    raise AssertionError(f"it was answered: {answer!r}")


def check_refusals(address: str, scenes) -> None:
    frame, (question, *_) = scenes[0]
    views = list(frame.items())
    (_, back), (_, front) = views[-2:]
    bad = {
        "2 pictures, 0 of them with a camera name": (unnamed(views[:2]), question),
        "unknown camera 'CAM_TOP'": (labelled([("CAM_TOP", front)]), question),
        "names a camera twice": (labelled([("CAM_BACK", back), ("CAM_BACK", front)]), question),
        "placeholders in the prompt": (labelled(views[:2]), "CAM_BACK:<image> Why?"),
        "is not a budget": (labelled(views), question, 5),
    }
    for said, request in bad.items():
        message = refusal(address, *request)
        assert said in message, (said, message)
        print(f"status 400: {message[:170]}")


def benchmark(model: str, address: str, frames: list[dict]) -> None:
    """Questions per second on frames that the server has not seen; all answers are the same."""
    kinds = ("cars", "trucks", "buses", "pedestrians", "barriers", "bicycles")
    places = ("front", "front left", "front right", "back", "back left", "back right")
    questions = [
        f"Are there {state}{kind} to the {place} of the ego car?"
        for state in ("", "moving ", "parked ")
        for kind in kinds
        for place in places
    ]
    asked = contestants(model, address, max_new_tokens=64)
    files = [{camera: as_png(picture) for camera, picture in frame.items()} for frame in frames]
    take_turns(asked, files, questions)
    print(f"questions per second:\n{table(asked)}", flush=True)
    first, *others = asked
    assert all(other.answers == first.answers for other in others)


def check_without_plugin(model: str, log: Path) -> None:
    try:
        with running_server(model, log, VLLM_PLUGINS=""):
            raise AssertionError("it started without the plugin")
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if any(said in line for said in REFUSED)]
        assert lines, f"it ended for another reason: {log}"
        print(f"without the plugin the server does not start: {lines[-1].partition('ValueError: ')[2][:200]}")


def read_scenes(folder: Path) -> list[tuple[dict, list[str]]]:
    scenes = []
    for entry in json.loads((folder / "examples/examples.json").read_text()):
        pictures = {camera: Image.open(folder / "examples" / name) for camera, name in entry["pictures"].items()}
        scenes.append(({camera: picture.convert("RGB") for camera, picture in pictures.items()}, list(entry["truth"])))
    return scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("space", type=Path, help="folder of recipes/build_space.py, with examples")
    args = parser.parse_args()
    if not (args.space / "examples/examples.json").is_file():
        sys.exit(f"check_vllm: {args.space} is not a Space with examples; recipes/build_space.py writes one")
    model = json.loads((args.space / "settings.json").read_text())["model"]
    reference, scenes = Reference(model), read_scenes(args.space)
    with running_server(model, Path(f"{args.space}-vllm.log")) as address:
        check_cases(address, reference, [(frame, asked[:QUESTIONS]) for frame, asked in scenes[:FRAMES]])
        check_refusals(address, scenes)
        unseen = [{camera: ImageOps.mirror(one) for camera, one in frame.items()} for frame, _ in scenes[:5]]
        benchmark(model, address, unseen)
    check_without_plugin(model, Path(f"{args.space}-vllm-bare.log"))
    print("all checks passed")


if __name__ == "__main__":
    main()
