"""Services called from a Tornado handler: `python examples/tornado_app.py`."""

import asyncio
import sys

import tornado.web

import penstock as ps


@ps.service
def square(x: int) -> int:
    return x * x


class SquareHandler(tornado.web.RequestHandler):
    async def get(self, x: str) -> None:
        self.write({"square": await square(int(x))})


async def main(port: int) -> None:
    async with ps.Runtime(square):
        server = tornado.web.Application([(r"/square/(\d+)", SquareHandler)]).listen(port, "127.0.0.1")
        print(f"http://127.0.0.1:{port}/square/7", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            server.stop()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8001))
