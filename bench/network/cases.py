"""The five cases; each checks every dump that it times."""

from __future__ import annotations

import getpass
import shlex
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.measure import Measured, warm
from bench.network.line import line_to, plain_use
from bench.network.ours import Dumped, Target, checked, dump, dump_command, verify
from bench.network.places import PLACES, MakePlace, Place, s3, ssh, ssh_place, tcp
from bench.network.processes import cpu_seconds, peak_rss
from bench.network.rows import MIB, Row
from tests.lab.build import ensure_image
from tests.lab.net.sshd import SshServer, ssh_server
from tests.lab.tools import makedumpfile

LINE_RATE = 50e6
LINE_ROUND_TRIP_S = 0.05
_LINE_IMAGE = "k6.1-4l"
"""1 GiB: raw pages of its dump keep the line busy for ten seconds."""
_N_SENDERS = 8
_SENDERS_S = 300
_LARGE = "bench-6g"


def _image(name: str) -> Path:
    path = ensure_image(name)
    warm(path)
    return path


def _subfolder(folder: Path, name: str) -> Path:
    path = folder / name.replace(" ", "-")
    path.mkdir()
    return path


@dataclass(frozen=True, slots=True)
class _Seen:
    """A dump to a place, and the CPU seconds of the server meanwhile."""

    dumped: Dumped
    server_s: float

    @property
    def wall_s(self) -> float:
        return self.dumped.wall_s

    def cpu(self) -> dict[str, float]:
        """CPU seconds by who used them; others are whoever else is on the machine."""
        ours = self.dumped.measured.cpu_s
        return {
            "CPU ours": ours,
            "of it compressing": float(self.dumped.stats["seconds_by_stage"]["compressor"]),
            "server": self.server_s,
            "others": max(self.dumped.busy_s - ours - self.server_s, 0),
        }


def _seen(place: Place, image: Path, *, codec: str) -> _Seen:
    """A dump at level 1 to `place`, verified."""
    before = sum(cpu_seconds(place.pid))
    done = dump(image, place.target, level=1, codec=codec)
    server_s = sum(cpu_seconds(place.pid)) - before
    verify(place.to_verify)
    return _Seen(done, server_s)


def _cpu(seen: Sequence[_Seen]) -> dict[str, object]:
    """Medians of `_Seen.cpu`."""
    each = [one.cpu() for one in seen]
    return {name: statistics.median(one[name] for one in each) for name in each[0]}


def _pss(seen: Sequence[_Seen]) -> int:
    return max(one.dumped.measured.peak_pss for one in seen)


def _median(values: list[Any], of: Callable[[Any], float]) -> float:
    return statistics.median(of(value) for value in values)


def to_s3(folder: Path, rounds: int, image: str = _LARGE) -> Iterator[Row]:
    """To an object store, beside the same to a file on the disk that holds its data."""
    source = _image(image)
    local = Target(str(folder / "local.kdump"))
    remote: list[_Seen] = []
    files: list[Dumped] = []
    with s3(folder) as place:
        for _ in range(rounds):
            remote.append(_seen(place, source, codec="zstd"))
            files.append(dump(source, local, level=1, codec="zstd"))
            verify(local)
            Path(local.url).unlink()
    pairs = zip(remote, files, strict=True)
    yield Row(
        "s3",
        "zstd / local file",
        "s",
        _median(remote, lambda one: one.wall_s),
        _median(files, lambda one: one.wall_s),
        statistics.median(there.wall_s / here.wall_s for there, here in pairs),
        goal=1.2,
        least=1.6,
        pss=_pss(remote),
        more=_cpu(remote) | {"local": _median(files, lambda one: one.measured.cpu_s)},
    )


def to_sftp(folder: Path, rounds: int, image: str = _LARGE) -> Iterator[Row]:
    """To files behind sshd, beside makedumpfile's flattened stream into ``ssh cat``."""
    source = _image(image)
    ours: list[_Seen] = []
    theirs: list[Measured] = []
    with ssh_server(folder / "ssh") as server:
        place = ssh_place(server)
        for _ in range(rounds):
            ours.append(_seen(place, source, codec="lzo"))
            theirs.append(_flattened_over_ssh(server, source))
    pairs = zip(ours, theirs, strict=True)
    yield Row(
        "sftp",
        "lzo / ssh cat",
        "s",
        _median(ours, lambda one: one.wall_s),
        _median(theirs, lambda one: one.wall_s),
        statistics.median(mine.wall_s / other.wall_s for mine, other in pairs),
        goal=0.4,
        least=0.7,
        pss=_pss(ours),
        more=_cpu(ours) | {"theirs": _median(theirs, lambda one: one.cpu_s)},
    )


