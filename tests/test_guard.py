"""The guard: it may only brake; its rules with given answers, its rate and state, and a real SmolDriver."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_scripts.world.ground import GroundMap
from data_scripts.world.questions import scene_questions
from data_scripts.world.render import Renderer
from data_scripts.world.sight import frame_of
from data_scripts.world.simulation import simulate_scene
from modeling_smoldriver import CAMERAS
from recipes.planning.check_guard import check
from recipes.planning.guard import (
    LIGHT,
    OBJECT,
    OBJECT_QUESTIONS,
    PEDESTRIAN,
    PEDESTRIAN_QUESTIONS,
    QUESTIONS,
    SAFE_QUESTION,
    SIGNAL_QUESTION,
    SLOW_SPEED,
    Guard,
    GuardedPolicy,
    SmolDriverAnswers,
    braked_lengths,
    direction_of,
    expert_brakes,
    lengths_along,
    read_safe_action,
    read_signal,
    read_vehicles,
    read_yes_no,
    shortened,
)

STRAIGHT = np.stack([4.0 * np.arange(1, 7), np.zeros(6)], axis=1)  # 8 m/s
TO_THE_LEFT = np.stack([np.arange(1, 7), np.arange(1, 7)], axis=1).astype(float)
BRAKE, SLOW_DOWN = "Brake gently to a stop, slow down.", "Decelerate gradually without braking, keep a safe distance."
GO_ON = "Keep going at the same speed, accelerate and go ahead."
CLEAR = {
    SIGNAL_QUESTION: "None.",
    SAFE_QUESTION: GO_ON,
    **dict.fromkeys(PEDESTRIAN_QUESTIONS.values(), "No."),
    **{question: f"There are no objects to the {d} of the ego car." for d, question in OBJECT_QUESTIONS.items()},
}


class Given:
    """Answers from a list of dicts, the last one again and again; counts how often it is asked."""

    def __init__(self, *answers: dict[str, str]):
        self.answers, self.times = [CLEAR | more for more in answers], 0

    def __call__(self, pictures, questions):
        answers = self.answers[min(self.times, len(self.answers) - 1)]
        self.times += 1
        return [answers[question] for question in questions]


def guarded(plan, *answers, speed=8.0):
    guard = Guard(Given(*answers))
    return guard.shorten(plan, dict, speed, 0.0), guard


finite = st.floats(-60, 60, allow_nan=False)
plans = st.lists(st.tuples(finite, finite), min_size=6, max_size=6).map(np.array)
spoken = st.sampled_from(
    [*CLEAR.values(), "Red light.", "Yellow light.", "Green light.", BRAKE, SLOW_DOWN, "Yes.", "", "?"]
)


@settings(max_examples=200, deadline=None)
@given(plans, st.floats(0, 20), st.lists(spoken, min_size=len(QUESTIONS), max_size=len(QUESTIONS)))
def test_no_waypoint_is_ever_further_along_whatever_is_answered(plan, speed, answers):
    shorter, _ = guarded(plan, dict(zip(QUESTIONS, answers, strict=True)), speed=speed)
    own = lengths_along(plan)
    path = np.concatenate([np.zeros((1, 2)), plan])
    for k in range(6):
        # the new waypoint lies on the path, and the way along the path to it is no longer than the old one
        ways = []
        for piece in range(k + 1):
            start, step = path[piece], path[piece + 1] - path[piece]
            part = np.clip((shorter[k] - start) @ step / max(step @ step, 1e-12), 0, 1)
            if np.hypot(*(start + part * step - shorter[k])) < 1e-6 + 1e-9 * own[k]:
                ways.append((own[piece - 1] if piece else 0.0) + part * np.hypot(*step))
        assert ways and min(ways) <= own[k] + 1e-6
    assert np.isfinite(shorter).all() and np.diff(lengths_along(shorter), prepend=0.0).min() >= 0


@settings(max_examples=100, deadline=None)
@given(plans, st.lists(st.floats(0, 100), min_size=6, max_size=6).map(sorted))
def test_a_limit_beyond_the_plan_leaves_its_waypoints_to_the_bit(plan, limits):
    own = lengths_along(plan)
    kept = np.array(limits) >= own
    assert np.array_equal(shortened(plan, np.array(limits))[kept], plan[kept])


def test_a_brake_ends_where_speed_and_deceleration_say():
    lengths = braked_lengths(5.0, 2.5, 6)
    assert lengths[:2] == pytest.approx([5 * 0.5 - 2.5 * 0.125, 5 - 1.25])
    assert lengths[3:] == pytest.approx([5.0] * 3)  # 2 s to a standstill, v^2 / 2a
    assert braked_lengths(0.0, 2.5, 6).tolist() == [0.0] * 6
    slowed = braked_lengths(4.0, 1.0, 6, lowest=3.0)  # 1 s at 3.5 m/s on average, then 3 m/s
    assert slowed == pytest.approx([4 * 0.5 - 0.125, 3.5, 5.0, 6.5, 8.0, 9.5])
    assert braked_lengths(1.0, 1.0, 6, lowest=3.0) == pytest.approx([1.5, 3.0, 4.5, 6.0, 7.5, 9.0])


@pytest.mark.parametrize(
    "answers, rule",
    [
        ({}, None),
        ({SIGNAL_QUESTION: "Red light."}, LIGHT),
        ({SIGNAL_QUESTION: "Yellow light."}, LIGHT),
        ({SIGNAL_QUESTION: "Green light."}, None),
        ({PEDESTRIAN_QUESTIONS["front"]: "Yes.", SAFE_QUESTION: BRAKE}, PEDESTRIAN),
        ({PEDESTRIAN_QUESTIONS["front"]: "Yes."}, None),  # on the pavement: going on is safe
        ({PEDESTRIAN_QUESTIONS["front left"]: "Yes.", SAFE_QUESTION: BRAKE}, None),  # the plan does not lead there
        ({OBJECT_QUESTIONS["front"]: "There is one car to the front of the ego car.", SAFE_QUESTION: BRAKE}, OBJECT),
        ({OBJECT_QUESTIONS["front"]: "There are two buses to the front of the ego car."}, None),
        ({OBJECT_QUESTIONS["front"]: "There is one bicycle to the front of the ego car.", SAFE_QUESTION: BRAKE}, None),
        ({SAFE_QUESTION: BRAKE}, None),  # nothing else is named that one would brake for
    ],
)
def test_rules(answers, rule):
    plan, guard = guarded(STRAIGHT, answers)
    assert guard.state.rule == rule and [one.rule for one in guard.interventions] == [rule] * (rule is not None)
    assert (lengths_along(plan)[-1] < 24.0) == (rule is not None) and not guard.unparsed
    assert guard.state.answers == CLEAR | answers and (plan[:, 1] == 0).all()


def test_slowing_down_is_gentler_than_stopping_and_a_pedestrian_comes_first():
    car = {OBJECT_QUESTIONS["front"]: "There is one car to the front of the ego car."}
    stops, _ = guarded(STRAIGHT, car | {SAFE_QUESTION: BRAKE})
    slows, _ = guarded(STRAIGHT, car | {SAFE_QUESTION: SLOW_DOWN})
    assert lengths_along(stops)[-1] < lengths_along(slows)[-1] < 24.0
    walks = car | {SAFE_QUESTION: BRAKE, PEDESTRIAN_QUESTIONS["front"]: "Yes.", SIGNAL_QUESTION: "Red light."}
    brakes, guard = guarded(STRAIGHT, walks)
    assert guard.state.rule == PEDESTRIAN and lengths_along(brakes)[-1] < lengths_along(stops)[-1]


def test_where_slowing_down_is_safe_nobody_is_made_to_stand():
    """Keeping a safe distance is safe behind every leader: a guard that stopped for it would never go again."""
    car = {OBJECT_QUESTIONS["front"]: "There is one car to the front of the ego car.", SAFE_QUESTION: SLOW_DOWN}
    plan, guard = guarded(STRAIGHT, car, speed=0.0)
    assert guard.state.rule == OBJECT and lengths_along(plan)[-1] == pytest.approx(3 * SLOW_SPEED)
    slow = STRAIGHT * SLOW_SPEED / 8
    assert guarded(slow, car, speed=SLOW_SPEED)[0] is slow


def test_the_direction_is_that_in_which_the_plan_leads():
    assert direction_of(STRAIGHT) == "front" and direction_of(0.01 * TO_THE_LEFT) == "front"
    assert direction_of(TO_THE_LEFT) == "front left" and direction_of(TO_THE_LEFT * [1, -1]) == "front right"
    answers = {PEDESTRIAN_QUESTIONS["front left"]: "Yes.", SAFE_QUESTION: BRAKE}
    assert guarded(TO_THE_LEFT, answers)[1].state.rule == PEDESTRIAN
    assert guarded(TO_THE_LEFT * [1, -1], answers)[1].state.rule is None


def test_a_plan_that_is_short_enough_is_no_intervention():
    creeping = STRAIGHT / 100
    plan, guard = guarded(creeping, {SIGNAL_QUESTION: "Red light."})
    assert plan is creeping and guard.state.rule is None and not guard.interventions


@pytest.mark.parametrize(
    "read, answer, value",
    [
        (read_signal, "Red light.", "red"),
        (read_signal, " the GREEN light", "green"),
        (read_signal, "None.", "none"),
        (read_signal, "Red or green light.", None),
        (read_signal, "There are two cars.", None),
        (read_signal, "Go straight ahead, it is reddish", None),
        (read_safe_action, "Brake suddenly.", "stop"),
        (read_safe_action, SLOW_DOWN, "slow"),
        (read_safe_action, "Keep going at the same speed, decelerate gradually without braking.", "go"),
        (read_safe_action, "Slightly offset to the left.", None),
        (read_yes_no, "Yes, there are.", True),
        (read_yes_no, "no", False),
        (read_yes_no, "Not sure.", None),
        (read_yes_no, "Noyes", None),
        (read_vehicles, "There are no objects to the front of the ego car.", False),
        (read_vehicles, "There are two pedestrians and one barrier to the front of the ego car.", False),
        (read_vehicles, "There are many buses, and one bicycle to the front of the ego car.", True),
        (read_vehicles, "There is one construction vehicle to the front of the ego car.", True),
        (read_vehicles, "One car is parked.", None),
        (read_vehicles, "", None),
    ],
)
def test_answers_are_read_or_refused(read, answer, value):
    assert read(answer) == value


def test_the_guard_asks_at_its_own_rate_and_remembers_since_when_a_rule_holds():
    answers = Given({SIGNAL_QUESTION: "Red light."}, {}, {SIGNAL_QUESTION: "Yellow light."})
    guard = Guard(answers, rate=1.0)
    rules = []
    for step in range(8):
        guard.shorten(STRAIGHT, dict, 8.0, 0.5 * step)
        rules.append((guard.state.rule, guard.state.since, guard.state.asked))
    assert rules[:4] == [(LIGHT, 0.0, 0.0), (LIGHT, 0.0, 0.0), (None, None, 1.0), (None, None, 1.0)]
    assert rules[4:6] == [(LIGHT, 2.0, 2.0)] * 2 and rules[7] == (LIGHT, 2.0, 3.0)
    assert answers.times == guard.asked == 4
    assert [one.time for one in guard.interventions] == [0.0, 2.0]
    guard.shorten(STRAIGHT, dict, 8.0, 0.0)  # a new scene begins
    assert guard.state.asked == 0.0 and guard.state.since == 0.0 and len(guard.interventions) == 3
    with pytest.raises(ValueError, match="rate=0"):
        Guard(answers, rate=0)


@pytest.mark.parametrize(
    "speed, steps, brakes",
    [
        (8.0, [4.0] * 6, False),
        (8.0, [4.0, 4.0, 3.5, 3.0, 2.0, 1.0], True),
        (8.0, [4.0, 4.0, 4.0, 4.0, 1.0, 0.0], False),  # later than 2 s
        (0.0, [0.0] * 6, True),  # stands, as it should
        (0.0, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0], False),
    ],
)
def test_what_counts_as_braking_of_the_expert(speed, steps, brakes):
    future = np.stack([np.cumsum(steps), np.zeros(6), np.zeros(6)], axis=1)
    assert expert_brakes(speed, future) == brakes


@dataclass
class Expert:
    future: np.ndarray


@dataclass
class Moment:
    """What a policy sees, as far as the guard needs it."""

    time: float
    speed: float
    future: np.ndarray

    @property
    def pictures(self):
        return {}

    def expert(self):
        return Expert(self.future)


class Straight:
    def plan(self, now):
        return STRAIGHT


def test_a_guarded_policy_brakes_and_counts_false_alarms_apart():
    guard = Guard(Given({SIGNAL_QUESTION: "Red light."}, {}, {SIGNAL_QUESTION: "Red light."}))
    policy = GuardedPolicy(Straight(), guard)
    stopping = shortened(STRAIGHT, braked_lengths(8.0, 3.0, 6))
    moments = [Moment(0.0, 8.0, stopping), Moment(0.5, 8.0, STRAIGHT), Moment(1.0, 8.0, STRAIGHT)]
    lengths = [lengths_along(policy.plan(now))[-1] for now in moments]
    assert lengths[0] == lengths[2] == pytest.approx(8.0 * 3 - 2.5 * 9 / 2) and lengths[1] == 24.0
    assert [one.false_alarm for one in guard.interventions] == [False, True]


def test_a_real_model_s_answers_that_cannot_be_read_change_nothing(model, processor, images):
    guard = Guard(SmolDriverAnswers(model, processor))
    plan = guard.shorten(STRAIGHT, lambda: images, 8.0, 0.0)
    assert set(guard.state.answers) == set(QUESTIONS) and guard.asked == 1
    assert guard.unparsed.total() > 0, "untrained weights should say nothing that can be read"
    if guard.unparsed.total() == len(QUESTIONS):
        assert plan is STRAIGHT and not guard.interventions
    scene = model.encode_scene(**processor.encode_scene(images))
    assert list(guard.state.answers.values()) == model.answer(scene, processor, list(QUESTIONS))


def test_the_check_counts_answers_and_interventions(images):
    row = {
        **{camera: images[camera] for camera in CAMERAS},
        "speed": 8.0,
        "command": "go straight",
        "ego_history": [[-4.0 * step, 0.0, 0.0] for step in (4, 3, 2, 1)],
        "ego_history_mask": [True] * 4,
        "ego_future": [[*point, 0.0] for point in STRAIGHT.tolist()],
        "ego_future_mask": [True] * 6,
        "qa": [{"question": SIGNAL_QUESTION, "answer": "Red light."}, {"question": "Why?", "answer": "Red."}],
    }
    braking = row | {"ego_future": [[*p, 0.0] for p in shortened(STRAIGHT, braked_lengths(8.0, 3.0, 6)).tolist()]}
    unknown = row | {"speed": None}
    signals = ("Red light.", "None.", "Green light", "Red light")
    answers = Given(*({SIGNAL_QUESTION: signal} for signal in signals))
    standing = row | {"speed": 0.0}
    checked = check([row, braking, row, unknown, braking, standing], Guard(answers))
    assert checked.frames == 4 and checked.truths[SIGNAL_QUESTION] == {"red": 5}
    assert checked.right[SIGNAL_QUESTION] == 3 and not checked.unread[SIGNAL_QUESTION]
    assert (checked.braked[LIGHT], checked.false[LIGHT], checked.expert, checked.missed) == (2, 1, 2, 1)


@pytest.fixture(scope="module")
def taught():
    """{question: answers} of a small world."""
    renderer, found = Renderer(64, 36), {}
    for index in range(4):
        scene = simulate_scene(5, index)
        ground = GroundMap(scene)
        frames = [frame_of(scene, t, renderer.render(scene, ground, t)[1]) for t in range(0, 40, 5)]
        for tasks in scene_questions(scene, frames):
            for question, answer in (pair for asked in tasks.values() for pair in asked):
                found.setdefault(question, set()).add(answer)
    return found


def test_questions_are_those_that_the_world_teaches(taught):
    assert set(QUESTIONS) <= taught.keys()
    for question, read in QUESTIONS.items():
        assert all(read(answer) is not None for answer in taught[question]), question
