"""A real browser, driven over its debugging protocol: headless Chromium, one page."""

from __future__ import annotations

import asyncio
import itertools
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-port=0"
)
LONGEST = 30.0


class Page:
    """What a person would do, and see."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.ids = itertools.count(1)

    async def tell(self, method: str, **params: Any) -> Any:
        wanted = next(self.ids)
        await self.socket.send_json({"id": wanted, "method": method, "params": params})
        while True:
            told = await asyncio.wait_for(self.socket.receive_json(), LONGEST)
            if told.get("id") == wanted:
                assert "error" not in told, told
                return told["result"]

    async def value(self, expression: str) -> Any:
        """What this JavaScript gives."""
        found = await self.tell("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait until this is true in the page."""
        wait = f"new Promise(done => {{ const look = () => {{ const v = {expression}; v ? done(v) : setTimeout(look, 10); }}; look(); }})"
        return await asyncio.wait_for(self.value(wait), LONGEST)

    async def type(self, text: str) -> None:
        await self.tell("Input.insertText", text=text)

    async def enter(self) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            await self.tell("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)


@asynccontextmanager
async def page(url: str, folder: Path) -> AsyncIterator[Page]:
    """The page at this URL, in a browser of its own that keeps its files in `folder`."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    aiohttp = pytest.importorskip("aiohttp")
    pipe = asyncio.subprocess.PIPE
    arguments = [*FLAGS.split(), f"--user-data-dir={folder}", "about:blank"]
    process = await asyncio.create_subprocess_exec(chromium, *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=pipe)
    try:
        assert process.stderr is not None
        while True:
            line = (await asyncio.wait_for(process.stderr.readline(), LONGEST)).decode()
            assert line, "the browser has ended"
            if found := re.search(r"DevTools listening on ws://([^/]+)/", line):
                break
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{found[1]}/json/list") as answer:
                target = next(t for t in await answer.json() if t["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=1 << 26) as socket:
                shown = Page(socket)
                await shown.tell("Page.enable")
                await shown.tell("Page.navigate", url=url)
                await shown.until("document.readyState === 'complete'")
                yield shown
    finally:
        process.kill()
        await process.wait()
