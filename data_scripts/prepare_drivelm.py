"""DriveLM questions + nuScenes images -> Parquet shards of scene rows.

    python data_scripts/prepare_drivelm.py --json data/v1_1_train_nus.json --image-root data/nuscenes \\
        --output-dir data/drivelm

Source: DriveLM (https://github.com/OpenDriveLab/DriveLM, language data CC BY-NC-SA 4.0) on the key frames of nuScenes
(https://www.nuscenes.org, non-commercial terms). `--image-root` is the folder that holds `samples/CAM_FRONT/...`. The
challenge's test files are read too: `--split test` keeps questions without an answer. The paper's two data sets on the
Hub hold questions and images as tables: `--from-paper-hub QUESTIONS IMAGES` reads them. With nuScenes' tables beside
the images, `prepare_planning.py` writes the same questions with the ego motion and agents that a planner needs.

One source row (see `sources/drivelm_json.py` for the nesting) is one key frame; see `schema.py` for the row that is
written. A scene goes to train, eval or test by the hash of its token, so that no scene is in two splits. Only the
JSON's text is read whole (some GB of memory for the full training set's 500 MB); images stream, a few tens of frames
at a time.

A question or answer that may not stand in a prompt, as with an `<image>` left in it, is dropped and counted by reason;
so is a scene description.

Another car's cameras are read with `--cameras`, in the order that the model will have (Waymo's five, for example):
the file's `image_paths` and the rows name them alike. What else `image_paths` holds is left out and counted.

Run it again after a crash or a kill: finished shards are kept and the result is the same to the byte. A camera whose
image is missing, cut or absurdly large is left empty and reported (`--strict` stops instead). A frame without any
image is dropped. The same command makes shards with such cameras again, as more images may have come. It does not read
the images of other shards again: delete the folder if you replaced images.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from data_scripts.schema import CAMERAS, SPLITS, scene_features, split_of
from data_scripts.shards import MISSING_IMAGES, format_report, write_splits
from data_scripts.sources.camera_images import UnusableImage, read_image_file, usable_image
from data_scripts.sources.drivelm_json import read_drivelm
from data_scripts.sources.paper_hub import open_paper_tables
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line, whole_number
from smoldriver_common.shipped import fault_of_text
from smoldriver_common.whole_files import check_apart

FORMAT = 2  # raised when the same input would give other rows, so that an old half-finished folder is not continued


def frame_row(
    frame: dict,
    read_image: Callable[[dict, str], bytes],
    image_height: int | None,
    strict: bool,
    unasked: bool = False,
    cameras: Sequence[str] = CAMERAS,
) -> tuple[dict | None, dict]:
    """One scene row, and what to report about it.

    Args:
        frame: as `read_drivelm` gives it.
        read_image: (frame, camera) -> the image file's bytes; raises UnusableImage.
        image_height: greatest height in pixels, None to keep the size.
        strict: raise for a camera whose image cannot be used.
        unasked: keep a frame without questions.
        cameras: of the row, in the order of its columns.

    Returns:
        The row, None for a frame without any image or (but see `unasked`) question, and counts by group and reason.
    """
    row = {name: frame[name] for name in ("scene_token", "frame_token", "scene_description", "qa")}
    notes = {
        "dropped questions": Counter(frame["dropped"]),
        "frames without their scene description": Counter(),
        "sensors left out": Counter(frame.get("other_sensors", ())),
        "missing images by camera": Counter(),
        "missing images by reason": Counter(),
        MISSING_IMAGES: Counter(),
        "dropped frames": Counter(),
    }
    row["qa"], unfit = fit_for_prompts(frame["qa"])
    notes["dropped questions"] += unfit
    if row["scene_description"] and (fault := fault_of_text(row["scene_description"])):
        row["scene_description"] = None
        notes["frames without their scene description"][fault] += 1
    for camera in cameras:
        path = frame["image_paths"].get(camera)
        row[camera] = None
        try:
            if path is None:
                raise UnusableImage("no path given")
            row[camera] = {
                "bytes": usable_image(read_image(frame, camera), image_height),
                "path": PurePosixPath(path).name,
            }
        except UnusableImage as error:
            name = path or f"frame {frame['frame_token']}, {camera}"
            if strict:
                raise ValueError(f"{name}: {error}") from None
            notes["missing images by camera"][camera] += 1
            notes["missing images by reason"][str(error)] += 1
            notes[MISSING_IMAGES][f"{error}: {name}"] += 1
    reason = None
    if all(row[camera] is None for camera in cameras):
        reason = "no usable image"
    elif not row["qa"] and not unasked:
        reason = "no question left"
    if reason:
        notes["dropped frames"][reason] += 1
        notes["dropped questions"]["its frame was dropped"] += len(row["qa"])
        row = None
    return row, {group: +counts for group, counts in notes.items() if +counts}


def fit_for_prompts(qa: list[dict]) -> tuple[list[dict], Counter]:
    """The questions that may stand in a prompt with their answers, and why the others may not."""
    kept, unfit = [], Counter()
    for item in qa:
        texts = {"question": item["question"], "answer": item["answer"]}
        faults = [f"{name} {fault}" for name, text in texts.items() if text and (fault := fault_of_text(text))]
        if faults:
            unfit[faults[0]] += 1
        else:
            kept.append(item)
    return kept, unfit


def plan_splits(frames: list[dict], split: str) -> dict[str, list[dict]]:
    """The frames of each split that has any, in order: by the hash of their scene (`auto`), or all in one split."""
    plan = {name: [] for name in SPLITS}
    for frame in frames:
        plan[split_of(frame["scene_token"]) if split == "auto" else split].append(frame)
    return {name: planned for name, planned in plan.items() if planned}


def prepare(
    *,
    json: list[Path] | None,
    image_root: Path | None,
    from_paper_hub: list[str] | None,
    output_dir: Path,
    object_tags: str,
    image_height: int | None,
    split: str,
    workers: int,
    shard_size: int,
    strict: bool,
    cameras: Sequence[str],
) -> dict:
    """Do what the command line asks for, whose options these are; returns the manifest."""
    drop_tags = object_tags == "drop"
    keep_unlabelled = split == "test"
    features = scene_features(cameras)
    if from_paper_hub:
        for name in from_paper_hub:
            check_apart(output_dir, {"a folder of --from-paper-hub": name})
        frames, read_image, source = open_paper_tables(*from_paper_hub, drop_tags, keep_unlabelled)
    else:
        if not image_root.is_dir():
            raise FileNotFoundError(f"--image-root {image_root} is not a folder")
        check_apart(output_dir, {"the --image-root": image_root})
        frames, digests = read_drivelm(json, drop_tags, keep_unlabelled, cameras)
        source = {"json sha256": digests, "image root": str(image_root)}
        if not any((image_root / path).is_file() for frame in frames for path in frame["image_paths"].values()):
            others = sorted({name for frame in frames for name in frame["other_sensors"]})
            tried = next((path for frame in frames for path in frame["image_paths"].values()), None)
            if tried is None and others:
                raise ValueError(
                    f"no frame names a picture of {', '.join(cameras)}; the JSON has the sensors"
                    f" {', '.join(others)}: give --cameras"
                )
            raise FileNotFoundError(
                f"no image of the JSON lies under --image-root {image_root} (for example {tried or 'none named'})"
            )

        def read_image(frame: dict, camera: str) -> bytes:
            return read_image_file(image_root, frame["image_paths"][camera])

    return write_splits(
        output_dir,
        plan_splits(frames, split),
        lambda frame: frame_row(frame, read_image, image_height, strict, cameras=cameras),
        source=source,
        options={
            "format": FORMAT,
            "object_tags": object_tags,
            "image_height": image_height,
            "split": split,
            "shard_size": shard_size,
            "strict": strict,
        },
        workers=workers,
        frames_per_shard=shard_size,
        features=features,
    )


def add_row_options(parser: argparse.ArgumentParser) -> None:
    """The options on rows and shards that `prepare_planning.py` has too."""
    add = parser.add_argument
    add("--output-dir", type=Path, required=True, help="new folder, or one that an earlier run did not finish")
    add(
        "--object-tags",
        choices=("keep", "drop"),
        default="keep",
        help="drop: leave out questions that name <cN,CAM,x,y>",
    )
    add(
        "--image-height",
        type=whole_number(),
        help="shrink higher images to this many pixels (default: original JPEG bytes)",
    )
    add(
        "--split",
        choices=("auto", *SPLITS),
        default="auto",
        help="auto: 8/1/1 by scene; else all frames go to this split",
    )
    add("--workers", type=whole_number(), default=os.cpu_count() or 1, help="threads that read and check images")
    add("--shard-size", type=whole_number(), default=256, help="frames per shard (256 at full size: about 200 MB)")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="DriveLM questions and nuScenes images -> Parquet shards of scene rows (one row per key frame)."
    )
    add = parser.add_argument
    add("--json", type=Path, nargs="+", help="DriveLM files, e.g. v1_1_train_nus.json")
    add("--image-root", type=Path, help="nuScenes folder, the one that holds samples/CAM_FRONT/...")
    add(
        "--from-paper-hub",
        nargs=2,
        metavar=("QUESTIONS", "IMAGES"),
        help="the paper's two data sets: Hub ids or folders",
    )
    add_row_options(parser)
    add(
        "--cameras",
        nargs="+",
        metavar="NAME",
        default=list(CAMERAS),
        help="cameras of --json, in the order of the rows and the model (default: nuScenes' six)",
    )
    add("--strict", action="store_true", help="stop at the first image that is missing, cut or too large")
    arguments = parser.parse_args(argv)
    if bool(arguments.from_paper_hub) == bool(arguments.json or arguments.image_root):
        parser.error("give either --json and --image-root, or --from-paper-hub")
    if not arguments.from_paper_hub and not (arguments.json and arguments.image_root):
        parser.error("--json and --image-root go together")
    if arguments.from_paper_hub and arguments.cameras != list(CAMERAS):
        parser.error("--cameras goes with --json: the paper's data sets hold nuScenes' six")
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    with errors_in_one_line("prepare_drivelm"):
        manifest = prepare(**vars(arguments))
    print(format_report(manifest))
    if not manifest["splits"] or not any(count["frames"] for count in manifest["splits"].values()):
        sys.exit("prepare_drivelm: not one frame was usable, see the report above")


if __name__ == "__main__":
    with stopped_in_one_line("prepare_drivelm"):
        main()
