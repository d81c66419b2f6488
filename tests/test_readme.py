"""README names only commands and files that exist."""

import re
import subprocess
import sys


def readme(pytestconfig) -> str:
    return (pytestconfig.rootpath / "README.md").read_text(encoding="utf-8")


def test_every_project_file_named_in_the_readme_exists(pytestconfig):
    root = pytestconfig.rootpath
    named = set(re.findall(r"\b(?:recipes|data_scripts|modeling_smoldriver|tests)/[\w./-]*\w", readme(pytestconfig)))
    assert len(named) > 10
    missing = sorted(name for name in named if not (root / name).exists())
    assert not missing


def test_every_make_target_named_in_the_readme_exists(pytestconfig):
    makefile = (pytestconfig.rootpath / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)(?=[ `\n;,)])", "\n".join(commands(readme(pytestconfig)))))
    assert {"setup", "test", "sample"} <= named
    assert not named - targets


def test_scenes_are_prepared_as_the_papers_training_expects_them(pytestconfig):
    """recipes/configs/paper trains on the questions without object tags."""
    text = "\n".join(commands(readme(pytestconfig))).replace("\\\n", " ")
    prepared = re.findall(r"python data_scripts/prepare_drivelm.py ([^`\n]*)", text)
    assert prepared and all("--object-tags drop" in options for options in prepared)


def commands(text: str) -> list[str]:
    """Code blocks and inline code."""
    return re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL)


def test_every_option_in_the_readmes_commands_exists(pytestconfig):
    """Each `python script.py --option` of the README is an option that the script's --help lists."""
    text = "\n".join(commands(readme(pytestconfig))).replace("\\\n", " ")
    calls = re.findall(r"python ((?:recipes|data_scripts)/\w+\.py)([^`\n]*)", text)
    assert calls
    for script in sorted({script for script, _ in calls}):
        options = {option for name, rest in calls if name == script for option in re.findall(r"--[\w-]+", rest)}
        run = [sys.executable, script, "--help"]
        listed = subprocess.run(run, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True).stdout
        assert not {option for option in options if option not in listed}, script
