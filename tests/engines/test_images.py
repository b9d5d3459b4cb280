"""Prompts with images: what is written is what transformers' own generate writes, and what is no image fails alone."""

from __future__ import annotations

import asyncio
import io
import random
import struct
import zlib
from typing import Any

import pytest
import tiny_models
from test_writing import GREEDY, run, writing

import penstock as ps
from penstock.engines.writer import chat
from penstock.errors import InvalidRequest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")

from penstock.engines.images import ImageReader, open_image  # noqa: E402


def picture(seed: int, width: int = 60, height: int = 40, form: str = "PNG", mode: str = "RGB") -> bytes:
    image = Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(width * height * 3)).convert(mode)
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def talk(*parts: str) -> list[dict[str, Any]]:
    content = [{"type": "image"} if part == "image" else {"type": "text", "text": part} for part in parts]
    return [{"role": "user", "content": content}]


TALKS = [talk("image", "what is this?"), talk("compare", "image", "with", "image", "please"), talk("no image at all")]


def images_of(messages: list[dict[str, Any]], seed: int) -> list[bytes]:
    count = sum(part["type"] == "image" for part in messages[0]["content"])
    return [picture(seed + n, width=40 + 30 * n) for n in range(count)]


@pytest.mark.parametrize("made", [tiny_models.idefics3, tiny_models.smolvlm])
def test_answers_are_those_of_generate_whatever_runs_beside(made: Any) -> None:
    folder = made()
    engine, model = writing(folder, images=True), chat(folder)
    assert "images" in model.features
    processor = transformers.AutoProcessor.from_pretrained(folder)
    plain = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype="float64").eval()
    requests, expected = {}, {}
    for slot, messages in enumerate(TALKS):
        images = images_of(messages, slot)
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        opened = [open_image(image, "it") for image in images]
        inputs = processor(text=[text], images=opened or None, return_tensors="pt").to(dtype=torch.float64)
        out = plain.generate(**inputs, max_new_tokens=10, do_sample=False)
        expected[slot] = out[0, inputs["input_ids"].shape[1] :].tolist()
        requests[slot] = (model.tokenizer.chat(messages), {"max_tokens": 10, **GREEDY}, images)
    assert len(set(map(tuple, expected.values()))) == 3
    for units in (7, 1000):
        assert run(engine, requests, units=units) == expected


