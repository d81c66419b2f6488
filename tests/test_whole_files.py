"""Files and folders appear whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from smoldriver_common.whole_files import check_apart, folder_written_whole, sole_writer, write_json, written_whole


def test_a_written_file_is_there_alone_and_its_folder_is_made(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"gap": 7.5, "street": "Straße"}, ensure_ascii=False)
    assert (tmp_path / "new" / "a.json").read_text("utf-8") == '{\n "gap": 7.5,\n "street": "Straße"\n}\n'
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), written_whole(path) as aside:
        aside.write_text("half of the n")
        raise OSError("disk full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


HOLD = """
import sys, time
from smoldriver_common.whole_files import sole_writer
with sole_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_writer_until_that_ends_or_is_killed(tmp_path, pytestconfig):
    folder = tmp_path / "new" / "folder"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, cwd=pytestconfig.rootpath, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"another process is writing {folder}: wait for it, stop it or"):
            with sole_writer(folder):
                pass
        other.send_signal(signal.SIGKILL)
    for _ in range(2):
        with sole_writer(folder):
            pass


def test_a_link_with_the_name_of_the_unfinished_file_is_not_followed(tmp_path):
    theirs = tmp_path / "theirs.txt"
    theirs.write_text("theirs")
    (tmp_path / "manifest.json.tmp").symlink_to(theirs)
    write_json(tmp_path / "manifest.json", {"complete": True})
    assert theirs.read_text() == "theirs" and not (tmp_path / "manifest.json").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"theirs.txt", "manifest.json"}


@pytest.fixture
def on_disk(monkeypatch):
    """Files by inode: those that were put on the disk, in the order of the calls, and renamed ones."""
    events = []
    sync, replace = os.fsync, os.replace

    def noted_sync(handle):
        events.append(("sync", os.fstat(handle).st_ino))
        sync(handle)

    def noted_replace(source, target):
        events.append(("rename", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    return events


def test_a_file_is_on_the_disk_before_it_has_its_name(on_disk, tmp_path):
    """So that a power cut leaves no empty file under that name."""
    write_json(tmp_path / "a.json", 1)
    file, folder = (tmp_path / "a.json").stat().st_ino, tmp_path.stat().st_ino
    assert on_disk == [("sync", file), ("rename", file), ("sync", folder)]


def write_two(folder: Path, text: str) -> None:
    with folder_written_whole(folder) as aside:
        for name in ("config.json", "weights"):
            (aside / name).write_text(text)


def test_a_folder_is_on_the_disk_before_it_has_its_name(on_disk, tmp_path):
    write_two(tmp_path / "model", "new")
    files = {(tmp_path / "model" / name).stat().st_ino for name in ("config.json", "weights")}
    renamed = on_disk.index(("rename", (tmp_path / "model").stat().st_ino))
    assert files <= {inode for _, inode in on_disk[:renamed]}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "weights"}


def test_a_folder_that_exists_keeps_its_other_files_and_gets_its_config_last(monkeypatch, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("theirs")
    replace, moved = os.replace, []
    monkeypatch.setattr(
        os, "replace", lambda source, target: (moved.append(Path(source).name), replace(source, target))
    )
    write_two(tmp_path / "model", "new")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "weights", "notes.txt"}
    assert moved[-1] == "config.json" and [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_disk_without_locks_is_written_after_a_warning(number, monkeypatch, caplog, tmp_path):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with sole_writer(tmp_path / "run"):
        write_json(tmp_path / "run" / "a.json", 1)
    assert caplog.messages == [
        f"the disk of {tmp_path / 'run'} cannot lock files ({os.strerror(number)}): make sure that no other process"
        " writes this folder"
    ]
    with pytest.raises(ValueError, match="of the body"), sole_writer(tmp_path / "run"):
        raise ValueError("of the body")


def test_any_other_fault_of_a_lock_is_an_error(monkeypatch, tmp_path):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No space left"), sole_writer(tmp_path):
        pass


KILLED = """
import os, sys
from pathlib import Path
from smoldriver_common.whole_files import folder_written_whole
with folder_written_whole(sys.argv[1]) as aside:
    (aside / "half").write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_a_folder_of_a_killed_run_is_written_again(tmp_path, pytestconfig):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "model")]
    assert subprocess.run(command, cwd=pytestconfig.rootpath).returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists() and (tmp_path / "model.tmp" / "half").is_file()
    write_two(tmp_path / "model", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and not (tmp_path / "model" / "half").exists()


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_a_user_calls_tmp_is_not_deleted(kind, tmp_path):
    theirs = tmp_path / "model.tmp"
    if kind == "folder":
        theirs.mkdir()
        (theirs / "notes.txt").write_text("theirs")
    elif kind == "file":
        theirs.write_text("theirs")
    else:
        theirs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match="model.tmp would be written and is not of an unfinished run: rename"):
        write_two(tmp_path / "model", "new")
    assert os.path.lexists(theirs) and not (tmp_path / "model").exists()
    assert kind != "folder" or (theirs / "notes.txt").read_text() == "theirs"


def test_the_output_is_no_folder_that_is_read_from(tmp_path):
    check_apart(tmp_path / "new", {"the model": tmp_path})
    check_apart(tmp_path / "new", {"the model": "user/model"})
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="the output folder .*link is the model: give another"):
        check_apart(tmp_path / "link", {"the scenes": "elsewhere", "the model": tmp_path / "a" / ".."})
