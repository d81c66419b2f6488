"""One scene after the other, driven by one policy: the records, and the folder that they are written to."""

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_scripts.schema import shard_path
from data_scripts.world.drive import Diverged, DrivingWorld, Observation
from data_scripts.world.folder import WORLD_VERSION
from data_scripts.world.simulation import SAMPLE_SECONDS, simulate_scene
from recipes.driving.collect import SPLIT, recovery_row, write_scene_shard
from recipes.driving.judge import SceneJudge, replayed_scores
from recipes.driving.policies import PLANNER, Policy, PolicySpec, load_policy, new_guard
from recipes.metrics.driving.driven_scenes import DrivenScene
from recipes.planning.guard import GuardedPolicy
from smoldriver_common.processes import die_with_parent
from smoldriver_common.whole_files import write_json

EXPERT_SECONDS = 2.0  # of each scene, before the policy takes over: it then has a history
PLANS_EVERY = 6  # samples between the plans that are replayed
SETTINGS = "settings.json"


@dataclass(frozen=True)
class DriveOptions:
    """What the records of a run depend on beside the policy.

    Fields:
        seed: the world's.
        image_size: width and height of the pictures.
        plans: whether single plans are replayed too, for NAVSIM's sub-scores.
        collect: folder for recovery rows; None: no rows.
    """

    seed: int
    image_size: tuple[int, int]
    plans: bool = True
    collect: Path | None = None


def drive_scene(spec: PolicySpec, options: DriveOptions, folder: Path, index: int) -> None:
    """Drive a scene, and write its record (and its recovery rows, first).

    The record: seed, index, scenarios (what the ego has to deal with, see `Scene`), weather, policy, `scene` (the
    `DrivenScene`), `trace` (at 2 Hz: time, x, y, yaw, speed, command, plan, seconds that the plan took). Under a guard
    each moment of the trace also has `guard`, what it made of the plan (see `GuardState`), and the record's own
    `guard` has asked, unparsed (both counts) and interventions of the whole scene. Single plans are replayed without
    the guard. Plans are not rounded: driven again, they give the same trace.

    Raises:
        Diverged: a plan that cannot be driven; names scene and step.
    """
    policy, guard, world = load_policy(spec), new_guard(spec), world_of(options.image_size)
    plans = replayed_plans(policy, world, options.seed, index) if options.plans else []
    driver = policy if guard is None else GuardedPolicy(policy, guard)
    world.reset(options.seed, index)
    world.follow(EXPERT_SECONDS)
    judge, trace, rows = SceneJudge(world), [], []
    while not world.is_over and judge.ended is None:
        now = world.observe()
        begun = time.process_time()
        waypoints = planned(driver, now)
        moment = moment_of(world, now, waypoints, time.process_time() - begun)
        trace.append(moment if guard is None else {**moment, "guard": asdict(guard.state)})
        if options.collect is not None:
            rows.append(recovery_row(now, spec.name))
        judge.watch(world.step(waypoints))
    if options.collect is not None:
        write_scene_shard(options.collect, index, rows)
    scene = world.scene
    record = {"seed": options.seed, "index": index, "scenarios": scene.scenarios, "weather": scene.weather}
    record |= {"policy": spec.name, "scene": asdict(judge.result(plans)), "trace": trace}
    if guard is not None:
        interventions = [asdict(one) for one in guard.interventions]
        record["guard"] = {"asked": guard.asked, "unparsed": guard.unparsed.total(), "interventions": interventions}
    write_json(record_file(folder, index), record, indent=None)


def replayed_plans(policy: Policy, world: DrivingWorld, seed: int, index: int) -> list:
    """`PlanScores` of plans made on the way of the scene's own driver."""
    world.reset(seed, index)
    world.follow(EXPERT_SECONDS)
    scores = []
    while world.can_replay():
        scores.append(replayed_scores(world, planned(policy, world.observe())))
        world.follow(PLANS_EVERY / 2)
    return scores


def planned(policy: Policy, now: Observation) -> np.ndarray:
    """A policy's plan. What goes wrong in it names the scene and the step."""
    try:
        waypoints = policy.plan(now)
    except ValueError as error:
        raise Diverged(f"{now.world.place()}: {error}") from error
    if not np.isfinite(waypoints).all():
        raise Diverged(f"{now.world.place()}: the plan is not finite: {np.asarray(waypoints).tolist()}")
    return waypoints


