"""Text to tokens and back: pieces and the whole are the same text, and templates render as transformers renders them."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engines.template import ChatTemplate
from penstock.engines.tokenizer import FolderTokenizer
from penstock.errors import ConfigError, InvalidRequest

KINDS = {"byte-level": tiny_models.qwen3, "sentencepiece": tiny_models.sentencepiece, "metaspace": tiny_models.metaspace}
TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two  spaces ",
    "日本語 äöü 😀",
    "e\u0301 👩‍👩‍👧 \u200b",
    "line\nline\r\n\ttab",
    "<|im_end|>",
    "▁",
    "�",
]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> FolderTokenizer:
    return FolderTokenizer(KINDS[request.param]())


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def of_bytes(request: pytest.FixtureRequest) -> FolderTokenizer:
    return FolderTokenizer(KINDS[request.param]())


def pieces(tokenizer: FolderTokenizer, ids: list[int]) -> list[str]:
    decoder = tokenizer.decoder()
    return [*map(decoder.push, ids), decoder.flush()]


@settings(max_examples=300)
@given(data=st.data())
def test_pieces_are_the_whole_and_never_half_a_character(of_bytes: FolderTokenizer, data: st.DataObject) -> None:
    """Of any tokens at all, also such as no text has, and ids that there are not."""
    ids = data.draw(st.lists(st.integers(0, of_bytes.size + 3), max_size=40))
    whole, parts = of_bytes.decode(ids), pieces(of_bytes, ids)
    assert "".join(parts) == whole
    raw = b"".join(of_bytes.piece(token) for token in ids if token not in of_bytes.special)
    spelled = raw.decode("utf-8", "replace")
    assert whole in (spelled, spelled.removeprefix(" "))
    valid = raw.decode("utf-8", "ignore").replace("\ufffd", "")
    assert "".join(parts).replace("\ufffd", "") in (valid, valid.removeprefix(" "))


@settings(max_examples=200)
@given(text=st.one_of(st.sampled_from(TEXTS), st.text(max_size=40)))
def test_texts_come_back(of_bytes: FolderTokenizer, text: str) -> None:
    ids = of_bytes.encode(text, special=False)
    if "<" in text or "▁" in text:  # may spell a special token; the other is how SentencePiece writes a space
        return
    assert of_bytes.decode(ids) == text
    assert "".join(pieces(of_bytes, ids)) == text
    assert all("\ufffd" not in piece for piece in pieces(of_bytes, ids)) or "\ufffd" in text


@settings(max_examples=100)
@given(data=st.data())
def test_the_library_agrees(tokenizer: FolderTokenizer, data: st.DataObject) -> None:
    """Except where bytes that are no character follow some that are: SentencePiece's decoder gives up the whole run."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=30))
    expected = tokenizer.library.decode(ids, skip_special_tokens=True)
    if "\ufffd" not in expected:
        assert tokenizer.decode(ids) == expected
        assert "".join(pieces(tokenizer, ids)) == expected


def test_byte_level_agrees_with_the_library_on_garbage_too() -> None:
    tokenizer = FolderTokenizer(tiny_models.qwen3())
    chance = random.Random(5)
    for _ in range(500):
        ids = [chance.randrange(tokenizer.size) for _ in range(chance.randrange(20))]
        assert tokenizer.decode(ids) == tokenizer.library.decode(ids, skip_special_tokens=True)


def test_a_long_answer_costs_the_same_for_each_token(tokenizer: FolderTokenizer) -> None:
    """What a decoder keeps is bounded, whatever it has read."""
    decoder: Any = tokenizer.decoder()
    for n in range(2000):
        decoder.push(n % tokenizer.size)
        assert len(getattr(decoder, "ids", [])) < 20


def test_what_a_training_run_left_in_the_file_cuts_nothing() -> None:
    tokenizer = FolderTokenizer(tiny_models.metaspace())
    assert len(tokenizer.encode("one two three four five six seven eight nine ten")) > 8


