"""The checks of `dumpstream doctor`, each over an environment that passes and one that fails."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from pipeline.obs import doctor


def kexec(folder: Path, size: str, loaded: str) -> Path:
    (folder / "kexec_crash_size").write_text(size)
    (folder / "kexec_crash_loaded").write_text(loaded)
    return folder


class TestEnvironment:
    def test_python(self) -> None:
        """3.11 and newer will do; older is named, with what is needed."""
        assert doctor.check_python((3, 11, 0)).status == "ok"
        assert doctor.check_python((4, 0, 0)).status == "ok"
        old = doctor.check_python((3, 10, 12))
        assert (old.status, old.said) == ("fail", "3.10.12, needs 3.11 or newer")

    def test_packages(self) -> None:
        """A needed package that is absent fails; one with a substitute warns and says for what."""
        assert doctor.check_package("msgspec", None).status == "ok"
        assert doctor.check_package("no_such_package", None).status == "fail"
        absent = doctor.check_package("no_such_package", "fast zlib")
        assert (absent.status, absent.said) == ("warn", "not installed; for fast zlib")

    def test_package_without_metadata(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A module that was copied into an image without its metadata is there all the same."""
        (tmp_path / "bare_module.py").touch()
        monkeypatch.syspath_prepend(tmp_path)

        assert doctor.check_package("bare_module", None).status == "ok"

    def test_library(self) -> None:
        """The C library is always there; a made-up one warns with the consequence."""
        assert doctor.check_library("libc.so.6", "nothing works").status == "ok"
        absent = doctor.check_library("libnone.so.0", "lzo is slow")
        assert absent.status == "warn"
        assert "lzo is slow" in absent.said


class TestMachine:
    @pytest.mark.parametrize(
        ("size", "loaded", "status", "said"),
        [
            ("268435456\n", "1\n", "ok", "256.0 MiB reserved, and a kernel is loaded"),
            ("268435456\n", "0\n", "warn", "no kernel is loaded"),
            ("0\n", "0\n", "warn", "nothing reserved"),
            ("many\n", "0\n", "warn", "not known"),
        ],
    )
    def test_crashkernel(
        self, tmp_path: Path, size: str, loaded: str, status: str, said: str
    ) -> None:
        """Reserved and loaded is well; everything else is worth a warning."""
        check = doctor.check_crashkernel(kexec(tmp_path, size, loaded))

        assert check.status == status
        assert said in check.said

    def test_no_vmcore(self, tmp_path: Path) -> None:
        """An ordinary machine has none, and that is fine."""
        assert doctor.check_vmcore(tmp_path / "vmcore").status == "ok"

    def test_readable_vmcore(self, tmp_path: Path) -> None:
        """In a capture kernel it is there and readable."""
        (tmp_path / "vmcore").touch()

        assert doctor.check_vmcore(tmp_path / "vmcore").said.endswith("is readable")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_unreadable_vmcore(self, tmp_path: Path) -> None:
        """Without the right to read it there is no dump."""
        (tmp_path / "vmcore").touch(mode=0)

        assert doctor.check_vmcore(tmp_path / "vmcore").status == "fail"

    def test_space(self, tmp_path: Path) -> None:
        """A writable folder passes, a missing one fails with the system's reason."""
        assert doctor.check_space(str(tmp_path)).status == "ok"
        missing = doctor.check_space(str(tmp_path / "none"))
        assert missing.status == "fail"
        assert "No such file" in missing.said

    def test_little_memory(self, tmp_path: Path) -> None:
        """Less than the capture profile may take is a warning."""
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/meminfo").write_text("MemAvailable: 50000 kB\n")

        found = {check.name: check for check in doctor.checks(str(tmp_path), tmp_path)}

        assert found["memory"].status == "warn"
        assert "100.0 MiB would be safe" in found["memory"].said
        assert found["crashkernel"].status == "warn"

    @pytest.mark.parametrize("is_capture", [True, False])
    def test_capture_kernel_needs_none_of_its_own(self, is_capture: bool, tmp_path: Path) -> None:
        """Where /proc/vmcore is, nobody has to be told that there will be none."""
        (tmp_path / "proc").mkdir()
        if is_capture:
            (tmp_path / "proc/vmcore").touch()

        names = [check.name for check in doctor.checks(str(tmp_path), tmp_path)]

        assert ("crashkernel" in names) != is_capture


class TestReport:
    def test_one_line_for_each_check(self, tmp_path: Path) -> None:
        """Every line starts with its status; nothing failed, so the exit code is 0."""
        out = io.StringIO()

        code = doctor.run_doctor(str(tmp_path), out)

        statuses = [line.split()[0] for line in out.getvalue().splitlines()]
        assert set(statuses) <= {"ok", "warn"}
        assert code == 0

    def test_failure_is_the_exit_code(self, tmp_path: Path) -> None:
        """One failed check is enough, and the rest is still printed."""
        out = io.StringIO()

        code = doctor.run_doctor(str(tmp_path / "none\x1b[2J"), out)

        assert code == 1
        assert "terminal" in out.getvalue()
        assert "\x1b" not in out.getvalue()
