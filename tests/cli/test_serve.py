"""`penstock serve` as a user runs it: a child process, its standard error, its signals, its exit status."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served import LONGEST, Child, served

import penstock as ps
from penstock.cli.serve import report

APP = '''
import asyncio, os, sys, time
import penstock as ps

def held(name):
    print(name, "began", file=sys.stderr, flush=True)
    return not os.path.exists("go")

@ps.service
async def hello(name: str) -> str:
    """Greets."""
    return f"Hello, {name}!"

@ps.service(limit=ps.Fixed(2))
async def wait() -> str:
    if held("wait"):
        while not os.path.exists("go"):
            await asyncio.sleep(0.005)
    return "waited"

@ps.service
def stuck() -> None:
    held("stuck")
    time.sleep(600)

@ps.service(batch=ps.Batch(max_size=8, max_wait=0.002), on=ps.Thread(2))
def lengths(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]

app = ps.App(hello, wait, stuck, lengths, name="the app")
other = 5
'''


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "models.py").write_text(APP)
    return tmp_path


def ask(url: str, body: Any = None) -> Any:
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request, timeout=LONGEST) as response:
        return json.loads(response.read())


class Asked(threading.Thread):
    """A request that is under way, and its answer or error."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.answer: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = ask(self.url, {})
        except (OSError, http.client.HTTPException) as error:
            self.answer = error

    def wait(self) -> Any:
        self.join(LONGEST)
        return self.answer


def failed(place: Path, *arguments: str) -> str:
    """The one line on which the command gives up, with status 1."""
    child = Child("serve", *arguments, cwd=place)
    try:
        assert child.end() == 1
        (line,) = child.lines
        assert line.startswith("penstock: ")
        return line
    finally:
        child.close()


def test_the_report_says_what_runs_and_where(place: Path) -> None:
    with served("models:app", cwd=place) as (child, url):
        child.until(r"GET  .*/openapi.json")
        first, *rows = child.lines
        assert first.startswith(f"the app is up at {url} (started in ")
        report = "\n".join(rows)
        for row in (
            rf"POST {url}/hello  inline",
            rf"POST {url}/wait  inline, Fixed",
            rf"POST {url}/lengths  thread x2, batches of 8 within 2 ms",
        ):
            assert row in report, report
        assert ask(f"{url}/hello", {"name": "Ada"}) == "Hello, Ada!"
        line = json.loads(child.until('"service":"hello"').string)
        assert (line["service"], line["outcome"]) == ("hello", "ok")


def test_the_report_says_how_to_ask_and_how_many_may_wait() -> None:
    async def plain(x: int) -> int:
        return x

    app = ps.App(
        ps.service(plain, name="once"),
        ps.service(plain, name="safe", safe=True),
        ps.service(plain, name="bounded", safe=True, admit=(ps.Queue(items=8), ps.Latest())),
    )
    _, once, safe, bounded, *_ = report(app, "http://here", 0.0).splitlines()
    assert once.startswith("  POST http://here/once  inline, starts within")
    assert safe.startswith("  POST, GET http://here/safe  inline, starts within")
    assert bounded.startswith("  POST, GET http://here/bounded  inline, queue of 8, starts within")


def test_inline_bodies_run_in_this_process(tmp_path: Path) -> None:
    (tmp_path / "apart.py").write_text(
        "import os\nimport penstock as ps\n\n"
        "@ps.service(on=ps.Process(2))\ndef here() -> int:\n    return os.getpid()\n\n"
        "@ps.service(on=ps.Process())\nasync def on_the_loop() -> int:\n    return os.getpid()\n\n"
        "app = ps.App(here, on_the_loop)\n"
    )
    found = []
    for options in ((), ("--inline",)):
        with served("apart:app", *options, cwd=tmp_path) as (child, url):
            child.until(r"GET  .*/openapi.json")
            report = "\n".join(child.lines)
            assert ("thread x2" in report) == ("--inline" in options), report
            pids = {ask(f"{url}/{name}", {}) for name in ("here", "on_the_loop")}
            found.append(pids == {child.process.pid})
    assert found == [False, True]


@pytest.mark.parametrize("target", ["models.py:app", "models", "models:hello"])
def test_what_can_be_named(place: Path, target: str) -> None:
    with served(target, cwd=place) as (_, url):
        assert ask(f"{url}/hello", {"name": "you"}) == "Hello, you!"


