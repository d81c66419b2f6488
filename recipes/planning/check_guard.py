"""How often the guard's answers are right, and how often it would brake where the expert did.

    python recipes/planning/check_guard.py --model outputs/demo/model --scenes outputs/planning --split test

`--scenes` is a folder of `data_scripts/prepare_planning.py` with DriveLM's questions (`--json`). Printed are, for each
question that the guard asks, the share of answers that say the same as the truth, beside the commonest truth; and what
each rule does to a plan that drives straight on at the speed of now, judged by the expert's next 2 s.
"""

import argparse
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm
from transformers.utils import logging

from data_scripts.schema import CAMERAS, load_scenes
from recipes.planning.ego_rules import constant_velocity
from recipes.planning.guard import (
    BRAKES,
    LIGHT,
    OBJECT,
    PEDESTRIAN,
    QUESTIONS,
    Guard,
    SmolDriverAnswers,
    expert_brakes,
)
from recipes.planning.scored_frames import ego_input
from recipes.training.loading import load_model
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line, whole_number


@dataclass
class Checked:
    """Counts over frames.

    Fields:
        truths, right, unread: by question: {what the truth says: times}, answers that say the same, answers that
            could not be read.
        braked, false: by rule: times that it brakes, and of those times that the expert did not.
        missed: times that the expert brakes and no rule does.
        expert: times that the expert brakes.
        frames: those in which the ego drives: a rule cannot brake who stands.
    """

    truths: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    right: Counter = field(default_factory=Counter)
    unread: Counter = field(default_factory=Counter)
    braked: Counter = field(default_factory=Counter)
    false: Counter = field(default_factory=Counter)
    missed: int = 0
    expert: int = 0
    frames: int = 0

    def add_answers(self, row: dict, answers: dict[str, str]) -> None:
        for item in row["qa"]:
            question, read = item["question"], QUESTIONS.get(item["question"])
            truth = None if read is None else read(item["answer"])
            if truth is not None:
                said = read(answers[question])
                self.truths[question][truth] += 1
                self.right[question] += said == truth
                self.unread[question] += said is None

    def add_rule(self, row: dict, rule: str | None) -> None:
        if row["speed"] < BRAKES:
            return
        brakes = expert_brakes(row["speed"], row["ego_future"])
        self.frames += 1
        self.expert += brakes
        self.missed += brakes and rule is None
        if rule is not None:
            self.braked[rule] += 1
            self.false[rule] += not brakes


def check(rows, guard: Guard) -> Checked:
    """Show the guard each frame by itself."""
    checked = Checked()
    for row in tqdm(rows, unit=" frames", desc="guard", disable=None):
        if row["speed"] is None or not all(row["ego_future_mask"]):
            continue
        guard.reset()
        pictures = {camera: row[camera] for camera in CAMERAS if row[camera] is not None}
        guard.shorten(constant_velocity(ego_input(row)), lambda pictures=pictures: pictures, row["speed"], 0.0)
        checked.add_answers(row, guard.state.answers)
        checked.add_rule(row, guard.state.rule)
    return checked


def print_tables(checked: Checked) -> None:
    print("| question | n | right | commonest truth | not read |\n|---|---|---|---|---|")
    for question in QUESTIONS:
        truths = checked.truths.get(question)
        if truths:
            n = truths.total()
            shares = f"{checked.right[question] / n:.0%} | {truths.most_common(1)[0][1] / n:.0%}"
            print(f"| {question} | {n} | {shares} | {checked.unread[question]} |")
    print(f"\n{checked.frames} frames in which the ego drives; the expert brakes in {checked.expert}")
    print("| rule | brakes | false alarms |\n|---|---|---|")
    for rule in (LIGHT, PEDESTRIAN, OBJECT):
        print(f"| {rule} | {checked.braked[rule]} | {checked.false[rule]} |")
    total, false = checked.braked.total(), checked.false.total()
    print(f"| any | {total} | {false} |\nthe expert brakes and no rule does: {checked.missed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a SmolDriver's folder")
    parser.add_argument("--scenes", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--frames", type=whole_number(), help="only the first so many; default: all")
    arguments = parser.parse_args()
    logging.disable_progress_bar()  # of loading weights
    with errors_in_one_line("check_guard"):
        rows = load_scenes(arguments.scenes, arguments.split)
        if "ego_future" not in rows.column_names:
            raise ValueError(f"{arguments.scenes} has no ego motion: make it with data_scripts/prepare_planning.py")
        rows = rows.select(range(min(len(rows), arguments.frames or len(rows))))
        model, processor = load_model(arguments.model)
        print_tables(check(rows, Guard(SmolDriverAnswers(model, processor))))


if __name__ == "__main__":
    with stopped_in_one_line("check_guard"):
        main()
