"""What the ego should do and is about to do, as far as the pictures of a frame tell."""

import numpy as np

from data_scripts.world.agents import MOTOR_VEHICLES, THINGS
from data_scripts.world.road import ARROW_LENGTH, ARROW_PERIOD, LANE_WIDTH, arrow_places, ego_offset, leg_at
from data_scripts.world.scenarios import BLOCKED_LANE, ONCOMING_TURN
from data_scripts.world.sight import OPEN, WAITS, Frame, Seen
from data_scripts.world.simulation import SAMPLE_SECONDS, SAMPLES_PER_SCENE, Scene
from data_scripts.world.traffic import EGO_FRONT
from data_scripts.world.words import capitalized

BEHAVIOUR_SAMPLES = round(1 / SAMPLE_SECONDS)  # behaviour is what the ego does in the coming second
FUTURE_SAMPLES = round(3 / SAMPLE_SECONDS)  # a future state is the one in 3 s
STRAIGHT, BENT = 0.08, 0.16  # radians that the heading turns within a second; what lies between is doubtful
FUTURE_STRAIGHT, FUTURE_BENT = 0.15, 0.35  # in 3 s
STOP, SLOW, GO, ROUND_LEFT, ROUND_RIGHT = "stop", "slow", "go", "left", "right"
SAFE = {
    STOP: "Brake gently to a stop, slow down.",
    SLOW: "Decelerate gradually without braking, keep a safe distance.",
    GO: "Keep going at the same speed, accelerate and go ahead.",
    ROUND_LEFT: "Slow down, change to the left lane.",
    ROUND_RIGHT: "Slow down, change to the right lane.",
}


def is_relevant(o: Seen) -> bool:
    """Whether the ego should consider the object: in its lane ahead, crossing, a signal, or close beside it."""
    if o.kind == "traffic light" or o.joining or o.oncoming or o.way_round:
        return True
    if o.kind in THINGS:
        return False
    if o.ahead > 0 and (abs(o.left) < 1.5 or o.crossing):
        return True
    return o.kind != "pedestrian" and abs(o.left) < 4.5 and abs(o.ahead) < 9.0


def situation(scene: Scene, frame: Frame) -> str | None:
    """What the front camera shows that the ego has to do: STOP, SLOW, GO, ROUND_LEFT or ROUND_RIGHT; None where a
    picture would not tell. Whether the ego gets round a blocked lane or waits is what it does within 3 s."""
    front = frame.in_camera("CAM_FRONT")
    if ("CAM_FRONT", "traffic light") in frame.unclear:
        return None
    light = frame.light()
    if light is not None and light.colour != "green":
        return STOP
    if any(o.crossing and 0 < o.ahead < 28 for o in front):
        return STOP
    active = scene.active[frame.t]
    if ONCOMING_TURN in active:
        return STOP if any(o.oncoming for o in front) else None
    if any(o.joining for o in front):
        near = any(o.joining and o.ahead - o.half_length - EGO_FRONT < 16 for o in front)
        return SLOW if near else None
    leaders = [o for o in front if abs(o.left) < 1.5 and (o.way_round or o.kind in (*MOTOR_VEHICLES, "motorcycle"))]
    gap = min((o.ahead - o.half_length - EGO_FRONT for o in leaders), default=np.inf)
    leader = next((o for o in leaders if o.ahead - o.half_length - EGO_FRONT == gap), None)
    if leader is None and BLOCKED_LANE in active and not is_aside(scene, frame.t):
        return None
    if leader is None:
        return None if any(camera == "CAM_FRONT" and kind in MOTOR_VEHICLES for camera, kind in frame.unclear) else GO
    if leader.way_round:
        return {WAITS: STOP, OPEN: None}.get(leader.way_round, leader.way_round)
    if leader.status == "stopped":
        return STOP if gap < 22 else None
    return SLOW if gap < 16 else GO if gap > 22 else None


