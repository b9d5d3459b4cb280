"""Replicas by hand over HTTP, with real child processes under load: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from http_stand import Client, get
from replica_bodies import Model
from served import Child, served

import penstock as ps
from penstock.cli.top import fetch
from penstock.cli.top.frame import frame
from penstock.http.asgi import application
from penstock.http.serve import serving
from penstock.policy import Scale
from penstock.runtime.tokens import changed, issue

Go = Callable[[Awaitable[Any]], Any]


@ps.service
async def plain(x: int) -> int:
    return x


@ps.service(on=ps.Thread(replicas=Scale(2, 3)))
def ruled(x: int) -> int:
    return x


class Stand:
    """A server of one model in child processes, and what was asked of it and done by it."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port, self.folder = port, folder
        self.asked = 0
        self.pids: list[int] = []

    async def ask(self, method: str, path: str, body: bytes = b"", *lines: str) -> tuple[int, Any]:
        """One request on a connection of its own."""
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        try:
            client.send(get(path, *lines, method=method, body=body))
            status, _, answer = await client.answer()
        finally:
            client.close()
        return status, json.loads(answer)

    async def call(self, client: Client, hold: bool = False) -> None:
        """One call; its answer."""
        n, self.asked = self.asked, self.asked + 1
        client.send(get("/model", method="POST", body=json.dumps({"n": n, "hold": hold}).encode()))
        status, _, answer = await client.answer()
        assert status == 200, answer
        self.pids.append(int(answer))

    @asynccontextmanager
    async def load(self, clients: int = 6) -> AsyncIterator[None]:
        """Calls all the time; afterwards, that each was answered, and done once."""
        stop = False

        async def go_on() -> None:
            client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
            while not stop:
                await self.call(client)
            client.close()

        tasks = [asyncio.ensure_future(go_on()) for _ in range(clients)]
        try:
            yield
        finally:
            stop = True
            await asyncio.gather(*tasks)
        self.check()

    def check(self) -> None:
        done = Counter(map(int, (self.folder / "book").read_text().split()))
        assert done == Counter(range(self.asked)) and len(self.pids) == self.asked

    async def state(self) -> Any:
        return (await self.ask("GET", "/replicas/model"))[1]


@asynccontextmanager
async def standing(folder: Path, count: int, **options: Any) -> AsyncIterator[Stand]:
    os.mkfifo(folder / "gate")
    model = ps.service(Model, on=ps.Process(count, env={"BOOK": str(folder)}))
    async with serving(ps.App(model, plain, ruled, log=False, **options), grace=5.0) as server:
        yield Stand(server.port, folder)


def test_up_and_down_under_load(go: Go, tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path, 1) as stand:
            async with stand.load():
                for count in (3, 1, 2):
                    status, state = await stand.ask("PUT", "/replicas/model", b'{"count": %d}' % count)
                    assert (status, state["wanted"], state["ready"]) == (200, count, count)
                seen = len(stand.pids)
                while len(set(stand.pids[seen:])) < 2:
                    await asyncio.sleep(0)
            state = await stand.state()
            assert state == {"wanted": 2, "ready": 2, "scalable": True, "change": "", "change_failed": ""}
            _, text = await metrics(stand)
            assert 'penstock_replicas_ready{service="model"} 2' in text
            assert 'penstock_replicas_wanted{service="model"} 2' in text

    go(main())


async def metrics(stand: Stand) -> tuple[int, str]:
    client = Client(*await asyncio.open_connection("127.0.0.1", stand.port))
    client.send(get("/metrics"))
    status, _, text = await client.answer()
    client.close()
    return status, text.decode()


