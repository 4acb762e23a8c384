"""Batch kernels against decoders that share no code with them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import cramjam
import lzallright
import numpy as np
import pytest
import zstandard

from pipeline.errors import UnsupportedError
from stages.compressor import kernels
from stages.compressor.kernels import make_encoder
from stages.compressor.zero import first_copies, zero_rows

PAGE = 4096
DECODE: dict[str, Callable[[bytes], bytes]] = {
    "zlib": zlib.decompress,
    "lzo": lambda data: lzallright.LZOCompressor.decompress(data, PAGE),
    "snappy": lambda data: bytes(cramjam.snappy.decompress_raw(data)),
    "zstd": zstandard.ZstdDecompressor().decompress,
}


def mixed_pages(n_pages: int, seed: int = 7) -> Any:
    """Text-like, random, pointer-like and constant pages by turns."""
    rng = np.random.default_rng(seed)
    pages = np.empty((n_pages, PAGE), dtype=np.uint8)
    for row in range(n_pages):
        match row % 4:
            case 0:
                pages[row] = np.resize(np.frombuffer(b"the quick brown fox ", np.uint8), PAGE)
            case 1:
                pages[row] = rng.integers(0, 256, PAGE, dtype=np.uint8)
            case 2:
                words = rng.integers(0, 1 << 16, PAGE // 8, dtype=np.uint64)
                pages[row] = (words + np.uint64(0xFFFF888000000000)).view(np.uint8)
            case _:
                pages[row] = row % 251
    return pages


@pytest.mark.parametrize("codec", ["none", "zlib", "lzo", "snappy", "zstd"])
@pytest.mark.parametrize("level", [1, 3])
def test_every_page_decodes_to_itself(codec: str, level: int) -> None:
    """Packed output, cut at the returned sizes, gives back the chosen rows in their order."""
    pages = mixed_pages(64)
    rows = np.array([0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 63])
    out = np.zeros(len(rows) * PAGE, dtype=np.uint8)

    sizes, coded = make_encoder(codec, level, PAGE).encode(pages, rows, out)

    at = 0
    for row, size, is_coded in zip(rows.tolist(), sizes.tolist(), coded.tolist(), strict=True):
        data = out[at : at + size].tobytes()
        at += size
        assert (DECODE[codec](data) if is_coded else data) == pages[row].tobytes()


@pytest.mark.parametrize("codec", ["zlib", "lzo", "snappy", "zstd"])
def test_random_pages_are_stored_raw(codec: str) -> None:
    """A page that does not become strictly smaller is stored as it is, at its full size."""
    pages = np.random.default_rng(1).integers(0, 256, (8, PAGE), dtype=np.uint8)
    out = np.zeros(8 * PAGE, dtype=np.uint8)

    sizes, coded = make_encoder(codec, 1, PAGE).encode(pages, np.arange(8), out)

    assert not coded.any()
    assert sizes.tolist() == [PAGE] * 8
    assert out.tobytes() == pages.tobytes()


@pytest.mark.parametrize("codec", ["zlib", "lzo", "snappy", "zstd"])
def test_encoder_is_reusable_with_larger_batches(codec: str) -> None:
    """State kept between calls (scratch buffers) grows with the batch."""
    encoder = make_encoder(codec, 1, PAGE)
    for n_pages in (1, 200, 3):
        pages = mixed_pages(n_pages)
        out = np.zeros(n_pages * PAGE, dtype=np.uint8)
        sizes, coded = encoder.encode(pages, np.arange(n_pages), out)
        first = out[: sizes[0]].tobytes()
        assert DECODE[codec](first) == pages[0].tobytes()
        assert coded[0]


@pytest.mark.parametrize("rows", [[], [0], [63], range(64), [0, 1, 5, 6, 7, 9, 40, 63]])
def test_what_needs_no_encoding_can_stay_where_it_is(rows: list[int]) -> None:
    """Raw pages are moved together inside their own buffer."""
    pages = mixed_pages(64)
    wanted = pages[list(rows)].tobytes()
    encoder = make_encoder("none", 1, PAGE)
    assert encoder.in_place

    sizes, coded = encoder.encode(pages, np.array(rows, dtype=np.intp), pages.reshape(-1))

    assert pages.reshape(-1)[: len(wanted)].tobytes() == wanted
    assert sizes.tolist() == [PAGE] * len(rows)
    assert not coded.any()


def test_lzo_knows_many_buffers_apart() -> None:
    """It keeps pointers into each; more buffers than it keeps them for are no problem."""
    encoder = make_encoder("lzo", 1, PAGE)
    buffers = [mixed_pages(3, seed) for seed in range(100)]
    for pages in [*buffers, *buffers[:3]]:
        out = np.zeros(pages.size, dtype=np.uint8)
        sizes, coded = encoder.encode(pages, np.arange(3), out)
        assert coded[0]
        assert DECODE["lzo"](out[: sizes[0]].tobytes()) == pages[0].tobytes()
        assert out[sizes[0] : sizes[0] + PAGE].tobytes() == pages[1].tobytes()


def test_lzo_without_the_system_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without liblzo2 the permissively licensed package makes streams that LZO decoders read."""
    monkeypatch.setattr(kernels, "load_lzo2", lambda _loader: None)
    pages = mixed_pages(4)
    out = np.zeros(4 * PAGE, dtype=np.uint8)

    sizes, coded = make_encoder("lzo", 1, PAGE).encode(pages, np.arange(4), out)

    assert coded[0]
    assert DECODE["lzo"](out[: sizes[0]].tobytes()) == pages[0].tobytes()


def test_unknown_codec_is_named() -> None:
    """A codec that does not exist is refused with the list of those that do."""
    with pytest.raises(UnsupportedError, match="'brotli' is not one of"):
        make_encoder("brotli", 1, PAGE)


class TestZeroRows:
    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
    def test_against_the_obvious_test(self, share: float) -> None:
        """Any mix of zero and other pages is told apart exactly."""
        rng = np.random.default_rng(3)
        pages = rng.integers(0, 256, (128, PAGE), dtype=np.uint8)
        pages[rng.random(128) < share] = 0

        assert zero_rows(pages).tolist() == [not row.any() for row in pages]

    @pytest.mark.parametrize("byte", [0, 7, 8, 1000, 2047, 2048, 4095])
    def test_one_byte_anywhere_counts(self, byte: int) -> None:
        """A page with a single non-zero byte is not zero, wherever the byte is."""
        pages = np.zeros((5, PAGE), dtype=np.uint8)
        pages[2, byte] = 1

        assert zero_rows(pages).tolist() == [True, True, False, True, True]


class TestFirstCopies:
    def test_copies_name_their_first(self) -> None:
        """Equal pages name the first of them; pages equal only at the sampled words do not."""
        pages = mixed_pages(8)
        pages[5] = pages[2]
        pages[7] = pages[2]
        pages[6] = pages[1]
        pages[6, 100] ^= 1

        assert first_copies(pages, np.arange(8)).tolist() == [0, 1, 2, 3, 0, 2, 6, 2]

    def test_only_asked_rows_count(self) -> None:
        """Rows that were not asked for are no one's copy."""
        pages = np.zeros((4, PAGE), dtype=np.uint8)

        assert first_copies(pages, np.array([1, 3])).tolist() == [1, 1]
