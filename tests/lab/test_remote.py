"""Images that are not here: real nginx, a real S3 server, and drgn on top of them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.build import ensure_image
from tests.lab.commands import LabError, run
from tests.lab.net.nginx import nginx
from tests.lab.net.s3_admin import ACCESS_KEY, SECRET_KEY
from tests.lab.net.seaweedfs import S3Server, seaweedfs
from tests.lab.net.web import WebServer
from tests.lab.oracles.drgn_tasks import drgn_tasks
from tests.lab.ours import dumpstream
from tests.lab.tools import drgn_environment, vmlinux
from tests.support.certificates import Authority

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def image() -> Path:
    return ensure_image("k6.1-4l")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, image: Path, authority: Authority
) -> Iterator[WebServer]:
    """nginx that has the image."""
    with nginx(tmp_path_factory.mktemp("nginx"), authority.issue("a")) as it:
        (it.root / "vmcore").symlink_to(image)
        yield it


@pytest.fixture(scope="module")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as it:
        yield it


def test_dump_over_http_is_the_same(server: WebServer, image: Path, tmp_path: Path) -> None:
    """A dump made over HTTP keeps the same pages, with the same contents, as one of the file."""
    counted = {}
    for source in (server.url("vmcore"), str(image)):
        stats = tmp_path / "stats.json"
        words = ["-d", "31", "--progress", "none", "-f", "--stats", str(stats)]
        dumpstream("dump", *words, source, tmp_path / "out")
        dumpstream("verify", tmp_path / "out", "--against", image)
        counted[source] = json.loads(stats.read_text())

    remote, local = counted.values()
    for key in ("pages_kept", "pages_zero", "pages_excluded", "pages_missing"):
        assert remote[key] == local[key]
    assert 0 < remote["cache"]["source_bytes"] < image.stat().st_size / 4
    assert local["cache"]["source_requests"] == 0


def test_looking_touches_only_what_it_needs(server: WebServer, image: Path) -> None:
    """info, dmesg and translate say over HTTP what they say of the file."""
    for words in (["dmesg"], ["info"]):
        remote = dumpstream(*words, server.url("vmcore"))
        local = dumpstream(*words, image)
        assert remote.replace(server.url("vmcore"), str(image)) == local


def test_missing_object_is_one_error(server: WebServer) -> None:
    """A URL without a dump behind it ends in one line that names the URL and the status."""
    with pytest.raises(LabError, match="HTTP 404"):
        dumpstream("info", server.url("nothing"))


def test_unknown_authority_is_refused(server: WebServer) -> None:
    """A certificate nobody vouches for is not accepted, and there is no way round."""
    with pytest.raises(LabError, match="certificate not trusted"):
        dumpstream("info", server.tls_url("vmcore"))


def test_dump_over_tls(server: WebServer, authority: Authority, tmp_path: Path) -> None:
    """With its authority named, https serves a dump."""
    trust = f"net.ca_file={authority.ca_file}"

    words = ["-d", "31", "--progress", "none", "--set", trust]
    dumpstream("dump", *words, server.tls_url("vmcore"), tmp_path / "out")

    assert (tmp_path / "out").stat().st_size > 1 << 20


def test_s3(weed: S3Server, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dump is stored in an object store, and looked into there."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{weed.port}")
    local = tmp_path / "local"
    dumpstream("dump", "-d", "31", "--progress", "none", image, local)
    assert weed.admin.call("PUT", "dumps/host7/vmcore", local.read_bytes()).status == 200

    remote = dumpstream("dmesg", "s3://dumps/host7/vmcore")

    assert remote == dumpstream("dmesg", local)
    with pytest.raises(LabError, match="HTTP 404"):
        dumpstream("info", "s3://dumps/host7/nothing")


def test_drgn_lists_the_tasks_of_a_remote_dump(server: WebServer, image: Path) -> None:
    """The example gives drgn a dump on a web server; less than one per cent of it is fetched."""
    symbols = vmlinux("6.1")
    program = (
        "import sys, json; sys.path.insert(0, 'docs/examples')\n"
        "from remote_drgn import remote_program, for_each_task\n"
        "with remote_program(*sys.argv[1:]) as (program, dump):\n"
        "    every = for_each_task(program)\n"
        "    tasks = [(task.pid.value_(), task.comm.string_().decode()) for task in every]\n"
        "    json.dump([tasks, dump.source_bytes], sys.stdout)\n"
    )
    environment = {**drgn_environment()}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment["PYTHONPATH"]])
    words = ["env", "-C", str(ROOT), sys.executable, "-c", program, server.url("vmcore"), symbols]

    tasks, n_bytes = json.loads(run(words, env=environment))

    assert sorted((pid, comm) for pid, comm in tasks) == drgn_tasks(image, symbols)
    assert n_bytes < image.stat().st_size / 100
