"""What the command line takes: commands, options, and the setting that each option stands for.

Imports argparse and nothing else: ``--help`` must answer at once. Choices and bounds are repeated
from `pipeline.config.settings` for that reason; a test compares them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, NoReturn

from pipeline.config import dump_arguments as dump
from pipeline.config import network_arguments as network
from pipeline.config.dump_arguments import add_source, given_name, new_file
from pipeline.errors import EXIT_USAGE
from pipeline.obs.plain import one_line

POLICIES: Final = ("s3fifo", "arc", "lru")

_PROLOGUE: Final = "Filtered, compressed Linux crash dumps, streamed."
_EPILOGUE: Final = """\
examples:
  dumpstream dump /proc/vmcore /var/crash/vmcore
  dumpstream dump -d 31 --compress lzo /proc/vmcore - | ssh host 'cat > vmcore.flat'
  dumpstream info /var/crash/vmcore

Data goes to standard output, everything else to standard error.
Exit codes: 0 done; 1 failed; 2 wrong usage or settings; 3 an incomplete but usable dump was left;
141 the reader of a report went away.
`dumpstream COMMAND --help` tells more.
"""
_PLAN_EPILOGUE: Final = """\
Opens SOURCE, decides everything as `dump` would, and writes nothing to TARGET.

printed: a table of settings, their origin and reason, and memory by consumer, to standard output.

example:
  dumpstream plan --profile capture /proc/vmcore /var/crash/vmcore
"""
_INFO_EPILOGUE: Final = """\
printed: format, architecture, kernel release, memory model, address layout and pages by class,
to standard output.

example:
  dumpstream info --json /var/crash/vmcore
"""
_VERIFY_EPILOGUE: Final = """\
A page is good when it is there and can be decoded. Of the codecs zlib alone has a checksum for each
page: whether contents are right, --against tells.

printed: what was checked and every fault found, to standard output; exit code 1 if there is any.

example:
  dumpstream verify /var/crash/vmcore --against /proc/vmcore
"""
_TRANSLATE_EPILOGUE: Final = """\
VADDR is hexadecimal, with or without 0x.

printed: the physical address and each step of the walk, for each VADDR, to standard output.

example:
  dumpstream translate /var/crash/vmcore ffffffff81000000
"""
_DMESG_EPILOGUE: Final = """\
printed: the kernel's log, as dmesg prints it, to standard output.

example:
  dumpstream dmesg /var/crash/vmcore | tail -50
"""
_DEMO_EPILOGUE: Final = """\
Builds a small image with a whole kernel in it, dumps it at level 31 and verifies the dump.

printed: pages by class, and where the files are, to standard output.

example:
  dumpstream demo --directory /tmp/demo
"""
_TRACE_EPILOGUE: Final = """\
record runs pass 1 on SOURCE and writes which pages it asks of the cache to FILE: addresses, no
contents. replay tries policies and sizes of cache on such a file.

printed: a table of hit ratio, requests and waiting time, to standard output.

examples:
  dumpstream trace record /var/crash/vmcore run.trace
  dumpstream trace replay run.trace --capacity 256KiB --capacity 8MiB --latency-ms 20
"""
_DOCTOR_EPILOGUE: Final = """\
printed: one line for each check, ok, warn or fail, to standard output; exit code 1 if one fails.

example:
  dumpstream doctor --directory /var/crash
"""


def _size(text: str) -> int:
    from pipeline.memory.sizes import parse_size

    try:
        return parse_size(text)
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class _ShowVersion(argparse.Action):
    """Finds the version when asked: looking it up takes longer than all the rest."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        from pipeline.obs.version import own_version

        # Not `parser.exit(message=...)`, which writes to standard error.
        (sys.stdout or sys.stderr).write(f"dumpstream {own_version()}\n")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other failure does, and leaves the usage to help."""

    command: str | None = None
    """What the program's own parser is there for: an unknown option is its to refuse."""

    def error(self, message: str) -> NoReturn:
        said = one_line(message)
        helps = f"{self.prog} {self.command}" if self.command else self.prog
        self.exit(EXIT_USAGE, f"dumpstream: error: {said} (`{helps} --help` tells more)\n")


