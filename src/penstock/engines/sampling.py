"""Which token comes next: every request in its own way, all of them from one batch of logits.

The order is transformers': penalties and biases, temperature, then of the likeliest tokens the first `top_k`, of those
the ones that together have `top_p`, of those the ones above `min_p`. A token is drawn by inverting the distribution at one
uniform number of the request's own generator, so what a seed gives depends on nothing that runs beside.

A nucleus is looked for among the likeliest 1024 tokens first: to sort a vocabulary of 150,000 takes longer than a step.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from penstock.engines.schema import Held
from penstock.errors import InvalidRequest, ServiceError
from penstock.models import Token

HEAD = 1024  # likeliest tokens that are looked at before all are
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0.0, math.inf),
    "top_p": (0.0, 1.0),
    "top_k": (-1, math.inf),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-math.inf, math.inf),
    "frequency_penalty": (-math.inf, math.inf),
    "repetition_penalty": (1e-6, math.inf),
    "logprobs": (0, math.inf),
}


class Choice:
    """How one request chooses, and what it has to remember for that."""

    def __init__(
        self, asked: Mapping[str, Any], prompt: Sequence[int], vocabulary: int, device: torch.device, held: Held | None = None
    ) -> None:
        self.held = held
        number = {name: _number(asked, name) for name in RANGES}
        self.temperature = 1.0 if number["temperature"] is None else number["temperature"]
        self.top_p = 1.0 if number["top_p"] is None else number["top_p"]
        top_k = int(number["top_k"] or 0)
        self.top_k = min(top_k, vocabulary) if top_k > 0 else vocabulary
        self.min_p = number["min_p"] or 0.0
        self.presence = number["presence_penalty"] or 0.0
        self.frequency = number["frequency_penalty"] or 0.0
        self.repetition = number["repetition_penalty"] or 1.0
        self.logprobs = None if number["logprobs"] is None else min(int(number["logprobs"]), vocabulary)
        self.random = random.Random(asked.get("seed"))
        self.narrows = self.top_p < 1.0 or self.min_p > 0.0 or self.top_k < vocabulary  # some tokens are left out
        self.biases = _biases(asked.get("logit_bias"), vocabulary, device)
        self.written: Any = None  # how often each token was
        self.seen: Any = None  # whether each token was read or written
        if self.presence or self.frequency:
            self.written = torch.zeros(vocabulary, device=device)
        if self.repetition != 1.0:
            self.seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            self.seen[torch.tensor(prompt, device=device)] = True

    @property
    def shapes(self) -> bool:
        """Logits are changed before one is chosen."""
        return not (self.written is None and self.seen is None and self.biases is None and self.held is None)

    def note(self, token: int) -> None:
        """This token was written."""
        if self.written is not None:
            self.written[token] += 1
        if self.seen is not None:
            self.seen[token] = True
        if self.held is not None:
            self.held.note(token)

    def shape(self, logits: torch.Tensor) -> ServiceError | None:
        """Penalties, biases, and what may follow at all; in place. What it returns fails the request."""
        if self.seen is not None:
            logits.copy_(
                torch.where(self.seen, torch.where(logits > 0, logits / self.repetition, logits * self.repetition), logits)
            )
        if self.written is not None:
            logits.sub_(self.frequency * self.written + self.presence * (self.written > 0))
        if self.biases is not None:
            logits.index_add_(0, *self.biases)
        return self.held.narrow(logits) if self.held is not None else None


def _number(asked: Mapping[str, Any], name: str) -> float | None:
    value = asked.get(name)
    if value is None:
        return None
    least, most = RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most or math.isinf(value):
        raise InvalidRequest(f"{name}={value!r}: a number from {least:g} to {most:g}")
    return value


def _biases(asked: Any, vocabulary: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
    if not asked:
        return None
    try:
        ids, values = [int(token) for token in asked], [float(value) for value in asked.values()]
    except (TypeError, ValueError, AttributeError):
        raise InvalidRequest("logit_bias: an object from tokens to numbers") from None
    if any(not 0 <= token < vocabulary for token in ids) or any(math.isnan(value) for value in values):
        raise InvalidRequest(f"logit_bias: tokens are 0 to {vocabulary - 1}, and each has a number")
    return torch.tensor(ids, device=device), torch.tensor(values, device=device).clamp_(-1e30, 1e30)


def choose(logits: torch.Tensor, choices: Sequence[Choice]) -> list[int | Token | ServiceError]:
    """A token for each row of logits [requests, vocabulary]; an error where there can be none."""
    raw = logits = logits.float()
    failed: dict[int, ServiceError] = {}
    if any(choice.shapes for choice in choices):
        raw = logits.clone() if any(choice.logprobs is not None for choice in choices) else logits
        for row, choice in enumerate(choices):
            if choice.shapes and (error := choice.shape(logits[row])) is not None:
                failed[row] = error
    highest, best = logits.max(-1)
    tokens: list[int] = best.tolist()
    for row, value in enumerate(highest.tolist()):
        if not math.isfinite(value):
            failed.setdefault(row, ServiceError("the model computed what is no number (NaN or infinite) for this request"))
    drawn = [row for row, choice in enumerate(choices) if choice.temperature > 0 and row not in failed]
    if drawn:
        _draw(logits, highest, choices, drawn, tokens)
    found: list[int | Token | ServiceError] = []
    for row, choice in enumerate(choices):
        if row in failed:
            found.append(failed[row])
            continue
        choice.note(tokens[row])
        found.append(tokens[row] if choice.logprobs is None else _with_logprobs(raw[row], tokens[row], choice.logprobs))
    return found


def _draw(logits: torch.Tensor, highest: torch.Tensor, choices: Sequence[Choice], drawn: list[int], tokens: list[int]) -> None:
    """Put into `tokens` what these rows draw."""
    rows = torch.tensor(drawn, device=logits.device)
    heat = torch.tensor([choices[row].temperature for row in drawn], device=logits.device)[:, None]
    weights = ((logits[rows] - highest[rows, None]) / heat).exp()  # the likeliest token's is 1
    for narrows, of_these in ((False, _invert), (True, _of_the_likeliest)):
        places = [n for n, row in enumerate(drawn) if choices[row].narrows == narrows]
        if places:
            these = [choices[drawn[n]] for n in places]
            for n, token in zip(
                places, of_these(weights if len(places) == len(drawn) else weights[places], these), strict=True
            ):
                tokens[drawn[n]] = token


def _invert(weights: torch.Tensor, choices: Sequence[Choice]) -> list[int]:
    """For each row the first place where the weights so far exceed a uniform share of all of them."""
    sums = weights.cumsum(-1, dtype=torch.float64)
    uniform = torch.tensor([choice.random.random() for choice in choices], dtype=torch.float64, device=weights.device)
    places = torch.searchsorted(sums, uniform[:, None] * sums[:, -1:], right=True).clamp_(max=weights.shape[-1] - 1)
    found: list[int] = places[:, 0].tolist()
    return found


def _of_the_likeliest(weights: torch.Tensor, choices: Sequence[Choice]) -> list[int]:
    size = weights.shape[-1]
    count = min(max(choice.top_k for choice in choices), size, HEAD)
    head, ids = weights.topk(count)
    total = weights.sum(-1, dtype=torch.float64).tolist()
    kept = _kept(head, total, choices, size)
    if kept is None:
        head, ids = weights.sort(descending=True)
        kept = _kept(head, total, choices, size)
        assert kept is not None
    return ids.gather(-1, torch.tensor(_invert(kept, choices), device=ids.device)[:, None])[:, 0].tolist()  # type: ignore[no-any-return]


def _kept(head: torch.Tensor, total: list[float], choices: Sequence[Choice], size: int) -> torch.Tensor | None:
    """The weights of the likeliest tokens, 0 for those that are left out; None if some that stay may not be among these."""
    device, count = head.device, head.shape[-1]
    sums = head.cumsum(-1, dtype=torch.float64)
    of_first = sums.gather(-1, torch.tensor([[min(c.top_k, count) - 1] for c in choices], device=device))[:, 0].tolist()
    last = head[:, -1].tolist()
    whole = [all_ if c.top_k >= size else first for c, all_, first in zip(choices, total, of_first, strict=True)]
    for choice, mass, first, least in zip(choices, whole, of_first, last, strict=True):
        if choice.top_k > count and (choice.top_k < size or (first < choice.top_p * mass and least >= choice.min_p)):
            return None
    # A token stays while those likelier than it have less than top_p together, and the likeliest always does.
    most = torch.tensor([[c.top_p * mass] for c, mass in zip(choices, whole, strict=True)], dtype=torch.float64, device=device)
    keep = (sums - head < most) & (head >= torch.tensor([[c.min_p] for c in choices], device=device))
    keep &= torch.arange(count, device=device) < torch.tensor([[c.top_k] for c in choices], device=device)
    keep[:, 0] = True
    return head * keep


def _with_logprobs(logits: torch.Tensor, token: int, count: int) -> Token:
    logs = logits.log_softmax(-1)
    if not count:
        return Token(token, float(logs[token]))
    top, ids = logs.topk(count)
    return Token(token, float(logs[token]), tuple(zip(ids.tolist(), top.tolist(), strict=True)))
