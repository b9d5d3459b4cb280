"""`penstock serve --chat MODEL --vllm MODEL --embed MODEL --rerank MODEL`: models without a line of code."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from typing import Any

from penstock import App, engines
from penstock.cli import CommandFailed
from penstock.errors import ConfigError
from penstock.models import EmbeddingModel, Model

_NAMED = re.compile(r"(?![./~])([^=:\\]+)=(.+)", re.S)
KINDS = {
    "chat": "a model that writes: /v1/chat/completions",
    "vllm": "the same, run by vLLM: a folder or a hub's name",
    "embed": "a model that gives vectors: /v1/embeddings",
    "rerank": "a model that scores pairs: /v1/rerank",
}
_EXTRAS = {
    "torch": "penstock[transformers]",
    "transformers": "penstock[transformers]",
    "safetensors": "penstock[transformers]",
    "tokenizers": "penstock[transformers]",
    "jinja2": "penstock[transformers]",
    "onnxruntime": "penstock[onnx]",
    "onnx": "penstock[onnx]",
    "numpy": "penstock[onnx]",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags. Each may be given several times."""
    group = parser.add_argument_group(
        "models",
        "a folder, a hub's name such as Qwen/Qwen3-0.6B, or the URL of a server that speaks OpenAI's protocol "
        "(http://localhost:11434/v1, or URL#MODEL; the API key that they want in $PENSTOCK_UPSTREAM_KEY); NAME=MODEL gives it "
        "another name",
    )
    for kind, what in KINDS.items():
        group.add_argument(f"--{kind}", metavar="MODEL", action="append", default=[], help=what)
    where = "an interpreter or virtual environment that has vLLM (default: this one)"
    group.add_argument("--vllm-python", metavar="PATH", help=where)
    for flag, what in (("ttft", "to the first token of a chat"), ("tpot", "a token of a chat after the first")):
        text = f"target in seconds {what}: what would miss it is not let in"
        group.add_argument(f"--{flag}", metavar="SECONDS", type=float, help=text)
    group.add_argument("--chat-page", action="store_true", help="a page at /chat that talks to the chat models")


def added(options: argparse.Namespace, app: App) -> None:
    """Put the models that the command line names into the app. Raises CommandFailed."""
    if (options.ttft, options.tpot) != (None, None) and not (options.chat or options.vllm):
        raise CommandFailed("--ttft and --tpot are targets of --chat and --vllm models, and none is given")
    if options.vllm_python and not options.vllm:
        raise CommandFailed("--vllm-python is where --vllm models run, and none is given")
    for kind, spec in named(options):
        name, where = split(spec)
        try:
            app.add_model(_model(app, kind, where, name, options))
        except ConfigError as error:
            raise CommandFailed(f"--{kind} {spec}: {error}") from error
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            extra = f"; pip install '{_EXTRAS[missing]}'" if missing in _EXTRAS else ""
            raise CommandFailed(f"--{kind} {spec} needs {missing}, which is not installed{extra}") from error


def split(spec: str) -> tuple[str | None, str]:
    """The name that a model is given here, if it is given one, and the model."""
    match = None if os.path.isdir(spec) else _NAMED.fullmatch(spec)
    return (match[1], match[2]) if match else (None, spec)


def named(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Kind and model, as the command line has them."""
    for kind in KINDS:
        for spec in getattr(options, kind):
            yield kind, spec


def _model(app: App, kind: str, where: str, name: str | None, options: argparse.Namespace) -> Model:
    more: dict[str, Any] = {"ttft": options.ttft, "tpot": options.tpot} if kind in ("chat", "vllm") else {}
    if kind == "vllm":
        from penstock.engines import vllm

        return vllm.chat(where, name=name, python=options.vllm_python, **more)
    make: Any = getattr(engines, kind)
    known: Any = where
    if kind == "rerank":  # an embedding model that is served too: by cosine
        known = next((m for m in app.models if isinstance(m, EmbeddingModel) and m.name == where), where)
    key = os.environ.get("PENSTOCK_UPSTREAM_KEY")
    if key and where.startswith(("http://", "https://")):
        more["token"] = key
    made: Model = make(known, name=name, **more)
    return made
