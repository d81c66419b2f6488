"""Questions and answers about the frames of a synthetic scene, in DriveLM's templates and nesting.

Every answer follows from the simulation, and only from what is visible (see `sight.py`). What is yet to come is what
the simulation does next: a "future state" is the state 3 s later, the "behavior of the ego vehicle" is its steering
and its mean speed over the coming second. Whether it gets round what blocks its lane, or waits, is what it does within
3 s. None of these is asked where the scene ends before. "To the front left of the ego car" means: clear in the front
left camera. An object that two cameras share is in both directions; it has one tag, in the camera that shows most of
it.

Questions answered with yes or no, and counting questions, are balanced over the frames of a scene (see `balance.py`).

"How many ... are there to the ... of the ego car?" is a template of our own, in DriveLM's style; the others are
DriveLM's. Answers keep to a small regular grammar: fixed order of classes, "many" for more than three.
"""

import random
from collections import defaultdict

from data_scripts.world.agents import MOTOR_VEHICLES
from data_scripts.world.balance import balanced_counts, balanced_existence, balanced_tags
from data_scripts.world.driving import (
    BEHAVIOUR_SAMPLES,
    ROUND_LEFT,
    ROUND_RIGHT,
    SAFE,
    SLOW,
    behaviour,
    collision_action,
    dangerous_actions,
    future_state,
    moving_status,
    possible_action,
    situation,
    target_action,
)
from data_scripts.world.road import GO_STRAIGHT
from data_scripts.world.sight import OPEN, Frame, Seen
from data_scripts.world.simulation import SAMPLES_PER_SCENE, Scene
from data_scripts.world.words import CLASSES, DIRECTIONS, NUMBERS, PLURALS, capitalized, joined, number_of

STATUS_ORDER = ("moving", "stopped", "parked", "standing")

IMPORTANT = (
    "What are the important objects in the current scene? "
    "Those objects will be considered for the future reasoning and driving decision."
)
PRIORITY = "What is the priority of the objects that the ego vehicle should consider?(in descending order)"
WHY = "What actions could the ego vehicle take based on {}? Why take this action and what's the probability?"


# (task, question, answer)
Asked = tuple[str, str, str]


def scene_questions(scene: Scene, frames: list[Frame]) -> list[dict[str, list[tuple[str, str]]]]:
    """For each frame, DriveLM's four tasks with (question, answer) pairs.

    Balanced questions need several frames of a scene to choose from; the choice depends on the scene alone.
    """
    asked = [{"perception": [], "prediction": [], "planning": [], "behavior": []} for _ in frames]
    for frame, tasks in zip(frames, asked, strict=True):
        rng = random.Random(f"{scene.seed}/{scene.index}/{frame.t}")
        for task, question, answer in open_questions(scene, frame, rng):
            tasks[task].append((question, answer))
    rng = random.Random(f"{scene.seed}/{scene.index}")
    for number, question, truth in balanced_existence(frames, rng):
        answer = "Yes." if truth else "No."
        if question.startswith("Is there any"):
            some = "there are" if truth else "there are no"
            answer = f"{answer[:-1]}, {some} traffic elements in the front view."
        asked[number]["perception"].append((question, answer))
    for number, task, question, truth in balanced_tags(frames, rng):
        asked[number][task].append((question, "Yes." if truth else "No."))
    for number, question, answer in balanced_counts(frames, rng):
        asked[number]["perception"].append((question, answer))
    return asked


def open_questions(scene: Scene, frame: Frame, rng: random.Random) -> list[Asked]:
    """All but the balanced questions of one frame."""
    asked = listing_questions(frame, rng) + status_questions(frame, rng)
    if not {"CAM_FRONT", "CAM_BACK"} & doubtful_cameras(frame):
        asked.append(("perception", "Please describe the current scene.", scene_sentence(frame)))
    important = give_tags(frame)
    if important:
        asked += questions_on_tags(scene, frame.t, important, rng)
    asked += planning_questions(scene, frame, rng)
    if frame.t + BEHAVIOUR_SAMPLES < SAMPLES_PER_SCENE:
        asked.append(("behavior", "Predict the behavior of the ego vehicle.", behaviour(scene, frame.t)))
    return asked


def doubtful_cameras(frame: Frame) -> set[str]:
    """The cameras with an unclear object, lights left aside."""
    return {camera for camera, kind in frame.unclear if kind != "traffic light"}


