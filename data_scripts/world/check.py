"""Checks the answers and the traffic of a synthetic world against its simulated states.

    python data_scripts/world/check.py --scenes 60 --seed 0

What is true is worked out here a second time, from the recorded poses, the lights and the pixels of the id buffer;
nothing of the code that writes the answers is used, only the questions and answers themselves. One line for each
check: how many cases there were, and how many of them are wrong. Exit code 1 if any is.

Whether those who drive pass through each other is measured along and across the road. On the map the boxes of long
vehicles are stiff and the inner lane of a bend is shorter than the road's middle: there their ends may reach into a
neighbour's box. These pairs are counted on a last line of their own and are not a fault.
"""

import argparse
import math
import re
import sys
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from data_scripts.world.agents import Agent
from data_scripts.world.cameras import CAMERA_CALIBRATION, CAMERAS, FULL_HEIGHT, FULL_WIDTH
from data_scripts.world.ground import GroundMap
from data_scripts.world.questions import scene_questions
from data_scripts.world.render import Look, Renderer
from data_scripts.world.road import LANE_WIDTH, SAME_LANES
from data_scripts.world.sight import frame_of
from data_scripts.world.simulation import (
    SAMPLES_PER_SCENE,
    STEPS_PER_SAMPLE,
    Scene,
    simulate_scene,
    start_scene,
)
from data_scripts.world.traffic import STEP_SECONDS, Ego

TAG = r"<c\d,(CAM_[A-Z_]+),([\d.]+),([\d.]+)>"
SIGNAL = r"What is the traffic signal that the ego vehicle should pay attention to\?"
LATER = 6  # moments at 2 Hz: 3 s
SECOND = 2
TURNS = 0.3  # radians in 3 s that are a turn beyond doubt
LAMP_HEIGHTS = {"green": 1 / 6, "yellow": 3 / 6, "red": 5 / 6}  # share of the head's height
EGO_BOX = (-1.0, 3.4, 0.95)  # from the rear axle to the rear and to the front, half the width; metres
MAY_NEED = 4.0  # m/s^2
LAMP_HALF = (0.48, 0.41)  # half a lit lamp's width and height, metres


