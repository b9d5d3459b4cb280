"""What the README shows is run: its Python, its commands, its links. That the Chinese one has the same code is among the house rules."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
from served import LONGEST, environment, served

from penstock import cli

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
CHINESE = (ROOT / "README.zh-CN.md").read_text()
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.S)
PYTHON = [code for kind, code in BLOCK.findall(TEXT) if kind == "python"]
COMMANDS = [
    shlex.split(line, comments=True)
    for kind, code in BLOCK.findall(TEXT)
    if kind == "sh"
    for line in code.replace("\\\n", " ").splitlines()
    if line.strip()
]


def test_there_is_code_to_run() -> None:
    assert len(PYTHON) >= 2 and len(COMMANDS) >= 5
    assert {kind for kind, _ in BLOCK.findall(TEXT)} == {"python", "sh"}


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_runs(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType(f"readme_{number}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(PYTHON[number], f"README.md, block {number}", "exec"), vars(module))
    main = getattr(module, "main", None)
    if inspect.iscoroutinefunction(main):
        asyncio.run(main())


def test_commands_exist() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    for program, *arguments in COMMANDS:
        if program == "make":
            assert arguments[0] in targets
        elif program == "penstock":
            options = cli.parser().parse_args(arguments)
            assert callable(options.run)
        else:
            assert program in ("curl", "pip"), program


def test_the_first_service_is_served_and_called(tmp_path: Path) -> None:
    """The commands below the first block, in the order in which they stand, on a port of our own."""
    (tmp_path / "hello.py").write_text(PYTHON[0])
    first = next(n for n, command in enumerate(COMMANDS) if command[:2] == ["penstock", "serve"])
    with served(COMMANDS[first][2], cwd=tmp_path) as (_, url):
        for program, *arguments in COMMANDS[first + 1 : first + 3]:
            if program == "penstock":
                name, service, *rest = arguments
                command = [sys.executable, "-m", "penstock", name, f"{url}/{service}", *rest]
            else:
                if shutil.which(program) is None:
                    pytest.skip(f"{program} is not installed")
                command = [program, "-s", *(a.replace("http://127.0.0.1:8000", url) for a in arguments)]
            done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LONGEST)
            assert (done.returncode, json.loads(done.stdout)) == (0, "Hello, Ada!"), done.stderr


@pytest.mark.parametrize("text", [TEXT, CHINESE], ids=["README.md", "README.zh-CN.md"])
def test_links_and_extras_exist(text: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("http") or (ROOT / link).exists(), link
    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert set(re.findall(r"`\[(\w+)\]`", text)) == known - {"test"}
