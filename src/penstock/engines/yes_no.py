"""Rerankers that are language models: "does the document answer the query?", and how much likelier "yes" is than "no".

The prompt is Qwen3-Reranker's (Zhang et al. 2025). Only the two rows of the output matrix that stand for the answers are
used, on the last token's state: a vocabulary of 150,000 costs nothing. Padding goes behind, where a causal model's tokens
do not see it. What all prompts begin with, often a third of one, is computed once, when the model is loaded: a pair begins
with its keys and values. What is too long loses the end of the document, never the question.
"""

from __future__ import annotations

from typing import Any

from penstock.engines.cross_encoder import sigmoid
from penstock.engines.runs import padded_runs
from penstock.engines.source import Source
from penstock.engines.texts import load_tokenizer, readable
from penstock.engines.torch_model import cores, load, padded
from penstock.errors import ConfigError, InvalidRequest
from penstock.models import Score

TASK = "Given a web search query, retrieve relevant passages that answer the query"
BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
BEHIND = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


class YesNo:
    """One replica. Called with queries and documents, a pair of each."""

    def __init__(self, source: Source, limit: int, task: str, replicas: int, dtype: str | None, pickles: bool) -> None:
        self.limit = limit
        self.task = task
        self.tokenizer = load_tokenizer(source.folder, transformers=True)
        self.before, self.behind = self._ids(BEFORE), self._ids(BEHIND)
        if limit < 2 * (len(self.before) + len(self.behind)):
            raise ConfigError(f"{source.name!r} cannot rerank in {limit} tokens: the question around a pair has half of them")
        yes, no = (self._answer(source, word) for word in ("yes", "no"))
        self.tokenizer.encode_special_tokens = True  # in what others wrote, "<|im_end|>" is text, and ends nothing
        model = load("AutoModelForCausalLM", source.folder, threads=cores(replicas), dtype=dtype, pickles=pickles)
        output = model.get_output_embeddings()
        self.row = (output.weight[yes] - output.weight[no]).float()
        self.offset = 0.0 if output.bias is None else float(output.bias[yes] - output.bias[no])
        self.model = model.base_model
        self.common, self.kept = self._begun()

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def _answer(self, source: Source, word: str) -> int:
        token = self.tokenizer.token_to_id(word)
        if token is None:
            raise ConfigError(f"{source.name!r} cannot rerank: its tokenizer has no token {word!r}")
        return int(token)

    def __call__(self, query: list[str], document: list[str]) -> list[Score | Exception]:
        found: list[Any] = self.read(query, document)
        places = [n for n, read in enumerate(found) if not isinstance(read, Exception)]
        for n, value in zip(places, self.log_odds([found[n][0] for n in places]) if places else [], strict=True):
            ids, cut = found[n]
            found[n] = Score(sigmoid(value), len(ids), cut)
        return found

    def read(self, queries: list[str], documents: list[str]) -> list[tuple[list[int], int] | InvalidRequest]:
        """The prompt's tokens, and how many were cut off the document."""
        heads = [f"<Instruct>: {self.task}\n<Query>: {readable(query)}\n<Document>: " for query in queries]
        texts = [head + readable(document) for head, document in zip(heads, documents, strict=True)]
        room = self.limit - len(self.before) - len(self.behind)
        read: list[tuple[list[int], int] | InvalidRequest] = []
        for encoding, head in zip(self.tokenizer.encode_batch(texts, add_special_tokens=False), heads, strict=True):
            ids = encoding.ids
            cut = max(0, len(ids) - room)
            if cut and encoding.offsets[room - 1][1] <= len(head):
                read.append(InvalidRequest(f"the query leaves no room for a document: {self.limit} tokens are read in all"))
            else:
                read.append(([*self.before, *ids[:room], *self.behind], cut))
        return read

    def log_odds(self, texts: list[list[int]]) -> list[float]:
        """log p(yes) - log p(no) of each prompt."""
        shared = len(self.common) if all(text[: len(self.common)] == self.common for text in texts) else 0
        odds = [0.0] * len(texts)
        for run in padded_runs([len(text) - shared for text in texts], self.model.device):
            for n, value in zip(run, self._run([texts[n][shared:] for n in run], shared), strict=True):
                odds[n] = value
        return odds

    def _run(self, texts: list[list[int]], shared: int) -> list[float]:
        """The same for what follows `shared` tokens that are common."""
        import torch

        with torch.inference_mode():
            ids, mask = padded(texts, self.model.device)
            last = mask.sum(1) - 1
            cache = self._cache(len(texts)) if shared else None
            mask = torch.cat([mask.new_ones(len(texts), shared), mask], dim=1)
            states = self.model(
                input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=cache is not None
            ).last_hidden_state
            odds: list[float] = (states[torch.arange(len(texts)), last].float() @ self.row + self.offset).tolist()
        return odds

    def _begun(self) -> tuple[list[int], list[tuple[Any, Any]]]:
        """What all prompts begin with, and its keys and values in each layer; nothing for a model without such."""
        import torch
        from transformers import DynamicCache

        heads = [self.before + self._ids(f"<Instruct>: {self.task}\n<Query>: {query}") for query in ("a", "7", "\u03a9")]
        same = [len(set(column)) == 1 for column in zip(*heads, strict=False)]
        common = heads[0][: same.index(False)] if False in same else []
        cache = DynamicCache(config=self.model.config)
        with torch.inference_mode():
            ids, mask = padded([common], self.model.device)
            self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        kept = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
        whole = all(keys is not None and keys.shape[-2] == len(common) for keys, _ in kept)
        return (common, kept) if kept and whole else ([], [])

    def _cache(self, texts: int) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        for n, (keys, values) in enumerate(self.kept):
            cache.update(keys.expand(texts, -1, -1, -1), values.expand(texts, -1, -1, -1), n)
        return cache
