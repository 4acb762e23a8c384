"""A file under its partial name: private, refused where it must be, renamed when it is whole."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from pipeline.errors import SinkError, UsageError
from stages.sink.partial_file import PartialFile

DATA = b"the dump"


def claimed(path: Path, *, overwrite: bool = False, fsync: bool = False) -> PartialFile:
    file = PartialFile(str(path), overwrite=overwrite, fsync=fsync)
    file.claim()
    return file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestClaim:
    def test_makes_a_private_file_under_the_partial_name(self, tmp_path: Path) -> None:
        """0600 whatever the mask, close-on-exec, and nothing under the final name yet."""
        before = os.umask(0)
        try:
            file = claimed(tmp_path / "dump")
        finally:
            os.umask(before)

        assert names(tmp_path) == ["dump.partial"]
        assert stat.S_IMODE(file.partial.stat().st_mode) == 0o600
        assert not os.get_inheritable(file.fd)
        file.discard()

    @pytest.mark.parametrize("mask", [0o777, 0o077, 0o277])
    def test_mask_takes_nothing_away(self, mask: int, tmp_path: Path) -> None:
        """The owner can read what he has dumped."""
        before = os.umask(mask)
        try:
            file = claimed(tmp_path / "dump")
        finally:
            os.umask(before)

        assert stat.S_IMODE(file.partial.stat().st_mode) == 0o600
        file.discard()

    @pytest.mark.parametrize("name", ["dump", "dump.partial"])
    def test_refuses_what_is_there(self, name: str, tmp_path: Path) -> None:
        """Either name, and even a link that leads nowhere."""
        (tmp_path / name).symlink_to("nowhere")

        with pytest.raises(SinkError, match=f"{name}: exists; -f overwrites it"):
            claimed(tmp_path / "dump")

        assert names(tmp_path) == [name]

    def test_does_not_write_into_an_old_partial_file(self, tmp_path: Path) -> None:
        """Somebody may have it open: with overwrite it is replaced by a file of our own."""
        old = tmp_path / "dump.partial"
        old.write_bytes(b"old")
        with old.open("rb") as reader:
            file = claimed(tmp_path / "dump", overwrite=True)
            os.pwrite(file.fd, DATA, 0)

            assert reader.read() == b"old"
        file.discard()

    @pytest.mark.parametrize("path", ["", "/", "a/", "a/.", "a/..", "."])
    def test_no_name(self, path: str) -> None:
        """What can't be the name of a file is wrong usage."""
        with pytest.raises(UsageError, match="is not the name of a file"):
            PartialFile(path, overwrite=True, fsync=False)


