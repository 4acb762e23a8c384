"""Layers of settings: precedence, origins, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.layers import (
    BUILT_IN,
    Layer,
    LoadedSettings,
    file_layer,
    load_settings,
    profile_layer,
    profile_names,
    stack,
)
from pipeline.config.schema import setting_keys
from pipeline.config.settings import MIB, NETWORK_SECTIONS, Settings
from pipeline.errors import ConfigError


def write(folder: Path, text: str) -> str:
    path = folder / "site.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


class TestPrecedence:
    def test_each_layer_covers_the_one_below(self, tmp_path: Path) -> None:
        """A file covers the profile, the environment the file, --set that, an option all."""
        config_file = write(tmp_path, "[reader]\nbatch_pages = 11\n")
        environ = {"DUMPSTREAM_READER__BATCH_PAGES": "12", "HOME": "/root"}
        sets = ["reader.batch_pages=13"]
        option = Layer("--batch", {"reader.batch_pages": 14})

        def load(n_layers: int) -> LoadedSettings:
            return load_settings(
                profile="capture",
                config_file=config_file if n_layers > 1 else None,
                environ=environ if n_layers > 2 else None,
                sets=sets if n_layers > 3 else [],
                options=[option] if n_layers > 4 else [],
            )

        seen = [load(n_layers) for n_layers in range(1, 6)]

        assert [each.settings.reader.batch_pages for each in seen] == [256, 11, 12, 13, 14]
        assert [each.origin("reader.batch_pages") for each in seen] == [
            "config/capture.toml",
            config_file,
            "environment",
            "--set",
            "--batch",
        ]

    def test_later_set_wins(self) -> None:
        """Of two --set for one key the last counts."""
        loaded = load_settings(sets=["compressor.workers=2", "compressor.workers=3"])

        assert loaded.settings.compressor.workers == 3

    def test_single_values_are_replaced_not_sections(self, tmp_path: Path) -> None:
        """A file that sets one key of a section leaves the profile's other keys alone."""
        config_file = write(tmp_path, "[reader]\nbatch_pages = 64\n")

        loaded = load_settings(profile="capture", config_file=config_file)

        assert loaded.settings.reader.read_ahead == 0
        assert loaded.origin("reader.read_ahead") == "config/capture.toml"

    @given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 256)), max_size=8))
    def test_value_and_origin_are_the_last_layers(
        self, given_layers: list[tuple[str, int]]
    ) -> None:
        """Whatever the layers are, the last one that names a key decides value and origin."""
        layers = [Layer(name, {"compressor.workers": value}) for name, value in given_layers]

        loaded = stack(layers)

        origin, value = given_layers[-1] if given_layers else (BUILT_IN, "auto")
        assert loaded.settings.compressor.workers == value
        assert loaded.origin("compressor.workers") == origin

    def test_a_text_auto_and_a_size_are_taken_from_the_environment(self) -> None:
        """The environment has text only: numbers, sizes, truth values and auto are read from it."""
        environ = {
            "DUMPSTREAM_MEMORY__BUDGET": "1.5GiB",
            "DUMPSTREAM_COMPRESSOR__WORKERS": "auto",
            "DUMPSTREAM_SINK__FSYNC": "false",
            "DUMPSTREAM_DUMP__LEVEL": "17",
            "DUMPSTREAM_RUN__STATS": "12",
        }

        settings = load_settings(profile="capture", environ=environ).settings

        assert settings.memory.budget == 1536 * MIB
        assert settings.compressor.workers == "auto"
        assert settings.sink.fsync is False
        assert settings.dump.level == 17
        assert settings.run.stats == "12"

    def test_other_variables_are_left_alone(self) -> None:
        """A variable that only shares the prefix is nobody's setting."""
        loaded = load_settings(environ={"DUMPSTREAM_HOME": "/x", "DUMPSTREAMER__A": "1"})

        assert loaded.settings == Settings()


