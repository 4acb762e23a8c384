"""One command at the other end of ``ssh``: started, fed, heard, and its end explained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pipeline.errors import SinkError
from stages.sink.retry import TransientError
from stages.sink.ssh_process import LostConnectionError, SshProcess
from stages.sink.ssh_scripts import MARK
from stages.sink.ssh_words import failure

_READ_BYTES: Final = 4096
_MOST_SAID: Final = 64 << 10


class RemoteCommand:
    """A running command. Its answers are the lines of its output that start with `MARK`."""

    def __init__(self, process: SshProcess, target: str) -> None:
        self._process = process
        self._target = target
        self._said = b""
        self._n_answers = 0

    @classmethod
    async def start(cls, argv: Sequence[str], target: str) -> RemoteCommand:
        """Start ssh with `argv`; `target` is for messages."""
        return cls(await SshProcess.start(argv), target)

    async def send(self, views: list[memoryview]) -> None:
        """Feed the command's standard input.

        Raises:
            LostConnectionError: the connection is gone.
            SinkError: the command has ended, and why.
        """
        try:
            await self._process.write(views)
        except LostConnectionError as error:
            raise await self._failure() from error

    async def answer(self) -> str | None:
        """The next answer, None when the command has said its last.

        Raises:
            SinkError: it talks without end.
        """
        while True:
            lines = self._said.split(b"\n")
            answers = [line for line in lines[:-1] if line.startswith(MARK.encode())]
            if len(answers) > self._n_answers:
                self._n_answers += 1
                text = answers[self._n_answers - 1].decode("utf-8", "replace")
                return text.removeprefix(MARK).strip()
            more = await self._process.read(_READ_BYTES)
            if not more:
                return None
            self._said += more
            if len(self._said) > _MOST_SAID:
                raise SinkError(f"{self._target}: over {_MOST_SAID} bytes of output, wanted a line")

    async def finish(self) -> dict[str, str]:
        """End the input, and wait for the command to succeed.

        Returns:
            The answers that were still to come, by their first word.

        Raises:
            LostConnectionError: the connection was lost first.
            SinkError: the command failed.
        """
        self._process.end_input()
        answers: dict[str, str] = {}
        last = ""
        while (answer := await self.answer()) is not None:
            last = answer
            word, _, rest = answer.partition(" ")
            answers[word] = rest
        code, words = await self._process.last_words()
        if code != 0:
            raise (
                SinkError(f"{self._target}: {last}")
                if code == 3
                else failure(self._target, code, words)
            )
        return answers

    async def _failure(self) -> SinkError:
        """Why the command is gone; what it said itself goes before what ssh said."""
        code, words = await self._process.last_words()
        if code == 0:
            return TransientError(f"{self._target}: the other end stopped reading")
        return failure(self._target, code, words)

    async def refusal(self, answer: str | None) -> SinkError:
        """The error for a command that did not answer as it should."""
        if answer is not None:
            return SinkError(f"{self._target}: {answer}")
        return await self._failure()

    async def hang_up(self) -> None:
        """End the input before its time, and wait a little for what the command makes of it."""
        await self._process.last_words()

    async def close(self, most_s: float = 0) -> None:
        """End it; it may take `most_s` to end by itself. Works when cancelled."""
        await self._process.close(most_s)


async def run_command(argv: Sequence[str], target: str, data: bytes = b"") -> None:
    """Run a command that reads `data` and should succeed.

    Raises:
        LostConnectionError: the connection was lost, so nobody knows.
        SinkError: it failed.
    """
    command = await RemoteCommand.start(argv, target)
    try:
        if data:
            await command.send([memoryview(data)])
        await command.finish()
    finally:
        await command.close()
