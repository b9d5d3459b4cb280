"""The chat page in a real browser: it streams, it stops, it shows what went wrong, and it runs nobody's script."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import fastapi
import httpx
import pytest
from speaking import embedder, parrot
from test_mounting import under_uvicorn

import penstock as ps
from penstock.errors import ConfigError
from penstock.http.serve import serving
from penstock.models import ChatModel
from penstock.runtime.tokens import changed, issue

sys.path.insert(0, str(Path(__file__).parent.parent))
from browser import Page, page

LAST = "document.querySelector('#log > div:last-child')"


async def say(shown: Page, text: str) -> None:
    await shown.value("document.getElementById('text').focus()")
    await shown.type(text)
    await shown.enter()


async def answer(shown: Page) -> str:
    await shown.until("document.getElementById('send').textContent === 'Send'")
    return str(await shown.value(f"{LAST}.textContent"))


def test_a_conversation_in_a_browser(tmp_path: Path) -> None:
    model = parrot(context=10_000, slots=1)

    async def main() -> None:
        app = ps.App(models=[embedder(), model], chat_page=True, log=False)
        async with serving(app) as server, page(f"http://127.0.0.1:{server.port}/chat", tmp_path) as shown:
            await shown.until("document.getElementById('model').options.length === 1")
            assert await shown.value("document.getElementById('model').value") == "parrot"
            await say(shown, "Grüße 🦜")
            assert await answer(shown) == "Grüße 🦜"
            assert "tokens" in await shown.value("document.getElementById('rate').textContent")
            await say(shown, "<img src=x onerror='document.title=1'>")
            assert await answer(shown) == "<img src=x onerror='document.title=1'>"
            assert await shown.value("document.title") == "Chat" and await shown.value("document.images.length") == 0
            await say(shown, "refuse")
            assert await answer(shown) == "this is not answered"
            assert await shown.value("document.getElementById('text').value") == "refuse", "it may be asked again"
            assert await shown.value("messages.map(m => m.role).join()") == "user,assistant,user,assistant"
            await shown.value("document.getElementById('text').value = ''")
            await say(shown, "break")
            assert "log has it" in await answer(shown)
            assert await shown.value("messages.length") == 6, "what had been said stays"
            await shown.value("document.getElementById('clear').click()")
            assert await shown.value("document.querySelectorAll('#log > div').length") == 0

    asyncio.run(main())


class Slow:
    """A letter a step, for ever."""

    def add(self, slot: int, *given: Any) -> None: ...

    async def step(self, slots: dict[int, int]) -> list[tuple[int, Any]]:
        await asyncio.sleep(0.01)
        return [(slot, ord("a")) for slot in slots]

    def drop(self, slot: int) -> None: ...


def slow() -> ChatModel:
    made = parrot(context=1 << 30)
    service = ps.service(Slow, name="slow", batch=ps.Slots(1))
    return ChatModel(name="slow", generate=service, tokenizer=made.tokenizer, context=1 << 30)


async def an_answer_begins(shown: Any) -> None:
    await shown.until("document.getElementById('model').options.length === 1")
    await say(shown, "go")
    await shown.until(f"{LAST}.className === 'assistant' && {LAST}.textContent.length > 3")


def test_a_new_chat_knows_nothing_of_the_answer_that_it_broke_off(tmp_path: Path) -> None:
    async def main() -> None:
        app = ps.App(models=[slow()], chat_page=True, log=False)
        async with serving(app) as server, page(f"http://127.0.0.1:{server.port}/chat", tmp_path) as shown:
            await an_answer_begins(shown)
            await shown.value("document.getElementById('clear').click()")
            await shown.until("document.getElementById('send').textContent === 'Send'")
            assert await shown.value("messages.length") == 0

    asyncio.run(main())


def test_who_scrolls_up_reads_on_while_an_answer_grows(tmp_path: Path) -> None:
    async def main() -> None:
        app = ps.App(models=[slow()], chat_page=True, log=False)
        async with serving(app) as server, page(f"http://127.0.0.1:{server.port}/chat", tmp_path) as shown:
            await shown.until("document.getElementById('model').options.length === 1")
            await shown.value("document.getElementById('log').style = 'flex: none; height: 120px'")
            for _ in range(6):
                await shown.value("show('user', 'before')")
            await say(shown, "go")
            grown = f"{LAST}.className === 'assistant' && {LAST}.textContent.length"
            await shown.until(f"{grown} > 3")
            assert await shown.value("log.scrollHeight - log.scrollTop - log.clientHeight < 40"), "it follows"
            await shown.value("document.getElementById('log').scrollTop = 0")
            length = await shown.value(f"{LAST}.textContent.length")
            await shown.until(f"{grown} > {length} + 5")
            assert await shown.value("document.getElementById('log').scrollTop") == 0

    asyncio.run(main())


def test_the_page_of_an_app_that_is_mounted_elsewhere(tmp_path: Path) -> None:
    async def main() -> None:
        web = fastapi.FastAPI()
        web.mount("/llm", ps.App(models=[parrot()], chat_page=True, log=False))
        async with under_uvicorn(web) as site, page(f"http://127.0.0.1:{site.port}/llm/chat", tmp_path) as shown:
            await shown.until("document.getElementById('model').options.length === 1")
            await say(shown, "hello")
            assert await answer(shown) == "hello"

    asyncio.run(main())


def test_a_person_stops_an_answer_and_its_slot_is_free(tmp_path: Path) -> None:
    model = slow()

    async def main() -> None:
        app = ps.App(models=[model], chat_page=True, log=False)
        async with serving(app) as server, page(f"http://127.0.0.1:{server.port}/chat", tmp_path) as shown:
            await an_answer_begins(shown)
            await shown.value("document.getElementById('send').click()")
            await shown.until("document.getElementById('rate').textContent === 'stopped'")
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as http:
                while 'penstock_in_flight{service="slow"} 0' not in (await http.get("/metrics")).text:
                    await asyncio.sleep(0.01)  # a poll; the test has an end

    asyncio.run(main())


def test_the_page_asks_for_the_token_itself(tmp_path: Path) -> None:
    with changed(tmp_path / "tokens") as book:
        issue(book, "a", "a")

    async def main() -> None:
        app = ps.App(models=[parrot()], chat_page=True, tokens=tmp_path / "tokens", log=False)
        async with serving(app) as server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as http:
            shown = await http.get("/chat")
            assert shown.status_code == 200 and "script-src 'sha256-" in shown.headers["content-security-policy"]
            refused = await http.get("/v1/models")
            assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"

    asyncio.run(main())


def test_a_service_cannot_be_where_the_page_is() -> None:
    @ps.service
    async def chat(text: str) -> str:
        return text

    with pytest.raises(ConfigError, match="/chat"):
        ps.App(chat, chat_page=True)
