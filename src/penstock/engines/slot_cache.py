"""What a causal LM remembers of the requests in its slots, and attention over it.

One forward serves a whole step: one token of every request that writes, and a piece of every prompt that is being read,
are laid end to end as one sequence, so that nothing is padded but keys. transformers' models take part through two of its
public protocols: a `Cache`, whose `update` puts each token's key and value into its request's row, and a registered
attention function, which knows whose each token is and lets it see its own row only.

Keys and values of a layer are [rows, heads, tokens, size]. Requests that write are in the first rows, so that all of them
attend in one call without a copy. Rows and tokens grow by doubling, layer by layer, to the most that are in use at once; when
nobody is left, what was not needed since the last such moment is given back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention as attention
from transformers.cache_utils import Cache

from penstock.errors import ConfigError

LEAST = 128  # tokens that a row has room for


@dataclass(slots=True)
class Piece:
    """Tokens `start` to `start + count` of the prompt in `row`."""

    row: int
    start: int
    count: int


@dataclass(slots=True)
class Pack:
    """One forward: a token for each of the first rows, which hold `lengths` tokens; then the pieces, one after the other."""

    lengths: list[int]
    pieces: list[Piece]
    rows: torch.Tensor  # of each token
    places: torch.Tensor  # of each token in its row, which is its position
    dtype: torch.dtype
    masks: dict[int | None, tuple[Any, list[Any]]] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0) + 1

    def masks_within(self, window: int | None) -> tuple[Any, list[Any]]:
        """What the writing rows may see [rows, 1, 1, tokens], and each piece [count, tokens]; None for plainly causal."""
        found = self.masks.get(window)
        if found is None:
            found = self.masks[window] = (self._of_rows(window), [self._of_piece(piece, window) for piece in self.pieces])
        return found

    def _of_rows(self, window: int | None) -> torch.Tensor | None:
        if not self.lengths:
            return None
        at = self.places[: len(self.lengths), None]
        return self._mask(at, torch.arange(self.longest, device=at.device), window)[:, None, None]

    def _of_piece(self, piece: Piece, window: int | None) -> torch.Tensor | None:
        end = piece.start + piece.count
        if piece.start == 0 and (window is None or end <= window):
            return None
        seen = torch.arange(end, device=self.places.device)
        return self._mask(seen[piece.start :, None], seen, window)

    def _mask(self, at: torch.Tensor, seen: torch.Tensor, window: int | None) -> torch.Tensor:
        hidden = seen > at
        if window is not None:
            hidden = hidden | (seen <= at - window)
        return torch.zeros(hidden.shape, dtype=self.dtype, device=at.device).masked_fill_(hidden, -torch.inf)


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of every layer. `pack` says whose tokens the forward under way has."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.pack: Pack | None = None
        self.rows = 1
        self.tokens = LEAST
        self.most = (1, LEAST)  # rows and tokens that were needed since it was last empty

    # transformers' side

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Put the new keys and values [1, heads, tokens, size] where they belong."""
        pack = self.pack
        assert pack is not None
        kept = self.kept.get(layer_idx)
        if kept is None:
            kept = self.kept[layer_idx] = (self._room(key_states), self._room(value_states))
        where = (pack.rows, slice(None), pack.places)
        kept[0][where] = key_states[0].transpose(0, 1)
        kept[1][where] = value_states[0].transpose(0, 1)
        return key_states, value_states

    def _room(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_empty(self.rows, like.shape[1], self.tokens, like.shape[3]).zero_()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Asked for positions and masks only, and those are given."""
        return 0

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any = None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """transformers' attention function: query [1, heads, tokens, size] to [1, tokens, heads, size]."""
        if any(options.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
            raise ConfigError("its attention scores are changed in ways that are not known here")
        pack = self.pack
        assert pack is not None
        keys, values = self.kept[module.layer_idx]
        row_mask, piece_masks = pack.masks_within(sliding_window)
        count, heads, kept_heads = len(pack.lengths), query.shape[1], keys.shape[1]
        found = []
        if count:
            longest = pack.longest
            # The query heads that share a key head are queries of that one: no key is repeated.
            asked = query[0, :, :count].transpose(0, 1).reshape(count, kept_heads, heads // kept_heads, -1)
            k, v = keys[:count, :, :longest], values[:count, :, :longest]
            found.append(attention(asked, k, v, attn_mask=row_mask, scale=scaling).reshape(count, heads, -1))
        at = count
        for piece, mask in zip(pack.pieces, piece_masks, strict=True):
            k, v = (kept[piece.row, None, :, : piece.start + piece.count] for kept in (keys, values))
            asked = query[:, :, at : at + piece.count]
            found.append(self._of_piece(asked, k, v, mask, scaling))
            at += piece.count
        return (found[0] if len(found) == 1 else torch.cat(found))[None], None

    @staticmethod
    def _of_piece(asked: Any, k: Any, v: Any, mask: Any, scaling: float | None) -> torch.Tensor:
        shared = asked.shape[1] != k.shape[1]
        if shared and asked.device.type != "cpu" and mask is not None:  # no kernel there takes both a mask and shared heads
            times = asked.shape[1] // k.shape[1]
            k, v, shared = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1), False
        seen = attention(asked, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=shared)
        return seen[0].transpose(0, 1)

    # The engine's side

    def fits(self, rows: int, tokens: int) -> bool:
        """Whether there is room for so many, who are needed now."""
        self.most = max(self.most[0], rows), max(self.most[1], tokens)
        return rows <= self.rows and tokens <= self.tokens

    def grow(self, rows: int, tokens: int) -> None:
        """Make room for so many. Raises what says that there is no memory; what is kept stays as it was."""
        self.rows, self.tokens = _doubled(self.rows, rows), _doubled(self.tokens, tokens)
        for layer, kept in self.kept.items():
            if kept[0].shape[0] < self.rows or kept[0].shape[2] < self.tokens:
                self.kept[layer] = (self._larger(kept[0]), self._larger(kept[1]))

    def _larger(self, kept: torch.Tensor) -> torch.Tensor:
        rows, heads, tokens, size = kept.shape
        larger = kept.new_empty(self.rows, heads, self.tokens, size).zero_()
        larger[:rows, :, :tokens] = kept
        return larger

    def room(self) -> tuple[int, int]:
        """Rows and tokens that every layer has room for."""
        shapes = [kept[0].shape for kept in self.kept.values()]
        return min((s[0] for s in shapes), default=self.rows), min((s[2] for s in shapes), default=self.tokens)

    def exchange(self, one: int, other: int, tokens: int) -> None:
        """Two requests change their rows; they hold at most so many tokens."""
        for kept in self.kept.values():
            for values in kept:
                of_one = values[one, :, :tokens].clone()
                values[one, :, :tokens] = values[other, :, :tokens]
                values[other, :, :tokens] = of_one

    def wipe(self, row: int, tokens: int) -> None:
        """Forget these: what was no number would be that for whoever comes next, since 0 times NaN is NaN."""
        for kept in self.kept.values() if tokens else ():
            for values in kept:
                values[row, :, :tokens] = 0

    def settle(self) -> None:
        """Nobody is left."""
        rows, tokens = _doubled(1, self.most[0]), _doubled(LEAST, self.most[1])
        self.most = 1, LEAST
        if (rows, tokens) == (self.rows, self.tokens) == self.room():
            return
        self.rows, self.tokens = min(rows, self.rows), min(tokens, self.tokens)
        for layer, (keys, values) in self.kept.items():
            self.kept[layer] = self._room(keys), self._room(values)


def _doubled(size: int, least: int) -> int:
    while size < least:
        size *= 2
    return size
