"""Each extra of pyproject.toml brings what its scripts import; scripts that need no model load no model library."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("modeling_smoldriver", "data_scripts", "recipes", "smoldriver_common")
# installed with torch, transformers or datasets, whose interface they are part of
BROUGHT = {"jinja2", "pyarrow", "safetensors", "tqdm"}
MODEL_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "trl")
LIGHT_SCRIPTS = (
    "recipes/score_answers.py",
    "recipes/drive.py",
    "recipes/draw_drive.py",
    "recipes/score_plans.py",
    "recipes/tiny/demo.py",
    "recipes/tiny/drive_demo.py",
    "recipes/tiny/dagger.py",
    "recipes/tiny/guidance.py",
    "recipes/tiny/grpo_demo.py",
    "recipes/tiny/compare.py",
    "recipes/tiny/ablation.py",
    "data_scripts/prepare_drivelm.py",
    "data_scripts/prepare_planning.py",
    "data_scripts/make_counterfactuals.py",
    "data_scripts/download_drivelm_sample.py",
)
POSIX_ONLY = {"curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
# Runs a script as `python <script> --help` does, then prints the loaded top-level modules.
HELP = """
import runpy, sys
script = sys.argv[1]
sys.argv = [script, "--help"]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
print("LOADED", *sorted({name.split(".")[0] for name in sys.modules}))
"""


def imported(module: str, seen: set[str]) -> set[str]:
    """Top-level packages outside the project that a module imports when it is loaded, directly or through others."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    path = path if path.is_file() else path.with_suffix("") / "__init__.py"
    if module in seen or not path.is_file():
        return set()
    seen.add(module)
    found = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = f"{package}.{node.module}" if node.level else node.module
            names = [source, *(f"{source}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            top = name.split(".")[0]
            found |= imported(name, seen) | imported(top, seen) if top in OURS else {top}
    return found


@pytest.mark.parametrize(
    "extra, scripts",
    [
        ("eval", ("evaluate_drivelm", "score_answers", "push_to_hub", "ask", "evaluate_planner", "score_plans")),
        ("train", ("build_checkpoint", "distill_vision", "sft_qlora", "merge_checkpoint")),
    ],
)
def test_an_extra_brings_what_its_scripts_import(extra, scripts):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project["dependencies"] + project["optional-dependencies"][extra]
    declared = {re.match(r"[\w-]+", name)[0].replace("-", "_").lower() for name in declared} | BROUGHT
    distributions = packages_distributions()  # knows none of the standard library
    for script in scripts:
        needed = {
            name.replace("-", "_").lower()
            for package in imported(f"recipes.{script}", set())
            for name in distributions.get(package, ())
        }
        assert "torch" in needed or script in ("ask", "score_answers", "score_plans")
        assert not needed - declared, script


def loaded_with(tree: ast.Module) -> set[str]:
    """Top-level packages that a file imports when it is loaded, in whatever block."""
    found, nodes = set(), [tree]
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            nodes += ast.iter_child_nodes(node)
    return found


def test_every_file_can_be_loaded_on_windows():
    files = [path for top in OURS for path in (ROOT / top).rglob("*.py")]
    assert len(files) > 150
    for path in files:
        needed = loaded_with(ast.parse(path.read_text(encoding="utf-8"))) & POSIX_ONLY
        assert not needed, (
            f"{path.relative_to(ROOT)} imports {needed}, which Windows lacks: import it where it is used"
        )
    assert loaded_with(ast.parse("try:\n    import fcntl\nexcept ImportError:\n    pass")) == {"fcntl"}


@pytest.mark.parametrize("script", LIGHT_SCRIPTS)
def test_a_script_that_needs_no_model_loads_no_model_library(script):
    done = subprocess.run([sys.executable, "-c", HELP, script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "usage: " in done.stdout
    loaded = done.stdout.rpartition("LOADED ")[2].split()
    assert "json" in loaded and "smoldriver_common" in loaded
    assert not set(MODEL_LIBRARIES) & set(loaded)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.stem)
def test_a_recipe_can_be_read_in_one_go(recipe):
    assert len(recipe.read_text(encoding="utf-8").splitlines()) < 150
