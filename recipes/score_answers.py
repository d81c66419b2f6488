"""Score answers in the form of the DriveLM challenge's submissions, of any model, against a DriveLM file with answers.

python recipes/score_answers.py --answers output.json --json test_eval.json

`output.json` is a list of `{"id": "<scene token>_<frame token>_<number>", "answer": "..."}`, where the number counts a
frame's questions from 0 in the order perception, prediction, planning, behavior; other keys are ignored. The scores
are those of recipes/metrics/drivelm: overall, by question type and by task, and the challenge's own.
"""

import argparse
import json
from pathlib import Path

from data_scripts.question_types import question_type
from data_scripts.sources.drivelm_json import TASKS, read_drivelm
from recipes.evaluation.tables import aligned
from recipes.metrics.drivelm.scores import METRICS, compute_metrics
from recipes.metrics.drivelm.text_metrics import find_minilm
from smoldriver_common.command_line import errors_in_one_line
from smoldriver_common.whole_files import write_json


def read_answers(path: Path) -> dict[str, str]:
    """Answers by question id.

    Raises:
        ValueError: the file is cut short, is not a list of such objects, or an id is duplicated.
    """
    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON, perhaps cut short: {error}") from None
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
        answers[name] = answer
    return answers


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


def score_table(scores: dict) -> str:
    """One line per metric, one column per group."""
    groups = [name for name in scores if name != "info"]
    lines = [["", *groups], ["questions", *(str(scores[group]["count"]) for group in groups)]]
    for metric in METRICS:
        values = [scores[group].get(metric) for group in groups]
        if any(value is not None for value in values):
            lines.append([metric, *("-" if value is None else f"{value:.4f}" for value in values)])
    return aligned(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", required=True, type=Path, help="a submission's output.json")
    parser.add_argument("--json", required=True, type=Path, help="DriveLM file with the true answers")
    parser.add_argument("--output", type=Path, help="JSON file to write the scores with their intervals to")
    parser.add_argument(
        "--bertscore-model", default=find_minilm(), help="folder or name of the encoder; default: all-MiniLM-L6-v2"
    )
    arguments = parser.parse_args()
    with errors_in_one_line("score_answers"):
        questions = read_questions(arguments.json)
        predictions = matched(read_answers(arguments.answers), questions)
        rows = list(questions.values())
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        scores = compute_metrics(predictions, **columns, bertscore_model=arguments.bertscore_model)
        if arguments.output:
            write_json(arguments.output, scores)
    print(score_table(scores))
    if scores["info"].get("bertscore_encoder"):
        print(f"BERTScore by {scores['info']['bertscore_encoder']}")
    empty = sum(not answer.strip() for answer in predictions)
    if empty:
        print(f"{empty} empty answers count as wrong")
    if "challenge" in scores:
        print(f"questions that the challenge leaves out: {scores['challenge']['skipped']}")
    for name, why in scores["info"]["left_out"].items():
        print(f"left out: {name}: {why}")
    if arguments.output:
        print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
