"""Every block of Python in the README and the docs runs, and what bash blocks name exists.

Blocks of the language `bash run` are run too, in their place among the others.
"""

import importlib.util
import re
import shlex
from pathlib import Path

import matplotlib
import pytest
import tomllib
from typer.main import get_command
from typer.testing import CliRunner

from jaxspec.applications.command.app import app

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "jaxspec" / "data" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^```([\w ]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = "bash run"
DIGIT = re.compile(r"\d")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
INSTALLED = {"git", "ruff", "mypy", "lint-imports", "pytest"}  # by the extra `dev`


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    """Return (line number, text) of every block of a language."""
    text = page.read_text("utf-8")
    return [
        (text.count("\n", 0, found.start()) + 2, found[2])
        for found in BLOCK.finditer(text)
        if found[1] == language
    ]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name_of)
def test_the_blocks_of_a_page_run_and_print_what_it_says(page, tmp_path, monkeypatch, capsys):
    """Blocks share a namespace; a block without a language is the output of the one before it.

    Digits that a command prints are not compared: the last ones depend on the machine.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)  # lines of commands are of any length in a pipe
    matplotlib.use("Agg")
    namespace = {"__name__": "__main__"}
    printed = ""
    for line, text in sorted(blocks(page, "python") + blocks(page, "") + blocks(page, RUN)):
        if (line, text) in blocks(page, ""):
            assert printed in (text, DIGIT.sub("0", text))
            continue
        if (line, text) in blocks(page, RUN):
            printed = DIGIT.sub("0", "".join(run_command(words) for words in commands_in(text)))
            continue
        code = compile("\n" * (line - 1) + text, str(page), "exec")  # errors name the page's line
        exec(code, namespace)
        printed = capsys.readouterr().out


def commands_in(text):
    """Return the commands of a bash block, each as a list of words."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [shlex.split(one, comments=True) for line in lines for one in line.split("&&")]
    return [words for words in found if words]


def run_command(words):
    """Run `jaxspec` in this process and return what it prints."""
    assert words[0] == "jaxspec"
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p, "bash") + blocks(p, RUN)], ids=name_of
)
def test_the_commands_of_a_page_exist(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for _, text in blocks(page, "bash") + blocks(page, RUN):
        for words in commands_in(text):
            check_command(words, project)


def check_command(words, project):
    program, *rest = words
    if program == "pip":
        assert rest[0] == "install"
        for extra in re.findall(r"\.\[(\w+)\]", " ".join(rest)):
            assert extra in project["optional-dependencies"]
    elif program == "jaxspec":
        assert "jaxspec" in project["scripts"]
        check_options(get_command(app), rest)
    elif program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]) is not None, rest[1]
    elif program == "python":
        assert (ROOT / rest[0]).is_file(), rest[0]
    elif program.startswith(".ci/"):
        assert (ROOT / program).is_file()
    else:
        assert program in INSTALLED, program


def check_options(command, words):
    """Raise unless these are a command of `jaxspec` and options that it has."""
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    assert not hasattr(command, "commands") or words[0].startswith("-"), words
    known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
    for word in words:
        if word.startswith("-") and word not in ("-h", "--help"):
            assert word.partition("=")[0] in known, word


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_relative_links_of_a_page_lead_somewhere(page):
    for target in LINK.findall(BLOCK.sub("", page.read_text("utf-8"))):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_readme_has_at_most_8_kb():
    assert len((ROOT / "README.md").read_bytes()) <= 8000
