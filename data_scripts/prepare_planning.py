"""nuScenes tables (+ DriveLM questions) -> Parquet shards of scene rows with ego motion, for a planner.

    python data_scripts/prepare_planning.py --nuscenes data/nuscenes --output-dir data/planning
    python data_scripts/prepare_planning.py --nuscenes outputs/world --json outputs/world/drivelm.json \\
        --output-dir outputs/planning --object-tags drop

Source: nuScenes v1.0 (https://www.nuscenes.org, non-commercial terms; v1.0-mini, v1.0-trainval) or a synthetic world.
A world made with `--frames-every 1` has the most rows. `--nuscenes` is the folder that holds `v1.0-trainval/` and
`samples/CAM_FRONT/...`. Every key frame becomes a row, whether DriveLM asks about it or not. `PLANNING_FEATURES` of
`schema.py` lists the columns; `sources/nuscenes_tables.py` says how they are made. A scene goes to train, eval or test
by the hash of its token, as in `prepare_drivelm.py`: one model may be trained on both folders. `recipes/sft_qlora.py`
trains on these rows too and leaves out the frames without questions.

Run it again after a crash or a kill: finished shards are kept and the result is the same to the byte.
"""

import argparse
import hashlib
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from data_scripts.prepare_drivelm import add_row_options, frame_row, plan_splits
from data_scripts.schema import PLANNING_ROW
from data_scripts.shards import format_report, write_splits
from data_scripts.sources.camera_images import read_image_file
from data_scripts.sources.drivelm_json import path_below, read_drivelm
from data_scripts.sources.nuscenes_tables import ROUTE_FILE, EgoMotion, NuScenesTables
from smoldriver_common.command_line import errors_in_one_line

FORMAT = 2  # raised when the same input would give other rows
TABLES = (
    *("scene", "sample", "sample_data", "ego_pose", "sample_annotation"),
    *("instance", "category", "sensor", "calibrated_sensor"),
)


def planning_columns(motion: EgoMotion) -> dict:
    """The `PLANNING_FEATURES` of a key frame."""
    return {
        "timestamp": motion.timestamp,
        "ego_history": [list(pose) for pose in motion.history],
        "ego_history_mask": motion.history_mask,
        "ego_future": [list(pose) for pose in motion.future],
        "ego_future_mask": motion.future_mask,
        "speed": motion.speed,
        "command": motion.command,
        "command_source": motion.command_source,
        "scenario": motion.scenario,
        "agents": [asdict(agent) for agent in motion.agents],
    }


def key_frames(tables: NuScenesTables, asked: dict[str, dict]) -> list[dict]:
    """Every key frame as `prepare_drivelm.frame_row` takes it; questions of the frames that DriveLM asks about."""
    frames = []
    for scene_token in tables.scenes:
        for token in tables.sample_tokens(scene_token):
            drivelm = asked.get(token, {})
            pictures = {camera: path_below(path) for camera, path in tables.pictures[token].items()}
            frames.append(
                {
                    "scene_token": scene_token,
                    "frame_token": token,
                    "scene_description": drivelm.get("scene_description"),
                    "image_paths": pictures,
                    "qa": drivelm.get("qa", []),
                    "dropped": drivelm.get("dropped", Counter()),
                }
            )
    return frames


def prepare(
    *,
    nuscenes: Path,
    nuscenes_version: str | None,
    json: list[Path],
    output_dir: Path,
    object_tags: str,
    image_height: int | None,
    split: str,
    workers: int,
    shard_size: int,
) -> dict:
    """Do what the command line asks for, whose options these are; returns the manifest."""
    tables = NuScenesTables(nuscenes, nuscenes_version)
    asked, digests = read_drivelm(json, object_tags == "drop", keep_unlabelled=False)
    unknown = [frame["frame_token"] for frame in asked if frame["frame_token"] not in tables.samples]
    if asked and len(unknown) == len(asked):
        raise ValueError(
            f"no frame of --json is in {tables.folder} (for example {unknown[0]}): are they of one version?"
        )
    frames = key_frames(tables, {frame["frame_token"]: frame for frame in asked})
    if not any((nuscenes / path).is_file() for frame in frames for path in frame["image_paths"].values()):
        tried = next((path for frame in frames for path in frame["image_paths"].values()), "none named")
        raise FileNotFoundError(f"no picture of the tables lies under --nuscenes {nuscenes} (such as {tried})")
    if unknown:
        print(f"{len(unknown)} of the {len(asked)} frames of --json are not in {tables.folder}: left out")

    def read_image(frame: dict, camera: str) -> bytes:
        return read_image_file(nuscenes, frame["image_paths"][camera])

    def make_row(frame: dict) -> tuple[dict | None, dict]:
        row, notes = frame_row(frame, read_image, image_height, strict=False, unasked=True)
        return row and {**row, **planning_columns(tables.motion(frame["frame_token"]))}, notes

    return write_splits(
        output_dir,
        plan_splits(frames, split),
        make_row,
        source={
            "tables sha256": {path.name: _sha256(path) for path in table_files(tables.folder)},
            "json sha256": digests,
            "nuscenes": str(nuscenes),
        },
        options={
            "format": FORMAT,
            "planning": True,
            "object_tags": object_tags,
            "image_height": image_height,
            "split": split,
            "shard_size": shard_size,
        },
        workers=workers,
        frames_per_shard=shard_size,
        features=PLANNING_ROW,
    )


def table_files(folder: Path) -> list[Path]:
    """The files that rows depend on."""
    route = folder / ROUTE_FILE
    return [folder / f"{name}.json" for name in TABLES] + ([route] if route.is_file() else [])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="nuScenes tables -> Parquet shards of scene rows with ego motion.")
    add = parser.add_argument
    add("--nuscenes", type=Path, required=True, help="folder that holds v1.0-trainval/ and samples/CAM_FRONT/...")
    add("--nuscenes-version", help="folder of the tables (default: the only one there is)")
    add("--json", type=Path, nargs="+", default=[], help="DriveLM files with questions about some of the key frames")
    add_row_options(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    with errors_in_one_line("prepare_planning"):
        manifest = prepare(**vars(arguments))
    print(format_report(manifest))
    if not any(count["frames"] for count in manifest["splits"].values()):
        sys.exit("prepare_planning: not one frame was usable, see the report above")


if __name__ == "__main__":
    main()
