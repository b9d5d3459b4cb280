"""The answers that one request asks a chat model for: a call for each, read together as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

from penstock.errors import BadResult
from penstock.http.openai.choice import Choice, Piece
from penstock.http.openai.faults import Rejected
from penstock.http.openai.kept import Kept
from penstock.http.openai.route import Asked
from penstock.models import ChatModel, Sampling

if TYPE_CHECKING:
    from penstock.runtime.call import BoundCall

_AHEAD = 64  # pieces of several answers that are read before they are written


class Run:
    """One answer: the call that makes it, and what has been read of it."""

    __slots__ = ("call", "choice", "index", "keep", "prompt", "told")

    def __init__(self, index: int, prompt: int, call: BoundCall | None, choice: Choice, told: list[Any] | None = None) -> None:
        self.index = index
        self.prompt = prompt  # which prompt it answers
        self.call = call  # None: it was kept, and these are its tokens
        self.choice = choice
        self.told = told
        self.keep: Callable[[list[Any]], None] | None = None

    async def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """What becomes certain, in groups: what has come while the last group was being written is one."""
        choice, call = self.choice, self.call
        group: list[Piece] = []
        if call is None:
            yield self._recalled()
            return
        items_told: list[Any] | None = None if self.keep is None else []
        async with aclosing(call.__aiter__()) as items:  # type: ignore[type-var]
            async for item in items:
                if choice.finish is not None:
                    break  # the model goes on after its end
                piece = choice.push(item)
                if items_told is not None:
                    items_told.append(item)
                if piece is not None:
                    group.append(piece)
                inbox = call.stream
                if group and (inbox is None or not inbox.items):
                    yield group
                    group = []
                    if choice.matched:
                        break
        if choice.finish is None:
            group.append(choice.close())
        if self.keep is not None and items_told is not None and not choice.matched:
            self.keep(items_told)
        if group:
            yield group

    def _recalled(self) -> list[Piece]:
        """All that was kept, at once."""
        group, choice = [], self.choice
        for item in self.told or ():
            piece = choice.push(item)
            if piece is not None:
                group.append(piece)
            if choice.finish is not None:
                return group
        return [*group, choice.close()]


class Generation:
    """The answers of one request to `prompts` (token ids, each `n` times)."""

    def __init__(
        self,
        asked: Asked,
        model: ChatModel,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        stop: Sequence[str],
        n: int = 1,
        images: Sequence[bytes] = (),
        kept: Kept | None = None,
    ) -> None:
        self.asked = asked
        self.prompt_tokens = sum(map(len, prompts))
        stops = frozenset(sampling.get("stop_ids", ()))
        if not sampling.get("ignore_eos"):
            stops |= model.stops
        alone = len(prompts) * n == 1
        asked.admit(self.prompt_tokens * n)
        self.read = self.prompt_tokens * n
        self.runs: list[Run] = []
        for at, prompt in enumerate(prompts):
            for k in range(n):
                own = sampling
                if k and "seed" in sampling:  # else all would be the same
                    own = {**sampling, "seed": sampling["seed"] + k}
                choice = Choice(model.tokenizer, sampling["max_tokens"], stop, stops)
                key = None if kept is None else kept.key(model, prompt, own, images)
                now = asked.handler.runtime.clock()
                told = None if kept is None or key is None else kept.find(model, key, now)
                call = None
                if told is None:
                    call = asked.call(model.generate, list(prompt), own, list(images), alone=alone)
                run = Run(len(self.runs), at, call, choice, told)
                if kept is not None and key is not None and told is None:
                    run.keep = partial(_keep, kept, model, key, asked)
                self.runs.append(run)

    @property
    def completion_tokens(self) -> int:
        """Tokens that were written so far."""
        return sum(run.choice.count for run in self.runs)

    def usage(self) -> dict[str, int]:
        """As OpenAI counts."""
        written = self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }

    async def groups(self) -> AsyncGenerator[list[tuple[Run, Piece]], None]:
        """What becomes certain of any answer. If one fails, the others are cancelled and its error is raised."""
        failure: BaseException | None = None
        try:
            if len(self.runs) == 1:
                run = self.runs[0]
                async with aclosing(run.pieces()) as pieces:
                    async for group in pieces:
                        yield [(run, piece) for piece in group]
            else:
                async with aclosing(self._merged()) as merged:
                    async for both in merged:
                        yield both
        except BaseException as error:
            failure = error
            raise
        finally:
            started = any(run.call is None or run.choice.count for run in self.runs)
            self.asked.used(self.read + self.completion_tokens if started or failure is None else 0)
            self.asked.ended(failure)
            del failure

    async def _merged(self) -> AsyncGenerator[list[tuple[Run, Piece]], None]:
        queue: asyncio.Queue[tuple[Run, list[Piece]] | BaseException | None] = asyncio.Queue(_AHEAD)

        async def read(run: Run) -> None:
            try:
                async with aclosing(run.pieces()) as pieces:
                    async for group in pieces:
                        await queue.put((run, group))
            except Exception as error:
                await queue.put(error)
            else:
                await queue.put(None)

        tasks = [asyncio.ensure_future(read(run)) for run in self.runs]
        try:
            left = len(tasks)
            while left:
                both: list[tuple[Run, Piece]] = []
                found: Any = await queue.get()
                while True:
                    if isinstance(found, BaseException):
                        raise found
                    if found is None:
                        left -= 1
                    else:
                        both += [(found[0], piece) for piece in found[1]]
                    if queue.empty():
                        break
                    found = queue.get_nowait()
                if both:
                    yield both
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def whole(self) -> list[tuple[Run, Piece]]:
        """Every answer, complete: its text, log-probabilities and end in one piece."""
        texts: list[list[str]] = [[] for _ in self.runs]
        answers = [Piece() for _ in self.runs]
        async with aclosing(self.groups()) as groups:
            async for group in groups:
                for run, piece in group:
                    texts[run.index].append(piece.text)
                    answers[run.index].logprobs += piece.logprobs
                    answers[run.index].finish = piece.finish
        for answer, text in zip(answers, texts, strict=True):
            answer.text = "".join(text)
            if answer.finish is None:
                raise BadResult("an answer has no end")
        return list(zip(self.runs, answers, strict=True))


def _keep(kept: Kept, model: ChatModel, key: Hashable, asked: Asked, items: list[Any]) -> None:
    kept.put(model, key, items, asked.handler.runtime.clock())


def room(model: ChatModel, prompts: Sequence[Sequence[int]], wanted: int | None, param: str) -> int:
    """How many tokens each answer may have. Raises Rejected if a prompt, or the answer asked for, does not fit."""
    longest = max(map(len, prompts))
    most = model.context
    if longest >= most or (wanted is not None and longest + wanted > most):
        answer = f" and {wanted} tokens for the answer" if wanted is not None else ", and the answer needs room too"
        raise Rejected(
            f"{model.name} has a context of {most} tokens; the prompt has {longest}{answer}: shorten the prompt"
            f"{' or ask for fewer tokens' if wanted is not None else ''}",
            param,
            "context_length_exceeded",
        )
    if wanted is None:
        wanted = most - longest
        if model.max_tokens is not None:
            wanted = min(wanted, model.max_tokens)
    return wanted
