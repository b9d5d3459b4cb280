"""What the model endpoints read, as the clients of OpenAI, vLLM, Cohere, Jina and TEI send it.

A field that nobody knows is refused with its name, so that a misspelt `temprature` is not a silent default. What is known
but changes nothing here (`user`, `store`, `metadata` ...) is accepted; what is known and cannot be done is refused by the
endpoint, if it asks for something.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from penstock.http.openai.faults import Rejected
from penstock.models import Sampling

Count = Annotated[int, Meta(ge=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]
Share = Annotated[float, Meta(ge=0, le=1)]
MOST_CHOICES = 128
MOST_STOPS = 16


class Named(msgspec.Struct):
    """What every request says first: for which model it is. The model's kind decides how the rest is read."""

    model: str | None = None


class ImageURL(msgspec.Struct):
    url: str
    detail: str | None = None


class Part(msgspec.Struct):
    """One part of a message's content."""

    type: str
    text: str | None = None
    image_url: ImageURL | str | None = None


class Message(msgspec.Struct):
    """One message. Fields of other makers are left out, not refused: clients send back what they were given."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool = False
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool = False


class Format(msgspec.Struct):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class Chosen(msgspec.Struct, kw_only=True):
    """How tokens are chosen: what chats and completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MOST_CHOICES)] | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None

    def stops(self) -> list[str]:
        """The strings that end an answer. Raises Rejected."""
        found = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(found) > MOST_STOPS or not all(found):
            raise Rejected(f"stop: at most {MOST_STOPS} strings, none of them empty", "stop")
        return found

    def sampling(self, max_tokens: int) -> Sampling:
        """What differs from the defaults, as engines read it. Raises Rejected."""
        found: Sampling = {"max_tokens": max_tokens}
        for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed"):
            value = getattr(self, name)
            if value is not None:
                found[name] = value
        if self.top_k is not None and self.top_k > 0:
            found["top_k"] = self.top_k
        if self.stop_token_ids:
            found["stop_ids"] = self.stop_token_ids
        if self.ignore_eos:
            found["ignore_eos"] = True
        if self.seed is not None and not -(1 << 63) <= self.seed < 1 << 63:
            raise Rejected("seed: an integer of 64 bits", "seed")
        if self.logit_bias:
            try:
                found["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
            except ValueError:
                raise Rejected("logit_bias: its keys are token ids", "logit_bias") from None
        return found


class Chat(Chosen, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: Format | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    moderation: dict[str, Any] | None = None


class Completion(Chosen, kw_only=True, forbid_unknown_fields=True):
    """`POST /v1/completions`."""

    prompt: Any  # a text, its token ids, or a list of either
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Count | None = None
    suffix: str | None = None


def texts(given: Any, param: str, most: int) -> list[str | list[int]]:
    """A text, a list of texts, a text's token ids, or a list of such: as a list of texts and token ids. Raises Rejected."""
    if isinstance(given, str):
        found: list[Any] = [given]
    elif isinstance(given, list) and given and all(_is_id(each) for each in given):
        found = [given]
    elif isinstance(given, list):
        found = given
    else:
        raise Rejected(f"{param}: a string, a list of strings, token ids, or lists of token ids", param)
    if not 1 <= len(found) <= most:
        raise Rejected(f"{param}: 1 to {most} of them in a request, not {len(found)}", param)
    for n, each in enumerate(found):
        if not (isinstance(each, str) or (isinstance(each, list) and each and all(map(_is_id, each)))):
            raise Rejected(f"{param}[{n}]: a string or a list of token ids", param)
    return found


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


class Embeddings(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /v1/embeddings`. `truncate=false` refuses a text that is too long, instead of cutting and saying so."""

    input: Any
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: str | None = None
    truncate: bool | None = None
    input_type: str | None = None


class Reranking(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /v1/rerank` (Jina), `/v2/rerank` (Cohere), `/rerank` (TEI: `texts`; vLLM, infinity: `documents`)."""

    query: str
    documents: list[str | dict[str, Any]] | None = None
    texts: list[str] | None = None
    model: str | None = None
    top_n: Annotated[int, Meta(ge=0)] | None = None
    return_documents: bool | None = None
    return_text: bool | None = None
    raw_scores: bool | None = None
    truncate: bool | None = None
    truncation_direction: Literal["right", "Right"] | None = None  # TEI's; here a text always loses its end
    max_tokens_per_doc: Count | None = None
    max_chunks_per_doc: int | None = None
    rank_fields: list[str] | None = None
    priority: int | None = None
    user: str | None = None


class Scoring(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /v1/score`: one to one, one to many, or pair by pair."""

    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    items: str | list[str] | None = None
    data_1: str | list[str] | None = None
    data_2: str | list[str] | None = None
    model: str | None = None
    encoding_format: str | None = None
    user: str | None = None


class Tokenizing(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /tokenize`, as vLLM has it."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


class Detokenizing(msgspec.Struct, forbid_unknown_fields=True):
    """`POST /detokenize`."""

    tokens: list[TokenId]
    model: str | None = None


class Response(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`POST /v1/responses`, in its text form."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None
    include: list[str] | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    truncation: str | None = None
    top_logprobs: int | None = None
    service_tier: str | None = None
    store: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
