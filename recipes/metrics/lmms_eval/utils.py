"""Scene rows as a task of lmms-eval, so that any VLM behind an OpenAI-compatible server is scored as SmolDriver is.

    SCENES=data/drivelm OPENAI_API_KEY=none OPENAI_API_BASE=http://127.0.0.1:8000/v1 python -m lmms_eval \
        --model openai --model_args model=smoldriver,timeout=300 \
        --tasks drivelm_scenes --include_path recipes/metrics/lmms_eval --output_path outputs/lmms

`SCENES` is a folder of prepared scenes and `SPLIT` one of its splits (default: test). A question is asked with its
frame's pictures, each behind a text with its camera's name. The scores are those of recipes/metrics/drivelm over all
questions; `drivelm_answers.json` in the output's `submissions` is what recipes/score_answers.py reads.

This file needs no model library. lmms-eval loads it by its path, once per name in the YAML file.
"""

import json
import os
from functools import lru_cache
from pathlib import Path

from datasets import Dataset
from lmms_eval.tasks._task_utils.file_utils import generate_submission_file

from data_scripts.question_types import question_type
from data_scripts.schema import load_scenes
from data_scripts.sources.drivelm_json import TASKS
from recipes.metrics.drivelm.scores import compute_metrics
from smoldriver_common.shipped import CAMERAS

FOLDER, SPLIT = Path(os.environ.get("SCENES", "data/drivelm")), os.environ.get("SPLIT", "test")
SHARDS = [str(path) for path in sorted((FOLDER / SPLIT).glob("*.parquet"))]
FAILED = ("[LMMS_EVAL_REQUEST_FAILED", "[LMMS_EVAL_BUDGET_EXCEEDED")  # what lmms-eval puts in an answer's place


@lru_cache(maxsize=1)
def frames() -> Dataset:
    """
    Raises:
        FileNotFoundError, ValueError: see `load_scenes`.
    """
    return load_scenes(FOLDER, SPLIT)


def questions(rows: Dataset) -> Dataset:
    """Rows -> one entry per question, in the challenge's order; its pictures stay in the row.

    Raises:
        ValueError: a question has no answer to score against.
    """
    entries = []
    for place, row in enumerate(rows.select_columns(["scene_token", "frame_token", "qa"])):
        for number, qa in enumerate(sorted(row["qa"], key=lambda qa: TASKS.index(qa["task"]))):
            name = f"{row['scene_token']}_{row['frame_token']}_{number}"
            if not qa["answer"].strip():
                raise ValueError(f"question {name} of {FOLDER}/{SPLIT} has no answer to score against")
            tokens = {"scene_token": row["scene_token"], "frame_token": row["frame_token"]}
            entries.append({"id": name, "row": place, **tokens, **qa})
    return Dataset.from_list(entries)


def views(doc: dict) -> list[tuple]:
    """(camera, picture) of the question's frame, missing cameras left out."""
    row = frames()[doc["row"]]
    return [(camera, row[camera].convert("RGB")) for camera in CAMERAS if row[camera] is not None]


def pictures(doc: dict) -> list:
    return [picture for _, picture in views(doc)]


def messages(doc: dict) -> list[dict]:
    content = []
    for camera, picture in views(doc):
        content += [{"type": "text", "text": camera}, {"type": "image", "url": picture}]
    return [{"role": "user", "content": [*content, {"type": "text", "text": doc["question"]}]}]


def answered(doc: dict, results: list[str]) -> dict:
    """
    Raises:
        ValueError: the model gave no answer; a failed request is not a wrong answer.
    """
    if results[0].startswith(FAILED):
        raise ValueError(f"question {doc['id']} was not answered: {results[0]}")
    entry = {**doc, "prediction": results[0]}
    return dict.fromkeys((*MEASURED, "answers"), entry)


def overall(metric: str):
    """-> the function that gives this metric's value over all questions, NaN where it applies to none."""

    def aggregate(entries: list[dict]) -> float:
        scores = compute_metrics(
            [entry["prediction"] for entry in entries],
            [entry["answer"] for entry in entries],
            question_types=[question_type(entry["question"], entry["task"]) for entry in entries],
            scene_tokens=[entry["scene_token"] for entry in entries],
            metrics=[metric],
        )
        return scores["overall"].get(metric, float("nan"))

    return aggregate


MEASURED = ("exact_match", "accuracy", "extracted_accuracy", "listing_f1", "match_f1", "bleu", "rouge_l", "cider")
exact_match, accuracy, extracted_accuracy, listing_f1, match_f1, bleu, rouge_l, cider = map(overall, MEASURED)


def write_answers(entries: list[dict], args) -> int:
    """Write the answers in the challenge's form; -> how many."""
    path = Path(generate_submission_file("drivelm_answers.json", args))
    path.write_text(json.dumps([{"id": entry["id"], "answer": entry["prediction"]} for entry in entries], indent=1))
    print(f"wrote {path}")
    return len(entries)