def test_what_runs_in_a_retired_replica_ends_and_is_answered(go: Go, tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path, 2) as stand:
            clients = [Client(*await asyncio.open_connection("127.0.0.1", stand.port)) for _ in range(2)]
            held = [asyncio.ensure_future(stand.call(client, hold=True)) for client in clients]
            while (await asyncio.to_thread(fetch, f"http://127.0.0.1:{stand.port}")).services[0].in_flight < 2:
                pass
            status, state = await stand.ask("PUT", "/replicas/model", b'{"count": 1}')
            assert (status, state["ready"]) == (200, 1) and not any(call.done() for call in held)
            now = await asyncio.to_thread(fetch, f"http://127.0.0.1:{stand.port}")
            assert [replica.leaving for replica in now.services[0].replicas].count(True) == 1
            lines = frame(now, now, "", 200, 100)
            assert any("drains" in line for line in lines)
            assert next(line for line in lines if line.startswith("model")).split()[2] == "1/1"
            gate = os.open(tmp_path / "gate", os.O_RDWR)
            os.write(gate, b"..")
            await asyncio.gather(*held)
            os.close(gate)
            stand.check()
            for client in clients:
                client.close()

    go(main())


def test_a_roll_never_has_fewer_ready_and_loses_nothing(go: Go, tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path, 2) as stand, stand.load():
            while len(set(stand.pids)) < 2:
                await asyncio.sleep(0)
            old, seen = set(stand.pids), []
            rolling = asyncio.ensure_future(stand.ask("POST", "/replicas/model/roll"))
            while not rolling.done():
                seen.append(await stand.state())
            assert rolling.result() == (200, await stand.state())
            assert min(state["ready"] for state in seen) == 2, "a new one is ready before an old one drains"
            assert {state["wanted"] for state in seen} == {2}
            assert any(re.match(r"rolling, \d of 2 replaced", state["change"]) for state in seen)
            count = len(stand.pids)
            while len(stand.pids) < count + 20:
                await asyncio.sleep(0)
            assert not old & set(stand.pids[count + 6 :]) and not any(map(psutil.pid_exists, old))

    go(main())


def test_a_roll_that_cannot_load_leaves_the_old_ones_serving(go: Go, tmp_path: Path, caplog: Any) -> None:
    async def main() -> None:
        async with standing(tmp_path, 2) as stand, stand.load():
            (tmp_path / "spoilt").touch()
            for change in (("POST", "/replicas/model/roll"), ("PUT", "/replicas/model", b'{"count": 3}')):
                status, problem = await stand.ask(*change)
                assert status == 500 and problem["type"] == "urn:penstock:ServiceFailed"
                assert "the weights are gone" in problem["detail"] and "2 of 2 replicas serve on" in problem["detail"]
            state = await stand.state()
            assert (state["ready"], state["wanted"], state["change"]) == (2, 2, "")
            assert "the weights are gone" in state["change_failed"]
            now = await asyncio.to_thread(fetch, f"http://127.0.0.1:{stand.port}")
            assert any("the weights are gone" in line for line in frame(now, now, "", 200, 100))
            (tmp_path / "spoilt").unlink()
            status, state = await stand.ask("POST", "/replicas/model/roll")
            assert (status, state["ready"], state["change_failed"]) == (200, 2, "")

    go(main())


def test_a_change_goes_on_without_whoever_asked_for_it(go: Go, tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path, 1) as stand:
            gone = Client(*await asyncio.open_connection("127.0.0.1", stand.port))
            gone.send(get("/replicas/model", method="PUT", body=b'{"count": 2}'))
            while not (await stand.state())["change"]:
                pass
            gone.close()
            while (await stand.state())["ready"] < 2:
                pass
            status, state = await stand.ask("PUT", "/replicas/model", b'{"count": 3}', "Prefer: respond-async")
            assert status == 202 and state["ready"] == 2
            while (await stand.state())["ready"] < 3:
                pass

    go(main())


def test_what_cannot_be_asked(go: Go, tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path, 1) as stand:
            for status, word, *asked in (
                (404, "nothing is at", "PUT", "/replicas/nobody", b'{"count": 2}'),
                (404, "nothing is at", "POST", "/replicas/model/spin"),
                (405, "answers POST", "PUT", "/replicas/model/roll"),
                (405, "answers GET, HEAD, PUT", "DELETE", "/replicas/model"),
                (409, "plain runs on the loop", "PUT", "/replicas/plain", b'{"count": 2}'),
                (409, "plain runs on the loop", "POST", "/replicas/plain/roll"),
                (409, "between 2 and 3", "PUT", "/replicas/ruled", b'{"count": 4}'),
                (422, "count", "PUT", "/replicas/model", b'{"count": 0}'),
                (422, "count", "PUT", "/replicas/model", b'{"count": 100000}'),
                (422, "number", "PUT", "/replicas/model", b'{"number": 2}'),
                (400, "not JSON", "PUT", "/replicas/model", b"please"),
                (403, "pages of a browser", "POST", "/replicas/model/roll", b"", "Origin: http://elsewhere"),
            ):
                found, problem = await stand.ask(*asked)  # type: ignore[arg-type]
                assert found == problem["status"] == status and word in problem["detail"], problem
            assert (await stand.ask("POST", "/replicas/ruled/roll"))[1]["wanted"] == 2
            assert (await stand.state())["ready"] == 1

    go(main())


