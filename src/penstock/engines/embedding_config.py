"""What an embedding model's own files say of how its vectors are made.

A model of sentence-transformers lists its modules: an encoder, a pooling, then layers and norms (Reimers and Gurevych,
2019). A plain encoder has none of these files; its texts get the mean of their tokens, or with a causal one the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.engines.source import Source
from penstock.errors import ConfigError

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_NAMED = {  # as they were named before sentence-transformers 6, in the order in which several are joined
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_SHIFTED = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet")  # their first position is after the padding's
_UNSAID = 512


@dataclass(frozen=True)
class Dense:
    """A linear layer after the pooling: its folder, and the name of its activation function."""

    folder: Path
    activation: str


@dataclass(frozen=True)
class EmbeddingConfig:
    """How texts become vectors.

    `encoder` is the folder of the transformer, `model` its config.json. `after` are the layers behind the pooling, in order;
    None among them is the L2 norm. `pool_prompt`: a prompt's tokens are pooled too.
    """

    encoder: Path
    model: Mapping[str, Any]
    pooling: tuple[str, ...]
    after: tuple[Dense | None, ...]
    dimensions: int
    max_tokens: int
    lower: bool
    prompts: Mapping[str, str]
    default_prompt: str
    pool_prompt: bool
    shorten: bool


def read_config(source: Source, max_tokens: int | None = None) -> EmbeddingConfig:
    """What the files say; `max_tokens` can only lower what they do. Raises ConfigError for modules that we do not have."""
    modules = source.json("modules.json") or [{"path": "", "type": "Transformer"}]
    if _kind(modules[0]) != "Transformer":
        raise ConfigError(f"embedding model {source.name!r} begins with {modules[0].get('type')}, which has no engine here")
    encoder = source.folder / modules[0]["path"]
    config = _json(source, encoder, "config.json")
    width = _width(source, config)
    pooling, pool_prompt = _unlisted(config), True
    after: list[Dense | None] = []
    for module in modules[1:]:
        folder, kind = source.folder / module["path"], _kind(module)
        said = _json(source, folder, "config.json")
        if kind == "Pooling":
            pooling, pool_prompt = _pooling(source, said), bool(said.get("include_prompt", True))
        elif kind == "Dense" and not said.get("use_residual"):
            after.append(Dense(folder, str(said.get("activation_function", "Tanh")).rpartition(".")[2]))
            width = int(said["out_features"])
        elif kind == "Normalize":
            after.append(None)
        else:
            raise ConfigError(f"embedding model {source.name!r} has a module {module.get('type')}, which has no engine here")
    denses = any(layer is not None for layer in after)
    bert = next((_json(source, encoder, path.name) for path in sorted(encoder.glob("sentence_*_config.json"))), {})
    more = source.json("config_sentence_transformers.json", {})
    return EmbeddingConfig(
        encoder=encoder,
        model=config,
        pooling=pooling,
        after=tuple(after),
        dimensions=width if denses else width * len(pooling),
        max_tokens=_max_tokens(source, config, bert, encoder, max_tokens),
        lower=bool(bert.get("do_lower_case")),
        prompts={name: text for name, text in (more.get("prompts") or {}).items() if text},
        default_prompt=more.get("default_prompt_name") or "",
        pool_prompt=pool_prompt,
        shorten="matryoshka_dimensions" in config or "matryoshka_dimensions" in more,
    )


def positions(config: Mapping[str, Any]) -> int | None:
    """How many tokens a model has places for; None where its config does not say."""
    most = config.get("max_position_embeddings")
    if not isinstance(most, int) or most <= 0:
        return None
    shifted = config.get("model_type") in _SHIFTED
    return most - config.get("pad_token_id", 1) - 1 if shifted else most


def _json(source: Source, folder: Path, name: str) -> dict[str, Any]:
    found = source.json(str((folder / name).relative_to(source.folder)), {})
    return found if isinstance(found, dict) else {}


def _kind(module: Mapping[str, Any]) -> str:
    return str(module.get("type")).rpartition(".")[2]


def _width(source: Source, config: Mapping[str, Any]) -> int:
    inner = config.get("text_config")
    for said in (config, inner if isinstance(inner, dict) else {}):
        for name in ("hidden_size", "d_model", "dim", "n_embd"):
            if isinstance(said.get(name), int):
                return int(said[name])
    raise ConfigError(f"embedding model {source.name!r}: config.json does not say how wide it is (hidden_size)")


def _unlisted(config: Mapping[str, Any]) -> tuple[str, ...]:
    architectures = config.get("architectures") or [""]
    return ("lasttoken",) if str(architectures[0]).endswith("ForCausalLM") else ("mean",)


def _pooling(source: Source, said: Mapping[str, Any]) -> tuple[str, ...]:
    modes = said.get("pooling_mode")
    if modes is None:
        modes = [mode for name, mode in _NAMED.items() if said.get(name)] or ["mean"]
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    for mode in modes:
        if mode not in POOLINGS:
            raise ConfigError(f"embedding model {source.name!r} pools by {mode!r}; there are {', '.join(POOLINGS)}")
    return modes


def _max_tokens(source: Source, config: Mapping[str, Any], bert: Mapping[str, Any], encoder: Path, most: int | None) -> int:
    """The model's own limit, else its tokenizer's; never more than it has places for."""
    own = bert.get("max_seq_length") or _json(source, encoder, "tokenizer_config.json").get("model_max_length")
    own = own if isinstance(own, int | float) and own < 10**9 else None  # tokenizers write 1e30 for "not said"
    limits = [int(limit) for limit in (own, positions(config)) if limit]
    limit = min(limits, default=_UNSAID)
    return limit if most is None else min(limit, most)
