"""Memory of real processes."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator

import anyio
import pytest

from pipeline.obs import rss
from pipeline.obs.rss import MemorySampler, child_pids, peak_rss_bytes, pss_bytes

MIB = 1 << 20
HOLD = f"import sys; x = b'x' * {30 * MIB}; print(flush=True); sys.stdin.read()"

needs_rollup = pytest.mark.skipif(
    pss_bytes(os.getpid()) is None, reason="the kernel has no smaps_rollup"
)


@pytest.fixture
def holder() -> Iterator[int]:
    """A child that holds 30 MiB until the end of the test."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child.pid
        child.communicate()


@needs_rollup
class TestSampler:
    def test_counts_the_workers(self, holder: int) -> None:
        """The sum holds what the child has, on top of our own."""
        alone = MemorySampler(list).sample()
        together = MemorySampler(lambda: [holder]).sample()

        assert alone is not None
        assert together is not None
        assert together - alone > 30 * MIB

    def test_keeps_the_peak(self) -> None:
        """Memory that was given back is still in the peak."""
        sampler = MemorySampler(list)
        with mmap.mmap(-1, 40 * MIB) as block:
            block.write(b"x" * (40 * MIB))
            high = sampler.sample()
        low = sampler.sample()

        assert high is not None
        assert low is not None
        assert low < high - 30 * MIB
        assert sampler.peak().total_pss == high
        assert sampler.peak().total >= high

    def test_vanished_worker_counts_nothing(self) -> None:
        """A worker that ended between two looks is not an error."""
        assert MemorySampler(lambda: [2**22 + 1]).sample() is not None

    async def test_watch_samples_until_cancelled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a while, again and again."""
        monkeypatch.setattr(rss, "SAMPLE_INTERVAL_S", 0.001)
        seen: list[int | None] = []

        class Counting(MemorySampler):
            def sample(self) -> int | None:
                seen.append(super().sample())
                return seen[-1]

        sampler = Counting(list)
        async with anyio.create_task_group() as group:
            group.start_soon(sampler.watch)
            with anyio.fail_after(5):
                while len(seen) < 3:  # noqa: ASYNC110  # counted in a thread
                    await anyio.sleep(0.001)
            group.cancel_scope.cancel()

        assert sampler.peak().total_pss == max(each or 0 for each in seen)

    async def test_a_short_run_is_not_slowed_down(self) -> None:
        """Its figure is taken at its end, if somebody wants it."""
        sampler = MemorySampler(list)
        with anyio.move_on_after(0.05):
            await sampler.watch()
        assert sampler.peak().total_pss is None

        sampler.sample_if_none()

        assert (sampler.peak().total_pss or 0) > MIB


def test_children_are_found(holder: int) -> None:
    """The kernel lists our child, or lists none at all."""
    assert child_pids() == [] or holder in child_pids()


def test_own_peak_is_not_inherited() -> None:
    """A small program started by a large one reports its own peak, not its parent's."""
    block = bytearray(b"x" * (100 * MIB))
    code = "from pipeline.obs.rss import peak_rss_bytes; print(peak_rss_bytes())"

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)

    assert 4 * MIB < int(out.stdout) < 60 * MIB
    assert peak_rss_bytes() > len(block)


def test_unreadable_process() -> None:
    """No such process: not known, not an error."""
    assert pss_bytes(2**22 + 1) is None
