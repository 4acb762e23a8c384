"""``http(s)://`` targets and who we are to them."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from pipeline.errors import SinkError, UsageError
from stages.sink.http_auth import authorization
from stages.sink.http_url import parse_http_url

TARGET = parse_http_url("https://dumps.example/a")


def test_neighbours_have_the_dump_s_name_and_a_suffix() -> None:
    """The query goes to every neighbour and into no message."""
    target = parse_http_url("https://me@Dumps.Example:8443/a/b%20c?sig=secret")
    assert target.url(".partial") == "https://dumps.example:8443/a/b%20c.partial?sig=secret"
    assert target.show(".partial") == "https://dumps.example:8443/a/b%20c.partial"
    assert (target.name, target.host, target.user) == ("b c", "dumps.example", "me")
    assert parse_http_url("http://[::1]:80/a").url() == "http://[::1]:80/a"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https://me:secret@h/a", "a password must not stand in a URL"),
        ("https://h/", "names no file"),
        ("https://h", "names no file"),
        ("https://h/..", "names no file"),
        ("https:///a", "wanted https://host/path"),
        ("https://h/a b", "without spaces"),
        ("https://h/a\r\nX: y", "without spaces"),
        ("https://h/a#b", "%23"),
        ("https://h:x/a", "[Pp]ort"),
    ],
)
def test_odd_targets_are_refused(url: str, problem: str) -> None:
    """In one line, without what may be secret."""
    with pytest.raises(UsageError, match=problem) as caught:
        parse_http_url(url)
    assert "secret" not in str(caught.value)


def test_a_token_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    """The variable goes before the setting, the setting before the variable that names a file."""
    (tmp_path / "one").write_text("file-one\n")
    (tmp_path / "two").write_text("file-two\n")
    both = {"DUMPSTREAM_HTTP_TOKEN": "plain", "DUMPSTREAM_HTTP_TOKEN_FILE": str(tmp_path / "two")}
    named = str(tmp_path / "one")
    found = authorization(TARGET, both, token_file=named, netrc_file=None)
    assert found == {"authorization": "Bearer plain"}
    del both["DUMPSTREAM_HTTP_TOKEN"]
    found = authorization(TARGET, both, token_file=named, netrc_file=None)
    assert found == {"authorization": "Bearer file-one"}
    found = authorization(TARGET, both, token_file=None, netrc_file=None)
    assert found == {"authorization": "Bearer file-two"}


def test_a_user_and_password_come_from_netrc(tmp_path: Path) -> None:
    """By host, and by user where the URL names one; nothing found is no header."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine dumps.example login me password hush\n")
    netrc.chmod(0o600)
    home = {"HOME": str(tmp_path)}
    pair = base64.b64encode(b"me:hush").decode()
    wanted = {"authorization": f"Basic {pair}"}
    assert authorization(TARGET, home, token_file=None, netrc_file=None) == wanted
    mine = parse_http_url("https://me@dumps.example/a")
    assert authorization(mine, home, token_file=None, netrc_file=None) == wanted
    other = parse_http_url("https://you@dumps.example/a")
    assert authorization(other, home, token_file=None, netrc_file=None) == {}
    elsewhere = parse_http_url("https://other.example/a")
    assert authorization(elsewhere, home, token_file=None, netrc_file=None) == {}
    assert authorization(TARGET, {"HOME": "/none"}, token_file=None, netrc_file=None) == {}


@pytest.mark.parametrize("text", ["", " ", "two words", "sec\x01ret", "gehäim"])
def test_a_file_without_a_token_is_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    """What is in the file stays there."""
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(SinkError, match="holds no token") as caught:
        authorization(TARGET, {}, token_file=str(path), netrc_file=None)
    assert len(text.strip()) < 2 or text.strip() not in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """Missing, or not in their format: one line with the file and never its content."""
    with pytest.raises(SinkError, match="none: the token cannot be read: No such file"):
        authorization(TARGET, {}, token_file=str(tmp_path / "none"), netrc_file=None)
    with pytest.raises(SinkError, match="none: cannot be read: No such file"):
        authorization(TARGET, {}, token_file=None, netrc_file=str(tmp_path / "none"))
    bad = tmp_path / "bad"
    bad.write_text("machine h login me passwort hush\n")
    with pytest.raises(SinkError, match="line 1: is not netrc") as caught:
        authorization(TARGET, {}, token_file=None, netrc_file=str(bad))
    assert "hush" not in str(caught.value)
