"""Make a synthetic driving world: six-camera pictures, nuScenes tables and DriveLM questions, exact ground truth
included.

    python data_scripts/synthesize_world.py --output-dir outputs/demo/world --scenes 400 --seed 0

The same seed gives the same bytes, with any number of workers; a world of more scenes begins with the scenes of a
smaller one. An interrupted run resumes when it is started again with the same options. The folder then holds

    v1.0-mini/*.json      nuScenes' tables, and beside them splits.json and route.json (see world/nuscenes.py)
    samples/CAM_*/*.jpg   the pictures (see world/render.py)
    samples/LIDAR_TOP/*   sparse lidar points of each key frame (see world/lidar.py)
    maps/empty.png        nuScenes' devkit wants a map mask; this one is empty
    drivelm.json          questions and answers in DriveLM's nesting (see world/questions.py)
    captions.json         what each single view shows (see world/captions.py)
    world.json            version, options, counts and the balance of the answers; written last

`python data_scripts/world/check.py` checks answers and traffic against the simulated states, `make devkit-check` the
tables with nuscenes-devkit.

The program makes up the pictures and texts: no data set is needed, and only the project's licence applies.
"""

import argparse
import io
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data_scripts.world.cameras import CAMERAS
from data_scripts.world.captions import captions
from data_scripts.world.drivelm import drivelm_scene
from data_scripts.world.folder import WORLD_FILE, WORLD_VERSION, read_json
from data_scripts.world.ground import GroundMap
from data_scripts.world.lidar import LIDAR, scan
from data_scripts.world.nuscenes import (
    MAP_FILE,
    SCENE_TABLES,
    SPLIT,
    VERSION,
    image_file,
    lidar_file,
    route_rows,
    scene_name,
    scene_tables,
    shared_tables,
    token,
)
from data_scripts.world.questions import scene_questions
from data_scripts.world.render import Renderer, to_jpeg
from data_scripts.world.report import (
    add_statistics,
    balance_of,
    counts_of,
    empty_statistics,
    print_report,
    statistics,
    write_preview,
)
from data_scripts.world.sight import frame_of
from data_scripts.world.simulation import SAMPLES_PER_SCENE, simulate_scene
from smoldriver_common.command_line import print_every_text, stopped_in_one_line, whole_number
from smoldriver_common.processes import die_with_parent
from smoldriver_common.whole_files import LOCK, sole_writer, written_whole

WORK = "work"  # finished scenes of an unfinished world
MAX_SCENES, MAX_SEED = 100_000, 9_999
MIN_WIDTH, MAX_WIDTH, MIN_HEIGHT, MAX_HEIGHT = 64, 1600, 36, 900


@dataclass(frozen=True)
class Options:
    """What a world's bytes depend on."""

    scenes: int
    seed: int
    image_size: tuple[int, int]  # width, height
    frames_every: int

    def as_json(self) -> dict:
        return {"version": WORLD_VERSION, **vars(self), "image_size": list(self.image_size)}

    def times(self) -> range:
        """The moments of a scene that become key frames."""
        return range(0, SAMPLES_PER_SCENE, self.frames_every)


def main() -> None:
    args = parse_args()
    print_every_text()
    try:
        synthesize(args.output_dir, args.scenes, args.seed, args.image_size, args.frames_every, args.workers)
        if args.preview:
            write_preview(args.output_dir, args.preview)
    except (ValueError, OSError) as error:
        sys.exit(f"synthesize_world: {error}")
    except (KeyboardInterrupt, BrokenProcessPool):
        sys.exit("synthesize_world: interrupted, or a worker was killed; the same command resumes it")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--scenes", type=whole_number(1, MAX_SCENES), default=400)
    parser.add_argument("--seed", type=whole_number(0, MAX_SEED), default=0)
    parser.add_argument("--image-size", type=image_size, default=(160, 90), help="WIDTHxHEIGHT, as in 160x90")
    parser.add_argument(
        "--frames-every",
        type=whole_number(1, 8),
        default=3,
        help="keep every N-th of the 40 moments of a scene (2 Hz) as a key frame: neighbours look alike",
    )
    parser.add_argument("--preview", type=Path, help="also write this PNG: four frames of the world, boxes and names")
    parser.add_argument("--workers", type=whole_number(1, 256), default=os.cpu_count() or 1)
    return parser.parse_args()


