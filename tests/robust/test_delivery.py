"""Several targets, targets that fail, encryption, and resuming: the command line end to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.demo.build import build_demo_image

PIPELINE = [sys.executable, "-m", "pipeline"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image with a whole kernel in it."""
    path = tmp_path_factory.mktemp("delivery") / "vmcore"
    build_demo_image(path)
    return path


@pytest.fixture(scope="module")
def direct(image: Path) -> bytes:
    """The dump that every way of delivering must give, byte for byte."""
    target = image.with_name("direct.kdump")
    run("dump", "-d", "31", str(image), str(target))
    return target.read_bytes()


def run(*words: str, wanted: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command; its exit code must be `wanted`."""
    done = subprocess.run(
        [*PIPELINE, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == wanted, done.stderr
    return done


def events(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Names of the events on standard error."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("{")]
    return [json.loads(line)["event"] for line in lines]


@contextmanager
def receiver(folder: Path) -> Iterator[str]:
    """A receiver on a free port of this machine; gives its address."""
    command = [*PIPELINE, "receive", "--listen", "127.0.0.1:0", str(folder)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


def test_two_targets_at_once_get_the_same_dump(image: Path, direct: bytes, tmp_path: Path) -> None:
    """Both files are whole, and equal to a dump with one target."""
    run("dump", "-d", "31", str(image), str(tmp_path / "a"), str(tmp_path / "b"))

    assert (tmp_path / "a").read_bytes() == direct
    assert (tmp_path / "b").read_bytes() == direct


def test_one_of_two_targets_may_fail(image: Path, direct: bytes, tmp_path: Path) -> None:
    """A target whose folder is missing is reported; the other has the dump."""
    run("dump", "-d", "31", str(image), str(tmp_path / "a"), str(tmp_path / "none" / "b"))

    assert (tmp_path / "a").read_bytes() == direct


def test_next_target_takes_what_the_first_could_not(
    image: Path, direct: bytes, tmp_path: Path
) -> None:
    """An unreachable receiver is given up after its deadline; the configured file has the dump."""
    config = tmp_path / "c.toml"
    config.write_text(
        f'[net]\nretry_deadline_s = 0.5\n[[targets]]\nurl = "{tmp_path}/next.kdump"\n'
    )

    done = run("dump", "-d", "31", "--config", str(config), str(image), "tcp://127.0.0.1:1/x")

    assert "target_used" in events(done)
    assert (tmp_path / "next.kdump").read_bytes() == direct


def test_last_resort_is_the_kernel_log(image: Path, tmp_path: Path) -> None:
    """With dmesg as the last target the log is saved, and the exit code says it is no dump."""
    config = tmp_path / "c.toml"
    config.write_text(
        "[net]\nretry_deadline_s = 0.2\n"
        f'[[targets]]\nurl = "{tmp_path}/none/dump"\n'
        f'[[targets]]\nurl = "{tmp_path}/log"\nwhat = "dmesg"\n'
    )

    done = run("dump", "--config", str(config), str(image), "tcp://127.0.0.1:1/x", wanted=3)

    assert (tmp_path / "log").read_text() == run("dmesg", str(image)).stdout
    error = done.stderr.splitlines()[-1]
    assert error.endswith(f"no target took the dump, only the kernel log is there: {tmp_path}/log")


def test_wrong_target_table_is_refused(image: Path, tmp_path: Path) -> None:
    """A misspelt key in [[targets]] is a usage error that names it."""
    config = tmp_path / "c.toml"
    config.write_text('[[targets]]\nurll = "x"\n')

    done = run("dump", "--config", str(config), str(image), str(tmp_path / "x"), wanted=2)

    assert "urll" in done.stderr
    assert list(tmp_path.iterdir()) == [config]


def test_encrypted_dump_decrypts_to_the_same_dump(
    image: Path, direct: bytes, tmp_path: Path
) -> None:
    """What was encrypted to a key is read out with its secret half, and with no other."""
    pytest.importorskip("cryptography")
    public = run("keygen", str(tmp_path / "key")).stdout.strip()
    run("keygen", str(tmp_path / "other"))
    sealed, opened = tmp_path / "sealed", tmp_path / "opened"

    run("dump", "-d", "31", "--encrypt-to", public, str(image), str(sealed))
    run("decrypt", "--identity", str(tmp_path / "key"), str(sealed), str(opened))
    run("decrypt", "--identity", str(tmp_path / "other"), str(sealed), str(opened) + "2", wanted=1)
    for needed in tmp_path / "key", sealed:
        before = needed.read_bytes()
        words = ("decrypt", "-f", "--identity", str(tmp_path / "key"), str(sealed), str(needed))
        assert "would replace" in run(*words, wanted=2).stderr
        assert needed.read_bytes() == before

    assert opened.read_bytes() == direct
    assert direct[:8] not in sealed.read_bytes()
    assert not Path(f"{opened}2").exists()


def test_stream_is_received_as_a_file(image: Path, direct: bytes, tmp_path: Path) -> None:
    """`dump ... - | receive - FILE` gives the direct dump."""
    words = [*PIPELINE, "dump", "-d", "31", str(image), "-"]
    with subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as dumping:
        subprocess.run(
            [*PIPELINE, "receive", "-", str(tmp_path / "got")],
            cwd=ROOT,
            stdin=dumping.stdout,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=60,
        )

    assert (tmp_path / "got").read_bytes() == direct


@pytest.mark.parametrize("form", ["kdump", "elf"])
def test_killed_upload_is_resumed(form: str, image: Path, tmp_path: Path) -> None:
    """After kill -9 of the sender, `resume` sends what is missing and no more."""
    direct = tmp_path / "direct"
    run("dump", "-d", "31", "--format", form, str(image), str(direct))
    got, journals = tmp_path / "got", tmp_path / "journals"
    got.mkdir()
    journals.mkdir()
    with receiver(got) as address:
        rate = {"kdump": "512KiB", "elf": "8MiB"}[form]  # the one is 2 MiB, the other 22
        sets = [f"net.rate_limit={rate}", "tcp.chunk_bytes=64KiB"]
        words = ["-d", "31", "--format", form, *(word for one in sets for word in ("--set", one))]
        command = [*PIPELINE, "dump", *words, "--set", f"net.journal_dir={journals}"]
        with subprocess.Popen(
            [*command, str(image), f"tcp://{address}/dump"], cwd=ROOT, stderr=subprocess.DEVNULL
        ) as sender:
            wait_for(lambda: sizes_above(got, 400_000))
            os.kill(sender.pid, signal.SIGKILL)
        done = run("resume", str(next(journals.iterdir())))

    assert "upload_resumed" in events(done)
    assert (got / "dump").read_bytes() == direct.read_bytes()
    assert f'"form": "{form}"' in (got / "dump.manifest.json").read_text()
    assert list(journals.iterdir()) == []


def sizes_above(folder: Path, n_bytes: int) -> bool:
    return any(path.stat().st_blocks * 512 > n_bytes for path in folder.iterdir())


def wait_for(condition: object, most_s: float = 30) -> None:
    """Poll until `condition()` is true."""
    assert callable(condition)
    until = time.monotonic() + most_s
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)
