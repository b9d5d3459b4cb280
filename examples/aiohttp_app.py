"""Services called from an aiohttp handler: `python examples/aiohttp_app.py`."""

import sys
from collections.abc import AsyncIterator

from aiohttp import web

import penstock as ps


@ps.service
def square(x: int) -> int:
    return x * x


async def handler(request: web.Request) -> web.Response:
    return web.json_response({"square": await square(int(request.match_info["x"]))})


async def runtime(app: web.Application) -> AsyncIterator[None]:
    async with ps.Runtime(square):
        yield


def make() -> web.Application:
    app = web.Application()
    app.cleanup_ctx.append(runtime)
    app.router.add_get("/square/{x}", handler)
    return app


if __name__ == "__main__":
    web.run_app(make(), host="127.0.0.1", port=int(sys.argv[1]) if len(sys.argv) > 1 else 8002)
