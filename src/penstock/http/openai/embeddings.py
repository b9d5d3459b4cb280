"""`POST /v1/embeddings`: each text is a call of its own, so texts of many requests share batches."""

from __future__ import annotations

import asyncio
import base64
import math
import sys
from array import array
from collections.abc import Coroutine, Sequence
from typing import Any

import msgspec

from penstock.codec import encode_json
from penstock.http.message import Answer
from penstock.http.openai.catalogue import EMBEDS
from penstock.http.openai.faults import Rejected
from penstock.http.openai.parts import together, truncated
from penstock.http.openai.route import Asked, Route, answered
from penstock.http.openai.wire import Embeddings, texts
from penstock.models import Embedding, EmbeddingModel

MOST_TEXTS = 2048  # OpenAI's
_LARGE = 20_000  # numbers: writing more takes milliseconds


class EmbeddingsRoute(Route[Embeddings]):
    """Vectors of texts."""

    shape = Embeddings

    def answer(self, body: Embeddings, asked: Asked) -> Coroutine[Any, Any, Answer]:
        model: EmbeddingModel = self.model(body.model, EMBEDS)
        given = texts(body.input, "input", MOST_TEXTS)
        size = body.dimensions or model.dimensions
        if size != model.dimensions and not (model.shorten and size < model.dimensions):
            fewer = f"1 to {model.dimensions}" if model.shorten else f"{model.dimensions}"
            raise Rejected(f"{model.name} gives {fewer} dimensions, not {size}", "dimensions")
        for n, text in enumerate(given):
            if not text:
                raise Rejected(f"input[{n}] is empty", "input")
        return answered(asked, self._embed(body, asked, model, given, size))

    async def _embed(self, body: Embeddings, asked: Asked, model: EmbeddingModel, given: Sequence[Any], size: int) -> bytes:
        prompt = _prompt(model, body.input_type)
        more = (prompt,) if prompt else ()
        found: Sequence[Embedding] = await together(asked, [(model.embed, (text, *more)) for text in given])
        cut = truncated(found, "input", body.truncate, model.max_tokens)
        if len(found) * size > _LARGE:
            return await asyncio.to_thread(_body, model, found, size, body.encoding_format, cut)
        return _body(model, found, size, body.encoding_format, cut)


def _prompt(model: EmbeddingModel, purpose: str | None) -> str:
    """The name of the model's prompt for texts of this purpose ("query", or Cohere's "search_query"); "" if it has none."""
    names = () if purpose is None else (purpose, purpose.removeprefix("search_"))
    return next((name for name in names if name in model.prompts), "")


def _body(
    model: EmbeddingModel, found: Sequence[Embedding], size: int, encoding: str | None, cut: list[dict[str, int]]
) -> bytes:
    data = []
    for n, each in enumerate(found):
        vector = each[0] if size == model.dimensions else _shortened(each[0], size)
        shown: Any
        if encoding == "base64":
            shown = base64.b64encode(_floats(vector)).decode("ascii")
        else:
            shown = msgspec.Raw(encode_json(vector))
        data.append({"object": "embedding", "index": n, "embedding": shown})
    tokens = sum(each[1] for each in found)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    told: dict[str, Any] = {"object": "list", "data": data, "model": model.name, "usage": usage}
    if cut:
        told["truncated"] = cut
    return msgspec.json.encode(told)


def _shortened(vector: Any, size: int) -> list[float]:
    """The first elements, as a unit vector again."""
    part = [float(x) for x in vector[:size]]
    length = math.sqrt(sum(x * x for x in part)) or 1.0
    return [x / length for x in part]


def _floats(vector: Any) -> bytes:
    """Little-endian float32, as OpenAI's clients read base64."""
    if hasattr(vector, "astype"):
        return bytes(vector.astype("<f4").tobytes())
    floats = array("f", vector)
    if sys.byteorder == "big":
        floats.byteswap()
    return floats.tobytes()
