"""`POST /v1/completions`: what follows a text, or several, as it is."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

from penstock.http.message import Answer
from penstock.http.openai.answers import ChunkStream, Made, whole
from penstock.http.openai.faults import Rejected
from penstock.http.openai.forms import CompletionForm
from penstock.http.openai.generation import Generation, room
from penstock.http.openai.relay import WritingRoute
from penstock.http.openai.route import Asked, answered, aside
from penstock.http.openai.wire import MOST_CHOICES, Completion, texts
from penstock.models import ChatModel, Tokenizer

_DEFAULT_TOKENS = 16  # OpenAI's


class CompletionRoute(WritingRoute[Completion]):
    """Texts that go on."""

    shape = Completion

    def write(self, model: ChatModel, body: Completion, asked: Asked) -> Answer | Coroutine[Any, Any, Answer]:
        n, given = body.n or 1, texts(body.prompt, "prompt", MOST_CHOICES)
        self._refuse_unsupported(body, model, len(given))
        stop = body.stops()

        async def make() -> Made:
            prompts = await aside(asked.size, _tokens, model.tokenizer, given)
            most = room(model, prompts, body.max_tokens, "prompt")
            if body.max_tokens is None:
                most = min(most, _DEFAULT_TOKENS)
            sampling = {**model.defaults, **body.sampling(most)}
            if body.logprobs is not None:
                sampling["logprobs"] = body.logprobs
            generation = Generation(asked, model, prompts, sampling, stop, n, (), self.catalogue.kept)  # type: ignore[arg-type]
            usage = body.stream_options is not None and body.stream_options.include_usage
            echo = [p if isinstance(p, str) else model.tokenizer.decode(p) for p in given] if body.echo else []
            told = (f"cmpl-{asked.id}", model.name, model.tokenizer, usage, body.logprobs is not None)
            return generation, CompletionForm(*told, echo=echo)

        return ChunkStream(asked, make) if body.stream else answered(asked, whole(make))

    def _refuse_unsupported(self, body: Completion, model: ChatModel, prompts: int) -> None:
        n = body.n or 1
        if prompts * n > MOST_CHOICES:
            raise Rejected(f"{prompts} prompts with n={n}: at most {MOST_CHOICES} answers a request", "n")
        if body.suffix:
            raise Rejected(f"{model.name} writes what follows a text, not what fills a gap: leave out suffix", "suffix")
        if body.best_of is not None and body.best_of != n:
            raise Rejected("best_of: as many as n; answers are not ranked here", "best_of")
        if body.logprobs is not None and "logprobs" not in model.features:
            raise Rejected(f"{model.name} tells no log-probabilities", "logprobs")
        if body.logprobs is not None and body.echo:
            raise Rejected("echo with logprobs: the prompt's log-probabilities are not told; leave one of them out", "echo")


def _tokens(tokenizer: Tokenizer, given: Sequence[str | list[int]]) -> list[list[int]]:
    found = [tokenizer.encode(each) if isinstance(each, str) else each for each in given]
    for n, ids in enumerate(found):
        if not ids:
            raise Rejected(f"prompt[{n}] has no tokens: there is nothing to go on from", "prompt")
    return found
