"""Cross-encoders: a query and a document read together, and a classifier of one label (Nogueira and Cho, 2019).

Pairs are cut as transformers cuts them, the longer part first. BERT-like ones run packed on onnxruntime, and there the
head is two small products in numpy; all others run on torch, padded, with their own head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from penstock.engines.embedding_config import positions
from penstock.engines.pooling import Vectors, read_safetensors
from penstock.engines.runs import padded_runs, plan
from penstock.engines.source import Source
from penstock.engines.texts import load_tokenizer, readable
from penstock.engines.torch_model import cores, load, padded
from penstock.errors import ConfigError
from penstock.models import Score

_UNSAID = 512


def pair_limit(source: Source, max_tokens: int | None) -> int:
    """How many tokens a pair may have, by the tokenizer's own limit and the model's places."""
    own = source.json("tokenizer_config.json", {}).get("model_max_length")
    limits = [positions(source.config), own if isinstance(own, int | float) and own < 10**9 else None]
    known = min([int(limit) for limit in limits if limit], default=_UNSAID)
    return known if max_tokens is None else min(known, max_tokens)


def squeezes(source: Source) -> bool:
    """Whether the model wants the sigmoid behind its logit, as sentence-transformers does unless its files say otherwise."""
    config = source.config
    said = config.get("sentence_transformers") or {}
    name = said.get("activation_fn") or config.get("sbert_ce_default_activation_function") or "Sigmoid"
    kind = str(name).rpartition(".")[2]
    if kind not in ("Sigmoid", "Identity"):
        raise ConfigError(
            f"{source.name!r} wants the activation {name}; Sigmoid and Identity are what a reranker can have here"
        )
    return kind == "Sigmoid"


def has_kinds(source: Source) -> bool:
    """Whether the model is told which of the two texts a token is of, as its tokenizer has it in transformers."""
    said = source.json("tokenizer_config.json", {})
    names = said.get("model_input_names")
    if names is None:  # those of the tokenizer's class
        names = [] if said.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend") else ["token_type_ids"]
    return (source.config.get("type_vocab_size") or 0) > 1 and "token_type_ids" in names


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def logit(p: float) -> float:
    """What gave this under a sigmoid; within what a float keeps of it."""
    return math.log(max(p, 1e-300)) - math.log(max(1.0 - p, 2**-53))


class CrossEncoder:
    """One replica. Called with queries and documents, a pair of each."""

    def __init__(self, source: Source, limit: int, engine: str, replicas: int, dtype: str | None, pickles: bool) -> None:
        self.squeezed = squeezes(source)
        self.limit = limit
        self.tokenizer = load_tokenizer(source.folder, transformers=engine == "torch")
        self.cutting = load_tokenizer(source.folder, transformers=engine == "torch")
        self.cutting.enable_truncation(limit, strategy="longest_first")
        threads = cores(replicas)
        head: Callable[..., Any] = _onnx if engine == "onnx" else _torch
        self.logits: Callable[[list[Any], list[Any]], Vectors] = head(source, threads, dtype, pickles)

    def __call__(self, query: list[str], document: list[str]) -> list[Score]:
        pairs = list(zip(map(readable, query), map(readable, document), strict=True))
        read = self.tokenizer.encode_batch_fast(pairs)
        cuts = [max(0, len(encoding) - self.limit) for encoding in read]
        shorter = iter(self.cutting.encode_batch_fast([pair for pair, cut in zip(pairs, cuts, strict=True) if cut]))
        read = [next(shorter) if cut else encoding for encoding, cut in zip(read, cuts, strict=True)]
        logits = self.logits([encoding.ids for encoding in read], [encoding.type_ids for encoding in read])
        values = [sigmoid(float(x)) if self.squeezed else float(x) for x in logits]
        return [Score(value, len(e), cut) for value, e, cut in zip(values, read, cuts, strict=True)]


def _torch(source: Source, threads: int, dtype: str | None, pickles: bool) -> Callable[..., Vectors]:
    model = load("AutoModelForSequenceClassification", source.folder, threads=threads, dtype=dtype, pickles=pickles)
    kinds_matter = has_kinds(source)

    def logits(ids: list[Sequence[int]], kinds: list[Sequence[int]]) -> Vectors:
        import torch

        found = np.empty(len(ids), np.float32)
        with torch.inference_mode():
            for run in padded_runs([len(tokens) for tokens in ids], model.device):
                tokens, mask = padded([ids[n] for n in run], model.device)
                more = {"token_type_ids": padded([kinds[n] for n in run], model.device)[0]} if kinds_matter else {}
                found[run] = model(input_ids=tokens, attention_mask=mask, **more).logits[:, 0].float().cpu().numpy()
        return found

    return logits


def _onnx(source: Source, threads: int, dtype: str | None, pickles: bool) -> Callable[..., Vectors]:
    from penstock.engines.encoder_onnx import OnnxEncoder

    encoder = OnnxEncoder(source.weights, source.config, threads)
    layers = _head({name: value for path in source.weights for name, value in read_safetensors(path).items()})
    kinds_matter = has_kinds(source)

    def logits(ids: list[Sequence[int]], kinds: list[Sequence[int]]) -> Vectors:
        found = np.empty(len(ids), np.float32)
        for run in plan([len(tokens) for tokens in ids], encoder.run_tokens):
            rows, lengths = encoder.states([ids[n] for n in run], [kinds[n] for n in run] if kinds_matter else None)
            (weight, bias), (last, offset) = layers
            found[run] = (np.tanh(rows[np.cumsum(lengths) - lengths] @ weight.T + bias) @ last.T + offset)[:, 0]
        return found

    return logits


def _head(weights: Mapping[str, Vectors]) -> list[tuple[Vectors, Vectors]]:
    """The two layers over the first token: BERT's pooler and classifier, or RoBERTa's classifier."""
    for names in (("bert.pooler.dense", "classifier"), ("classifier.dense", "classifier.out_proj")):
        if all(f"{name}.weight" in weights for name in names):
            return [(weights[f"{name}.weight"], weights[f"{name}.bias"]) for name in names]
    raise ConfigError("this classifier has a head that is made otherwise than BERT's or RoBERTa's: engine=\"torch\"")
