"""Answers that fit a schema, from a model that has no idea of JSON: every random one does, or is cut off by max_tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tiny_models
from test_writing import GREEDY, expected, run, writing

from penstock.engines.writer import chat
from penstock.errors import InvalidRequest

pytest.importorskip("llguidance")
jsonschema_rs = pytest.importorskip("jsonschema_rs")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "items": {"enum": ["tea", "日本"]}, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
SCHEMAS = [PERSON, {"enum": ["yes", "no"]}, {"type": "boolean"}, {"type": "array", "items": {"type": "null"}, "maxItems": 4}]


@pytest.mark.parametrize(
    "how", [GREEDY, {"temperature": 1.5}, {"temperature": 1.0, "top_p": 0.7, "logprobs": 2}, {"ignore_eos": True}]
)
def test_answers_fit_and_others_beside_are_free(how: dict[str, Any]) -> None:
    model, tokenizer = writing(tiny_models.qwen3()), chat(tiny_models.qwen3()).tokenizer
    for seed in range(4):
        requests: dict[int, tuple[Any, ...]] = {
            slot: ([5 + slot, 6], {"max_tokens": 200, "seed": seed, "schema": schema, **how})
            for slot, schema in enumerate(SCHEMAS)
        }
        requests[9] = ([7, 8, 9], {"max_tokens": 20, **GREEDY})
        out = run(model, requests)
        assert out.pop(9) == expected("qwen3", (7, 8, 9), 20)
        for slot, items in out.items():
            ids = [item if isinstance(item, int) else item.id for item in items]
            text = tokenizer.decode(ids)
            assert ids[-1] == 2, text
            jsonschema_rs.validate(SCHEMAS[slot], json.loads(text))


def test_any_object_where_there_is_no_schema() -> None:
    model, tokenizer = writing(tiny_models.qwen3()), chat(tiny_models.qwen3()).tokenizer
    [ids] = run(
        model, {0: ([5], {"max_tokens": 400, "seed": 1, "schema": {}, "logit_bias": {tokenizer.encode("}")[0]: 30.0}})}
    ).values()
    assert ids[-1] == 2
    assert isinstance(json.loads(tokenizer.decode(ids)), dict)


@pytest.mark.parametrize(
    "schema", [7, [], "x", {"type": "nothing"}, {"$ref": "http://else.where/x"}, {"type": "string", "pattern": "("}]
)
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    model = writing(tiny_models.qwen3())
    with pytest.raises(InvalidRequest, match="schema"):
        model.add(0, [5], {"max_tokens": 4, "schema": schema})
    assert not model.seats


def test_a_model_that_has_no_end_cannot_be_held() -> None:
    assert "json" in chat(tiny_models.qwen3()).features
    with pytest.raises(InvalidRequest, match="held"):
        writing(tiny_models.qwen3(), stops=frozenset()).add(0, [5], {"max_tokens": 4, "schema": {}})
