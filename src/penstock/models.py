"""What the model endpoints (`/v1/...`) know of a model: the services that run it, and how its texts become tokens.

An engine makes one of these, or you do: anything that streams token ids can be served as a chat model, anything that
gives a vector as an embedding model. The endpoints do the rest: wire formats, templates, detokenising, stop strings,
limits and accounting. Tokens are counted before a request is queued, so what cannot fit is refused at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypedDict

from penstock.service import Service

Feature = Literal["images", "tools", "json", "logprobs", "seed", "penalties", "logit_bias"]


class Sampling(TypedDict, total=False):
    """How to choose tokens, in a form that any interpreter can read. What is left out has the value in brackets."""

    max_tokens: int  # always there: at most so many tokens
    temperature: float  # [1] 0 takes the likeliest token
    top_p: float  # [1] of the likeliest tokens that together have this probability
    top_k: int  # [0: all] of so many likeliest tokens
    min_p: float  # [0] of those at least this much as likely as the likeliest
    presence_penalty: float  # [0] taken from the logit of a token that was written before
    frequency_penalty: float  # [0] the same, as often as it was
    repetition_penalty: float  # [1] logits of what was read or written are divided by it (multiplied, where negative)
    logit_bias: dict[int, float]  # [none] added to logits, by token
    seed: int  # [none] the same seed gives the same tokens, whatever runs beside
    logprobs: int  # [none] log-probabilities of the chosen token and of so many likeliest ones
    ignore_eos: bool  # [False] go on to `max_tokens`
    stop_ids: list[int]  # [none] further tokens that end the answer
    schema: dict[str, Any]  # [none] the answer is JSON that fits this JSON schema ({}: any JSON)


class Token(NamedTuple):
    """One token with its log-probability, and those of the likeliest ones in its place: (id, log-probability)."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Embedding(NamedTuple):
    """A text's vector, float32 [dimensions]; how many tokens of it were read; how many were cut off its end."""

    vector: Any
    tokens: int
    cut: int = 0


class Score(NamedTuple):
    """How well a document answers a query, 0 to 1 where the model says so; tokens read; tokens cut off."""

    value: float
    tokens: int
    cut: int = 0


class Decoder(Protocol):
    """Tokens back to text, one answer's worth."""

    def push(self, token: int) -> str:
        """What has become readable with this token; "" while a character is incomplete."""
        ...

    def flush(self) -> str:
        """What is left at the end: an incomplete character as U+FFFD."""
        ...


class Tokenizer(Protocol):
    """A model's texts as tokens. All methods may be called from several threads at once."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The tokens of a text; with what the model wants before and after one, if `special`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes that one token stands for, for log-probabilities."""
        ...

    def decoder(self) -> Decoder:
        """A new decoder, for one answer."""
        ...

    def chat(self, messages: Sequence[Mapping[str, Any]], /, **options: Any) -> list[int]:
        """The prompt of a conversation, by the model's own template, ready for the answer to begin.

        `options` go to the template (`tools`, `enable_thinking` ...). Raises InvalidRequest for what it cannot take.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChatModel:
    """A model that writes.

    `generate(prompt, sampling, images)` streams what follows the tokens `prompt`: each item a token id, or a `Token` if
    log-probabilities are asked for. It ends after a token of `stops` (which it gives too), or after `max_tokens`.
    `images` are the bytes of image files, in the order of their places in the prompt. `context` is how many tokens a
    prompt and its answer may have together. What is not among `features` is refused with 400.
    """

    task: ClassVar[str] = "chat"
    name: str
    generate: Service[..., Any]
    tokenizer: Tokenizer
    context: int
    stops: frozenset[int] = frozenset()
    features: frozenset[Feature] = frozenset()
    max_tokens: int | None = None
    """Of an answer for which the request names no number; None for what the context leaves."""
    defaults: Sampling = field(default_factory=lambda: Sampling())
    """How tokens are chosen where the request does not say (a model's own `generation_config.json`)."""
    cache_bytes: int = 0
    """Keep whole answers that chance had no part in (temperature 0); equal requests get them again."""
    inner: tuple[Service[..., Any], ...] = ()

    @property
    def services(self) -> tuple[Service[..., Any], ...]:
        return (self.generate, *self.inner)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UpstreamModel:
    """A model on another server that speaks OpenAI's protocol.

    `relay(path, body)` sends a request there and streams its answer: one dict, or if the body asks for a stream, one of
    each event. Errors come as penstock's own. `remote_name` is what the model is called there.
    """

    task: ClassVar[str] = "chat"
    name: str
    relay: Service[..., Any]
    remote_name: str
    inner: tuple[Service[..., Any], ...] = ()

    @property
    def services(self) -> tuple[Service[..., Any], ...]:
        return (self.relay, *self.inner)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbeddingModel:
    """A model that gives vectors: `embed(text)` an `Embedding`; a text may also be a list of token ids.

    `max_tokens` is how many tokens of a text are read. `shorten` says that a vector's first elements, normalised again,
    are a vector too (Matryoshka), so that a request may ask for fewer `dimensions`. `prompts` are what the model wants
    before a text of some purpose ("query", "document"), by name: then `embed(text, name)` is understood as well.
    """

    task: ClassVar[str] = "embedding"
    name: str
    embed: Service[..., Any]
    dimensions: int
    max_tokens: int
    tokenizer: Tokenizer | None = None
    shorten: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    inner: tuple[Service[..., Any], ...] = ()

    @property
    def services(self) -> tuple[Service[..., Any], ...]:
        return (self.embed, *self.inner)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreModel:
    """A model that scores a document for a query: `score(query, document)` gives a `Score`.

    `raw` turns a score into what the model itself said, before it was squeezed into 0 to 1 (None: it is the same).
    """

    task: ClassVar[str] = "rerank"
    name: str
    score: Service[..., Any]
    max_tokens: int
    tokenizer: Tokenizer | None = None
    raw: Callable[[float], float] | None = field(default=None)
    inner: tuple[Service[..., Any], ...] = ()

    @property
    def services(self) -> tuple[Service[..., Any], ...]:
        return (self.score, *self.inner)


_CONTEXT = 4  # tokens before those that are new: some of them may be special, and have no text
_WINDOW = 16  # tokens that are decoded together before the oldest are left out

Model = ChatModel | UpstreamModel | EmbeddingModel | ScoreModel


class Incremental:
    """A `Decoder` over any `decode`: never gives half a character, and costs the same for each token of a long answer.

    The text of a few tokens before the new one is decoded with and without it; the difference is new. It is held back
    while it ends in U+FFFD, for then a character's bytes are still to come (at most eight tokens' worth: then the bytes
    are no character).
    """

    __slots__ = ("before", "decode", "ids", "waiting")

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self.decode = decode
        self.ids: list[int] = []  # some that were given, for context, and those that are not readable yet
        self.before = ""  # the text of those that were given
        self.waiting = 0

    def push(self, token: int) -> str:
        self.ids.append(token)
        self.waiting += 1
        text = self.decode(self.ids)
        if text.endswith("\ufffd") and self.waiting < 8:
            return ""
        return self._give(text)

    def flush(self) -> str:
        return self._give(self.decode(self.ids)) if self.waiting else ""

    def _give(self, text: str) -> str:
        new = text[len(self.before) :]
        if len(self.ids) > _WINDOW:
            self.ids = self.ids[-self.waiting - _CONTEXT :]
            text = self.decode(self.ids)
        self.before, self.waiting = text, 0
        return new