def test_file_that_cannot_be_made_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of it."""

    def refuse(fd: int, mode: int) -> None:
        raise PermissionError(errno.EPERM, "")

    monkeypatch.setattr(os, "fchmod", refuse)

    with pytest.raises(SinkError, match="not permitted"):
        claimed(tmp_path / "dump")

    assert names(tmp_path) == []


class TestCommit:
    @pytest.mark.parametrize("fsync", [True, False])
    def test_gives_the_name(self, fsync: bool, tmp_path: Path) -> None:
        """The file is there under its own name, and under no other."""
        file = claimed(tmp_path / "dump", fsync=fsync)
        os.pwrite(file.fd, DATA, 0)
        file.sync()
        file.commit()

        assert names(tmp_path) == ["dump"]
        assert (tmp_path / "dump").read_bytes() == DATA
        assert (tmp_path / "dump").stat().st_nlink == 1
        assert file.fd == -1

    def test_replaces_with_overwrite(self, tmp_path: Path) -> None:
        """In one step: at no moment there is neither the old file nor the new one."""
        (tmp_path / "dump").write_bytes(b"old")
        file = claimed(tmp_path / "dump", overwrite=True)
        os.pwrite(file.fd, DATA, 0)
        assert (tmp_path / "dump").read_bytes() == b"old"

        file.commit()

        assert (tmp_path / "dump").read_bytes() == DATA
        assert names(tmp_path) == ["dump"]

    @pytest.mark.parametrize("has_links", [True, False])
    def test_never_replaces_without(
        self, has_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that appeared meanwhile stays, on file systems without hard links too."""
        if not has_links:
            monkeypatch.setattr(Path, "hardlink_to", refuse_link)
        file = claimed(tmp_path / "dump")
        (tmp_path / "dump").write_bytes(b"other")

        with pytest.raises(SinkError, match="appeared while the dump was written"):
            file.commit()

        assert (tmp_path / "dump").read_bytes() == b"other"
        assert file.keep()
        assert names(tmp_path) == ["dump", "dump.partial"]

    def test_link_that_was_made_all_the_same(self, tmp_path: Path) -> None:
        """NFS may make the link, lose its answer, and refuse the second request: it is ours."""
        file = claimed(tmp_path / "dump")
        os.link(tmp_path / "dump.partial", tmp_path / "dump")

        file.commit()

        assert names(tmp_path) == ["dump"]

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
    def test_directories_that_cannot_be_synced(
        self, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Some file systems do not know how; the dump has its name nevertheless."""
        sync = os.fsync

        def fsync(fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise OSError(number, "")
            sync(fd)

        monkeypatch.setattr(os, "fsync", fsync)
        claimed(tmp_path / "dump", fsync=True).commit()

        assert names(tmp_path) == ["dump"]

    def test_without_hard_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """vfat has none: a rename does."""
        monkeypatch.setattr(Path, "hardlink_to", refuse_link)
        file = claimed(tmp_path / "dump")

        file.commit()

        assert names(tmp_path) == ["dump"]

    def test_reports_a_failing_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error of fsync is the file's, by name."""
        file = claimed(tmp_path / "dump", fsync=True)
        monkeypatch.setattr(os, "fsync", fail_with(errno.EIO))

        with pytest.raises(SinkError, match=r"dump\.partial: Input/output error"):
            file.sync()
        assert file.keep()

    @pytest.mark.parametrize("what", ["removed", "replaced"])
    def test_of_a_file_that_is_gone(self, what: str, tmp_path: Path) -> None:
        """Another run with -f took the name over: its file is not ours to commit or to keep."""
        file = claimed(tmp_path / "dump")
        file.partial.unlink()
        if what == "replaced":
            file.partial.write_bytes(b"other")

        with pytest.raises(SinkError, match="was removed or replaced while it was written"):
            file.commit()

        assert not file.keep()
        assert names(tmp_path) == (["dump.partial"] if what == "replaced" else [])


class TestDiscard:
    def test_removes_what_claim_made(self, tmp_path: Path) -> None:
        """And nothing if it is done twice."""
        file = claimed(tmp_path / "dump")

        file.discard()
        file.discard()

        assert names(tmp_path) == []

    def test_removes_nothing_else(self, tmp_path: Path) -> None:
        """Not what stands under the name by now, and not without a claim."""
        file = claimed(tmp_path / "dump")
        file.partial.unlink()
        file.partial.write_bytes(b"other")

        file.discard()
        PartialFile(str(tmp_path / "dump"), overwrite=True, fsync=False).discard()

        assert file.partial.read_bytes() == b"other"


class TestReserve:
    def test_takes_room(self, tmp_path: Path) -> None:
        """Blocks, not only a size."""
        file = claimed(tmp_path / "dump")

        file.reserve(1 << 20)

        status = file.partial.stat()
        assert status.st_size == 1 << 20
        assert status.st_blocks * 512 >= 1 << 20
        file.discard()

    def test_of_nothing(self, tmp_path: Path) -> None:
        """Is no error."""
        file = claimed(tmp_path / "dump")
        file.reserve(0)
        file.discard()


def refuse_link(_path: Path, _target: Path) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def fail_with(number: int) -> object:
    def fail(_fd: int) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_would_replace(tmp_path: Path) -> None:
    """The same file under either name, whatever it is called."""
    source = tmp_path / "source"
    source.write_bytes(DATA)
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "other.partial").hardlink_to(source)

    def replaces(name: str) -> bool:
        file = PartialFile(str(tmp_path / name), overwrite=True, fsync=False)
        return file.would_replace(str(source))

    assert replaces("source")
    assert replaces("link")
    assert replaces("other")
    assert not replaces("new")
