"""Fetches other libraries' tests, which their wheels do not hold, into a folder that git ignores.

A library's tests of the installed version come from the archive of its tag on GitHub. Where GitHub is not reached,
they come from the source distribution on PyPI: PEFT's is whole, transformers' lacks the tests of generation and of
export, TRL's has none. What it lacks is taken from a checkout that `--sources` names (of the tag, or of the nearest
version at hand); otherwise it is left out, by name.
"""

import ast
import contextlib
import importlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import types
import urllib.request
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

ARCHIVE = "https://github.com/huggingface/{name}/archive/refs/tags/v{version}.tar.gz"
FOLDER = Path(__file__).parents[2] / ".peers"
KEPT = ("tests", "utils", "examples")  # of a library's repository
MIXINS = {"generation.test_utils": "GenerationTesterMixin", "exporters.test_export": "ExportTesterMixin"}
"""What transformers' test_modeling_common.py imports, by the module that its source distribution lacks."""

PICTURES = "fetch_hub_objects_for_ci"
"""Module that finds copies of remote pictures, which test_processing_common.py imports; lacking as well."""

TRL_MODULES = ["testing_utils", *(f"test_{trainer}_trainer" for trainer in ("sft", "grpo", "rloo", "dpo"))]


class Unavailable(Exception):
    """Says why the tests cannot be had."""


@dataclass
class PeerTests:
    """Example: `PeerTests("transformers", "5.23.0", left_out=["GenerationTesterMixin: ..."])`."""

    library: str
    version: str
    left_out: list[str] = field(default_factory=list)  # one line each


def transformers_tests(checkouts: Path | None = None) -> PeerTests:
    """Makes the package `transformers_tests` importable; `checkouts`: see `unpacked`.

    Raises:
        Unavailable: neither GitHub nor the package index is reached.
    """
    found, folder = unpacked("transformers", checkouts)
    sys.path += [str(folder / "packages"), str(folder / "utils")]
    for module, mixin in MIXINS.items():
        name = f"transformers_tests.{module}"
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith(name.rpartition(".")[0]):
                raise
            found.left_out.append(f"{mixin}: the source distribution lacks it; a checkout given by --sources has it")
            for package in (name.rpartition(".")[0], name):
                sys.modules[package] = types.ModuleType(package)
            setattr(sys.modules[name], mixin, type(mixin, (), {}))
    try:
        importlib.import_module(PICTURES)
    except ModuleNotFoundError:
        stand_in(PICTURES, url_to_local_path=lambda url: url)
    return found


def peft_tests(checkouts: Path | None = None) -> PeerTests:
    """Makes the package `peft_tests` importable; as `transformers_tests`."""
    found, _ = unpacked("peft", checkouts)
    stand_in("diffusers", StableDiffusionPipeline=type("StableDiffusionPipeline", (), {}))  # only named there
    return found


def trl_tests(checkouts: Path | None = None) -> PeerTests:
    """Makes the package `trl_tests` importable; as `transformers_tests`.

    Names that tests of another version import, and this one does not have, are false: those tests are not run here.
    """
    found, folder = unpacked("trl", checkouts)
    for path in (folder / "trl_tests" / f"{name}.py" for name in TRL_MODULES):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("trl."):
                with contextlib.suppress(ModuleNotFoundError):
                    module = importlib.import_module(node.module)
                    for name in node.names:
                        if not hasattr(module, name.name):
                            setattr(module, name.name, lambda *_: False)
    return found


def accelerate_tests(checkouts: Path | None = None) -> PeerTests:
    """Nothing to fetch: accelerate's own tests are bound to a model of three layers; ours repeat them."""
    return PeerTests("accelerate", version("accelerate"))


def unpacked(name: str, checkouts: Path | None) -> tuple[PeerTests, Path]:
    """A library's tests as the importable package `<name>_tests`, and the folder that holds it.

    Args:
        name: of the library on GitHub and on the package index.
        checkouts: a folder with checkouts of the libraries' repositories, each in a folder of its name: from it comes
            what the source distribution lacks.

    Raises:
        Unavailable: the tests are not to be had.
    """
    found = PeerTests(name, version(name))
    folder = FOLDER / f"{name}-{found.version}"
    if not folder.is_dir():
        _fetch(name, found.version, folder)
    checkout = checkouts / name if checkouts else None
    if checkout and checkout.is_dir() and not (folder / "completed.txt").exists():
        _complete(folder, name, checkout)
    if not (folder / f"{name}_tests").is_dir():
        raise Unavailable(f"{name}'s source distribution has no tests; a checkout given by --sources has them")
    if (folder / "completed.txt").exists():
        found.left_out.append((folder / "completed.txt").read_text(encoding="utf-8"))
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return found, folder


def stand_in(name: str, **attributes) -> None:
    """Puts a module with these attributes in the place of one that is not installed."""
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(attributes)


def _fetch(name: str, release: str, folder: Path) -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as aside:
        aside = Path(aside)
        archive = _archive_of_tag(name, release, aside) or _source_distribution(name, release, aside)
        with tarfile.open(archive) as file:
            members = file.getmembers()
            root = aside / members[0].name.split("/")[0]
            root.mkdir()
            kept = [member for member in members if member.name.split("/")[1:2] in [[part] for part in KEPT]]
            file.extractall(aside, kept, filter="data")
        if (root / "tests").is_dir():
            (root / "tests").rename(root / f"{name}_tests")
            _rename_imports(root / f"{name}_tests")
        if name == "transformers":
            _pip("install", "--no-deps", "--target", root / "packages", "parameterized")
        root.rename(folder)


def _complete(folder: Path, name: str, checkout: Path) -> None:
    """Adds what a checkout has and the folder lacks."""
    added = 0
    for part in KEPT:
        for source in (checkout / part).rglob("*"):
            target = folder / (f"{name}_tests" if part == "tests" else part) / source.relative_to(checkout / part)
            if source.is_file() and source.suffix in (".py", ".jinja") and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                added += 1
    _rename_imports(folder / f"{name}_tests")
    said = f"{added} files that the source distribution lacks are of a checkout of {_version_of(checkout, name)}"
    (folder / "completed.txt").write_text(said, encoding="utf-8")


def _rename_imports(package: Path) -> None:
    """`tests` is the name of our own."""
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        renamed = re.sub(r"^(\s*from )tests\.", rf"\1{package.name}.", text, flags=re.MULTILINE)
        if renamed != text:
            path.write_text(renamed, encoding="utf-8")


def _version_of(checkout: Path, name: str) -> str:
    if (checkout / "VERSION").is_file():
        return (checkout / "VERSION").read_text(encoding="utf-8").strip()
    text = (checkout / "src" / name / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"', text, re.MULTILINE)[1]


def _archive_of_tag(name: str, release: str, aside: Path) -> Path | None:
    path = aside / "tag.tar.gz"
    try:
        with urllib.request.urlopen(ARCHIVE.format(name=name, version=release), timeout=30) as answer:
            path.write_bytes(answer.read())
    except OSError:
        return None
    return path


def _source_distribution(name: str, release: str, aside: Path) -> Path:
    _pip("download", "--no-deps", "--no-binary", ":all:", "-d", aside, f"{name}=={release}")
    (path,) = aside.glob(f"{name}-*.tar.gz")
    return path


def _pip(*arguments) -> None:
    run = subprocess.run([sys.executable, "-m", "pip", "-q", *map(str, arguments)], capture_output=True, text=True)
    if run.returncode:
        reason = run.stderr.strip().splitlines() or ["no reason given"]
        raise Unavailable(f"pip {arguments[0]}: {reason[-1]}")
