"""`decrypt`: whole dumps come out, everything else is one clear line and no file."""

from __future__ import annotations

from pathlib import Path

import anyio
import pyrage
import pytest

from stages.crypt.age_header import MAX_HEADER, header_size
from stages.crypt.commands import run_decrypt, run_keygen
from stages.crypt.decrypt import decrypt_file
from stages.crypt.errors import DecryptError, KeyFormatError
from stages.crypt.keys import Identity, new_identity, parse_recipients
from stages.crypt.payload import SEALED, DumpKey
from stages.formats.flattened import HEADER
from stages.sink.partial_file import PartialFile
from tests.support.chunk_stream import ChunkStream
from tests.unit.crypt.collect import encrypted

DATA_BYTES = 500_000


@pytest.fixture(scope="module")
def identity() -> Identity:
    return new_identity()


@pytest.fixture
def sealed(identity: Identity, tmp_path: Path) -> Path:
    """An encrypted dump on disk."""
    key = DumpKey([identity.recipient], bytes(32))
    sink = anyio.run(encrypted, ChunkStream(DATA_BYTES), key)
    path = tmp_path / "dump.age"
    path.write_bytes(sink.file())
    return path


def decrypt(path: Path, *identities: Identity) -> bytes:
    """The plain dump, through the real command's function."""
    target = path.with_name("plain")
    decrypt_file(path, PartialFile(str(target), overwrite=False, fsync=False), identities)
    return target.read_bytes()


def refused(path: Path, *identities: Identity) -> str:
    """The one line that says why not; nothing is left behind."""
    with pytest.raises(DecryptError) as caught:
        decrypt(path, *identities)
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def test_round_trip(sealed: Path, identity: Identity) -> None:
    """What was encrypted comes back; the right key may be any of several."""
    assert decrypt(sealed, new_identity(), identity) == ChunkStream(DATA_BYTES).expected()


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 131_072, 200_000])
def test_opens_what_age_writes(tmp_path: Path, identity: Identity, size: int) -> None:
    """Files of age itself, at all kinds of lengths, are opened too."""
    plain = bytes(range(256)) * (size // 256) + bytes(size % 256)
    recipient = pyrage.x25519.Recipient.from_str(str(identity.recipient))
    path = tmp_path / "theirs.age"
    path.write_bytes(pyrage.encrypt(plain, [recipient]))

    assert decrypt(path, identity) == plain


def test_wrong_key(sealed: Path) -> None:
    """A stranger's key is told apart from damage."""
    assert "tried 1 key, none fits" in refused(sealed, new_identity())


@pytest.mark.parametrize("at", [-1, -5_000, -SEALED, -2 * SEALED, 400, 5_000, 90_000])
def test_changed_byte(sealed: Path, identity: Identity, at: int) -> None:
    """Any changed byte of the payload is noticed, and the block named."""
    data = bytearray(sealed.read_bytes())
    data[at] ^= 1
    sealed.write_bytes(data)

    assert "changed or " in refused(sealed, identity)


def test_changed_head(sealed: Path, identity: Identity) -> None:
    """Every byte of the head is covered by a checksum of one kind or another."""
    whole = sealed.read_bytes()
    size = header_size(whole[:4096])
    assert size is not None
    for at in range(size):
        data = bytearray(whole)
        data[at] ^= 1
        sealed.write_bytes(data)
        refused(sealed, identity)


@pytest.mark.parametrize("n_bytes", [1, 100, 5_000, SEALED, 3 * SEALED])
def test_truncated(sealed: Path, identity: Identity, n_bytes: int) -> None:
    """A file that was cut is refused, at the end of a block too."""
    data = sealed.read_bytes()
    sealed.write_bytes(data[:-n_bytes])

    assert "cut" in refused(sealed, identity)


def test_truncated_at_a_block(sealed: Path, identity: Identity) -> None:
    """Whole blocks are not enough: the last one must say that it is the last."""
    data = sealed.read_bytes()
    start = len(DumpKey([identity.recipient], bytes(32)).prefix())
    sealed.write_bytes(data[: start + 3 * SEALED])

    assert "its end is missing" in refused(sealed, identity)


def test_swapped_blocks(sealed: Path, identity: Identity) -> None:
    """Blocks are sealed for their place."""
    data = sealed.read_bytes()
    start = len(DumpKey([identity.recipient], bytes(32)).prefix())
    first, second = data[start : start + SEALED], data[start + SEALED : start + 2 * SEALED]
    sealed.write_bytes(data[:start] + second + first + data[start + 2 * SEALED :])

    assert "block 0" in refused(sealed, identity)


def test_appended_bytes(sealed: Path, identity: Identity) -> None:
    """Bytes after the last block are refused."""
    with sealed.open("ab") as file:
        file.write(bytes(SEALED))

    assert "changed" in refused(sealed, identity)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "cut"),
        (b"age-encryption.org/v1\n", "cut"),
        (b"KDUMP   " + bytes(5000), "not encrypted"),
        (b"age-encryption.org/v2\n-> X", "not encrypted"),
        (b"age-encryption.org/v1\n" + b"x" * 2 * MAX_HEADER, "no end of the head"),
        (b"age-encryption.org/v1\n--- AAAA\n", "not as age writes it"),
        (HEADER + bytes(100), "flattened"),
    ],
)
def test_other_files(tmp_path: Path, identity: Identity, content: bytes, wanted: str) -> None:
    """What is no encrypted dump is called what it is."""
    path = tmp_path / "other"
    path.write_bytes(content)

    assert wanted in refused(path, identity)