def test_only_operators_may_where_there_are_tokens(go: Go, tmp_path: Path) -> None:
    book = tmp_path / "tokens.json"
    with changed(book) as tokens:
        caller, operator = issue(tokens, "web", "acme"), issue(tokens, "ops", "ops", operator=True)

    async def main() -> None:
        async with standing(tmp_path, 1, tokens=book) as stand:
            for token, status in ((), 401), ((f"Authorization: Bearer {caller}",), 403):
                for asked in ("GET", "/replicas/model", b""), ("PUT", "/replicas/model", b'{"count": 2}'):
                    assert (await stand.ask(*asked, *token))[0] == status
            bearer = f"Authorization: Bearer {operator}"
            assert (await stand.ask("PUT", "/replicas/model", b'{"count": 2}', bearer))[1]["ready"] == 2
            assert (await stand.ask("POST", "/replicas/model/roll", b"", bearer))[0] == 200

    go(main())


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])  # noqa: S104 - what is under test
def test_without_tokens_only_this_machine_may(go: Go, host: str) -> None:
    async def main() -> None:
        async with serving(ps.App(ruled, log=False), host, grace=1.0) as server:
            stand = Stand(server.port, Path())
            assert (await stand.ask("GET", "/replicas/ruled"))[0] == 200
            status, answer = await stand.ask("PUT", "/replicas/ruled", b'{"count": 3}')
            assert status == (200 if host == "127.0.0.1" else 403), answer

    go(main())


def test_under_another_server_tokens_are_needed() -> None:
    """Who reaches a server that is not ours is not known here."""

    async def main() -> None:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b'{"count": 3}'}

        async def send(message: Any) -> None:
            sent.append(message)

        app = ps.App(ruled, log=False)
        async with ps.Runtime(app):
            scope = {"type": "http", "method": "PUT", "path": "/replicas/ruled", "headers": []}
            await application(app)(scope, receive, send)
        assert sent[0]["status"] == 403

    asyncio.run(main())


APP = """
import penstock as ps

@ps.service(on=ps.Thread(1))
def echo(x: int) -> int:
    return x

@ps.service
async def plain(x: int) -> int:
    return x

app = ps.App(echo, plain)
"""


def test_commands(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(APP)
    with served("models:app", cwd=tmp_path) as (_, url):
        for status, said, *arguments in (
            (0, "echo: 3 of 3 replicas are ready\n", "scale", url, "echo", "3"),
            (0, "echo: 3 of 3 replicas are ready\n", "roll", url.removeprefix("http://"), "echo"),
            (1, "penstock: 409 Conflict: plain runs on the loop", "scale", url, "plain", "2"),
            (1, "penstock: 404 Not found: nothing is at", "roll", url, "nobody"),
            (1, "penstock: 422 Validation failed", "scale", url, "echo", "0"),
            (1, "penstock: no answer from", "roll", "http://127.0.0.1:1", "echo"),
            (1, "penstock: 'ftp://x' is not a server's URL", "roll", "ftp://x", "echo"),
            (1, "penstock: 'http://[::1' is not a server's URL", "scale", "http://[::1", "echo", "2"),
            (1, "penstock: 'http://h:99999' is not a server's URL", "top", "http://h:99999"),
        ):
            child = Child(*arguments)
            assert child.end() == status, child.said
            assert child.process.stdout is not None
            told = child.said if status else child.process.stdout.read()
            assert told.startswith(said) and told.count("\n") <= 1, told
            child.close()
