"""Questions and answers about the frames of a synthetic scene, in DriveLM's templates and nesting.

Every answer follows from the simulation, and only from what is visible. An object is CLEAR in a camera that shows at
least MIN_PIXELS of it (in pixels of 1600x900; 13 of 96x96) and a fifth of its outline, and not just a thin slice at
the edge. Any smaller piece of it is UNCLEAR there: where an unclear piece could change an answer, the question is not
asked. "To the front left of the ego car" means: clear in the front left camera. An object that two cameras share is in
both directions, as it would be for someone who describes the pictures one by one; it has one tag, in the camera that
shows most of it.

Questions with the answers yes and no are asked in pairs: for each question text, as often in a frame of the scene
where it holds as in one where it does not. So no constant answer is right more than half the time for any template,
class or direction, in any split by scene. Counting questions are balanced in the same way over their numbers.

"How many ... are there to the ... of the ego car?" is a template of our own, in DriveLM's style; the others are
DriveLM's. Answers keep to a small regular grammar: fixed order of classes, "many" for more than three.
"""

import random
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from data_scripts.world.render import ARROW_LENGTH, ARROW_PERIOD, CAMERAS, FULL_WIDTH, arrow_places
from data_scripts.world.simulation import (
    EGO_FRONT,
    MOTOR_VEHICLES,
    SAMPLE_SECONDS,
    SAMPLES_PER_SCENE,
    SIZES,
    TURN_LEFT,
    TURN_RIGHT,
    Scene,
    leg_at,
)

MIN_PIXELS = 2000.0  # of 1600x900
MAX_UNSEEN_PIXELS = 500.0  # a piece this small counts as not visible at all
MIN_SHARE = 0.2  # of the outline's box
MIN_SLICE = 110.0  # width in pixels of 1600 of what the edge of the picture cuts off; 6.6 of 96
CLASSES = tuple(SIZES)
PLURALS = {"bus": "buses"} | {kind: kind + "s" for kind in CLASSES if kind != "bus"}
DIRECTIONS = {
    "CAM_FRONT_LEFT": "front left",
    "CAM_FRONT": "front",
    "CAM_FRONT_RIGHT": "front right",
    "CAM_BACK_LEFT": "back left",
    "CAM_BACK": "back",
    "CAM_BACK_RIGHT": "back right",
}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
STATUS_ORDER = ("moving", "stopped", "parked", "standing")
BEHAVIOUR_SAMPLES = round(1 / SAMPLE_SECONDS)  # behaviour is what the ego does in the coming second
FRONT_ONLY = np.array([name == "CAM_FRONT" for name in CAMERAS])
STOP, SLOW, GO = "stop", "slow", "go"

IMPORTANT = (
    "What are the important objects in the current scene? "
    "Those objects will be considered for the future reasoning and driving decision."
)
PRIORITY = "What is the priority of the objects that the ego vehicle should consider?(in descending order)"
WHY = "What actions could the ego vehicle take based on {}? Why take this action and what's the probability?"


@dataclass
class Seen:
    """An object in one camera in which it is clear."""

    kind: str  # a class, or "traffic light"
    status: str
    colour: str
    rider: bool
    camera: str
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in 1600x900 pixels
    ahead: float  # metres along the road from the ego's rear axle to its middle
    left: float  # metres to the left of the ego, across the road
    half_length: float
    crossing: bool
    main: bool  # the camera shows more of it than the others
    tag: str = ""

    @property
    def named(self) -> str:
        if self.kind == "traffic light":
            return f"{self.colour} light"
        rider = {True: " with a rider", False: " without a rider"}[self.rider]
        return f"{self.colour} {self.kind}" + (rider if self.kind in ("bicycle", "motorcycle") else "")


@dataclass
class View:
    """What can be asked about one frame."""

    t: int  # number of the 2 Hz moment
    seen: list[Seen]
    unclear: set[tuple[str, str]]  # (camera, kind)
    visibility: dict[int, float]  # agent -> visible share of its outline, for nuScenes' visibility levels


