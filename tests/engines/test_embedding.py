"""Embeddings beside sentence-transformers, and each text alone beside the same text in any batch."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
for needed in ("transformers", "onnx", "onnxruntime", "tokenizers"):
    pytest.importorskip(needed)

import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import penstock as ps
from penstock.engines import embed
from penstock.engines.embedding import Embedder
from penstock.engines.embedding_config import POOLINGS, read_config
from penstock.engines.source import locate
from penstock.errors import ConfigError, InvalidRequest

TEXTS = ["a", "how tall is a tree?", "", "words " * 30, "Umbrellas, 42!", "b c", "x" * 20, "ünïcode"]
QUERY = {"query": "query: ", "passage": "passage of text: "}
WIDTH = {"word_embedding_dimension": 32}


def embedder(folder: Path, engine: str, **options: Any) -> Embedder:
    source = locate(folder)
    return Embedder(source, read_config(source, **options), engine, 1, None, False)


def vectors(made: Embedder, texts: list[Any], prompt: str = "") -> Any:
    return np.array([found.vector for found in made(texts, [prompt] * len(texts))])


def theirs(folder: Path, texts: list[str], **options: Any) -> Any:
    library = pytest.importorskip("sentence_transformers")
    return library.SentenceTransformer(str(folder), device="cpu").encode(texts, **options)


@pytest.fixture(scope="module", params=["bert", "xlm-roberta", "causal"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a prompt, a layer behind its pooling, and the norm."""
    path = tmp_path_factory.mktemp(request.param)
    made = tiny.causal(path) if request.param == "causal" else tiny.encoder(path, request.param)
    mode = {"pooling_mode_lasttoken": request.param == "causal", "pooling_mode_mean_tokens": request.param != "causal"}
    dense = {"in_features": 32, "out_features": 16, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"}
    tiny.modules(made, ("Pooling", WIDTH | mode), ("Dense", dense), ("Normalize", {}), prompts=QUERY)
    layer = torch.nn.Linear(32, 16)
    save_file(
        {f"linear.{name}": value.data for name, value in layer.named_parameters()}, made / "2_Dense" / "model.safetensors"
    )
    return made


def engines(folder: Path) -> list[str]:
    return ["torch"] if "causal" in folder.name else ["onnx", "torch"]


def test_vectors_equal_those_of_sentence_transformers(folder: Path) -> None:
    texts = [text for text in TEXTS if text or "causal" not in folder.name]
    for engine in engines(folder):
        made = embedder(folder, engine)
        assert np.abs(vectors(made, texts) - theirs(folder, texts)).max() < 1e-5
        assert np.abs(vectors(made, texts, "query") - theirs(folder, texts, prompt_name="query")).max() < 1e-5


@pytest.mark.parametrize("mode", [*POOLINGS, ["cls", "max", "weightedmean"]], ids=str)
@pytest.mark.parametrize("pool_prompt", [True, False])
def test_every_pooling(tmp_path: Path, mode: Any, pool_prompt: bool) -> None:
    made = tiny.encoder(tmp_path)
    tiny.modules(
        made, ("Pooling", {"embedding_dimension": 32, "pooling_mode": mode, "include_prompt": pool_prompt}), prompts=QUERY
    )
    expected = theirs(made, TEXTS, prompt_name="query")
    for engine in ("onnx", "torch"):
        assert np.abs(vectors(embedder(made, engine), TEXTS, "query") - expected).max() < 1e-5


def test_a_plain_model_has_the_mean_and_a_writing_one_its_last_token(tmp_path: Path) -> None:
    for made in (tiny.encoder(tmp_path / "a"), tiny.causal(tmp_path / "b", head=True)):
        assert np.abs(vectors(embedder(made, "torch"), TEXTS[3:]) - theirs(made, TEXTS[3:])).max() < 1e-5


@pytest.fixture(scope="module")
def pairs(folder: Path) -> list[Embedder]:
    return [embedder(folder, engine) for engine in engines(folder)]


word = st.text(tiny.LETTERS + " äß", min_size=1, max_size=60)
tokens = st.lists(st.integers(0, 60), min_size=1, max_size=60)


@settings(max_examples=25, deadline=None)
@given(batch=st.lists(st.one_of(word, tokens), min_size=1, max_size=12))
def test_a_vector_does_not_depend_on_its_batch(pairs: list[Embedder], batch: list[Any]) -> None:
    for made in pairs:
        together = made(batch)
        for text, found in zip(batch, together, strict=True):
            alone = made([text])[0]
            if isinstance(alone, InvalidRequest):  # white space alone has no tokens in some tokenizers
                assert isinstance(found, InvalidRequest)
                continue
            assert np.abs(alone.vector - found.vector).max() < 1e-5
            assert (alone.tokens, alone.cut) == (found.tokens, found.cut)
            assert found.vector.dtype == np.float32 and found.vector.base is None and not found.vector.flags.writeable


def test_what_is_too_long_is_cut_before_what_comes_behind_and_told(folder: Path) -> None:
    for engine in engines(folder):
        made = embedder(folder, engine, max_tokens=12)
        around = 0 if "causal" in folder.name else 2
        first, second = made(["a b c d e f " + "g " * 50, "a b c d e f " + "g " * 90])
        assert first.tokens == second.tokens == 12 and second.cut - first.cut == (40 if around else 80)
        assert np.abs(first.vector - second.vector).max() < 1e-6
        given_, short = made([[5] * 20, [5] * 12])
        assert (given_.tokens, given_.cut, short.cut) == (12, 8, 0)
        assert np.abs(given_.vector - short.vector).max() < 1e-6
        library = pytest.importorskip("sentence_transformers").SentenceTransformer(str(folder), device="cpu")
        library.max_seq_length = 12
        assert np.abs(first.vector - library.encode(["a b c d e f " + "g " * 50])[0]).max() < 1e-5


def test_one_bad_text_fails_alone(folder: Path) -> None:
    made = embedder(folder, engines(folder)[0])
    bad, good, unknown, high = made(["x", "x", [], [10**6]], ["none", "", "", ""])
    assert [type(found) for found in (bad, unknown, high)] == [InvalidRequest] * 3
    assert "there is no prompt 'none'; this model has: passage, query" in str(bad)
    assert "empty" in str(unknown) and "token ids are 0 to" in str(high)
    assert np.abs(good.vector - made(["x"])[0].vector).max() < 1e-5


def test_half_a_character_fails_nobody(folder: Path) -> None:
    for engine in engines(folder):
        made = embedder(folder, engine)
        broken, good = made(["a \ud800 b", "x"])
        assert np.abs(broken.vector - made(["a ? b"])[0].vector).max() < 1e-5
        assert np.abs(good.vector - made(["x"])[0].vector).max() < 1e-5


def test_an_encoder_in_a_folder_of_its_own(tmp_path: Path) -> None:
    """As sentence-transformers before its second version wrote them."""
    tiny.encoder(tmp_path / "0_Transformer")
    listed = [("0_Transformer", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [{"idx": n, "name": str(n), "path": at, "type": tiny.MODULE + kind} for n, (at, kind) in enumerate(listed)]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(WIDTH | {"pooling_mode_cls_token": True}))
    for engine in ("onnx", "torch"):
        assert np.abs(vectors(embedder(tmp_path, engine), TEXTS) - theirs(tmp_path, TEXTS)).max() < 1e-5
    assert embed(tmp_path).dimensions == 32


def test_the_models_own_files_say_how_much_it_reads(tmp_path: Path) -> None:
    made = tiny.encoder(tmp_path, "xlm-roberta")
    assert read_config(locate(made)).max_tokens == 48  # the tokenizer's
    (made / "sentence_bert_config.json").write_text('{"max_seq_length": 100, "do_lower_case": true}')
    config = read_config(locate(made))
    assert (config.max_tokens, config.lower) == (62, True)  # 64 places, the first two of which no token has
    assert read_config(locate(made), max_tokens=10).max_tokens == 10
    tiny.modules(made, ("Pooling", WIDTH), ("CNN", {}))
    with pytest.raises(ConfigError, match=r"a module sentence_transformers\.models\.CNN"):
        read_config(locate(made))


@pytest.mark.parametrize("on", [ps.Thread(2), ps.Process(threads=1)], ids=["threads", "process"])
def test_as_a_service(tmp_path: Path, on: Any) -> None:
    made = tiny.modules(tiny.encoder(tmp_path), ("Pooling", WIDTH), ("Normalize", {}), prompts=QUERY)
    model = embed(made, name="org/tiny.v1", engine="onnx", on=on, within=60.0)
    assert (model.name, model.embed.name, model.dimensions, model.max_tokens) == ("org/tiny.v1", "embed-tiny.v1", 32, 48)
    assert model.tokenizer is not None and model.tokenizer.encode("a b") == [2, 4, 5, 3]
    alone = embedder(made, "onnx")

    async def main() -> None:
        async with ps.Runtime(*model.services):
            found = await asyncio.gather(*(model.embed(text) for text in TEXTS * 3))
            query = await model.embed("a", "query")
            with pytest.raises(InvalidRequest, match="there is no prompt"):
                await model.embed("a", "none")
            with pytest.raises(InvalidRequest, match="token ids are 0 to"):
                await model.embed([-1])
        assert np.abs(np.array([each.vector for each in found]) - vectors(alone, TEXTS * 3)).max() < 1e-5
        assert np.abs(query.vector - vectors(alone, ["a"], "query")[0]).max() < 1e-5
        assert all(found[n] is found[n + len(TEXTS)] for n in range(len(TEXTS)))  # equal texts share one vector

    asyncio.run(main())


def test_what_the_files_say_can_be_said_otherwise(tmp_path: Path) -> None:
    made = tiny.modules(tiny.encoder(tmp_path), ("Pooling", WIDTH | {"pooling_mode": ["cls", "max"]}), prompts=QUERY)
    assert embed(made).dimensions == 64
    model = embed(made, pooling="mean", normalize=True, prompt="query", max_tokens=20, on=ps.Thread())
    assert (model.dimensions, model.max_tokens) == (32, 20)
    plain, asked = embedder(made, "onnx", max_tokens=20), model.embed.body.load()
    plain.config = replace(plain.config, pooling=("mean",))
    expected = vectors(plain, TEXTS, "query")
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(vectors(asked, TEXTS) - expected).max() < 1e-5
    with pytest.raises(ConfigError, match="has query, passage"):
        embed(made, prompt="none")
    with pytest.raises(ConfigError, match="one of cls, max"):
        embed(made, pooling="none")
