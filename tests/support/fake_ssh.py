"""A program that is called like ``ssh`` and needs no network: SFTP over local files, commands in a
local shell, and faults where a test wants them. Runs as a script of its own.

It reads ``faults.json`` beside itself, and counts in files there what all its runs have done:

    die_at_writes     numbers of the writes (from 1, over all runs) at which the connection breaks
    die_after         a request by name (``RENAME``, ``OPEN``) that is done, but not answered, once
    deaf              answers nothing at all
    refuse_writes     status code that every write gets
    corrupt_write     number of the write whose first byte is stored wrong
    reversed          answers to writes come in pairs, the later one first, where there is a pair
    banner            text instead of SFTP
    huge              the first answer claims to be 2 GiB
    extensions        what the server offers
    connections_allowed   later ones are refused for good
    shell_prefix      what the login shell runs first
    words, exit_code  said on standard error, and the run ends
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
OPENSSH = [
    "posix-rename@openssh.com",
    "fsync@openssh.com",
    "limits@openssh.com",
    "statvfs@openssh.com",
]


def load_faults() -> dict[str, Any]:
    path = HERE / "faults.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


FAULTS = load_faults()


def count(what: str) -> int:
    """Count `what` over all runs, several of them at once; how often it has happened."""
    with (HERE / f"{what}.count").open("ab", buffering=0) as file:
        file.write(b".")
        return file.tell()


def lose_connection() -> None:
    sys.stderr.write("client_loop: send disconnect: Broken pipe\n")
    sys.stderr.flush()
    os._exit(255)


def read_exactly(n_bytes: int) -> bytes:
    data = b""
    while len(data) < n_bytes:
        more = os.read(0, n_bytes - len(data))
        if not more:
            os._exit(0)
        data += more
    return data


def string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


class Server:
    """SFTP version 3 on standard input and output."""

    def __init__(self) -> None:
        self.handles: dict[bytes, int] = {}
        self.waiting: list[bytes] = []

    def send(self, kind: int, body: bytes) -> None:
        packet = struct.pack(">IB", len(body) + 1, kind) + body
        if FAULTS.get("huge"):
            packet = struct.pack(">I", 2 << 30)
        os.write(1, packet)

    def status(self, request_id: bytes, code: int, text: str = "") -> None:
        self.send(101, request_id + struct.pack(">I", code) + string(text.encode()) + string(b""))

    def serve(self) -> None:
        if "banner" in FAULTS:
            os.write(1, FAULTS["banner"].encode())
            os.read(0, 1)
            os._exit(0)
        while True:
            (length,) = struct.unpack(">I", read_exactly(4))
            packet = read_exactly(length)
            if FAULTS.get("deaf"):
                continue
            self.handle(packet[0], packet[1:5], packet[5:])

    def handle(self, kind: int, request_id: bytes, body: bytes) -> None:
        if kind == 1:
            offered = FAULTS.get("extensions", OPENSSH)
            pairs = b"".join(string(name.encode()) + string(b"1") for name in offered)
            self.send(2, struct.pack(">I", 3) + pairs)
            return
        try:
            self.do(kind, request_id, body)
        except FileNotFoundError:
            self.status(request_id, 2, "No such file")
        except PermissionError:
            self.status(request_id, 3, "Permission denied")
        except OSError:
            self.status(request_id, 4, "Failure")

    def do(self, kind: int, request_id: bytes, body: bytes) -> None:
        names = {3: "OPEN", 5: "READ", 13: "REMOVE", 18: "RENAME"}
        if kind == 6:
            self.write(request_id, body)
            return
        answer = self.answer(kind, body)
        if names.get(kind, "") == FAULTS.get("die_after") and count("died after") == 1:
            lose_connection()
        if answer is None:
            self.status(request_id, 0)
        else:
            self.send(answer[0], request_id + answer[1])

    def answer(self, kind: int, body: bytes) -> tuple[int, bytes] | None:
        first, rest = take(body)
        if kind == 3:
            return 102, string(self.open(first, rest))
        if kind == 4:
            os.close(self.handles.pop(first))
        elif kind == 5:
            offset, n_bytes = struct.unpack(">QI", rest)
            data = os.pread(self.handles[first], n_bytes, offset)
            return (103, string(data)) if data else (101, struct.pack(">I", 1))
        elif kind == 7:
            seen = os.lstat(first)
            return 105, struct.pack(">IQI", 5, seen.st_size, seen.st_mode)
        elif kind == 10:
            os.fchmod(self.handles[first], stat.S_IMODE(struct.unpack(">II", rest)[1]))
        elif kind == 13:
            Path(os.fsdecode(first)).unlink()
        elif kind == 18:
            os.link(first, take(rest)[0])
            Path(os.fsdecode(first)).unlink()
        elif kind == 200:
            return self.extended(first.decode(), rest)
        return None

    def open(self, path: bytes, rest: bytes) -> bytes:
        wanted, _, mode = struct.unpack(">III", rest)
        flags = {1: os.O_RDONLY, 2: os.O_WRONLY, 3: os.O_RDWR}[wanted & 3]
        flags |= os.O_CREAT if wanted & 8 else 0
        flags |= os.O_EXCL if wanted & 32 else 0
        handle = f"handle {len(self.handles)}".encode()
        self.handles[handle] = os.open(path, flags, mode)
        return handle

    def extended(self, name: str, rest: bytes) -> tuple[int, bytes] | None:
        if name == "limits@openssh.com":
            return 201, struct.pack(">QQQQ", 262144, 261120, 261120, 0)
        if name == "statvfs@openssh.com":
            return 201, struct.pack(">11Q", 4096, 4096, 0, 0, 0, 0, 0, 0, 0, 0, 255)
        first, more = take(rest)
        if name == "posix-rename@openssh.com":
            Path(os.fsdecode(first)).replace(os.fsdecode(take(more)[0]))
        elif name == "fsync@openssh.com":
            os.fsync(self.handles[first])
        return None

    def write(self, request_id: bytes, body: bytes) -> None:
        handle, rest = take(body)
        (offset,) = struct.unpack_from(">Q", rest)
        data = bytearray(take(rest[8:])[0])
        number = count("writes")
        if number in FAULTS.get("die_at_writes", []):
            lose_connection()
        if "refuse_writes" in FAULTS:
            self.status(request_id, FAULTS["refuse_writes"], "Failure")
            return
        if number == FAULTS.get("corrupt_write"):
            data[0] ^= 1
        os.pwrite(self.handles[handle], data, offset)
        self.waiting.append(request_id)
        # A write that leaves the client silent is the last of its kind: it must be answered.
        more_to_come = bool(select.select([0], [], [], 0.05)[0])
        if not FAULTS.get("reversed") or len(self.waiting) == 2 or not more_to_come:
            for each in reversed(self.waiting):
                self.status(each, 0)
            self.waiting.clear()


def take(body: bytes) -> tuple[bytes, bytes]:
    """A string, and what follows it; all of a body that starts with none."""
    if len(body) < 4:
        return b"", body
    (length,) = struct.unpack_from(">I", body)
    return body[4 : 4 + length], body[4 + length :]


def die_with_parent() -> None:
    """Tests stop this process for good; nothing else would end it if they are ended themselves."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main(words: list[str]) -> None:
    if "-G" in words:
        sys.stdout.write("user tester\nciphers chacha20-poly1305@openssh.com,aes128-ctr\n")
        return
    (HERE / "pid").write_text(str(os.getpid()))
    if count("connections") > FAULTS.get("connections_allowed", 1 << 30):
        sys.stderr.write("tester@host: Permission denied (publickey).\n")
        sys.stderr.flush()
        os._exit(255)
    if "words" in FAULTS:
        sys.stderr.write(FAULTS["words"])
        sys.stderr.flush()
        os._exit(FAULTS.get("exit_code", 255))
    if "-s" in words:
        die_with_parent()
        Server().serve()
    command = FAULTS.get("shell_prefix", "") + words[-1]
    sys.exit(subprocess.run(["sh", "-c", command], check=False).returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
