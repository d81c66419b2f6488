"""Ask a saved SmolDriver about one prepared frame, and paint its views with questions, answers and truth.

python recipes/ask.py --model outputs/sample/trained --scenes outputs/sample/scenes --split train --frame 0 \
    --picture outputs/sample/answers.png

The installed classes load the model. Code that is saved in its folder is never run.
"""

import argparse
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from transformers.utils import logging

from data_scripts.schema import load_scenes
from modeling_smoldriver.collator_smoldriver import pictures_of
from recipes.evaluation.lengths import Question, check_lengths
from recipes.training.loading import load_model
from recipes.training.manifest import check_source
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line, whole_number
from smoldriver_common.whole_files import written_whole

VIEWS_IN_A_ROW = 3  # nuScenes' back views come below the front ones


def spread_questions(qa: list[dict], count: int) -> list[dict]:
    """`count` questions of a frame, evenly spread over its list (perception first, behaviour last)."""
    return [qa[index * len(qa) // count] for index in range(min(count, len(qa)))]


def paint(pictures: dict, lines: list[tuple[str, str, str | None]], path: Path) -> None:
    """Paint the views of all cameras, in their order, and under them (question, answer, truth or None)."""
    rows = -(-len(pictures) // VIEWS_IN_A_ROW)
    figure = plt.figure(figsize=(12, 2.6 * rows + 0.62 * len(lines)))
    views, text = figure.subfigures(2, 1, height_ratios=[2.6 * rows, 0.62 * len(lines)])
    places = list(views.subplots(rows, VIEWS_IN_A_ROW).flat)
    for axes in places:
        axes.axis("off")
    for axes, (camera, picture) in zip(places, pictures.items(), strict=False):
        axes.set_title(camera, fontsize=9)
        if picture is not None:
            axes.imshow(picture)
    for number, (question, answer, truth) in enumerate(lines):
        y = 1 - (number + 0.5) / len(lines)
        text.text(0.03, y + 0.2 / len(lines), textwrap.shorten(question, 150), fontsize=10, weight="bold")
        below = y - 0.25 / len(lines)
        if truth is None:
            text.text(0.05, below, textwrap.shorten(answer, 130))
            continue
        right = answer.strip().lower() == truth.strip().lower()
        text.text(0.05, below, textwrap.shorten(answer, 70), color="green" if right else "firebrick")
        text.text(0.55, below, f"truth: {textwrap.shorten(truth, 60)}", color="dimgray")
    with written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=110)
    plt.close(figure)


def read_frame(scenes: Path, split: str, number: int) -> dict:
    """One row of a finished folder of scene rows, cameras decoded.

    Raises:
        FileNotFoundError, ValueError: see [`load_scenes`]; no such frame in the split.
    """
    rows = load_scenes(scenes, split)
    if not 0 <= number < len(rows):
        raise ValueError(f"--frame {number}: the split {split!r} has the frames 0 .. {len(rows) - 1}")
    return rows[number]


def ask(
    model: str,
    scenes: Path,
    split: str,
    frame: int,
    questions: list[str] | None,
    visual_tokens: int | None,
    picture: Path | None,
    int8: bool = False,
) -> None:
    """Print a model's answers about one frame, and paint them; the arguments are the command line's."""
    check_source(model)
    row = read_frame(scenes, split, frame)
    own = [{"question": text, "answer": None} for text in questions or []]
    asked = own or spread_questions(row["qa"], 5)

    numbered = [Question(f"number {number}", qa["question"], qa["answer"]) for number, qa in enumerate(asked, start=1)]
    check_lengths(model, numbered, [visual_tokens])
    answering, processor = load_model(model, int8=int8)
    images = pictures_of(row, processor.cameras)
    scene = answering.encode_scene(**processor.encode_scene(images, visual_tokens=visual_tokens))
    answers = answering.answer(scene, processor, [qa["question"] for qa in asked], max_new_tokens=256)
    lines = [(qa["question"], answer, qa["answer"]) for qa, answer in zip(asked, answers, strict=True)]
    for question, answer, truth in lines:
        print(f"Q {question}\n  answer {answer}")
        if truth is not None:
            print(f"  truth  {truth}")
    if picture:
        paint(images, lines, picture)
        print(f"wrote {picture}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder or Hub id")
    parser.add_argument("--scenes", required=True, type=Path, help="folder of prepared scene rows")
    parser.add_argument("--split", default="test")
    parser.add_argument("--frame", type=int, default=0, help="number of the frame in the split, from 0")
    parser.add_argument("--questions", nargs="*", help="default: five of the frame's own, with their true answers")
    parser.add_argument(
        "--visual-tokens", type=whole_number(), help="tokens per camera; default the model's largest budget"
    )
    parser.add_argument("--int8", action="store_true", help="quantise the linear layers, for a faster CPU")
    parser.add_argument("--picture", type=Path, help="PNG to write")
    arguments = parser.parse_args()

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with errors_in_one_line("ask"):
        ask(**vars(arguments))


if __name__ == "__main__":
    with stopped_in_one_line("ask"):
        main()
