"""Several servers behind one address, as behind a router or a load-balanced Service.

::

    with a_host("0.12.11") as one, a_host("0.12.11") as two:
        with request_by_request(tmp_path, one.sandbox.url, two.sandbox.url) as url: ...   # nginx: a router
        with connection_by_connection(one.sandbox.url, two.sandbox.url) as url: ...       # a TCP load balancer

The first server gets the first request or connection, and so on in turn. nginx may be missing: `NEEDS_NGINX` marks
the tests that want it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from patience import PATIENCE_S

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
NEEDS_NGINX = pytest.mark.skipif(
    not NGINX and os.environ.get("CI") != "true", reason="needs the program nginx"
)
_CONFIG = """
daemon off; {user} worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; client_max_body_size 0; proxy_buffering off; {headers}
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream hosts {{ {servers} }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://hosts; proxy_set_header Host localhost; proxy_next_upstream off; }}
  }}
}}
"""


@contextmanager
def request_by_request(folder: Path, *urls: str, headers: str = "") -> Iterator[str]:
    """The URL of an nginx that sends every request to the next server. `headers`: lines for its configuration."""
    assert NGINX is not None, "nginx is missing"
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        config = folder / "nginx.conf"
        servers = " ".join(f"server {urlsplit(url).netloc};" for url in urls)
        user = (
            "user root;" if os.geteuid() == 0 else ""
        )  # else the worker is somebody who cannot read `folder`
        config.write_text(
            _CONFIG.format(folder=folder, port=port, servers=servers, user=user, headers=headers)
        )
        listener.setblocking(False)
        listener.set_inheritable(True)
        process = subprocess.Popen(
            [NGINX, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)],
            pass_fds=[listener.fileno()],
            env={**os.environ, "NGINX": f"{listener.fileno()};"},  # take over this socket: no race for a port
            stderr=subprocess.DEVNULL,
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


@contextmanager
def connection_by_connection(*urls: str) -> Iterator[str]:
    """The URL of a port that hands every connection to the next server."""
    targets = cycle([(urlsplit(url).hostname, urlsplit(url).port) for url in urls])
    opened: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):  # the listener is closed
                while True:
                    client = listener.accept()[0]
                    server = socket.create_connection(next(targets))
                    opened.extend((client, server))
                    for source, sink in ((client, server), (server, client)):
                        threading.Thread(target=_carry, args=(source, sink), daemon=True).start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(PATIENCE_S)
            for each in opened:
                each.close()


def _carry(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
