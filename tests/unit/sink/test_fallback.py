"""Which target is tried when, and who has the dump in the end."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest

from pipeline.config.targets import TargetEntry
from pipeline.errors import (
    ConfigError,
    DumpError,
    FormatError,
    InterruptedRunError,
    PageCountError,
    RestartableSinkError,
    SinkError,
    StageError,
    UnsupportedError,
    UsageError,
)
from pipeline.flow.items import Receipt
from stages.sink.fallback import (
    Step,
    TargetDeadlineError,
    TargetFailure,
    TargetPlan,
    dump_to_first,
    show_target,
)
from tests.support.captured_log import captured_log

A = TargetEntry("sftp://a/dump", deadline_s=100)
B = TargetEntry("https://me@b/dump?sig=secret")
C = TargetEntry("/var/crash/dmesg.txt", what="dmesg")
BROKEN = SinkError("broken")
LOST = RestartableSinkError("lost")


def plan(*entries: TargetEntry) -> TargetPlan:
    return TargetPlan(entries or (A, B, C), restart_s=60)


def test_a_failure_moves_on_to_the_next() -> None:
    """In the order of the list, down to its end, each with its own deadline."""
    tried = plan()
    assert tried.start(0) == Step(A, 0, 100)
    assert tried.next_after(BROKEN, 5) == Step(B, 0, None)
    assert tried.next_after(BROKEN, 6) == Step(C, 0, None)
    assert tried.next_after(BROKEN, 7) is None
    assert [failure.target for failure in tried.failures] == [
        "sftp://a/dump",
        "https://b/dump",
        "/var/crash/dmesg.txt",
    ]


@pytest.mark.parametrize(
    "error",
    [
        SinkError("x"),
        StageError("sink", SinkError("x")),
        StageError("sink", OSError(28, "No space left on device")),
        UnsupportedError("needs a package"),
        UsageError("no such scheme"),
        ConfigError("file", "key", "problem"),
        TargetDeadlineError("late"),
    ],
)
def test_what_another_target_may_do_better(error: DumpError) -> None:
    """Everything that is the target's, wherever it was noticed."""
    tried = plan()
    tried.start(0)
    assert tried.next_after(error, 1) == Step(B, 0, None)


@pytest.mark.parametrize(
    "error",
    [
        StageError("reader", OSError(5, "Input/output error")),
        StageError("writer", PageCountError("x")),
        FormatError("elf", 0, "magic", 0, "ELF"),
        InterruptedRunError("SIGINT"),
        StageError("sink", FormatError("elf", 0, "magic", 0, "ELF")),
        MemoryError(),
    ],
)
def test_what_no_target_can_help(error: Exception) -> None:
    """The image, the user and our own defects end it at once."""
    tried = plan()
    tried.start(0)
    assert tried.next_after(error, 1) is None
    assert tried.failures == []


def test_a_target_that_can_start_over_is_tried_again_while_there_is_time() -> None:
    """Waits double; the deadline counts from the first try, and then the next one has its turn."""
    tried = plan()
    tried.start(0)
    assert tried.next_after(StageError("sink", LOST), 10) == Step(A, 1, 89)
    assert tried.next_after(LOST, 20) == Step(A, 2, 78)
    assert tried.next_after(LOST, 90) == Step(A, 4, 6)
    assert tried.next_after(LOST, 93) == Step(B, 0, None)


def test_a_target_without_a_deadline_starts_over_for_a_while() -> None:
    """Not for ever: a link that always breaks must not keep the machine from its reboot."""
    tried = plan(B, C)
    tried.start(0)
    assert tried.next_after(LOST, 10) == Step(B, 1, None)
    assert tried.next_after(LOST, 61) == Step(C, 0, None)


def test_an_empty_plan_is_a_defect() -> None:
    """Whoever calls has at least the target of the command line."""
    with pytest.raises(ValueError, match="needs a target"):
        TargetPlan([], restart_s=1)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:hush@h:1/a?token=hush#hush", "https://h:1/a"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("/a/b?c", "/a/b?c"),
        ("http://[bad/a?hush", "http://..."),
    ],
)
def test_targets_are_shown_without_secrets(url: str, shown: str) -> None:
    """User, password and query stay out of messages."""
    assert show_target(url) == shown


class Attempts:
    """Makes dumps that go as told."""

    def __init__(self, *outcomes: Exception | str | float) -> None:
        self._outcomes = list(outcomes)
        self.tried: list[str] = []
        self.slept: list[float] = []
        self.undone = 0

    async def __call__(self, entry: TargetEntry) -> Receipt:
        self.tried.append(entry.url)
        outcome = self._outcomes.pop(0)
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if isinstance(outcome, float):
                await anyio.sleep(outcome)
        except BaseException:
            self.undone += 1
            raise
        return Receipt(entry.url, 1)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def run(self, *entries: TargetEntry) -> tuple[str, Sequence[TargetFailure]]:
        done = await dump_to_first(plan(*entries), self, self.sleep)
        return done.receipt.target, done.failures


@pytest.mark.anyio
async def test_the_receipt_says_who_has_the_dump_and_why_others_have_not() -> None:
    """With the failures in the order they came, and each of them logged without secrets."""
    attempts = Attempts(LOST, BROKEN, SinkError("no room"), "done")
    with captured_log() as log:
        target, failures = await attempts.run(A, B, C)
    assert target == C.url
    assert [(failure.target, failure.reason) for failure in failures] == [
        ("sftp://a/dump", "lost"),
        ("sftp://a/dump", "broken"),
        ("https://b/dump", "no room"),
    ]
    assert attempts.tried == [A.url, A.url, B.url, C.url]
    assert attempts.slept == [0, 1, 0, 0]
    assert log.getvalue().count("target_failed") == 3
    assert "secret" not in log.getvalue()


@pytest.mark.anyio
async def test_a_deadline_cancels_and_undoes_the_attempt() -> None:
    """The slow target's run is cancelled, cleans up, and the next one is tried."""
    attempts = Attempts(60.0, "done")
    slow = TargetEntry("sftp://slow/dump", deadline_s=1)
    target, failures = await attempts.run(slow, B)
    assert target == B.url
    assert failures[0].reason == "not done within its deadline of 1 s"
    assert attempts.undone == 1


@pytest.mark.anyio
async def test_all_failing_names_all() -> None:
    """One line with every target and its reason, each once."""
    with pytest.raises(SinkError, match="no target took the dump") as caught:
        await Attempts(LOST, LOST, BROKEN, BROKEN, BROKEN).run(A, B, C)
    said = str(caught.value)
    assert said.count("sftp://a/dump: lost") == 1
    assert "/var/crash/dmesg.txt: broken" in said
    assert "\n" not in said


@pytest.mark.anyio
async def test_a_single_target_fails_with_its_own_error() -> None:
    """Nothing is wrapped around what the user would have seen without a list."""
    with pytest.raises(SinkError) as caught:
        await Attempts(BROKEN).run(A)
    assert caught.value is BROKEN


@pytest.mark.anyio
async def test_other_failures_pass_through() -> None:
    """An unreadable image is no reason to try another target."""
    error = StageError("reader", OSError(5, "Input/output error"))
    attempts = Attempts(error, "done")
    with pytest.raises(StageError) as caught:
        await attempts.run(A, B)
    assert caught.value is error
    assert attempts.tried == [A.url]
