"""Images in prompts, for models whose vision part gives embeddings that stand in the place of tokens.

The model's own processor expands the places of images in the prompt's text and cuts the images up; the model's own
forward makes embeddings of both, and is stopped where it would hand them to its language part: that is what the slots run
(`causal_lm`). So nothing here knows how any one model lays out its images.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

from penstock.errors import ConfigError, InvalidRequest

MOST_PIXELS = 64_000_000  # of a request's images together; they are decompressed as a whole, with 3 bytes each
FORMS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # what Pillow knows besides runs other programs, or is rarely looked after


@dataclass(slots=True)
class Read:
    """A prompt with images, as the language part gets it: embeddings [tokens, size], positions [axes, tokens].

    `shift` is what the position of each later token differs by from its place.
    """

    ids: list[int]
    embeddings: torch.Tensor
    positions: torch.Tensor | None
    shift: int


class Handed(Exception):
    """What the language part was given; raised in its place."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        self.given = given


class ImageReader:
    """Prompts with images to embeddings. `model` is the whole, of which `model.get_decoder()` is the language part."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.model = model
        try:
            self.processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
        except (ImportError, ValueError, OSError, AttributeError) as error:
            hint = "" if find_spec("torchvision") else "; many need torchvision, which is not installed"
            raise ConfigError(f"{folder}: what prepares its images cannot be loaded: {error}{hint}") from error

    def read(self, prompt: Sequence[int], images: Sequence[bytes]) -> Read:
        """Raises InvalidRequest for what is no image, too much of them, or not as many as the prompt has places for."""
        opened, room = [], MOST_PIXELS
        for n, data in enumerate(images):
            opened.append(open_image(data, f"image {n + 1}", room))
            room -= opened[-1].width * opened[-1].height
        text = self.processor.tokenizer.decode(prompt, skip_special_tokens=False)
        try:
            batch = self.processor(text=[text], images=opened, add_special_tokens=False, return_tensors="pt")
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            raise InvalidRequest(f"the images cannot be prepared: {error}") from None
        ids: list[int] = batch["input_ids"][0].tolist()
        return self._as_read(ids, self._handed(batch.to(self.model.device, self.model.dtype)))

    @staticmethod
    def _as_read(ids: list[int], given: dict[str, Any]) -> Read:
        positions = given.get("position_ids")
        if positions is not None and positions.ndim == 3:
            positions = positions[-3:, 0]  # where there are four, the first is the place itself
            return Read(ids, given["inputs_embeds"][0], positions, int(positions.max()) + 1 - len(ids))
        return Read(ids, given["inputs_embeds"][0], None, 0)

    def _handed(self, batch: Any) -> dict[str, Any]:
        def stop(_: Any, args: Any, given: dict[str, Any]) -> None:
            raise Handed(given)

        hook = self.model.get_decoder().register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.model(**batch, use_cache=False)
        except Handed as handed:
            return handed.given
        finally:
            hook.remove()
        raise ConfigError(f"{type(self.model).__name__} does not hand embeddings to its language part")


def open_image(data: bytes, name: str, room: int = MOST_PIXELS) -> Any:
    """A decoded RGB image. Raises InvalidRequest for what is none, is cut off, or has more pixels than there is room for."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ConfigError("images need pillow: pip install pillow") from None
    try:
        with Image.open(io.BytesIO(data), formats=FORMS) as image:
            width, height = image.size
            if width * height > room:
                raise InvalidRequest(f"{name} has {width} x {height} pixels; of all images of a request {MOST_PIXELS} are read")
            return image.convert("RGB")
    except InvalidRequest:
        raise
    except UnidentifiedImageError:
        raise InvalidRequest(f"{name} cannot be read: it is no {', '.join(FORMS[:-1])} or {FORMS[-1]}") from None
    except Exception as error:  # its formats' parsers raise what they will at garbage
        raise InvalidRequest(f"{name} cannot be read: {error}") from None
