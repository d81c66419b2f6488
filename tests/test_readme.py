"""The documents name only commands and files that exist."""

import re
import runpy
import sys

import pytest

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "recipes/RESULTS.md", "recipes/serving/README.md")


def readme(pytestconfig) -> str:
    return (pytestconfig.rootpath / "README.md").read_text(encoding="utf-8")


@pytest.fixture(params=DOCUMENTS)
def document(request, pytestconfig) -> str:
    return (pytestconfig.rootpath / request.param).read_text(encoding="utf-8")


def test_the_readme_is_short(pytestconfig):
    assert len(readme(pytestconfig).splitlines()) <= 120


def test_every_project_file_named_in_a_document_exists(document, pytestconfig):
    folders = "recipes|data_scripts|modeling_smoldriver|smoldriver_common|tests"
    named = set(re.findall(rf"\b(?:{folders})/[\w./-]*\w", document))
    assert len(named) > 4
    assert not sorted(name for name in named if not (pytestconfig.rootpath / name).exists())


def test_every_make_target_named_in_a_document_exists(document, pytestconfig):
    makefile = (pytestconfig.rootpath / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)(?=[ `\n;,)])", "\n".join(commands(document))))
    assert len(named) > 2
    assert not named - targets


def test_scenes_are_prepared_as_the_papers_training_expects_them(pytestconfig):
    """recipes/configs/paper trains on the questions without object tags."""
    text = "\n".join(commands(readme(pytestconfig))).replace("\\\n", " ")
    prepared = re.findall(r"python data_scripts/prepare_drivelm.py ([^`\n]*)", text)
    assert prepared and all("--object-tags drop" in options for options in prepared)


def commands(text: str) -> list[str]:
    """Code blocks and inline code."""
    return re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL)


def test_every_option_in_the_documents_commands_exists(pytestconfig, monkeypatch, capsys):
    """Each `python script.py --option` of a document is an option that the script's --help lists."""
    texts = [(pytestconfig.rootpath / name).read_text(encoding="utf-8") for name in DOCUMENTS]
    text = "\n".join(commands("\n".join(texts))).replace("\\\n", " ")
    calls = re.findall(r"python ((?:recipes|data_scripts)/\w+\.py)([^`\n]*)", text)
    assert calls
    for script in sorted({script for script, _ in calls}):
        options = {option for name, rest in calls if name == script for option in re.findall(r"--[\w-]+", rest)}
        monkeypatch.setattr(sys, "argv", [script, "--help"])
        with pytest.raises(SystemExit, match="^0$"):  # in this process, which has imported the libraries once
            runpy.run_path(str(pytestconfig.rootpath / script), run_name="__main__")
        listed = capsys.readouterr().out
        assert not {option for option in options if option not in listed}, script