def listing_questions(frame: Frame, rng: random.Random) -> list[Asked]:
    asked, doubtful = [], doubtful_cameras(frame)
    for camera, direction in DIRECTIONS.items():
        empty = not any(o.kind != "traffic light" for o in frame.in_camera(camera))
        if camera in doubtful or (empty and rng.random() > 0.3):
            continue
        asked.append(("perception", f"What are objects to the {direction} of the ego car?", listing(frame, camera)))
    return asked


def listing(frame: Frame, camera: str) -> str:
    """ "There are two cars and one bus to the front of the ego car."."""
    counts = [(kind, len(frame.in_camera(camera, kind))) for kind in CLASSES]
    parts = [number_of(kind, count) for kind, count in counts if count]
    where = f"to the {DIRECTIONS[camera]} of the ego car."
    if not parts:
        return f"There are no objects {where}"
    return f"There {'is' if parts[0].startswith('one ') else 'are'} {joined(parts)} {where}"


def status_questions(frame: Frame, rng: random.Random) -> list[Asked]:
    """At most five, on the statuses of the vehicles and pedestrians in one direction."""
    possible = []
    for camera, direction in DIRECTIONS.items():
        for kind in (*MOTOR_VEHICLES, "pedestrian"):
            here = [o.status for o in frame.in_camera(camera, kind)]
            if not here or (camera, kind) in frame.unclear:
                continue
            name = f"{kind} that is" if len(here) == 1 else f"{PLURALS[kind]} that are"
            question = f"What is the status of the {name} to the {direction} of the ego car?"
            possible.append((set(here) == {"parked"}, question, status_answer(kind, here)))
    # Most of what stands still is parked: ask about it less often.
    kept = [item for item in possible if not item[0] or rng.random() < 0.6]
    chosen = rng.sample(kept, min(5, len(kept)))
    return [("perception", question, answer) for _, question, answer in chosen]


def status_answer(kind: str, statuses: list[str]) -> str:
    """ "One car is parked.", "Two cars are moving.", "One of the cars is moving, and the other is parked.", "One
    truck is moving, and two are parked."."""
    counts = [(status, statuses.count(status)) for status in STATUS_ORDER if status in statuses]
    if len(counts) == 1:
        status, count = counts[0]
        text = number_of(kind, count)
        return f"{capitalized(text)} {'is' if count == 1 else 'are'} {status}."
    if [count for _, count in counts] == [1, 1]:
        return f"One of the {PLURALS[kind]} is {counts[0][0]}, and the other is {counts[1][0]}."
    status, count = counts[0]
    text = number_of(kind, count)
    parts = [f"{capitalized(text)} {'is' if count == 1 else 'are'} {status}"]
    for status, count in counts[1:]:
        word = "many" if count > 3 else NUMBERS[count]
        parts.append(f"{word} {'is' if count == 1 else 'are'} {status}")
    return joined(parts).replace(" and ", ", and ", 1) + "." if len(parts) == 2 else joined(parts) + "."


def scene_sentence(frame: Frame) -> str:
    """What is in front of and behind the ego, as DriveLM's annotators describe it."""
    parts = []
    for camera, where in (("CAM_FRONT", "in front of the ego car"), ("CAM_BACK", "behind the ego car")):
        groups = defaultdict(int)
        for o in frame.in_camera(camera):
            if o.kind != "traffic light":
                groups[(CLASSES.index(o.kind), o.status)] += 1
        items = []
        for (kind, status), count in sorted(groups.items())[:2]:
            number, name = number_of(CLASSES[kind], count).split(" ", 1)
            items.append(f"{number} {status} {name}" if status else f"{number} {name}")
        if items:
            parts.append(f"{joined(items)} {where}")
    if not parts:
        return "There are no objects in front of or behind the ego car."
    return f"There {'is' if parts[0].startswith('one ') else 'are'} {joined(parts)}."


def give_tags(frame: Frame) -> list[Seen]:
    """Up to four important objects, the most pressing first, with DriveLM's tags: `<c1,CAM_FRONT,x,y>`."""

    def urgency(o: Seen):
        in_lane = abs(o.left) < 1.5 and o.ahead > 0
        weight = 0 if o.kind == "traffic light" else 1 if in_lane or o.crossing else 2
        return weight, abs(o.ahead) + abs(o.left), o.box

    important = sorted((o for o in frame.seen if o.main), key=urgency)[:4]
    for number, o in enumerate(important, 1):
        x, y = (o.box[0] + o.box[2]) / 2, (o.box[1] + o.box[3]) / 2
        o.tag = f"<c{number},{o.camera},{x:.1f},{y:.1f}>"
    return important


