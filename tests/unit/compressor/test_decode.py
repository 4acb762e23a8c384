"""Decoding single pages: what other libraries wrote, and what nobody did."""

from __future__ import annotations

import threading
import tracemalloc
import zlib

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UnsupportedError
from stages.compressor.codecs import CODEC_NAMES, CODECS, Codec, codec_named, codec_of_flags
from stages.compressor.decode import DecodeError, make_decoder
from tests.support.kdump_writer import FLAGS, compress

PAGE = 4096
COMPRESSING = [codec for codec in CODECS if codec.name != "none"]
pages = st.one_of(
    st.integers(0, 255).map(lambda byte: bytes([byte]) * PAGE),
    st.binary(min_size=1, max_size=64).map(lambda part: (part * PAGE)[:PAGE]),
    st.integers(0, 2**32).map(
        lambda seed: np.random.default_rng(seed).integers(0, 256, PAGE, np.uint8).tobytes()
    ),
)
by_name = pytest.mark.parametrize("codec", CODECS, ids=CODEC_NAMES)
by_compressing_name = pytest.mark.parametrize(
    "codec", COMPRESSING, ids=[codec.name for codec in COMPRESSING]
)


def test_table() -> None:
    """Names and flags are the dump format's own, and lead to each other."""
    assert {codec.name: int(codec.flag) for codec in CODECS} == FLAGS
    for codec in CODECS:
        assert codec_named(codec.name) is codec
        assert codec_of_flags(int(codec.flag)) is codec


@pytest.mark.parametrize("flags", [3, 5, 8, 0x10, 0x21, 0x40, 2**31])
def test_flags_of_no_codec(flags: int) -> None:
    """Two codecs at once, or none that is known, is no codec."""
    assert codec_of_flags(flags) is None


def test_unknown_name() -> None:
    """The error lists what there is."""
    with pytest.raises(UnsupportedError, match="none, zlib, lzo, snappy, zstd"):
        codec_named("lz4")


@by_name
@settings(deadline=None)
@given(page=pages)
def test_pages_come_back(codec: Codec, page: bytes) -> None:
    """Whatever the codec's own library wrote, as bytes or as a view of a larger buffer."""
    data = compress(codec.name, page)
    decode = make_decoder(codec, PAGE)

    assert decode(data) == page
    assert decode(memoryview(b"xyz" + data + b"w")[3:-1]) == page


@by_name
@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE + 1, 2 * PAGE])
def test_other_sizes_are_refused(codec: Codec, size: int) -> None:
    """Exactly a page, or an error."""
    with pytest.raises(DecodeError):
        make_decoder(codec, PAGE)(compress(codec.name, b"a" * size))


@by_compressing_name
@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_garbage(codec: Codec, data: bytes) -> None:
    """Random bytes are an error of ours, never of the library's."""
    with pytest.raises(DecodeError):
        make_decoder(codec, PAGE)(data)


@by_compressing_name
@settings(deadline=None)
@given(page=pages, at=st.integers(0, 2**16), byte=st.integers(0, 255))
def test_damage(codec: Codec, page: bytes, at: int, byte: int) -> None:
    """One byte changed: a page's length of bytes, or an error."""
    data = bytearray(compress(codec.name, page))
    data[at % len(data)] = byte
    try:
        decoded = make_decoder(codec, PAGE)(data)
    except DecodeError:
        return
    assert len(decoded) == PAGE


@by_compressing_name
@settings(deadline=None)
@given(page=pages, share=st.floats(0, 0.999))
def test_cut(codec: Codec, page: bytes, share: float) -> None:
    """Cut anywhere, even in the checksum: an error."""
    data = compress(codec.name, page)

    with pytest.raises(DecodeError):
        make_decoder(codec, PAGE)(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("name", "bomb"),
    [
        ("zlib", zlib.compress(bytes(256 << 20), 9)),
        ("zstd", zstandard.ZstdCompressor().compress(bytes(256 << 20))),
        ("zstd", zstandard.ZstdCompressor(write_content_size=False).compress(bytes(256 << 20))),
        ("snappy", b"\xff\xff\xff\xff\x0f" + b"\0" * 50),
        ("lzo", b"\x12\x00\x20" + b"\0" * 4000 + b"\x01\x00\x00\x11\x00\x00"),
    ],
    ids=["zlib", "zstd", "zstd without size", "snappy", "lzo"],
)
def test_bombs(name: str, bomb: bytes) -> None:
    """Input that would become hundreds of MiB is refused at the price of a page or two."""
    decode = make_decoder(codec_named(name), PAGE)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            decode(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 4 << 20


@by_name
def test_several_threads_share_a_decoder(codec: Codec) -> None:
    """Threads that decode at the same time do not meet."""
    decode = make_decoder(codec, PAGE)
    wrong: list[int] = []

    def work(number: int) -> None:
        page = bytes([number]) * PAGE
        data = compress(codec.name, page)
        wrong.extend(number for _ in range(300) if decode(data) != page)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
