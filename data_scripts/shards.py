"""Planned frames -> shards of scene rows: in parallel, in order, shard by shard, resumable after a kill -9.

A shard's rows depend only on the plan and the options. So a run that was stopped and resumed ends with the same bytes
as one that was not, with any number of workers. Each shard carries its own tally in the Parquet metadata: file and
tally appear together, and the report of a resumed run counts the earlier shards too.
"""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features
from tqdm import tqdm

from data_scripts.question_types import question_type
from data_scripts.schema import (
    SCENE_FEATURES,
    cameras_of,
    check_disjoint,
    manifest_cameras,
    open_shard,
    read_manifest,
    scene_table,
    shard_path,
    write_manifest,
)
from smoldriver_common.whole_files import sole_writer

ROWS_PER_GROUP = 16  # six nuScenes JPEGs are about 1 MB, so a reader or writer holds some 16 MB of rows
MISSING_IMAGES = "missing images"  # group of the notes; a shard that has any is made again, as they may have come
_TALLY = b"smoldriver_tally"

Row = dict
Notes = dict[str, Counter]  # what make_row reports beside its row: {group: {reason or camera: count}}


def write_splits(
    folder: Path,
    plan: dict[str, list],
    make_row: Callable[[object], tuple[Row | None, Notes]],
    *,
    source: dict,
    options: dict,
    workers: int,
    frames_per_shard: int,
    features: Features = SCENE_FEATURES,
) -> dict:
    """Write every split of the plan, and the manifest; resume an earlier run of the same plan.

    Args:
        folder: the output folder, new or begun with the same source and options.
        plan: the frames of each split, without their images: `make_row` reads those.
        make_row: frame -> (row or None where the frame is dropped, notes); called in threads (image decoders and file
            reads release the GIL). At most some tens of rows are held at once.
        source: the source of the rows, and its hashes.
        options: everything else that the rows depend on.
        workers: number of threads.
        frames_per_shard: planned frames per shard.

    Returns:
        The manifest as written; see `schema.write_manifest`.

    Raises:
        ValueError: the folder was begun with another source or other options, or two splits share a scene.
        BlockingIOError: another process is writing the folder.
    """
    identity = json.loads(json.dumps({"source": source, "options": options, "cameras": cameras_of(features)}))
    _refuse_other_work(folder, identity)
    with sole_writer(folder):
        return _write_splits(folder, plan, make_row, identity, workers, frames_per_shard, features)