class TestCommands:
    def test_keygen_then_decrypt(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """keygen's file opens what age encrypts to the key that keygen printed."""
        keys = tmp_path / "keys"
        assert run_keygen(str(keys)) == 0
        spelt = capsys.readouterr().out.strip()
        recipient = pyrage.x25519.Recipient.from_str(spelt)
        (tmp_path / "in").write_bytes(pyrage.encrypt(b"a dump", [recipient]))

        run_decrypt(str(tmp_path / "in"), str(tmp_path / "out"), str(keys))

        assert (tmp_path / "out").read_bytes() == b"a dump"
        assert keys.stat().st_mode & 0o777 == 0o600

    def test_keygen_keeps_an_existing_file(self, tmp_path: Path) -> None:
        """A key is never overwritten: what was encrypted to it would be lost."""
        keys = tmp_path / "keys"
        keys.write_text("precious")
        with pytest.raises(KeyFormatError, match="File exists"):
            run_keygen(str(keys))
        assert keys.read_text() == "precious"


class TestKeys:
    def test_recipients_from_a_file(self, tmp_path: Path) -> None:
        """``@FILE`` holds one key a line, with comments; a key named twice counts once."""
        keys = [new_identity().recipient for _ in range(3)]
        path = tmp_path / "recipients"
        path.write_text(f"# ours\n{keys[0]}\n\n  {keys[1]}  \n")

        assert parse_recipients([f"@{path}", str(keys[2]), str(keys[0])]) == keys

    def test_age_spells_keys_like_we_do(self) -> None:
        """Public and secret keys are what age makes of the same bytes."""
        identity = new_identity()
        oracle = pyrage.x25519.Identity.from_str(identity.spelt())

        assert str(oracle.to_public()) == str(identity.recipient)

    def test_secret_key_is_refused_and_not_repeated(self) -> None:
        """A secret given where a public key belongs must not end up in a log."""
        secret = new_identity().spelt()
        with pytest.raises(KeyFormatError) as caught:
            parse_recipients([secret])
        assert "secret key" in str(caught.value)
        assert secret not in str(caught.value)

    def test_secrets_do_not_show_in_repr(self) -> None:
        """Tracebacks with locals show no key."""
        identity = new_identity()
        key = DumpKey([identity.recipient], b"S" * 32)
        assert repr(identity.secret) not in repr(identity)
        assert "SSSS" not in repr(key)

    @pytest.mark.parametrize(
        "text",
        ["", "age1", "age1qqqq", "ssh-ed25519 AAAA", "age1" + "q" * 9000, "age1\u00e9", "@"],
    )
    def test_bad_recipients(self, text: str) -> None:
        """What is no key is refused."""
        with pytest.raises(KeyFormatError):
            parse_recipients([text])

    def test_mistyped_letter_is_noticed(self) -> None:
        """The checksum finds any single wrong letter."""
        spelt = str(new_identity().recipient)
        for at in range(4, len(spelt)):
            wrong = spelt[:at] + ("q" if spelt[at] != "q" else "p") + spelt[at + 1 :]
            with pytest.raises(KeyFormatError, match="mistyped"):
                parse_recipients([wrong])