MISTAKES: dict[str, tuple[str, str, str]] = {
    "no module": ("", "nowhere:app", r"there is no module 'nowhere' here"),
    "no file": ("", "nowhere.py:app", "there is no file nowhere.py"),
    "nothing before the colon": ("", ":app", "give module:name"),
    "no such name": ("", "models:none", "models has nothing named 'none'; models has hello, wait, stuck, lengths, app"),
    "another kind": ("", "models:other", "models:other is a int, not a penstock.App; models has hello"),
    "syntax": ("def f(:\n", "broken:app", "broken.py:1: SyntaxError: invalid syntax"),
    "a missing library": ("import nothing_of_this_name\n", "broken:app", "needs the module 'nothing_of_this_name'"),
    "raises": ("x = 1\nx.y\n", "broken:app", r"AttributeError: 'int' object has no attribute 'y' at broken.py:2"),
    "exits": ("import sys\nsys.exit(3)\n", "broken:app", "broken called sys.exit(3) while it was loaded"),
    "cannot load its model": (
        "import penstock as ps\nclass M:\n    def __init__(self):\n        raise OSError('no weights\\nat all')\n"
        "    def __call__(self) -> int:\n        return 1\nm = ps.service(M, name='m')\napp = ps.App(m)\n",
        "broken:app",
        "OSError: no weights at broken.py:4",
    ),
    "its child process cannot": (
        "import penstock as ps\nclass M:\n    def __init__(self):\n        raise OSError('no weights')\n"
        "    def __call__(self) -> int:\n        return 1\nm = ps.service(M, name='m', on=ps.Process())\napp = ps.App(m)\n",
        "broken:app",
        "OSError: no weights (--debug",
    ),
    "a wrong declaration": (
        "import penstock as ps\n@ps.service(on=ps.Inline())\ndef f() -> int:\n    return 1\napp = ps.App(f)\n",
        "broken:app",
        "would block the loop",
    ),
    "a contradiction": (
        "import penstock as ps\n@ps.service(batch=ps.Batch(max_size=8), admit=ps.Queue(items=2))\n"
        "def f(xs: list[int]) -> list[int]:\n    return xs\napp = ps.App(f)\n",
        "broken:app",
        "raise items or lower Batch(max_size=...) (--debug",  # and no place: it is in no line of theirs
    ),
    "a name that is taken": ("app = 1\n", "sub/asyncio.py:app", "its name is that of another module"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line(place: Path, name: str) -> None:
    text, target, expected = MISTAKES[name]
    if text:
        file = place / ("sub/asyncio.py" if "sub/" in target else "broken.py")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    line = failed(place, target, "--port", "0")
    assert expected in line, line


def test_debug_gives_the_traceback(place: Path) -> None:
    (place / "broken.py").write_text("x = 1\nx.y\n")
    child = Child("serve", "broken:app", "--debug", cwd=place)
    assert child.end() == 1
    child.close()
    assert "Traceback" in child.said
    assert 'broken.py", line 2' in child.said


def test_wrong_arguments_are_status_2(place: Path) -> None:
    for arguments in (("serve",), ("serve", "models:app", "--port", "99999"), ("nothing",)):
        child = Child(*arguments, cwd=place)
        assert child.end() == 2
        child.close()
        assert "Traceback" not in child.said
        assert "_port" not in child.said


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("--ttft", "1"), "--ttft and --tpot are targets of --chat and --vllm models"),
        (("--vllm-python", "/opt/vllm"), "--vllm-python is where --vllm models run"),
    ],
)
def test_what_is_for_models_that_are_not_there(place: Path, given: tuple[str, str], expected: str) -> None:
    assert expected in failed(place, "models:app", "--port", "0", *given)


