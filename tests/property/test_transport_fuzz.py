"""Both ends of the dump protocol against every byte and every frame that could come.

What must hold, whatever is sent: the parser raises nothing but ProtocolError and never holds more
than one frame; the receiver goes on serving others; the sender ends with an error of ours, or with
a dump that is right.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
from anyio.abc import SocketAttribute, SocketStream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import DumpError, FormatError
from pipeline.flow.items import ChunkKind
from stages.crypt import bech32
from stages.crypt.age_header import INTRO, header_size, unwrap
from stages.crypt.errors import DecryptError
from stages.crypt.keys import Identity
from stages.sink.retry import RetryPolicy
from stages.transport.errors import ProtocolError
from stages.transport.frames import (
    TO_RECEIVER,
    TO_SENDER,
    FrameParser,
    FrameType,
    checksum,
    pack,
)
from stages.transport.limits import Limits
from stages.transport.messages import (
    MAX_CHUNK,
    MAX_SIZE,
    Ack,
    ChunkFrame,
    Discard,
    Done,
    Frame,
    Hello,
    Ping,
    Problem,
    Sync,
    Trailer,
    TrailerFrame,
    Welcome,
)
from stages.transport.upload_state import UploadState
from tests.support.chunk_stream import ChunkStream, send
from tests.support.raw_peer import RawPeer, ended, raw_peer
from tests.support.running_receiver import make_tcp_sink, options, running_receiver

IDENTITY = Identity(bytes(range(32)))
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TOKENS = st.sampled_from(["1" * 32, "2" * 32])
SIZES = st.integers(0, MAX_SIZE) | st.integers(0, 10_000)
TEXTS = st.text(max_size=40)


@st.composite
def chunks(draw: st.DrawFn) -> ChunkFrame:
    data = draw(st.binary(min_size=1, max_size=300))
    return ChunkFrame(
        draw(st.integers(0, 5) | st.integers(0, 2**64 - 1)),
        draw(st.sampled_from(ChunkKind)),
        draw(st.sampled_from([0, 100, 4096, 4100]) | st.integers(0, MAX_SIZE - 300)),
        data,
        checksum(data),
    )


@st.composite
def acks(draw: st.DrawFn) -> Ack:
    written = draw(st.integers(0, 10) | st.integers(0, 2**64 - 1))
    return Ack(written, draw(st.integers(0, written)), draw(st.booleans()))


DIGESTS = st.sampled_from(["0" * 64, "ab" * 32])
HELLOS = st.builds(
    Hello,
    token=TOKENS,
    name=st.sampled_from(["dump", "", "other", "../x", "dump.partial"]) | TEXTS,
    data_start=SIZES | st.just(4096),
    most_bytes=SIZES | st.just(100_000),
    overwrite=st.booleans(),
    finishing=st.booleans(),
    heartbeat_s=st.floats(0.05, 60),
    oldest=st.integers(0, 2),
    newest=st.integers(0, 2),
)
TRAILERS = st.builds(
    TrailerFrame,
    st.builds(Trailer, size=SIZES, n_chunks=SIZES, digest=DIGESTS),
    st.binary(max_size=200),
)
FROM_SENDER = st.one_of(
    HELLOS,
    chunks(),
    chunks(),
    chunks().map(ChunkFrame.same),
    TRAILERS,
    st.sampled_from([Ping(), Sync(), Discard()]),
)
FROM_RECEIVER = st.one_of(
    acks(),
    st.builds(
        Welcome,
        version=st.integers(0, 3),
        name=st.just("dump") | TEXTS,
        position=SIZES,
        durable=SIZES,
        committed=st.booleans(),
    ),
    st.builds(Done, name=TEXTS),
    st.builds(Problem, text=TEXTS, retry=st.booleans()),
)


def on_the_line(frame: Frame) -> bytes:
    return pack(frame) + (bytes(frame.data) if isinstance(frame, ChunkFrame) else b"")


def held(parser: FrameParser) -> int:
    """Bytes that a parser keeps."""
    return len(parser._buffer)


class TestParser:
    @settings(max_examples=300)
    @given(st.binary(max_size=500), st.sampled_from([TO_RECEIVER, TO_SENDER]))
    def test_any_bytes(self, data: bytes, accepts: frozenset[FrameType]) -> None:
        """Random bytes are frames, wait for more, or are refused."""
        parser = FrameParser(accepts)
        with contextlib.suppress(ProtocolError):
            list(parser.feed(data))
        assert held(parser) <= MAX_CHUNK + 4096

    @settings(max_examples=300)
    @given(
        st.lists(FROM_SENDER | FROM_RECEIVER, max_size=4),
        st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), max_size=3),
        st.integers(1, 100),
    )
    def test_changed_streams(
        self, frames: list[Frame], changes: list[tuple[int, int]], step: int
    ) -> None:
        """Of a stream with changed bytes the first frames come out, then an error or nothing."""
        line = bytearray(b"".join(map(on_the_line, frames)))
        for at, flip in changes:
            if line:
                line[at % len(line)] ^= flip
        parser = FrameParser(TO_RECEIVER | TO_SENDER)
        seen: list[Frame] = []
        try:
            for at in range(0, len(line), step):
                seen += parser.feed(bytes(line[at : at + step]))
        except ProtocolError:
            pass
        assert seen == frames[: len(seen)]


def run_async(job: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with anyio.fail_after(30):
            await job()

    anyio.run(bounded)


class TestReceiver:
    @SLOW
    @given(st.lists(st.lists(FROM_SENDER, max_size=8), min_size=1, max_size=3), st.booleans())
    def test_any_frames(self, conversations: list[list[Frame]], allows: bool) -> None:
        """After any conversations it takes a good dump, and has written to its own files only."""

        async def job() -> None:
            with tempfile.TemporaryDirectory() as top:
                folder = Path(top) / "dumps"
                folder.mkdir()
                limits = Limits(max_bytes=1 << 20, allow_overwrite=allows, idle_timeout_s=0.2)
                async with running_receiver(folder, limits) as receiver:
                    for frames in conversations:
                        await converse(receiver.port, frames)
                    source = ChunkStream(50_000)
                    await send(source, make_tcp_sink(receiver.port, "good"))
                    assert (folder / "good").read_bytes() == source.expected()
                assert [one.name async for one in anyio.Path(top).iterdir()] == ["dumps"]
                sizes = [(await one.stat()).st_size async for one in anyio.Path(folder).iterdir()]
                assert max(sizes) <= 1 << 20

        run_async(job)

    @SLOW
    @given(st.lists(st.binary(max_size=400), max_size=4))
    def test_any_bytes_after_a_good_start(self, pieces: list[bytes]) -> None:
        """Garbage in the middle of an upload ends the connection; the upload can go on."""

        async def job() -> None:
            with tempfile.TemporaryDirectory() as folder:
                limits = Limits(idle_timeout_s=0.2)
                async with running_receiver(Path(folder), limits) as receiver:
                    async with raw_peer(receiver.port) as peer:
                        await peer.greet()
                        with contextlib.suppress(anyio.BrokenResourceError):
                            for piece in pieces:
                                await peer.stream.send(piece)
                        assert await ended(peer.stream)
                    async with raw_peer(receiver.port) as peer:
                        assert (await peer.greet()).name == "dump"

        run_async(job)


async def converse(port: int, frames: list[Frame]) -> None:
    async with raw_peer(port) as peer:
        with contextlib.suppress(anyio.BrokenResourceError, OSError):
            for frame in frames:
                await peer.send(frame)
            await peer.stream.send_eof()
        assert await ended(peer.stream)


class TestSender:
    @SLOW
    @given(st.lists(st.lists(FROM_RECEIVER, max_size=6), min_size=1, max_size=3))
    def test_any_answers(self, conversations: list[list[Frame]]) -> None:
        """Whatever a receiver answers, the sender ends in time and with an error of its own."""
        policy = RetryPolicy(0.001, 0.01, 0.3)

        async def job() -> None:
            listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
            port = listener.extra(SocketAttribute.local_port)
            numbers = iter(range(1_000_000))

            async def answer(stream: SocketStream) -> None:
                async with stream:
                    try:
                        await stream.receive()
                        frames = conversations[next(numbers) % len(conversations)]
                        await RawPeer(stream).send(*frames)
                        await stream.send_eof()
                        await ended(stream)
                    except (anyio.EndOfStream, anyio.BrokenResourceError, OSError):
                        return

            async with listener, anyio.create_task_group() as group:
                group.start_soon(listener.serve, answer)
                sink = make_tcp_sink(port, sending=options(policy=policy, stall_s=0.2))
                # A receiver that lies to the end may pretend to have the dump; nothing else may
                # happen.
                with contextlib.suppress(DumpError):
                    await send(ChunkStream(50_000), sink)
                group.cancel_scope.cancel()

        run_async(job)


class TestFiles:
    @settings(max_examples=200)
    @given(st.binary(max_size=300), st.integers(0, 9000))
    def test_any_state_file(self, noise: bytes, at: int) -> None:
        """Books with any damage are refused, or read as far as they are right."""
        with tempfile.TemporaryFile() as file:
            file.write(bytes(at) + noise)
            file.flush()
            try:
                state = UploadState.load(file.fileno())
            except FormatError:
                return
            assert state.durable <= state.n_chunks

    @settings(max_examples=300)
    @given(st.binary(max_size=400) | st.binary(max_size=300).map(INTRO.__add__))
    def test_any_age_header(self, data: bytes) -> None:
        """Heads of encrypted files are hostile too."""
        file_key = None
        with contextlib.suppress(DecryptError):
            size = header_size(data)
            file_key = None if size is None else unwrap(data[:size], [IDENTITY])
        assert file_key is None

    @given(st.text(max_size=100))
    def test_any_key(self, text: str) -> None:
        """What decodes as Bech32 is what encodes back to it."""
        try:
            prefix, data = bech32.decode(text)
        except ValueError:
            return
        assert bech32.encode(prefix, data) == text.lower()

    @given(st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1), st.binary())
    def test_keys_round_trip(self, prefix: str, data: bytes) -> None:
        """Every key survives being spelt."""
        assert bech32.decode(bech32.encode(prefix, data)) == (prefix, data)
