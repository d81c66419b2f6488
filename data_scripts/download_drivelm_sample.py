"""Fetch DriveLM's small public sample: 2 scenes, 9 key frames, 54 images, about 6 MB.

    python data_scripts/download_drivelm_sample.py --output-dir data/drivelm_sample
    python data_scripts/prepare_drivelm.py --json data/drivelm_sample/train_sample.json \\
        --image-root data/drivelm_sample/nuscenes --output-dir data/drivelm_sample_scenes --split train

Source: folder `challenge/` of https://github.com/OpenDriveLab/DriveLM. Language data CC BY-NC-SA 4.0, images under
nuScenes' terms of use (non-commercial): fetch them for yourself, do not pass them on with this project.

Written: `train_sample.json` (questions and answers in the official nesting), `test_eval.json` (the challenge's tagged
questions), `output.json` (the answers of the challenge's baseline), `nuscenes/samples/<camera>/*.jpg`. Each file
appears whole or not at all. Files that are there are not fetched again.
"""

import argparse
import http.client
import json
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

from tqdm import tqdm

from data_scripts.sources.camera_images import usable_image
from data_scripts.sources.drivelm_json import parse_drivelm
from smoldriver_common.whole_files import written_whole

BASE_URL = "https://github.com/OpenDriveLab/DriveLM/raw/1de72a7/challenge"
QUESTIONS = "train_sample.json"
REMOTE_PATHS = {QUESTIONS: "data/train_sample.json", "test_eval.json": "test_eval.json", "output.json": "output.json"}
REMOTE_IMAGES = "llama_adapter_v2_multimodal7b/data/nuscenes"
TIMEOUT = 60  # seconds without a byte


def download_sample(base_url: str, folder: Path) -> tuple[int, int]:
    """Fetch every file of the sample that `folder` does not hold yet.

    Args:
        base_url: address of the repository's folder `challenge`.
        folder: where to write; see the head of this file for the layout.

    Returns:
        Number of key frames and of images.

    Raises:
        OSError: the address cannot be reached or has no such file.
        ValueError: a file is not the JSON or image that it should be.
    """
    checks = {
        QUESTIONS: _questions,
        "test_eval.json": lambda data: parse_drivelm(data, drop_object_tags=False, keep_unlabelled=True),
        "output.json": json.loads,
    }
    for name, remote in REMOTE_PATHS.items():
        _fetch(f"{base_url}/{remote}", folder / name, checks[name])
    frames = _questions((folder / QUESTIONS).read_bytes())
    images = sorted({path for frame in frames for path in frame["image_paths"].values()})
    for path in tqdm(images, desc="images", unit=" files"):
        _fetch(f"{base_url}/{REMOTE_IMAGES}/{quote(path)}", folder / "nuscenes" / path, usable_image)
    return len(frames), len(images)


def _questions(data: bytes) -> list[dict]:
    return parse_drivelm(data, drop_object_tags=False, keep_unlabelled=False)


def _fetch(url: str, path: Path, check: Callable[[bytes], object]) -> None:
    """Fetch one file, unless it is there; `check` raises ValueError for wrong bytes."""
    if path.is_file():
        return
    try:
        with urlopen(url, timeout=TIMEOUT) as response:
            data = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"cannot fetch {url}: {error}. Is there a network? Run it again, it resumes") from None
    try:
        check(data)
    except ValueError as error:
        raise ValueError(f"{url} is not the file it should be: {error}") from None
    with written_whole(path) as aside:
        aside.write_bytes(data)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fetch DriveLM's small public sample (2 scenes, 9 key frames).")
    parser.add_argument("--output-dir", type=Path, default=Path("data/drivelm_sample"), help="where to write")
    parser.add_argument("--base-url", default=BASE_URL, help="address of the repository's folder challenge/")
    arguments = parser.parse_args(argv)
    try:
        frames, images = download_sample(arguments.base_url.rstrip("/"), arguments.output_dir)
    except (OSError, ValueError) as error:
        sys.exit(f"download_drivelm_sample: {error}")
    print(f"{arguments.output_dir}: {frames} key frames, {images} images")


if __name__ == "__main__":
    main()
