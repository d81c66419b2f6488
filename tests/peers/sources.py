"""Fetches the tests of the installed transformers, which its wheel does not hold, into a folder that git ignores.

The archive of the tag on GitHub has all of them. Where GitHub is not reached, the source distribution on PyPI has the
common tests of models and processors, but not those of generation and export: these are then left out, by name.
"""

import importlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import types
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import transformers

ARCHIVE = "https://github.com/huggingface/transformers/archive/refs/tags/v{version}.tar.gz"
FOLDER = Path(__file__).parents[2] / ".peers"
PACKAGE = "transformers_tests"  # `tests` is the name of our own
MIXINS = {"generation.test_utils": "GenerationTesterMixin", "exporters.test_export": "ExportTesterMixin"}
"""What test_modeling_common.py imports, by the module that the source distribution lacks."""

PICTURES = "fetch_hub_objects_for_ci"
"""Module that finds copies of remote pictures, which test_processing_common.py imports; lacking as well."""


class Unavailable(Exception):
    """Says why the tests cannot be had."""


@dataclass
class PeerTests:
    """Example: `PeerTests("transformers 5.23.0", left_out=["GenerationTesterMixin: ..."])`."""

    version: str
    left_out: list[str] = field(default_factory=list)  # one line each


def transformers_tests() -> PeerTests:
    """Makes the package `transformers_tests` importable.

    Raises:
        Unavailable: neither GitHub nor the package index is reached.
    """
    folder = FOLDER / f"transformers-{transformers.__version__}"
    found = PeerTests(f"transformers {transformers.__version__}")
    if PACKAGE in sys.modules:
        return found
    if not (folder / PACKAGE).is_dir():
        _fetch(folder)
    sys.path[:0] = [str(folder), str(folder / "packages"), str(folder / "utils")]
    for module, mixin in MIXINS.items():
        try:
            importlib.import_module(f"{PACKAGE}.{module}")
        except ModuleNotFoundError as error:
            found.left_out.append(f"{mixin}: {error}; the archive on GitHub has it, the source distribution does not")
            name = f"{PACKAGE}.{module}"
            for package in (name.rpartition(".")[0], name):
                sys.modules[package] = types.ModuleType(package)
            setattr(sys.modules[name], mixin, type(mixin, (), {}))
    try:
        importlib.import_module(PICTURES)
    except ModuleNotFoundError:
        sys.modules[PICTURES] = types.ModuleType(PICTURES)
        sys.modules[PICTURES].url_to_local_path = lambda url: url
    return found


def _fetch(folder: Path) -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as aside:
        aside = Path(aside)
        archive = _archive_of_tag(aside) or _source_distribution(aside)
        with tarfile.open(archive) as file:
            members = [member for member in file if member.name.split("/")[1:2] in (["tests"], ["utils"])]
            file.extractall(aside / "unpacked", members, filter="data")
        (root,) = (aside / "unpacked").iterdir()
        (root / "tests").rename(root / PACKAGE)
        _pip("install", "--no-deps", "--target", root / "packages", "parameterized")
        shutil.rmtree(folder, ignore_errors=True)
        root.rename(folder)


def _archive_of_tag(aside: Path) -> Path | None:
    path = aside / "tag.tar.gz"
    try:
        with urllib.request.urlopen(ARCHIVE.format(version=transformers.__version__), timeout=30) as answer:
            path.write_bytes(answer.read())
    except OSError:
        return None
    return path


def _source_distribution(aside: Path) -> Path:
    _pip("download", "--no-deps", "--no-binary", ":all:", "-d", aside, f"transformers=={transformers.__version__}")
    (path,) = aside.glob("transformers-*.tar.gz")
    return path


def _pip(*arguments) -> None:
    run = subprocess.run([sys.executable, "-m", "pip", "-q", *map(str, arguments)], capture_output=True, text=True)
    if run.returncode:
        reason = run.stderr.strip().splitlines() or ["no reason given"]
        raise Unavailable(f"pip {arguments[0]}: {reason[-1]}")
