"""The models that are served, by the names that requests give them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from penstock.http.openai.faults import NoModel
from penstock.http.openai.kept import Kept
from penstock.models import ChatModel, EmbeddingModel, Model, ScoreModel, UpstreamModel

M = TypeVar("M", bound=Model)

WRITES: tuple[type[Any], ...] = (ChatModel, UpstreamModel)
EMBEDS: tuple[type[Any], ...] = (EmbeddingModel,)
SCORES: tuple[type[Any], ...] = (ScoreModel,)
ALL = WRITES + EMBEDS + SCORES
_DOES = {"chat": "writes", "embedding": "embeds", "rerank": "scores"}


class Catalogue:
    """Looks models up. A model whose name ends in /..., as hub ids do, is also known by its last part."""

    def __init__(self, models: Sequence[Model]) -> None:
        self.models = tuple(models)
        self.created = int(time.time())
        self.kept = Kept()

    def find(self, name: str, kinds: tuple[type[Any], ...]) -> Any:
        """The model of this name that is one of `kinds`. Raises NoModel, with what there is."""
        known = [m for m in self.models if m.name == name]
        if not known:
            known = [m for m in self.models if m.name.rpartition("/")[2] == name]
        for model in known:
            if isinstance(model, kinds):
                return model
        fitting = [m.name for m in self.models if isinstance(m, kinds)]
        shown = repr(name[:200])
        if known:
            raise NoModel(f"the model {shown} {_DOES[known[0].task]}; for this there {_listed(fitting)}")
        near = get_close_matches(name[:200], fitting, 1)
        raise NoModel(f"no model is named {shown}; {f'did you mean {near[0]!r}?' if near else f'there {_listed(fitting)}'}")

    def only(self, kinds: tuple[type[Any], ...]) -> Any:
        """The first model of these kinds, for requests that need not name one. Raises NoModel."""
        for model in self.models:
            if isinstance(model, kinds):
                return model
        raise NoModel("no model here does this")

    def entry(self, model: Model) -> dict[str, Any]:
        """The model as `/v1/models` shows it; `max_model_len` is what vLLM's has."""
        found: dict[str, Any] = {"id": model.name, "object": "model", "created": self.created, "owned_by": "penstock"}
        found["task"] = model.task
        if isinstance(model, ChatModel):
            found["max_model_len"] = model.context
        elif isinstance(model, EmbeddingModel | ScoreModel):
            found["max_model_len"] = model.max_tokens
        return found


def _listed(names: list[str]) -> str:
    return f"is {names[0]!r}" if len(names) == 1 else f"are {', '.join(map(repr, names))}" if names else "is none"
