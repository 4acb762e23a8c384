"""The command line against the settings it stands for."""

from __future__ import annotations

import argparse
from typing import get_args

import pytest

from pipeline.config import dump_arguments, settings
from pipeline.config.arguments import make_parser
from pipeline.config.dump_arguments import given_settings
from pipeline.config.layers import Layer, stack
from pipeline.config.request import DumpRequest


def parse(*words: str) -> argparse.Namespace:
    return make_parser().parse_args(words)


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands in `parser`, in the order of its help."""
    actions = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    return dict(actions[0].choices)


def choices(option: str) -> tuple[str, ...]:
    dump = commands(make_parser())["dump"]
    return tuple(dump._option_string_actions[option].choices or ())


class TestOneCommand:
    @pytest.mark.parametrize("name", commands(make_parser()))
    def test_alone_as_among_all(self, name: str) -> None:
        """A parser for one command has it as the parser for all of them does, and no other."""
        alone, among_all = commands(make_parser(name)), commands(make_parser())

        assert [*alone] == [name]
        assert alone[name].format_help() == among_all[name].format_help()

    @pytest.mark.parametrize("word", [None, "--help", "dmup", ""])
    def test_no_command(self, word: str | None) -> None:
        """What is no command gets all of them, for its help or its error."""
        assert [*commands(make_parser(word))] == [*commands(make_parser())]


class TestDump:
    def test_every_option_becomes_its_setting(self) -> None:
        """All options of the contract, in any order around the operands, end up in settings."""
        line = (
            "dump -d 17 --compress lzo --compress-level 3 SRC --format elf --flatten -f "
            "--on-read-error skip --progress json --log-format json --stats s.json DST"
        )
        parsed = parse(*line.split())

        layers = [Layer(each.option, {each.key: each.value}) for each in given_settings(parsed)]
        loaded = stack(layers)
        got = loaded.settings

        assert (parsed.source, parsed.target) == ("SRC", "DST")
        assert (got.dump.level, got.dump.format, got.dump.flatten) == (17, "elf", True)
        assert got.dump.overwrite
        assert (got.compressor.codec, got.compressor.level) == ("lzo", 3)
        assert got.reader.on_read_error == "skip"
        assert (got.run.progress, got.run.log_format) == ("json", "json")
        assert got.run.stats == "s.json"
        assert loaded.origin("compressor.codec") == "--compress"

    def test_absent_options_set_nothing(self) -> None:
        """An option that was not given covers no layer below."""
        assert list(given_settings(parse("dump", "a", "b"))) == []

    def test_repeatable_set(self) -> None:
        """--set may come any number of times, in order."""
        parsed = parse("dump", "--set", "a.b=1", "x", "--set", "a.b=2", "y")

        assert parsed.sets == ["a.b=1", "a.b=2"]

    @pytest.mark.parametrize("level", ["0", "1", "31", "07"])
    def test_levels(self, level: str) -> None:
        """Decimal numbers from 0 to 31."""
        assert parse("dump", f"-d{level}", "a", "b").level == int(level)

    @pytest.mark.parametrize(
        "level", ["32", "-1", "+1", "0x1f", "31x", " 31", "1,31", "", "3.0", "1_0", "٣١", "999"]
    )
    def test_what_is_no_level(self, level: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Anything else is wrong usage, never the number that happens to come first."""
        with pytest.raises(SystemExit) as caught:
            parse("dump", "-d", level, "a", "b")

        assert caught.value.code == 2
        assert "not a number from 0 to 31" in capsys.readouterr().err

    def test_choices_are_those_of_the_settings(self) -> None:
        """What argparse lets through is what the settings take."""
        assert choices("--compress") == get_args(settings.Codec)
        assert choices("--progress") == get_args(settings.ProgressMode)
        assert choices("--on-read-error") == get_args(settings.ReadErrorPolicy)
        assert {*choices("--log-format"), "auto"} == {*get_args(settings.LogFormat)}
        stack([Layer("most", {"compressor.level": dump_arguments.MAX_CODEC_LEVEL})])
        stack([Layer("most", {"dump.level": dump_arguments.MAX_DUMP_LEVEL})])

    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["dump"],
            ["dump", "a"],
            ["dump", "--encrypt-to"],
            ["dump", "--compr", "lzo", "a", "b"],
            ["dump", "--compress", "xz", "a", "b"],
            ["dump", "--compress-level", "23", "a", "b"],
            ["dmup", "a", "b"],
        ],
    )
    def test_wrong_usage(self, words: list[str]) -> None:
        """Missing, surplus, abbreviated and unknown words end with code 2."""
        with pytest.raises(SystemExit) as caught:
            parse(*words)

        assert caught.value.code == 2


class TestOthers:
    def test_virtual_addresses(self) -> None:
        """Any number of them, as text: what an address is, the command itself decides."""
        assert parse("translate", "img", "ffff", "0xFF").vaddrs == ["ffff", "0xFF"]

    def test_plan_takes_what_dump_takes(self) -> None:
        """Any dump command line is one for plan, which adds --json."""
        parsed = parse("plan", "-d", "31", "--flatten", "--json", "a", "b")

        assert parsed.json
        assert [each.key for each in given_settings(parsed)] == ["dump.level", "dump.flatten"]


@pytest.mark.parametrize(
    ("target", "is_stream"),
    [
        ("-", True),
        ("ssh://host/x", True),
        ("tcp://host:9", False),
        ("https://host/x", False),
        ("sftp://host/x", False),
        ("s3://bucket/x", False),
        ("dump", False),
        ("./-", False),
    ],
)
def test_targets_that_are_streams(target: str, is_stream: bool) -> None:
    """Bytes in order only: pipes, and a command at the other end of ssh."""
    assert DumpRequest("src", target).is_stream is is_stream
