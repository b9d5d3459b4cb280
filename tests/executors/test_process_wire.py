"""Frames, and the shared memory that their big buffers travel through."""

from __future__ import annotations

import gc
import os
import pickle
import random
import socket
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

from executors.wire_stand import Pipe, bytes_of, read
from penstock.executors.child import arena
from penstock.executors.child.wire import BIG, DONE, RUN, Reader, WireError, encode


@pytest.mark.parametrize("most", [1, 7, 1000, 65536, 1 << 30])
def test_frames_come_out_as_they_went_in_however_they_are_cut(most: int) -> None:
    rng = random.Random(most)
    messages: list[Any] = [
        None,
        1,
        "text",
        [list(range(50))],
        {"a": b"x" * 300},
        rng.randbytes(BIG + 5),
        [rng.randbytes(200_000), 7],
    ]
    if most < 1000:
        messages = messages[:5]
    messages = [rng.choice(messages) for _ in range(40)]
    data = bytes_of(*(encode(RUN + n % 2, n, message) for n, message in enumerate(messages)))
    found = read(Reader(Pipe(data, most)))
    assert [(kind, number) for kind, number, _ in found] == [(RUN + n % 2, n) for n in range(40)]
    assert [message for *_, message in found] == messages


@pytest.mark.parametrize("shared", [True, False])
def test_big_buffers_keep_their_type_and_value(pair: Any, shared: bool) -> None:
    outbox, inbox = pair if shared else (None, None)
    array = np.arange(30_000, dtype=np.float64).reshape(3, -1)
    message = ([array, b"b" * BIG, bytearray(b"c" * BIG)], {"view": memoryview(b"d" * BIG), "small": memoryview(b"e"), "n": 1})
    encoded = encode(RUN, 1, message, outbox)
    assert len(encoded.regions) == (4 if shared else 0)
    ((_, _, ((x, y, z), rest)),) = read(Reader(Pipe(bytes_of(encoded)), inbox))
    assert np.array_equal(x, array) and x.flags.writeable and x.shape == (3, 10_000)
    assert type(y) is bytes and y == b"b" * BIG
    assert type(z) is bytearray and z == b"c" * BIG
    assert type(rest["view"]) is memoryview and rest["view"] == b"d" * BIG and rest["view"].format == "B"
    assert rest["small"] == b"e" and rest["n"] == 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "F"])
@pytest.mark.parametrize("shared", [True, False])
def test_images_keep_everything_and_cross_beside_the_pickle(pair: Any, shared: bool, mode: str) -> None:
    outbox, inbox = pair if shared else (None, None)
    image = Image.linear_gradient("L").resize((400, 400)).convert(mode)
    image.info["dpi"] = (72, 72)
    encoded = encode(RUN, 1, {"image": image, "small": image.resize((8, 8))}, outbox)
    assert sum(len(piece) for piece in encoded.pieces if len(piece) < BIG) < 10_000  # nothing big in the pickle
    ((_, _, message),) = read(Reader(Pipe(bytes_of(encoded)), inbox))
    for found, sent in ((message["image"], image), (message["small"], image.resize((8, 8)))):
        assert (type(found), found.mode, found.size, found.info) == (type(sent), sent.mode, sent.size, sent.info)
        assert (found.tobytes(), found.getpalette()) == (sent.tobytes(), sent.getpalette())
    assert len(encoded.regions) == shared


def test_fortran_order_views_and_strides(pair: Any) -> None:
    outbox, inbox = pair
    base = np.arange(40_000.0).reshape(200, 200)
    for array in (np.asfortranarray(base), base[::2], base.T, base[5:]):
        ((_, _, found),) = read(Reader(Pipe(bytes_of(encode(RUN, 1, array, outbox))), inbox))
        assert np.array_equal(found, array)


def test_a_region_goes_back_when_its_last_view_has_died(pair: Any) -> None:
    outbox, inbox = pair
    array = np.arange(20_000.0)
    ((_, _, found),) = read(Reader(Pipe(bytes_of(encode(RUN, 1, array, outbox))), inbox))
    part = found[7:].reshape(-1)
    del found
    gc.collect()
    assert not inbox.released and part[0] == 7.0
    del part
    gc.collect()
    assert list(inbox.released) == [0]
    answer = encode(DONE, 1, None, None, inbox)  # the release travels with whatever goes back next
    read(Reader(Pipe(bytes_of(answer)), None, outbox.free))
    assert outbox.used() == 0


def test_a_frame_that_is_not_sent_takes_nothing_with_it(pair: Any) -> None:
    """Staged work is encoded, and may be revoked."""
    outbox, inbox = pair
    inbox.released.extend([4096, 8192])
    encoded = encode(RUN, 1, np.arange(20_000.0), outbox, inbox)
    assert not inbox.released and outbox.used()
    encoded.undo(outbox, inbox)
    assert list(inbox.released) == [4096, 8192] and not outbox.used()


