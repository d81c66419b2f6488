"""A small DriveLM source, its images included, and how its preparation is run."""

import io
import json
import struct
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_scripts.prepare_drivelm import main
from data_scripts.schema import CAMERAS, read_manifest
from smoldriver_common.whole_files import LOCK

TAG = "<c1,CAM_FRONT,1043.2,82.2>"


def encode(image, kind="JPEG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(seed, width=64, height=36):
    pixels = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def question(text="Are there cars to the front of the ego car?", answer="Yes.", **extra):
    return {
        "Q": text,
        "A": answer,
        "C": None,
        "con_up": None,
        "con_down": None,
        "cluster": None,
        "layer": None,
        **extra,
    }


def write_source(folder, scenes=("scene-0", "scene-2", "scene-4"), frames=2, qa=None, size=(64, 36), cameras=CAMERAS):
    """A small DriveLM file with its images; scene-0 goes to train, scene-2 to eval, scene-4 to test."""
    content = {}
    for scene in scenes:
        key_frames = {}
        for number in range(frames):
            token = f"{scene}-frame-{number}"
            paths = {}
            for index, camera in enumerate(cameras):
                file = folder / "nuscenes/samples" / camera / f"{token}+0800__{camera}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encode(noise(100 * number + index, *size)))
                paths[camera] = f"../nuscenes/samples/{camera}/{file.name}"
            items = qa or {
                "perception": [question(), question("Please describe the current scene.", "Rain.")],
                "prediction": [question(f"Would {TAG} take the ego vehicle into account?")],
                "planning": [question("What is the target action of the ego vehicle?", "Go ahead.")],
                "behavior": [question("Predict the behavior of the ego vehicle.", "It is going straight.")],
            }
            key_frames[token] = {"key_object_infos": {}, "QA": items, "image_paths": paths}
        content[scene] = {"scene_description": f"Drive {scene}.", "key_frames": key_frames}
    write_json(folder, content)
    return content


def write_json(folder, content):
    (folder / "drivelm.json").write_text(json.dumps(content))


def prepare(folder, *options, out="out"):
    """Run the command line on `folder`'s source; returns the manifest."""
    source = ["--json", str(folder / "drivelm.json"), "--image-root", str(folder / "nuscenes")]
    main([*source, "--output-dir", str(folder / out), "--workers", "2", *options])
    return read_manifest(folder / out)


def refusal(folder, *options, out="out"):
    """The one line with which the command line refuses `folder`'s source."""
    with pytest.raises(SystemExit) as caught:
        prepare(folder, *options, out=out)
    message = caught.value.code
    assert isinstance(message, str) and message.startswith("prepare_drivelm: ") and "\n" not in message
    return message


def stored_rows(folder):
    """Rows of all shards as stored, images not decoded."""
    return [row for path in sorted(folder.glob("*/shard-*.parquet")) for row in pq.read_table(path).to_pylist()]


def file_bytes(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def spoil(folder, camera, data=None, frame="scene-0-frame-0"):
    """Replace one camera's file, or remove it."""
    path = folder / f"nuscenes/samples/{camera}/{frame}+0800__{camera}.jpg"
    path.unlink()
    if data is not None:
        path.write_bytes(data)


def png_of_claimed_size(width, height):
    """A small PNG whose header claims another size."""
    data = bytearray(encode(Image.new("RGB", (8, 8)), "PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)