def view_of(scene: Scene, t: int, look: dict) -> View:
    """The clear and the unclear objects of a rendered frame; `look` is the renderer's."""
    seen, unclear, visibility, signals = [], set(), {}, set()
    of_lights = [what == "light" for what, _ in look["sources"]]
    # A signal counts in the front camera alone; where another shows one, its view is not captioned.
    beside_front = ~FRONT_ONLY[:, None] & of_lights
    shows = np.where(beside_front, look["pixels"], 0).max(axis=1, initial=0) > MAX_UNSEEN_PIXELS
    unclear |= {(CAMERAS[camera], "traffic light") for camera in np.flatnonzero(shows)}
    pixels_of = np.where(beside_front, 0, look["pixels"])
    best_camera = pixels_of.argmax(axis=0)
    most_first = sorted(range(len(look["sources"])), key=lambda n: -pixels_of[best_camera[n], n])
    for n in most_first:
        what, index = look["sources"][n]
        pixels, boxes = pixels_of[:, n], look["bounds"][:, n]
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        slices = (boxes[:, 0] <= 0) | (boxes[:, 2] >= FULL_WIDTH)
        wide = ~slices | (boxes[:, 2] - boxes[:, 0] >= MIN_SLICE)
        clear = (pixels >= MIN_PIXELS) & (pixels >= MIN_SHARE * areas) & wide
        if what == "agent":
            # An outline fills about 0.7 of its box.
            visibility[index] = float(min(1.0, pixels.sum() / max(np.nansum(areas), 1.0) / 0.7))
            kind = scene.agents[index].kind
        else:  # the heads of a signal, which show the same colour, count once: the one that shows most
            if index in signals:
                continue
            signals.add(index)
            kind = "traffic light"
        for camera, name in enumerate(CAMERAS):
            if clear[camera]:
                main = camera == best_camera[n] or not clear[best_camera[n]]
                seen.append(seen_object(scene, t, what, index, name, boxes[camera], bool(main)))
            elif pixels[camera] > MAX_UNSEEN_PIXELS:
                unclear.add((name, kind))
    return View(t, seen, unclear, visibility)


def seen_object(scene: Scene, t: int, what: str, index: int, camera: str, box, main: bool) -> Seen:
    box = tuple(round(float(value), 1) for value in box)
    if what == "light":
        leg = scene.light_legs[index]
        ahead = leg.stop_line - scene.ego_s[t]
        colour = str(scene.light_colours[t, index])
        return Seen("traffic light", "", colour, False, camera, box, ahead, 0.0, 0.0, crossing=False, main=main)
    agent = scene.agents[index]
    s, d = scene.road[t, index].tolist()
    ahead, left = s - float(scene.ego_s[t]), d - float(scene.ego_d[t])
    status, half = str(scene.statuses[t, index]), agent.size[1] / 2
    return Seen(agent.kind, status, agent.colour, agent.rider, camera, box, ahead, left, half, agent.crossing, main)


def give_tags(view: View) -> list[Seen]:
    """Up to four important objects, the most pressing first, with DriveLM's tags: `<c1,CAM_FRONT,x,y>`."""

    def urgency(o: Seen):
        in_lane = abs(o.left) < 1.5 and o.ahead > 0
        weight = 0 if o.kind == "traffic light" else 1 if in_lane or o.crossing else 2
        return weight, abs(o.ahead) + abs(o.left), o.box

    important = sorted((o for o in view.seen if o.main), key=urgency)[:4]
    for number, o in enumerate(important, 1):
        x, y = (o.box[0] + o.box[2]) / 2, (o.box[1] + o.box[3]) / 2
        o.tag = f"<c{number},{o.camera},{x:.1f},{y:.1f}>"
    return important


def number_of(kind: str, count: int) -> str:
    word = "many" if count > 3 else NUMBERS[count]
    return f"{word} {kind if count == 1 else PLURALS[kind]}"


def joined(parts: list[str]) -> str:
    if len(parts) < 3:
        return " and ".join(parts)
    return ", ".join(parts[:-1]) + ", and " + parts[-1]


def listing(view: View, camera: str) -> str:
    counts = [(kind, sum(o.kind == kind and o.camera == camera for o in view.seen)) for kind in CLASSES]
    parts = [number_of(kind, count) for kind, count in counts if count]
    where = f"to the {DIRECTIONS[camera]} of the ego car."
    if not parts:
        return f"There are no objects {where}"
    return f"There {'is' if parts[0].startswith('one ') else 'are'} {joined(parts)} {where}"