def moment_of(world: DrivingWorld, now: Observation, waypoints: np.ndarray, seconds: float) -> dict:
    car = world.car
    return {
        "time": now.time,
        "x": round(car.x, 3),
        "y": round(car.y, 3),
        "yaw": round(car.yaw, 4),
        "speed": round(car.speed, 3),
        "command": now.command,
        "plan": np.asarray(waypoints, dtype=float).tolist(),
        "seconds": round(seconds, 4),
    }


@cache
def world_of(image_size: tuple[int, int]) -> DrivingWorld:
    return DrivingWorld(image_size)


def record_file(folder: Path, index: int) -> Path:
    return folder / f"scene-{index:05d}.json"


def scenes_in(seed: int, count: int, scenario: str | None) -> list[int]:
    """Numbers of the first scenes of a world.

    Args:
        scenario: of SCENARIOS: only scenes where the scene's own driver has to deal with it once a policy would drive.
    """
    if scenario is None:
        return list(range(count))
    begin, found, index = round(EXPERT_SECONDS / SAMPLE_SECONDS), [], 0
    with tqdm(total=count, unit=" scenes", desc=f"finding {scenario}", disable=None) as progress:
        while len(found) < count:
            if any(scenario in names for names in simulate_scene(seed, index).active[begin:]):
                found.append(index)
                progress.update()
            index += 1
    return found


@dataclass(frozen=True)
class Drives:
    """A policy, how it drives, and the folder of its records."""

    spec: PolicySpec
    options: DriveOptions
    folder: Path

    def missing(self, indices: list[int]) -> list[int]:
        """Scenes that have no record yet."""
        return [index for index in indices if not is_driven(self.options, self.folder, index)]


def drive_all(jobs: list[tuple[Drives, int]], workers: int) -> Iterator[None]:
    """Drive these scenes in this order; yields after each. The workers are the same for all policies: loading the
    libraries takes a worker as long as some scenes."""
    if workers == 1 or len(jobs) < 2:
        yield from map(drive_job, jobs)
        return
    spawn = multiprocessing.get_context("spawn")
    begins = {"initializer": begin_worker, "initargs": (os.getpid(),)}
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=spawn, **begins) as pool:
        yield from pool.map(drive_job, jobs)


def drive_job(job: tuple[Drives, int]) -> None:
    drives, index = job
    drive_scene(drives.spec, drives.options, drives.folder, index)


def begin_worker(parent: int) -> None:
    """One thread per worker: more would only wait for each other. Torch, which is not loaded yet, reads it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    die_with_parent(parent)


def is_driven(options: DriveOptions, folder: Path, index: int) -> bool:
    has_rows = options.collect is None or shard_path(options.collect, SPLIT, index).is_file()
    return has_rows and record_file(folder, index).is_file()


def begin_folder(folder: Path, spec: PolicySpec, options: DriveOptions) -> None:
    """Make a policy's folder, or accept one that was begun alike.

    Raises:
        ValueError: its records are of another world, picture size or policy.
    """
    settings = {
        "world_version": WORLD_VERSION,
        "seed": options.seed,
        "image_size": list(options.image_size),
        "plans": options.plans,
        "kind": spec.kind,
        "weights": digest_of(spec),
        "guard": [digest_of_files(folder_weights(spec.guard)), spec.guard_rate] if spec.guard else None,
    }
    path = folder / SETTINGS
    if not path.is_file():
        if any(folder.glob("scene-*.json")):
            raise ValueError(f"{folder} holds records of unknown origin (no {SETTINGS}): delete it")
        write_json(path, settings)
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    for name, value in settings.items():
        if begun.get(name) != value:
            raise ValueError(
                f"{folder} holds drives with {name} {begun.get(name)}, not {value}: delete it or choose another"
                " --output-dir"
            )


def digest_of(spec: PolicySpec) -> str:
    """Of a learned policy's own weights; "" for the others."""
    if not spec.source:
        return ""
    return digest_of_files(folder_weights(spec.source) if spec.kind == PLANNER else [Path(spec.source)])


def folder_weights(folder: str) -> list[Path]:
    return sorted(Path(folder).glob("*.safetensors"))


def digest_of_files(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def read_records(folder: Path, indices: list[int]) -> list[dict]:
    return [json.loads(record_file(folder, index).read_text(encoding="utf-8")) for index in indices]


def read_all_records(folder: Path) -> list[dict]:
    """Every record of a policy's folder, in the order of the scenes."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("scene-*.json"))]


def scenes_of(records: list[dict]) -> list[DrivenScene]:
    return [DrivenScene.from_dict(record["scene"]) for record in records]
