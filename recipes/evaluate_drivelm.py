"""Ask a SmolDriver the questions of a split and score its answers, beside controls that must do worse.

python recipes/evaluate_drivelm.py --model outputs/sample/trained --scenes outputs/sample/scenes --split train \
    --output-dir outputs/sample/eval

Writes `predictions.parquet` and `metrics.json` (metrics: recipes/metrics/drivelm) and prints a table. An evaluation
that was stopped goes on where it was; `accelerate launch` shares it between processes.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from PIL import Image
from tqdm import tqdm

from data_scripts.question_types import OBJECT_TAG, QUESTION_TYPES, question_type
from data_scripts.schema import load_scenes
from recipes.checkpoints import errors_in_one_line, load_model
from recipes.metrics.drivelm.drivelm import CLOSED_TYPES, compute_metrics

CONTROLS = {
    "majority": "the training split's most frequent answer to the question's template, without any model",
    "other_scene_images": "the model with the pictures of a frame of another scene",
    "text_only": "the model without pictures",
    "blank_images": "the model with grey pictures",
    "permuted_cameras": "the model with each camera's picture at the next one",
}
CHUNK = 16  # frames whose answers are written together
MODEL = "smoldriver"


def select_questions(rows, questions_per_frame: int | None, seed: int) -> list[list[int]]:
    """Numbers of the questions to ask of each row: all, or a draw that depends on the seed and the frame alone."""
    chosen = []
    for row in rows:
        numbers = list(range(len(row["qa"])))
        if questions_per_frame is not None and len(numbers) > questions_per_frame:
            numbers = sorted(random.Random(f"{seed}-{row['frame_token']}").sample(numbers, questions_per_frame))
        chosen.append(numbers)
    return chosen


def majority_answers(train) -> dict[str, str]:
    """Most frequent answer of each question template (object tags left open), and under "" of all questions."""
    counts = collections.defaultdict(collections.Counter)
    for row in train:
        for qa in row["qa"]:
            for key in (OBJECT_TAG.sub("<object>", qa["question"]), ""):
                counts[key][qa["answer"]] += 1
    return {key: counter.most_common(1)[0][0] for key, counter in counts.items()}


def other_scenes(scene_tokens: list[str]) -> list[int]:
    """For each row a row of another scene, about half the data away.

    Raises:
        ValueError: if all rows are of one scene.
    """
    count = len(scene_tokens)
    if len(set(scene_tokens)) < 2:
        raise ValueError("the split has one scene only, so there are no pictures of another")
    others = []
    for index, scene in enumerate(scene_tokens):
        candidates = ((index + count // 2 + step) % count for step in range(count))
        others.append(next(other for other in candidates if scene_tokens[other] != scene))
    return others


def control_images(images: dict, control: str | None) -> dict | None:
    """The pictures that the model is shown under a control, by camera; None for none at all."""
    if control == "text_only":
        return None
    if control == "blank_images":
        return {camera: Image.new("RGB", image.size, (128, 128, 128)) for camera, image in images.items()}
    if control == "permuted_cameras":
        pictures = list(images.values())
        return dict(zip(images, pictures[1:] + pictures[:1], strict=True))
    return images


class ModelAnswers:
    """Answers of a model, or of a model under a control, to questions about rows."""

    def __init__(self, model, processor, rows, control: str | None, arguments):
        self.model, self.processor, self.rows, self.control, self.arguments = (
            model,
            processor,
            rows,
            control,
            arguments,
        )
        self.others = other_scenes(rows["scene_token"]) if control == "other_scene_images" else None

    def __call__(self, index: int, questions: list[str]) -> list[str]:
        row = self.rows[index if self.others is None else self.others[index]]
        images = {camera: row[camera] for camera in self.processor.cameras if row[camera] is not None}
        description = row["scene_description"] if self.arguments.use_scene_description else None
        scene = self.model.encode_scene(
            **self.processor.encode_scene(
                control_images(images, self.control), description, self.arguments.visual_tokens
            )
        )
        return self.model.answer(
            scene, self.processor, questions, max_new_tokens=self.arguments.max_new_tokens, batch_size=256
        )


class MajorityAnswers:
    def __init__(self, train):
        self.answers = majority_answers(train)

    def __call__(self, index: int, questions: list[str]) -> list[str]:
        return [self.answers.get(OBJECT_TAG.sub("<object>", text), self.answers[""]) for text in questions]


def predict(name: str, answer, texts, chosen: list[list[int]], folder: Path, state: PartialState) -> list[dict]:
    """All predictions of one contestant (in the main process), in chunks of frames that are kept as they are done."""
    starts = range(0, len(texts), CHUNK)
    mine = [start for start in starts if start // CHUNK % state.num_processes == state.process_index]
    for start in tqdm(mine, desc=name, unit="chunk", disable=not state.is_main_process):
        path = folder / f"{name}-{start:06d}.json"
        if path.is_file():
            continue
        rows = []
        for index in range(start, min(start + CHUNK, len(texts))):
            frame = texts[index]
            asked = [frame["qa"][number] for number in chosen[index]]
            answers = answer(index, [qa["question"] for qa in asked]) if asked else []
            for number, qa, text in zip(chosen[index], asked, answers, strict=True):
                rows.append(
                    {
                        "model": name,
                        "id": f"{frame['frame_token']}_{number}",
                        "scene_token": frame["scene_token"],
                        "frame_token": frame["frame_token"],
                        "task": qa["task"],
                        "type": question_type(qa["question"], qa["task"]),
                        "tag": qa["tag"],
                        "question": qa["question"],
                        "reference": qa["answer"],
                        "prediction": text,
                    }
                )
        write_whole(path, json.dumps(rows, ensure_ascii=False))
    state.wait_for_everyone()
    if not state.is_main_process:
        return []
    return [row for start in starts for row in json.loads((folder / f"{name}-{start:06d}.json").read_text("utf-8"))]


def write_whole(path: Path, text: str) -> None:
    aside = path.with_name(path.name + f".{os.getpid()}.tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def score(predictions: list[dict], bootstrap_samples: int) -> dict:
    """metrics.json's entry of one contestant: `compute_metrics` with the types as groups, and `closed` beside them."""
    columns = {key: [row[key] for row in predictions] for key in predictions[0]}
    options = {
        "questions": columns["question"],
        "question_types": columns["type"],
        "tasks": columns["task"],
        "scene_tokens": columns["scene_token"],
        "frame_tokens": columns["frame_token"],
        "bootstrap_samples": bootstrap_samples,
    }
    return compute_metrics(columns["prediction"], columns["reference"], **options)


