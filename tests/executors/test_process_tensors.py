"""Tensors cross to a child as they are. Torch is gigabytes on some machines, so it is not among what the tests install."""

from __future__ import annotations

from typing import Any

import pytest

from executors.wire_stand import Pipe, bytes_of, read
from penstock.executors.child.wire import BIG, RUN, Reader, encode

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("shape", [(), (3,), (200, 300)])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float8_e4m3fn", "int64", "bool", "complex64"])
@pytest.mark.parametrize("shared", [True, False])
def test_tensors_keep_their_type_and_value(pair: Any, shared: bool, name: str, shape: tuple[int, ...]) -> None:
    outbox, inbox = pair if shared else (None, None)
    tensor = (5 * torch.rand(shape)).to(getattr(torch, name))
    sent = [tensor, tensor.T if tensor.dim() == 2 else tensor]
    encoded = encode(RUN, 1, sent, outbox)
    ((_, _, found),) = read(Reader(Pipe(bytes_of(encoded)), inbox))
    for a, b in zip(found, sent, strict=True):
        assert (type(a), a.dtype, a.shape) == (type(b), b.dtype, b.shape)
        assert torch.equal(a.to(torch.complex64), b.to(torch.complex64))
    found[0].zero_()  # it is the receiver's
    assert len(encoded.regions) == 2 * (shared and tensor.nbytes >= BIG)


def test_what_is_no_plain_tensor_is_left_to_torch(pair: Any) -> None:
    outbox, inbox = pair
    sent = [
        torch.nn.Parameter(torch.rand(300, 300)),
        torch.rand(3, requires_grad=True),
        torch.rand(2, 0),
        torch.eye(3).to_sparse(),
    ]
    ((_, _, found),) = read(Reader(Pipe(bytes_of(encode(RUN, 1, sent, outbox))), inbox))
    assert [type(value) for value in found] == [type(value) for value in sent]
    assert [value.requires_grad for value in found] == [True, True, False, False]
    assert torch.equal(found[0], sent[0]) and found[2].shape == (2, 0) and found[3].is_sparse
