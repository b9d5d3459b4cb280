"""`POST /tokenize` and `/detokenize`, as vLLM has them: what a text is to a model."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import msgspec

from penstock.http.message import Answer
from penstock.http.openai.catalogue import ALL
from penstock.http.openai.faults import Rejected
from penstock.http.openai.prompt import conversation
from penstock.http.openai.route import Asked, Route, answered, aside
from penstock.http.openai.wire import Detokenizing, Tokenizing
from penstock.models import ChatModel, Tokenizer, UpstreamModel


class TokenizeRoute(Route[Tokenizing]):
    """How many tokens a text or a conversation has, and which."""

    shape = Tokenizing

    def answer(self, body: Tokenizing, asked: Asked) -> Coroutine[Any, Any, Answer]:
        if (body.prompt is None) == (body.messages is None):
            raise Rejected("either prompt or messages", "prompt")
        model = self.model(body.model, ALL)
        return answered(asked, self._tokens(body, asked, model, tokenizer_of(model)))

    async def _tokens(self, body: Tokenizing, asked: Asked, model: Any, tokenizer: Tokenizer) -> bytes:
        if body.messages is not None and not isinstance(model, ChatModel):
            raise Rejected(f"{model.name} has no conversations; send a prompt", "messages")
        told: bytes = await aside(asked.size, _told, body, model, tokenizer)
        return told


def _told(body: Tokenizing, model: Any, tokenizer: Tokenizer) -> bytes:
    if body.messages is not None:
        ids = tokenizer.chat(conversation(body.messages, model)[0])
    else:
        ids = tokenizer.encode(body.prompt or "", special=body.add_special_tokens)
    most = model.context if isinstance(model, ChatModel) else model.max_tokens
    found: dict[str, Any] = {"count": len(ids), "max_model_len": most, "tokens": ids}
    if body.return_token_strs:
        found["token_strs"] = [tokenizer.piece(token).decode("utf-8", "replace") for token in ids]
    return msgspec.json.encode(found)


class DetokenizeRoute(Route[Detokenizing]):
    """The text of tokens."""

    shape = Detokenizing

    def answer(self, body: Detokenizing, asked: Asked) -> Coroutine[Any, Any, Answer]:
        return answered(asked, self._text(body, asked, tokenizer_of(self.model(body.model, ALL))))

    async def _text(self, body: Detokenizing, asked: Asked, tokenizer: Tokenizer) -> bytes:
        return msgspec.json.encode({"prompt": await aside(asked.size, tokenizer.decode, body.tokens)})


def tokenizer_of(model: Any) -> Tokenizer:
    """The model's tokenizer. Raises Rejected if it is elsewhere."""
    tokenizer: Tokenizer | None = None if isinstance(model, UpstreamModel) else model.tokenizer
    if tokenizer is None:
        raise Rejected(f"the tokens of {model.name} are not known here", "model")
    return tokenizer
