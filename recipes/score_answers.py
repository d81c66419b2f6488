"""Score answers in the form of the DriveLM challenge's submissions, of any model, against a DriveLM file with answers.

python recipes/score_answers.py --answers output.json --json test_eval.json

`output.json` is a list of `{"id": "<scene token>_<frame token>_<number>", "answer": "..."}`, where the number counts a
frame's questions from 0 in the order perception, prediction, planning, behavior; other keys are ignored. The file that
the challenge's server takes, `submission.json`, is read too: an object with such a list in `results`. The scores
are those of recipes/metrics/drivelm: overall, by question type and by task, and the challenge's own.
"""

import argparse
from pathlib import Path

from recipes.evaluation.submissions import matched, read_answers, read_questions
from recipes.evaluation.tables import aligned
from recipes.metrics.drivelm.scores import METRICS, compute_metrics
from recipes.metrics.drivelm.text_metrics import find_minilm
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line
from smoldriver_common.whole_files import write_json


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
    parser.add_argument("--answers", required=True, type=Path, help="a submission's output.json or submission.json")
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
    with stopped_in_one_line("score_answers"):
        main()
