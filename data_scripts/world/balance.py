"""Balanced questions of a scene: those answered with yes or no, and those that count.

Questions with the answers yes and no are asked in pairs: for each question text, as often in a frame of the scene
where it holds as in one where it does not. So no constant answer is right more than half the time for any template,
class or direction, in any split by scene. Counting questions are balanced in the same way over their numbers.
"""

import random
from collections import defaultdict

from data_scripts.world.agents import MOTOR_VEHICLES
from data_scripts.world.driving import is_relevant
from data_scripts.world.sight import Frame, Seen
from data_scripts.world.words import CLASSES, DIRECTIONS, NUMBERS, PLURALS

YES_NO_PER_FRAME = 8  # at most, on average over a scene
COUNTS_PER_FRAME = 4


def balanced_existence(frames: list[Frame], rng: random.Random) -> list[tuple[int, str, bool]]:
    """(frame, question, truth): every question text as often true as false, and no more than the limit in all."""
    frames_by_truth = defaultdict(lambda: ([], []))
    for number, frame in enumerate(frames):
        for question, truth in existence(frame).items():
            frames_by_truth[question][truth].append(number)
    pairs = []
    for question, (no, yes) in frames_by_truth.items():
        count = min(len(no), len(yes))
        pairs += [(question, *pair) for pair in zip(rng.sample(no, count), rng.sample(yes, count), strict=True)]
    pairs = rng.sample(pairs, min(len(pairs), YES_NO_PER_FRAME * len(frames) // 2))
    asked = [(number, question, bool(truth)) for question, *both in pairs for truth, number in enumerate(both)]
    rng.shuffle(asked)
    return asked


def existence(frame: Frame) -> dict[str, bool]:
    """Every existence question whose answer is beyond doubt."""
    truths = {}
    for camera, direction in DIRECTIONS.items():
        for kind in CLASSES:
            if (camera, kind) in frame.unclear:
                continue
            here = frame.in_camera(camera, kind)
            end = f"to the {direction} of the ego car?"
            truths[f"Are there {PLURALS[kind]} {end}"] = bool(here)
            if kind in ("bicycle", "motorcycle"):
                for rider, words in ((True, "with riders"), (False, "without riders")):
                    truths[f"Are there {PLURALS[kind]} {words} {end}"] = any(o.rider == rider for o in here)
            else:
                for status in statuses_of(kind):
                    truths[f"Are there {status} {PLURALS[kind]} {end}"] = any(o.status == status for o in here)
    if ("CAM_FRONT", "traffic light") not in frame.unclear:
        question = "Is there any traffic element in the front view?"
        truths[question] = frame.light() is not None
    return truths


def statuses_of(kind: str) -> tuple[str, ...]:
    if kind in MOTOR_VEHICLES:
        return "moving", "stopped", "parked"
    return ("moving", "standing") if kind == "pedestrian" else ()


def balanced_tags(frames: list[Frame], rng: random.Random) -> list[tuple[int, str, str, bool]]:
    """(frame, task, question, truth) on tagged objects, each template as often true as false; half as many pairs of a
    template as frames at most."""
    by_truth = defaultdict(lambda: ([], []))
    for number, frame in enumerate(frames):
        for o in frame.seen:
            if o.tag:
                for template, (task, question, truth) in tagged_yes_no(o).items():
                    by_truth[template][truth].append((number, task, question, truth))
    asked = []
    for no, yes in by_truth.values():
        count = min(len(no), len(yes), len(frames) // 2)
        asked += rng.sample(no, count) + rng.sample(yes, count)
    return asked


def tagged_yes_no(o: Seen) -> dict[str, tuple[str, str, bool]]:
    """template -> (task, question, truth)."""
    relevant = is_relevant(o)
    ahead = o.kind == "traffic light" or (o.ahead > 0 and abs(o.left) < 1.5)
    return {
        "sign": (
            "prediction",
            f"Is {o.tag} a traffic sign or a road barrier?",
            o.kind in ("traffic light", "barrier"),
        ),
        "direction": ("prediction", f"Would {o.tag} be in the moving direction of the ego vehicle?", ahead),
        "consider": (
            "planning",
            f"Is {o.tag} an object that the ego vehicle should consider in the current scene?",
            relevant,
        ),
        "account": (
            "planning",
            f"Is it necessary for the ego vehicle to take {o.tag} into account?",
            relevant,
        ),
    }


def balanced_counts(frames: list[Frame], rng: random.Random) -> list[tuple[int, str, str]]:
    """(frame, question, answer): of each question text the two commonest numbers come equally often, the others at
    most so."""
    groups = []
    for (question, kind, direction), by_count in frames_by_count(frames).items():
        if len(by_count) < 2:
            continue
        limit = sorted(map(len, by_count.values()))[-2]
        for numbers in by_count.values():
            rng.shuffle(numbers)
        for round_ in range(limit):
            groups.append(
                [
                    (numbers[round_], question, count_answer(count, kind, direction))
                    for count, numbers in sorted(by_count.items())
                    if round_ < len(numbers)
                ]
            )
    rng.shuffle(groups)
    asked = []
    for group in groups:
        if len(asked) + len(group) <= COUNTS_PER_FRAME * len(frames):
            asked += group
    return asked


def frames_by_count(frames: list[Frame]) -> dict[tuple[str, str, str], dict[int, list[int]]]:
    """(question, kind, direction) -> count -> the frames with that many, of all that can be counted."""
    found = defaultdict(lambda: defaultdict(list))
    for number, frame in enumerate(frames):
        for camera, direction in DIRECTIONS.items():
            for kind in CLASSES:
                if (camera, kind) not in frame.unclear:
                    question = f"How many {PLURALS[kind]} are there to the {direction} of the ego car?"
                    found[question, kind, direction][len(frame.in_camera(camera, kind))].append(number)
    return found


def count_answer(count: int, kind: str, direction: str) -> str:
    verb, name = ("is", kind) if count == 1 else ("are", PLURALS[kind])
    return f"There {verb} {NUMBERS[min(count, 10)]} {name} to the {direction} of the ego car."
