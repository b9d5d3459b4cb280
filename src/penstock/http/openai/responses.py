"""`POST /v1/responses`, in its text form: no tools, nothing stored, nothing in the background."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

import msgspec

from penstock.http.message import Answer
from penstock.http.openai.answers import ChunkStream, Made, whole
from penstock.http.openai.choice import Piece
from penstock.http.openai.faults import Rejected
from penstock.http.openai.forms import Shape
from penstock.http.openai.generation import Generation, Run, room
from penstock.http.openai.prompt import conversation, schema_of
from penstock.http.openai.relay import WritingRoute
from penstock.http.openai.route import Asked, answered, aside
from penstock.http.openai.wire import Format, Message, Response
from penstock.models import ChatModel, Sampling

_encode = msgspec.json.Encoder().encode


class ResponsesRoute(WritingRoute[Response]):
    """Conversations, in the newer form."""

    shape = Response

    def write(self, model: ChatModel, body: Response, asked: Asked) -> Answer | Coroutine[Any, Any, Answer]:
        self._refuse_unsupported(body, model)
        messages, images = conversation(_messages(body), model, "input")
        if body.instructions:
            messages.insert(0, {"role": "system", "content": body.instructions})
        schema = schema_of(_format(body.text), model, "text.format")

        async def make() -> Made:
            prompt = await aside(asked.size, lambda: model.tokenizer.chat(messages))
            sampling: Sampling = {**model.defaults, "max_tokens": room(model, [prompt], body.max_output_tokens, "input")}
            if body.temperature is not None:
                sampling["temperature"] = body.temperature
            if body.top_p is not None:
                sampling["top_p"] = body.top_p
            if schema is not None:
                sampling["schema"] = schema
            generation = Generation(asked, model, [prompt], sampling, (), 1, images, self.catalogue.kept)
            return generation, ResponseForm(asked, model, body)

        return ChunkStream(asked, make) if body.stream else answered(asked, whole(make))

    def _refuse_unsupported(self, body: Response, model: ChatModel) -> None:
        if body.tools and body.tool_choice != "none":
            raise Rejected(f"{model.name} calls no tools; leave out tools, or ask a model on a server that does", "tools")
        for name in ("previous_response_id", "conversation", "prompt"):
            if getattr(body, name) is not None:
                raise Rejected(f"{name}: nothing is stored here; send the whole conversation as input", name)
        if body.background:
            raise Rejected("background: answers are given at once or streamed", "background")
        if body.top_logprobs:
            raise Rejected("top_logprobs: log-probabilities are told by /v1/chat/completions", "top_logprobs")


def _messages(body: Response) -> list[Message]:
    """What was said. Raises Rejected."""
    said: list[dict[str, Any]] = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    found = []
    for n, item in enumerate(said):
        if item.get("type", "message") != "message":
            raise Rejected(f"input[{n}]: items of type message are read here, not {str(item['type'])[:40]!r}", "input")
        try:
            found.append(msgspec.convert(item, Message))
        except msgspec.ValidationError as error:
            raise Rejected(f"input[{n}]: {error}", "input") from None
    if not said:
        raise Rejected("input: at least one message", "input")
    return found


def _format(text: dict[str, Any] | None) -> Format | None:
    """`text.format`, which has its schema beside its type."""
    given = (text or {}).get("format")
    if given is None:
        return None
    try:
        return msgspec.convert({"type": given.get("type"), "json_schema": {"schema": given.get("schema")}}, Format)
    except (msgspec.ValidationError, AttributeError):
        raise Rejected("text.format: of type text, json_object or json_schema", "text.format") from None


class ResponseForm(Shape):
    """One response object, or the events that make it up."""

    def __init__(self, asked: Asked, model: ChatModel, body: Response) -> None:
        self.identity = f"resp_{asked.id}"
        self.item = f"msg_{asked.id}"
        self.model = model.name
        self.body = body
        self.created = self.now()
        self.count = 0  # events
        self.texts: list[str] = []
        self.finish: str | None = None

    def chunks(self, group: Sequence[tuple[Run, Piece]]) -> bytes:
        out = b"" if self.count else self._begin()
        for _, piece in group:
            if piece.text:
                self.texts.append(piece.text)
                out += self._event("response.output_text.delta", **self._place(), delta=piece.text, logprobs=[])
            self.finish = piece.finish
        return out

    def _begin(self) -> bytes:
        response = self._response("in_progress", [], None)
        item = {"id": self.item, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        return (
            self._event("response.created", response=response)
            + self._event("response.in_progress", response=response)
            + self._event("response.output_item.added", output_index=0, item=item)
            + self._event("response.content_part.added", **self._place(), part=_part(""))
        )

    def last(self, generation: Generation) -> bytes:
        text = "".join(self.texts)
        response = self._whole(generation, text, self.finish)
        return (
            self._event("response.output_text.done", **self._place(), text=text, logprobs=[])
            + self._event("response.content_part.done", **self._place(), part=_part(text))
            + self._event("response.output_item.done", output_index=0, item=response["output"][0])
            + self._event(f"response.{response['status']}", response=response)
        )

    def whole(self, generation: Generation, answers: Sequence[tuple[Run, Piece]]) -> bytes:
        answer = answers[0][1]
        return _encode(self._whole(generation, answer.text, answer.finish))

    def broken(self, error: dict[str, Any]) -> bytes:
        return self._event("error", code=error["code"], message=error["message"], param=error["param"])

    def _event(self, kind: str, **fields: Any) -> bytes:
        told = {"type": kind, "sequence_number": self.count, **fields}
        self.count += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode(told))

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.item, "output_index": 0, "content_index": 0}

    def _whole(self, generation: Generation, text: str, finish: str | None) -> dict[str, Any]:
        status = "incomplete" if finish == "length" else "completed"
        item = {"id": self.item, "type": "message", "status": status, "role": "assistant", "content": [_part(text)]}
        read, written = generation.prompt_tokens, generation.completion_tokens
        usage = {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + written,
        }
        return self._response(status, [item], usage)

    def _response(self, status: str, output: list[Any], usage: dict[str, Any] | None) -> dict[str, Any]:
        body = self.body
        return {
            "id": self.identity,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self.model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": usage,
            "user": body.user,
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