def status_answer(kind: str, statuses: list[str]) -> str:
    """ "One car is parked.", "Two cars are moving.", "One of the cars is moving, and the other is parked.", "One
    truck is moving, and two are parked."."""
    counts = [(status, statuses.count(status)) for status in STATUS_ORDER if status in statuses]
    if len(counts) == 1:
        status, count = counts[0]
        text = number_of(kind, count)
        return f"{text[0].upper()}{text[1:]} {'is' if count == 1 else 'are'} {status}."
    if [count for _, count in counts] == [1, 1]:
        return f"One of the {PLURALS[kind]} is {counts[0][0]}, and the other is {counts[1][0]}."
    status, count = counts[0]
    text = number_of(kind, count)
    parts = [f"{text[0].upper()}{text[1:]} {'is' if count == 1 else 'are'} {status}"]
    for status, count in counts[1:]:
        word = "many" if count > 3 else NUMBERS[count]
        parts.append(f"{word} {'is' if count == 1 else 'are'} {status}")
    return joined(parts).replace(" and ", ", and ", 1) + "." if len(parts) == 2 else joined(parts) + "."


def existence(view: View) -> dict[str, bool]:
    """Every existence question whose answer is beyond doubt."""
    truths = {}
    for camera, direction in DIRECTIONS.items():
        for kind in CLASSES:
            if (camera, kind) in view.unclear:
                continue
            here = [o for o in view.seen if o.camera == camera and o.kind == kind]
            end = f"to the {direction} of the ego car?"
            truths[f"Are there {PLURALS[kind]} {end}"] = bool(here)
            if kind in ("bicycle", "motorcycle"):
                for rider, words in ((True, "with riders"), (False, "without riders")):
                    truths[f"Are there {PLURALS[kind]} {words} {end}"] = any(o.rider == rider for o in here)
            else:
                for status in statuses_of(kind):
                    truths[f"Are there {status} {PLURALS[kind]} {end}"] = any(o.status == status for o in here)
    if ("CAM_FRONT", "traffic light") not in view.unclear:
        question = "Is there any traffic element in the front view?"
        truths[question] = any(o.kind == "traffic light" for o in view.seen)
    return truths


def statuses_of(kind: str) -> tuple[str, ...]:
    if kind in MOTOR_VEHICLES:
        return "moving", "stopped", "parked"
    return ("moving", "standing") if kind == "pedestrian" else ()


def is_relevant(o: Seen) -> bool:
    """Whether the ego should consider the object: in its lane ahead, crossing, a signal, or close beside it."""
    if o.kind == "traffic light":
        return True
    if o.kind in ("traffic cone", "barrier"):
        return False
    if o.ahead > 0 and (abs(o.left) < 1.5 or o.crossing):
        return True
    return o.kind != "pedestrian" and abs(o.left) < 4.5 and abs(o.ahead) < 9.0


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


def situation(view: View) -> str | None:
    """STOP, SLOW or GO, by what the front camera shows; None where a picture would not tell."""
    front = [o for o in view.seen if o.camera == "CAM_FRONT"]
    if ("CAM_FRONT", "traffic light") in view.unclear:
        return None
    light = next((o for o in front if o.kind == "traffic light"), None)
    if light is not None and light.colour != "green":
        return STOP
    if any(o.crossing and o.status == "moving" and 0 < o.ahead < 28 for o in front):
        return STOP
    leaders = [o for o in front if abs(o.left) < 1.5 and o.kind in (*MOTOR_VEHICLES, "motorcycle")]
    gap = min((o.ahead - o.half_length - EGO_FRONT for o in leaders), default=np.inf)
    leader = next((o for o in leaders if o.ahead - o.half_length - EGO_FRONT == gap), None)
    if leader is None:
        return None if any(camera == "CAM_FRONT" and kind in MOTOR_VEHICLES for camera, kind in view.unclear) else GO
    if leader.status == "stopped":
        return STOP if gap < 22 else None
    return SLOW if gap < 16 else GO if gap > 22 else None


SAFE = {
    STOP: "Brake gently to a stop, slow down.",
    SLOW: "Decelerate gradually without braking, keep a safe distance.",
    GO: "Keep going at the same speed, accelerate and go ahead.",
}


def crowded_sides(scene: Scene, view: View) -> tuple[bool, bool] | None:
    """Whether something is close beside the ego on the left and on the right: less than 8 m along the road and 1.5 to
    5 m across. None where something is nearly that close, so that a picture would not tell."""
    ahead = scene.road[view.t, :, 0] - scene.ego_s[view.t]
    left = scene.road[view.t, :, 1] - scene.ego_d[view.t]
    nearly = (np.abs(ahead) < 14.0) & (np.abs(left) > 1.0) & (np.abs(left) < 7.0)
    crowded = []
    for side in (1, -1):
        objects = (o for o in view.seen if o.kind != "traffic light")
        close = any(abs(o.ahead) < 8.0 and 1.5 < side * o.left < 5.0 for o in objects)
        if not close and (nearly & (side * left > 0)).any():
            return None
        crowded.append(close)
    return tuple(crowded)


