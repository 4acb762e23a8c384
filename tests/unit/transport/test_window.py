"""The send window: what goes out, what is forgotten, and what a new connection begins with."""

from __future__ import annotations

import pytest

from pipeline.flow.items import ChunkKind
from stages.transport.errors import ProtocolError, RefusedError
from stages.transport.messages import Ack, ChunkFrame, Same, Welcome
from stages.transport.window import SendWindow


def filled(n_chunks: int, limit_bytes: int = 1000) -> SendWindow:
    """A window with chunks of 100 bytes."""
    window = SendWindow(limit_bytes)
    for seq in range(n_chunks):
        window.add(ChunkKind.DATA, seq * 100, bytes([seq]) * 100)
    return window


def welcome(position: int) -> Welcome:
    return Welcome(version=1, name="dump", position=position, durable=0)


def sent(window: SendWindow) -> list[str]:
    """Everything that goes out now: number, and ``=`` where only a comparison does."""
    out = []
    while (frame := window.next_frame()) is not None:
        out.append(f"{frame.seq}{'=' if isinstance(frame, Same) else ''}")
    return out


def test_room_is_bounded() -> None:
    """Ten chunks of 100 bytes fill 1000 bytes; one acknowledged makes room for one."""
    window = filled(10)
    window.welcomed(welcome(0))
    assert not window.has_room(1)

    sent(window)
    window.acknowledge(Ack(1, 0))

    assert window.has_room(100)
    assert not window.has_room(101)


def test_large_chunk_passes_alone() -> None:
    """A chunk above the bound is taken when nothing else is there, so nothing hangs."""
    assert SendWindow(10).has_room(1000)


def test_chunks_go_out_once_and_in_order() -> None:
    """Nothing is sent twice on one connection."""
    window = filled(3)
    window.welcomed(welcome(0))

    assert sent(window) == ["0", "1", "2"]
    assert sent(window) == []


def test_new_connection_goes_on_where_the_receiver_is() -> None:
    """Chunks that arrived although their acknowledgement was lost are not sent again."""
    window = filled(5)
    window.welcomed(welcome(0))
    sent(window)
    window.acknowledge(Ack(1, 0))

    window.welcomed(welcome(3))

    assert sent(window) == ["3", "4"]
    assert window.acknowledged == 3
    assert window.n_resent == 2


def test_chunks_of_a_former_process_are_compared() -> None:
    """A receiver that has more than this process ever sent gets checksums first, then chunks."""
    window = filled(4)
    window.welcomed(welcome(2))

    assert sent(window) == ["0=", "1=", "2", "3"]
    assert window.n_skipped == 2


def test_comparison_that_was_not_answered_is_repeated() -> None:
    """A connection lost before the answer leaves the comparison to be made."""
    window = filled(4)
    window.welcomed(welcome(3))
    assert sent(window) == ["0=", "1=", "2=", "3"]
    window.acknowledge(Ack(1, 0))

    window.welcomed(welcome(3))

    assert sent(window) == ["1=", "2=", "3"]


def test_taken_chunk_proves_the_comparisons_before_it() -> None:
    """A receiver that took chunk 3 from us had agreed to 0 to 2."""
    window = filled(5)
    window.welcomed(welcome(3))
    sent(window)

    window.welcomed(welcome(4))

    assert sent(window) == ["4"]


def test_same_carries_what_the_chunk_is() -> None:
    """A comparison tells everything but the bytes."""
    window = filled(2)
    window.welcomed(welcome(0))
    chunk = window.next_frame()
    assert isinstance(chunk, ChunkFrame)

    other = filled(2)
    other.welcomed(welcome(1))

    assert other.next_frame() == chunk.same()


def test_acknowledging_the_unsent_is_refused() -> None:
    """A receiver cannot have what was not sent."""
    window = filled(3)
    window.welcomed(welcome(0))
    window.next_frame()

    with pytest.raises(ProtocolError, match="ACK of 2 chunks where 1"):
        window.acknowledge(Ack(2, 0))


def test_late_acknowledgement_changes_nothing() -> None:
    """Acknowledgements are cumulative; an older one is no news."""
    window = filled(3)
    window.welcomed(welcome(0))
    sent(window)

    assert window.acknowledge(Ack(2, 1))
    assert not window.acknowledge(Ack(1, 0))
    assert (window.acknowledged, window.durable) == (2, 1)


def test_receiver_that_lost_data() -> None:
    """What was acknowledged is gone here, so a receiver that lost it is told the truth."""
    window = filled(3)
    window.welcomed(welcome(0))
    sent(window)
    window.acknowledge(Ack(2, 0))

    with pytest.raises(RefusedError, match="lost data"):
        window.welcomed(welcome(1))
