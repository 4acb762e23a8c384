"""`receive -`: a whole stream becomes a file, a cut one never looks like one."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.errors import DumpError, FormatError, SinkError, TornStreamError
from stages.formats.flattened import END_RECORD, HEADER, record_header
from stages.formats.kdump import MAIN_HEADER_SIZE, SIGNATURE, MainHeader, Status
from stages.sink.partial_file import PartialFile
from stages.transport.flat_stream import receive_stream

HEAD = MainHeader(SIGNATURE, 6, bytes(390), 0, 0, 1, 4096, 1, 2, 100).pack().ljust(4096, b"\0")
RECORDS = [(0, HEAD), (8192, b"data" * 1000), (4096, b"bits" * 1024), (12192, b"tail")]
CONTENT = HEAD + b"bits" * 1024 + b"data" * 1000 + b"tail"


def flattened(records: Sequence[tuple[int, bytes]] = RECORDS, end: bytes = END_RECORD) -> bytes:
    body = b"".join(record_header(offset, len(data)) + data for offset, data in records)
    return HEADER + body + end


def receive(tmp_path: Path, data: bytes, **more: int) -> int:
    file = PartialFile(str(tmp_path / "dump"), overwrite=False, fsync=False)
    return receive_stream(io.BytesIO(data), file, **more)


def names(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir())


def test_whole_stream(tmp_path: Path) -> None:
    """Records in any order, read to the end record and not a byte beyond."""
    source = io.BytesIO(flattened() + b"somebody else's")
    file = PartialFile(str(tmp_path / "dump"), overwrite=False, fsync=True)

    assert receive_stream(source, file) == len(CONTENT)

    assert (tmp_path / "dump").read_bytes() == CONTENT
    assert names(tmp_path) == ["dump"]
    assert source.read() == b"somebody else's"


def test_later_records_win(tmp_path: Path) -> None:
    """A head that comes again replaces the first."""
    receive(tmp_path, flattened([(0, b"old head"), (100, b"x"), (0, b"new")]))

    assert (tmp_path / "dump").read_bytes()[:8] == b"new head"


@pytest.mark.parametrize("cut", range(4096, len(flattened()), 997))
def test_cut_stream(tmp_path: Path, cut: int) -> None:
    """Wherever it is cut, the error says so, and what is left says that it is incomplete."""
    with pytest.raises(TornStreamError, match="stream was cut"):
        receive(tmp_path, flattened()[:cut])

    assert not (tmp_path / "dump").exists()
    partial = tmp_path / "dump.partial"
    if partial.exists():
        header = MainHeader.parse(partial.read_bytes())
        assert header.signature == SIGNATURE
        assert header.status == 1 | Status.INCOMPLETE
    else:
        assert cut < 4096 + 16 + MAIN_HEADER_SIZE


def test_end_record_must_be_there(tmp_path: Path) -> None:
    """Everything but the last 16 bytes is not enough."""
    with pytest.raises(TornStreamError, match="before its end record"):
        receive(tmp_path, flattened(end=b""))
    assert names(tmp_path) == ["dump.partial"]


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", "signature"),
        (b"KDUMP   " + bytes(8000), "signature"),
        (HEADER[:100], "header"),
        (struct.pack(">16sqq", b"makedumpfile", 2, 1).ljust(4096, b"\0"), "type"),
        (struct.pack(">16sqq", b"makedumpfile", 1, 9).ljust(4096, b"\0"), "version"),
        (flattened([(-5, b"x")]), "record"),
        (flattened([(5, b"")]), "record"),
        (HEADER + struct.pack(">qq", 0, -1), "record"),
        (HEADER + struct.pack(">qq", -1, 0), "record"),
        (HEADER + struct.pack(">qq", 2**62, 2**62), "record"),
        (HEADER + struct.pack(">qq", 0, 2**40), "record"),
    ],
)
def test_what_is_no_stream(tmp_path: Path, data: bytes, wanted: str) -> None:
    """Other files and impossible records are refused, and leave nothing."""
    with pytest.raises(FormatError, match=wanted):
        receive(tmp_path, data, max_bytes=1 << 30)
    assert names(tmp_path) == []


def test_existing_file_is_kept(tmp_path: Path) -> None:
    """As with every target, -f is what overwrites."""
    (tmp_path / "dump").write_text("precious")
    with pytest.raises(SinkError, match="exists"):
        receive(tmp_path, flattened())
    assert (tmp_path / "dump").read_text() == "precious"


def test_through_a_pipe(tmp_path: Path) -> None:
    """As a process at the end of a pipe: exit code 0 for whole streams, an error for others."""
    program = (
        "import sys\n"
        "from stages.transport.receive import ReceiveRequest, run_receive\n"
        "sys.exit(run_receive(ReceiveRequest(listen=None, target=sys.argv[1])))\n"
    )
    for data, good in ((flattened(), True), (flattened()[:-1], False)):
        target = tmp_path / f"dump{good}"
        done = subprocess.run(
            [sys.executable, "-c", program, str(target)],
            input=data,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
            check=False,
            timeout=30,
        )
        assert (done.returncode == 0) is good
        assert target.exists() is good


def test_every_error_is_ours(tmp_path: Path) -> None:
    """Random bytes after the head end in an error with a text, not in a traceback."""
    for seed in range(200):
        noise = bytes((seed * 31 + at * at) % 256 for at in range(300))
        with pytest.raises(DumpError):
            receive(tmp_path, HEADER + noise, max_bytes=1 << 20)
        for path in tmp_path.iterdir():
            path.unlink()