def test_a_full_arena_falls_back_to_the_socket(pair: Any) -> None:
    outbox, inbox = pair
    arrays = [np.full(50_000, float(n)) for n in range(6)]
    encoded = encode(RUN, 1, arrays, outbox)
    assert 0 < len(encoded.regions) < 6
    ((_, _, found),) = read(Reader(Pipe(bytes_of(encoded)), inbox))
    assert all(np.array_equal(a, b) for a, b in zip(arrays, found, strict=True))


def test_what_cannot_be_pickled_leaves_nothing_behind(pair: Any) -> None:
    outbox, _ = pair
    with pytest.raises((pickle.PicklingError, AttributeError)):
        encode(RUN, 1, [np.zeros(20_000), lambda: None], outbox)
    assert outbox.used() == 0


def test_allocation_never_overlaps_and_loses_nothing(pair: Any) -> None:
    outbox, inbox = pair
    for seed in range(20):
        rng = random.Random(seed)
        held: dict[int, bytes] = {}
        for _ in range(300):
            if held and rng.random() < 0.5:
                offset, content = held.popitem() if rng.random() < 0.5 else (k := rng.choice(list(held)), held.pop(k))
                assert bytes(inbox.view(offset, len(content))) == content, f"seed {seed}"
                outbox.free(offset)
            else:
                content = rng.randbytes(rng.randrange(1, 100_000))
                offset = outbox.put(memoryview(content))
                if offset is not None:
                    held[offset] = content
        for offset in held:
            outbox.free(offset)
        assert outbox.used() == 0
        assert outbox.put(memoryview(bytes(1 << 20))) == 0, f"seed {seed}: the free space is not whole again"
        outbox.free(0)


def test_memory_above_what_is_kept_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "KEEP", 1 << 20)
    fd = arena.create(16 << 20)
    outbox = arena.Outbox(fd)
    offset = outbox.put(memoryview(bytes(8 << 20)))
    assert os.fstat(fd).st_blocks * 512 >= 8 << 20
    outbox.free(offset)
    outbox.used()
    assert os.fstat(fd).st_blocks * 512 <= 1 << 20
    os.close(fd)


def test_views_outlive_everything_else() -> None:
    fd = arena.create(1 << 20)
    outbox, inbox = arena.Outbox(fd), arena.Inbox(fd)
    ((_, _, found),) = read(Reader(Pipe(bytes_of(encode(RUN, 1, np.arange(20_000.0), outbox))), inbox))
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)  # else a view could kill its reader
    os.close(fd)
    outbox.close()
    inbox.close()
    del outbox, inbox
    gc.collect()
    found += 1.0
    assert found.sum() == sum(range(20_001))


@pytest.mark.parametrize("garbage", [b"\0" * 100, b"HTTP/1.1 200 OK\r\n\r\n" * 10, bytes(range(256))])
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(WireError):
        read(Reader(Pipe(garbage)))
    with pytest.raises(WireError):
        read(Reader(Pipe(bytes_of(encode(RUN, 1, "fine")) + garbage)))


def test_a_place_outside_the_arena_is_refused(pair: Any) -> None:
    outbox, inbox = pair
    data = bytearray(bytes_of(encode(RUN, 1, np.zeros(20_000), outbox)))
    data[28:36] = (1 << 40).to_bytes(8, "little")  # the offset of the first buffer
    with pytest.raises(ValueError, match="no region"):
        read(Reader(Pipe(bytes(data)), inbox))


def test_releases_from_many_threads() -> None:
    """Views die wherever their last user is, also while the sender allocates."""
    fd = arena.create(4 << 20)
    outbox, inbox = arena.Outbox(fd), arena.Inbox(fd)
    here, there = socket.socketpair()
    kept: list[Any] = []
    more = threading.Semaphore(0)

    def drop() -> None:
        for _ in range(400):
            more.acquire()
            kept.pop()
            while inbox.released:
                outbox.free(inbox.released.popleft())

    threads = [threading.Thread(target=drop) for _ in range(2)]
    for thread in threads:
        thread.start()
    reader = Reader(there, inbox)
    for n in range(800):
        for piece in encode(RUN, n, np.full(10_000, float(n)), outbox).pieces:
            here.sendall(piece)
        while (frame := reader.next()) is None:
            reader.fill()
        found = frame.load()
        assert found[0] == found[-1] == n
        kept.append(found)
        del found, frame
        more.release()
    for thread in threads:
        thread.join()
    gc.collect()
    while inbox.released:
        outbox.free(inbox.released.popleft())
    assert outbox.used() == 0
    here.close()
    there.close()
    os.close(fd)
