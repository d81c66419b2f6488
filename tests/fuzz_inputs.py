# ruff: noqa: T201 - a command as well: what it prints is its report
"""Broken JSON files through the preparation's command line; odd pictures and texts through the processor.

    PYTHONPATH=.:tests python tests/fuzz_inputs.py --count 1000

Each case comes from a seed alone. It is taken (and nothing is lost: every question is a row or is counted as dropped,
every picture is a view, every text stands in the prompt) or refused in one line. The table counts the rest, which must
be nothing: tracebacks, silent losses, and cases that take over 10 s or 2 GB.
"""

import argparse
import contextlib
import copy
import io
import json
import random
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data_scripts import prepare_drivelm
from modeling_smoldriver import CAMERAS
from modeling_smoldriver.inputs_smoldriver import SPECIAL_TOKENS

SECONDS, BYTES = 10.0, 2 * 1024**3
FAULTS = ("traceback", "silent loss", f"over {SECONDS:.0f} s", "over 2 GB")
ODD_VALUES = (
    *(None, True, 0, -1, 1e400, float("nan"), 2**70, "", " ", [], {}, [[]], {"a": {}}, "\x00", "\ud800", "é" * 500),
    *("../../etc/passwd", "/etc/passwd", "//host/share", "samples/../../x.jpg", "CAM_TOP", "<image>", "x" * 200_000),
    *SPECIAL_TOKENS,
)


class SilentLoss(Exception):
    """A case was taken, and something that it held is gone without a word."""


def run_cases(count: int, case: Callable[[random.Random], None], seed: int) -> Counter:
    """How often each case was taken, refused, or at fault; see `FAULTS`."""
    found = Counter(dict.fromkeys(("taken", "refused", *FAULTS), 0))
    for number in range(count):
        started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            case(random.Random(f"{seed}-{number}"))
            outcome = "taken"
        except SilentLoss as error:
            outcome = "silent loss"
            print(f"case {number}: {error}")
        except (SystemExit, ValueError) as error:
            outcome = "refused" if len(str(error).strip().splitlines()) == 1 else "traceback"
            if outcome == "traceback":
                print(f"case {number}: not one line: {str(error)!r:.300}")
        except Exception as error:  # whatever else: the fault that is looked for
            outcome = "traceback"
            print(f"case {number}: {type(error).__name__}: {str(error):.300}")
        found[outcome] += 1
        found[FAULTS[2]] += time.monotonic() - started > SECONDS
        found[FAULTS[3]] += (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 > BYTES
    return found


# JSON files


def write_source(folder: Path) -> dict:
    """Two scenes of two frames, with small pictures."""
    scenes = {}
    for scene in ("scene-a", "scene-b"):
        frames = {}
        for number in range(2):
            paths = {}
            for camera in CAMERAS:
                name = f"samples/{camera}/{scene}-{number}.jpg"
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 18), (40 * number, 90, 120)).save(folder / name)
                paths[camera] = f"../nuscenes/{name}"
            tasks = {
                task: [
                    {"Q": f"Is {task} {item} there?", "A": "Yes.", "C": None, "con_up": None, "con_down": None}
                    for item in range(3)
                ]
                for task in ("perception", "prediction", "planning", "behavior")
            }
            frames[f"{scene}-frame-{number}"] = {"key_object_infos": {}, "QA": tasks, "image_paths": paths}
        scenes[scene] = {"scene_description": "The ego vehicle waits.", "key_frames": frames}
    return scenes


def places(value, path=()) -> list[tuple]:
    """Every place in a nested value, as the keys that lead there."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def broken_json(draw: random.Random, source: dict) -> str:
    """The text of a source with one to three faults."""
    value = copy.deepcopy(source)
    for _ in range(draw.randint(1, 3)):
        *parents, last = draw.choice(places(value) or [("scene-a",)])
        holder = value
        for key in parents:
            holder = holder[key]
        kind = draw.choice(("replace", "replace", "delete", "rename", "wrap"))
        if kind == "replace" or not isinstance(holder, dict):
            holder[last] = copy.deepcopy(draw.choice(ODD_VALUES))
        elif kind == "delete":
            del holder[last]
        elif kind == "rename":
            holder[str(draw.choice(ODD_VALUES))[:100]] = holder.pop(last)
        else:
            holder[last] = [holder[last]]
    text = json.dumps(value, ensure_ascii=True)
    if draw.random() < 0.2:
        text = text[: draw.randrange(len(text))]
    if draw.random() < 0.2:
        place = draw.randrange(max(1, len(text)))
        text = text[:place] + draw.choice('{}[]",:\\x00') + text[place + 1 :]
    return text


def asked_in(text: str) -> int:
    """Questions in a DriveLM file, counted without the project's code."""
    return sum(
        len(questions)
        for scene in json.loads(text).values()
        for frame in scene["key_frames"].values()
        for questions in frame["QA"].values()
    )