def _write_splits(
    folder: Path,
    plan: dict[str, list],
    make_row: Callable,
    identity: dict,
    workers: int,
    frames_per_shard: int,
    features: Features,
) -> dict:
    write_manifest(folder, {"complete": False, **identity})

    tallies: dict[str, list[dict]] = {}
    progress = tqdm(total=sum(len(frames) for frames in plan.values()), unit=" frames", desc="preparing")
    with progress, ThreadPoolExecutor(workers) as pool:
        for split, frames in plan.items():
            for start in range(0, len(frames), frames_per_shard):
                path = shard_path(folder, split, start // frames_per_shard)
                chunk = frames[start : start + frames_per_shard]
                tally = _finished_tally(path)
                if tally is None:
                    tally = _write_shard(path, _in_order(pool, make_row, chunk), progress, features)
                else:
                    progress.update(len(chunk))
                tallies.setdefault(split, []).append(tally)

    check_disjoint(
        {split: (token for tally in parts for token in tally["scenes"]) for split, parts in tallies.items()}
    )
    manifest = {"complete": True, **identity, **_summary(tallies)}
    write_manifest(folder, manifest)
    return manifest


def _refuse_other_work(folder: Path, identity: dict) -> None:
    begun = read_manifest(folder)
    if begun is None:
        if any(folder.glob("*/shard-*.parquet")):
            raise ValueError(
                f"{folder} holds shards of unknown origin (no manifest.json): choose another folder or delete it"
            )
        return
    if manifest_cameras(begun) != identity["cameras"]:
        raise ValueError(
            f"{folder} was begun with the cameras {', '.join(manifest_cameras(begun))}, now"
            f" {', '.join(identity['cameras'])}: choose another output folder or delete this one"
        )
    for part in ("source", "options"):
        old, new = begun.get(part, {}), identity[part]
        changed = [
            f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        ]
        if changed:
            raise ValueError(
                f"{folder} was begun with another {part}: {'; '.join(changed)}. "
                "Choose another output folder or delete this one"
            )


def _in_order(pool: Executor, make_row: Callable, frames: list) -> Iterator[tuple[Row | None, Notes]]:
    """`pool.map` that runs ahead by one row group only: the results of a whole shard would not fit in memory."""
    waiting = deque()
    for frame in frames:
        if len(waiting) == ROWS_PER_GROUP:
            yield waiting.popleft().result()
        waiting.append(pool.submit(make_row, frame))
    while waiting:
        yield waiting.popleft().result()


def _write_shard(path: Path, results: Iterable[tuple[Row | None, Notes]], progress: tqdm, features: Features) -> dict:
    tally = {"frames": 0, "scenes": [], "questions by task": Counter(), "questions by type": Counter()}
    with open_shard(path, features) as shard:
        rows = []
        for row, notes in results:
            progress.update()
            for group, counts in notes.items():
                tally.setdefault(group, Counter()).update(counts)
            if row is None:
                continue
            tally["frames"] += 1
            if row["scene_token"] not in tally["scenes"]:
                tally["scenes"].append(row["scene_token"])
            for item in row["qa"]:
                tally["questions by task"][item["task"]] += 1
                tally["questions by type"][question_type(item["question"], item["task"])] += 1
            rows.append(row)
            if len(rows) == ROWS_PER_GROUP:
                shard.write_table(scene_table(rows, features))
                rows = []
        if rows:  # `datasets` cannot read an empty row group, but a shard without any
            shard.write_table(scene_table(rows, features))
        shard.add_key_value_metadata({_TALLY: json.dumps(tally, sort_keys=True)})
    return tally


def _finished_tally(path: Path) -> dict | None:
    """Tally of a finished shard; None where it has to be written (again)."""
    try:
        tally = json.loads(pq.read_metadata(path).metadata[_TALLY])
        return None if tally.get(MISSING_IMAGES) else tally
    except FileNotFoundError:
        return None
    except (pa.ArrowInvalid, KeyError):  # damaged after it was written, by a full disk or a power cut
        return None


def _summary(tallies: dict[str, list[dict]]) -> dict:
    splits, report = {}, {}
    for split, parts in tallies.items():
        splits[split] = {
            "scenes": len({token for tally in parts for token in tally["scenes"]}),
            "frames": sum(tally["frames"] for tally in parts),
            "questions": sum(sum(tally["questions by task"].values()) for tally in parts),
            "shards": len(parts),
        }
        for tally in parts:
            for group in tally.keys() - {"frames", "scenes"}:
                report.setdefault(group, Counter()).update(tally[group])
    return {
        "splits": splits,
        "report": {group: dict(sorted(counts.items())) for group, counts in sorted(report.items())},
    }


def format_report(manifest: dict, names_per_group: int = 20) -> str:
    """The closing report of a finished manifest as text, long groups (file names) cut to `names_per_group` lines."""
    lines = ["split    scenes   frames  questions"]
    for split, count in manifest["splits"].items():
        lines.append(f"{split:<6}{count['scenes']:9}{count['frames']:9}{count['questions']:11}")
    for group, counts in manifest["report"].items():
        lines.append(f"{group}: {sum(counts.values())}")
        lines += [f"  {count:8}  {name}" for name, count in list(counts.items())[:names_per_group]]
        if len(counts) > names_per_group:
            lines.append(f"  ... and {len(counts) - names_per_group} more, all in manifest.json")
    return "\n".join(lines)
