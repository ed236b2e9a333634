"""The diagram and tables of docs/architecture.md agree with the imports and files of the tree."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "jaxspec"
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
PACKAGES = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"data"}
LINE = "base < kernels < specify < market < scoring < matching < index < stream"
FURTHER_LINES = ("market < files < stream", "matching < reuse")


def imported_packages(file):
    """Return the packages of jaxspec that a file imports, at any depth of the file."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "jaxspec" and len(parts) > 1 and parts[1] in PACKAGES:
                found.add(parts[1])
    return found


def imports():
    """Return {package: other packages that its files import}."""
    return {
        package: set().union(*map(imported_packages, (PACKAGE / package).rglob("*.py"))) - {package}
        for package in PACKAGES
    }


def reachable(graph, start):
    found, todo = set(), [start]
    while todo:
        new = graph[todo.pop()] - found
        found |= new
        todo += new
    return found


def needed_arrows(graph):
    """Return the arrows that do not follow from others: the transitive reduction."""
    return {
        (one, other)
        for one in graph
        for other in graph[one]
        if not any(other in reachable(graph, between) for between in graph[one] - {other})
    }


def drawn_arrows():
    diagram = re.search(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)[1]
    return set(re.findall(r"(\w+) --> (\w+)", diagram))


def test_no_package_imports_itself_through_others():
    graph = imports()
    assert not [package for package in graph if package in reachable(graph, package)]


def test_the_diagram_has_exactly_the_imports_that_do_not_follow_from_others():
    assert drawn_arrows() == needed_arrows(imports())


def test_the_page_states_the_dependency_lines_and_the_tree_keeps_them():
    graph = imports()
    for line in (LINE, *FURTHER_LINES):
        assert line in PAGE
        order = line.split(" < ")
        for place, package in enumerate(order):
            assert not reachable(graph, package) & set(order[place + 1 :])


def test_every_file_has_one_row_and_every_row_a_file():
    listed = re.findall(r"^\| `([\w/]+\.py)` \|", PAGE, re.MULTILINE)
    there = {
        file.relative_to(PACKAGE).as_posix()
        for package in PACKAGES
        for file in (PACKAGE / package).rglob("*.py")
        if file.name != "__init__.py"
    }
    assert len(listed) == len(set(listed))
    assert not there - set(listed), "files without a row in docs/architecture.md"
    assert not set(listed) - there, "rows of docs/architecture.md without a file"
