"""The commands around network targets: estimate, receive, resume, keygen, decrypt."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from pipeline.config.dump_arguments import add_source, given_name, new_file

if TYPE_CHECKING:
    from collections.abc import Callable

RECEIVE_EPILOGUE: Final = """\
Takes dumps in: from `dumpstream dump ... tcp://` and `tls://` into DIR, or a flattened stream from
standard input into one file. A dump has its name only once it is whole and verified.

examples:
  dumpstream receive --listen 0.0.0.0:7070 --tls-cert me.pem --tls-client-ca ca.pem DIR
  ssh crashed 'dumpstream dump /proc/vmcore -' | dumpstream receive - vmcore.kdump
"""
RESUME_EPILOGUE: Final = """\
Goes on with an upload whose process died; the failed run names its journal.

example:
  dumpstream resume ~/.local/state/dumpstream/s3_dumps_vmcore.kdump.18a2b3.journal
"""
KEYGEN_EPILOGUE: Final = """\
printed: the public key, to standard output; without FILE the secret key too.

example:
  dumpstream keygen dumps.key
"""
DECRYPT_EPILOGUE: Final = """\
The file is in the age format: `age -d` opens it too.

example:
  dumpstream decrypt --identity dumps.key vmcore.kdump.age vmcore.kdump
"""


ESTIMATE_EPILOGUE: Final = """\
printed: bytes by dump level and codec, or as ELF, from a sample of the pages; for an object store
also the speed it takes them at, for a path the space that is left.

examples:
  dumpstream estimate /proc/vmcore
  dumpstream estimate vmcore s3://dumps/vmcore.kdump
"""


def add_estimate(parser: argparse.ArgumentParser) -> None:
    add_source(parser, "SOURCE", "memory image or dump")
    parser.add_argument(
        "target", metavar="TARGET", type=given_name, nargs="?", help="where a dump would go"
    )


def add_receive(parser: argparse.ArgumentParser, size: Callable[[str], int]) -> None:
    """``receive --listen HOST:PORT DIR`` or ``receive - FILE``."""
    parser.add_argument(
        "target", metavar="DIR", type=given_name, nargs="+", help="where dumps go; or: - FILE"
    )
    parser.add_argument("--listen", metavar="HOST:PORT", help="address to take dumps at")
    parser.add_argument("--tls-cert", metavar="FILE", help="PEM; our certificate")
    parser.add_argument("--tls-key", metavar="FILE", help="PEM; its key, if not in the same file")
    parser.add_argument("--tls-client-ca", metavar="FILE", help="PEM; who may send")
    parser.add_argument("--max-bytes", type=size, default=0, metavar="SIZE", help="of one dump")
    parser.add_argument("--max-dumps", type=int, default=8, metavar="N", help="at once")
    parser.add_argument("--max-rate", type=size, default=0, metavar="SIZE", help="a second, of all")
    parser.add_argument("-f", "--force", action="store_true", help="senders may replace dumps")


def add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "journal", metavar="JOURNAL", type=given_name, help="named by the run that failed"
    )


def add_keygen(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", type=new_file, nargs="?", help="new file for the secret key"
    )


def add_decrypt(parser: argparse.ArgumentParser) -> None:
    add_source(parser, "IN", "encrypted dump")
    parser.add_argument("target", metavar="OUT", type=new_file, help="file for the dump")
    parser.add_argument(
        "--identity", required=True, metavar="FILE", type=given_name, help="with the secret key"
    )
    parser.add_argument("-f", "--force", action="store_true", help="replace OUT if it exists")
