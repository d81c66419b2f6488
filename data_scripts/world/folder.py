"""The folder of a finished synthetic world, for those who read it."""

import json
from pathlib import Path

WORLD_VERSION = 8  # raise it whenever the same options give other bytes
WORLD_FILE = "world.json"  # version, options, counts and the balance of the answers; written last


def read_world(folder: Path) -> dict:
    """`world.json` of a finished world of this version.

    Raises:
        FileNotFoundError: the folder holds no finished world.
        ValueError: a world of another version, or a file that is cut short.
    """
    path = folder / WORLD_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a finished world: make it with data_scripts/synthesize_world.py")
    world = read_json(path)
    version = world.get("options", {}).get("version")
    if version != WORLD_VERSION:
        raise ValueError(f"{folder} is a world of version {version}, not {WORLD_VERSION}: delete it and make it again")
    return world


def read_json(path: Path) -> dict:
    """The object in a JSON file of a world.

    Raises:
        ValueError: it is cut short or broken, or does not hold an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        content = error
    if not isinstance(content, dict):
        raise ValueError(f"{path} cannot be read ({content}): delete the world's folder and make it again")
    return content
