"""Several targets, at once and one after the other: hangs, deadlines, interruptions, mistakes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stages.demo.build import DemoFacts
from tests.robust.running import (
    QUICK,
    SLOW,
    Done,
    call,
    children,
    finish,
    is_alive,
    left_in,
    run,
    started,
    wait_until,
)
from tests.support.ssh_bench import Bench

NO_JOURNAL = ("--set", "net.journal_dir=none", "--set", "http.ranges=always")


@contextmanager
def deaf_server() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


class Files:
    """A web server over a dictionary; it never answers when a file is to get a certain name."""

    def __init__(self, keeps_silent_about: str = "nothing") -> None:
        self.files: dict[str, bytearray] = {}
        self.asked = threading.Event()
        self.end = threading.Event()
        self.keeps_silent_about = keeps_silent_about

    @contextmanager
    def running(self) -> Iterator[str]:
        """Gives its URL."""
        with ThreadingHTTPServer(("127.0.0.1", 0), self._handler()) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}"
            finally:
                self.end.set()
                server.shutdown()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, status: int, data: bytes = b"") -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else data)

            def hush(self) -> None:
                if self.headers["destination"].endswith(f"/{store.keeps_silent_about}"):
                    store.asked.set()
                    store.end.wait(60)
                    self.close_connection = True

            def do_PUT(self) -> None:
                data = self.rfile.read(int(self.headers["content-length"]))
                span = self.headers.get("content-range", "bytes 0-").split(" ")[1]
                at = int(span.partition("-")[0])
                file = store.files.setdefault(self.path, bytearray())
                if "content-range" not in self.headers:
                    file.clear()
                file.extend(bytes(max(at - len(file), 0)))
                file[at : at + len(data)] = data
                self.answer(204)

            def do_GET(self) -> None:
                file = store.files.get(self.path)
                if file is None:
                    return self.answer(404)
                span = self.headers.get("range")
                if span is None:
                    return self.answer(200, bytes(file))
                first, last = (int(word) for word in span.partition("=")[2].split("-"))
                return self.answer(206, bytes(file[first : last + 1]))

            do_HEAD = do_GET  # noqa: N815

            def do_MOVE(self) -> None:
                self.hush()
                new = "/" + self.headers["destination"].split("/", 3)[3]
                store.files[new] = store.files.pop(self.path, bytearray())
                self.answer(201)

            def do_DELETE(self) -> None:
                self.answer(204 if store.files.pop(self.path, None) is not None else 404)

            def log_message(self, *_: object) -> None:
                """Not on the test's standard error."""

        return Handler


def config(folder: Path, *targets: str, net: str = "") -> Path:
    """A file of settings with these tables of targets."""
    path = folder / "targets.toml"
    tables = "".join(f"[[targets]]\n{target}\n" for target in targets)
    path.write_text(f"[net]\nretry_first_s = 0.01\n{net}\n{tables}")
    return path


class TestMistakes:
    """Found before the image is looked at: it does not even have to be there."""

    @pytest.mark.parametrize("targets", [("gopher://x/y",), ("a", "gopher://x/y")])
    def test_unknown_scheme(self, targets: tuple[str, ...], tmp_path: Path) -> None:
        """On the command line it is wrong usage, first or not."""
        done = call("dump", *QUICK, tmp_path / "none", *targets)

        done.failed(2, "gopher:// is not a target; there are")

    def test_unknown_scheme_in_settings(self, tmp_path: Path) -> None:
        """In [[targets]] it is a wrong setting, and the file is named."""
        file = config(tmp_path, 'url = "tcp://127.0.0.1:1/x"', 'url = "gopher://x/y"')

        done = call("dump", *QUICK, "--config", file, tmp_path / "none", tmp_path / "x")

        done.failed(2, f"{file}: targets.url: gopher:// is not a target")

    def test_the_same_twice(self, demo: DemoFacts, target: Path) -> None:
        """By whatever name: two writers of one file would spoil it."""
        other = f"{target.parent}/../{target.parent.name}/{target.name}"

        call("dump", *QUICK, demo.path, target, other).failed(2, "is named twice as a target")
        call("dump", *QUICK, demo.path, "-", "-").failed(2, "-: is named twice")

        assert left_in(target.parent) == []

    def test_wrong_key(self, tmp_path: Path) -> None:
        """A key that nobody could decrypt with is wrong usage too."""
        pytest.importorskip("cryptography")

        done = call("dump", *QUICK, "--encrypt-to", "age1x", tmp_path / "none", tmp_path / "x")

        done.failed(2, "is not a recipient's key")

    def test_plan_refuses_what_dump_does(self, tmp_path: Path) -> None:
        """`plan` says it first."""
        call("plan", tmp_path / "none", "gopher://x/y").failed(2, "gopher://")


