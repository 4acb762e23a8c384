"""Look into a dump with drgn where it lies, in an object store or on a web server.

    python docs/examples/remote_drgn.py s3://dumps/host7/vmcore vmlinux

Lists the tasks of the dumped kernel. drgn asks for memory piece by piece; each piece comes through
dumpstream's cache, so a few MiB travel, however large the dump is.

drgn recognises a kernel by the headers and notes of a core file. So it gets a file in memory that
has these and nothing else, and the memory itself through `Program.add_memory_segment`.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Iterator

import drgn
from drgn.helpers.linux.pid import for_each_task

from pipeline.api import Dump, open_image
from pipeline.errors import DumpError

E_MACHINE = {"x86_64": 62, "aarch64": 183, "riscv64": 243, "loongarch64": 258, "ppc64le": 21}
ET_CORE, PT_LOAD, PT_NOTE = 4, 1, 4
EHDR, PHDR = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")
NOTE = struct.Struct("<III")


def core_shell(dump: Dump) -> int:
    """A file descriptor of a core file with the dump's headers and notes, all memory a hole."""
    text = dump.info.vmcoreinfo
    if text is None or dump.info.machine not in E_MACHINE:
        raise SystemExit("no VMCOREINFO, or not a little-endian 64-bit machine")
    name = b"VMCOREINFO\0"
    notes = NOTE.pack(len(name), len(text), 0) + name.ljust(12, b"\0")
    notes += text.ljust(-(-len(text) // 4) * 4, b"\0")
    n_headers = 1 + len(dump.ram)
    notes_at = EHDR.size + n_headers * PHDR.size
    at = -(-(notes_at + len(notes)) // 4096) * 4096
    headers = [PHDR.pack(PT_NOTE, 0, notes_at, 0, 0, len(notes), len(notes), 4)]
    for start, stop in dump.ram:
        headers.append(PHDR.pack(PT_LOAD, 7, at, 0, start, stop - start, stop - start, 4096))
        at += stop - start
    machine = E_MACHINE[dump.info.machine]
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    sizes = (EHDR.size, PHDR.size, n_headers, 0, 0, 0)
    head = EHDR.pack(ident, ET_CORE, machine, 1, 0, EHDR.size, 0, 0, *sizes)
    fd = os.memfd_create("core")
    os.write(fd, head + b"".join(headers) + notes)
    os.ftruncate(fd, at)
    return fd


@contextlib.contextmanager
def remote_program(source: str, vmlinux: str) -> Iterator[tuple[drgn.Program, Dump]]:
    """A drgn program whose memory is the dump at `source`."""
    with open_image(source) as dump:

        def read(address: int, count: int, _offset: int, _physical: bool) -> bytes:
            try:
                return dump.read_physical(address, count)
            except DumpError as error:
                raise drgn.FaultError(str(error), address) from error

        program = drgn.Program()
        fd = core_shell(dump)
        try:
            program.set_core_dump(fd)
        finally:
            os.close(fd)
        for start, stop in dump.ram:  # these take precedence over the file's
            program.add_memory_segment(start, stop - start, read, physical=True)
        program.load_debug_info([vmlinux])
        yield program, dump


def main() -> None:
    """Print pid and name of each task, then what it cost."""
    source, vmlinux = sys.argv[1:]
    with remote_program(source, vmlinux) as (program, dump):
        for task in for_each_task(program):
            sys.stdout.write(f"{task.pid.value_():7} {task.comm.string_().decode()}\n")
        sys.stderr.write(f"{dump.source_bytes} bytes fetched\n")


if __name__ == "__main__":
    main()