def is_aside(scene: Scene, t: int) -> bool:
    """Whether the ego has left its route's lane, as it does to get round what blocks it."""
    return abs(scene.ego_d[t] - ego_offset(scene.legs, float(scene.ego_s[t]))[0]) > 1.0


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
    crowded = [side for side, close in zip(("left", "right"), sides, strict=True) if close and side != now]
    actions += [f"change to the {side} lane" for side in crowded]
    text = ", ".join(actions) or "brake suddenly"
    return f"{capitalized(text)}."


def target_action(scene: Scene, frame: Frame) -> str | None:
    """The action that the arrows in front of the ego announce; None where no arrow or several kinds are in full
    view, and where the ego is not in the lane that they are on."""
    if is_aside(scene, frame.t):
        return None
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
    if o.ahead > 0 and o.crossing:
        return "Brake suddenly", "to avoid a collision"
    if o.oncoming or o.way_round == WAITS:
        return "Brake gently to a stop", "to avoid a collision"
    if o.way_round:
        return f"Change to the {o.way_round} lane", "to avoid a collision"
    if o.joining:
        return "Decelerate gradually without braking", "to keep a safe distance"
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


def turned(before: float, after: float) -> float:
    """Radians from one heading to another, between -pi and pi, to the left positive."""
    return float((after - before + np.pi) % (2 * np.pi) - np.pi)


def moving_status(scene: Scene, t: int, agent: int) -> str | None:
    """What a road user does now, by half a second before and after; None where it is about to turn or to change lanes,
    or just did."""
    if scene.statuses[t, agent] != "moving":
        return "Stopped."
    if scene.agents[agent].joins is not None and np.ptp(scene.road[max(t - 2, 0) : t + 3, agent, 1]) > 0.05:
        return None
    yaw = scene.poses[max(t - 2, 0) : t + 3, agent, 2]
    now = min(t, 2)
    turn = turned(yaw[max(now - 1, 0)], yaw[min(now + 1, len(yaw) - 1)])
    if max(abs(turned(yaw[now], other)) for other in yaw) < STRAIGHT:
        return "Going ahead."
    return None if abs(turn) < BENT else "Turn left." if turn > 0 else "Turn right."


def future_state(scene: Scene, t: int, agent: int) -> str | None:
    """What a road user does 3 s later; None where the scene ends before, or where it turns or moves aside a little."""
    later = t + FUTURE_SAMPLES
    if later >= SAMPLES_PER_SCENE:
        return None
    if scene.statuses[later, agent] != "moving":
        return "Stationary."
    if scene.statuses[t, agent] != "moving":
        return "Start moving."
    if scene.agents[agent].joins is not None:
        aside = float(scene.road[later, agent, 1] - scene.road[t, agent, 1])
        if abs(aside) > 0.1:
            side = "left" if aside > 0 else "right"
            return f"Change to the {side} lane." if abs(aside) > LANE_WIDTH / 2 else None
    turn = turned(scene.poses[t, agent, 2], scene.poses[later, agent, 2])
    if abs(turn) < FUTURE_STRAIGHT:
        return "Keep going straight."
    return None if abs(turn) < FUTURE_BENT else "Turn left." if turn > 0 else "Turn right."


def behaviour(scene: Scene, t: int) -> str:
    """The ego's steering and mean speed over the coming second: both speak of what it is about to do."""
    turn = turned(scene.ego[t, 2], scene.ego[t + BEHAVIOUR_SAMPLES, 2])
    steps = np.diff(scene.ego[t : t + BEHAVIOUR_SAMPLES + 1, :2], axis=0)
    speed = float(np.hypot(*steps.T).sum()) / (BEHAVIOUR_SAMPLES * SAMPLE_SECONDS)
    side = "left" if turn > 0 else "right"
    way = "going straight" if abs(turn) < 0.08 else f"{'slightly ' * (abs(turn) < 0.2)}steering to the {side}"
    pace = "not moving"
    if speed > 0:
        pace = "driving slowly" if speed < 4.0 else "driving with normal speed" if speed < 6.5 else "driving fast"
    return f"The ego vehicle is {way}. The ego vehicle is {pace}."
