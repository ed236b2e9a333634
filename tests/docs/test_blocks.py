"""Every block of Python in the README and the docs runs, and what bash blocks name exists."""

import importlib.util
import re
import shlex
from pathlib import Path

import matplotlib
import pytest
import tomllib

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "jaxspec" / "data" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
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
    """Blocks share a namespace; a block without a language is the output of the one before it."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    namespace = {"__name__": "__main__"}
    printed = ""
    for line, text in sorted(blocks(page, "python") + blocks(page, "")):
        if (line, text) in blocks(page, ""):
            assert printed == text
            continue
        code = compile("\n" * (line - 1) + text, str(page), "exec")  # errors name the page's line
        exec(code, namespace)
        printed = capsys.readouterr().out


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "bash")], ids=name_of)
def test_the_commands_of_a_page_exist(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for _, text in blocks(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                words = shlex.split(command, comments=True)
                if words:
                    check_command(words, project)


def check_command(words, project):
    program, *rest = words
    if program == "pip":
        assert rest[0] == "install"
        for extra in re.findall(r"\.\[(\w+)\]", " ".join(rest)):
            assert extra in project["optional-dependencies"]
    elif program == "jaxspec":
        assert "jaxspec" in project["scripts"]
        assert rest[0] == "demo"
    elif program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]) is not None, rest[1]
    elif program == "python":
        assert (ROOT / rest[0]).is_file(), rest[0]
    elif program.startswith(".ci/"):
        assert (ROOT / program).is_file()
    else:
        assert program in INSTALLED, program


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_relative_links_of_a_page_lead_somewhere(page):
    for target in LINK.findall(BLOCK.sub("", page.read_text("utf-8"))):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_readme_has_at_most_8_kb():
    assert len((ROOT / "README.md").read_bytes()) <= 8000
