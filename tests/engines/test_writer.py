"""A folder as a chat model: what is read of it, and its service in a child process and in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models

import penstock as ps
from penstock.engines.writer import chat
from penstock.errors import ConfigError, InvalidRequest
from penstock.models import Token

GREEDY = {"temperature": 0, "max_tokens": 12}


def copy(tmp_path: Path, **changes: Any) -> Path:
    """The tiny model with something else in its config.json; what is None is left out."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny_models.qwen3(), folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


async def read(call: Any) -> list[Any]:
    return [item async for item in call]


# What the folder says


def test_context_stops_and_name_are_the_models_own() -> None:
    model = chat(tiny_models.qwen3())
    assert (model.name, model.context, model.stops) == ("qwen3", 512, {2})
    assert {"logprobs", "seed", "penalties", "logit_bias"} <= model.features
    assert chat(tiny_models.qwen3(), name="org/m 1", context=100).context == 100
    named = chat(tiny_models.qwen3(), name="org/7b 1")
    assert (named.name, named.generate.name) == ("org/7b 1", "chat-7b-1")


def test_several_stops_and_recommended_sampling(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7], "temperature": 0.6, "top_k": 20, "max_length": 9}')
    model = chat(folder)
    assert model.stops == {2, 7}
    assert model.defaults == {"temperature": 0.6, "top_k": 20}
    assert chat(folder, defaults={"top_p": 0.5}).defaults == {"top_p": 0.5}


def test_a_device_is_a_child_processs() -> None:
    on = chat(tiny_models.qwen3(), device="cuda:1", on=ps.Process(threads=2)).generate.options.on
    assert on == ps.Process(threads=2, device="cuda:1")
    for place in (ps.Thread(), ps.Process(device="cuda:0")):
        with pytest.raises(ConfigError, match="device"):
            chat(tiny_models.qwen3(), device="cuda:1", on=place)


@pytest.mark.parametrize("context", [1, 513, 0, -3])
def test_a_context_that_the_model_does_not_have(context: int) -> None:
    with pytest.raises(ConfigError, match="context"):
        chat(tiny_models.qwen3(), context=context)


def test_positions_that_depend_on_the_company_end_where_they_begin_to(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    assert chat(copy(tmp_path, rope_parameters=rope)).context == 64


def test_a_model_that_does_not_say_its_context(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_position_embeddings"):
        chat(copy(tmp_path, max_position_embeddings=None))


def test_declaring_a_model_loads_no_torch() -> None:
    script = "import sys; from penstock.engines.writer import chat; chat(sys.argv[1]); print('torch' in sys.modules, 'transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script, str(tiny_models.qwen3())], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


# The service


@pytest.mark.parametrize("on", [ps.Thread(), ps.Process(threads=1)], ids=["thread", "process"])
def test_streams_fails_one_and_lets_go(on: Any) -> None:
    model = chat(tiny_models.qwen3(), slots=3, on=on, dtype="float64")
    prompt = model.tokenizer.chat([{"role": "user", "content": "What is a lease?"}])

    async def main() -> None:
        async with ps.Runtime(model.generate):
            alone = await read(model.generate(prompt, GREEDY))
            assert 0 < len(alone) <= 12
            refused = [[], [10**9], [5] * 600]
            calls = [
                model.generate(prompt, GREEDY),
                *(model.generate(bad, GREEDY) for bad in refused),
                model.generate(prompt, GREEDY),
            ]
            found = await asyncio.gather(*map(read, calls), return_exceptions=True)
            assert found[0] == found[-1] == alone
            assert [type(error) for error in found[1:-1]] == [InvalidRequest] * 3
            with_logs = await read(model.generate(prompt, {**GREEDY, "logprobs": 2}))
            assert [type(token) for token in with_logs] == [Token] * len(alone)
            assert [token.id for token in with_logs] == alone == [token.top[0][0] for token in with_logs]
            for _ in range(5):  # more than there are slots: a caller who leaves gives its slot back
                async with contextlib.aclosing(aiter(model.generate(prompt, {"max_tokens": 400, "ignore_eos": True}))) as left:
                    await anext(left)
            assert await read(model.generate(prompt, GREEDY)) == alone

    asyncio.run(main())


def test_a_model_that_cannot_run_in_slots_says_so_when_it_is_loaded() -> None:
    model = chat(tiny_models.other("gemma2", head_dim=8, num_key_value_heads=2), on=ps.Thread())

    async def main() -> None:
        async with ps.Runtime(model.generate):
            pass

    with pytest.raises(ConfigError, match="slots"):
        asyncio.run(main())