def test_a_port_in_use_is_found_before_anything_loads(place: Path) -> None:
    (place / "slow.py").write_text(
        "import penstock as ps\nclass M:\n    def __init__(self):\n        raise ValueError('loaded')\n"
        "    def __call__(self) -> int:\n        return 1\napp = ps.App(ps.service(M, name='m'))\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = failed(place, "slow:app", "--port", str(port))
    assert (
        line == f"penstock: cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port, --host or --uds"
    )
    assert "cannot listen on no.such.host.invalid:0: " in failed(
        place, "models:app", "--host", "no.such.host.invalid", "--port", "0", "--insecure"
    )


def over_unix(path: Path) -> Any:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request("POST", "/hello", b'{"name": "Ada"}', {"content-type": "application/json"})
    try:
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def test_a_unix_socket(place: Path) -> None:
    path = place / "s"
    with served("models:app", "--uds", str(path), cwd=place) as (child, url):
        child.until(f"also on the unix socket {path}")
        assert over_unix(path) == ask(f"{url}/hello", {"name": "Ada"}) == "Hello, Ada!"
        line = failed(place, "models:app", "--port", "0", "--uds", str(path))
        assert line == f"penstock: cannot listen on {path}: Address already in use; choose another --port, --host or --uds"
        assert over_unix(path) == "Hello, Ada!"
        child.process.kill()  # it leaves its socket behind
        child.end()
        assert path.exists()
    with served("models:app", "--uds", str(path), cwd=place) as (child, url):
        child.until("also on the unix socket")
        assert over_unix(path) == "Hello, Ada!"
        child.process.terminate()
        assert child.end() == 0
    assert not path.exists()
    assert "cannot listen on nowhere/s: " in failed(place, "models:app", "--port", "0", "--uds", "nowhere/s")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_what_is_in_flight_end(place: Path, number: signal.Signals) -> None:
    with served("models:app", cwd=place) as (child, url):
        asked = Asked(f"{url}/wait")
        child.until("wait began")
        child.process.send_signal(number)
        child.until(r"the app stops; what is in flight has 30 s, a second Ctrl-C ends it now")
        with pytest.raises(OSError, match=r"refused|reset|503"):
            ask(f"{url}/hello", {"name": "late"})
        (place / "go").touch()
        assert asked.wait() == "waited"
        assert child.end() == 0
        assert "Traceback" not in child.said


def test_an_idle_server_stops_at_once(place: Path) -> None:
    with served("models:app", cwd=place) as (child, _):
        child.process.send_signal(signal.SIGINT)
        assert child.end() == 0
        assert child.lines[-1] == "the app stops"


@pytest.mark.parametrize("path", ["wait", "stuck"])
def test_a_second_signal_ends_what_is_in_flight(place: Path, path: str) -> None:
    with served("models:app", "--grace", "600", cwd=place) as (child, url):
        asked = Asked(f"{url}/{path}")
        child.until(f"{path} began")
        child.process.send_signal(signal.SIGINT)
        child.until("the app stops")
        child.process.send_signal(signal.SIGINT)
        assert child.end() == 130
        assert isinstance(asked.wait(), OSError | http.client.HTTPException)
        assert "Traceback" not in child.said


@pytest.mark.parametrize("path", ["wait", "stuck"])
def test_the_grace_ends(place: Path, path: str) -> None:
    with served("models:app", "--grace", "0.2", cwd=place) as (child, url):
        asked = Asked(f"{url}/{path}")
        child.until(f"{path} began")
        child.process.send_signal(signal.SIGTERM)
        assert child.end() == 0
        refusal = asked.wait()
        assert isinstance(refusal, urllib.error.HTTPError)
        assert (refusal.code, json.load(refusal)["title"]) == (503, "Shutting down")
        assert "Traceback" not in child.said


def test_what_loads_for_long_is_told(place: Path) -> None:
    (place / "slow.py").write_text(
        "import os, time\nimport penstock as ps\nclass M:\n    def __init__(self):\n"
        "        while not os.path.exists('loaded'):\n            time.sleep(0.01)\n"
        "    def __call__(self) -> int:\n        return 1\napp = ps.App(ps.service(M, name='m'))\n"
    )
    child = Child("serve", "slow:app", "--port", "0", cwd=place)
    try:
        child.until(r"loading m \(\d+ s so far\)")
        (place / "loaded").touch()
        child.until("is up at")
    finally:
        child.close()


def test_a_signal_while_it_loads_ends_it(place: Path) -> None:
    (place / "slow.py").write_text(
        "import sys, time\nimport penstock as ps\nclass M:\n    def __init__(self):\n"
        "        print('loading', file=sys.stderr, flush=True)\n        time.sleep(600)\n"
        "    def __call__(self) -> int:\n        return 1\napp = ps.App(ps.service(M, name='m'))\n"
    )
    child = Child("serve", "slow:app", "--port", "0", cwd=place)
    try:
        child.until("loading")
        child.process.send_signal(signal.SIGINT)
        assert child.end() == 130
        assert "Traceback" not in child.said
    finally:
        child.close()


Edit = Callable[[str], None]


def test_reload(place: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    child = Child("serve", "models:app", "--reload", "--port", port, cwd=place)
    try:
        child.until("is up at")
        assert ask(f"{url}/hello", {"name": "Ada"}) == "Hello, Ada!"
        (place / "models.py").write_text(APP.replace("Hello", "Good day"))
        child.until("a file changed: starting anew")
        child.until("is up at", 2)
        assert ask(f"{url}/hello", {"name": "Ada"}) == "Good day, Ada!"
        (place / "models.py").write_text(APP.replace("def held(", "def held(("))
        child.until(r"models.py:\d+: SyntaxError")
        child.until("the server has ended; waiting for a file to change")
        (place / "models.py").write_text(APP.replace("Hello", "Welcome"))
        child.until("is up at", 3)
        assert ask(f"{url}/hello", {"name": "Ada"}) == "Welcome, Ada!"
        asked = Asked(f"{url}/wait")
        child.until("wait began")
        child.process.send_signal(signal.SIGINT)
        child.until("the app stops; what is in flight")
        (place / "go").touch()
        assert asked.wait() == "waited"
        assert child.end() == 0
        assert "Traceback" not in child.said
    finally:
        child.close()
