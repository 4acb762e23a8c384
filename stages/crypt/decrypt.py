"""Opens encrypted dumps, ours and every file that age encrypted to an X25519 key, as a stream."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from stages.crypt.age_header import MAX_HEADER, NONCE_BYTES, header_size, unwrap
from stages.crypt.errors import DecryptError
from stages.crypt.keys import Identity
from stages.crypt.payload import SEALED, PayloadCipher, opened_last
from stages.formats.flattened import SIGNATURE
from stages.sink.partial_file import PartialFile

_HEAD_STEP: Final = 4096


def decrypt_file(source: Path, file: PartialFile, identities: Sequence[Identity]) -> int:
    """Write what `source` holds into `file`, which gets its name once all of it was verified.

    Returns:
        Bytes written.

    Raises:
        DecryptError: no key fits, or `source` was cut, changed or is something else.
        SinkError: the file cannot be written.
        OSError: the source cannot be read.
    """
    with source.open("rb", buffering=0) as stream:
        try:
            blocks = open_stream(stream, identities)
            file.claim()
            try:
                size = _write(file, blocks)
                file.sync()
            except BaseException:
                file.discard()  # half a dump that nobody verified must not look like one
                raise
        except DecryptError as error:
            raise DecryptError(f"{source}: {error}") from None
    file.commit()
    return size


def open_stream(stream: BinaryIO, identities: Sequence[Identity]) -> Iterator[bytes]:
    """Plain blocks of an encrypted stream, each verified; the last proves that it is the last.

    Raises:
        DecryptError: here for the head; while iterating for the blocks.
    """
    held, size = b"", None
    while size is None:
        more = stream.read(_HEAD_STEP)
        held += more
        if held.startswith(SIGNATURE):
            raise DecryptError("is a flattened stream; `dumpstream receive - FILE` rearranges it")
        size = header_size(held)
        if size is None and (not more or len(held) > MAX_HEADER + _HEAD_STEP):
            raise DecryptError("was cut inside its head")
    file_key = unwrap(held[:size], identities)
    held += _exactly(stream, max(size + NONCE_BYTES - len(held), 0))
    nonce, rest = held[size : size + NONCE_BYTES], held[size + NONCE_BYTES :]
    if len(nonce) < NONCE_BYTES:
        raise DecryptError("was cut after its head")
    return _open_blocks(stream, PayloadCipher(file_key, nonce), size + NONCE_BYTES, rest)


def _open_blocks(
    stream: BinaryIO, cipher: PayloadCipher, file_off: int, held: bytes
) -> Iterator[bytes]:
    """Reads one block ahead: only then is it known which one is the last."""
    index = 0
    sealed = held + _exactly(stream, SEALED - len(held))
    while True:
        following = _exactly(stream, SEALED)
        if not following:
            yield opened_last(cipher, index, sealed, file_off)
            return
        plain = cipher.open(index, sealed, is_last=False)
        if plain is None:
            problem = f"block {index} at file offset {file_off:#x} was changed or is damaged"
            if cipher.open(index, sealed, is_last=True) is not None:
                problem = f"goes on after its last block, at file offset {file_off + SEALED:#x}"
            raise DecryptError(problem)
        yield plain
        index, file_off, sealed = index + 1, file_off + SEALED, following


def _exactly(stream: BinaryIO, n_bytes: int) -> bytes:
    """`n_bytes`, fewer at the end only."""
    parts = bytearray()
    while len(parts) < n_bytes:
        data = stream.read(n_bytes - len(parts))
        if not data:
            break
        parts += data
    return bytes(parts)


def _write(file: PartialFile, blocks: Iterator[bytes]) -> int:
    size = 0
    for block in blocks:
        view = memoryview(block)
        try:
            while view:
                view = view[os.write(file.fd, view) :]
        except OSError as error:
            raise file.failure(error) from error
        size += len(block)
    return size
