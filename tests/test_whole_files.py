"""Files appear whole or not at all."""

import signal
import subprocess
import sys

import pytest

from smoldriver_common.whole_files import sole_writer, write_json, written_whole


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
