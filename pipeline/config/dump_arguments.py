"""Options of ``dump``, most of which stand for settings; `plan` takes the same.

Choices and bounds are repeated from `pipeline.config.settings`, as in `arguments`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

CODECS: Final = ("none", "zlib", "lzo", "snappy", "zstd")
MAX_DUMP_LEVEL: Final = 31
MAX_CODEC_LEVEL: Final = 22

EPILOGUE: Final = """\
TARGET is a path, - for standard output, or a URL:
sftp:// ssh:// s3:// az:// http:// https:// tcp:// tls://.
Standard output and other targets that take bytes in order only get the flattened form.
A file appears under its name when it is whole, or marked incomplete where pages could not be read
(exit code 3); until then it is NAME.partial.

printed: with TARGET - the dump to standard output; progress, log and the summary to standard error.

examples:
  dumpstream dump -d 31 /proc/vmcore /var/crash/vmcore
  dumpstream dump --profile capture --compress zlib --stats run.json /proc/vmcore vmcore
  dumpstream dump --set memory.budget=256MiB --set compressor.workers=8 image.elf image.kdump
"""


class Given(NamedTuple):
    """An option that was given: the setting it stands for, and what was said."""

    option: str
    key: str
    value: str | int | bool


# Attribute of the parsed arguments: the option as people type it, and its setting.
_SETTING_OPTIONS: Final = {
    "level": ("-d", "dump.level"),
    "compress": ("--compress", "compressor.codec"),
    "compress_level": ("--compress-level", "compressor.level"),
    "format": ("--format", "dump.format"),
    "flatten": ("--flatten", "dump.flatten"),
    "force": ("-f", "dump.overwrite"),
    "on_read_error": ("--on-read-error", "reader.on_read_error"),
    "progress": ("--progress", "run.progress"),
    "log_format": ("--log-format", "run.log_format"),
    "stats": ("--stats", "run.stats"),
}


def given_settings(arguments: argparse.Namespace) -> Iterator[Given]:
    """The options among `arguments` that stand for settings and were given."""
    for name, (option, key) in _SETTING_OPTIONS.items():
        value = getattr(arguments, name)
        if value is not None:
            yield Given(option, key, value)


def given_reports(arguments: argparse.Namespace) -> Iterator[Given]:
    """Of those, the ones that every command with a report takes."""
    for name in ("progress", "log_format", "stats"):
        option, key = _SETTING_OPTIONS[name]
        value = getattr(arguments, name)
        if value is not None:
            yield Given(option, key, value)


def dump_level(text: str) -> int:
    """``-d``: a decimal number from 0 to 31, and nothing else around it."""
    if not re.fullmatch("[0-9]{1,2}", text) or int(text) > MAX_DUMP_LEVEL:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {MAX_DUMP_LEVEL}")
    return int(text)


def codec_level(text: str) -> int:
    if not re.fullmatch("[0-9]{1,2}", text) or int(text) > MAX_CODEC_LEVEL:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {MAX_CODEC_LEVEL}")
    return int(text)


def given_name(text: str) -> str:
    """A path or URL: an empty one is a shell variable that nobody set."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def new_file(text: str) -> str:
    """A file to write: ``-`` would become one of that name, which nobody means."""
    if text == "-":
        raise argparse.ArgumentTypeError("takes a file, not - (nor standard output)")
    return given_name(text)


def add_source(parser: argparse.ArgumentParser, metavar: str, said: str) -> None:
    parser.add_argument("source", metavar=metavar, type=given_name, help=said)


def add_dump(parser: argparse.ArgumentParser) -> None:
    add_source(parser, "SOURCE", "memory image, such as /proc/vmcore")
    parser.add_argument("target", metavar="TARGET", type=given_name, help="where the dump goes")
    parser.add_argument(
        "also",
        metavar="TARGET",
        nargs="*",
        type=given_name,
        default=[],  # else it is named among what is required
        help="more targets, which get it at the same time",
    )
    parser.add_argument(
        "--encrypt-to",
        action="append",
        default=[],
        metavar="KEY",
        help="public key (age1...) or @FILE of keys; repeatable",
    )
    _add_content_options(parser.add_argument_group("what is dumped"))
    _add_settings_options(parser.add_argument_group("settings"))
    add_report_options(parser.add_argument_group("what is reported"))


def _add_content_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-d",
        dest="level",
        type=dump_level,
        metavar="LEVEL",
        help="pages left out, 0 to 31, a sum of: 1 zero, 2 cache, 4 private cache, 8 user, 16 free",
    )
    group.add_argument("--compress", choices=CODECS, help="how each page is compressed")
    group.add_argument("--compress-level", type=codec_level, metavar="N", help="of the codec")
    group.add_argument("--format", choices=("kdump", "elf"), help="of the dump; elf is raw")
    _add_flag(group, "--flatten", help="for targets that take bytes in order only")
    _add_flag(group, "-f", "--force", dest="force", help="replace TARGET if it exists")
    group.add_argument(
        "--on-read-error",
        choices=("zero", "skip", "fail"),
        help="pages that cannot be read: write zeros, leave them out, or give up",
    )


def _add_flag(group: argparse._ArgumentGroup, *names: str, **more: str) -> None:
    """A switch that is None, not False, when absent: absent must not override a file."""
    group.add_argument(*names, action="store_const", const=True, **more)  # type: ignore[arg-type]


def _add_settings_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--profile", metavar="NAME", help="capture, network, throughput or default")
    group.add_argument(
        "--config", metavar="FILE", type=given_name, help="settings in TOML, above the profile"
    )
    group.add_argument(
        "--set",
        dest="sets",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting, such as memory.budget=64MiB; above files and DUMPSTREAM_SECTION__KEY",
    )


def add_report_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--progress",
        choices=("auto", "bar", "json", "none"),
        help="auto is a bar at a terminal and none otherwise",
    )
    group.add_argument(
        "--log-format",
        choices=("console", "json"),
        help="without it: lines for people at a terminal, JSON otherwise",
    )
    group.add_argument(
        "--stats", metavar="FILE.json", type=new_file, help="one JSON object about the run"
    )
