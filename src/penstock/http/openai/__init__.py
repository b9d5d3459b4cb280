"""The endpoints that clients of OpenAI, vLLM, Cohere, Jina and TEI know, over the models of an app (`penstock.models`).

`route.py` is what they share, `wire.py` what they read. `chat.py` and `completion.py` ask a `generation.py` for answers, whose
text `choice.py` makes of tokens; `forms.py` says how answers look. The rest is an endpoint a module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.http.openai.catalogue import EMBEDS, SCORES, WRITES, Catalogue
from penstock.http.openai.chat import ChatRoute
from penstock.http.openai.completion import CompletionRoute
from penstock.http.openai.embeddings import EmbeddingsRoute
from penstock.http.openai.rerank import RerankRoute, ScoreRoute
from penstock.http.openai.responses import ResponsesRoute
from penstock.http.openai.route import Models, Resource, Route
from penstock.http.openai.tokens import DetokenizeRoute, TokenizeRoute

if TYPE_CHECKING:
    from penstock.http.handler import Handler

MODELS = "/v1/models"
BENEATH = "/v1/"  # where nothing but the models' endpoints is

_ROUTES: tuple[tuple[tuple[type[Any], ...], type[Route[Any]], tuple[str, ...]], ...] = (
    (WRITES, ChatRoute, ("/v1/chat/completions",)),
    (WRITES, CompletionRoute, ("/v1/completions",)),
    (WRITES, ResponsesRoute, ("/v1/responses",)),
    (EMBEDS, EmbeddingsRoute, ("/v1/embeddings",)),
    (SCORES, RerankRoute, ("/v1/rerank", "/v2/rerank", "/rerank")),
    (SCORES, ScoreRoute, ("/v1/score", "/score")),
)


def routes(handler: Handler) -> dict[str, Resource]:
    """The endpoints that this app's models have use for, by path."""
    models = handler.app.models
    if not models:
        return {}
    catalogue = Catalogue(models)
    found: dict[str, Resource] = {MODELS: Models(handler, MODELS, catalogue)}
    for path, route in (("/tokenize", TokenizeRoute), ("/detokenize", DetokenizeRoute)):
        found[path] = route(handler, path, catalogue)
    for kinds, kind, paths in _ROUTES:
        if any(isinstance(model, kinds) for model in models):
            found |= {path: kind(handler, path, catalogue) for path in paths}
    return found
