"""Tiny models of random weights, made on first use and kept for the run."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # beside other work, two threads that wait for each other are slower than one
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import demo.tiny_lm  # noqa: E402

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
_kept = tempfile.TemporaryDirectory(prefix="penstock-models-")
ROOT = Path(_kept.name)
TEXTS = [*(Path(__file__).parents[2] / "ARCHITECTURE.md").read_text().split("\n"), "日本語 äöü 😀 " * 20]


@functools.cache
def qwen3() -> Path:
    """72 thousand parameters; the tokenizer is byte-level."""
    folder = demo.tiny_lm.make(ROOT / "qwen3", hidden=32, layers=2, vocabulary=512, context=512, texts=TEXTS)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 8 if weight.ndim > 1 else 1  # larger ones than a new model has, so that what it attends to decides
    model.save_pretrained(folder)
    return folder


def save(name: str, config: Any, tokenizer_of: Path | None = None) -> Path:
    """A folder with a model of this configuration, and the tokenizer of another."""
    folder = ROOT / name
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).write_bytes(((tokenizer_of or qwen3()) / file).read_bytes())
    return folder


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


@functools.cache
def other(kind: str, **settings: Any) -> Path:
    """A model of another architecture, as small, with the first one's tokenizer."""
    vocabulary = json.loads((qwen3() / "config.json").read_text())["vocab_size"]
    given: dict[str, Any] = {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None, "initializer_range": 0.2}
    if kind == "gpt2":
        given |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    else:
        given |= SMALL
    given |= {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    config = transformers.AutoConfig.for_model(kind, vocab_size=vocabulary, **given)
    return save("-".join([kind, *map(str, settings)]), config)


SHOWS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'image' %}IMAGE{% else %}"
    "{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 512, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None, "initializer_range": 0.2}  # fmt: skip


def _extended(template: str, *special: str) -> Any:
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(qwen3(), chat_template=template)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def idefics3() -> Path:
    """Text and images: an image becomes tiles of four tokens each, in rows, and one of the whole."""
    return _tiles("Idefics3")


def smolvlm() -> Path:
    """The same; its own processor would need torchvision, and the other's lays out images in the same way."""
    return _tiles("SmolVLM")


@functools.cache
def _tiles(kind: str) -> Path:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 3) for column in range(1, 3)]
    tokenizer = _extended(
        SHOWS.replace("IMAGE", "<image>"), "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles
    )
    sizes = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
    prepare = transformers.Idefics3ImageProcessor(**sizes, do_image_splitting=True)
    processor = transformers.Idefics3Processor(prepare, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template)
    config = getattr(transformers, f"{kind}Config")(
        vision_config={"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "image_size": 28, "patch_size": 7, "initializer_range": 0.3},
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **LLAMA},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    return _saved(kind, getattr(transformers, f"{kind}ForConditionalGeneration"), config, processor)


def qwen2_vl() -> Path:
    """Text and images: an image's tokens lie in a plane. Its processor needs torchvision, which may not be there."""
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
    return _plane("Qwen2VL", vision)


def qwen2_5_vl() -> Path:
    """The same, with windows in its vision part."""
    vision = {"depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24, "window_size": 28,
              "fullatt_block_indexes": [1]}  # fmt: skip
    return _plane("Qwen2_5_VL", vision)


def _plane(kind: str, vision: dict[str, Any]) -> Path:
    if (ROOT / kind).exists():
        return ROOT / kind
    tokenizer = _extended(
        SHOWS.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
        "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
    )  # fmt: skip
    number = tokenizer.convert_tokens_to_ids
    sizes = {"patch_size": 7, "spatial_merge_size": 2, "temporal_patch_size": 2, "initializer_range": 0.3}
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision | sizes,
        text_config={"vocab_size": len(tokenizer), **LLAMA,
                     "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}},
        image_token_id=number("<|image_pad|>"), video_token_id=number("<|video_pad|>"), tie_word_embeddings=False,
        vision_start_token_id=number("<|vision_start|>"), vision_end_token_id=number("<|vision_end|>"),
    )  # fmt: skip
    return _saved(kind, getattr(transformers, f"{kind}ForConditionalGeneration"), config, tokenizer)


def _saved(name: str, kind: Any, config: Any, processor: Any) -> Path:
    folder = ROOT / name
    torch.manual_seed(3)
    model = kind(config)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@functools.cache
def sentencepiece() -> Path:
    """A tokenizer as Llama 2 has it: BPE over ▁words, bytes where there is no letter, a space stripped at the beginning."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    folder = ROOT / "sentencepiece"
    folder.mkdir()
    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.train_from_iterator(
        [text for text in TEXTS if text.isascii()],
        trainers.BpeTrainer(vocab_size=700, special_tokens=special + bytes_, show_progress=False),
    )
    model = json.loads(trained.to_str())
    model["model"] |= {"byte_fallback": True, "fuse_unk": True}
    model["added_tokens"] = [token for token in model["added_tokens"] if token["content"] in special]
    tokenizer = Tokenizer.from_str(json.dumps(model))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    return folder


@functools.cache
def metaspace() -> Path:
    """A tokenizer whose tokens are not bytes, as T5 has it; and what a training run set is left in its file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = ROOT / "metaspace"
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "</s>"], show_progress=False)
    )
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
