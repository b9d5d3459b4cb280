"""The ONNX graph of a BERT-like encoder on packed tokens, in readable code in place of a binary.

Inputs: `ids`, `positions`, `kinds` (token types) [tokens]; `spread` [texts, longest] and `collect` [tokens] go to the
padded layout and back; `lengths` [texts] masks the padding. Out: the last hidden states, [tokens, width].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.errors import ConfigError

Weights = Mapping[str, npt.NDArray[np.float32]]
_LARGEST = 1 << 31  # bytes of one protocol buffer


def packed_graph(weights: Weights, config: Mapping[str, Any]) -> bytes:
    """The graph, with its weights inside."""
    from onnx import TensorProto, helper

    weights = _bare(weights)
    width = int(config["hidden_size"])
    g = _Nodes(weights, float(config.get("layer_norm_eps", 1e-12)))
    g.constant("flat", np.array([-1, width], np.int64))
    x = g.op("Gather", [g.constant("words", weights["embeddings.word_embeddings.weight"]), "ids"])
    for name, input_ in (("position", "positions"), ("token_type", "kinds")):
        table = g.constant(name, weights[f"embeddings.{name}_embeddings.weight"])
        x = g.op("Add", [x, g.op("Gather", [table, input_])])
    x = g.norm(x, "embeddings.LayerNorm")
    for layer in range(int(config["num_hidden_layers"])):
        x = _layer(g, x, f"encoder.layer.{layer}.", int(config["num_attention_heads"]))
    g.op("Identity", [x], "states")
    int64 = TensorProto.INT64
    inputs: list[tuple[str, int, list[str]]] = [
        *((name, int64, ["tokens"]) for name in ("ids", "positions", "kinds", "collect")),
        ("spread", int64, ["texts", "longest"]),
        ("lengths", TensorProto.INT32, ["texts"]),
    ]
    graph = helper.make_graph(
        g.nodes,
        "packed",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info("states", TensorProto.FLOAT, ["tokens", width])],
        g.constants,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    if model.ByteSize() >= _LARGEST:
        raise ConfigError('this model is too large for one ONNX graph (2 GiB): engine="torch"')
    made: bytes = model.SerializeToString()
    return made


def _bare(weights: Weights) -> Weights:
    """Without the name of the model that the encoder is in ("bert.", "roberta."); what is beside it is not needed."""
    marker = "embeddings.word_embeddings.weight"
    prefix = next((name[: -len(marker)] for name in weights if name.endswith(marker)), None)
    if prefix is None:
        raise ConfigError("these weights have no embeddings.word_embeddings: no BERT-like encoder")
    return {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}


class _Nodes:
    """The nodes and constants of a graph in the making; `op` names what a node gives."""

    def __init__(self, weights: Weights, epsilon: float) -> None:
        self.weights = weights
        self.epsilon = epsilon
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

    def linear(self, x: str, name: str, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> str:
        """x W^T + b with torch's layout of W, [out, in]; the session packs a constant W once."""
        return self.op("Gemm", [x, self.constant(name + ".w", weight.T), self.constant(name + ".b", bias)])

    def norm(self, x: str, name: str) -> str:
        scale = self.constant(name + ".scale", self.weights[name + ".weight"])
        shift = self.constant(name + ".shift", self.weights[name + ".bias"])
        return self.op("LayerNormalization", [x, scale, shift], epsilon=self.epsilon, axis=-1)


def _layer(g: _Nodes, x: str, name: str, heads: int) -> str:
    def named(part: str) -> tuple[str, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        return name + part, g.weights[f"{name}{part}.weight"], g.weights[f"{name}{part}.bias"]

    parts = [named(f"attention.self.{part}") for part in ("query", "key", "value")]
    weight, bias = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    qkv = [name + part for part in ("q", "k", "v")]
    joined = g.linear(x, name + "qkv", weight, bias)
    g.op("Split", [g.op("Gather", [joined, "spread"])], *qkv, axis=-1, num_outputs=3)
    attended = g.op("MultiHeadAttention", [*qkv, "", "lengths"], num_heads=heads)
    packed = g.op("Gather", [g.op("Reshape", [attended, "flat"]), "collect"])
    x = g.norm(g.op("Add", [g.linear(packed, *named("attention.output.dense")), x]), name + "attention.output.LayerNorm")
    up, weight, bias = named("intermediate.dense")
    hidden = g.op("MatMul", [x, g.constant(up + ".w", weight.T)])
    hidden = g.op("BiasGelu", [hidden, g.constant(up + ".b", bias)])  # the exact, erf gelu
    return g.norm(g.op("Add", [g.linear(hidden, *named("output.dense")), x]), name + "output.LayerNorm")
