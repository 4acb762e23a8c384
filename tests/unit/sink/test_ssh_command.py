"""How ssh is called."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.config.targets import NetSettings, SshSettings
from pipeline.errors import SinkError
from stages.sink.ssh_command import fast_first, has_aes, remote, ssh_argv, subsystem
from stages.sink.ssh_url import parse_ssh_url

TARGET = parse_ssh_url("sftp://me@host:2222/a")


def options(argv: list[str]) -> dict[str, str]:
    given = [value.partition("=") for flag, value in pairwise(argv) if flag == "-o"]
    return {name: value for name, _, value in given}


@pytest.mark.anyio
async def test_ssh_never_asks_and_never_trusts() -> None:
    """Whatever the configuration says: no prompt, no unknown host, no forwarding."""
    ssh = SshSettings(config="/c", identity="/k", known_hosts="/h", ciphers="configured")
    argv = await ssh_argv(TARGET, ssh, NetSettings(connect_timeout_s=2.5, stall_timeout_s=30))
    given = options(argv)
    assert given["BatchMode"] == given["StrictHostKeyChecking"] == "yes"
    assert given["ClearAllForwardings"] == "yes"
    assert given["ConnectTimeout"] == "3"
    assert int(given["ServerAliveInterval"]) * int(given["ServerAliveCountMax"]) == 30
    assert given["UserKnownHostsFile"] == '"/h"'
    assert "-a" in argv
    assert argv[argv.index("-p") + 1] == "2222"
    assert argv[argv.index("-l") + 1] == "me"
    assert argv[argv.index("-i") + 1] == "/k"
    assert subsystem(argv, TARGET)[-4:] == ["-s", "--", "host", "sftp"]
    assert remote(argv, TARGET, "true")[-3:] == ["--", "host", "true"]


@pytest.mark.anyio
async def test_a_configuration_that_ssh_refuses_is_named(tmp_path: Path) -> None:
    """ssh's own words reach the user."""
    program = tmp_path / "ssh"
    program.write_text("#!/bin/sh\necho 'c: line 1: Bad configuration option: xyz' >&2; exit 255\n")
    program.chmod(0o755)
    if not has_aes():
        pytest.skip("the configuration is only asked for where the processor has AES")
    with pytest.raises(SinkError, match="Bad configuration option: xyz"):
        await ssh_argv(TARGET, SshSettings(program=str(program)), NetSettings())


@pytest.mark.parametrize(
    ("configured", "wanted"),
    [
        (
            ["chacha20-poly1305@openssh.com", "aes128-ctr", "aes128-gcm@openssh.com"],
            ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes128-ctr"],
        ),
        (
            ["aes256-gcm@openssh.com", "aes128-gcm@openssh.com"],
            ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"],
        ),
        (["chacha20-poly1305@openssh.com"], []),
        ([], []),
    ],
)
def test_fast_ciphers_come_first_and_none_is_added(
    configured: list[str], wanted: list[str]
) -> None:
    """A policy that leaves a cipher out stays in force."""
    assert fast_first(configured) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("processor\t: 0\nflags\t\t: fpu aes sse\n", True),
        ("processor\t: 0\nflags\t\t: fpu vaes sse\n", False),
        ("Features\t: fp asimd aes\n", True),
        ("nothing of the kind\n", False),
    ],
)
def test_the_processor_is_asked_for_aes(tmp_path: Path, text: str, wanted: bool) -> None:
    """x86 says flags, ARM says Features."""
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert has_aes(path) is wanted
    assert has_aes(tmp_path / "none") is False