def make_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The command line; `command` in the result of parsing names the subcommand.

    Args:
        command: the only one that is wanted, which saves the 7 ms that all the others take; all of
            them where it is None or no command.
    """
    parser = _Parser(
        prog="dumpstream",
        description=_PROLOGUE,
        epilog=_EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show it and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    if command in _COMMANDS:
        parser.command = command
    for name in (command,) if command in _COMMANDS else _COMMANDS:
        effect, epilogue, add_arguments = _COMMANDS[name]
        add_arguments(_command(commands, name, effect, epilogue))
    return parser


def _add_info(parser: argparse.ArgumentParser) -> None:
    add_source(parser, "SOURCE", "memory image or dump")
    _add_json(parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    add_source(parser, "DUMP", "dump to check")
    parser.add_argument(
        "--against", metavar="SOURCE", type=given_name, help="image whose kept pages must be equal"
    )
    parser.add_argument(
        "--full", action="store_true", help="of a URL: read every byte, not only what proves it"
    )


def _add_estimate(parser: argparse.ArgumentParser) -> None:
    network.add_estimate(parser)
    _add_json(parser)


def _add_translate(parser: argparse.ArgumentParser) -> None:
    add_source(parser, "SOURCE", "memory image or dump")
    parser.add_argument("vaddrs", metavar="VADDR", nargs="+", help="hexadecimal")
    _add_json(parser)


def _add_dmesg(parser: argparse.ArgumentParser) -> None:
    add_source(parser, "SOURCE", "memory image or dump")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    dump.add_dump(parser)
    _add_json(parser)


def _add_receive(parser: argparse.ArgumentParser) -> None:
    network.add_receive(parser, _size)


def _add_resume(parser: argparse.ArgumentParser) -> None:
    network.add_resume(parser)
    dump.add_report_options(parser.add_argument_group("what is reported"))


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--directory",
        metavar="DIR",
        type=given_name,
        help="where the files go (default: a new temporary folder)",
    )


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--directory",
        default=".",
        metavar="DIR",
        type=given_name,
        help="where dumps would go (default: here)",
    )


def _add_trace(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    record = actions.add_parser("record", help="write the requests of a run", allow_abbrev=False)
    add_source(record, "SOURCE", "memory image or dump")
    record.add_argument(
        "file", metavar="FILE", type=new_file, help="the trace, which must not exist yet"
    )
    replay = actions.add_parser("replay", help="try other caches on them", allow_abbrev=False)
    replay.add_argument("file", metavar="FILE", type=given_name, help="a trace")
    replay.add_argument("--policy", action="append", choices=POLICIES, help="repeatable; all")
    replay.add_argument(
        "--capacity", action="append", metavar="SIZE", help="repeatable; from 64KiB to 8MiB"
    )
    replay.add_argument("--block-pages", type=int, default=1, metavar="N", help="what a miss reads")
    replay.add_argument("--latency-ms", type=float, default=5.0, metavar="MS", help="of a request")
    _add_json(replay)


def _command(
    commands: argparse._SubParsersAction[_Parser],
    name: str,
    effect: str,
    epilogue: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=effect,
        description=f"{effect[0].upper()}{effect[1:]}.",
        epilog=epilogue,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


class _Command(NamedTuple):
    effect: str
    epilogue: str
    add_arguments: Callable[[argparse.ArgumentParser], None]


# In the order in which help shows them.
_COMMANDS: Final[dict[str, _Command]] = {
    "dump": _Command("make a dump", dump.EPILOGUE, dump.add_dump),
    "info": _Command("what an image is", _INFO_EPILOGUE, _add_info),
    "verify": _Command("check every page of a dump", _VERIFY_EPILOGUE, _add_verify),
    "estimate": _Command("size and time of a dump", network.ESTIMATE_EPILOGUE, _add_estimate),
    "translate": _Command("virtual to physical", _TRANSLATE_EPILOGUE, _add_translate),
    "dmesg": _Command("the kernel's log", _DMESG_EPILOGUE, _add_dmesg),
    "plan": _Command("what dump would run, and why", _PLAN_EPILOGUE, _add_plan),
    "trace": _Command("what a run asks of the cache", _TRACE_EPILOGUE, _add_trace),
    "receive": _Command("take dumps in", network.RECEIVE_EPILOGUE, _add_receive),
    "resume": _Command("go on with an upload", network.RESUME_EPILOGUE, _add_resume),
    "keygen": _Command("make a key to encrypt to", network.KEYGEN_EPILOGUE, network.add_keygen),
    "decrypt": _Command("read an encrypted dump", network.DECRYPT_EPILOGUE, network.add_decrypt),
    "demo": _Command("see it work on a small image", _DEMO_EPILOGUE, _add_demo),
    "doctor": _Command("check the environment", _DOCTOR_EPILOGUE, _add_doctor),
}
