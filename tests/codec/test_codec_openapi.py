import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, make_dataclass
from typing import Any

import msgspec
import pytest

from penstock.codec import Schema, openapi_types


@dataclass
class Item:
    name: str
    parent: "Item | None" = None


class Opaque:
    pass


def references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from ([schema["$ref"]] if "$ref" in schema else [])
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from references(part)


def described(*kinds: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """openapi_types, after a check that it is JSON and that each reference leads somewhere."""
    schemas, components = openapi_types(kinds)
    assert len(schemas) == len(kinds)
    json.dumps([schemas, components], allow_nan=False)
    for reference in references([schemas, components]):
        assert reference.removeprefix("#/components/schemas/") in components
    return schemas, components


def schema(function: Callable[..., Any], name: str) -> Schema:
    return Schema(inspect.signature(function), name)


def test_requests_and_results() -> None:
    def embed_text(item: Item, k: int = 3, xs: list[int] = [1], odd: Any = object()) -> None: ...  # noqa: B006, B008

    reader = schema(embed_text, "embed_text")
    schemas, components = described(reader.type, list[Item], int)
    assert schemas == [
        {"$ref": "#/components/schemas/EmbedTextRequest"},
        {"type": "array", "items": {"$ref": "#/components/schemas/Item"}},
        {"type": "integer"},
    ]
    request = components["EmbedTextRequest"]
    assert request["required"] == ["item"]
    assert request["additionalProperties"] is False
    assert request["properties"]["k"] == {"type": "integer", "default": 3}


def test_a_schema_alone_is_self_contained() -> None:
    def work(item: Item) -> None: ...

    found = schema(work, "work").json_schema()
    assert found["type"] == "object"
    assert found["properties"] == {"item": {"$ref": "#/$defs/Item"}}
    assert list(found["$defs"]) == ["Item"]
    assert "$defs" not in schema(lambda x: x, "work").json_schema()


def test_types_of_one_name_are_kept_apart() -> None:
    other = make_dataclass("Item", [("price", float)])
    other.__module__ = "a shop"
    (one, two), components = described(Item, other)
    assert one != two
    assert len(components) == 2
    requests, _ = described(schema(lambda a: a, "a_b").type, schema(lambda b: b, "aB").type)
    assert requests[0] != requests[1]


@pytest.mark.parametrize("kind", [Opaque, Opaque | int, "unresolved", 5, Iterator[int], Callable, object, list["Missing"]])  # type: ignore[name-defined]  # noqa: F821
def test_odd_types_allow_anything_and_harm_no_other(kind: Any) -> None:
    (odd, item), components = described(kind, Item)
    assert set(odd) <= {"description"}
    assert item == {"$ref": "#/components/schemas/Item"}
    assert list(components) == ["Item"]


def test_arrays() -> None:
    np = pytest.importorskip("numpy")
    (array, whole, real, truth, optional), _ = described(np.ndarray, np.int8, np.float32, np.bool_, np.ndarray | None)
    assert array["type"] == "array"
    assert (whole["type"], real["type"], truth["type"]) == ("integer", "number", "boolean")
    assert {"type": "null"} in optional["anyOf"]


def test_base64_is_more_than_a_remark() -> None:
    pattern = re.compile(described(bytes)[0][0]["pattern"])
    for text, good in (("", True), ("YQ==", True), ("YWI=", True), ("abcd", True), ("abc", False), ("a-_=", False)):
        assert bool(pattern.fullmatch(text)) is good
        if good:
            assert msgspec.json.decode(json.dumps(text), type=bytes) is not None
        else:
            with pytest.raises(msgspec.ValidationError):
                msgspec.json.decode(json.dumps(text), type=bytes)


def test_pydantic_models_become_components() -> None:
    pydantic = pytest.importorskip("pydantic")
    tree = pydantic.create_model("Item", kids=(list["Item"], []))  # refers to itself and shares a name with our Item
    tree.model_rebuild(_types_namespace={"Item": tree})
    leaf = pydantic.create_model("Leaf", n=(int, ...))
    basket = pydantic.create_model("Basket", leaf=(leaf, ...))
    (ours, theirs, many), components = described(Item, tree, dict[str, basket])
    assert ours == {"$ref": "#/components/schemas/Item"}
    assert theirs == {"$ref": "#/components/schemas/Item_2"}
    assert components["Item_2"]["properties"]["kids"]["items"] == theirs
    assert many["additionalProperties"] == {"$ref": "#/components/schemas/Basket"}
    assert components["Leaf"]["properties"]["n"]["type"] == "integer"
