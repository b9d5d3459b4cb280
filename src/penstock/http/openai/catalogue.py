"""The models that are served, by the names that requests give them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from penstock.http.openai.faults import NoModel
from penstock.models import ChatModel, EmbeddingModel, Model, ScoreModel, UpstreamModel

M = TypeVar("M", bound=Model)

WRITES: tuple[type[Any], ...] = (ChatModel, UpstreamModel)
EMBEDS: tuple[type[Any], ...] = (EmbeddingModel,)
SCORES: tuple[type[Any], ...] = (ScoreModel,)
_DOES = {ChatModel: "writes", UpstreamModel: "writes", EmbeddingModel: "embeds", ScoreModel: "scores"}
_TASKS = {ChatModel: "chat", UpstreamModel: "chat", EmbeddingModel: "embedding", ScoreModel: "rerank"}


class Catalogue:
    """Looks models up. A model whose name ends in /..., as hub ids do, is also known by its last part."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.models = dict(models)
        self.created = int(time.time())

    def find(self, name: str, kinds: tuple[type[Any], ...]) -> Any:
        """The model of this name that is one of `kinds`. Raises NoModel, with what there is."""
        model = self.models.get(name)
        if model is None:
            short = [m for m in self.models.values() if m.name.rpartition("/")[2] == name]
            model = short[0] if len(short) == 1 else None
        fitting = [m.name for m in self.models.values() if isinstance(m, kinds)]
        if model is not None and isinstance(model, kinds):
            return model
        shown = repr(name[:200])
        if model is not None:
            raise NoModel(f"the model {shown} {_DOES[type(model)]}; for this there {_listed(fitting)}")
        near = get_close_matches(name[:200], fitting, 1)
        raise NoModel(f"no model is named {shown}; {f'did you mean {near[0]!r}?' if near else f'there {_listed(fitting)}'}")

    def only(self, kinds: tuple[type[Any], ...]) -> Any:
        """The first model of these kinds, for requests that need not name one. Raises NoModel."""
        for model in self.models.values():
            if isinstance(model, kinds):
                return model
        raise NoModel("no model here does this")

    def entry(self, model: Model) -> dict[str, Any]:
        """The model as `/v1/models` shows it; `max_model_len` is what vLLM's has."""
        found: dict[str, Any] = {"id": model.name, "object": "model", "created": self.created, "owned_by": "penstock"}
        found["task"] = _TASKS[type(model)]
        if isinstance(model, ChatModel):
            found["max_model_len"] = model.context
        elif isinstance(model, EmbeddingModel | ScoreModel):
            found["max_model_len"] = model.max_tokens
        return found


def _listed(names: list[str]) -> str:
    return f"is {names[0]!r}" if len(names) == 1 else f"are {', '.join(map(repr, names))}" if names else "is none"
