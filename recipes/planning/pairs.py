"""Counterfactual pairs as a planner meets them: the rows, the plans for both versions, and the files of plans."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from tqdm import tqdm

from data_scripts.make_counterfactuals import PAIRS_FILE, VERSIONS
from data_scripts.schema import load_scenes
from recipes.metrics.counterfactual.pair_scores import WAYPOINTS, CounterfactualPair
from smoldriver_common.whole_files import written_whole

IDENTITY = b"smoldriver_plans"

MakePlan = Callable[[dict], np.ndarray]  # row -> (6, 2) waypoints in metres


@dataclass(frozen=True)
class PairedFrames:
    """The pairs of a folder and their rows.

    Fields:
        folder: as `make_counterfactuals.py` wrote it.
        rows: all versions; pictures are decoded as they are read.
        pairs: what plans are scored against, in the folder's order.
        frames: (as it was, changed): the places in `rows` of each pair.
    """

    folder: Path
    rows: Dataset
    pairs: list[CounterfactualPair]
    frames: list[tuple[int, int]]

    @classmethod
    def read(cls, folder: Path) -> "PairedFrames":
        """Raises FileNotFoundError, ValueError: no finished folder of pairs."""
        rows = load_scenes(folder, "test")
        if not (folder / PAIRS_FILE).is_file():
            raise FileNotFoundError(f"{folder} has no {PAIRS_FILE}: make it with data_scripts/make_counterfactuals.py")
        places = {token: place for place, token in enumerate(rows["frame_token"])}
        futures, pairs, frames = rows["ego_future"], [], []
        for entry in pq.read_table(folder / PAIRS_FILE).to_pylist():
            if not all(entry[version] in places for version in VERSIONS):
                raise ValueError(
                    f"{folder}: the pair {entry['pair']} has no rows: delete the folder and make it again"
                )
            both = tuple(places[entry[version]] for version in VERSIONS)
            expert = np.array([futures[place] for place in both])[..., :2]
            pairs.append(CounterfactualPair(entry["pair"], entry["scene_token"], entry["kind"], expert))
            frames.append(both)
        return cls(folder, rows, pairs, frames)

    def of_pairs(self, plans: np.ndarray) -> np.ndarray:
        """(rows, 6, 2) in the order of `rows` -> (pairs, 2, 6, 2)."""
        return plans[np.array(self.frames)]


def planned(paired: PairedFrames, name: str, make_plan: MakePlan, identity: dict, file: Path) -> np.ndarray:
    """(rows, 6, 2): the plans for all rows, read from `file` where they were made by the same planner before.

    Args:
        identity: what the plans depend on; plans of another identity are made again.
        file: Parquet with the columns frame_token and waypoints (6 of x forward, y left, metres in the ego frame).

    Raises:
        ValueError: a plan that is not finite, or of another number of waypoints; names the frame.
    """
    identity = json.dumps(identity, sort_keys=True)
    tokens = paired.rows["frame_token"]
    kept = read_plans(file, identity, tokens)
    if kept is not None:
        return kept
    plans = []
    for row in tqdm(paired.rows, desc=f"plans: {name}", unit=" frames", disable=None):
        plan = np.asarray(make_plan(row), dtype=np.float64)
        if plan.shape != (WAYPOINTS, 2) or not np.isfinite(plan).all():
            raise ValueError(f"{name}, frame {row['frame_token']}: a plan is six finite waypoints x, y; got {plan}")
        plans.append(plan)
    table = pa.table({"frame_token": list(tokens), "waypoints": [plan.tolist() for plan in plans]})
    with written_whole(file) as aside:
        pq.write_table(table.replace_schema_metadata({IDENTITY: identity}), aside)
    return np.array(plans)


def read_plans(file: Path, identity: str, tokens: list[str]) -> np.ndarray | None:
    """The plans of a file; None where there is none, or they are of another planner or other frames."""
    if not file.is_file():
        return None
    table = pq.read_table(file)
    if (table.schema.metadata or {}).get(IDENTITY, b"").decode() != identity:
        return None
    if table["frame_token"].to_pylist() != list(tokens):
        return None
    return np.array(table["waypoints"].to_pylist())
