"""nginx with its own WebDAV module: whole files by PUT, no ranges, MOVE and DELETE if asked to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.net.running import Running, find_server, free_ports, listens, running
from tests.lab.net.web import PASSWORD, USER, WebServer, make_root
from tests.support.certificates import Pem

_CONFIG = """\
daemon off;
worker_processes 1;
{user}
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 0;
    server {{
        listen 127.0.0.1:{port};
        listen 127.0.0.1:{tls_port} ssl;
        ssl_certificate {pem.cert};
        ssl_certificate_key {pem.key};
        root {root};
        dav_methods {methods};
        location /closed {{
            auth_basic closed;
            auth_basic_user_file {folder}/users;
        }}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, pem: Pem, *, methods: str = "PUT DELETE MOVE") -> Iterator[WebServer]:
    """A server that takes `methods`."""
    program = find_server("nginx", "apt-get install nginx-light")
    root = make_root(folder)
    port, tls_port = free_ports(2)
    (folder / "users").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")
    config = folder / "nginx.conf"
    # Without root's rights nginx could not enter the folder, which only its owner may.
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(
        _CONFIG.format(
            user=user,
            folder=folder,
            port=port,
            tls_port=tls_port,
            pem=pem,
            root=root,
            methods=methods,
        )
    )
    words = [program, "-c", config, "-e", "stderr"]
    process = Running(words, log=folder / "nginx.log", is_up=lambda: listens(port))
    with running(process):
        yield WebServer(process, root, port, tls_port)
