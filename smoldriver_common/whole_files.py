"""Files that appear whole or not at all, after a kill, a full disk or a power cut; folders of one writer."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """`with written_whole(path) as aside:` writes a file `aside`, in the same folder, that is renamed at the end.

    The folder is made where it is missing. An error leaves `path` as it was, and nothing beside it. `aside` is a new
    file: a symbolic link of its name is replaced, not followed. It is on the disk before it is renamed: a power cut
    leaves no empty file under the final name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.unlink(missing_ok=True)  # of a killed run, or a link
    try:
        aside.touch(exist_ok=False)
        yield aside
        with aside.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk. Windows cannot open a folder, and needs no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def folder_written_whole(folder: str | os.PathLike) -> Iterator[Path]:
    """As [`written_whole`] for a folder that does not exist yet. What a killed process left is written again."""
    folder = Path(folder)
    aside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        yield aside
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(path: str | os.PathLike, value, indent: int | None = 1, **options) -> None:
    """`value` as a JSON file that ends with a newline; `options` are json.dumps'."""
    with written_whole(path) as aside:
        aside.write_text(json.dumps(value, indent=indent, **options) + "\n", encoding="utf-8")


@contextmanager
def sole_writer(folder: str | os.PathLike) -> Iterator[None]:
    """Hold a folder, which is made where it is missing, against other processes; the system frees it if this one dies.

    Raises:
        BlockingIOError: another process holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        message = f"another process is writing {folder}: wait for it, stop it or give another folder"
        raise BlockingIOError(message) from None
    with held:
        yield


def check_apart(folder: str | os.PathLike, sources: Mapping[str, str | os.PathLike]) -> None:
    """Refuse to write into a folder that is read from.

    Args:
        sources: folders by what they are: {"the model to start from": "outputs/smoldriver"}. One that does not exist,
            such as a Hub id, is no obstacle.

    Raises:
        ValueError: names the folder.
    """
    for what, source in sources.items():
        if Path(folder).resolve() == Path(source).resolve():
            raise ValueError(f"the output folder {folder} is {what}: give another")