def test_special_tokens_where_they_are_wanted() -> None:
    tokenizer = FolderTokenizer(tiny_models.sentencepiece())
    assert tokenizer.encode("a")[0] == tokenizer.id("<s>") == 1
    assert 1 not in tokenizer.encode("a", special=False)
    assert tokenizer.decode(tokenizer.encode("a")) == "a"
    assert tokenizer.piece(1) == b"<s>"
    assert tokenizer.piece(tokenizer.encode("é", special=False)[-1]) == b"\xa9"


def test_yes_and_no_are_single_tokens() -> None:
    tokenizer = FolderTokenizer(tiny_models.qwen3())
    assert [len(tokenizer.encode(word)) for word in ("yes", "no")] == [1, 1]


# Templates

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<b> & 日本"}]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TEMPLATES = {
    "chatml": "{%- for m in messages %}\n  {{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "tools": "{% if tools %}\n{% for t in tools %}{{ t | tojson }}{{ t | tojson(indent=2) }}{% endfor %}\n{% endif %}{{ bos_token }}{{ eos_token }}"
    "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}{% if m.tool_calls %}"
    "{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}\n    {% generation %}\n{{ m.content }}\n    {% endgeneration %}\n{% endfor %}",
    "options": "{% if enable_thinking is defined and not enable_thinking %}off{% endif %}{{ messages | length }}{{ documents is none }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers_does(name: str) -> None:
    from transformers import PreTrainedTokenizerFast

    config = json.loads((tiny_models.qwen3() / "tokenizer_config.json").read_text())
    reference = PreTrainedTokenizerFast.from_pretrained(
        tiny_models.qwen3(), chat_template=TEMPLATES[name], bos_token="<|im_start|>"
    )
    template = ChatTemplate(
        TEMPLATES[name], {"bos_token": "<|im_start|>", "eos_token": config["eos_token"], "pad_token": config["pad_token"]}, "it"
    )
    tools = [{"type": "function", "function": {"name": "f", "description": "tells 'é' <i>", "parameters": {}}}]
    talks = [TALK, [*TALK, {"role": "assistant", "content": "", "tool_calls": [CALL]}]]
    for talk in talks:
        for options in ({}, {"tools": tools}, {"enable_thinking": False}, {"add_generation_prompt": False}):
            given_ = {"add_generation_prompt": True, **options}
            assert template.render(talk, options) == reference.apply_chat_template(talk, tokenize=False, **given_)


def test_a_prompt_has_the_ids_that_transformers_gives_it() -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(tiny_models.qwen3())
    expected = reference.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False)
    assert FolderTokenizer(tiny_models.qwen3()).chat(TALK) == expected


