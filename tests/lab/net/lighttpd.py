"""lighttpd with mod_webdav, which writes ranges of files in one of two ways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tests.lab.net.running import Running, find_server, free_ports, listens, running
from tests.lab.net.web import PASSWORD, USER, WebServer, bundle, make_root
from tests.support.certificates import Pem

RangeOption = Literal["deprecated-unsafe-partial-put", "partial-put-copy-modify"]
"""The first writes into the file; the second copies all of it for every range."""

_CONFIG = """\
server.modules = ("mod_webdav", "mod_auth", "mod_authn_file", "mod_openssl")
server.document-root = "{root}"
server.bind = "127.0.0.1"
server.port = {port}
server.upload-dirs = ("{folder}/upload")
server.max-request-size = 0
webdav.activate = "enable"
webdav.is-readonly = "disable"
webdav.opts = ("{option}" => "enable")
auth.backend = "plain"
auth.backend.plain.userfile = "{folder}/users"
auth.require = ("/closed" => ("method" => "basic", "realm" => "closed", "require" => "valid-user"))
$SERVER["socket"] == "127.0.0.1:{tls_port}" {{
    ssl.engine = "enable"
    ssl.pemfile = "{pem}"
}}
"""


@contextmanager
def lighttpd(folder: Path, pem: Pem, option: RangeOption) -> Iterator[WebServer]:
    """A server that writes ranges as `option` says."""
    program = find_server(
        "lighttpd", "apt-get install lighttpd lighttpd-mod-webdav lighttpd-mod-openssl"
    )
    root = make_root(folder)
    (folder / "upload").mkdir()
    port, tls_port = free_ports(2)
    (folder / "users").write_text(f"{USER}:{PASSWORD}\n")
    config = folder / "lighttpd.conf"
    config.write_text(
        _CONFIG.format(
            folder=folder,
            root=root,
            port=port,
            tls_port=tls_port,
            option=option,
            pem=bundle(pem, folder / "server.pem"),
        )
    )
    words = [program, "-D", "-f", config]
    process = Running(words, log=folder / "lighttpd.log", is_up=lambda: listens(port))
    with running(process):
        yield WebServer(process, root, port, tls_port)