def fuzz_json(count: int, seed: int = 0) -> Counter:
    """Broken DriveLM files through `prepare_drivelm.py`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_source(folder)

        def case(draw: random.Random) -> None:
            text = broken_json(draw, source)
            (folder / "fuzzed.json").write_text(text, encoding="utf-8")
            shutil.rmtree(folder / "rows", ignore_errors=True)
            command = ["--json", folder / "fuzzed.json", "--image-root", folder, "--output-dir", folder / "rows"]
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                prepare_drivelm.main([*map(str, command), "--workers", "1"])
            manifest = json.loads((folder / "rows" / "manifest.json").read_text(encoding="utf-8"))
            written = sum(split["questions"] for split in manifest["splits"].values())
            dropped = sum(manifest["report"].get("dropped questions", {}).values())
            if written + dropped != asked_in(text):
                raise SilentLoss(f"{asked_in(text)} questions, {written} written, {dropped} counted as dropped")

        return run_cases(count, case, seed)


# Pictures and texts


def odd_picture(draw: random.Random, folder: Path):
    """A picture of any kind that a user may hand over, whole or broken."""
    size = draw.choice(((1, 1), (1, 300), (300, 1), (64, 36), (7, 5)))
    pixels = np.random.default_rng(draw.randrange(2**32)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    kind = draw.choice(("image", "mode", "file", "cut file", "array", "odd array", "text", "object"))
    if kind == "image":
        return image
    if kind == "mode":
        return image.convert(draw.choice(("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "RGBX")))
    if kind in ("file", "cut file"):
        path = folder / draw.choice(("a.jpg", "a.png", "a.webp", "a[b].jpg"))
        image.save(path)
        data = path.read_bytes()
        path.write_bytes(data if kind == "file" else data[: draw.randrange(len(data))])
        return draw.choice((str, Path))(path)
    if kind == "array":
        return pixels
    if kind == "odd array":
        shape = draw.choice(((0,), (0, 0, 3), (5,), (4, 4), (4, 4, 1), (4, 4, 2), (4, 4, 4), (3, 4, 4), (2, 2, 2, 3)))
        dtype = draw.choice((bool, np.uint8, np.uint16, np.float32, np.float64, np.complex64, object))
        array = np.zeros(shape, dtype)
        return torch.from_numpy(array) if dtype is np.float32 and draw.random() < 0.5 else array
    if kind == "text":
        return draw.choice(("", "nowhere.jpg", "data:image/png;base64,AAAA", "file:///etc/passwd", "A" * 1000))
    return draw.choice((b"", b"\xff\xd8\xff", io.BytesIO(b"x"), {"bytes": b""}, 3, object(), [image]))


def odd_text(draw: random.Random):
    plain = ("Is", "there", "a", "car?", "é", "\u202e", "\x00", "\n", "🚗", "CAM_FRONT:", "%s", "{{ x }}", "<b>")
    words = [*plain, "\ud83d", *SPECIAL_TOKENS]
    if draw.random() < 0.1:
        return draw.choice((None, "", " ", 3, ["Is there a car?"], b"x", "x" * 150_000))
    weights = [1.0] * len(plain) + [0.1] * (len(words) - len(plain))
    return " ".join(draw.choices(words, weights, k=draw.randint(1, 12)))


def fuzz_inputs(count: int, processor, seed: int = 0) -> Counter:
    """Odd pictures and texts through the processor: as a frame, as a question, and as a chat prompt."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def case(draw: random.Random) -> None:
            question = odd_text(draw)
            cameras = draw.sample([*CAMERAS, *draw.choices(("CAM_TOP", ""), k=1)], draw.randint(1, 4))
            images = {camera: odd_picture(draw, folder) for camera in cameras}
            route = draw.choice(("frame", "question", "chat"))
            if route == "frame":
                description = odd_text(draw) if draw.random() < 0.5 else None
                encoded = processor.encode_scene(images, description)
                check_pictures(encoded, images)
                check_words(processor, encoded["input_ids"][0], description)
            elif route == "question":
                prompt = processor.question_prompt(question)
                check_words(processor, processor.tokenizer(prompt, add_special_tokens=False)["input_ids"], question)
            else:
                messages = processor.scene_messages(images, question)
                text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
                encoded = processor(images=images, text=text, return_tensors="pt")
                check_pictures(encoded, images)
                check_words(processor, encoded["input_ids"][0], question)

        return run_cases(count, case, seed)


def check_pictures(encoded, images: dict) -> None:
    views = int((encoded["camera_ids"] >= 0).sum())
    if views != len(images) or not encoded["pixel_values"].isfinite().all():
        raise SilentLoss(f"{len(images)} pictures, {views} views, or values that are not finite")


def check_words(processor, input_ids, text) -> None:
    if text is not None and text.strip() not in processor.tokenizer.decode(input_ids):
        raise SilentLoss(f"the prompt does not hold {text!r:.100}")


def table(found: dict[str, Counter]) -> str:
    heads = ("", "cases", "taken", "refused", *FAULTS)
    lines = [heads]
    for name, counts in found.items():
        cases = sum(counts[outcome] for outcome in ("taken", "refused", *FAULTS[:2]))
        lines.append((name, str(cases), *(str(counts[head]) for head in heads[2:])))
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def main() -> None:
    from fakes import tiny_processor

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="cases of each kind")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = {
        "DriveLM files": fuzz_json(arguments.count, arguments.seed),
        "pictures and texts": fuzz_inputs(arguments.count, tiny_processor(), arguments.seed),
    }
    print(table(found))


if __name__ == "__main__":
    main()