@dataclass
class Findings:
    """Cases and faults by the name of a check, and where the first faults are."""

    cases: Counter = field(default_factory=Counter)
    faults: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    touching_in_bends: int = 0
    scenes_with: Counter = field(default_factory=Counter)  # by scenario; "none"
    hardest_brakes: dict[str, float] = field(default_factory=dict)  # m/s^2 of the expert, while a scenario is active

    def add(self, name: str, right: bool, example: str = "") -> None:
        self.cases[name] += 1
        self.faults[name] += not right
        if not right:
            self.examples.setdefault(name, example)

    def print(self) -> None:
        for name, count in self.cases.items():
            faults = self.faults[name]
            example = f"   first: {self.examples[name]}" if faults else ""
            print(f"{name:60} {faults:5} of {count:6} wrong ({faults / count:.1%}){example}")
        for name, count in sorted(self.scenes_with.items()):
            brake = self.hardest_brakes.get(name)
            text = "" if brake is None else f"   the expert brakes with {brake:.1f} m/s^2 at most"
            print(f"scenes with {name:48} {count:5}{text}")
        print(
            f"not a fault: {self.touching_in_bends} pairs of vehicles whose stiff boxes reach into each other in bends"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames-every", type=int, default=3, help="moments of 0.5 s between frames that are asked")
    args = parser.parse_args()
    found = check(args.seed, args.scenes, args.frames_every)
    found.print()
    sys.exit(1 if any(found.faults.values()) else 0)


def check(seed: int, scenes: int, every: int) -> Findings:
    """Simulate and render scenes, ask about them, and compare."""
    found, renderer = Findings(), Renderer(64, 36)
    for index in range(scenes):
        scene = simulate_scene(seed, index)
        check_traffic(scene, found)
        check_expert(scene, found)
        ground, times = GroundMap(scene), range(0, SAMPLES_PER_SCENE, every)
        looks = [renderer.render(scene, ground, t)[1] for t in times]
        asked = scene_questions(scene, [frame_of(scene, t, look) for t, look in zip(times, looks, strict=True)])
        for t, look, tasks in zip(times, looks, asked, strict=True):
            for question, answer in sum(tasks.values(), []):
                check_answer(scene, t, look, question, answer, found)
    return found


# ---------------------------------------------------------------- answers


def check_answer(scene: Scene, t: int, look: Look, question: str, answer: str, found: Findings) -> None:
    where = f"scene {scene.index}, moment {t}: {question} {answer}"
    if re.fullmatch(SIGNAL, question):
        if answer != "None.":
            check_signal(scene, t, look, answer.split()[0].lower(), where, found)
    elif question == "Predict the behavior of the ego vehicle.":
        check_behaviour(scene, t, answer, where, found)
    elif match := re.search(TAG, question):
        source = tagged(scene, t, look, match)
        if source is not None:
            check_tagged(scene, t, look, source, question, answer, where, found)


def tagged(scene: Scene, t: int, look: Look, match: re.Match):
    """The one object whose box has a tag's centre; None where several have it."""
    camera, x, y = CAMERAS.index(match[1]), float(match[2]), float(match[3])
    centres = (look.bounds[camera, :, :2] + look.bounds[camera, :, 2:]) / 2
    near = np.flatnonzero(np.abs(centres - (x, y)).max(axis=1) < 0.11)
    sources = {look.sources[n] for n in near if look.pixels[camera, n] > 0}
    return sources.pop() if len(sources) == 1 else None


def check_tagged(scene: Scene, t: int, look: Look, source, question: str, answer: str, where: str, found) -> None:
    if source.what == "light":
        if question.startswith(("What does", "What is the visual description")):
            check_lamp(scene, t, look, source.index, where, found)
        return
    if question.startswith("What is the future state of"):
        check_future(scene, t, source.index, answer, where, found)
    elif question.startswith("What is the moving status of"):
        check_moving(scene, t, source.index, answer, where, found)
    elif "most possible action" in question or question.startswith("What actions could"):
        agent = scene.agents[source.index]
        if agent.crossing and "rake suddenly" in answer:
            passed = (scene.road[t, source.index, 1] - scene.ego_d[t]) * math.copysign(1, agent.walk[1])
            found.add("brake for a pedestrian who has still to pass the ego's lane", passed < 2.3, where)


def heading_change(scene: Scene, before: int, after: int, i: int) -> float:
    return math.remainder(scene.poses[after, i, 2] - scene.poses[before, i, 2], 2 * math.pi)


def moved(scene: Scene, t: int, i: int) -> bool:
    """Whether an agent is moving at a moment, by its recorded speed and its places around it."""
    low, high = max(t - 1, 0), min(t + 1, SAMPLES_PER_SCENE - 1)
    there = np.linalg.norm(scene.poses[low, i, :2] - scene.poses[high, i, :2]) > 1e-6
    return bool(there and scene.poses[t, i, 3] > 0)


def check_future(scene: Scene, t: int, i: int, answer: str, where: str, found: Findings) -> None:
    later = t + LATER
    if later >= SAMPLES_PER_SCENE:
        return
    turn = heading_change(scene, t, later, i)
    if not moved(scene, later, i):
        truths = {"Stationary."}
    elif not moved(scene, t, i):
        truths = {"Start moving."}
    elif scene.agents[i].direction > 0 and abs(aside := scene.road[later, i, 1] - scene.road[t, i, 1]) > 1.0:
        truths = {f"Change to the {'left' if aside > 0 else 'right'} lane."}
    elif abs(turn) < TURNS:
        truths = {"Keep going straight."}
    else:
        truths = {"Turn left." if turn > 0 else "Turn right."}
    found.add("future state is that of 3 s later", answer in truths, where)


def check_moving(scene: Scene, t: int, i: int, answer: str, where: str, found: Findings) -> None:
    if not moved(scene, t, i):
        found.add("moving status: stopped", answer == "Stopped.", where)
        return
    before, after = max(t - 1, 0), min(t + 1, SAMPLES_PER_SCENE - 1)
    turn = heading_change(scene, before, after, i)
    if abs(turn) > 0.12:
        found.add("moving status: turning", answer == ("Turn left." if turn > 0 else "Turn right."), where)
    else:
        found.add("moving status: going ahead", answer == "Going ahead.", where)


def check_behaviour(scene: Scene, t: int, answer: str, where: str, found: Findings) -> None:
    """Pace over the coming second, by the ego's places; a tenth of a limit is left as doubt."""
    metres = sum(math.dist(scene.ego[k, :2], scene.ego[k + 1, :2]) for k in range(t, t + SECOND))
    limits = {"not moving": (0, 0), "slowly": (0, 4.0), "normal speed": (4.0, 6.5), "fast": (6.5, math.inf)}
    low, high = next(limits[words] for words in limits if answer.endswith(f"{words}."))
    right = metres < 0.01 if high == 0 else metres > 0.01 and low * 0.98 <= metres <= high * 1.02
    found.add("behaviour: pace over the coming second", right, f"{where} {metres:.2f} m")


# ---------------------------------------------------------------- lights


def check_signal(scene: Scene, t: int, look: Look, colour: str, where: str, found: Findings) -> None:
    """The signal is one before the ego whose lit lamp, of that colour, the front camera shows."""
    ahead = [i for i, leg in enumerate(scene.light_legs) if leg.stop_line > scene.ego_s[t] + EGO_BOX[1]]
    coloured = [i for i in range(len(scene.light_legs)) if scene.light_colours[t, i] == colour]
    shown = [i for i in coloured if shows_lamp(scene, t, look, i)]
    found.add("signal colour is asked where the lit lamp shows", bool(shown), where)
    seen = [i for i in coloured if any(s == ("light", i) for s in sources_in_front(look))]
    found.add("signal to pay attention to lies ahead of the ego", bool(set(ahead) & set(seen)), where)


def check_lamp(scene: Scene, t: int, look: Look, light: int, where: str, found: Findings) -> None:
    found.add("signal colour is asked where the lit lamp shows", shows_lamp(scene, t, look, light), where)


def sources_in_front(look: Look) -> list[tuple[str, int]]:
    front = CAMERAS.index("CAM_FRONT")
    return [tuple(source) for n, source in enumerate(look.sources) if look.pixels[front, n] > 0]


def shows_lamp(scene: Scene, t: int, look: Look, light: int) -> bool:
    """Whether the lit lamp of a head of a signal lies in the front picture, and a quarter of 25 points on it show."""
    front, leg = CAMERAS.index("CAM_FRONT"), scene.light_legs[light]
    heads = [n for n, source in enumerate(look.sources) if tuple(source) == ("light", light)]
    height = 2.9 + 2.6 * LAMP_HEIGHTS[scene.light_colours[t, light]]
    for lane, n in enumerate(heads):
        x, y, yaw = (float(value) for value in scene.path.at(leg.stop_line, -(lane + 0.5) * LANE_WIDTH))
        forward, left = np.array([math.cos(yaw), math.sin(yaw)]), np.array([-math.sin(yaw), math.cos(yaw)])
        middle = (x, y) + (11.0 - 0.22) * forward  # on the side towards the traffic
        corners = [(middle + a * LAMP_HALF[0] * left, height + b * LAMP_HALF[1]) for a in (-1, 1) for b in (-1, 1)]
        pixels = np.array([in_front_picture(scene, t, place, z) for place, z in [(middle, height), *corners]])
        if np.isnan(pixels).any() or (pixels < 0).any() or (pixels > (FULL_WIDTH, FULL_HEIGHT)).any():
            continue
        (left, top), (right, bottom) = pixels.min(axis=0), pixels.max(axis=0)
        places = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
        columns, rows = (places * (right - left) + left) / 5, (places * (bottom - top) + top) / 5
        shown = look.ids[front][np.ix_(rows.astype(int).clip(max=179), columns.astype(int).clip(max=319))] == n + 1
        if shown.mean() >= 0.25:
            return True
    return False


def in_front_picture(scene: Scene, t: int, place: np.ndarray, z: float) -> tuple[float, float]:
    """Pixel of 1600x900 of a global point; nan behind the camera."""
    (x, y, height), _, focal, (cx, cy) = CAMERA_CALIBRATION["CAM_FRONT"]
    dx, dy = place - scene.ego[t, :2]
    yaw = scene.ego[t, 2]
    depth = dx * math.cos(yaw) + dy * math.sin(yaw) - x
    right = -(dy * math.cos(yaw) - dx * math.sin(yaw) - y)
    if depth < 0.5:
        return math.nan, math.nan
    return cx + focal * right / depth, cy + focal * (height - z) / depth


# ---------------------------------------------------------------- traffic


def check_traffic(scene: Scene, found: Findings) -> None:
    check_waiting(scene, found)
    moving = (np.abs(np.diff(scene.poses[:, :, :2], axis=0)) > 1e-9).any(axis=(0, 2))
    agents = scene.agents
    for i in np.flatnonzero(moving).tolist():
        pairs = [j for j in range(len(agents)) if j != i and not (moving[j] and j < i)]
        for j in close_pairs(scene, i, pairs):
            kinds = {class_of(scene, i, bool(moving[i])), class_of(scene, j, bool(moving[j]))}
            name = next((name for name, wanted in PAIRS.items() if wanted(kinds)), None)
            if name and agents[i].towed_by != j and agents[j].towed_by != i:
                through = touches = passes_through(scene, i, j)
                if kinds <= {"vehicle", "cyclist"}:
                    through = passes_along_the_road(scene, i, j)
                    found.touching_in_bends += touches and not through
                found.add(name, not through, f"scene {scene.index}: {agents[i].kind} {i}, {agents[j].kind} {j}")
    for i, agent in enumerate(agents):
        found.add("nobody passes through the ego", not hits_ego(scene, i), f"scene {scene.index}: {agent.kind} {i}")


def check_expert(scene: Scene, found: Findings) -> None:
    """The ego's own driver at every step of the traffic: it touches nobody, crosses no red light, and those who cut in
    or pull out leave it room to brake."""
    traffic = start_scene(scene.seed, scene.index).traffic
    sizes = [half_size(scene, i) for i in range(len(scene.agents))]
    where, touched, begun = f"scene {scene.index}", set(), set()
    found.scenes_with.update(scene.scenarios or ["none"])
    for _ in range(SAMPLES_PER_SCENE * STEPS_PER_SAMPLE):
        ego, poses, lights, active = traffic.ego, traffic.poses(), traffic.lights(), traffic.scenarios()
        touched |= {i for i in near_ego(ego, poses) if touches(ego, poses[i], sizes[i])}
        for i, agent in enumerate(traffic.agents):
            if agent.joining and i not in begun:
                begun.add(i)
                needed = needed_braking(ego, agent)
                room = f"{where}, agent {i}: {needed:.1f} m/s^2 needed"
                found.add("who cuts in or pulls out leaves room to brake", needed < MAY_NEED, room)
        traffic.step()
        for name in active:
            brake = (ego.speed - traffic.ego.speed) / STEP_SECONDS
            found.hardest_brakes[name] = max(found.hardest_brakes.get(name, 0.0), brake)
        for leg, before, after in zip(traffic.light_legs, lights, traffic.lights(), strict=True):
            if ego.s + EGO_BOX[1] < leg.stop_line <= traffic.ego.s + EGO_BOX[1]:
                crossed = before == after == "red"
                found.add("the expert crosses no red light", not crossed, f"{where}, {traffic.time:.2f} s")
    for i, agent in enumerate(scene.agents):
        found.add("the expert touches nobody, at every 0.25 s", i not in touched, f"{where}: {agent.kind} {i}")


def near_ego(ego: Ego, poses: np.ndarray) -> list[int]:
    return np.flatnonzero(np.hypot(poses[:, 0] - ego.x, poses[:, 1] - ego.y) < 12.0).tolist()


def touches(ego: Ego, pose: np.ndarray, half: tuple[float, float]) -> bool:
    rear, front, half_width = EGO_BOX
    middle = (rear + front) / 2
    box = np.array([[ego.x + middle * math.cos(ego.yaw), ego.y + middle * math.sin(ego.yaw), ego.yaw]])
    return bool(overlap(box, ((front - rear) / 2, half_width), pose[None, :3], half)[0])


def needed_braking(ego: Ego, agent: Agent) -> float:
    """Even braking, in m/s^2, that keeps the ego 2 m behind a vehicle that keeps its speed from now on."""
    gap = agent.s - agent.size[1] / 2 - ego.s - EGO_BOX[1] - 2.0
    return max(ego.speed - agent.speed, 0.0) ** 2 / (2 * max(gap, 0.1))


PAIRS = {
    "vehicles do not pass through crossing pedestrians": lambda kinds: (
        "crosser" in kinds and kinds & {"vehicle", "cyclist"}
    ),
    "cyclists do not ride through what is parked": lambda kinds: kinds >= {"cyclist", "parked"},
    "cyclists do not ride through others": lambda kinds: "cyclist" in kinds and not kinds & {"walker", "vehicle"},
    "vehicles do not pass through cyclists": lambda kinds: kinds == {"cyclist", "vehicle"},
    "vehicles do not pass through each other or what is parked": lambda kinds: (
        "vehicle" in kinds and kinds <= {"vehicle", "parked"}
    ),
}


def class_of(scene: Scene, i: int, moving: bool) -> str:
    agent = scene.agents[i]
    if agent.kind == "pedestrian":
        return "crosser" if agent.crossing else "walker"
    if agent.kind == "bicycle" and agent.rider:
        return "cyclist"
    return "vehicle" if moving or agent.direction else "parked"


def check_waiting(scene: Scene, found: Findings) -> None:
    """A crosser who stands still does not stand in a lane."""
    right, left = -LANE_WIDTH * SAME_LANES, LANE_WIDTH * scene.opposite_lanes
    for i, agent in enumerate(scene.agents):
        if agent.crossing:
            d = scene.road[:, i, 1]
            stands = np.append(np.diff(d) == 0, False)
            in_lane = bool((stands & (d > right - 0.6) & (d < left + 0.6)).any())
            found.add("crossing pedestrians do not wait in a lane", not in_lane, f"scene {scene.index}, agent {i}")


def close_pairs(scene: Scene, i: int, others: list[int]) -> list[int]:
    """The agents that come within 8 m of agent `i`."""
    if not others:
        return []
    apart = scene.poses[:, others, :2] - scene.poses[:, i, None, :2]
    return [j for j, near in zip(others, (np.hypot(*apart.transpose(2, 0, 1)) < 8.0).any(axis=0), strict=True) if near]


def passes_through(scene: Scene, i: int, j: int) -> bool:
    """Whether two agents' boxes overlap by more than 5 cm, at the recorded moments and halfway between them."""
    a, b = (halfway(scene.poses[:, k, :3]) for k in (i, j))
    return bool(overlap(a, half_size(scene, i), b, half_size(scene, j)).any())


def passes_along_the_road(scene: Scene, i: int, j: int) -> bool:
    """The same in the road's own coordinates, in which bends are straight."""
    apart = np.abs(scene.road[:, i] - scene.road[:, j])
    apart = np.concatenate([apart, (apart[1:] + apart[:-1]) / 2])
    reach = np.add(half_size(scene, i), half_size(scene, j)) - 0.05
    return bool((apart < reach).all(axis=1).any())


def hits_ego(scene: Scene, i: int) -> bool:
    rear, front, half_width = EGO_BOX
    ego = halfway(scene.ego[:, :3]).copy()
    middle, half_length = (rear + front) / 2, (front - rear) / 2
    ego[:, 0] += middle * np.cos(ego[:, 2])
    ego[:, 1] += middle * np.sin(ego[:, 2])
    agent = halfway(scene.poses[:, i, :3])
    return bool(overlap(ego, (half_length, half_width), agent, half_size(scene, i)).any())


def half_size(scene: Scene, i: int) -> tuple[float, float]:
    """Half the length and half the width; a pedestrian's body without its swinging limbs."""
    width, length, _ = scene.agents[i].size
    return (0.35, 0.35) if scene.agents[i].kind == "pedestrian" else (length / 2, width / 2)


def halfway(poses: np.ndarray) -> np.ndarray:
    """(2 T - 1, 3): x, y, yaw of the moments (T, 3) and of those halfway between."""
    step = np.diff(poses, axis=0)
    step[:, 2] = np.remainder(step[:, 2] + math.pi, 2 * math.pi) - math.pi
    full = np.empty((2 * len(poses) - 1, 3))
    full[::2], full[1::2] = poses, poses[:-1] + step / 2
    return full


def overlap(a: np.ndarray, half_a, b: np.ndarray, half_b) -> np.ndarray:
    """(T,) bool: whether boxes at x, y, yaw (T, 3) overlap by more than 5 cm, by the axes that could separate them."""
    apart, free = b[:, :2] - a[:, :2], np.zeros(len(a), dtype=bool)
    for pose in (a, b):
        for turn in (0.0, math.pi / 2):
            axis = np.stack([np.cos(pose[:, 2] + turn), np.sin(pose[:, 2] + turn)], axis=1)
            reach = -0.05
            for other, (half_length, half_width) in ((a, half_a), (b, half_b)):
                relative = other[:, 2] - (pose[:, 2] + turn)
                reach = reach + half_length * np.abs(np.cos(relative)) + half_width * np.abs(np.sin(relative))
            free |= np.abs((apart * axis).sum(axis=1)) >= reach
    return ~free


if __name__ == "__main__":
    main()
