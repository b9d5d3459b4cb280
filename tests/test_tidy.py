"""The house rules: layers, purity of the core, sizes, public names, documents in step."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import penstock

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "penstock"
MODULES = sorted(SRC.rglob("*.py"))

# Leftward only. Names on one line are siblings and may not import each other (a package may import itself).
LAYERS = [
    {"errors"},
    {"codec", "core", "devices"},
    {"executors"},
    {"policy", "context", "declare", "service", "threads", "models"},
    {"runtime"},
    {"http", "sim"},
    {""},  # the package itself: the public names
    {"engines"},
    {"cli"},
    {"__main__"},
]
TOGETHER = [{"policy", "context", "declare", "service", "threads", "models"}]  # one layer of small modules
LAZY = {
    ("runtime/app.py", "http"): "an App is an ASGI application, and a service's module should not load the HTTP layer",
    ("threads.py", "runtime"): "types only",
    ("service.py", "threads"): "same layer",
}
IMPURE = {"asyncio", "time", "os", "sys", "socket", "logging", "threading", "random", "subprocess", "datetime", "uuid", "io"}
LONG_MODULES: dict[str, int] = {
    "core/scheduler.py": 400,  # every transition of a request, in one place to read
    "runtime/call.py": 355,
    "runtime/driver.py": 355,
    "runtime/binding.py": 335,  # all that an executor reports, in one place
}


def layer(name: str) -> int:
    return next(n for n, names in enumerate(LAYERS) if name in names)


def imports(path: Path) -> list[tuple[str, str]]:
    """(top module under penstock, line) of every import, also those inside functions, but not those for types alone."""
    found = []
    tree = ast.parse(path.read_text())
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.parent.relative_to(SRC.parent).parts
                base = ".".join([*package[: len(package) - node.level + 1], base]).rstrip(".")
            names = [base]
        else:
            continue
        for name in names:
            if name == "penstock" or name.startswith("penstock."):
                found.append((name.partition(".")[2].partition(".")[0], f"{path.relative_to(SRC)}:{node.lineno}"))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_go_left(path: Path) -> None:
    relative = str(path.relative_to(SRC))
    own = path.relative_to(SRC).parts[0].removesuffix(".py")
    own = "" if own == "__init__" else own
    for name, where in imports(path):
        if name == own or (relative, name) in LAZY or any({own, name} <= group for group in TOGETHER):
            continue
        assert layer(name) < layer(own), f"{where} imports penstock.{name}"


@pytest.mark.parametrize("path", sorted((SRC / "core").rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_core_is_pure(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & IMPURE, path
        if isinstance(node, ast.ImportFrom) and node.module == "random":
            assert [alias.name for alias in node.names] == ["Random"], "randomness is a parameter"
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in IMPURE, f"{path}:{node.lineno}"
        if isinstance(node, ast.For | ast.comprehension):
            kind = node.iter.func.id if isinstance(node.iter, ast.Call) and isinstance(node.iter.func, ast.Name) else ""
            assert kind not in ("set", "frozenset"), f"{path} iterates over a set: the order would depend on hashes"
            assert not isinstance(node.iter, ast.Set)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SRC)))
def test_sizes(path: Path) -> None:
    text = path.read_text()
    relative = str(path.relative_to(SRC))
    assert len(text.splitlines()) <= LONG_MODULES.get(relative, 300), f"{relative} has {len(text.splitlines())} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 75, f"{relative}: {node.name} has {length} lines"
    assert not re.search(r"/(utils|manager|helper|common)s?\.py$", "/" + relative)
    assert ast.get_docstring(ast.parse(text)), f"{relative} does not say what it is for"


def test_public_names() -> None:
    assert len(penstock.__all__) <= 30
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in penstock.__all__:
        assert (getattr(penstock, name).__doc__ or "").strip(), f"penstock.{name} has no docstring"
        assert re.search(rf"\bps\.{name}\b", tests), f"no test uses ps.{name}"


def test_readmes_are_in_step() -> None:
    english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md"))
    code = re.compile(r"```.*?```", re.S)
    assert code.findall(english) == code.findall(chinese)
    assert len(re.findall(r"^#", code.sub("", english), re.M)) == len(re.findall(r"^#", code.sub("", chinese), re.M))
