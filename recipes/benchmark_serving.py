"""Questions per second by `model.answer`, by the endpoint's handler and by vLLM, with one model, in one run.

    .venv-vllm/bin/python recipes/benchmark_serving.py --model outputs/random-256m

`make serving-benchmark` writes that model, of 256M dimensions and random weights. For each number of questions all
three get the files of a frame that they have not seen and are timed to the last answer; vLLM is asked over HTTP, the
others in this process. One torch thread each, float32. Medians of `--repeats` frames. recipes/serving/README.md says
how the environment is made.
"""

import argparse
import base64
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from tqdm import tqdm
from transformers.utils import logging

from recipes.benchmarking.inputs import drivelm_style_questions, pictures
from recipes.serving.handler import EndpointHandler
from recipes.serving.vllm_server import ask_many, running_server
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line, whole_number

COUNTS = (1, 8, 32, 93)  # questions about a frame; 93 is DriveLM's mean
Files = dict[str, bytes]
"""PNG files by camera."""


@dataclass
class Contestant:
    """One way to be asked, and what it did: per number of questions the seconds of each frame, and all answers."""

    name: str
    answer: Callable[[Files, list[str]], list[str]]
    seconds: dict[int, list[float]] = field(default_factory=dict)
    answers: dict[int, list[str]] = field(default_factory=dict)

    def ask(self, frame: Files, questions: list[str]) -> None:
        started = time.perf_counter()
        answers = self.answer(frame, questions)
        self.seconds.setdefault(len(questions), []).append(time.perf_counter() - started)
        self.answers.setdefault(len(questions), []).extend(answers)


def contestants(model: str, address: str, max_new_tokens: int) -> list[Contestant]:
    """The three, vLLM at `address`; the first two share the weights that the handler loads."""
    torch.set_num_threads(1)
    handler = EndpointHandler(model)

    def by_model(frame: Files, questions: list[str]) -> list[str]:
        images = {camera: Image.open(io.BytesIO(file)) for camera, file in frame.items()}
        scene = handler.model.encode_scene(**handler.processor.encode_scene(images))
        return handler.model.answer(scene, handler.processor, questions, max_new_tokens=max_new_tokens)

    def by_handler(frame: Files, questions: list[str]) -> list[str]:
        images = {camera: base64.b64encode(file).decode() for camera, file in frame.items()}
        asked = {
            "inputs": {"images": images, "questions": questions},
            "parameters": {"max_new_tokens": max_new_tokens},
        }
        return handler(json.loads(json.dumps(asked)))["answers"]

    return [
        Contestant("`model.answer`", by_model),
        Contestant("handler", by_handler),
        Contestant("vLLM", lambda frame, questions: ask_many(address, frame, questions, max_new_tokens)),
    ]


def as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def take_turns(asked: list[Contestant], frames: list[Files], questions: list[str]) -> None:
    """All contestants get a frame and a number of questions before the next; the first frame warms them up."""
    for contestant in asked:
        contestant.answer(frames[0], questions[:1])
    rounds = [(COUNTS[number % len(COUNTS)], frame) for number, frame in enumerate(frames[1:])]
    for count, frame in tqdm(rounds, desc="asking", unit="frame"):
        for contestant in asked:
            contestant.ask(frame, questions[:count])


def table(asked: list[Contestant]) -> str:
    """Questions per second, and how many answers are those of the first contestant."""
    lines = [
        f"| questions per frame | {' | '.join(one.name for one in asked)} | equal answers |",
        f"|{'---|' * (len(asked) + 2)}",
    ]
    first = asked[0]
    for count in first.seconds:
        speeds = [f"{count / median(one.seconds[count]):.2f}" for one in asked]
        equal = [
            f"{sum(map(str.__eq__, one.answers[count], first.answers[count]))}/{len(first.answers[count])}"
            for one in asked[1:]
        ]
        lines.append(f"| {count} | {' | '.join(speeds)} | {', '.join(equal)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a SmolDriver")
    parser.add_argument("--max-new-tokens", type=whole_number(), default=16, help="of an answer")
    parser.add_argument("--repeats", type=whole_number(), default=2, help="frames for each number of questions")
    parser.add_argument("--log", type=Path, default=Path("outputs/benchmark-vllm.log"), help="file for vLLM's words")
    given = parser.parse_args()
    logging.set_verbosity_error()
    questions = [question for question, _ in drivelm_style_questions(max(COUNTS))]
    seeds = range(1 + len(COUNTS) * given.repeats)
    frames = [{camera: as_png(image) for camera, image in pictures(seed=seed).items()} for seed in seeds]
    with errors_in_one_line("benchmark_serving"), running_server(given.model, given.log) as address:
        asked = contestants(given.model, address, given.max_new_tokens)
        take_turns(asked, frames, questions)
        print(f"questions per second, {given.max_new_tokens} tokens per answer at most\n\n{table(asked)}")


if __name__ == "__main__":
    with stopped_in_one_line("benchmark_serving"):
        main()
