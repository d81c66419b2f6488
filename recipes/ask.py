"""Ask a saved SmolDriver about one prepared frame, and paint the six views with questions, answers and truth.

python recipes/ask.py --model outputs/sample/trained --scenes outputs/sample/scenes --split train --frame 0 \
    --picture outputs/sample/answers.png

The model is loaded through the Auto classes with the code saved beside its weights, as a user would load it. (This
file does not import the package, so that the saved code runs.)
"""

import argparse
import glob
import json
import sys
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from datasets import load_dataset
from datasets.exceptions import DatasetsError
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from smoldriver_common.command_line import whole_number
from smoldriver_common.whole_files import written_whole

LAYOUT = [["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"], ["CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"]]


def spread_questions(qa: list[dict], count: int) -> list[dict]:
    """`count` questions of a frame, evenly spread over its list (perception first, behaviour last)."""
    return [qa[index * len(qa) // count] for index in range(min(count, len(qa)))]


def paint(row: dict, lines: list[tuple[str, str, str | None]], path: Path) -> None:
    """Paint the six views, the back ones below the front ones, and under them (question, answer, truth or None)."""
    figure = plt.figure(figsize=(12, 5.2 + 0.62 * len(lines)))
    views, text = figure.subfigures(2, 1, height_ratios=[5.2, 0.62 * len(lines)])
    for axes, camera in zip(views.subplots(2, 3).flat, sum(LAYOUT, []), strict=True):
        axes.set_title(camera, fontsize=9)
        axes.axis("off")
        if row[camera] is not None:
            axes.imshow(row[camera])
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
        FileNotFoundError: no such folder, or no such split in it.
        ValueError: an unfinished folder, or no such frame in the split.
    """
    manifest = scenes / "manifest.json"
    if not manifest.is_file():
        raise FileNotFoundError(f"{scenes} is not a folder of prepared scene rows: it has no manifest.json")
    if not json.loads(manifest.read_text(encoding="utf-8")).get("complete"):
        raise ValueError(f"the preparation of {scenes} was not finished: run the same command again, it resumes")
    # load_dataset takes paths for patterns: unescaped, brackets in a folder's name would match other folders.
    shards = sorted(glob.escape(str(path)) for path in (scenes / split).glob("*.parquet"))
    if not shards:
        raise FileNotFoundError(f"{scenes} has no shards of the split {split!r}")
    rows = load_dataset("parquet", data_files={split: shards}, split=split)
    if not 0 <= number < len(rows):
        raise ValueError(f"--frame {number}: the split {split!r} has the frames 0 .. {len(rows) - 1}")
    return rows[number]


def ask(arguments: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    folder = Path(arguments.model)
    if not folder.is_dir() and (len(folder.parts) != 2 or folder.is_absolute() or folder.parent.is_dir()):
        raise FileNotFoundError(f"there is no model folder {arguments.model}")
    row = read_frame(arguments.scenes, arguments.split, arguments.frame)
    own = [{"question": text, "answer": None} for text in arguments.questions or []]
    asked = own or spread_questions(row["qa"], 5)

    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, trust_remote_code=True).eval()
    images = {camera: row[camera] for camera in processor.cameras}
    scene = model.encode_scene(**processor.encode_scene(images, visual_tokens=arguments.visual_tokens))
    answers = model.answer(scene, processor, [qa["question"] for qa in asked], max_new_tokens=256)
    lines = [(qa["question"], answer, qa["answer"]) for qa, answer in zip(asked, answers, strict=True)]
    for question, answer, truth in lines:
        print(f"Q {question}\n  answer {answer}")
        if truth is not None:
            print(f"  truth  {truth}")
    if arguments.picture:
        paint(row, lines, arguments.picture)
        print(f"wrote {arguments.picture}")


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
    parser.add_argument("--picture", type=Path, help="PNG to write")
    arguments = parser.parse_args()

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        ask(arguments)
    except (OSError, ValueError, DatasetsError) as error:
        sys.exit(f"ask: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
