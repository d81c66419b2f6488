"""A guard that may only brake: rules over a SmolDriver's answers and over the plan.

    guard = Guard(SmolDriverAnswers(model, processor))
    policy = GuardedPolicy(policy, guard)  # drives as `policy` does, or slower
    guard.state, guard.interventions, guard.unparsed

At its own rate the guard encodes the frame once and asks all `QUESTIONS` about it, in the words that DriveLM and the
synthetic world teach. In between it holds the last answers against each new plan. The rules:

    light        the signal is red or yellow
    pedestrian   pedestrians move in the direction in which the plan leads, and the only safe action is to stop
    object       a vehicle is in the direction in which the plan leads, the safe actions are to stop or to slow down,
                 and no signal explains that

A rule that holds shortens the plan along its own path, to what a steady deceleration from the present speed allows: to
a stop, or to `SLOW_SPEED` where the answer says that slowing down is safe. An answer that cannot be read holds against
nothing and is counted. So a wrong answer can make the ego stand, never drive: the guard is no safety case. What it
does is counted apart from the planner's own score.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

STEP = 0.5  # seconds between waypoints
RATE = 2.0  # times per second that the guard asks
CHANGED = 0.1  # metres: a plan that is shortened by less is not counted as an intervention
BRAKES = 0.5  # m/s: an expert who is slower by this within FALSE_AFTER has braked
FALSE_AFTER = 2.0  # seconds
SIDE = math.radians(27.5)  # bearing from which a plan leads to the front left or right: halfway between the cameras

LIGHT, PEDESTRIAN, OBJECT = "light", "pedestrian", "object"
DECELERATION = {LIGHT: 2.5, PEDESTRIAN: 5.0, OBJECT: 3.0}  # m/s^2
SLOW_DECELERATION, SLOW_SPEED = 1.0, 2.0  # m/s^2, m/s: of OBJECT where slowing down is safe
FRONT, FRONT_LEFT, FRONT_RIGHT = "front", "front left", "front right"
DIRECTIONS = (FRONT, FRONT_LEFT, FRONT_RIGHT)
STOP, SLOW, GO = "stop", "slow", "go"
NO_LIGHT = "none"

SIGNAL_QUESTION = "What is the traffic signal that the ego vehicle should pay attention to?"
SAFE_QUESTION = "In this scenario, what are safe actions to take for the ego vehicle?"
PEDESTRIAN_QUESTIONS = {d: f"Are there moving pedestrians to the {d} of the ego car?" for d in DIRECTIONS}
OBJECT_QUESTIONS = {d: f"What are objects to the {d} of the ego car?" for d in DIRECTIONS}


def read_signal(answer: str) -> str | None:
    """red, yellow, green or NO_LIGHT; None where the answer names none or several."""
    colours = set(re.findall(r"\b(red|yellow|green)\b", answer.lower()))
    if len(colours) == 1:
        return colours.pop()
    return NO_LIGHT if not colours and re.match(r"\W*(none|no)\b", answer.lower()) else None


def read_safe_action(answer: str) -> str | None:
    """GO where going on is among the safe actions, else SLOW, else STOP; None where the answer names none of them."""
    text = answer.lower()
    if re.search(r"\b(keep going|accelerate|go ahead|go straight)\b", text):
        return GO
    if re.search(r"\bdecelerate|without braking\b", text):
        return SLOW
    if re.search(r"\b(brake|stop|remain stationary)\b", text):
        return STOP
    return SLOW if re.search(r"\bslow down\b", text) else None


def read_yes_no(answer: str) -> bool | None:
    found = re.match(r"\W*(yes|no)\b", answer.lower())
    return None if found is None else found[1] == "yes"


def read_vehicles(answer: str) -> bool | None:
    """Whether a listing names a motor vehicle; None where the answer is no listing."""
    text = re.sub(r"\bego (car|vehicle)\b", "", answer.lower())
    if re.match(r"\W*there (is|are) no\b", text):
        return False
    if not re.match(r"\W*there (is|are) \w+", text):
        return None
    return re.search(r"\b(car|truck|bus|buse|trailer|vehicle|motorcycle)s?\b", text) is not None


QUESTIONS: dict[str, Callable[[str], object]] = {
    SIGNAL_QUESTION: read_signal,
    SAFE_QUESTION: read_safe_action,
    **dict.fromkeys(PEDESTRIAN_QUESTIONS.values(), read_yes_no),
    **dict.fromkeys(OBJECT_QUESTIONS.values(), read_vehicles),
}
"""What the guard asks, and how each answer is read."""


class Answers(Protocol):
    """Who answers."""

    def __call__(self, pictures: dict, questions: list[str]) -> list[str]:
        """{camera: picture} of one frame -> one answer per question."""


@dataclass(frozen=True)
class SmolDriverAnswers:
    """A SmolDriver: the frame is encoded once, and every question reads what it left."""

    model: object
    processor: object

    def __call__(self, pictures: dict, questions: list[str]) -> list[str]:
        scene = self.model.encode_scene(**self.processor.encode_scene(pictures))
        return self.model.answer(scene, self.processor, questions)


@dataclass(frozen=True)
class GuardState:
    """What the guard makes of the last answers and the last plan.

    Example: GuardState("light", since=12.5, asked=13.0, answers={SIGNAL_QUESTION: "Red light.", ...})

    Fields:
        rule: the rule that brakes; None: the plan is not touched.
        since: seconds of the scene at which this rule began to brake.
        asked: seconds at which the answers were given; None: never.
        answers: the texts by their questions.
    """

    rule: str | None = None
    since: float | None = None
    asked: float | None = None
    answers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Intervention:
    """A rule that began to brake.

    Fields:
        time: seconds of the scene.
        rule: LIGHT, PEDESTRIAN or OBJECT.
        false_alarm: the expert did not brake within FALSE_AFTER; None where no expert was asked.
    """

    time: float
    rule: str
    false_alarm: bool | None


def check_rate(rate: float) -> None:
    """Raises ValueError: the guard cannot ask that often."""
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate={rate} must be a finite number of times per second above 0")


class Guard:
    """Asks at its own rate, and shortens plans.

    Args:
        answers: who answers the questions.
        rate: times per second that the frame is encoded and asked about.
    """

    def __init__(self, answers: Answers, rate: float = RATE):
        check_rate(rate)
        self.answers, self.period = answers, 1 / rate
        self.unparsed: Counter[str] = Counter()  # answers that could not be read, by question
        self.asked = 0  # times that a frame was asked about
        self.interventions: list[Intervention] = []
        self.reset()

    def reset(self) -> None:
        """Forget the scene; the counts stay."""
        self.state = GuardState()
        self._read: dict[str, object] = {}

    def shorten(
        self,
        plan: np.ndarray,
        pictures: Callable[[], dict],
        speed: float,
        time: float,
        expert: Callable[[], np.ndarray] | None = None,
    ) -> np.ndarray:
        """The plan, or a shorter one on the same path.

        Args:
            plan: (6, 2) waypoints at 0.5 .. 3 s in metres in the ego frame, x forward, y left.
            pictures: gives {camera: picture} of now; called only when it is time to ask.
            speed: m/s.
            time: seconds of the scene; an earlier time than before begins a new scene.
            expert: gives the expert's way (6, 2 or 3) from here; called when an intervention begins, to tell a false
                alarm.

        Returns:
            (6, 2): each waypoint lies on the plan's path, no further along than the plan's own.
        """
        if self.state.asked is not None and time < self.state.asked:
            self.reset()
        if self.state.asked is None or time - self.state.asked >= self.period - 1e-6:
            self._ask(pictures(), time)
        rule, deceleration, lowest = self._rule(plan)
        shorter = plan if rule is None else shortened(plan, braked_lengths(speed, deceleration, len(plan), lowest))
        if rule is not None and lengths_along(plan)[-1] - lengths_along(shorter)[-1] < CHANGED:
            rule, shorter = None, plan
        if rule is not None and rule != self.state.rule:
            false_alarm = None if expert is None else not expert_brakes(speed, expert())
            self.interventions.append(Intervention(time, rule, false_alarm))
        since = self.state.since if rule == self.state.rule else time if rule else None
        self.state = GuardState(rule, since, self.state.asked, self.state.answers)
        return shorter

    def _ask(self, pictures: dict, time: float) -> None:
        texts = self.answers(pictures, list(QUESTIONS))
        answers = dict(zip(QUESTIONS, texts, strict=True))
        self._read = {question: QUESTIONS[question](text) for question, text in answers.items()}
        self.unparsed.update(question for question, value in self._read.items() if value is None)
        self.asked += 1
        self.state = GuardState(self.state.rule, self.state.since, time, answers)

    def _rule(self, plan: np.ndarray) -> tuple[str | None, float, float]:
        """The rule that holds against a plan, the hardest brake first; its deceleration, and down to which speed."""
        direction, safe = direction_of(plan), self._read.get(SAFE_QUESTION)
        stopped_by_light = self._read.get(SIGNAL_QUESTION) in ("red", "yellow")
        if self._read.get(PEDESTRIAN_QUESTIONS[direction]) and safe == STOP:
            return PEDESTRIAN, DECELERATION[PEDESTRIAN], 0.0
        if stopped_by_light:
            return LIGHT, DECELERATION[LIGHT], 0.0
        if self._read.get(OBJECT_QUESTIONS[direction]) and safe == STOP:
            return OBJECT, DECELERATION[OBJECT], 0.0
        if self._read.get(OBJECT_QUESTIONS[direction]) and safe == SLOW:
            return OBJECT, SLOW_DECELERATION, SLOW_SPEED
        return None, 0.0, 0.0


@dataclass(frozen=True)
class GuardedPolicy:
    """A policy whose plans a guard may shorten. It is a policy itself.

    An observation has `pictures`, `speed` (m/s), `time` (seconds of the scene) and `expert()` with a `future`.
    """

    policy: object
    guard: Guard

    def plan(self, now) -> np.ndarray:
        """(6, 2): the policy's waypoints, or some on the same path that are no further along."""
        plan = np.asarray(self.policy.plan(now), dtype=np.float64)
        return self.guard.shorten(plan, lambda: now.pictures, now.speed, now.time, lambda: now.expert().future)


