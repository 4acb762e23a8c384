"""The key of a dump: new for each, the same for a resumed one, another after any change."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import FormatError
from stages.crypt.dump_key import make_dump_key
from stages.crypt.errors import KeyFormatError
from stages.crypt.keys import new_identity
from stages.sink.journal import Journal
from stages.sink.manifest import SourceIdentity

TO = [str(new_identity().recipient)]
SOURCE = SourceIdentity("/proc/vmcore", 1, None, "0" * 64)


def journal(folder: Path, source: SourceIdentity = SOURCE, level: int = 31) -> Journal:
    settings = {"dump.level": level}
    return Journal.create(folder, target="tcp://x", source=source, settings=settings)


def test_every_dump_has_a_key_of_its_own(tmp_path: Path) -> None:
    """Without a journal, and with two of them, nothing is shared."""
    keys = [make_dump_key(TO), make_dump_key(TO)]
    keys += [make_dump_key(TO, journal(tmp_path)), make_dump_key(TO, journal(tmp_path))]

    assert len({key.prefix() for key in keys}) == 4


def test_resumed_upload_has_its_former_key(tmp_path: Path) -> None:
    """The journal gives the same bytes again, after the process that wrote it has died."""
    first = journal(tmp_path)
    key = make_dump_key(TO, first)

    again = make_dump_key(TO, Journal.open(first.path))

    assert again.prefix() == key.prefix()
    assert first.path.stat().st_mode & 0o777 == 0o600


def test_changed_source_or_settings_change_the_key(tmp_path: Path) -> None:
    """Even with the seed of another dump no key stream is used twice."""
    seed = make_dump_key(TO).seed.hex()
    other = SourceIdentity("/proc/vmcore", 2, None, "0" * 64)
    keys = []
    for each in (journal(tmp_path), journal(tmp_path, other), journal(tmp_path, level=1)):
        each.records.append({"kind": "encryption", "seed": seed})
        keys.append(make_dump_key(TO, each))

    assert len({key.prefix() for key in keys}) == 3


@pytest.mark.parametrize("seed", ["", "00", "zz" * 32, None, 5])
def test_damaged_seed_is_refused(tmp_path: Path, seed: object) -> None:
    """A journal whose seed is wrong never leads to a weak key."""
    damaged = journal(tmp_path)
    damaged.records.append({"kind": "encryption", "seed": seed})
    with pytest.raises(FormatError, match="seed"):
        make_dump_key(TO, damaged)


def test_no_recipient(tmp_path: Path) -> None:
    """A file of keys without a key does not mean that nobody should read the dump."""
    path = tmp_path / "keys"
    path.write_text("# nobody yet\n")
    with pytest.raises(KeyFormatError, match="0 recipients"):
        make_dump_key([f"@{path}"])