def dangerous_actions(scene: Scene, view: View, now: str) -> str | None:
    """What would be dangerous; None where a picture would not tell."""
    sides = crowded_sides(scene, view)
    if sides is None:
        return None
    actions = ["accelerate and go ahead"] * (now != GO)
    actions += [f"change to the {side} lane" for side, close in zip(("left", "right"), sides, strict=True) if close]
    text = ", ".join(actions) or "brake suddenly"
    return f"{text[0].upper()}{text[1:]}."


def target_action(scene: Scene, view: View) -> str | None:
    """The action that the arrows in front of the ego announce; None where no arrow or several kinds are in full
    view."""
    s = float(scene.ego_s[view.t])
    near, far = s + 6.0, s + 6.0 + ARROW_PERIOD + ARROW_LENGTH
    shown = [(place, leg) for leg in scene.legs for place in arrow_places(leg) if near <= place <= far]
    actions = {leg.action for _, leg in shown}
    current = leg_at(scene.legs, s)
    if len(actions) != 1 or (current.action in (TURN_LEFT, TURN_RIGHT) and s > current.bend_start - 3.0):
        return None
    first_end = min(place for place, _ in shown) + ARROW_LENGTH
    ahead = [o for o in view.seen if abs(o.left) < 2.0 and 0 < o.ahead and o.kind != "traffic light"]
    if any(s + o.ahead - o.half_length < first_end for o in ahead):
        return None
    return actions.pop()


def possible_action(o: Seen) -> tuple[str, str]:
    """What the ego does because of one object, and why."""
    if o.kind == "traffic light":
        go = "Keep going at the same speed" if o.colour == "green" else "Brake gently to a stop"
        return go, "to follow the traffic rules"
    if o.ahead > 0 and o.crossing and o.status == "moving":
        return "Brake suddenly", "to avoid a collision"
    if o.ahead > 0 and abs(o.left) < 1.5 and o.kind in (*MOTOR_VEHICLES, "motorcycle"):
        if o.status == "stopped":
            return "Brake gently to a stop", "to avoid a collision"
        return "Decelerate gradually without braking", "to keep a safe distance"
    return "Keep going at the same speed", "there is no safety issue"


def collision_action(o: Seen) -> str:
    if o.kind == "traffic light":
        return "No such action will lead to a collision."
    if abs(o.left) < 1.5:
        return "Accelerate and go straight." if o.ahead > 0 else "Back up."
    if abs(o.ahead) < 12.0 and abs(o.left) < 8.0:
        return "Moderate left turn." if o.left > 0 else "Moderate right turn."
    return "No such action will lead to a collision."


def behaviour(scene: Scene, t: int) -> str:
    """The ego's steering and speed over the coming second."""
    turn = float((scene.ego[t + BEHAVIOUR_SAMPLES, 2] - scene.ego[t, 2] + np.pi) % (2 * np.pi) - np.pi)
    speed = float(scene.ego[t, 3])
    side = "left" if turn > 0 else "right"
    way = "going straight" if abs(turn) < 0.08 else f"{'slightly ' * (abs(turn) < 0.2)}steering to the {side}"
    pace = "not moving"
    if speed > 0:
        pace = "driving slowly" if speed < 4.0 else "driving with normal speed" if speed < 6.5 else "driving fast"
    return f"The ego vehicle is {way}. The ego vehicle is {pace}."


def scene_sentence(view: View) -> str:
    """What is in front of and behind the ego, as annotators of DriveLM sum a scene up."""
    parts = []
    for camera, where in (("CAM_FRONT", "in front of the ego car"), ("CAM_BACK", "behind the ego car")):
        groups = defaultdict(int)
        for o in view.seen:
            if o.camera == camera and o.kind != "traffic light":
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