def table(results: dict[str, dict]) -> str:
    """One line a contestant: accuracy of closed types, F1 of listings, exact match of the others, corpus BLEU."""
    types = [kind for kind in QUESTION_TYPES if any(kind in result for result in results.values())]
    metric = {kind: "accuracy" if kind in CLOSED_TYPES else "exact_match" for kind in types} | {
        "listing": "listing_f1"
    }
    heads = [f"{kind} {metric[kind].replace('exact_match', 'exact').replace('listing_f1', 'F1')}" for kind in types]
    columns = [("closed accuracy", "overall", "accuracy"), *zip(heads, types, map(metric.get, types), strict=True)]
    columns.append(("BLEU", "overall", "bleu"))
    lines = [["", *(head for head, _, _ in columns)]]
    for name, result in results.items():
        values = (result.get(group, {}).get(key) for _, group, key in columns)
        lines.append([name, *("-" if value is None else f"{100 * value:.1f}" for value in values)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder, Hub id or folder of adapters")
    parser.add_argument("--scenes", required=True, help="folder of prepared scene rows")
    parser.add_argument("--split", default="test", choices=("train", "eval", "test"))
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--controls", nargs="*", default=["majority", "other_scene_images"], choices=list(CONTROLS))
    parser.add_argument("--max-frames", type=positive, help="frames to ask about, evenly spread; default all")
    parser.add_argument("--questions-per-frame", type=positive, help="questions to draw a frame; default all")
    parser.add_argument("--visual-tokens", type=positive, help="tokens a camera; default the model's largest budget")
    parser.add_argument("--use-scene-description", action="store_true")
    parser.add_argument("--max-new-tokens", type=positive, default=64)
    parser.add_argument("--bootstrap-samples", type=int, default=1000)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as it was trained")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def unfinished_folder(arguments: argparse.Namespace) -> tuple[Path, dict]:
    """Where answers are kept until all are there (a place for these settings and these weights), and the settings."""
    settings = {key: str(value) for key, value in vars(arguments).items() if key not in ("controls", "output_dir")}
    files = [path.stat() for path in sorted(Path(arguments.model).glob("*.safetensors"))]
    depends_on = [settings, [(file.st_size, file.st_mtime_ns) for file in files]]
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
    return arguments.output_dir / f".parts-{digest}", settings


def evaluate_model(arguments: argparse.Namespace):
    """Ask, score, write, print."""
    state = PartialState(cpu=not torch.cuda.is_available())
    rows = load_scenes(arguments.scenes, arguments.split)
    if arguments.max_frames is not None and arguments.max_frames < len(rows):
        count = arguments.max_frames
        rows = rows.select([index * len(rows) // count for index in range(count)])
    texts = rows.select_columns(["scene_token", "frame_token", "qa"])
    chosen = select_questions(texts, arguments.questions_per_frame, arguments.seed)
    model, processor = load_model(arguments.model, arguments.dtype and getattr(torch, arguments.dtype))
    parts, settings = unfinished_folder(arguments)
    parts.mkdir(parents=True, exist_ok=True)

    contestants = {MODEL: lambda: ModelAnswers(model, processor, rows, None, arguments)}
    for control in arguments.controls:
        contestants[control] = lambda control=control: ModelAnswers(model, processor, rows, control, arguments)
    if "majority" in contestants:
        contestants["majority"] = lambda: MajorityAnswers(
            load_scenes(arguments.scenes, "train").select_columns(["qa"])
        )
    predictions, results, left_out, seconds = [], {}, {}, {}
    for name, make in contestants.items():
        started = time.perf_counter()
        try:
            answer = make()
        except ValueError as error:
            left_out[name] = str(error)
            continue
        rows_of = predict(name, answer, texts, chosen, parts, state)
        seconds[name] = round(time.perf_counter() - started, 1)
        if state.is_main_process:
            predictions += rows_of
            results[name] = score(rows_of, arguments.bootstrap_samples)
    if not state.is_main_process:
        return

    aside = arguments.output_dir / "predictions.parquet.tmp"
    pq.write_table(pa.Table.from_pylist(predictions), aside)
    os.replace(aside, arguments.output_dir / "predictions.parquet")
    info = {name: result.pop("info") for name, result in results.items()}[MODEL]
    info |= {"settings": settings, "controls": CONTROLS, "left_out_controls": left_out, "seconds": seconds}
    write_whole(arguments.output_dir / "metrics.json", json.dumps({"results": results, "info": info}, indent=1))
    for unfinished in arguments.output_dir.glob(".parts-*"):
        shutil.rmtree(unfinished)
    print(table(results))
    for name, why in left_out.items():
        print(f"left out: {name} ({why})")
    print(f"{len(texts)} frames, {results[MODEL]['overall']['count']} questions; wrote {arguments.output_dir}")


def main():
    with errors_in_one_line("evaluate_drivelm"):
        evaluate_model(parse_arguments())


if __name__ == "__main__":
    main()
