"""What becomes of every auto, and that nothing ever outgrows the budget."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.auto import LEVELS, MODE_BY_CODEC, resolve
from pipeline.config.budget import MIN_BUDGET, least_budget
from pipeline.config.resolved import ImageFacts, MachineFacts, Resolved
from pipeline.config.schema import setting_keys, value_of
from pipeline.config.settings import GIB, KIB, MIB, Codec, Settings
from pipeline.config.target_buffers import most_demanding

PLENTY = 64 * GIB


def machine(n_cpus: int = 4, available_bytes: int | None = PLENTY) -> MachineFacts:
    return MachineFacts(n_cpus, f"{n_cpus} by test", available_bytes, "the test")


def settings(**sections: dict[str, Any]) -> Settings:
    return msgspec.convert(sections, Settings)


def image(**facts: bool | int | tuple[str, ...] | None) -> ImageFacts:
    return msgspec.convert({"fork_safe": True, **facts}, ImageFacts)


def why(resolved: Resolved, key: str) -> str:
    return next(reason.why for reason in resolved.reasons if reason.setting == key)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.just("auto") | strategy


channels = maybe(st.integers(4 * KIB, 16 * GIB))
all_settings = st.builds(
    settings,
    memory=st.fixed_dictionaries({"budget": maybe(st.integers(MIN_BUDGET, 4 * GIB))}),
    reader=st.fixed_dictionaries(
        {"batch_pages": maybe(st.integers(1, 65536)), "channel_bytes": channels}
    ),
    cache=st.fixed_dictionaries(
        {"enabled": st.booleans(), "capacity": maybe(st.integers(64 * KIB, 64 * GIB))}
    ),
    filter=st.fixed_dictionaries(
        {
            "workers": maybe(st.integers(1, 256)),
            "channel_bytes": channels,
            "window_bytes": maybe(st.integers(64 * KIB, GIB)),
        }
    ),
    compressor=st.fixed_dictionaries(
        {
            "codec": st.sampled_from(list(MODE_BY_CODEC)),
            "level": maybe(st.integers(0, 22)),
            "workers": maybe(st.integers(1, 256)),
            "mode": st.sampled_from(["auto", "inline", "threads", "processes"]),
            "batch_pages": maybe(st.integers(1, 65536)),
            "channel_bytes": channels,
        }
    ),
    writer=st.fixed_dictionaries(
        {
            "channel_bytes": channels,
            "descriptor_bytes": maybe(st.integers(4 * KIB, 64 * MIB)),
        }
    ),
    sink=st.fixed_dictionaries({"channel_bytes": channels}),
    s3=st.fixed_dictionaries(
        {
            "buffer_bytes": st.integers(10 * MIB, GIB),
            "part_size": maybe(st.integers(5 * MIB, 100 * MIB)),
        }
    ),
    azure=st.fixed_dictionaries({"buffer_bytes": st.integers(MIB, GIB)}),
    http=st.fixed_dictionaries(
        {"buffer_bytes": st.integers(MIB, GIB), "piece_bytes": st.integers(256 * KIB, GIB)}
    ),
    ssh=st.fixed_dictionaries({"window_bytes": st.integers(MIB, GIB)}),
    tcp=st.fixed_dictionaries({"window_bytes": st.integers(256 * KIB, GIB)}),
)
machines = st.builds(
    machine, st.integers(1, 1024), st.none() | st.integers(0, GIB) | st.integers(0, 1 << 44)
)
schemes = st.sampled_from(["", "s3", "az", "http", "https", "sftp", "ssh", "tcp", "tls"])
images = st.builds(
    image,
    page_size=st.sampled_from([4096, 16384, 65536]),
    fork_safe=st.booleans(),
    n_pages=st.none() | st.integers(0, 1 << 32),
    max_mapnr=st.none() | st.integers(0, 1 << 34),
    is_stream=st.booleans(),
    schemes=st.lists(schemes, min_size=1, max_size=3).map(tuple),
    next_schemes=st.lists(schemes, max_size=2).map(tuple),
    encrypts=st.booleans(),
)


class TestBudget:
    @given(all_settings, machines, images)
    def test_shares_never_exceed_the_budget(
        self, asked: Settings, facts: MachineFacts, source: ImageFacts
    ) -> None:
        """Whatever is asked for on whatever machine, the plan fits and every stage can work."""
        got = resolve(asked, facts, source)

        assert got.counted_bytes <= got.memory_budget
        assert all(share.n_bytes >= 0 for share in got.shares)
        batch = got.compressor.batch_pages * source.page_size
        assert got.reader.batch_pages == got.compressor.batch_pages >= 1
        assert got.compressor.workers >= 1
        assert got.filter.workers >= 1
        assert got.compressor.slot_bytes > batch
        sent = batch if not source.fork_safe else got.reader.batch_pages * 8
        assert got.reader.channel_bytes >= sent
        assert min(got.compressor.channel_bytes, got.writer.channel_bytes) >= batch
        assert got.filter.window_bytes >= 64 * KIB
        assert got.compressor.mode != "processes" or source.fork_safe

    @given(all_settings, machines, images)
    def test_nothing_grows_above_what_was_asked_for(
        self, asked: Settings, facts: MachineFacts, source: ImageFacts
    ) -> None:
        """A number in the settings is a ceiling for workers, batches, cache and windows."""
        got = resolve(asked, facts, source)

        pairs = [
            (asked.compressor.workers, got.compressor.workers),
            (asked.compressor.batch_pages, got.compressor.batch_pages),
            (asked.reader.batch_pages, got.reader.batch_pages),
            (asked.cache.capacity, got.cache.capacity),
            (asked.filter.window_bytes, got.filter.window_bytes),
            (asked.filter.workers, got.filter.workers),
            (asked.http.buffer_bytes, got.http.buffer_bytes),
            (asked.ssh.window_bytes, got.ssh.window_bytes),
            (asked.tcp.window_bytes, got.tcp.window_bytes),
        ]
        least = least_budget(source, most_demanding(asked, source))
        if asked.memory.budget != "auto":
            assert got.memory_budget <= max(asked.memory.budget, least)
        assert all(wanted == "auto" or value <= wanted for wanted, value in pairs)

    @given(all_settings, machines, images)
    def test_every_changed_value_has_a_reason(
        self, asked: Settings, facts: MachineFacts, source: ImageFacts
    ) -> None:
        """Where the value in force is not the one in the settings, the plan says why, once."""
        got = resolve(asked, facts, source)
        reasons = {reason.setting: reason.value for reason in got.reasons}

        assert len(reasons) == len(got.reasons)
        for key in setting_keys():
            wanted = value_of(asked, key)
            value = got.memory_budget if key == "memory.budget" else value_of(got, key)
            if wanted != value:
                assert reasons[key] == value

    @pytest.mark.parametrize(
        ("scheme", "key", "n_bytes"),
        [
            ("s3", "s3.buffer_bytes", 48 * MIB),
            ("az", "azure.buffer_bytes", 48 * MIB),
            ("https", "http.buffer_bytes", 32 * MIB),
            ("sftp", "ssh.window_bytes", 8 * MIB),
            ("tls", "tcp.window_bytes", 8 * MIB),
        ],
    )
    def test_target_is_a_consumer(self, scheme: str, key: str, n_bytes: int) -> None:
        """By default the budget grows by the target's buffers, and nobody else shrinks for them."""
        with_file = resolve(Settings(), machine(2), image())
        got = resolve(Settings(), machine(2), image(schemes=(scheme,)))

        shares = {share.consumer: share.n_bytes for share in got.shares}
        assert shares[f"target: {key}"] == n_bytes
        assert got.memory_budget == with_file.memory_budget + n_bytes
        assert got.compressor == with_file.compressor

    def test_target_shrinks_into_a_small_budget(self) -> None:
        """A capture kernel's budget holds the target too, down to what an upload needs."""
        asked = settings(memory={"budget": 40 * MIB})

        got = resolve(asked, machine(2), image(schemes=("s3",)))

        assert got.s3.buffer_bytes == 25 * MIB
        assert "48.0 MiB does not fit memory.budget" in why(got, "s3.buffer_bytes")
        assert got.counted_bytes <= got.memory_budget == 40 * MIB

    def test_pieces_fit_the_buffers(self) -> None:
        """Pieces over HTTP shrink with what holds five of them."""
        asked = settings(memory={"budget": 24 * MIB})

        got = resolve(asked, machine(2), image(schemes=("http",)))

        assert 5 * got.http.piece_bytes <= got.http.buffer_bytes < 32 * MIB
        assert "five pieces" in why(got, "http.piece_bytes")

    def test_parts_of_a_large_dump_need_their_room(self) -> None:
        """10,000 parts of a TiB are 105 MiB each: the budget grows to five of them, and says so."""
        asked = settings(memory={"budget": 40 * MIB})

        got = resolve(asked, machine(2), image(schemes=("s3",), n_pages=1 << 28))

        assert got.s3.buffer_bytes == 5 * -(-(1 << 40) // 10_000)
        assert got.memory_budget == got.s3.buffer_bytes + MIN_BUDGET
        assert "targets" in why(got, "memory.budget")
        assert "so large a dump" in why(got, "s3.buffer_bytes")

    def test_targets_at_once_share(self) -> None:
        """Each of several targets counts; the next ones on the list, tried alone, only the most."""
        asked = settings(memory={"budget": GIB})
        at_once = image(schemes=("s3", "s3", "sftp", ""))
        one_by_one = image(schemes=("s3",), next_schemes=("s3", "sftp", ""))

        both = {
            share.consumer: share.n_bytes for share in resolve(asked, machine(2), at_once).shares
        }
        alone = resolve(asked, machine(2), one_by_one)

        assert both["target: s3.buffer_bytes"] == 2 * 48 * MIB
        assert both["target: ssh.window_bytes"] == 8 * MIB
        assert both["under way in the sink"] == 4 * 4 * MIB
        named = [share.consumer for share in alone.shares if share.consumer.startswith("target")]
        assert named == ["target: s3.buffer_bytes"]

    def test_encryption_is_a_consumer(self) -> None:
        """Its channel and what is sealed at once are in the plan."""
        got = resolve(Settings(), machine(2), image(encrypts=True))

        shares = {share.consumer: share.n_bytes for share in got.shares}
        assert shares["encryption, and the channel into it"] >= got.writer.channel_bytes

    def test_settings_that_fit_are_left_alone(self) -> None:
        """With room for everything, numbers in the settings are what runs."""
        asked = settings(
            memory={"budget": GIB},
            reader={"channel_bytes": 32 * MIB, "batch_pages": 1024, "read_ahead": 5 * MIB},
            cache={"capacity": 100 * MIB},
            compressor={"workers": 6, "mode": "threads", "channel_bytes": 40 * MIB},
            writer={"channel_bytes": 50 * MIB, "descriptor_bytes": 2 * MIB},
        )

        got = resolve(asked, machine(2), image())

        assert (got.reader.channel_bytes, got.reader.batch_pages) == (32 * MIB, 1024)
        assert got.reader.read_ahead == 5 * MIB
        assert got.cache.capacity == 100 * MIB
        assert (got.compressor.workers, got.compressor.mode) == (6, "threads")
        assert got.compressor.channel_bytes == 40 * MIB
        assert got.writer.channel_bytes == 50 * MIB

    def test_default_is_a_quarter_of_what_is_available(self) -> None:
        """Between 8 and 64 MiB, the default budget is a quarter of the available memory."""
        budgets = [
            resolve(Settings(), machine(2, available), image()).memory_budget
            for available in (0, 20 * MIB, 100 * MIB, 256 * MIB, PLENTY, None)
        ]

        assert budgets == [8 * MIB, 8 * MIB, 25 * MIB, 64 * MIB, 64 * MIB, 64 * MIB]

    def test_budget_above_the_machine_is_cut(self) -> None:
        """More than three quarters of what is available would end in the out-of-memory killer."""
        got = resolve(settings(memory={"budget": GIB}), machine(2, 200 * MIB), image())

        assert got.memory_budget == 150 * MIB
        assert "1.0 GiB asked for" in why(got, "memory.budget")

    def test_workers_give_way_before_the_run_does(self) -> None:
        """Many workers and a small budget: batches shrink first, then workers, and it says so."""
        asked = settings(memory={"budget": 40 * MIB}, compressor={"workers": 64})

        got = resolve(asked, machine(64), image())

        assert got.compressor.batch_pages == 128
        assert 2 <= got.compressor.workers < 64
        assert "64 does not fit memory.budget of 40.0 MiB" in why(got, "compressor.workers")

    def test_small_batches_before_a_lone_worker(self) -> None:
        """Where only batches of 256 KiB let a second worker in, they are taken."""
        got = resolve(settings(memory={"budget": 17 * MIB}), machine(8), image())

        assert (got.compressor.workers, got.compressor.mode) == (2, "processes")
        assert got.compressor.batch_pages == 64

    def test_smallest_budget_still_makes_whole_batches(self) -> None:
        """At 8 MiB batches are 256 KiB, for every page size."""
        for page_size, n_pages in ((4096, 64), (16384, 16), (65536, 4)):
            asked = settings(memory={"budget": MIN_BUDGET})
            got = resolve(asked, machine(8), image(page_size=page_size))
            assert got.compressor.batch_pages >= n_pages


class TestMode:
    @given(all_settings, images)
    def test_one_cpu_runs_inline(self, asked: Settings, source: ImageFacts) -> None:
        """With one CPU and no mode asked for, no worker is started for any codec."""
        asked = msgspec.structs.replace(
            asked, compressor=msgspec.structs.replace(asked.compressor, mode="auto")
        )

        got = resolve(asked, machine(1), source)

        assert got.compressor.mode == "inline"
        assert got.compressor.workers == 1

    @pytest.mark.parametrize(
        ("codec", "fork_safe", "mode"),
        [
            ("none", True, "processes"),
            ("zlib", True, "processes"),
            ("lzo", True, "processes"),
            ("snappy", True, "processes"),
            ("zstd", True, "processes"),
            ("none", False, "inline"),
            ("zlib", False, "threads"),
            ("lzo", False, "inline"),
            ("snappy", False, "inline"),
            ("zstd", False, "threads"),
        ],
    )
    def test_by_codec(self, codec: str, fork_safe: bool, mode: str) -> None:
        """Processes where workers can read the image; else threads if the codec gains by them."""
        got = resolve(settings(compressor={"codec": codec}), machine(4), image(fork_safe=fork_safe))

        assert got.compressor.mode == mode

    def test_processes_over_an_image_that_must_not_be_forked(self) -> None:
        """Asked for and impossible: threads instead, with the reason."""
        asked = settings(compressor={"mode": "processes", "codec": "zstd"})

        got = resolve(asked, machine(4), image(fork_safe=False))

        assert got.compressor.mode == "threads"
        assert "cannot read" in why(got, "compressor.mode")

    def test_single_worker_that_memory_leaves_is_inline(self) -> None:
        """When the budget holds one worker only, no process is started for it."""
        got = resolve(settings(memory={"budget": MIN_BUDGET}), machine(8), image())

        assert got.compressor.workers == 1
        assert got.compressor.mode == "inline"

    def test_no_more_workers_than_batches(self) -> None:
        """Three batches of pages keep three workers busy; one batch needs none."""
        asked = settings(memory={"budget": GIB})

        three = resolve(asked, machine(8), image(n_pages=3 * 512))
        one = resolve(asked, machine(8), image(n_pages=512))

        assert three.compressor.workers == 3
        assert (one.compressor.mode, one.compressor.workers) == ("inline", 1)

    def test_automatic_workers_have_a_ceiling(self) -> None:
        """With memory for any number, auto stops at 32."""
        got = resolve(settings(memory={"budget": 8 * GIB}), machine(200), image())

        assert got.compressor.workers == 32


class TestRest:
    @given(st.sampled_from(list(LEVELS)), st.integers(0, 22))
    def test_level_is_one_that_the_codec_has(self, codec: Codec, level: int) -> None:
        """A level of another codec is moved into the range, with a reason, and never refused."""
        got = resolve(settings(compressor={"codec": codec, "level": level}), machine(), image())

        low, high, _ = LEVELS[codec]
        assert got.compressor.level == min(max(level, low), high)

    def test_stream_target(self) -> None:
        """A target that takes bytes in order gets the flattened form, and no fsync."""
        got = resolve(Settings(), machine(), image(is_stream=True))

        assert got.dump.flatten
        assert not got.sink.fsync
        assert why(got, "dump.flatten") == "the target is a stream"

    def test_smaller_batch_of_reader_and_compressor_counts(self) -> None:
        """Both pass the same batches; the one that loses has a reason."""
        asked = settings(reader={"batch_pages": 300}, compressor={"batch_pages": 200})

        got = resolve(asked, machine(1), image())

        assert got.reader.batch_pages == got.compressor.batch_pages == 200
        assert "smaller counts" in why(got, "reader.batch_pages")

    def test_disabled_cache_takes_nothing(self) -> None:
        """Without a cache its share goes to the others."""
        got = resolve(settings(cache={"enabled": False}), machine(), image())

        assert got.cache.capacity == 0
        assert next(s.n_bytes for s in got.shares if s.consumer == "page cache") == 0
