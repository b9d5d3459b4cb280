"""A tiny causal LM, made here because nothing may have to be downloaded: Qwen3's architecture, a BPE tokenizer, ChatML.

    python -m demo.tiny_lm FOLDER [--train SECONDS]

With random weights (seeded, a second or two) it loads, batches, streams and ranks as a real model does, which is what
tests and benchmarks ask of it. Trained on the project's own documents for less than a minute, it babbles in their words:
it has learned how they sound, and understands nothing.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAD, BEGIN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Progress = Callable[[float, int, float], None]
"""(share of the time that is over, steps, loss)"""


def documents() -> list[str]:
    """The project's own documents and docstrings, as paragraphs."""
    files = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted(ROOT.glob("docs/**/*.md"))]
    texts = [re.sub(r"```.*?```", "", file.read_text("utf-8"), flags=re.S) for file in files]
    for file in sorted(ROOT.glob("src/penstock/**/*.py")):
        texts += re.findall(r'"""(.*?)"""', file.read_text("utf-8"), re.S)
    paragraphs = (" ".join(part.split()) for text in texts for part in re.split(r"\n\s*\n", text))
    return [part for part in paragraphs if len(part) >= 40 and not part.startswith(("|", "#", "!"))]


def make_tokenizer(folder: Path, vocabulary: int, texts: Iterable[str]) -> Any:
    """Train a byte-level BPE tokenizer in which "yes" and "no" are single tokens, and save it as transformers does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, "yes\nno\nuser\nassistant\nsystem\n" * 1000], trainer)
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, chat_template=TEMPLATE)
    saved.save_pretrained(folder)
    return saved


def make(
    folder: Path | str,
    *,
    hidden: int = 256,
    layers: int = 4,
    vocabulary: int = 4096,
    context: int = 4096,
    texts: Iterable[str] | None = None,
    seed: int = 0,
) -> Path:
    """A folder with a model of random weights: 4.2 million, as it is."""
    folder = Path(folder)
    tokenizer = make_tokenizer(folder, vocabulary, documents() if texts is None else texts)
    _model(tokenizer, hidden, layers, context, seed).save_pretrained(folder)
    return folder


def _model(tokenizer: Any, hidden: int, layers: int, context: int, seed: int) -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        max_position_embeddings=context,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def train(folder: Path | str, seconds: float = 45.0, *, seed: int = 0, progress: Progress | None = None) -> Path:
    """A folder with a model that was trained for so long, on one thread, to answer with the project's own paragraphs."""
    import torch

    folder, threads = Path(folder), torch.get_num_threads()
    texts = documents()
    tokenizer = make_tokenizer(folder, 2048, texts)
    model = _model(tokenizer, hidden=192, layers=3, context=1024, seed=seed)
    torch.set_num_threads(1)
    try:
        _fit(model, list(_examples(tokenizer, texts, seed)), seconds, progress or (lambda *_: None))
    finally:
        torch.set_num_threads(threads)
    model.eval().save_pretrained(folder)
    return folder


def _examples(tokenizer: Any, texts: list[str], seed: int) -> Iterator[list[int]]:
    """Conversations: a few words that occur in a paragraph, and the paragraph."""
    chance = random.Random(seed)
    for text in texts:
        words = re.findall(r"[A-Za-z]{4,}", text) or ["this"]
        for ask in ("What about {}?", "Tell me about {}.", "{}"):
            at = chance.randrange(len(words))
            question = ask.format(" ".join(words[at : at + chance.randint(1, 3)]))
            talk = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
            yield tokenizer.encode(tokenizer.apply_chat_template(talk, tokenize=False), add_special_tokens=False)


def _fit(model: Any, examples: list[list[int]], seconds: float, progress: Progress) -> None:
    """Next-token training until the time is over: AdamW, a warm-up, then a cosine down to nothing."""
    import torch

    chance = random.Random(0)
    width = 128
    stream = [token for example in chance.sample(examples, len(examples)) for token in example]
    rows = torch.tensor(stream[: len(stream) // width * width]).view(-1, width)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.1)
    model.train()
    began, step, share, loss = time.perf_counter(), 0, 0.0, 0.0
    while share < 1.0:
        rate = 4e-3 * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = rows[torch.tensor(chance.choices(range(len(rows)), k=8))]
        found = model(input_ids=batch, labels=batch).loss
        optimiser.zero_grad(set_to_none=True)
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        now = float(found.detach())
        loss = now if step == 1 else 0.95 * loss + 0.05 * now
        share = (time.perf_counter() - began) / seconds
        progress(min(share, 1.0), step, loss)


def main() -> None:
    parser = argparse.ArgumentParser(description="make a tiny causal LM")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=float, metavar="SECONDS", help="train it for so long; else its weights are random")
    given = parser.parse_args()
    if given.train:
        train(given.folder, given.train, progress=show)
        print()
    else:
        make(given.folder)
    size = sum(file.stat().st_size for file in given.folder.iterdir())
    print(f"{given.folder}: {size / 1e6:.1f} MB")


def show(share: float, steps: int, loss: float) -> None:
    """One line of a terminal that is written again and again."""
    filled = round(30 * share)
    print(f"\r  [{'#' * filled}{'.' * (30 - filled)}] step {steps}, loss {loss:.2f} ", end="", flush=True)


if __name__ == "__main__":
    main()
