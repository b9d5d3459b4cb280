"""Tensors and images out of band, without importing what knows them.

torch pickles a tensor through a file format of its own, PIL an image as bytes within the pickle: several copies each, where
arrays need one. What the user has imported stands in `sys.modules`; a process that has neither pays a look there.
A tensor on a device, with a gradient or of an unusual layout is left to torch.
"""

from __future__ import annotations

import io
import pickle
import sys
from functools import partial
from operator import methodcaller
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def dumps(message: Any, big: Callable[[pickle.PickleBuffer], bool]) -> bytes:
    """As `pickle.dumps`, with protocol 5 and this callback for buffers."""
    modules = sys.modules
    if "torch" not in modules and "PIL.Image" not in modules:
        return pickle.dumps(message, protocol=5, buffer_callback=big)
    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=big).dump(message)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        tensor = getattr(sys.modules.get("torch"), "Tensor", None)
        if tensor is not None and type(value) is tensor:
            return _tensor(value)
        image = getattr(sys.modules.get("PIL.Image"), "Image", None)
        if image is not None and isinstance(value, image):
            return _image(value)
        return NotImplemented


class _Buffer:
    """Pickled as a call with one buffer."""

    __slots__ = ("make", "raw")

    def __init__(self, make: Callable[[Any], Any], raw: Any) -> None:
        self.make = make
        self.raw = raw

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.make, (pickle.PickleBuffer(self.raw),)


def _tensor(value: Any) -> Any:
    torch: Any = sys.modules["torch"]
    plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
    if not plain or value.requires_grad or value.is_conj() or value.is_neg() or not value.numel():
        return NotImplemented
    try:
        raw = value.contiguous().reshape(-1).view(torch.uint8).numpy()  # as bytes: numpy lacks some of its types
    except (RuntimeError, TypeError):  # no numpy, or a type that has no bytes
        return NotImplemented
    return methodcaller("reshape", tuple(value.shape)), (_Buffer(partial(torch.frombuffer, dtype=value.dtype), raw),)


def _image(value: Any) -> Any:
    reduced = value.__reduce_ex__(5)
    if len(reduced) < 3 or type(reduced[2]) is not list:
        return reduced
    make, arguments, state, *rest = reduced
    return make, arguments, [_Buffer(memoryview, part) if type(part) is bytes else part for part in state], *rest