def open_questions(scene: Scene, view: View, rng: random.Random) -> list[tuple[str, str, str]]:
    """(task, question, answer) of all but the balanced questions of one frame."""
    asked = []
    cameras_unclear = {camera for camera, kind in view.unclear if kind != "traffic light"}
    for camera, direction in DIRECTIONS.items():
        empty = not any(o.camera == camera and o.kind != "traffic light" for o in view.seen)
        if camera in cameras_unclear or (empty and rng.random() > 0.3):
            continue
        asked.append(("perception", f"What are objects to the {direction} of the ego car?", listing(view, camera)))
    statuses = []
    for camera, direction in DIRECTIONS.items():
        for kind in (*MOTOR_VEHICLES, "pedestrian"):
            here = [o.status for o in view.seen if o.camera == camera and o.kind == kind]
            if not here or (camera, kind) in view.unclear:
                continue
            name = f"{kind} that is" if len(here) == 1 else f"{PLURALS[kind]} that are"
            question = f"What is the status of the {name} to the {direction} of the ego car?"
            statuses.append((set(here) == {"parked"}, question, status_answer(kind, here)))
    # Most of what stands still is parked: ask about it less often.
    statuses = [item for item in statuses if not item[0] or rng.random() < 0.6]
    for _, question, answer in rng.sample(statuses, min(5, len(statuses))):
        asked.append(("perception", question, answer))
    if not {"CAM_FRONT", "CAM_BACK"} & cameras_unclear:
        asked.append(("perception", "Please describe the current scene.", scene_sentence(view)))
    important = give_tags(view)
    if important:
        asked += questions_on_tags(important, rng)
    now, action = situation(view), target_action(scene, view)
    if ("CAM_FRONT", "traffic light") not in view.unclear:
        light = next((o for o in view.seen if o.kind == "traffic light"), None)
        if light is not None or rng.random() < 0.2:
            answer = f"{light.colour.capitalize()} light." if light is not None else "None."
            question = "What is the traffic signal that the ego vehicle should pay attention to?"
            asked.append(("planning", question, answer))
    if action is not None:
        asked.append(("planning", "What is the target action of the ego vehicle?", action))
    # Most frames call for braking or for going on: ask them less often.
    if now == SLOW or (now is not None and rng.random() < 0.6):
        safe = "In this scenario, what are safe actions to take for the ego vehicle?"
        asked.append(("planning", safe, SAFE[now]))
        dangerous = dangerous_actions(scene, view, now)
        if dangerous is not None:
            danger = "In this scenario, what are dangerous actions to take for the ego vehicle?"
            asked.append(("planning", danger, dangerous))
    if view.t + BEHAVIOUR_SAMPLES < SAMPLES_PER_SCENE:
        asked.append(("behavior", "Predict the behavior of the ego vehicle.", behaviour(scene, view.t)))
    return asked


def questions_on_tags(important: list[Seen], rng: random.Random) -> list[tuple[str, str, str]]:
    def placed(o):
        article = "an" if o.named[0] in "aeiou" else "a"
        return f"{article} {o.named} to the {DIRECTIONS[o.camera]} of the ego vehicle"

    names, tags = joined([placed(o) for o in important]), joined([o.tag for o in important])
    ids = f"The ID of this object is {tags}." if len(important) == 1 else f"The IDs of these objects are {tags}."
    asked = [("perception", IMPORTANT, f"There is {names}. {ids}")]
    asked.append(("planning", PRIORITY, ", ".join(o.tag for o in important) + "."))
    for o in important:
        asked.append(("perception", f"What is the visual description of {o.tag}?", f"{o.named.capitalize()}."))
    roads = [o for o in important if o.kind in (*MOTOR_VEHICLES, "pedestrian", "motorcycle", "bicycle")]
    for o in roads[:2]:
        moving = o.status == "moving"
        words = (
            ("Moving.", "Going ahead.", "Keep going straight.")
            if moving
            else ("Stationary.", "Stopped.", "Stationary.")
        )
        asked.append(("perception", f"What is the observed status of object {o.tag}?", words[0]))
        asked.append(("perception", f"What is the moving status of object {o.tag}?", words[1]))
        asked.append(("prediction", f"What is the future state of {o.tag}?", words[2]))
    for o in important:
        if o.kind == "traffic light":
            meaning = "Please proceed." if o.colour == "green" else "Please wait."
            asked.append(("prediction", f"What does {o.tag} mean?", meaning))
    telling = [o for o in important if not possible_action(o)[0].startswith("Keep") or rng.random() < 0.4]
    for o in telling[:2]:
        action, why = possible_action(o)
        question = f"Based on {o.tag} in this scene, what is the most possible action of the ego vehicle?"
        asked.append(("planning", question, f"{action}."))
    for o in telling[:1]:
        action, why = possible_action(o)
        reason = f"The reason is {'that ' * why.startswith('there')}{why}"
        answer = f"The action is to {action[0].lower()}{action[1:]}. {reason}, which has a high probability."
        asked.append(("planning", WHY.format(o.tag), answer))
    for o in important[:3]:
        if o.kind != "traffic light":
            question = f"What actions taken by the ego vehicle can lead to a collision with {o.tag}?"
            asked.append(("planning", question, collision_action(o)))
    return asked


