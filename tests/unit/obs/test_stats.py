"""--stats: one complete JSON object, or no file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.flow.channel import ChannelStats
from pipeline.obs.counters import RunCounters
from pipeline.obs.rss import PeakMemory
from pipeline.obs.stats import build_stats, check_stats_path, write_stats
from pipeline.obs.summary import Outcome


def counters() -> RunCounters:
    out = RunCounters()
    out.begin_phase("filter")
    out.begin_phase("copy")
    out.end_phase()
    out.pages_in, out.pages_kept, out.pages_zero, out.pages_missing = 100, 40, 10, 1
    out.exclude("free", 59)
    out.bytes_in, out.bytes_out = 409600, 50000
    out.cache.hits = 7
    out.add_worker_seconds(0, 1.25)
    out.add_stage_seconds("reader", 0.5)
    out.channels.append(ChannelStats("reader", 1000, n_items=2, peak_bytes=500))
    return out


class TestContents:
    def test_everything_of_the_contract_is_there(self, tmp_path: Path) -> None:
        """Seconds by phase and stage, pages by class, bytes, cache, channels, memory, settings."""
        path = tmp_path / "run.json"
        stats = build_stats(
            counters(),
            Outcome("/var/crash/x", 51234),
            PeakMemory(50, 20, 90),
            {"compressor.workers": (4, "--set")},
        )

        write_stats(str(path), stats)

        got = json.loads(path.read_text())
        assert set(got["seconds_by_phase"]) == {"filter", "copy"}
        assert got["seconds_by_stage"] == {"reader": 0.5}
        assert got["seconds_by_worker"] == {"0": 1.25}
        assert got["pages_excluded"] == {"free": 59}
        assert (got["pages_in"], got["pages_kept"], got["pages_missing"]) == (100, 40, 1)
        assert (got["bytes_in"], got["bytes_out"], got["size_bytes"]) == (409600, 50000, 51234)
        assert got["ratio"] == pytest.approx(40 * 4096 / 50000, abs=0.001)
        assert got["cache"]["hits"] == 7
        assert got["channels"][0]["peak_fill"] == 0.5
        assert got["peak_rss_bytes"] == {"main": 50, "largest_child": 20, "all_pss": 90}
        assert got["peak_memory_bytes"] == 90
        assert got["settings"] == {"compressor.workers": {"value": 4, "origin": "--set"}}

    def test_nothing_done_yet(self) -> None:
        """A run that failed at once has stats too; what cannot be computed is null."""
        stats = build_stats(
            RunCounters(), Outcome("x", 0, complete=False), PeakMemory(1, 0, None), {}
        )

        assert stats["ratio"] is None
        assert stats["complete"] is False


class TestWriting:
    def test_replaces_an_older_file_and_leaves_nothing_else(self, tmp_path: Path) -> None:
        """The name always has a complete object; no other file stays behind."""
        path = tmp_path / "run.json"
        path.write_text("old")

        write_stats(str(path), {"a": 1})

        assert json.loads(path.read_text()) == {"a": 1}
        assert list(tmp_path.iterdir()) == [path]

    def test_failure_keeps_the_old_file(self, tmp_path: Path) -> None:
        """A value that is no JSON leaves the older file as it was."""
        path = tmp_path / "run.json"
        path.write_text("old")

        with pytest.raises(TypeError):
            write_stats(str(path), {"a": object()})

        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_failed_rename_leaves_nothing(self, tmp_path: Path) -> None:
        """A name that cannot be taken over, a folder's, leaves no partial file beside it."""
        path = tmp_path / "run.json"
        path.mkdir()

        with pytest.raises(IsADirectoryError):
            write_stats(str(path), {"a": 1})

        assert list(tmp_path.iterdir()) == [path]

    def test_missing_folder(self, tmp_path: Path) -> None:
        """The error is the system's, with the path."""
        with pytest.raises(FileNotFoundError):
            write_stats(str(tmp_path / "no" / "run.json"), {})


class TestCheck:
    def test_good_path(self, tmp_path: Path) -> None:
        """A new name and an existing file pass."""
        (tmp_path / "old.json").touch()

        check_stats_path(str(tmp_path / "new.json"))
        check_stats_path(str(tmp_path / "old.json"))

    @pytest.mark.parametrize("name", ["", "no/run.json", "/dev/null"])
    def test_bad_path(self, tmp_path: Path, name: str) -> None:
        """A folder, a missing folder and a device are refused before the run."""
        with pytest.raises(ConfigError, match=r"run\.stats"):
            check_stats_path(str(tmp_path / name))

    @pytest.mark.parametrize("name", ["vmcore", "link", "hard", "./no/../vmcore", "new.kdump"])
    def test_path_in_use(self, tmp_path: Path, name: str) -> None:
        """The image and the dump are not replaced by statistics, by whatever name."""
        vmcore = tmp_path / "vmcore"
        vmcore.touch()
        (tmp_path / "no").mkdir()
        (tmp_path / "link").symlink_to(vmcore)
        (tmp_path / "hard").hardlink_to(vmcore)
        in_use = ["s3://dumps/vmcore", str(vmcore), str(tmp_path / "new.kdump")]

        check_stats_path(str(tmp_path / "run.json"), in_use)
        with pytest.raises(ConfigError, match="would replace"):
            check_stats_path(str(tmp_path / name), in_use)
