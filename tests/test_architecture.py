"""The house as docs/architecture.md draws it: who imports whom, who may touch torch, and no circles, read off the code."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("medusa_tree/**/*.py"), *ROOT.glob("medusa_runtime/**/*.py")])


def module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


class Imports(ast.NodeVisitor):
    """Every module that a file names in an import, the lazy ones too; what only type checkers read apart."""

    def __init__(self, path):
        self.name, self.package = module(path), module(path)
        if path.name != "__init__.py":
            self.package = self.name.rpartition(".")[0]
        self.found, self.for_types = set(), set()
        self.into = self.found
        self.visit(ast.parse(path.read_text("utf-8")))

    def visit_If(self, node):
        before = self.into
        if ast.unparse(node.test) == "TYPE_CHECKING":
            self.into = self.for_types
        self.generic_visit(node)
        self.into = before

    def visit_Import(self, node):
        self.into |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node):
        start = self.package.split(".")[: len(self.package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*start, *([node.module] if node.module else [])])
        for alias in node.names:  # a name may be a module of the package
            inner = f"{base}.{alias.name}"
            self.into.add(inner if inner in MODULES else base)


IMPORTS = {module(path): Imports(path) for path in FILES}


def wing(name):
    """The row of the page's table that a module stands in."""
    parts = name.split(".")
    if parts[0] == "medusa_runtime":
        return "medusa_runtime"
    return parts[1] if len(parts) > 1 else ""


def table():
    """wing -> (the wings it may import, whether it may import torch), in the page's order."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)/?(?:\.py)?` \| [^|]+ \| ([^|]*) \| ([^|]*) \|$", text, re.MULTILINE)
    return {name: (set(re.findall(r"`(\w+)`", may)), torch.strip()) for name, may, torch in rows}


TABLE = table()


def test_the_page_has_every_wing():
    assert {wing(name) for name in MODULES} - {"", "__main__"} == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_wing_imports_what_the_page_says_and_nothing_else(name):
    arrows = {
        wing(target)
        for source, imports in IMPORTS.items()
        if wing(source) == name
        for target in imports.found | imports.for_types
        if target.split(".")[0] in ("medusa_tree", "medusa_runtime")
    }
    assert arrows - {name, ""} == TABLE[name][0]


def test_arrows_point_down_the_page():
    order = list(TABLE)
    for name, (may, _) in TABLE.items():
        assert all(order.index(below) > order.index(name) for below in may), name


def heavy(imports):
    return {m.split(".")[0] for m in imports.found} & {"torch", "transformers", "accelerate", "peft", "datasets"}


def test_torch_is_imported_only_where_the_page_says():
    for name, imports in IMPORTS.items():
        row = TABLE.get(wing(name))
        if row is None or row[1] == "yes" or not heavy(imports):
            continue
        files = re.findall(r"`(\w+)`", row[1])
        assert name.rpartition(".")[2] in files, f"{name} imports {heavy(imports)}, the page says: {row[1] or 'no'}"


def test_no_file_is_in_a_circle():
    graph = {
        name: {t for t in imports.found if t in MODULES and t != name and not name.startswith(f"{t}.")}
        for name, imports in IMPORTS.items()
    }
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)  # raises CycleError


def test_planning_loads_no_torch():
    """What a laptop needs for `plan`, `compare`, `export` and `report`."""
    light = [m for m in MODULES if wing(m) in ("traces", "search", "planning", "engines", "devices", "reports")]
    code = f"""
import importlib, sys
for name in {sorted(m for m in light if m.rpartition(".")[2] not in ("measure", "threads"))!r}:
    importlib.import_module(name)
print([m for m in ("torch", "transformers") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_file_owns_one_thing_that_its_first_line_says():
    for name, path in MODULES.items():
        text = path.read_text("utf-8")
        assert text.startswith('"""'), name
        assert len(text.splitlines()) <= 300, f"{name}: does it still own one thing?"
