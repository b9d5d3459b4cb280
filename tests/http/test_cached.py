"""A service with a cache over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from http_stand import Client, get

import penstock as ps
from penstock.http.serve import serving


def test_hits_and_shared_work_over_http(go: Callable[[Awaitable[Any]], Any]) -> None:
    async def main() -> None:
        begun: list[str] = []
        gate = asyncio.Event()

        @ps.service(cache=ps.Cache())
        async def slow(text: str) -> str:
            begun.append(text)
            await gate.wait()
            return text.upper()

        async with serving(ps.App(slow, log=False), grace=1.0) as server:

            async def connect() -> Client:
                return Client(*await asyncio.open_connection("127.0.0.1", server.port))

            clients = [await connect() for _ in range(4)]
            for client in clients[:3]:
                client.send(get("/slow", method="POST", body=b'{"text": "a"}'))
                while len(waiting(server)) <= clients.index(client):
                    await asyncio.sleep(0.001)
            clients[0].close()  # who began it leaves
            while len(waiting(server)) > 2:
                await asyncio.sleep(0.001)
            gate.set()
            for client in clients[1:3]:
                status, _, body = await client.answer()
                assert (status, body) == (200, b'"A"')
            clients[3].send(get("/slow", method="POST", body=b'{"text": "a"}'))
            status, head, body = await clients[3].answer()
            assert (status, body) == (200, b'"A"') and b"run;dur=0" in head
            assert begun == ["a"]
            clients[3].send(get("/status"))
            _, _, body = await clients[3].answer()
            service = json.loads(body)["services"][0]
            assert service["cached"] == {"shared": 2, "hit": 1} and service["starts"] == 1
            assert service["calls"] == {"cancelled": 1, "ok": 3}
            clients[3].send(get("/metrics"))
            _, _, body = await clients[3].answer()
            assert b'penstock_cached_calls_total{service="slow",how="hit"} 1' in body
            for client in clients[1:]:
                client.close()

    go(main())


def waiting(server: Any) -> list[Any]:
    (binding,) = server.handler.runtime.bindings.values()
    return [call for flight in binding.sharing.flights.values() for call in flight.waiters]
