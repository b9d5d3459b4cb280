"""Tiny models with random weights, made here: what they say means nothing, but they load and compute as real ones do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:?!<>/\"'-"
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
MODULE = "sentence_transformers.models."


def wordpiece(kind: str = "bert") -> PreTrainedTokenizerFast:
    """A tokenizer of letters, with what an encoder wants around a text and between two."""
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] if kind == "bert" else ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
    vocabulary = {token: n for n, token in enumerate([*first, *LETTERS, *(f"##{letter}" for letter in LETTERS)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    named = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=48, model_input_names=inputs, **named)


def byte_level() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, of "yes" and "no", and of a conversation's marks."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ye", "yes", "no"]
    merges = [("y", "e"), ("ye", "s"), ("n", "o")]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(alphabet)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", model_max_length=512, **named)


def save(folder: Path, model: Any, tokenizer: Any) -> Path:
    """Larger weights than a new model has, so that outputs differ as much as real ones."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1).add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def encoder(folder: Path, kind: str = "bert", head: bool = False) -> Path:
    torch.manual_seed(0)
    tokenizer = wordpiece(kind)
    pad = tokenizer.pad_token_id
    if kind == "bert":
        config: Any = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, num_labels=1, pad_token_id=pad, **SHAPE)
        return save(folder, (BertForSequenceClassification if head else BertModel)(config), tokenizer)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, type_vocab_size=1, pad_token_id=pad, **SHAPE
    )
    return save(folder, XLMRobertaModel(config, add_pooling_layer=False), tokenizer)


def causal(folder: Path, head: bool = False) -> Path:
    torch.manual_seed(0)
    tokenizer = byte_level()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        **SHAPE,
    )
    return save(folder, (Qwen3ForCausalLM if head else Qwen3Model)(config), tokenizer)


def modules(folder: Path, *listed: tuple[str, dict[str, Any]], prompts: dict[str, str] | None = None) -> Path:
    """The files of sentence-transformers beside a model: its further modules, each with its config, and its prompts."""
    found = [{"idx": 0, "name": "0", "path": "", "type": MODULE + "Transformer"}]
    for n, (kind, config) in enumerate(listed, 1):
        path = f"{n}_{kind}"
        found.append({"idx": n, "name": str(n), "path": path, "type": MODULE + kind})
        (folder / path).mkdir(exist_ok=True)
        if config:
            (folder / path / "config.json").write_text(json.dumps(config))
    (folder / "modules.json").write_text(json.dumps(found))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts or {}}))
    return folder
