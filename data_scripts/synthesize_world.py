"""Make a synthetic driving world: six-camera pictures, nuScenes tables and DriveLM questions, exact ground truth
included.

    python data_scripts/synthesize_world.py --output-dir outputs/demo/world --scenes 400 --seed 0

The same seed gives the same bytes, with any number of workers; a world of more scenes begins with the scenes of a
smaller one. An interrupted run goes on when it is started again with the same options. The folder then holds

    v1.0-mini/*.json      nuScenes' tables (see world_nuscenes.py)
    samples/CAM_*/*.jpg   the pictures (see world_render.py)
    maps/empty.png        nuScenes' devkit wants a map mask; this one is empty
    drivelm.json          questions and answers in DriveLM's nesting (see world_questions.py)
    captions.json         what each single view shows (see world_captions.py)
    world.json            version, options, counts and the balance of the answers; written last

The pictures and texts are made up by this program: no data set is needed, and no licence but the project's applies.
"""

import argparse
import io
import json
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from data_scripts.world.captions import captions
from data_scripts.world.folder import WORLD_FILE, WORLD_VERSION, read_json
from data_scripts.world.nuscenes import (
    MAP_FILE,
    SCENE_TABLES,
    VERSION,
    image_file,
    scene_tables,
    shared_tables,
    token,
)
from data_scripts.world.questions import Seen, View, scene_questions, view_of
from data_scripts.world.render import CAMERAS, GroundMap, Renderer, to_jpeg
from data_scripts.world.report import (
    add_statistics,
    balance_of,
    counts_of,
    empty_statistics,
    print_report,
    statistics,
    write_preview,
)
from data_scripts.world.simulation import SAMPLES_PER_SCENE, simulate_scene
from smoldriver_common.command_line import whole_number
from smoldriver_common.processes import die_with_parent
from smoldriver_common.whole_files import LOCK, sole_writer, written_whole

WORK = "work"  # finished scenes of an unfinished world
MAX_SCENES, MAX_SEED = 100_000, 9_999
MIN_WIDTH, MAX_WIDTH, MIN_HEIGHT, MAX_HEIGHT = 64, 1600, 36, 900
QUESTION_DEFAULTS = {"C": None, "con_up": None, "con_down": None, "cluster": None, "layer": None}


def main() -> None:
    args = parse_args()
    try:
        synthesize(args.output_dir, args.scenes, args.seed, args.image_size, args.frames_every, args.workers)
        if args.preview:
            write_preview(args.output_dir, args.preview)
    except (ValueError, OSError) as error:
        sys.exit(f"synthesize_world: {error}")
    except (KeyboardInterrupt, BrokenProcessPool):
        sys.exit("synthesize_world: interrupted, or a worker was killed; the same command goes on where it stopped")


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
        help="keep each N-th of the 40 moments of a scene (2 Hz) as a key frame: neighbours look alike",
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
    options = {
        "version": WORLD_VERSION,
        "scenes": scenes,
        "seed": seed,
        "image_size": list(size),
        "frames_every": every,
    }
    finished = check_folder(folder, options)
    if finished:
        shutil.rmtree(folder / WORK, ignore_errors=True)
        print(f"{folder} is finished already")
        return finished
    with sole_writer(folder):
        return make_world(folder, options, workers)


def make_world(folder: Path, options: dict, workers: int) -> dict:
    """`synthesize`, of a folder that is this process's."""
    scenes, seed, size, every = (options[name] for name in ("scenes", "seed", "image_size", "frames_every"))
    (folder / WORK).mkdir(exist_ok=True)
    write_bytes(folder / WORK / "options.json", json.dumps(options).encode())
    for camera in CAMERAS:
        (folder / "samples" / camera).mkdir(parents=True, exist_ok=True)
    missing = [index for index in range(scenes) if not scene_file(folder, index).exists()]
    begun, rendering = time.perf_counter(), 0.0
    with tqdm(total=scenes, initial=scenes - len(missing), unit=" scenes", desc="world", disable=None) as bar:
        for spent in made_scenes(folder, missing, seed, size, every, workers):
            rendering += spent
            bar.update()
    seconds = time.perf_counter() - begun
    world = assemble(folder, options)
    frames = len(missing) * len(range(0, SAMPLES_PER_SCENE, every))
    if missing:
        print(
            f"made {frames} key frames in {seconds:.1f} s: {frames / seconds:.0f} a second with {workers} worker(s); "
            f"rendering alone: {frames / rendering:.0f} a second of one core's time"
        )
    print_report(world)
    return world


def check_folder(folder: Path, options: dict) -> dict | None:
    """The finished world of these options that the folder holds, or None where it may be made there."""
    for path in (folder / WORLD_FILE, folder / WORK / "options.json"):
        if not path.exists():
            continue
        found = read_json(path)
        old = found.get("options", found)
        for name, value in options.items():
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


def made_scenes(folder: Path, missing: list[int], seed: int, size, every: int, workers: int):
    """Make the missing scenes; yields the processor seconds spent on the pictures of each."""
    jobs = [(folder, index, seed, size, every) for index in missing]
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield make_scene(job)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=spawn, initializer=die_with_parent) as pool:
        yield from pool.map(make_scene, jobs)


