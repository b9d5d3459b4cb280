"""What runs in vLLM's interpreter: its asynchronous engine, which batches by itself, as an async body of many calls at once.

Penstock need not be installed there, so this imports the standard library and vLLM alone (`penstock.errors` is there in any
case). Written against vLLM 0.10 to 0.33: `AsyncLLM` of the V1 engine, whose core is a process of its own.

Of its traps: a token that the vocabulary does not have kills the whole engine where it holds no tokenizer, so tokens are looked
at here; a generator that is closed does not abort its request in older versions, so that is said; and an engine that has
died answers nothing ever again, so this process ends, by which every request hears of it and another is started.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from penstock.errors import InvalidRequest, Overloaded, ServiceError

_SAME = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
    "logprobs",
    "ignore_eos",
)
_LOOKS = 0.5  # seconds between two looks at an engine that nobody uses


class Engine:
    """One engine. `options` are those of vLLM's `AsyncEngineArgs`; `stops` end every answer."""

    def __init__(self, model: str, stops: Sequence[int], options: Mapping[str, Any]) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.exceptions import EngineDeadError

        self.stops = list(stops)
        self.dead: type[BaseException] = EngineDeadError
        self.refusals, self.full = _refusals()
        self.tokens = _tokens()
        self.engine: Any = AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, **options))
        self.vocabulary: int = self.engine.model_config.get_vocab_size()
        self.numbers = itertools.count()
        self.leaving = threading.Event()
        atexit.register(self.leaving.set)  # before vLLM's own end, which is no death
        threading.Thread(target=self._watch, name="penstock-vllm", daemon=True).start()

    async def __call__(self, prompt: list[int], sampling: dict[str, Any], images: Sequence[bytes] = ()) -> AsyncIterator[Any]:
        """The tokens that follow `prompt`, as `penstock.models.ChatModel` has it."""
        if not prompt or min(prompt) < 0 or max(prompt) >= self.vocabulary:
            raise InvalidRequest(f"a prompt is at least one token, each of 0 to {self.vocabulary - 1}")
        if images:
            raise InvalidRequest("this model is served without images")
        name = f"{os.getpid()}-{next(self.numbers)}"
        finished = False
        try:
            outputs = self.engine.generate(self.tokens(prompt), sampling_params(sampling, self.stops), name)
            try:
                async for output in outputs:
                    completion = output.outputs[0]
                    finished = output.finished
                    if finished and completion.finish_reason in ("abort", "error"):
                        raise ServiceError(f"vLLM ended the request itself: {completion.finish_reason}")
                    for item in items(completion, sampling.get("logprobs")):
                        yield item
            finally:
                await outputs.aclose()
                if not finished and not self.engine.errored:
                    await self.engine.abort(name)
        except self.dead as error:
            leave(error)
        except self.full as error:
            raise Overloaded(str(error)) from None
        except self.refusals as error:
            raise InvalidRequest(str(error)) from None

    def _watch(self) -> None:
        while not self.leaving.wait(_LOOKS):
            if self.engine.errored:
                leave(self.engine.dead_error)


def _tokens() -> Callable[[list[int]], Any]:
    """How a prompt of tokens is given; newer versions have a form that they need not look at again."""
    try:
        from vllm.inputs import tokens_input
    except ImportError:
        return lambda ids: {"prompt_token_ids": ids}
    made: Callable[[list[int]], Any] = tokens_input
    return made


def _refusals() -> tuple[tuple[type[BaseException], ...], tuple[type[BaseException], ...]]:
    """What a request raises that is wrong, and one that comes when the engine's own queue is full; versions differ."""
    try:
        from vllm import exceptions
    except ImportError:
        return (ValueError, TypeError), ()
    known = [getattr(exceptions, name, None) for name in ("VLLMClientError", "GracefulHTTPError")]
    wrong, full = [(kind,) if isinstance(kind, type) else () for kind in known]
    return (ValueError, TypeError, *wrong), full


def sampling_params(sampling: Mapping[str, Any], stops: Sequence[int]) -> Any:
    """vLLM's own form of a `penstock.models.Sampling`: only what is new comes out, and as tokens."""
    from vllm import sampling_params as theirs

    given: dict[str, Any] = {key: sampling[key] for key in _SAME if key in sampling}
    if given.get("top_p") == 0:  # none but the likeliest; theirs begins above 0
        given |= {"top_p": 1.0, "top_k": 1}
    ends = [] if sampling.get("ignore_eos") else stops
    given["stop_token_ids"] = [*ends, *sampling.get("stop_ids", ())]
    schema = sampling.get("schema")
    if schema is not None:
        how = {"json": schema} if schema else {"json_object": True}
        if hasattr(theirs, "StructuredOutputsParams"):
            given["structured_outputs"] = theirs.StructuredOutputsParams(**how)
        else:
            given["guided_decoding"] = theirs.GuidedDecodingParams(**how)
    return theirs.SamplingParams(detokenize=False, output_kind=theirs.RequestOutputKind.DELTA, **given)


def items(completion: Any, logprobs: int | None) -> list[Any]:
    """The new tokens of an output; with log-probabilities (token, its own, the likeliest ones')."""
    tokens = list(completion.token_ids)
    if logprobs is None:
        return tokens
    found = []
    for token, place in zip(tokens, completion.logprobs):  # noqa: B905 - vLLM runs on Python 3.9 too
        likeliest = sorted(((i, p.logprob) for i, p in place.items()), key=lambda pair: -pair[1])
        found.append((token, place[token].logprob, tuple(likeliest[:logprobs])))
    return found


def leave(error: BaseException) -> None:
    """End this process, with what it has started: penstock tells who waits, and starts another."""
    print(f"vLLM's engine is dead: {error}", file=sys.stderr, flush=True)
    os._exit(1)
