"""Conversations as a model's template takes them: roles, texts, images, nothing that a model here cannot do."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from penstock.http.openai.faults import Rejected
from penstock.http.openai.wire import Chat, Format, ImageURL, Message, Part
from penstock.models import ChatModel

_ROLES = {"developer": "system", "function": "tool"}


def conversation(
    messages: Sequence[Message], model: ChatModel, param: str = "messages"
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The messages for the template, and the images in the order of their places. Raises Rejected, about `param`."""
    images: list[bytes] = []
    found = []
    for n, message in enumerate(messages):
        told: dict[str, Any] = {"role": _ROLES.get(message.role, message.role)}
        if isinstance(message.content, list):
            told["content"] = _parts(message.content, f"{param}[{n}].content", model, images)
        else:
            told["content"] = message.content or ""
        for name in ("name", "tool_calls", "tool_call_id", "reasoning_content"):
            value = getattr(message, name)
            if value is not None:
                told[name] = value
        found.append(told)
    return found, images


def _parts(parts: Sequence[Part], where: str, model: ChatModel, images: list[bytes]) -> Any:
    """Text alone is one string, as templates of text models want it; with images it stays a list."""
    found: list[dict[str, str]] = []
    seen = False
    for n, part in enumerate(parts):
        if part.type in ("text", "input_text", "output_text") and part.text is not None:
            found.append({"type": "text", "text": part.text})
        elif part.type in ("image_url", "input_image") and part.image_url is not None:
            if "images" not in model.features:
                raise Rejected(f"{model.name} reads no images; send text only", f"{where}[{n}]")
            images.append(_image(part.image_url, f"{where}[{n}].image_url"))
            found.append({"type": "image"})
            seen = True
        else:
            raise Rejected(f"{where}[{n}]: a part of type text or image_url, not {part.type[:40]!r}", f"{where}[{n}]")
    return found if seen else "\n".join(part["text"] for part in found)


def _image(given: ImageURL | str, where: str) -> bytes:
    url = given if isinstance(given, str) else given.url
    head, comma, data = url.partition(",")
    if not head.startswith("data:"):
        raise Rejected(f"{where}: images come as data URIs (data:image/png;base64,...); this server fetches no URLs", where)
    if not comma or not head.endswith(";base64") or not head.startswith("data:image/"):
        raise Rejected(f"{where}: not a data URI of an image in base64 (data:image/png;base64,...)", where)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Rejected(f"{where}: its base64 is broken: {error}", where) from None


def template_options(body: Chat) -> dict[str, Any]:
    """What the request asks of the template itself."""
    options: dict[str, Any] = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        options.setdefault("reasoning_effort", body.reasoning_effort)
    return options


def refuse_unsupported(body: Chat, model: ChatModel) -> None:
    """Raise Rejected for what this model's engine cannot do."""
    name = model.name
    if (body.tools and body.tool_choice != "none") or (body.functions and body.function_call != "none"):
        raise Rejected(f"{name} calls no tools; leave out tools, or ask a model on a server that does", "tools")
    if body.audio is not None or (body.modalities and set(body.modalities) - {"text"}):
        raise Rejected(f"{name} answers in text only", "modalities" if body.modalities else "audio")
    if body.web_search_options is not None:
        raise Rejected(f"{name} does not search the web", "web_search_options")
    if body.add_generation_prompt is False:
        raise Rejected("add_generation_prompt=false: an answer always follows the conversation here", "add_generation_prompt")
    if body.top_logprobs and not body.logprobs:
        raise Rejected("top_logprobs needs logprobs=true", "top_logprobs")
    if body.logprobs and "logprobs" not in model.features:
        raise Rejected(f"{name} tells no log-probabilities", "logprobs")


def schema_of(given: Format | None, model: ChatModel, param: str = "response_format") -> dict[str, Any] | None:
    """The JSON schema that the answer has to fit, None for free text. Raises Rejected."""
    if given is None or given.type == "text":
        return None
    if "json" not in model.features:
        raise Rejected(f"{model.name} cannot be held to a {param}; leave it out, or ask for text", param)
    if given.type == "json_object":
        return {}
    schema = (given.json_schema or {}).get("schema")
    if not isinstance(schema, dict):
        raise Rejected(f"{param}: its schema has to be a JSON schema", param)
    return schema
