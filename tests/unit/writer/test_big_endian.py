"""Machines whose dumps would need fields in another byte order."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import cli
from tests.support.vmcore_writer import VmcoreWriter, described

EM_S390 = 22


def test_is_refused_before_a_file_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dump of s390x that nobody on s390x could read is not written at all."""
    writer = VmcoreWriter(order=">", machine=EM_S390).load(paddr=0, data=described(0, 8))
    source = writer.write(tmp_path / "core")

    code = cli.main(["dump", "-d", "0", str(source), str(tmp_path / "dump")])

    assert code == 1
    assert "s390x" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["core"]