def _flattened_over_ssh(server: SshServer, image: Path) -> Measured:
    """As distributions save dumps; the key and the known hosts are those that ours uses."""
    path = server.files / "theirs"
    options = [f"UserKnownHostsFile={server.folder / 'known_hosts'}", "GlobalKnownHostsFile=none"]
    options += ["BatchMode=yes", "StrictHostKeyChecking=yes"]
    words = ["ssh", "-F", "none", "-i", str(server.folder / "id"), "-p", str(server.port)]
    words += [word for option in options for word in ("-o", option)]
    words += [f"{getpass.getuser()}@127.0.0.1", f"cat > {shlex.quote(str(path))}"]
    make = [*makedumpfile(), "-F", "-l", "-d", "1", "--message-level", "0", str(image)]
    line = f"{shlex.join(make)} | {shlex.join(words)}"
    done = checked(["bash", "-o", "pipefail", "-c", line])
    verify(Target(str(path)))
    path.unlink()
    return done


def over_the_line(folder: Path, rounds: int, image: str = _LINE_IMAGE) -> Iterator[Row]:
    """How much of a line of 50 MB/s and 50 ms each target uses, with pages as they are."""
    source = _image(image)
    best = plain_use(LINE_RATE, LINE_ROUND_TRIP_S, 256 * MIB) * 100
    for name, make in PLACES.items():
        with make(_subfolder(folder, name)) as place:
            done = [_over_line(place, source) for _ in range(rounds)]
        use = _median(done, lambda one: _use(one, one.copy_s))
        more: dict[str, object] = {
            "whole run": _median(done, lambda one: _use(one, one.wall_s)),
            "MB": done[0].n_bytes / 1e6,
        }
        pss = max(one.measured.peak_pss for one in done)
        yield Row("link", name, "%", use, best, use, goal=95, least=85, pss=pss, more=more)


def _over_line(place: Place, image: Path) -> Dumped:
    with line_to(place.port, rate=LINE_RATE, round_trip_s=LINE_ROUND_TRIP_S) as port:
        done = dump(image, place.at(port), level=1, codec="none")
    verify(place.to_verify)
    return done


def _use(done: Dumped, seconds: float) -> float:
    """Percent of what the line could take meanwhile that were bytes of the dump."""
    return done.n_bytes / (seconds * LINE_RATE) * 100


def memory(folder: Path, rounds: int, image: str = _LARGE) -> Iterator[Row]:
    """Peak memory of all processes of ours, for each target, all settings at their defaults."""
    source = _image(image)
    places: dict[str, MakePlace] = {**PLACES, "ssh cat": partial(ssh, scheme="ssh")}
    for name, make in places.items():
        with make(_subfolder(folder, name)) as place:
            done = [_seen(place, source, codec="zstd") for _ in range(rounds)]
        pss = _pss(done)
        peak = pss / MIB
        more: dict[str, object] = {"largest process": done[0].dumped.measured.max_rss // MIB}
        yield Row("rss", name, "M", peak, 0, peak, goal=160, least=200, pss=pss, more=more)


def many_senders(folder: Path, rounds: int, image: str = _LINE_IMAGE) -> Iterator[Row]:
    """Eight at once to one receiver; what it ever had in memory."""
    source = _image(image)
    with tcp(folder) as place:
        for _ in range(rounds):
            _send_at_once(place, source)
        peak = peak_rss(place.pid) / MIB
    yield Row("senders", f"{_N_SENDERS} to one receiver", "M", peak, 0, peak, goal=300, least=300)


def _send_at_once(place: Place, image: Path) -> None:
    assert place.stored is not None
    names = [f"vmcore-{number}" for number in range(_N_SENDERS)]
    with ExitStack() as stack:
        running = []
        for name in names:
            target = replace(place.target, url=place.target.url.replace("vmcore", name))
            argv = dump_command(image, target, 1, "zstd")
            process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
            stack.callback(process.kill)
            running.append(process)
        for name, process in zip(names, running, strict=True):
            _, said = process.communicate(timeout=_SENDERS_S)
            if process.returncode:
                raise SystemExit(f"sending {name}: {said}")
    for name in names:
        verify(Target(str(place.stored.with_name(name))))


CASES: dict[str, Callable[..., Iterator[Row]]] = {
    "s3": to_s3,
    "sftp": to_sftp,
    "link": over_the_line,
    "rss": memory,
    "senders": many_senders,
}