@cache
def renderer_of(width: int, height: int) -> Renderer:
    return Renderer(width, height)


def make_scene(job: tuple) -> float:
    """Render one scene and write its pictures, then its file in the work folder, which says that it is whole.

    Returns the processor seconds it took to render and compress the pictures. The file holds one line for each table:
    its name, a tab and the rows as JSON without the brackets around them.
    """
    folder, index, seed, size, every = job
    renderer = renderer_of(*size)
    scene = simulate_scene(seed, index)
    ground = GroundMap(scene)
    views, rendering = [], 0.0
    for t in range(0, SAMPLES_PER_SCENE, every):
        begun = time.process_time()
        images, look = renderer.render(scene, ground, t)
        files = [to_jpeg(image) for image in images]
        rendering += time.process_time() - begun
        views.append(view_of(scene, t, look))
        for camera, data in zip(CAMERAS, files, strict=True):
            (folder / image_file(seed, index, t, camera)).write_bytes(data)
    questions = scene_questions(scene, views)
    lines = [f"{name}\t{json.dumps(rows)[1:-1]}" for name, rows in scene_tables(scene, views, *size).items()]
    lines.append(f"drivelm\t{json.dumps(drivelm_scene(scene, views, questions))[1:-1]}")
    seen = {token("sample", scene.seed, scene.index, view.t): captions(scene, view) for view in views}
    lines.append(f"captions\t{json.dumps(seen)[1:-1]}")
    lines.append(f"statistics\t{json.dumps(statistics(views, questions))}")
    write_bytes(scene_file(folder, index), "\n".join(lines).encode())
    return rendering


def drivelm_scene(scene, views: list[View], questions) -> dict:
    """{scene token: scene} in DriveLM's nesting."""
    frames = {}
    for view, asked in zip(views, questions, strict=True):
        frames[token("sample", scene.seed, scene.index, view.t)] = {
            "key_object_infos": {o.tag: object_info(o) for o in view.seen if o.tag},
            "QA": {
                task: [{"Q": question, "A": answer, **QUESTION_DEFAULTS} for question, answer in pairs]
                for task, pairs in asked.items()
            },
            "image_paths": {
                camera: f"../nuscenes/{image_file(scene.seed, scene.index, view.t, camera)}" for camera in CAMERAS
            },
        }
    return {token("scene", scene.seed, scene.index): {"scene_description": scene.description, "key_frames": frames}}


def object_info(o: Seen) -> dict:
    category = {"traffic light": "Traffic element", "pedestrian": "Pedestrian"}.get(o.kind, "Vehicle")
    if o.kind in ("traffic cone", "barrier"):
        category = "Traffic element"
    status = None if not o.status else "Moving" if o.status == "moving" else "Stationary"
    return {
        "Category": category,
        "Status": status,
        "Visual_description": f"{o.named.capitalize()}.",
        "2d_bbox": list(o.box),
    }


def assemble(folder: Path, options: dict) -> dict:
    """Join the scenes' files to the world's; `world.json` is written last, and then the work folder goes."""
    version_folder = folder / VERSION
    version_folder.mkdir(exist_ok=True)
    (folder / MAP_FILE).parent.mkdir(exist_ok=True)
    mask = io.BytesIO()
    Image.new("L", (64, 64)).save(mask, "PNG")
    write_bytes(folder / MAP_FILE, mask.getvalue())

    brackets = dict.fromkeys(SCENE_TABLES, "[]") | {"drivelm": "{}", "captions": "{}"}
    paths = {name: version_folder / f"{name}.json" for name in SCENE_TABLES}
    paths |= {name: folder / f"{name}.json" for name in ("drivelm", "captions")}
    total, first = empty_statistics(), True
    with ExitStack() as stack:
        files = {}
        for name, path in paths.items():
            aside = stack.enter_context(written_whole(path))
            files[name] = stack.enter_context(aside.open("w", encoding="utf-8"))
            files[name].write(brackets[name][0])
        for index in range(options["scenes"]):
            for line in scene_file(folder, index).read_text(encoding="utf-8").split("\n"):
                name, _, rows = line.partition("\t")
                if name == "statistics":
                    add_statistics(total, json.loads(rows))
                else:
                    files[name].write(("" if first else ",\n") + rows)
            first = False
        for name, file in files.items():
            file.write(brackets[name][1] + "\n")
    shared = shared_tables(*options["image_size"])
    logs = [token("log", options["seed"], index) for index in range(options["scenes"])]
    shared["map"] = [{"token": token("map"), "log_tokens": logs, "category": "semantic_prior", "filename": MAP_FILE}]
    for name, rows in shared.items():
        write_bytes(version_folder / f"{name}.json", json.dumps(rows, indent=0).encode())
    world = {"options": options, "counts": counts_of(total), "balance": balance_of(total)}
    write_bytes(folder / WORLD_FILE, json.dumps(world, indent=1).encode())
    shutil.rmtree(folder / WORK)
    return world


if __name__ == "__main__":
    main()
