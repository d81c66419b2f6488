"""Answers in the form of the DriveLM challenge's submissions, and the questions that they are to."""

import json
from pathlib import Path

from data_scripts.question_types import question_type
from data_scripts.sources.drivelm_json import TASKS, read_drivelm

LONGEST_TEXT = 20_000  # characters


def read_answers(path: Path) -> dict[str, str]:
    """Answers by question id.

    Raises:
        ValueError: the file is cut short, does not hold a list of such objects, an id is duplicated, or an answer is
            longer than the metrics take.
    """
    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON, perhaps cut short: {error}") from None
    if isinstance(items, dict) and "results" in items:  # submission.json
        items = items["results"]
    if not isinstance(items, list):
        raise ValueError(f"{path} must be a list of answers, not {type(items).__name__}")
    answers = {}
    for number, item in enumerate(items):
        entry = item if isinstance(item, dict) else {}
        name, answer = entry.get("id"), entry.get("answer")
        if not isinstance(name, str) or not isinstance(answer, str):
            raise ValueError(f'{path}: entry {number} must be {{"id": text, "answer": text}}, not {item!r:.80}')
        if name in answers:
            raise ValueError(f"{path}: the id {name!r} is duplicated")
        check_length(f"{path}: the answer of {name!r:.80}", answer)
        answers[name] = answer
    return answers


def check_length(what: str, text: str) -> None:
    """The time of some metrics grows with the square of a text's length.

    Raises:
        ValueError: the text is longer than any answer is meant to be.
    """
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"{what} has {len(text):,} characters, the metrics take at most {LONGEST_TEXT:,}: shorten it")


def read_questions(path: Path) -> dict[str, dict]:
    """Questions with their true answers by id, as arguments of `compute_metrics` name them.

    Raises:
        ValueError: as `read_drivelm`; a question without an answer; a frame whose questions cannot be numbered.
    """
    frames, _ = read_drivelm([path], drop_object_tags=False, keep_unlabelled=True)
    questions = {}
    for frame in frames:
        where = f"{path}: frame {frame['frame_token']!r}"
        if frame["dropped"]:
            raise ValueError(f"{where}: {', '.join(frame['dropped'])}: its questions cannot be numbered")
        for number, qa in enumerate(sorted(frame["qa"], key=lambda qa: TASKS.index(qa["task"]))):
            if not qa["answer"]:
                raise ValueError(f"{where}: question {number} has no answer to score against: {qa['question']!r:.80}")
            for part in ("question", "answer"):
                check_length(f"{where}: the {part} of question {number}", qa[part])
            questions[f"{frame['scene_token']}_{frame['frame_token']}_{number}"] = {
                "references": qa["answer"],
                "questions": qa["question"],
                "question_types": question_type(qa["question"], qa["task"]),
                "tasks": qa["task"],
                "scene_tokens": frame["scene_token"],
                "frame_tokens": frame["frame_token"],
                "tags": qa["tag"],
            }
    return questions


def matched(answers: dict[str, str], questions: dict[str, dict]) -> list[str]:
    """The answers in the order of the questions.

    Raises:
        ValueError: names the first question without an answer, or the first answer to an unknown question.
    """
    for ids, others, what in (
        (questions, answers, "questions have no answer"),
        (answers, questions, "answers are to unknown questions"),
    ):
        missing = [name for name in ids if name not in others]
        if missing:
            raise ValueError(f"{len(missing)} of {len(ids)} {what}, the first has the id {missing[0]!r}")
    return [answers[name] for name in questions]
