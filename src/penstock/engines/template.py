"""A model's chat template: conversations to the text that it was trained on.

Templates are Jinja programs that come with the model, written for transformers, whose surroundings (a sandbox, block
trimming, `raise_exception`, `strftime_now`, `tojson`, `{% generation %}`) they are given here too. Some read a message's
content as text and some as a list of parts; which, is seen in the template, and messages are brought into that form.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.errors import ConfigError, InvalidRequest

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TEXTS, IMAGES = ("text", "input_text"), ("image", "image_url", "input_image")


class ChatTemplate:
    """One compiled template. `tokens` are the special ones that it may write, by their role."""

    def __init__(self, source: str | None, tokens: Mapping[str, str], name: str) -> None:
        self.name = name
        self.tokens = tokens
        self._template: Any = None
        self.parts = False
        if source:
            self._template, self.parts = _compile(source, name)

    @classmethod
    def of_folder(cls, folder: Path, config: Mapping[str, Any]) -> ChatTemplate:
        """From chat_template.jinja, chat_template.json or tokenizer_config.json (`config`)."""
        return cls(_source(folder, config), special_tokens(config), folder.name)

    def render(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """The prompt as text. Raises InvalidRequest for whatever the template cannot take."""
        if self._template is None:
            raise InvalidRequest(f"{self.name} has no chat template: send it a prompt (/v1/completions)")
        shaped = [self._message(message) for message in messages]
        given = {"tools": None, "documents": None, "add_generation_prompt": True, **self.tokens, **options}
        try:
            text: str = self._template.render(given, messages=shaped)
        except Exception as error:  # a template is a program, and what it stumbles over is the request
            raise InvalidRequest(f"the chat template of {self.name} refuses this conversation: {error}") from None
        return text

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        shaped = dict(message)
        if (content := message.get("content")) is not None:
            shaped["content"] = self._content(content)
        if message.get("tool_calls"):
            shaped["tool_calls"] = [_tool_call(call) for call in message["tool_calls"]]
        return shaped

    def _content(self, content: Any) -> Any:
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else _parts(content)
        if self.parts:
            return parts
        if any(part["type"] == "image" for part in parts):
            raise InvalidRequest(f"{self.name} reads no images")
        return content if isinstance(content, str) else "\n".join(part["text"] for part in parts)


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens by role, as a tokenizer_config.json names them."""
    found = {role: config.get(role) for role in SPECIAL}
    texts = {role: token["content"] if isinstance(token, dict) else token for role, token in found.items()}
    return {role: text for role, text in texts.items() if isinstance(text, str)}


def _source(folder: Path, config: Mapping[str, Any]) -> str | None:
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    source: Any = config.get("chat_template")
    beside = folder / "chat_template.json"  # of processors, before they shared the tokenizer's
    if beside.is_file():
        source = json.loads(beside.read_text(encoding="utf-8")).get("chat_template", source)
    if isinstance(source, list):  # several, by name
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    return source if isinstance(source, str) else None


def _parts(content: Any) -> list[dict[str, Any]]:
    if not isinstance(content, Sequence):
        raise InvalidRequest(f"a message's content is a text or a list of parts, not {type(content).__name__}")
    shaped: list[dict[str, Any]] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in TEXTS and isinstance(part.get("text"), str):
            shaped.append({"type": "text", "text": part["text"]})
        elif kind in IMAGES:
            shaped.append({"type": "image"})
        else:
            raise InvalidRequest(f"a part of a message's content is {kind!r}; text and images can be read")
    return shaped


def _tool_call(call: Any) -> Any:
    """Arguments as an object: on the wire they are JSON in a string, and templates would quote that again."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError as error:
        raise InvalidRequest(f"the arguments of a tool call are not JSON: {error}") from None
    return {**call, "function": {**function, "arguments": arguments}}


def _compile(source: str, name: str) -> tuple[Any, bool]:
    try:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise ConfigError("chat templates need the jinja2 package: pip install 'penstock[transformers]'") from None

    from penstock.engines.generation_tag import GenerationTag

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    try:
        return environment.from_string(source), _reads_parts(environment.parse(source))
    except jinja2.TemplateError as error:
        raise ConfigError(f"the chat template of {name}: {error}") from None


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """As it is, where Jinja's own would escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise ValueError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _reads_parts(tree: Any) -> bool:
    """Whether it goes through a message's content part by part: a loop over `content`, or over a name that stands for it."""
    from jinja2 import nodes

    def is_content(node: Any) -> bool:
        return (
            (isinstance(node, nodes.Getattr) and node.attr == "content")
            or (isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content")
            or (isinstance(node, nodes.Name) and node.name in names)
        )

    names = {"content"}
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and is_content(assign.node):
            names.add(assign.target.name)
    return any(is_content(loop.iter) for loop in tree.find_all(nodes.For))