def test_arguments_of_tool_calls_are_quoted_once() -> None:
    template = ChatTemplate("{{ messages[0].tool_calls[0].function.arguments | tojson }}", {}, "it")
    talk = [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": '{"x": "é"}'}}]}]
    assert template.render(talk, {}) == '{"x": "é"}'
    talk[0]["tool_calls"][0]["function"]["arguments"] = "{"
    with pytest.raises(InvalidRequest, match="arguments"):
        template.render(talk, {})


TEXT_PARTS = [{"type": "text", "text": "one"}, {"type": "input_text", "text": "two"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
PARTS = {
    "direct": "{% for m in messages %}{% for p in m.content %}[{{ p.type }}{{ p.text }}]{% endfor %}{% endfor %}",
    "subscript": "{% for m in messages %}{% for p in m['content'] %}[{{ p.type }}{{ p.text }}]{% endfor %}{% endfor %}",
    "by another name": "{% for m in messages %}{% set c = m.content %}{% for p in c %}[{{ p.type }}{{ p.text }}]{% endfor %}{% endfor %}",
    "in a macro": "{% macro show(content) %}{% for p in content %}[{{ p.type }}{{ p.text }}]{% endfor %}{% endmacro %}"
    "{% for m in messages %}{{ show(m.content) }}{% endfor %}",
}


@pytest.mark.parametrize("source", PARTS.values(), ids=PARTS)
def test_content_in_parts_where_the_template_reads_parts(source: str) -> None:
    template = ChatTemplate(source, {}, "it")
    assert template.render([{"role": "user", "content": [*TEXT_PARTS, IMAGE]}], {}) == "[textone][texttwo][image]"
    assert template.render([{"role": "user", "content": "all"}], {}) == "[textall]"


def test_content_as_text_where_it_reads_text() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {}, "it")
    assert template.render([{"role": "user", "content": TEXT_PARTS}], {}) == "one\ntwo"
    with pytest.raises(InvalidRequest, match="no images"):
        template.render([{"role": "user", "content": [IMAGE]}], {})


@pytest.mark.parametrize("content", [7, {}, [{"type": "audio"}], [{"type": "text"}], ["text"], [None]])
def test_content_that_is_none(content: Any) -> None:
    with pytest.raises(InvalidRequest, match="content"):
        ChatTemplate("{{ messages[0].content }}", {}, "it").render([{"role": "user", "content": content}], {})


@pytest.mark.parametrize(
    "source", ["{{ raise_exception('roles must alternate') }}", "{{ messages[9].content.x }}", "{{ messages.append(1) }}"]
)
def test_what_a_template_refuses_is_the_callers_fault(source: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template of it"):
        ChatTemplate(source, {}, "it").render(TALK, {})


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    with pytest.raises(InvalidRequest, match="unsafe"):
        ChatTemplate("{{ messages.__class__.__mro__[1].__subclasses__() }}", {}, "it").render(TALK, {})


def test_folders_that_lack_something(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        FolderTokenizer(tmp_path)
    with pytest.raises(InvalidRequest, match="no chat template"):
        FolderTokenizer(tiny_models.metaspace()).chat(TALK)
    with pytest.raises(ConfigError, match="chat template of it"):
        ChatTemplate("{% for", {}, "it")


def test_a_tokenizer_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be read: Model missing"):
        FolderTokenizer(tmp_path)


def test_what_is_given_to_a_template_has_any_name() -> None:
    tokenizer = FolderTokenizer(tiny_models.qwen3())
    talk = [{"role": "user", "content": "x"}]
    assert tokenizer.chat(talk, messages=[], self=1) == tokenizer.chat(talk)


def test_where_templates_are_found(tmp_path: Path) -> None:
    several = [{"name": "rag", "template": "no"}, {"name": "default", "template": "by name"}]
    assert ChatTemplate.of_folder(tmp_path, {"chat_template": several}).render([], {}) == "by name"
    assert ChatTemplate.of_folder(tmp_path, {"chat_template": "in the config"}).render([], {}) == "in the config"
    (tmp_path / "chat_template.json").write_text('{"chat_template": "of a processor"}')
    assert ChatTemplate.of_folder(tmp_path, {"chat_template": "in the config"}).render([], {}) == "of a processor"
    (tmp_path / "chat_template.jinja").write_text("a file")
    assert ChatTemplate.of_folder(tmp_path, {"chat_template": "in the config"}).render([], {}) == "a file"


def test_others_go_on_while_a_long_text_is_read() -> None:
    tokenizer, text = FolderTokenizer(tiny_models.qwen3()), "a b " * 200_000
    thread = threading.Thread(target=tokenizer.encode, args=(text,))
    thread.start()
    turns = 0
    while thread.is_alive():
        turns += 1
        time.sleep(0)  # whoever wants the interpreter has it now
    assert turns > 200, "the library kept it"


def test_needs_no_torch() -> None:
    import subprocess
    import sys

    script = "import sys; from penstock.engines.tokenizer import FolderTokenizer as T; T(sys.argv[1]).chat([]); print('torch' in sys.modules, 'transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script, str(tiny_models.qwen3())], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
