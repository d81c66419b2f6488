"""What GRPO raises: the expected reward of sampled answers, for several models on the same test questions.

python recipes/tiny/sampled_rewards.py --models before=outputs/demo/model rewarded=outputs/grpo/rewarded \
    --scenes outputs/demo/scenes --max-frames 96

An evaluation takes the likeliest answer to each question. GRPO learns from answers drawn at temperature 1: a model can
answer better on average without a better likeliest answer. Prints the mean reward of one drawn answer per question, in
percent, with the paired difference from the first model and its 95% interval over scenes.
"""

import argparse

import torch
from tqdm import tqdm

import recipes  # noqa: F401 - first, since it silences libraries while they are imported
from data_scripts.question_types import question_type
from data_scripts.schema import load_scenes
from modeling_smoldriver.collator_smoldriver import pictures_of
from recipes.evaluation.tables import aligned
from recipes.metrics.drivelm.scores import compare_predictions
from recipes.training.loading import load_model
from smoldriver_common.command_line import errors_in_one_line, named_folder, stopped_in_one_line, whole_number

METRICS = {"yes_no": "accuracy", "listing": "listing_f1"}


def drawn_answers(model, processor, rows, seed: int) -> list[dict]:
    """One answer per yes/no and listing question of scene rows, drawn at temperature 1; with what scores it."""
    torch.manual_seed(seed)
    drawn = []
    for row in tqdm(rows, unit="frame"):
        asked = [(qa, question_type(qa["question"], qa["task"])) for qa in row["qa"]]
        asked = [(qa, kind) for qa, kind in asked if kind in METRICS]
        scene = model.encode_scene(**processor.encode_scene(pictures_of(row, processor.cameras)))
        questions = [qa["question"] for qa, _ in asked]
        texts = model.answer(scene, processor, questions, max_new_tokens=64, do_sample=True, temperature=1.0, top_k=0)
        for text, (qa, kind) in zip(texts, asked, strict=True):
            drawn.append({"text": text, "truth": qa["answer"], "type": kind, "scene": row["scene_token"]})
    return drawn


def table(drawn: dict[str, list[dict]]) -> str:
    """One line per model: its scores, and how they differ from the first model's."""
    first = next(iter(drawn.values()))
    nothing = [""] * len(first)  # an empty answer scores 0: the difference from it is the score
    lines = [["", *METRICS, *(f"{kind}, difference" for kind in METRICS)]]
    for name, answers in drawn.items():
        line = [name]
        for other in (nothing, [one["text"] for one in first]):
            compared = compare_predictions(
                other,
                [one["text"] for one in answers],
                [one["truth"] for one in answers],
                question_types=[one["type"] for one in answers],
                scene_tokens=[one["scene"] for one in answers],
                metrics=list(METRICS.values()),
            )
            for kind, metric in METRICS.items():
                found = compared[kind][metric]
                low, high = found["ci"] or (float("nan"),) * 2
                line.append(f"{100 * found['difference']:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        lines.append(line if answers is not first else [*line[: len(METRICS) + 1], *[""] * len(METRICS)])
    return aligned(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models",
        nargs="+",
        type=named_folder,
        required=True,
        metavar="NAME=FOLDER",
        help="the first is compared with",
    )
    parser.add_argument("--scenes", required=True, help="folder of prepared scene rows")
    parser.add_argument("--max-frames", type=whole_number(), default=96, help="test frames, evenly spread")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with errors_in_one_line("sampled_rewards"):
        rows = load_scenes(arguments.scenes, "test")
        count = min(arguments.max_frames, len(rows))
        rows = rows.select([number * len(rows) // count for number in range(count)])
        drawn = {}
        for name, folder in arguments.models:
            drawn[name] = drawn_answers(*load_model(folder), rows, arguments.seed)
    print(table(drawn))
    print(f"{count} frames, {len(next(iter(drawn.values())))} questions")


if __name__ == "__main__":
    with stopped_in_one_line("sampled_rewards"):
        main()