def questions_on_tags(scene: Scene, t: int, important: list[Seen], rng: random.Random) -> list[Asked]:
    """All questions about the tagged objects except those answered with yes or no."""
    names, tags = joined([placed(o) for o in important]), joined([o.tag for o in important])
    ids = f"The ID of this object is {tags}." if len(important) == 1 else f"The IDs of these objects are {tags}."
    asked = [("perception", IMPORTANT, f"There is {names}. {ids}")]
    asked.append(("planning", PRIORITY, ", ".join(o.tag for o in important) + "."))
    for o in important:
        asked.append(("perception", f"What is the visual description of {o.tag}?", f"{o.named.capitalize()}."))
    road_users = [o for o in important if o.kind in (*MOTOR_VEHICLES, "pedestrian", "motorcycle", "bicycle")]
    for o in road_users[:2]:
        asked += status_of_tag(scene, t, o)
    for o in important:
        if o.kind == "traffic light":
            meaning = "Please proceed." if o.colour == "green" else "Please wait."
            asked.append(("prediction", f"What does {o.tag} mean?", meaning))
    asked += actions_for_tags(important, rng)
    for o in important[:3]:
        if o.kind != "traffic light":
            question = f"What actions taken by the ego vehicle can lead to a collision with {o.tag}?"
            asked.append(("planning", question, collision_action(o)))
    return asked


def placed(o: Seen) -> str:
    """ "a blue car to the front of the ego vehicle"."""
    article = "an" if o.named[0] in "aeiou" else "a"
    return f"{article} {o.named} to the {DIRECTIONS[o.camera]} of the ego vehicle"


def status_of_tag(scene: Scene, t: int, o: Seen) -> list[Asked]:
    """What a road user does now and in 3 s; where that is doubtful, it is not asked."""
    observed = "Moving." if o.status == "moving" else "Stationary."
    asked = [("perception", f"What is the observed status of object {o.tag}?", observed)]
    moving, future = moving_status(scene, t, o.agent), future_state(scene, t, o.agent)
    if moving is not None:
        asked.append(("perception", f"What is the moving status of object {o.tag}?", moving))
    if future is not None:
        asked.append(("prediction", f"What is the future state of {o.tag}?", future))
    return asked


def actions_for_tags(important: list[Seen], rng: random.Random) -> list[Asked]:
    """What the ego does because of an object, and why; objects that call for nothing are asked about less often."""
    asked = []
    known = [o for o in important if o.way_round != OPEN]
    telling = [o for o in known if not possible_action(o)[0].startswith("Keep") or rng.random() < 0.4]
    for o in telling[:2]:
        action, _ = possible_action(o)
        question = f"Based on {o.tag} in this scene, what is the most possible action of the ego vehicle?"
        asked.append(("planning", question, f"{action}."))
    for o in telling[:1]:
        action, why = possible_action(o)
        reason = f"The reason is {'that ' * why.startswith('there')}{why}"
        answer = f"The action is to {action[0].lower()}{action[1:]}. {reason}, which has a high probability."
        asked.append(("planning", WHY.format(o.tag), answer))
    return asked


def planning_questions(scene: Scene, frame: Frame, rng: random.Random) -> list[Asked]:
    """On the signal, the route, and what is safe and dangerous."""
    asked, now, action = [], situation(scene, frame), target_action(scene, frame)
    if ("CAM_FRONT", "traffic light") not in frame.unclear:
        light = frame.light()
        if light is not None or rng.random() < 0.2:
            answer = f"{light.colour.capitalize()} light." if light is not None else "None."
            question = "What is the traffic signal that the ego vehicle should pay attention to?"
            asked.append(("planning", question, answer))
    if action is not None and (action != GO_STRAIGHT or rng.random() < 0.5):  # most arrows point straight on
        asked.append(("planning", "What is the target action of the ego vehicle?", action))
    # Most frames call for braking or for keeping on: ask about those less often.
    if now in (SLOW, ROUND_LEFT, ROUND_RIGHT) or (now is not None and rng.random() < 0.6):
        safe = "In this scenario, what are safe actions to take for the ego vehicle?"
        asked.append(("planning", safe, SAFE[now]))
        dangerous = dangerous_actions(scene, frame, now)
        if dangerous is not None:
            danger = "In this scenario, what are dangerous actions to take for the ego vehicle?"
            asked.append(("planning", danger, dangerous))
    return asked
