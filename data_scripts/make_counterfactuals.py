"""Counterfactual pairs of the synthetic world -> Parquet shards of scene rows with ego motion, two rows per pair.

    python data_scripts/make_counterfactuals.py --output-dir outputs/counterfactuals --scenes 100 --seed 1009

A pair is one moment twice: as it was, and with a light switched, the leader removed, a stopped car put into the lane
or a crossing pedestrian removed (see `world/counterfactuals.py`). Both rows have the same time, ego status, history
and command. The pictures differ only where they must, and `ego_future` is what the expert does next in each. `--seed`
is a world that no model learned from. `recipes/evaluate_pairs.py` measures planners on the folder; one of another
seed, made with `--split train`, is to learn from. It holds

    test/shard-*.parquet  rows as `prepare_planning.py` writes them, without questions; `train/` with `--split train`
    pairs.parquet         which rows make a pair: pair, kind, scene_token, the frame tokens as_it_was and changed, and
                          wanted, the metres by which the expert drives further in the changed version
    manifest.json         options, counts, and how many pairs there are and were left out, by kind

Run it again after a kill: finished shards are kept and the result is the same to the byte. The program makes up the
pictures: no data set is needed, and only the project's licence applies.
"""

import argparse
import math
import sys
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from data_scripts.prepare_planning import planning_columns
from data_scripts.schema import PLANNING_ROW
from data_scripts.shards import format_report, write_splits
from data_scripts.sources.nuscenes_tables import HISTORY, Agent, EgoMotion, Pose
from data_scripts.synthesize_world import MAX_SCENES, MAX_SEED, image_size, renderer_of
from data_scripts.world.cameras import CAMERAS
from data_scripts.world.counterfactuals import Pair, scene_at, scene_pairs
from data_scripts.world.drive import in_frame_of
from data_scripts.world.expert import ExpertDrive
from data_scripts.world.folder import WORLD_VERSION
from data_scripts.world.ground import GroundMap
from data_scripts.world.nuscenes import ANNOTATION_RANGE, CATEGORIES, image_file, route_command, timestamp, token
from data_scripts.world.render import Renderer, to_jpeg
from data_scripts.world.sight import frame_of
from data_scripts.world.simulation import SAMPLE_SECONDS
from data_scripts.world.traffic import Ego
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line, whole_number
from smoldriver_common.whole_files import written_whole

FORMAT = 1  # raised when the same options would give other rows
SHARD_SIZE = 64
TEST = "test"
VERSIONS = ("as_it_was", "changed")
PAIRS_FILE = "pairs.parquet"
PAIRS_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("pair", "kind", "scene_token", *VERSIONS)] + [("wanted", pa.float64())]
)


@dataclass(frozen=True)
class PlannedRow:
    """A row to be made: the version of a scene's pair. With `pair` None it only reports what was left out."""

    index: int
    pair: int | None
    version: str | None
    left_out: Counter  # by (kind, reason)


def make(output_dir: Path, scenes: int, seed: int, size: tuple[int, int], split: str = TEST) -> dict:
    """Do what the command line asks for; returns the manifest."""
    renderer = renderer_of(*size)
    pairs_of = lru_cache(2)(partial(scene_pairs, seed, renderer=renderer))  # rows come scene by scene
    planned, entries = [], []
    for index in tqdm(range(scenes), unit=" scenes", desc="finding pairs", disable=None):
        found = pairs_of(index)
        planned.append(PlannedRow(index, None, None, found.left_out))
        for place, pair in enumerate(found.pairs):
            planned += [PlannedRow(index, place, version, Counter()) for version in VERSIONS]
            entries.append(pair_entry(pair))

    def make_row(row: PlannedRow) -> tuple[dict | None, dict]:
        if row.pair is None:
            return None, {"pairs left out": Counter({f"{kind}: {why}": n for (kind, why), n in row.left_out.items()})}
        found = pairs_of(row.index)
        pair = found.pairs[row.pair]
        notes = {"pairs": Counter({pair.kind: 1})} if row.version == VERSIONS[0] else {}
        return scene_row(pair, row.version, renderer, found.ground), notes

    options = {"format": FORMAT, "planning": True, "split": split, "scenes": scenes, "image_size": list(size)}
    manifest = write_splits(
        output_dir,
        {split: planned},
        make_row,
        source={"world version": WORLD_VERSION, "seed": seed},
        options={**options, "shard_size": SHARD_SIZE},
        workers=1,  # what makes a row holds Python's lock
        frames_per_shard=SHARD_SIZE,
        features=PLANNING_ROW,
    )
    with written_whole(output_dir / PAIRS_FILE) as aside:
        pq.write_table(pa.Table.from_pylist(entries, schema=PAIRS_SCHEMA), aside)
    return manifest


