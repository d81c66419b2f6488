"""Files that appear whole or not at all, also when a run is killed or the disk is full, and folders of one writer."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """`with written_whole(path) as aside:` writes a file `aside`, in the same folder, that is renamed at the end.

    The folder is made where it is missing. An error leaves `path` as it was, and nothing beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


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