class TestRefusals:
    @pytest.mark.parametrize(
        ("toml", "said"),
        [
            ("[compressor]\nwrokers = 3\n", "compressor.wrokers: .*did you mean workers?"),
            ("[compresor]\nworkers = 3\n", "compresor: no such section, did you mean compressor?"),
            ("workers = 3\n", "workers: not in a section"),
            ("[compressor]\nworkers = true\n", "compressor.workers: .*1 to 256.*'auto', got True"),
            ("[compressor]\nworkers = '3'\n", "compressor.workers: expected a whole number"),
            ("[compressor]\nworkers = 0\n", "compressor.workers: .*got 0"),
            ("[compressor]\nworkers = 2.5\n", "compressor.workers: .*got 2.5"),
            ("[compressor]\ncodec = 'lz'\n", "codec: .*'lzo', 'snappy' or 'zstd', got 'lz'"),
            ("[sink]\nfsync = 1\n", "sink.fsync: expected true or false, got 1"),
            ("[memory]\nbudget = '1MiB'\n", "memory.budget: .*from 8.0 MiB to 1.0 TiB.*'1MiB'"),
            ("[memory]\nbudget = 'lots'\n", "memory.budget: .*got 'lots'"),
            ("[memory]\nbudget = [1]\n", "memory.budget: .*got \\[1\\]"),
            ("[memory]\nbudget = 99999999999999999999\n", "memory.budget: .*got 9999"),
            ("[memory.budget]\nx = 1\n", "memory.budget: .*got {'x': 1}"),
            ("[dump]\nlevel = 32\n", "dump.level: expected a whole number from 0 to 31, got 32"),
            ("[memory\n", "not TOML"),
            ("x = " + "[" * 100_000, "not TOML"),
        ],
    )
    def test_bad_file_is_refused(self, tmp_path: Path, toml: str, said: str) -> None:
        """The error names the file, the key, what was expected and what was seen."""
        config_file = write(tmp_path, toml)

        with pytest.raises(ConfigError, match=said.replace("?", r"\?")) as caught:
            load_settings(config_file=config_file)

        assert caught.value.file == config_file

    def test_huge_size_text_is_refused(self) -> None:
        """A number that no float holds is out of bounds, not a crash; the error stays short."""
        with pytest.raises(ConfigError, match=r"memory\.budget") as caught:
            load_settings(sets=[f"memory.budget={'9' * 4000}"])

        assert len(str(caught.value)) < 300

    @pytest.mark.parametrize("text", ["compressor.workers", "workers=3", "", "=", "a=b"])
    def test_malformed_set(self, text: str) -> None:
        """--set without a section, a key or a value says how it is written."""
        with pytest.raises(ConfigError, match=r"--set.*expected section\.key=value"):
            load_settings(sets=[text])

    def test_set_of_an_unknown_key(self) -> None:
        """--set is checked like a file."""
        with pytest.raises(ConfigError, match=r"--set: sink.fsnyc: .*did you mean fsync\?"):
            load_settings(sets=["sink.fsnyc=true"])

    def test_single_underscore_in_the_environment(self) -> None:
        """A variable that was meant for us and would be ignored is refused."""
        with pytest.raises(ConfigError, match="did you mean DUMPSTREAM_COMPRESSOR__WORKERS"):
            load_settings(environ={"DUMPSTREAM_COMPRESSOR_WORKERS": "3"})

    def test_unknown_key_in_the_environment(self) -> None:
        """The error names the environment as the place."""
        with pytest.raises(ConfigError, match=r"environment: compressor\.wrokers"):
            load_settings(environ={"DUMPSTREAM_COMPRESSOR__WROKERS": "3"})

    def test_missing_file(self, tmp_path: Path) -> None:
        """A --config that is not there is an error, whatever the other layers say."""
        with pytest.raises(ConfigError, match="No such file"):
            load_settings(config_file=str(tmp_path / "none.toml"))

    def test_directory_as_a_file(self, tmp_path: Path) -> None:
        """A directory is refused with the system's reason."""
        with pytest.raises(ConfigError, match="Is a directory"):
            load_settings(config_file=str(tmp_path))

    def test_endless_file(self) -> None:
        """A file without an end is not read to it."""
        with pytest.raises(ConfigError, match="larger than"):
            file_layer(Path("/dev/zero"), "/dev/zero")

    @pytest.mark.parametrize("name", ["captur", "../config/capture", "/etc/passwd", ""])
    def test_unknown_profile(self, name: str) -> None:
        """Only names of shipped profiles are taken; paths are not names."""
        with pytest.raises(ConfigError, match="there are capture, default, network, throughput"):
            profile_layer(name)


class TestProfiles:
    def test_shipped_profiles(self) -> None:
        """The four profiles of the documentation are there, and each one loads."""
        assert profile_names() == ["capture", "default", "network", "throughput"]
        for name in profile_names():
            assert load_settings(profile=name).settings != Settings() or name == "default"

    def test_default_profile_repeats_the_built_in_defaults(self) -> None:
        """Every setting but the optional path is written out in default.toml, with its default."""
        written = profile_layer("default").values

        assert stack([profile_layer("default")]).settings == Settings()
        local = {key for key in setting_keys() if key.split(".")[0] not in NETWORK_SECTIONS}
        assert local - set(written) == {"run.stats"}

    def test_every_value_has_its_reason_above(self) -> None:
        """In a shipped profile a comment line stands above each value."""
        for path in (Path(__file__).parents[3] / "config").glob("*.toml"):
            lines = path.read_text(encoding="utf-8").splitlines()
            bare = [
                line
                for above, line in pairwise(lines)
                if "=" in line and not line.startswith("#") and not above.startswith("#")
            ]
            assert bare == []

    def test_documentation_lists_every_setting(self) -> None:
        """Each setting of the default profile has its row in docs/settings.md."""
        text = (Path(__file__).parents[3] / "docs/settings.md").read_text(encoding="utf-8")

        missing = [key for key in profile_layer("default").values if f"| `{key}` |" not in text]
        assert missing == []
