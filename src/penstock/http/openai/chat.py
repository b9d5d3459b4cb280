"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from penstock.http.message import Answer
from penstock.http.openai.answers import ChunkStream, Made, whole
from penstock.http.openai.forms import ChatForm
from penstock.http.openai.generation import Generation, room
from penstock.http.openai.prompt import conversation, refuse_unsupported, schema_of, template_options
from penstock.http.openai.relay import WritingRoute
from penstock.http.openai.route import Asked, answered, aside
from penstock.http.openai.wire import Chat
from penstock.models import ChatModel


class ChatRoute(WritingRoute[Chat]):
    """Conversations."""

    shape = Chat

    def write(self, model: ChatModel, body: Chat, asked: Asked) -> Answer | Coroutine[Any, Any, Answer]:
        refuse_unsupported(body, model)
        stop, schema = body.stops(), schema_of(body.response_format, model)
        messages, images = conversation(body.messages, model)
        options = template_options(body)
        wanted = body.max_completion_tokens or body.max_tokens

        async def make() -> Made:
            prompt = await aside(asked.size, lambda: model.tokenizer.chat(messages, **options))
            sampling = {**model.defaults, **body.sampling(room(model, [prompt], wanted, "messages"))}
            if body.logprobs:
                sampling["logprobs"] = body.top_logprobs or 0
            if schema is not None:
                sampling["schema"] = schema
            n, kept = body.n or 1, self.catalogue.kept
            generation = Generation(asked, model, [prompt], sampling, stop, n, images, kept)  # type: ignore[arg-type]
            usage = body.stream_options is not None and body.stream_options.include_usage
            form = ChatForm(f"chatcmpl-{asked.id}", model.name, model.tokenizer, usage, bool(body.logprobs))
            return generation, form

        return ChunkStream(asked, make) if body.stream else answered(asked, whole(make))
