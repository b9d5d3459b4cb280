"""A causal LM of transformers, loaded, and its forward over the requests in slots (`slot_cache`).

Not every architecture can be run so: some add to attention scores, keep a state that is no key or value, or stretch
positions by what else is in the batch. What is known is refused by name; and before a model is used at all, a few tokens
go through it both ways, as transformers runs it and through slots, and what differs is refused too.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from penstock.engines.images import ImageReader, Read
from penstock.engines.slot_cache import Pack, Piece, SlotCache
from penstock.engines.torch_model import cores, load
from penstock.errors import ConfigError

PLAIN = ("full_attention", "sliding_attention")
PROBE = 12  # tokens
Shown = tuple[Read, int, int, int]
"""(a prompt with images, the first of its tokens, their place in the pack, how many)"""


class CausalLM:
    """The model and its cache. `forward` gives the logits of those tokens of a pack that are asked for."""

    def __init__(self, folder: Path, dtype: str | None, replicas: int, pickles: bool, images: bool) -> None:
        auto = "AutoModelForImageTextToText" if images else "AutoModelForCausalLM"
        self.model = load(auto, folder, threads=cores(replicas), dtype=dtype, pickles=pickles)
        self.images = ImageReader(self.model, folder) if images else None
        self.device = self.model.device
        self.config = self.model.config.get_text_config()
        self.vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        self.cache = SlotCache()
        self.limited = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        _refuse_unknown(self.config, type(self.model).__name__)
        with torch.inference_mode():
            self._take_part()

    def _take_part(self) -> None:
        """Put our attention into the model, and see that nothing changed."""
        name = type(self.model).__name__
        probe = torch.arange(PROBE, device=self.device) * 7919 % self.vocabulary
        expected = self.model(input_ids=probe[None], use_cache=False).logits[0].float()
        own = f"penstock_{id(self.cache):x}"
        transformers.AttentionInterface.register(own, self.cache.attend)
        try:
            self.model.set_attn_implementation({"text_config": own} if self.images else own)
            found = self._through_slots(probe)
        except Exception as error:
            raise ConfigError(f"{name} cannot be run in slots: {error}") from error
        finally:
            self.cache.pack = None
        allowed = 0.05 if self.model.dtype in (torch.float16, torch.bfloat16) else 1e-3
        if not (found - expected).abs().max() <= allowed * expected.abs().max():
            raise ConfigError(f"{name} cannot be run in slots: its attention is not plain (its logits come out different)")

    def _through_slots(self, probe: torch.Tensor) -> torch.Tensor:
        """The probe's logits, from row 1 in a piece, then a piece beside a token in row 0, and a token after moving there."""
        ids: list[int] = probe.tolist()
        self.cache.grow(2, PROBE)
        first = self.forward(ids[:4], self.pack([], [Piece(1, 0, 4)]), None)
        second = self.forward(ids[:1] + ids[4:-1], self.pack([0], [Piece(1, 4, PROBE - 5)]), None)[1:]
        self.cache.exchange(0, 1, PROBE)
        third = self.forward(ids[-1:], self.pack([PROBE - 1], []), None)
        for row in range(2):
            self.cache.wipe(row, PROBE)
        self.cache.settle()
        return torch.cat([first, second, third]).float()

    def pack(self, lengths: list[int], pieces: list[Piece]) -> Pack:
        """What `forward` needs to know of each token: whose it is, and its place."""
        rows, places = list(range(len(lengths))), list(lengths)
        for piece in pieces:
            rows += [piece.row] * piece.count
            places += range(piece.start, piece.start + piece.count)
        both = torch.tensor([rows, places], device=self.device)
        return Pack(lengths, pieces, both[0], both[1], self.model.dtype)

    def forward(
        self, ids: list[int], pack: Pack, keep: list[int] | None, shown: Sequence[Shown] = (), shifts: Sequence[int] = ()
    ) -> torch.Tensor:
        """Logits [tokens, vocabulary] of the tokens of the pack in `keep`, None for all of them.

        `shown` are the pieces of prompts with images, `shifts` what those who write have had of such.
        """
        self.cache.pack = pack
        options: dict[str, Any] = {}
        if keep is not None and self.limited:
            options["logits_to_keep"] = torch.tensor(keep, dtype=torch.long, device=self.device)
        logits: torch.Tensor = self.model(
            **self._inputs(torch.tensor([ids], device=self.device), shown),
            position_ids=self._positions(pack, shown, shifts),
            past_key_values=self.cache,
            use_cache=True,
            **options,
        ).logits[0]
        return logits if keep is None or self.limited else logits[keep]

    def _inputs(self, ids: torch.Tensor, shown: Sequence[Shown]) -> dict[str, torch.Tensor]:
        if not shown:
            return {"input_ids": ids}
        embeddings = self.model.get_input_embeddings()(ids)
        for read, start, at, count in shown:
            embeddings[0, at : at + count] = read.embeddings[start : start + count]
        return {"inputs_embeds": embeddings}

    def _positions(self, pack: Pack, shown: Sequence[Shown], shifts: Sequence[int]) -> torch.Tensor:
        """[1, tokens], or where any image lies in a plane, [axes, 1, tokens]."""
        if not any(shifts) and all(read.positions is None for read, *_ in shown):
            return pack.places[None]
        positions = pack.places.repeat(3, 1)
        positions[:, : len(shifts)] += torch.tensor(shifts, dtype=torch.long, device=self.device)
        for read, start, at, count in shown:
            if read.positions is not None:
                positions[:, at : at + count] = read.positions[:, start : start + count]
        return positions[:, None]


def _refuse_unknown(config: Any, name: str) -> None:
    kinds = sorted({kind for kind in getattr(config, "layer_types", None) or () if kind not in PLAIN})
    if kinds:
        raise ConfigError(f"{name} cannot be run in slots: it has layers of {', '.join(kinds)}")
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"{name} is an encoder and a decoder; a chat model is a decoder alone")
