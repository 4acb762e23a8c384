"""``sftp://`` and ``ssh://`` URLs."""

from __future__ import annotations

import pytest

from pipeline.errors import UsageError
from stages.sink.ssh_url import SshTarget, parse_ssh_url


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("sftp://host/a/b", SshTarget("sftp", None, "host", None, "/a/b")),
        ("ssh://me@Host:2222/a", SshTarget("ssh", "me", "Host", 2222, "/a")),
        ("sftp://host/~/dumps/a", SshTarget("sftp", None, "host", None, "dumps/a")),
        ("sftp://[fe80::1%25eth0]:22/a", SshTarget("sftp", None, "fe80::1%25eth0", 22, "/a")),
        ("sftp://me%40corp@host/a%20b%3F", SshTarget("sftp", "me@corp", "host", None, "/a b?")),
    ],
)
def test_parts_are_taken_apart(url: str, wanted: SshTarget) -> None:
    """User, host, port and path; what is absent is left to the OpenSSH configuration."""
    assert parse_ssh_url(url) == wanted


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sftp://me:secret@host/a", "a password must not stand in a URL"),
        ("sftp://-oProxyCommand=x/a", "is not a host"),
        ("sftp://ho st/a", "is not a host"),
        ("sftp:///a", "is not a host"),
        ("sftp://-l@host/a", "is not a user"),
        ("sftp://%20@host/a", "is not a user"),
        ("sftp://host:0x16/a", "[Pp]ort"),
        ("sftp://host:99999/a", "[Pp]ort"),
        ("sftp://host", "names no file"),
        ("sftp://host/dir/", "names no file"),
        ("sftp://host/..", "names no file"),
        ("sftp://host/~", "names no file"),
        ("sftp://host/a?b", "%3F"),
        ("sftp://host/a%00b", "control characters"),
        ("sftp://host/a%0Ab", "control characters"),
    ],
)
def test_odd_targets_are_refused(url: str, problem: str) -> None:
    """What ssh or a shell could take for something else never gets there, nor into a message."""
    with pytest.raises(UsageError, match=problem) as caught:
        parse_ssh_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["sftp://me@host:22/a/b", "ssh://host/~/a", "sftp://[::1]/a"])
def test_a_target_is_shown_as_it_was_written(url: str) -> None:
    """Messages name what the user named."""
    assert parse_ssh_url(url).show() == url