@pytest.mark.parametrize("made", [tiny_models.qwen2_vl, tiny_models.qwen2_5_vl])
def test_images_that_lie_in_a_plane(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions of three axes. The processor's part, expanding a place to an image's tokens, is done by hand here."""
    folder = made()
    plain = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype="float64").eval()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    prepare = transformers.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 9, patch_size=7, merge_size=2)
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *_, **__: None)
    engine = writing(folder, images=True)
    requests, expected, reads = {}, {}, {}
    for slot in range(3):
        size = (20 + 30 * slot, 45)
        prepared = prepare([open_image(picture(slot, *size), "it")], return_tensors="pt")
        tokens = int(prepared["image_grid_thw"].prod()) // 4
        text = "<|im_start|>look <|vision_start|>" + "<|image_pad|>" * tokens + "<|vision_end|> and tell"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        kinds = torch.tensor([[int(token == plain.config.image_token_id) for token in ids]])
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
                  "mm_token_type_ids": kinds, "pixel_values": prepared["pixel_values"].double(),
                  "image_grid_thw": prepared["image_grid_thw"]}  # fmt: skip
        out = plain.generate(**inputs, max_new_tokens=8, do_sample=False)
        expected[slot] = out[0, len(ids) :].tolist()
        reads[slot] = inputs
        requests[slot] = (ids, {"max_tokens": 8, **GREEDY}, [b"%d" % slot])
    assert len(set(map(tuple, expected.values()))) == 3
    engine.lm.images = ByHand(engine.lm.model, reads)
    for units in (5, 1000):
        assert run(engine, requests, units=units) == expected


class ByHand(ImageReader):
    """A reader whose images are prepared already."""

    def __init__(self, model: Any, prepared: dict[int, Any]) -> None:
        self.model = model
        self.prepared = prepared

    def read(self, prompt: Any, images: Any) -> Any:
        inputs = self.prepared[int(images[0])]
        return self._as_read(list(prompt), self._handed(inputs))


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG that says it is huge, of a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")


BROKEN = {
    "a bomb": bomb(),
    "a bomb below Pillow's own limit": bomb(12_000, 12_000),
    "cut off": picture(1)[:-200],
    "a JPEG cut off": picture(1, form="JPEG")[:300],
    "text": b"no image",
    "nothing": b"",
    "html": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="image 1"):
        open_image(data, "image 1")


def test_what_another_program_would_read_is_refused() -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(%pipe%id) (w) file\n%%EOF\n"
    with pytest.raises(InvalidRequest, match="image 1 cannot be read: it is no PNG"):
        open_image(script, "image 1")


def test_many_large_images_are_one_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, tokenizer = writing(tiny_models.idefics3(), images=True), chat(tiny_models.idefics3()).tokenizer
    prompt = tokenizer.chat(talk("image", "image", "image"))
    monkeypatch.setattr("penstock.engines.images.MOST_PIXELS", 100)
    engine.add(0, prompt, {"max_tokens": 1}, [picture(1, 5, 7), picture(2, 5, 7), picture(3, 5, 6)])
    engine.drop(0)
    with pytest.raises(InvalidRequest, match="image 3 has 5 x 7 pixels; of all images of a request 100 are read"):
        engine.add(0, prompt, {"max_tokens": 1}, [picture(1, 5, 7), picture(2, 5, 7), picture(3, 5, 7)])


@pytest.mark.parametrize(
    ("form", "mode"), [("PNG", "RGBA"), ("PNG", "L"), ("PNG", "P"), ("JPEG", "CMYK"), ("GIF", "P"), ("WEBP", "RGB")]
)
def test_forms_of_images(form: str, mode: str) -> None:
    assert open_image(picture(2, 5, 7, form, mode), "it").size == (5, 7)
    assert open_image(picture(2, 5, 7, form, mode), "it").mode == "RGB"


def test_only_the_request_with_the_broken_image_fails() -> None:
    folder = tiny_models.idefics3()
    engine, tokenizer = writing(folder, images=True), chat(folder).tokenizer
    prompt = tokenizer.chat(TALKS[0])
    ask = {"max_tokens": 6, **GREEDY}
    alone = run(engine, {0: (prompt, ask, [picture(5)])})[0]
    engine.add(1, prompt, ask, [picture(5)])
    for images in ([BROKEN["cut off"]], [picture(1), picture(2)]):
        with pytest.raises(InvalidRequest):
            engine.add(2, prompt, ask, images)
    engine.context = 90
    with pytest.raises(InvalidRequest, match="tokens; the context is"):
        engine.add(2, tokenizer.chat(talk("image", "image", "image")), ask, [picture(n) for n in range(3)])
    engine.drop(1)
    assert run(engine, {0: (prompt, ask, [picture(5)])})[0] == alone


def test_the_answer_is_shorter_where_images_take_its_room() -> None:
    folder = tiny_models.idefics3()
    engine, tokenizer = writing(folder, images=True, context=60), chat(folder).tokenizer
    prompt = tokenizer.chat(TALKS[0])
    asked = {"max_tokens": 60 - len(prompt), "ignore_eos": True, **GREEDY}
    engine.add(0, prompt, asked, [picture(5)])
    long = len(engine.seats[0].prompt)
    engine.drop(0)
    assert len(run(engine, {0: (prompt, asked, [picture(5)])})[0]) == 60 - long


def test_a_model_without_images_refuses_them() -> None:
    assert "images" not in chat(tiny_models.qwen3()).features
    with pytest.raises(InvalidRequest, match="no images"):
        writing(tiny_models.qwen3()).add(0, [1], {"max_tokens": 1}, [picture(1)])


def test_through_the_service() -> None:
    model = chat(tiny_models.idefics3(), on=ps.Thread(), slots=2)
    prompt = model.tokenizer.chat(TALKS[0])

    async def main() -> None:
        async with ps.Runtime(model.generate):
            found = [token async for token in model.generate(prompt, {"max_tokens": 5, **GREEDY}, [picture(1)])]
            assert 1 <= len(found) <= 5
            with pytest.raises(InvalidRequest):
                _ = [token async for token in model.generate(prompt, {"max_tokens": 5}, [b"none"])]

    asyncio.run(main())