def image_size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, as in 160x90") from None
    if not (MIN_WIDTH <= width <= MAX_WIDTH and MIN_HEIGHT <= height <= MAX_HEIGHT):
        allowed = f"{MIN_WIDTH}x{MIN_HEIGHT} to {MAX_WIDTH}x{MAX_HEIGHT}"
        raise argparse.ArgumentTypeError(f"{text} is out of range: choose {allowed}")
    return width, height


def synthesize(folder: Path, scenes: int, seed: int, size: tuple[int, int], every: int, workers: int) -> dict:
    """Make the world, or what is missing of it, and return `world.json`'s content.

    Raises:
        ValueError: the folder holds something else: a world of other options or version, or other files.
        OSError: the disk is full, the folder cannot be written, or another process is writing it.
    """
    options = Options(scenes, seed, size, every)
    finished = check_folder(folder, options)
    if finished:
        shutil.rmtree(folder / WORK, ignore_errors=True)
        print(f"{folder} is finished already")
        return finished
    with sole_writer(folder):
        return make_world(folder, options, workers)


def make_world(folder: Path, options: Options, workers: int) -> dict:
    """`synthesize`, with the folder held by this process."""
    (folder / WORK).mkdir(exist_ok=True)
    write_bytes(folder / WORK / "options.json", json.dumps(options.as_json()).encode())
    for sensor in (*CAMERAS, LIDAR):
        (folder / "samples" / sensor).mkdir(parents=True, exist_ok=True)
    scenes = options.scenes
    missing = [index for index in range(scenes) if not scene_file(folder, index).exists()]
    begun, rendering = time.perf_counter(), 0.0
    with tqdm(total=scenes, initial=scenes - len(missing), unit=" scenes", desc="world", disable=None) as bar:
        for spent in made_scenes(folder, options, missing, workers):
            rendering += spent
            bar.update()
    seconds = time.perf_counter() - begun
    world = assemble(folder, options)
    frames = len(missing) * len(options.times())
    if missing:
        print(
            f"made {frames} key frames in {seconds:.1f} s: {frames / seconds:.0f} per second with {workers} "
            f"worker(s); rendering alone: {frames / rendering:.0f} per second of one core's time"
        )
    print_report(world)
    return world


def check_folder(folder: Path, options: Options) -> dict | None:
    """`world.json` of a finished world of these options; None where the folder is free, or holds a part of it."""
    for path in (folder / WORLD_FILE, folder / WORK / "options.json"):
        if not path.exists():
            continue
        found = read_json(path)
        old = found.get("options", found)
        for name, value in options.as_json().items():
            if old.get(name) != value:
                raise ValueError(
                    f"{folder} holds a world with {name} {old.get(name)}, not {value}: "
                    "choose another --output-dir, or delete it"
                )
        if path.name == WORLD_FILE:
            return found
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    if folder.exists() and not (folder / WORK).exists() and any(path.name != LOCK for path in folder.iterdir()):
        raise ValueError(f"{folder} holds other files: choose an empty --output-dir")
    return None


def write_bytes(path: Path, data: bytes) -> None:
    with written_whole(path) as aside:
        aside.write_bytes(data)


def scene_file(folder: Path, index: int) -> Path:
    return folder / WORK / f"scene-{index:05d}.txt"


def made_scenes(folder: Path, options: Options, missing: list[int], workers: int) -> Iterator[float]:
    """Make the missing scenes; yields the processor seconds spent on the pictures of each."""
    make = partial(make_scene, folder, options)
    if workers == 1 or len(missing) < 2:
        yield from map(make, missing)
        return
    spawn = multiprocessing.get_context("spawn")
    end_with_us = {"initializer": die_with_parent, "initargs": (os.getpid(),)}
    with ProcessPoolExecutor(min(workers, len(missing)), mp_context=spawn, **end_with_us) as pool:
        yield from pool.map(make, missing)


