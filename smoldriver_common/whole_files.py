"""Files that appear whole or not at all, after a kill, a full disk or a power cut; folders of one writer."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
CANNOT_LOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO)  # what network disks answer where they have no locks
UNFINISHED = ".unfinished"  # in a folder that is being written aside


logger = logging.getLogger(__name__)


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
        _sync(aside)
        os.replace(aside, path)
        _sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Put a file's content on the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


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
    """As [`written_whole`] for a folder. What a killed process left is written again.

    Where `folder` exists its other files stay: the new ones are moved into it one by one, `config.json` last.

    Raises:
        FileExistsError: `<folder>.tmp` is somebody else's.
    """
    folder = Path(folder)
    aside = folder.with_name(folder.name + ".tmp")
    if os.path.lexists(aside) and not _is_unfinished(aside):
        raise FileExistsError(f"{aside} would be written and is not of an unfinished run: rename or remove it")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        (aside / UNFINISHED).touch()
        yield aside
        for path in aside.rglob("*"):
            if path.is_file():
                _sync(path)
        if folder.exists():
            for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.json"):
                os.replace(path, folder / path.name)
        else:
            os.replace(aside, folder)
        (folder / UNFINISHED).unlink()
        _sync_folder(folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _is_unfinished(folder: Path) -> bool:
    """Whether a killed process left it, perhaps before it wrote anything."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return (folder / UNFINISHED).is_file() or not any(folder.iterdir())


def write_json(path: str | os.PathLike, value, indent: int | None = 1, **options) -> None:
    """`value` as a JSON file that ends with a newline; `options` are json.dumps'."""
    with written_whole(path) as aside:
        aside.write_text(json.dumps(value, indent=indent, **options) + "\n", encoding="utf-8")


@contextmanager
def sole_writer(folder: str | os.PathLike) -> Iterator[None]:
    """Hold a folder, which is made where it is missing, against other processes; the system frees it if this one dies.

    Some network disks cannot lock a file. There the body runs unguarded, after a warning.

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
    except OSError as error:
        if error.errno not in CANNOT_LOCK:
            raise
        logger.warning(
            "the disk of %s cannot lock files (%s): make sure that no other process writes this folder",
            folder,
            error.strerror,
        )
        yield
        return
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
