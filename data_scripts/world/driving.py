"""What the ego should do and is about to do, as far as the pictures of a frame tell."""

import numpy as np

from data_scripts.world.agents import MOTOR_VEHICLES, THINGS
from data_scripts.world.road import ARROW_LENGTH, ARROW_PERIOD, arrow_places, leg_at
from data_scripts.world.sight import Frame, Seen
from data_scripts.world.simulation import SAMPLE_SECONDS, Scene
from data_scripts.world.traffic import EGO_FRONT
from data_scripts.world.words import capitalized

BEHAVIOUR_SAMPLES = round(1 / SAMPLE_SECONDS)  # behaviour is what the ego does in the coming second
STOP, SLOW, GO = "stop", "slow", "go"
SAFE = {
    STOP: "Brake gently to a stop, slow down.",
    SLOW: "Decelerate gradually without braking, keep a safe distance.",
    GO: "Keep going at the same speed, accelerate and go ahead.",
}


def is_relevant(o: Seen) -> bool:
    """Whether the ego should consider the object: in its lane ahead, crossing, a signal, or close beside it."""
    if o.kind == "traffic light":
        return True
    if o.kind in THINGS:
        return False
    if o.ahead > 0 and (abs(o.left) < 1.5 or o.crossing):
        return True
    return o.kind != "pedestrian" and abs(o.left) < 4.5 and abs(o.ahead) < 9.0


def situation(frame: Frame) -> str | None:
    """STOP, SLOW or GO, by what the front camera shows; None where a picture would not tell."""
    front = frame.in_camera("CAM_FRONT")
    if ("CAM_FRONT", "traffic light") in frame.unclear:
        return None
    light = frame.light()
    if light is not None and light.colour != "green":
        return STOP
    if any(o.crossing and o.status == "moving" and 0 < o.ahead < 28 for o in front):
        return STOP
    leaders = [o for o in front if abs(o.left) < 1.5 and o.kind in (*MOTOR_VEHICLES, "motorcycle")]
    gap = min((o.ahead - o.half_length - EGO_FRONT for o in leaders), default=np.inf)
    leader = next((o for o in leaders if o.ahead - o.half_length - EGO_FRONT == gap), None)
    if leader is None:
        return None if any(camera == "CAM_FRONT" and kind in MOTOR_VEHICLES for camera, kind in frame.unclear) else GO
    if leader.status == "stopped":
        return STOP if gap < 22 else None
    return SLOW if gap < 16 else GO if gap > 22 else None


def crowded_sides(scene: Scene, frame: Frame) -> tuple[bool, bool] | None:
    """Whether something is close beside the ego on the left and on the right: less than 8 m along the road and 1.5 to
    5 m across. None where something is nearly that close, so that a picture would not tell."""
    ahead = scene.road[frame.t, :, 0] - scene.ego_s[frame.t]
    left = scene.road[frame.t, :, 1] - scene.ego_d[frame.t]
    nearly = (np.abs(ahead) < 14.0) & (np.abs(left) > 1.0) & (np.abs(left) < 7.0)
    crowded = []
    for side in (1, -1):
        objects = (o for o in frame.seen if o.kind != "traffic light")
        close = any(abs(o.ahead) < 8.0 and 1.5 < side * o.left < 5.0 for o in objects)
        if not close and (nearly & (side * left > 0)).any():
            return None
        crowded.append(close)
    return tuple(crowded)


def dangerous_actions(scene: Scene, frame: Frame, now: str) -> str | None:
    """What would be dangerous; None where a picture would not tell."""
    sides = crowded_sides(scene, frame)
    if sides is None:
        return None
    actions = ["accelerate and go ahead"] * (now != GO)
    actions += [f"change to the {side} lane" for side, close in zip(("left", "right"), sides, strict=True) if close]
    text = ", ".join(actions) or "brake suddenly"
    return f"{capitalized(text)}."


def target_action(scene: Scene, frame: Frame) -> str | None:
    """The action that the arrows in front of the ego announce; None where no arrow or several kinds are in full
    view."""
    s = float(scene.ego_s[frame.t])
    near, far = s + 6.0, s + 6.0 + ARROW_PERIOD + ARROW_LENGTH
    shown = [(place, leg) for leg in scene.legs for place in arrow_places(leg) if near <= place <= far]
    actions = {leg.action for _, leg in shown}
    current = leg_at(scene.legs, s)
    if len(actions) != 1 or (current.is_turn and s > current.bend_start - 3.0):
        return None
    first_end = min(place for place, _ in shown) + ARROW_LENGTH
    ahead = [o for o in frame.seen if abs(o.left) < 2.0 and 0 < o.ahead and o.kind != "traffic light"]
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