@cache
def renderer_of(width: int, height: int) -> Renderer:
    return Renderer(width, height)


def make_scene(folder: Path, options: Options, index: int) -> float:
    """Render one scene and write its pictures and points, then its file in the work folder, which says that the scene
    is whole.

    Returns the processor seconds it took to render and compress the pictures. The file holds one line for each table:
    its name, a tab and the rows as JSON without the brackets around them.
    """
    renderer = renderer_of(*options.image_size)
    scene = simulate_scene(options.seed, index)
    ground = GroundMap(scene)
    frames, points_on, rendering = [], [], 0.0
    for t in options.times():
        begun = time.process_time()
        images, look = renderer.render(scene, ground, t)
        files = [to_jpeg(image) for image in images]
        rendering += time.process_time() - begun
        frames.append(frame_of(scene, t, look))
        for camera, data in zip(CAMERAS, files, strict=True):
            (folder / image_file(options.seed, index, t, camera)).write_bytes(data)
        scanned = scan(look.things, scene.asphalt)
        (folder / lidar_file(options.seed, index, t)).write_bytes(scanned.points.tobytes())
        points_on.append(scanned.on_agent)
    questions = scene_questions(scene, frames)
    tables = scene_tables(scene, frames, points_on, *options.image_size)
    tables["route"] = route_rows(scene, list(options.times()))
    tables["drivelm"] = drivelm_scene(scene, frames, questions)
    tables["captions"] = {token("sample", scene.seed, index, frame.t): captions(scene, frame) for frame in frames}
    lines = [f"{name}\t{json.dumps(rows)[1:-1]}" for name, rows in tables.items()]
    lines.append(f"statistics\t{json.dumps(statistics(scene, frames, questions))}")
    write_bytes(scene_file(folder, index), "\n".join(lines).encode())
    return rendering


def assemble(folder: Path, options: Options) -> dict:
    """Join the scenes' files to the world's; `world.json` is written last, and then the work folder goes."""
    (folder / VERSION).mkdir(exist_ok=True)
    mask = io.BytesIO()
    Image.new("L", (64, 64)).save(mask, "PNG")
    write_bytes(folder / MAP_FILE, mask.getvalue())
    total = join_scenes(folder, options.scenes)
    for name, rows in shared_tables(options.seed, options.scenes, *options.image_size).items():
        write_bytes(folder / VERSION / f"{name}.json", json.dumps(rows, indent=0).encode())
    names = [scene_name(options.seed, index) for index in range(options.scenes)]
    write_bytes(folder / VERSION / "splits.json", json.dumps({SPLIT: names}, indent=0).encode())
    world = {"options": options.as_json(), "counts": counts_of(total), "balance": balance_of(total)}
    write_bytes(folder / WORLD_FILE, json.dumps(world, indent=1).encode())
    shutil.rmtree(folder / WORK)
    return world


def join_scenes(folder: Path, scenes: int) -> dict:
    """Write the tables, `route.json`, `drivelm.json` and `captions.json` of all scenes; returns their statistics,
    added up."""
    brackets = dict.fromkeys(SCENE_TABLES, "[]") | dict.fromkeys(("route", "drivelm", "captions"), "{}")
    paths = {name: folder / VERSION / f"{name}.json" for name in (*SCENE_TABLES, "route")}
    paths |= {name: folder / f"{name}.json" for name in ("drivelm", "captions")}
    total = empty_statistics()
    with ExitStack() as stack:
        files = {}
        for name, path in paths.items():
            aside = stack.enter_context(written_whole(path))
            files[name] = stack.enter_context(aside.open("w", encoding="utf-8"))
            files[name].write(brackets[name][0])
        for index in range(scenes):
            for line in scene_file(folder, index).read_text(encoding="utf-8").split("\n"):
                name, _, rows = line.partition("\t")
                if name == "statistics":
                    add_statistics(total, json.loads(rows))
                else:
                    files[name].write((",\n" if index else "") + rows)
        for name, file in files.items():
            file.write(brackets[name][1] + "\n")
    return total


if __name__ == "__main__":
    with stopped_in_one_line("synthesize_world"):
        main()
