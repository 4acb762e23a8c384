"""Targets that exist, can't exist, or are something else than a file."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import SinkError
from stages.demo.build import DemoFacts
from stages.sink.partial_file import PartialFile
from tests.robust.running import QUICK, SLOW, call, finish, left_in, run, started, wait_until

OLD = b"a dump of last week"


def is_dump(path: Path) -> bool:
    return path.read_bytes()[:8] == b"KDUMP   "


class TestExistingFile:
    def test_is_refused(self, demo: DemoFacts, target: Path) -> None:
        """Without -f a dump is never replaced."""
        target.write_bytes(OLD)

        run("dump", demo.path, target).failed(1, f"{target}: exists; -f overwrites it")

        assert target.read_bytes() == OLD
        assert left_in(target.parent) == ["dump"]

    def test_is_replaced_on_demand(self, demo: DemoFacts, target: Path) -> None:
        """With -f it is, by a file of our own that nobody else may read."""
        target.write_bytes(OLD)
        target.chmod(0o644)

        run("dump", "-f", demo.path, target).succeeded()

        assert is_dump(target)
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert left_in(target.parent) == ["dump"]

    def test_stays_when_the_new_dump_fails(self, spoilt: Path, target: Path) -> None:
        """-f replaces a dump by a dump, not by nothing."""
        target.write_bytes(OLD)
        os.truncate(spoilt, 5000)

        call("dump", *QUICK, "-f", spoilt, target).failed(1)

        assert target.read_bytes() == OLD
        assert left_in(target.parent) == ["dump"]

    def test_nobody_else_may_read_the_new_one(self, demo: DemoFacts, target: Path) -> None:
        """0600 whatever the umask says, from the first moment on."""
        before = os.umask(0)
        try:
            with started("dump", *SLOW, demo.path, target) as running:
                partial = target.with_name("dump.partial")
                wait_until(partial.exists, "the partial file")
                seen = stat.S_IMODE(partial.stat().st_mode)
                running.kill()
        finally:
            os.umask(before)

        assert seen == 0o600


class TestPartialFileOfAnEarlierRun:
    def test_is_refused(self, demo: DemoFacts, target: Path) -> None:
        """What an earlier run left may be all there is of a crash."""
        partial = target.with_name("dump.partial")
        partial.write_bytes(OLD)

        run("dump", demo.path, target).failed(1, f"{partial}: exists; -f overwrites it")

        assert partial.read_bytes() == OLD
        assert left_in(target.parent) == ["dump.partial"]

    @pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
    def test_is_replaced_on_demand(
        self, kind: str, demo: DemoFacts, target: Path, tmp_path: Path
    ) -> None:
        """With -f it goes away; a link is not followed."""
        partial = target.with_name("dump.partial")
        other = tmp_path / "other"
        if kind == "file":
            partial.write_bytes(OLD)
        else:
            partial.symlink_to(other)
        if kind == "link":
            other.write_bytes(OLD)

        call("dump", *QUICK, "-f", demo.path, target).succeeded()

        assert is_dump(target)
        assert not target.is_symlink()
        assert left_in(target.parent) == ["dump"]
        assert (other.read_bytes() if kind == "link" else OLD) == OLD
        assert other.exists() == (kind == "link")


class TestSource:
    def test_as_target(self, spoilt: Path) -> None:
        """-f must not replace the image by a part of it."""
        size = spoilt.stat().st_size

        run("dump", "-f", spoilt, spoilt).failed(2, "would replace the source")

        assert spoilt.stat().st_size == size

    def test_as_target_by_another_name(self, spoilt: Path, target: Path) -> None:
        """A link to the image is the image."""
        target.symlink_to(spoilt)

        call("dump", *QUICK, "-f", spoilt, target).failed(2, "would replace the source")

    def test_as_partial_file(self, spoilt: Path) -> None:
        """Filtering again what an earlier run left under NAME.partial must not destroy it."""
        left = spoilt.rename(spoilt.with_name("dump.partial"))
        size = left.stat().st_size

        call("dump", *QUICK, "-f", left, spoilt.with_name("dump")).failed(2, "replace the source")

        assert left.stat().st_size == size


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # names of sockets must be short
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


class TestOtherKinds:
    @pytest.mark.parametrize("force", [(), ("-f",)])
    @pytest.mark.parametrize("name", ["dump", "dump.partial"])
    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (Path.mkdir, "is a directory"),
            (os.mkfifo, "is no regular file"),
            (make_socket, "is no regular file"),
        ],
    )
    def test_are_never_replaced(
        self,
        make: Callable[[Path], None],
        said: str,
        name: str,
        force: tuple[str, ...],
        demo: DemoFacts,
        target: Path,
    ) -> None:
        """A directory, pipe or socket in the way stays, with -f too, and is not waited for."""
        taken = target.with_name(name)
        make(taken)
        mode = taken.lstat().st_mode

        call("dump", *QUICK, *force, demo.path, target).failed(1, f"{taken}: {said}")

        assert taken.lstat().st_mode == mode
        assert left_in(target.parent) == [name]

    @pytest.mark.parametrize("force", [(), ("-f",)])
    def test_device(self, force: tuple[str, ...], demo: DemoFacts, target: Path) -> None:
        """A device stays a device; what can be done instead is said."""
        device = Path("/dev/null")
        if os.geteuid() == 0:  # who could replace the machine's own
            device = target
            os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))

        call("dump", *QUICK, *force, demo.path, device).failed(
            1, f"{device}: is no regular file; the dump on standard output can go there"
        )

        assert stat.S_ISCHR(device.stat().st_mode)

    def test_link_to_a_directory(self, demo: DemoFacts, target: Path) -> None:
        """It counts as the directory that it leads to."""
        target.symlink_to(target.parent)

        call("dump", *QUICK, "-f", demo.path, target).failed(1, f"{target}: is a directory")

    def test_link_to_a_file(self, demo: DemoFacts, target: Path, tmp_path: Path) -> None:
        """-f replaces the link, as mv does, and leaves alone what it leads to."""
        other = tmp_path / "other"
        other.write_bytes(OLD)
        target.symlink_to(other)

        call("dump", *QUICK, demo.path, target).failed(1, "exists")
        call("dump", *QUICK, "-f", demo.path, target).succeeded()

        assert is_dump(target)
        assert not target.is_symlink()
        assert other.read_bytes() == OLD


NO_NAMES = ["", "/", "dir/", ".", "..", "new/."]


@pytest.mark.parametrize("name", NO_NAMES)
def test_no_name_of_a_file(name: str, demo: DemoFacts, target: Path) -> None:
    """A directory, or nothing at all, is no place for a dump."""
    done = call("dump", *QUICK, demo.path, f"{target}/{name}" if name else "")

    assert done.code in (1, 2)
    assert done.error
    assert left_in(target.parent) == []


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("none/dump", "No such file or directory (is the directory there?)"),
        ("file/dump", "Not a directory"),
        ("x" * 252, "File name too long"),
        ("x" * 300, "File name too long"),
    ],
)
def test_no_directory(inside: str, said: str, demo: DemoFacts, target: Path) -> None:
    """Found out before the image is read; the line names the file that could not be made."""
    (target.parent / "file").write_bytes(OLD)

    call("dump", *QUICK, demo.path, target.parent / inside).failed(1, inside, said)

    assert left_in(target.parent) == ["file"]


class TestRaces:
    def test_somebody_else_takes_the_name(self, demo: DemoFacts, target: Path) -> None:
        """A file that appears under the name meanwhile is not replaced; the dump is kept."""
        with started("dump", *SLOW, "--compress-level", "12", demo.path, target) as running:
            wait_until(target.with_name("dump.partial").exists, "the partial file")
            target.write_bytes(OLD)
            done = finish(running)

        done.failed(3, f"{target}: appeared while the dump was written", f"{target}.partial")
        assert target.read_bytes() == OLD
        assert call("verify", f"{target}.partial", "--against", demo.path).code == 0

    def test_somebody_else_removes_the_partial_file(self, demo: DemoFacts, target: Path) -> None:
        """Without its name there is no dump to commit, and none is promised."""
        with started("dump", *SLOW, "--compress-level", "12", demo.path, target) as running:
            partial = target.with_name("dump.partial")
            wait_until(partial.exists, "the partial file")
            partial.unlink()
            done = finish(running)

        done.failed(1, f"{partial}: was removed or replaced while it was written")
        assert left_in(target.parent) == []

    def test_two_runs_with_force(self, target: Path) -> None:
        """The second takes the name over; the first must not commit the second's file."""
        first, second = (PartialFile(str(target), overwrite=True, fsync=False) for _ in range(2))
        first.claim()
        second.claim()

        with pytest.raises(SinkError, match="was removed or replaced"):
            first.commit()
        assert not first.keep()
        second.commit()

        assert left_in(target.parent) == ["dump"]


@pytest.mark.parametrize("name", ["vmcore", "dump.kdump"])
def test_demo_replaces_nothing(name: str, tmp_path: Path) -> None:
    """Where the demo is sent there may be a real vmcore."""
    (tmp_path / name).write_bytes(OLD)

    run("demo", "--directory", tmp_path).failed(2, f"{tmp_path / name}: exists; the demo replaces")

    assert (tmp_path / name).read_bytes() == OLD
    assert left_in(tmp_path) == [name]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_directory(demo: DemoFacts, target: Path) -> None:
    """A directory that may not be written to is named before the image is read."""
    target.parent.chmod(0o500)
    try:
        call("dump", *QUICK, demo.path, target).failed(1, f"{target}.partial: Permission denied")
    finally:
        target.parent.chmod(0o700)
