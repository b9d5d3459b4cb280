"""`penstock call` and `penstock info`, as child processes against a real server."""

from __future__ import annotations

import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import LONGEST, Child, environment, served

APP = """
import asyncio, sys
from collections.abc import AsyncIterator
import penstock as ps

@ps.service
async def hello(name: str, times: int = 1) -> str:
    return " ".join([f"Hello, {name}!"] * times)

@ps.service
async def count(to: int) -> AsyncIterator[dict[str, int]]:
    for i in range(to):
        yield {"i": i}

@ps.service
async def breaks() -> AsyncIterator[int]:
    yield 1
    raise ps.errors.QueueFull("the upstream is full")

@ps.service
async def endless() -> AsyncIterator[int]:
    print("began", file=sys.stderr, flush=True)
    while True:
        yield 1
        await asyncio.sleep(0)

@ps.service
async def reverse(data: bytes) -> bytes:
    return data[::-1]

@ps.service
async def waits() -> None:
    await asyncio.Event().wait()

@ps.service
async def look() -> list[str | int]:
    from penstock.context import current_budget
    budget = current_budget()
    return [budget.tenant, budget.priority]

app = ps.App(hello, count, breaks, endless, reverse, waits, look)
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("call")
    (place / "models.py").write_text(APP.replace("import penstock as ps", "import penstock as ps, penstock.errors"))
    with served("models:app", cwd=place) as (_, address):
        yield address


def call(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
    """Status, standard output, standard error."""
    command = [sys.executable, "-m", "penstock", "call", *arguments]
    done = subprocess.run(command, env=environment(), input=stdin.encode(), capture_output=True, timeout=LONGEST)
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stdout.decode("latin-1"), done.stderr.decode()


def test_values_are_json_or_else_text(url: str) -> None:
    assert call(f"{url}/hello", "name=Ada") == (0, '"Hello, Ada!"\n', "")
    assert call(f"{url}/hello", 'name="5"', "times=2")[1] == '"Hello, 5! Hello, 5!"\n'
    assert call(f"{url}/hello", "--json", '{"name": "Ada", "times": 1}', "times=2")[1] == '"Hello, Ada! Hello, Ada!"\n'
    assert call(f"{url}/hello", "--json", "-", stdin='{"name": "Bob"}')[1] == '"Hello, Bob!"\n'
    assert call(url.removeprefix("http://") + "/hello", "name=Ada")[0] == 0


def test_a_stream_is_a_line_an_item(url: str) -> None:
    assert call(f"{url}/count", "to=3") == (0, '{"i":0}\n{"i":1}\n{"i":2}\n', "")
    assert call(f"{url}/count", "to=0") == (0, "", "")
    assert call(f"{url}/breaks") == (1, "1\n", "penstock: the upstream is full\n")


def test_items_come_as_they_are_made_and_a_pipe_may_close(url: str) -> None:
    command = [sys.executable, "-m", "penstock", "call", f"{url}/endless"]
    child = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stderr is not None
    assert child.stdout.readline() == b"1\n"
    child.stdout.close()  # as `| head -1` does
    assert child.wait(LONGEST) == 1
    assert child.stderr.read() == b""
    child.stderr.close()


def test_bytes_are_written_as_they_are(url: str) -> None:
    assert call(f"{url}/reverse", 'data="AAH/"') == (0, "\xff\x01\x00", "")


def test_budget_and_times(url: str) -> None:
    assert call(f"{url}/look", "--tenant", "acme", "--priority", "-2")[1] == '["acme",-2]\n'
    status, _, said = call(f"{url}/hello", "name=a", "--verbose")
    assert status == 0
    assert "run;dur=" in said
    status, out, said = call(f"{url}/waits", "--within", "0.05")
    assert (status, out) == (1, "")
    assert said.startswith("penstock: 504 Deadline exceeded: ")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("{url}/helo", "name=Ada"), "404 Not found: nothing is at /helo; did you mean /hello?"),
        (("{url}/zzz",), "404 Not found: nothing is at /zzz; there is /breaks, /count"),
        (
            ("{url}/hello", "nam=Ada"),
            "422 Validation failed: Object contains unknown field `nam`. `hello` takes an object with the fields: `name`, `times`",
        ),
        (("{url}/hello", "name=5"), "422 Validation failed: Expected `str`, got `int` - at `$.name`"),
        (("{url}/hello", "Ada"), "'Ada': parameters are given as name=value"),
        (("{url}/hello", "--json", "{"), "--json is not JSON"),
        (("{url}/hello", "--json", "[1]"), "--json takes an object"),
        (("ftp://a/hello",), "'ftp://a/hello' is not a URL that can be called; http://host:port/service is"),
        (("http://127.0.0.1:x/hello",), "is not a URL that can be called"),
        (("http://127.0.0.1:99999/hello",), "is not a URL that can be called"),
        (("http://[::1/hello",), "is not a URL that can be called"),
        (("http://no.such.host.invalid/hello",), "'no.such.host.invalid' is not a host that is known"),
    ],
)
def test_a_mistake_is_one_clear_line(url: str, arguments: tuple[str, ...], expected: str) -> None:
    status, out, said = call(*(a.replace("{url}", url) for a in arguments))
    assert (status, out) == (1, "")
    assert said.startswith("penstock: ") and said.count("\n") == 1
    assert expected in said


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        said = call(f"http://127.0.0.1:{port}/hello")[2]
    assert said == f"penstock: nothing listens at 127.0.0.1:{port}; is `penstock serve` running?\n"


def test_ctrl_c_ends_a_call(url: str) -> None:
    child = Child("call", f"{url}/endless")
    try:
        assert child.process.stdout is not None
        assert child.process.stdout.readline() == "1\n"
        child.process.send_signal(signal.SIGINT)
        assert child.end() == 130
        assert child.said == ""
    finally:
        child.close()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LONGEST)


def test_info_and_version(tmp_path: Path) -> None:
    done = run("info")
    assert (done.returncode, done.stderr) == (0, "")
    first, second, third, *rest = done.stdout.splitlines()
    assert f"Python {platform.python_version()}" in first
    assert second.startswith("cores ")
    assert "threads for a plain function" in third
    assert any(line.split()[0] == "msgspec" and line.split()[1][0].isdigit() for line in rest)
    assert run("--version").stdout.startswith("penstock ")
    assert "serve an app over HTTP" in run("--help").stdout
    assert run("call", "hello", "--nothing").returncode == 2
