"""A recorded drive, driven once more: what was around the ego at each plan. Nothing is planned again."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_scripts.world.agents import Agent
from data_scripts.world.drive import DRIVES_PER_SAMPLE, Diverged, DrivingWorld, in_frame_of
from data_scripts.world.folder import WORLD_VERSION
from data_scripts.world.ground import MAP_RANGE, GroundMap
from data_scripts.world.simulation import SAMPLE_SECONDS
from recipes.driving.drives import EXPERT_SECONDS, SETTINGS
from recipes.metrics.driving.driven_scenes import DrivenEvent, DrivenScene

SAME = 0.002  # metres, radians, m/s: records are rounded to less


@dataclass(frozen=True)
class Drive:
    """One scene as a policy drove it, and the size of the pictures that it was shown.

    Fields:
        place: of the record, for messages.
        trace: as `drive_scene` writes it.
    """

    place: str
    policy: str
    seed: int
    index: int
    image_size: tuple[int, int]
    scene: DrivenScene
    trace: list[dict]

    @property
    def slowed(self) -> float:
        """m/s by which the ego slowed down, all its braking together."""
        return float(np.maximum(-np.diff([moment["speed"] for moment in self.trace]), 0).sum())


@dataclass(frozen=True)
class Moment:
    """One plan and what is around the ego then. Metres and radians in the ego frame, x forward, y left.

    Fields:
        pictures: {camera: picture}.
        plan, expert: (6, 2): waypoints at 0.5 .. 3 s of the policy, and of the scene's own driver from here.
        agents: who is near.
        boxes: (len(agents), 5): x, y, yaw, length, width.
        lights: ((2, 2) ends of the ego's side of the stop line, colour) of each light that is near.
        ground: (polygon (n, 2), (red, green, blue) of 0 .. 255), in the order of painting.
        events: what happened until half a second from now, each with its (x, y).
        guard: the rule that brakes; "" none does; None: the policy has no guard.
        interventions: how often the guard began to brake until now.
    """

    time: float
    speed: float
    command: str
    pictures: dict
    plan: np.ndarray
    expert: np.ndarray
    agents: list[Agent]
    boxes: np.ndarray
    lights: list[tuple[np.ndarray, str]]
    ground: list[tuple[np.ndarray, tuple[int, int, int]]]
    events: list[tuple[DrivenEvent, np.ndarray]]
    guard: str | None
    interventions: int


def read_drives(folder: Path, policy: str) -> list[Drive]:
    """All drives of a policy, by the scenes' numbers.

    Raises:
        FileNotFoundError: nothing was driven there.
        ValueError: of another version of the world, or not records.
    """
    paths = sorted((folder / policy).glob("scene-*.json"))
    if not paths or not (folder / policy / SETTINGS).is_file():
        names = ", ".join(sorted({path.parent.name for path in folder.glob("*/scene-*.json")})) or "none"
        raise FileNotFoundError(f"{folder} holds no drives of {policy!r}; it has those of: {names}")
    settings = json.loads((folder / policy / SETTINGS).read_text(encoding="utf-8"))
    version = settings.get("world_version")
    if version != WORLD_VERSION:
        raise ValueError(
            f"{folder / policy} was driven in a world of version {version}, not {WORLD_VERSION}: drive again"
        )
    return [read_drive(path, tuple(settings["image_size"])) for path in paths]


def read_drive(path: Path, image_size: tuple[int, int]) -> Drive:
    record = json.loads(path.read_text(encoding="utf-8"))
    try:
        whose = record["policy"], record["seed"], record["index"]
        return Drive(str(path), *whose, image_size, DrivenScene.from_dict(record["scene"]), record["trace"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a record of recipes/drive.py: {error!r}") from error


def busiest(drives: list[Drive]) -> Drive:
    """The drive with the most events; among those with equally many, the one that braked most."""
    return max(drives, key=lambda drive: (len(drive.scene.events), drive.slowed))


class Replay:
    """The world, driven by the recorded plans.

    Attributes:
        world: as it is at plan `k`.
    """

    def __init__(self, drive: Drive):
        self.drive, self.world, self.k = drive, DrivingWorld(drive.image_size), 0
        self.world.reset(drive.seed, drive.index)
        self.ground = GroundMap(replace(self.world.scene, weather="clear"))  # in daylight
        self.world.follow(EXPERT_SECONDS)

    def __iter__(self) -> Iterator["Replay"]:
        """Itself, at each plan.

        Raises:
            ValueError: the recorded plans no longer give the recorded drive; names the file and the time.
        """
        drive, world = self.drive, self.world
        for self.k, recorded in enumerate(drive.trace):
            car = world.car
            then = [recorded[name] for name in ("x", "y", "yaw", "speed")]
            check_same(drive, world, [[car.x, car.y, car.yaw, car.speed]], [then])
            yield self
            try:
                stretch = world.step(recorded["plan"])
            except Diverged as error:
                raise ValueError(f"{drive.place}: {error}") from error
            known = drive.scene.motion[self.k * DRIVES_PER_SAMPLE :][:DRIVES_PER_SAMPLE]  # it ends with a hit
            check_same(drive, world, stretch.ego[: len(known)], known)

    def moment(self) -> Moment:
        """What a frame of the drawing shows."""
        drive, world, recorded = self.drive, self.world, self.drive.trace[self.k]
        poses = in_frame_of(world.car, world.traffic.poses()[:, :3])
        near = np.flatnonzero(np.hypot(*poses[:, :2].T) < MAP_RANGE)
        agents = [world.scene.agents[n] for n in near]
        sizes = np.array([[agent.size[1], agent.size[0]] for agent in agents]).reshape(-1, 2)
        happened = [event for event in drive.scene.events if event.time <= world.time + SAMPLE_SECONDS]
        rules = [(moment.get("guard") or {}).get("rule") for moment in drive.trace[: self.k + 1]]
        return Moment(
            time=world.time,
            speed=world.car.speed,
            command=recorded["command"],
            pictures=world.observe().pictures,
            plan=np.array(recorded["plan"]),
            expert=world.expert().future[:, :2],
            agents=agents,
            boxes=np.concatenate([poses[near], sizes], axis=-1),
            lights=lights_near(world),
            ground=ground_near(world, self.ground),
            events=[(event, points_in_frame(world, [(event.x, event.y)])[0]) for event in happened],
            guard=(rules[-1] or "") if "guard" in recorded else None,
            interventions=sum(
                rule is not None and rule != before for before, rule in zip([None, *rules], rules, strict=False)
            ),
        )

    def has_light_ahead(self) -> bool:
        """Whether the ego drives towards a light that the pictures can show."""
        return any(0 < leg.stop_line - self.world.traffic.ego.s < MAP_RANGE for leg in self.world.scene.light_legs)


def check_same(drive: Drive, world: DrivingWorld, ego, recorded) -> None:
    difference = np.abs(np.asarray(ego) - np.asarray(recorded)).max(initial=0.0)
    if not difference <= SAME:
        raise ValueError(
            f"{drive.place} no longer replays: at {world.time:.1f} s the car is {difference:.3g} off in"
            " place, heading or speed; drive the scene again"
        )


def points_in_frame(world: DrivingWorld, points) -> np.ndarray:
    """Points of the map (n, 2) in the ego frame."""
    points = np.asarray(points, dtype=float)
    return in_frame_of(world.car, np.concatenate([points, np.zeros((len(points), 1))], axis=-1))[:, :2]


def lights_near(world: DrivingWorld) -> list[tuple[np.ndarray, str]]:
    found, (right, _) = [], world.road.lanes
    for leg, colour in zip(world.scene.light_legs, world.traffic.lights(), strict=True):
        ends = points_in_frame(world, np.transpose(world.scene.path.at(leg.stop_line, np.array([right, 0.0]))[:2]))
        if (np.hypot(*ends.T) < MAP_RANGE).all():
            found.append((ends, colour))
    return found


def ground_near(world: DrivingWorld, ground: GroundMap) -> list[tuple[np.ndarray, tuple[int, int, int]]]:
    found, points = [], points_in_frame(world, ground.points)
    for start, end, colour in zip(ground.ends, ground.ends[1:], ground.colours, strict=False):
        polygon = points[start:end]
        if (polygon.min(axis=0) < MAP_RANGE).all() and (polygon.max(axis=0) > -MAP_RANGE).all():
            found.append((polygon, colour))
    return found