class TestAtOnce:
    def test_standard_output_beside_a_file(self, demo: DemoFacts, target: Path) -> None:
        """Each has its own form, whichever is named first."""
        plain = target.with_name("plain")
        run("dump", "-d", "31", demo.path, plain).succeeded()
        for words in (("-", target), (target, "-")):
            with (target.parent / "stream").open("wb") as stream:
                run("dump", "-f", "-d", "31", demo.path, *words, stdout=stream).succeeded()
            assert target.read_bytes() == plain.read_bytes()
            assert (target.parent / "stream").read_bytes()[:12] == b"makedumpfile"

    def test_reader_of_standard_output_that_goes_away(self, demo: DemoFacts, target: Path) -> None:
        """The file is whole, and the summary names it alone."""
        words = ("dump", "-d", "0", *SLOW, "--compress-level", "3", demo.path, target, "-")
        with started(*words, stdout=subprocess.PIPE) as running:
            assert running.stdout is not None
            running.stdout.read(100)
            running.stdout.close()
            running.stdout = None
            done = finish(running)

        done.succeeded()
        assert done.event("target_dropped")["target"] == "-"
        assert done.event("dump_finished")["target"] == str(target)
        assert call("verify", target, "--against", demo.path).code == 0

    def test_both_fail_and_one_leaves_a_part(self, demo: DemoFacts, target: Path) -> None:
        """What the one left is named, and the exit code says that it is usable."""
        target.write_bytes(b"")
        words = ("dump", "-d", "31", *SLOW, demo.path)
        other = target.with_name("other")
        target.unlink()
        with started(*words, target, other) as running:
            wait_until(lambda: target.with_name("dump.partial").exists(), "the partial file")
            target.write_bytes(b"somebody else's")
            other.write_bytes(b"somebody else's")
            done = finish(running)

        done.failed(3, "every target failed", f"{target}.partial, {other}.partial")
        assert call("verify", f"{target}.partial", "--against", demo.path).code == 0

    def test_one_that_fails_in_the_commit(self, demo: DemoFacts, target: Path) -> None:
        """The summary names those that have the dump, and no others."""
        other = target.with_name("other")
        with started("dump", "-d", "31", *SLOW, demo.path, target, other) as running:
            wait_until(target.with_name("dump.partial").exists, "the partial file")
            other.write_bytes(b"somebody else's")
            done = finish(running)

        done.succeeded()
        assert done.event("dump_finished")["target"] == str(target)
        assert done.event("target_dropped")["left"] == f"{other}.partial"

    def test_hang_in_open_does_not_hold_up_the_other(
        self, demo: DemoFacts, target: Path, tmp_path: Path
    ) -> None:
        """A server that never answers is dropped in bounded time; the file has the dump."""
        net = "connect_timeout_s = 0.3\nstall_timeout_s = 0.3\nretry_deadline_s = 0.5"
        file = config(tmp_path, net=net)
        with deaf_server() as port:
            url = f"http://127.0.0.1:{port}/dump"
            done = run("dump", "--config", file, *NO_JOURNAL, demo.path, target, url)

        done.succeeded()
        assert left_in(target.parent) == ["dump"]


class TestInterrupted:
    """Ctrl-C in each phase of a run with a target on the network and one on disk."""

    def test_while_a_target_is_opened(self, demo: DemoFacts, target: Path) -> None:
        """Nothing was written, nothing is left."""
        with deaf_server() as port:
            url = f"http://127.0.0.1:{port}/dump"
            with started("dump", *NO_JOURNAL, demo.path, target, url) as running:
                wait_until(target.with_name("dump.partial").exists, "the partial file")
                running.send_signal(signal.SIGINT)
                finish(running).failed(1, "interrupted by SIGINT")

        assert left_in(target.parent) == []

    def test_while_pages_are_copied(self, demo: DemoFacts, target: Path) -> None:
        """Both are undone; what the file has by then is named, and usable."""
        server = Files()
        with server.running() as url:
            words = ("dump", "-d", "0", *SLOW, *NO_JOURNAL, demo.path, target, f"{url}/dump")
            partial = target.with_name("dump.partial")
            with started(*words) as running:
                wait_until(
                    lambda: partial.exists() and partial.stat().st_size > 1 << 20, "some pages"
                )
                running.send_signal(signal.SIGINT)
                done = finish(running)

        done.failed(3, "interrupted by SIGINT", str(partial))
        assert left_in(target.parent) == ["dump.partial"]
        assert server.files == {}

    def test_in_the_commit(self, demo: DemoFacts, target: Path) -> None:
        """The one that has its name by then keeps it; the other is undone."""
        server = Files("dump")
        with server.running() as url:
            words = ("dump", "-d", "31", *NO_JOURNAL, demo.path, target, f"{url}/dump")
            with started(*words) as running:
                wait_until(server.asked.is_set, "the rename")
                wait_until(target.exists, "the file")
                running.send_signal(signal.SIGINT)
                server.end.set()
                done = finish(running)

        done.failed(3, "interrupted by SIGINT", str(target))
        assert call("verify", target, "--against", demo.path).code == 0

    def test_leaves_no_process(self, demo: DemoFacts, target: Path) -> None:
        """Workers are gone when the command is."""
        with started("dump", "-d", "0", *SLOW, demo.path, target, f"{target}2") as running:
            wait_until(lambda: bool(children(running.pid)), "workers")
            found = children(running.pid)
            os.kill(running.pid, signal.SIGTERM)
            finish(running)

        wait_until(lambda: not any(map(is_alive, found)), "the workers' end")