def frame_token(pair: Pair, version: str) -> str:
    return token("counterfactual", pair.scene.seed, pair.scene.index, pair.t, pair.kind, version)


def pair_entry(pair: Pair) -> dict:
    """A row of PAIRS_FILE."""
    return {
        "pair": token("counterfactual", pair.scene.seed, pair.scene.index, pair.t, pair.kind),
        "kind": pair.kind,
        "scene_token": token("scene", pair.scene.seed, pair.scene.index),
        **{version: frame_token(pair, version) for version in VERSIONS},
        "wanted": pair.wanted,
    }


def scene_row(pair: Pair, version: str, renderer: Renderer, ground: GroundMap) -> dict:
    """One version of a pair as a row of `PLANNING_ROW`."""
    now: ExpertDrive = getattr(pair, version)
    scene, t = scene_at(pair.scene, pair.t, now.traffic), pair.t
    images, look = renderer.render(scene, ground, t)
    seen = frame_of(scene, t, look).visibility
    return {
        "scene_token": token("scene", scene.seed, scene.index),
        "frame_token": frame_token(pair, version),
        "scene_description": None,
        **{
            camera: {"bytes": to_jpeg(image), "path": Path(image_file(scene.seed, scene.index, t, camera)).name}
            for camera, image in zip(CAMERAS, images, strict=True)
        },
        "qa": [],
        **planning_columns(motion_of(pair, now, [i for i, share in seen.items() if share > 0])),
    }


def motion_of(pair: Pair, version: ExpertDrive, seen: list[int]) -> EgoMotion:
    """History as it was driven, the expert's future in this version, and the agents that a picture shows."""
    scene, t = pair.scene, pair.t
    now = version.egos[0]
    history = relative(now, scene.ego[t - HISTORY : t, :3])
    future = relative(now, np.array([(ego.x, ego.y, ego.yaw) for ego in version.egos[1:]]))
    agents = []
    for i in seen:
        if math.hypot(version.poses[0, i, 0] - now.x, version.poses[0, i, 1] - now.y) < ANNOTATION_RANGE:
            agent, poses = version.traffic.agents[i], relative(now, version.poses[:, i, :3])
            agents.append(Agent(CATEGORIES[agent.kind], agent.size, poses, [True] * len(poses)))
    return EgoMotion(
        timestamp=timestamp(scene.index, t),
        history=history,
        history_mask=[True] * len(history),
        future=future,
        future_mask=[True] * len(future),
        speed=math.hypot(*history[-1][:2]) / SAMPLE_SECONDS,
        command=route_command(scene.legs, float(scene.ego_s[t])),
        command_source="route",
        scenario=version.scenario,
        agents=agents,
    )


def relative(now: Ego, poses: np.ndarray) -> list[Pose]:
    """Global poses (N, 3) in the ego frame of `now`: x, y in metres, yaw in radians between -pi and pi."""
    return [tuple(pose) for pose in in_frame_of(now, poses).tolist()]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--output-dir", type=Path, required=True)
    add("--scenes", type=whole_number(1, MAX_SCENES), default=100, help="about 1.6 pairs per scene")
    add("--seed", type=whole_number(0, MAX_SEED), default=1009, help="of a world that no model learned from")
    add("--split", choices=("train", TEST), default=TEST, help="train: to learn from, not to measure on")
    add("--image-size", type=image_size, default=(160, 90), help="WIDTHxHEIGHT, as in 160x90")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    with errors_in_one_line("make_counterfactuals"):
        manifest = make(arguments.output_dir, arguments.scenes, arguments.seed, arguments.image_size, arguments.split)
    print(format_report(manifest))
    if not manifest["splits"][arguments.split]["frames"]:
        sys.exit("make_counterfactuals: no scene gave a pair, see the report above: ask for more scenes")


if __name__ == "__main__":
    with stopped_in_one_line("make_counterfactuals"):
        main()