YES_NO_PER_FRAME = 8  # at most, on average over a scene
COUNTS_PER_FRAME = 4


def scene_questions(scene: Scene, views: list[View]) -> list[dict[str, list[tuple[str, str]]]]:
    """For each frame, DriveLM's four tasks with (question, answer) pairs.

    Balanced questions need several frames of a scene to choose from; the choice depends on the scene alone.
    """
    frames = [{"perception": [], "prediction": [], "planning": [], "behavior": []} for _ in views]
    for view, frame in zip(views, frames, strict=True):
        rng = random.Random(f"{scene.seed}/{scene.index}/{view.t}")
        for task, question, answer in open_questions(scene, view, rng):
            frame[task].append((question, answer))
    rng = random.Random(f"{scene.seed}/{scene.index}")
    for number, question, truth in balanced_existence(views, rng):
        answer = "Yes." if truth else "No."
        if question.startswith("Is there any"):
            some = "there are" if truth else "there are no"
            answer = f"{answer[:-1]}, {some} traffic elements in the front view."
        frames[number]["perception"].append((question, answer))
    for number, task, question, truth in balanced_tags(views, rng):
        frames[number][task].append((question, "Yes." if truth else "No."))
    for number, question, answer in balanced_counts(views, rng):
        frames[number]["perception"].append((question, answer))
    return frames


def balanced_existence(views: list[View], rng: random.Random) -> list[tuple[int, str, bool]]:
    """(frame, question, truth): every question text as often true as false, and no more than the limit in all."""
    frames_by_truth = defaultdict(lambda: ([], []))
    for number, view in enumerate(views):
        for question, truth in existence(view).items():
            frames_by_truth[question][truth].append(number)
    pairs = []
    for question, (no, yes) in frames_by_truth.items():
        count = min(len(no), len(yes))
        pairs += [(question, *pair) for pair in zip(rng.sample(no, count), rng.sample(yes, count), strict=True)]
    pairs = rng.sample(pairs, min(len(pairs), YES_NO_PER_FRAME * len(views) // 2))
    asked = [(number, question, bool(truth)) for question, *both in pairs for truth, number in enumerate(both)]
    rng.shuffle(asked)
    return asked


def balanced_tags(views: list[View], rng: random.Random) -> list[tuple[int, str, str, bool]]:
    """(frame, task, question, truth) on tagged objects, each template as often true as false; half as many pairs of a
    template as frames at most."""
    by_truth = defaultdict(lambda: ([], []))
    for number, view in enumerate(views):
        for o in view.seen:
            if o.tag:
                for template, (task, question, truth) in tagged_yes_no(o).items():
                    by_truth[template][truth].append((number, task, question, truth))
    asked = []
    for no, yes in by_truth.values():
        count = min(len(no), len(yes), len(views) // 2)
        asked += rng.sample(no, count) + rng.sample(yes, count)
    return asked


def balanced_counts(views: list[View], rng: random.Random) -> list[tuple[int, str, str]]:
    """(frame, question, answer): of each question text the two commonest numbers come equally often, the others at
    most so."""
    frames_by_count = defaultdict(lambda: defaultdict(list))
    for number, view in enumerate(views):
        for camera, direction in DIRECTIONS.items():
            for kind in CLASSES:
                if (camera, kind) not in view.unclear:
                    count = sum(o.camera == camera and o.kind == kind for o in view.seen)
                    question = f"How many {PLURALS[kind]} are there to the {direction} of the ego car?"
                    frames_by_count[question, kind, direction][count].append(number)
    groups = []
    for (question, kind, direction), frames in frames_by_count.items():
        if len(frames) < 2:
            continue
        limit = sorted(map(len, frames.values()))[-2]
        for numbers in frames.values():
            rng.shuffle(numbers)
        for round_ in range(limit):
            group = []
            for count, numbers in sorted(frames.items()):
                if round_ < len(numbers):
                    verb = "is" if count == 1 else "are"
                    name = kind if count == 1 else PLURALS[kind]
                    text = f"There {verb} {NUMBERS[min(count, 10)]} {name} to the {direction} of the ego car."
                    group.append((numbers[round_], question, text))
            groups.append(group)
    rng.shuffle(groups)
    asked = []
    for group in groups:
        if len(asked) + len(group) <= COUNTS_PER_FRAME * len(views):
            asked += group
    return asked