class TestOneAfterTheOther:
    def test_deadline_while_opening(self, demo: DemoFacts, target: Path, tmp_path: Path) -> None:
        """A server that never answers is left at its deadline."""
        with deaf_server() as port:
            first = f'url = "http://127.0.0.1:{port}/dump"\ndeadline_s = 1'
            file = config(tmp_path, first, f'url = "{target}"')
            done = run("dump", "--config", file, *NO_JOURNAL, demo.path, tmp_path / "none" / "x")

        done.succeeded()
        assert reasons(done)[1] == "not done within its deadline of 1 s"
        assert done.event("dump_finished")["target"] == str(target)

    def test_deadline_in_the_commit(self, demo: DemoFacts, target: Path, tmp_path: Path) -> None:
        """The second has the dump, whatever became of the first."""
        server = Files("dump")
        with server.running() as url:
            file = config(tmp_path, f'url = "{url}/dump"\ndeadline_s = 3', f'url = "{target}"')
            done = run("dump", "--config", file, *NO_JOURNAL, demo.path, tmp_path / "none" / "x")

        done.succeeded()
        assert reasons(done)[1] == "not done within its deadline of 3 s"
        assert call("verify", target, "--against", demo.path).code == 0

    def test_failure_after_pages_were_copied(
        self, demo: DemoFacts, target: Path, tmp_path: Path
    ) -> None:
        """The second attempt counts its own pages only, and has all workers and buffers."""
        first = target.with_name("first")
        file = config(tmp_path, f'url = "{target}"')
        with started("dump", "-d", "31", *SLOW, "--config", file, demo.path, first) as running:
            wait_until(first.with_name("first.partial").exists, "the partial file")
            first.write_bytes(b"somebody else's")
            done = finish(running)

        done.succeeded()
        assert done.event("dump_finished")["target"] == str(target)
        seen = done.event("dump_finished")
        alone = run("dump", "-f", "-d", "31", *SLOW, demo.path, target).event("dump_finished")
        for key in ("pages_in", "pages_kept", "pages_zero", "pages_excluded", "bytes_out"):
            assert seen[key] == alone[key], key

    def test_failure_while_pages_are_copied(
        self, demo: DemoFacts, target: Path, tmp_path: Path
    ) -> None:
        """Buffers that were under way when the first failed are there for the second."""
        bench = Bench(tmp_path)
        bench.faults(refuse_writes=4)
        file = config(tmp_path, f'url = "{target}"', net="retry_deadline_s = 0.2")
        words = ("dump", "-d", "0", "--set", f"ssh.program={bench.program}", "--config", file)

        done = run(*words, demo.path, f"sftp://host{bench.files}/first")

        done.succeeded()
        assert bench.counted("writes")
        summary = done.event("dump_finished")
        alone = run("dump", "-f", "-d", "0", demo.path, target).event("dump_finished")
        for key in ("pages_in", "pages_kept", "pages_zero", "bytes_out"):
            assert summary[key] == alone[key], key
        assert summary["bytes_in"] > alone["bytes_in"], "what the first attempt read was read"

    def test_all_fail_and_an_early_one_left_a_part(
        self, demo: DemoFacts, target: Path, tmp_path: Path
    ) -> None:
        """What the first left counts, though the last left nothing."""
        file = config(tmp_path, f'url = "{tmp_path}/none/x"')
        with started("dump", "-d", "31", *SLOW, "--config", file, demo.path, target) as running:
            wait_until(target.with_name("dump.partial").exists, "the partial file")
            target.write_bytes(b"somebody else's")
            done = finish(running)

        done.failed(3, "no target took the dump", f"{target}.partial")

    def test_file_after_a_stream(self, demo: DemoFacts, target: Path, tmp_path: Path) -> None:
        """It is a plain dump and synced, though the first target would have got a stream."""
        file = config(tmp_path, f'url = "{target}"', net="retry_deadline_s = 0.2")
        ssh = ("--set", "ssh.program=/bin/false")

        run("dump", *ssh, "--config", file, demo.path, "ssh://host/x").succeeded()

        assert target.read_bytes()[:8] == b"KDUMP   "


def reasons(done: Done) -> list[str]:
    """Why each target failed, in the order they did."""
    lines = [json.loads(line) for line in done.err.splitlines() if line.startswith("{")]
    return [line["reason"] for line in lines if line["event"] == "target_failed"]
