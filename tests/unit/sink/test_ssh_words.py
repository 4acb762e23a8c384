"""What ssh's last words are taken for."""

from __future__ import annotations

import pytest

from stages.sink.ssh_process import LostConnectionError
from stages.sink.ssh_words import failure

CHANGED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
Offending ED25519 key in /home/me/.ssh/known_hosts:12
Host key for host has changed and you have requested strict checking.
Host key verification failed.
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("ssh: connect to host h port 22: Connection refused\n", 255),
        ("ssh: connect to host h port 22: Connection timed out\n", 255),
        ("kex_exchange_identification: Connection closed by remote host\n", 255),
        ("Timeout, server 10.0.0.1 not responding.\n", 255),
        ("Corrupted MAC on input.\n", 255),
        ("ssh: Could not resolve hostname h: Temporary failure in name resolution\n", 255),
        ("", 255),
        ("", None),
        ("", -9),
        ("", 0),
    ],
)
def test_what_may_pass_is_tried_again(words: str, code: int | None) -> None:
    """Networks and servers come back; a killed ssh can be started again."""
    assert isinstance(failure("sftp://h/a", code, words), LostConnectionError)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (CHANGED, 255, "has changed since it was recorded in /home/me/.ssh/known_hosts:12"),
        (
            "No ED25519 host key is known for h\nHost key verification failed.\n",
            255,
            "add it to known_hosts (No ED25519 host key is known for h)",
        ),
        ("me@h: Permission denied (publickey,password).\n", 255, "refused every key"),
        ("cat: write error: No space left on device\n", 1, "No space left on device"),
        ("", 127, "exit code 127"),
    ],
)
def test_what_will_not_pass_is_said_in_one_line(words: str, code: int, said: str) -> None:
    """The line names the target and what to do about it."""
    error = failure("sftp://h/a", code, words)
    assert not isinstance(error, LostConnectionError)
    assert str(error).startswith("sftp://h/a: ")
    assert said in str(error)
    assert "\n" not in str(error)


def test_a_server_cannot_write_to_our_terminal() -> None:
    """Control sequences in what the other end says are dropped, and long lines are cut."""
    text = str(failure("t", 1, "\x1b]0;title\x07" + "x" * 5000))
    assert text.isprintable()
    assert len(text) < 300
