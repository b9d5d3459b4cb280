"""Continuous batching of one causal LM: who is in which slot, what they have read and written, and the next step of all.

Runs in the worker, and knows nothing of queues: `chat` wraps it as a class for `ps.Slots`. A request that asks for what
cannot be done fails alone: in `add` where that can be seen, in its step where memory is short or the model computes what
is no number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import penstock as ps
from penstock.engines.causal_lm import CausalLM, Shown
from penstock.engines.images import Read
from penstock.engines.sampling import Choice, choose
from penstock.engines.schema import Schemas
from penstock.engines.slot_cache import Piece
from penstock.errors import InvalidRequest, Overloaded, ServiceError

Out = list[tuple[int, Any]]


@dataclass(slots=True, eq=False)
class Seat:
    """One request: tokens `known` are in the cache's `row`, `last` was written and is not yet."""

    slot: int
    row: int
    prompt: list[int]
    left: int  # that it may still write
    stops: frozenset[int]
    choice: Choice
    read: Read | None = None  # of a prompt with images
    known: int = 0
    last: int = 0

    @property
    def writes(self) -> bool:
        return self.known >= len(self.prompt)


class Writing:
    """The model and who is in its slots."""

    def __init__(
        self,
        folder: Path,
        *,
        context: int,
        stops: frozenset[int],
        dtype: str | None,
        replicas: int,
        pickles: bool,
        images: bool = False,
    ) -> None:
        self.lm = CausalLM(folder, dtype, replicas, pickles, images)
        self.folder = folder
        self.context = context
        self.stops = stops
        self.schemas: Schemas | None = None  # made for the first who asks: that takes a second where there are many tokens
        self.seats: dict[int, Seat] = {}
        self.rows: list[Seat | None] = []

    def add(self, slot: int, prompt: Sequence[int], sampling: Mapping[str, Any], images: Sequence[bytes] = ()) -> int:
        """Let a request in; its prompt is read in the steps that follow.

        Images take more of the context than their places in the prompt, which is known here first: where they do not
        leave so many tokens for the answer, it is shorter.
        """
        ids, most = self._checked(prompt, sampling)
        read = self._looked_at(ids, images) if images else None
        if read is not None:
            ids, most = read.ids, min(most, self.context - len(read.ids))
        schema = sampling.get("schema")
        goes_on = sampling.get("ignore_eos") and schema is None
        stops = frozenset(sampling.get("stop_ids") or ()) | (frozenset() if goes_on else self.stops)
        held = None if schema is None else self._schemas().hold(schema)
        choice = Choice(sampling, ids, self.lm.vocabulary, self.lm.device, held)
        if None not in self.rows:
            self.rows.append(None)
        row = self.rows.index(None)
        self.seats[slot] = self.rows[row] = Seat(slot, row, ids, most, stops, choice, read)
        return len(ids)

    def _checked(self, prompt: Sequence[int], sampling: Mapping[str, Any]) -> tuple[list[int], int]:
        ids, most = list(prompt), sampling.get("max_tokens")
        if not ids:
            raise InvalidRequest("the prompt has no tokens")
        if not all(type(token) is int and 0 <= token < self.lm.vocabulary for token in ids):
            raise InvalidRequest(f"a prompt is token ids, each from 0 to {self.lm.vocabulary - 1}")
        if type(most) is not int or most < 1:
            raise InvalidRequest(f"max_tokens={most!r}: at least 1")
        if len(ids) + most > self.context:
            raise InvalidRequest(f"{len(ids)} tokens and {most} to be written are more than the context, {self.context}")
        return ids, most

    def _schemas(self) -> Schemas:
        if self.schemas is None:
            if not self.stops or find_spec("llguidance") is None:
                raise InvalidRequest("this model cannot be held to a schema")
            self.schemas = Schemas(self.folder, self.lm.vocabulary, self.stops)
        return self.schemas

    def _looked_at(self, ids: list[int], images: Sequence[bytes]) -> Read:
        if self.lm.images is None:
            raise InvalidRequest("this model reads no images")
        with torch.inference_mode():
            read = self.lm.images.read(ids, images)
        if len(read.ids) >= self.context:
            raise InvalidRequest(f"with its images the prompt has {len(read.ids)} tokens; the context is {self.context}")
        return read

    def drop(self, slot: int) -> None:
        """The request has ended, or nobody wants it any more."""
        seat = self.seats.pop(slot, None)
        if seat is None:
            return
        self.rows[seat.row] = None
        with torch.inference_mode():
            self.lm.cache.wipe(seat.row, seat.known)
            if not self.seats:
                self.rows.clear()
                self.lm.cache.settle()

    def step(self, plan: Mapping[int, int]) -> Out:
        """One forward: a token more of everybody who writes, and so many tokens of the prompts that are being read."""
        out: Out = []
        with torch.inference_mode():
            self._step(plan, out)
        return out

    def _step(self, plan: Mapping[int, int], out: Out) -> None:
        taking_part = self._with_room([(self.seats[slot], units) for slot, units in plan.items()], out)
        writing = self._in_first_rows([seat for seat, _ in taking_part if seat.writes])
        pieces = [(seat, Piece(seat.row, seat.known, units)) for seat, units in taking_part if not seat.writes]
        if not taking_part:
            return
        try:
            chosen, logits = self._forward(writing, pieces)
        except torch.OutOfMemoryError as error:
            if not writing or not pieces:
                raise
            short = Overloaded(f"no memory to read the prompt beside what is written: {error}")
            out += [(seat.slot, short) for seat, _ in pieces]
            for seat in writing:
                seat.known -= 1
            chosen, logits = self._forward(writing, [])
        if chosen:
            self._tell(chosen, choose(logits, [seat.choice for seat in chosen]), out)

    def _forward(self, writing: list[Seat], pieces: list[tuple[Seat, Piece]]) -> tuple[list[Seat], torch.Tensor]:
        """Who has a token to choose, and the logits for that."""
        ids, keep, chosen = [seat.last for seat in writing], list(range(len(writing))), list(writing)
        shown: list[Shown] = []
        for seat, piece in pieces:
            if seat.read is not None:
                shown.append((seat.read, piece.start, len(ids), piece.count))
            ids += seat.prompt[piece.start : piece.start + piece.count]
            if piece.start + piece.count == len(seat.prompt):
                keep.append(len(ids) - 1)
                chosen.append(seat)
        pack = self.lm.pack([seat.known for seat in writing], [piece for _, piece in pieces])
        for seat in writing:
            seat.known += 1  # before it is so: a step that fails may have got as far
        for seat, piece in pieces:
            seat.known += piece.count
        shifts = [seat.read.shift if seat.read else 0 for seat in writing] if self.lm.images else ()
        return chosen, self.lm.forward(ids, pack, None if len(keep) == len(ids) else keep, shown, shifts)

    def _tell(self, seats: list[Seat], tokens: list[Any], out: Out) -> None:
        for seat, token in zip(seats, tokens, strict=True):
            if isinstance(token, ServiceError):
                out.append((seat.slot, token))
                continue
            seat.last = token if type(token) is int else token.id
            seat.left -= 1
            out.append((seat.slot, token))
            if not seat.left or seat.last in seat.stops:
                out.append((seat.slot, ps.END))

    def _in_first_rows(self, writing: list[Seat]) -> list[Seat]:
        """Those who write, in the order of their rows, which are the first ones: whoever else was there changes places."""
        count = len(writing)
        outside = [seat for seat in writing if seat.row >= count]
        if outside:
            here = set(map(id, writing))
            free = (row for row in range(count) if id(self.rows[row]) not in here)
            for seat, row in zip(outside, free, strict=True):
                self._exchange(seat, row)
        return sorted(writing, key=lambda seat: seat.row)

    def _exchange(self, seat: Seat, row: int) -> None:
        other, before = self.rows[row], seat.row
        self.lm.cache.exchange(before, row, max(seat.known, other.known if other else 0))
        self.rows[row], self.rows[before] = seat, other
        seat.row = row
        if other is not None:
            other.row = before

    def _with_room(self, asked: list[tuple[Seat, int]], out: Out) -> list[tuple[Seat, int]]:
        """Make room in the cache for this step; whom there is no memory for fails, and the others go on."""
        cache = self.lm.cache
        rows = max(seat.row for seat, _ in asked) + 1
        tokens = max(seat.known + units for seat, units in asked)
        if cache.fits(rows, tokens):
            return asked
        try:
            cache.grow(rows, tokens)
        except (RuntimeError, MemoryError) as error:
            cache.rows, cache.tokens = rows, tokens = cache.room()
            fitting = [(seat, units) for seat, units in asked if seat.row < rows and seat.known + units <= tokens]
            if len(fitting) == len(asked):
                raise
            short = Overloaded(f"no memory for what is to be remembered of this request: {error}")
            out += [(seat.slot, short) for seat, units in asked if seat.row >= rows or seat.known + units > tokens]
            return fitting
        return asked
