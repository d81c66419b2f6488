"""Each extra of pyproject.toml brings what the scripts that it is for import."""

import ast
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("modeling_smoldriver", "data_scripts", "recipes")
# come with torch, transformers or datasets, whose interface they are part of
BROUGHT = {"jinja2", "pyarrow", "safetensors", "tqdm"}


def imported(module: str, seen: set[str]) -> set[str]:
    """Top-level packages outside the project that a module of it imports as it is loaded, whatever is in between."""
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
        ("eval", ("evaluate_drivelm", "score_answers", "push_to_hub", "ask")),
        ("train", ("build_checkpoint", "distill_vision", "sft_qlora", "merge_checkpoint")),
    ],
)
def test_an_extra_brings_what_its_scripts_import(extra, scripts):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project["dependencies"] + project["optional-dependencies"][extra]
    declared = {re.match(r"[\w-]+", name)[0].replace("-", "_").lower() for name in declared} | BROUGHT
    distributions = packages_distributions()  # of the standard library it knows none
    for script in scripts:
        needed = {
            name.replace("-", "_").lower()
            for package in imported(f"recipes.{script}", set())
            for name in distributions.get(package, ())
        }
        assert "torch" in needed or script == "ask"
        assert not needed - declared, script