def direction_of(plan: np.ndarray) -> str:
    """The direction in which a plan leads, by the bearing of its end; FRONT for a plan that hardly moves."""
    x, y = plan[-1]
    if math.hypot(x, y) < 1.0:
        return FRONT
    bearing = math.atan2(y, x)
    return FRONT_LEFT if bearing > SIDE else FRONT_RIGHT if bearing < -SIDE else FRONT


def braked_lengths(speed: float, deceleration: float, count: int, lowest: float = 0.0) -> np.ndarray:
    """(count,) metres driven after 0.5, 1.0, ... s by who brakes from `speed` at `deceleration` down to the speed
    `lowest`, and drives on at that."""
    times = STEP * np.arange(1, count + 1)
    braking = np.minimum(times, max(speed - lowest, 0.0) / deceleration)
    return speed * braking - deceleration * braking**2 / 2 + lowest * (times - braking)


def lengths_along(plan: np.ndarray) -> np.ndarray:
    """(6,) metres from the origin to each waypoint along the plan's path."""
    return np.cumsum(np.hypot(*np.diff(plan, axis=0, prepend=np.zeros((1, 2))).T))


def shortened(plan: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """The plan with each waypoint moved back along the path to at most its limit in metres."""
    own = lengths_along(plan)
    wanted = np.minimum(own, limits)
    path = np.concatenate([np.zeros((1, 2)), plan])
    along = np.concatenate([[0.0], own])
    moved = np.stack([np.interp(wanted, along, path[:, axis]) for axis in (0, 1)], axis=1)
    return np.where((wanted < own)[:, None], moved, plan)


def expert_brakes(speed: float, future: np.ndarray) -> bool:
    """Whether the expert, who drives at `speed` (m/s) now, is slower by BRAKES within FALSE_AFTER, or stands."""
    steps = np.diff(np.asarray(future)[:, :2], axis=0, prepend=np.zeros((1, 2)))
    speeds = np.hypot(*steps.T)[: round(FALSE_AFTER / STEP)] / STEP
    return bool(speeds.min() < max(speed - BRAKES, BRAKES / 2))
