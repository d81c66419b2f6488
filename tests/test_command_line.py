"""Every command says what is wrong in one line, and prints every text."""

import subprocess
import sys

import pytest
from fakes import small_files
from safetensors import SafetensorError

from smoldriver_common.command_line import errors_in_one_line

PRINT = """
import sys
from smoldriver_common.command_line import errors_in_one_line
with errors_in_one_line("program"):
    print("two\\u2011way stra\\xdfe")
    if len(sys.argv) > 1:
        raise ValueError("no stra\\xdfe")
print("\\u2011 done")
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_lacks_a_character_does_not_end_a_command(encoding, pytestconfig):
    command = [sys.executable, "-c", PRINT]
    options = {"cwd": pytestconfig.rootpath, "env": {"PYTHONIOENCODING": encoding}, "capture_output": True}
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr
    expected = "two\u2011way stra\xdfe\n\u2011 done\n"
    assert done.stdout == expected.encode(encoding, "backslashreplace")
    refused = subprocess.run([*command, "refuse"], **options)
    assert refused.returncode == 1 and refused.stderr == "program: no stra\xdfe\n".encode(encoding, "backslashreplace")


def failing(error: Exception, cause: Exception | None = None):
    with pytest.raises(SystemExit) as stopped, errors_in_one_line("program"):
        raise error from cause
    return stopped.value.code


class LibraryError(Exception):
    pass


def test_input_and_system_errors_are_one_line_also_where_a_library_wraps_them():
    assert failing(ValueError("bad\n  value")) == "program: bad value"
    assert failing(OSError(28, "No space left on device")) == "program: [Errno 28] No space left on device"
    assert failing(SafetensorError("cut short")) == "program: cut short"
    wrapped = failing(LibraryError("cannot unpack"), OSError(28, "No space left on device"))
    assert wrapped == "program: cannot unpack: [Errno 28] No space left on device"


@pytest.mark.parametrize("cause", [None, KeyError("fault")])
def test_a_fault_of_the_program_keeps_its_traceback(cause):
    with pytest.raises(LibraryError), errors_in_one_line("program"):
        raise LibraryError("fault") from cause


def test_weights_that_do_not_fit_on_the_disk_are_one_line(tmp_path):
    import torch
    from safetensors.torch import save_file

    with pytest.raises(SystemExit) as stopped, small_files(100_000), errors_in_one_line("program"):
        save_file({"a": torch.zeros(100_000)}, tmp_path / "a.safetensors")
    assert stopped.value.code.startswith("program: ") and "\n" not in stopped.value.code
