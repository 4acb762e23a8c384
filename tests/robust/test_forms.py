"""Every kind of target says in its manifest what it was sent, and has just that."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

from stages.demo.build import DemoFacts
from stages.formats.flattened import SIGNATURE
from stages.sink.manifest import SUFFIX, Manifest, parse_manifest
from tests.robust.running import Done, command, process
from tests.support.dav_server import DavServer
from tests.support.fake_s3 import FakeS3
from tests.support.ssh_bench import Bench
from tests.support.web_server import web_server

pytestmark = pytest.mark.anyio

TARGETS = ("http", "http stream", "s3", "sftp", "ssh", "tcp")
STREAMS = ("http stream", "ssh")
WORDS = {
    "kdump": (),
    "elf": ("--format", "elf"),
    "encrypted": ("--encrypt-to", "@key.pub"),
    "encrypted elf": ("--encrypt-to", "@key.pub", "--format", "elf"),
}


@dataclass
class Lab:
    """Servers of every kind, and a folder to work in."""

    folder: Path
    source: str
    dav: DavServer
    s3: FakeS3
    bench: Bench
    urls: dict[str, str] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)

    async def run(self, *words: object) -> Done:
        """A command in the folder, while the servers go on."""
        with anyio.fail_after(120):
            done = await anyio.run_process(
                command(*words),
                check=False,
                cwd=self.folder,
                env=self.environ,
                stdin=subprocess.DEVNULL,
            )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    async def dump(self, target: str, *words: object) -> Done:
        sets = [word for one in self.settings for word in ("--set", one)]
        return await self.run("dump", *words, *sets, self.source, self.urls[target])

    def stored(self, target: str, suffix: str = "") -> bytes:
        """What the target has."""
        match target:
            case "http" | "http stream":
                return bytes(self.dav.files[f"/dump{suffix}"])
            case "s3":
                return self.s3.objects[f"dump{suffix}"].data
            case "tcp":
                return (self.folder / "got" / f"dump{suffix}").read_bytes()
        return (self.bench.files / f"dump{suffix}").read_bytes()

    def manifest(self, target: str) -> Manifest:
        return parse_manifest(self.stored(target, SUFFIX))

    async def rebuilt(self, target: str, *, encrypted: bool) -> Path:
        """What is stored, made into a dump again by our own commands."""
        path = self.folder / "stored"
        path.write_bytes(self.stored(target))
        if target in STREAMS:
            assert path.read_bytes().startswith(SIGNATURE)
            with path.open("rb") as stream:
                words = command("receive", "-", "unflattened")
                await anyio.run_process(words, cwd=self.folder, env=self.environ, stdin=stream)
            path = self.folder / "unflattened"
        if encrypted:
            done = await self.run("decrypt", "--identity", "key", path, "decrypted")
            assert done.code == 0, done.err
            path = self.folder / "decrypted"
        return path


@pytest.fixture
async def lab(demo: DemoFacts, tmp_path: Path) -> AsyncIterator[Lab]:
    """Everything started; nothing has a dump yet."""
    one = Lab(tmp_path, str(demo.path), DavServer(), FakeS3(), Bench(tmp_path))
    root = str(Path(__file__).parents[2])
    one.environ = {
        **{key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
        "PYTHONPATH": root,
        "AWS_ACCESS_KEY_ID": "AKIDTEST",
        "AWS_SECRET_ACCESS_KEY": "do-not-show-this",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }
    async with AsyncExitStack() as stack:
        web = await stack.enter_async_context(one.dav.running())
        s3 = await stack.enter_async_context(web_server(one.s3))
        words = command("receive", "--listen", "127.0.0.1:0", tmp_path / "got")
        (tmp_path / "got").mkdir()
        there = stack.enter_context(
            process(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=one.environ)
        )
        assert there.stdout is not None
        line = await anyio.to_thread.run_sync(there.stdout.readline)
        address = line.decode().split()[-1]
        one.urls = {
            "http": f"{web}/dump",
            "http stream": f"{web}/dump",
            "s3": "s3://dumps/dump",
            "sftp": f"sftp://host{one.bench.files}/dump",
            "ssh": f"ssh://host{one.bench.files}/dump",
            "tcp": f"tcp://{address}/dump",
        }
        one.environ["DUMPSTREAM_S3__ENDPOINT"] = s3
        one.settings = [
            f"ssh.program={one.bench.program}",
            "ssh.remote_program=",
            "net.journal_dir=none",
            "compressor.mode=inline",
        ]
        yield one


@pytest.mark.parametrize("form", [*WORDS])
@pytest.mark.parametrize("target", TARGETS)
async def test_manifest_says_what_is_stored(lab: Lab, target: str, form: str) -> None:
    """The form, what a flattened stream holds, and after all the ways back a dump that verifies."""
    if target == "http stream":
        lab.settings.append("http.ranges=never")
    is_encrypted = form.startswith("encrypted")
    if is_encrypted:
        pytest.importorskip("cryptography")
        (lab.folder / "key.pub").write_text((await lab.run("keygen", "key")).out)

    done = await lab.dump(target, *WORDS[form])

    assert done.code == 0, done.err
    manifest = lab.manifest(target)
    wanted = "encrypted" if is_encrypted else form
    if target in STREAMS:
        assert (manifest.form, manifest.holds) == ("flattened", wanted)
    else:
        assert (manifest.form, manifest.holds) == (wanted, None)
    assert manifest.size == len(lab.stored(target))
    back = await lab.rebuilt(target, encrypted=is_encrypted)
    magic = b"\x7fELF" if form.endswith("elf") else b"KDUMP   "
    assert back.read_bytes().startswith(magic)
    verified = await lab.run("verify", back, "--against", lab.source)
    assert verified.code == 0, verified.out


@pytest.mark.parametrize("form", [*WORDS])
async def test_what_is_stored_is_verified_where_it_is(lab: Lab, form: str) -> None:
    """`verify URL` takes every form, and sees a byte that has changed."""
    if form.startswith("encrypted"):
        pytest.importorskip("cryptography")
        (lab.folder / "key.pub").write_text((await lab.run("keygen", "key")).out)
    await lab.dump("s3", *WORDS[form])

    good = await lab.run("verify", "s3://dumps/dump")
    stored = lab.s3.objects["dump"]
    stored.headers["x-amz-checksum-sha256"] = "A" * 43 + "=-2"
    bad = await lab.run("verify", "s3://dumps/dump")

    assert (good.code, bad.code) == (0, 1), good.out + good.err
    assert "the store's sha256" in bad.out


@pytest.mark.parametrize("words", [(), ("--encrypt-to", "@key.pub")])
@pytest.mark.parametrize("target", TARGETS)
async def test_last_resort_is_what_its_manifest_says(
    lab: Lab, target: str, words: tuple[str, ...]
) -> None:
    """The kernel log goes to every kind of target, and in clear only if the dump would have."""
    if target == "http stream":
        lab.settings.append("http.ranges=never")
    if words:
        pytest.importorskip("cryptography")
        (lab.folder / "key.pub").write_text((await lab.run("keygen", "key")).out)
    url = lab.urls[target]
    config = lab.folder / "last.toml"
    config.write_text(f'[[targets]]\nurl = "{url}"\nwhat = "dmesg"\n')
    lab.urls[target] = str(lab.folder / "none" / "dump")

    done = await lab.dump(target, *words, "--config", config)

    assert done.code == 3, done.err
    manifest = lab.manifest(target)
    wanted = "encrypted" if words else "log"
    assert wanted in (manifest.form, manifest.holds)
    text = (await lab.rebuilt(target, encrypted=bool(words))).read_text()
    assert text == (await lab.run("dmesg", lab.source)).out
    assert bool(words) != (b"Linux version" in lab.stored(target))
