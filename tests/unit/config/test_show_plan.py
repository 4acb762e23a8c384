"""What `dumpstream plan` prints."""

from __future__ import annotations

import json

import pytest

from pipeline.config.auto import resolve
from pipeline.config.layers import LoadedSettings, load_settings
from pipeline.config.resolved import ImageFacts, MachineFacts, Resolved
from pipeline.config.schema import setting_keys
from pipeline.config.settings import GIB, NETWORK_SECTIONS
from pipeline.config.show_plan import plan_json, plan_text, settings_in_force


@pytest.fixture
def loaded() -> LoadedSettings:
    return load_settings(profile="capture", sets=["compressor.workers=7"])


@pytest.fixture
def resolved(loaded: LoadedSettings) -> Resolved:
    machine = MachineFacts(4, "4 by CPU affinity", GIB, "MemAvailable")
    return resolve(loaded.settings, machine, ImageFacts(fork_safe=True, max_mapnr=1 << 20))


class TestText:
    def test_one_line_for_each_setting(self, resolved: Resolved, loaded: LoadedSettings) -> None:
        """Each setting stands at the start of one line, with its origin on it."""
        table, memory = plan_text(resolved, loaded).split("\n\n")
        keys = [line.split()[0] for line in table.splitlines()[1:]]

        local = [key for key in setting_keys() if key.split(".")[0] not in NETWORK_SECTIONS]
        assert keys == local
        assert "config/capture.toml" in next(x for x in table.splitlines() if "memory.budget" in x)
        assert memory.splitlines()[-1].split()[:2] == ["in", "all"]

    def test_changed_value_shows_origin_and_reason(
        self, resolved: Resolved, loaded: LoadedSettings
    ) -> None:
        """Seven workers were asked for by --set; what runs instead has its reason beside it."""
        lines = plan_text(resolved, loaded).splitlines()
        line = next(line for line in lines if line.startswith("compressor.workers"))

        assert line.split()[1] == str(resolved.compressor.workers) != "7"
        assert "--set" in line
        assert "7 does not fit memory.budget" in line

    def test_sizes_are_for_people(self, resolved: Resolved, loaded: LoadedSettings) -> None:
        """Bytes are shown in units, truth values as yes or no, nothing as a dash."""
        # The longest key stands alone in its column, two spaces before the next.
        width = max(len(key) for key in setting_keys())
        cells = {
            line.split()[0]: line[width:].split("  ")[1]
            for line in plan_text(resolved, loaded).split("\n\n")[0].splitlines()[1:]
        }

        assert cells["memory.budget"] == "40.0 MiB"
        assert cells["sink.fsync"] == "yes"
        assert cells["run.stats"] == "-"


class TestJson:
    def test_same_facts_as_the_table(self, resolved: Resolved, loaded: LoadedSettings) -> None:
        """Value, what was asked for, origin and reason for each setting; memory that adds up."""
        plan = json.loads(plan_json(resolved, loaded))

        assert list(plan["settings"]) == setting_keys()
        assert plan["settings"]["compressor.workers"]["asked"] == 7
        assert plan["settings"]["compressor.workers"]["origin"] == "--set"
        memory = plan["memory"]
        counted = sum(each["bytes"] for each in memory["consumers"] if each["in_budget"])
        assert counted == memory["planned_bytes"] <= memory["budget_bytes"]


def test_settings_in_force(resolved: Resolved, loaded: LoadedSettings) -> None:
    """For --stats: the value that ran, and who asked."""
    in_force = settings_in_force(resolved, loaded)

    assert in_force["compressor.workers"] == (resolved.compressor.workers, "--set")
    assert in_force["reader.batch_pages"][1] == "config/capture.toml"
    assert in_force["dump.level"] == (31, "built-in default")
