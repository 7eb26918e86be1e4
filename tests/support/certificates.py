"""Certificates for servers and clients on loopback, and the authorities that sign them."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

_IN_CI = os.environ.get("CI") == "true"  # read now: conftest.py removes it from every test


class Pki(NamedTuple):
    """An authority, a server's and a client's certificate, each with its key in the same file."""

    ca: Path
    server: Path
    client: Path
    other_ca: Path

    def server_context(self, *, asks_client: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server)
        if asks_client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca)
        return context


def make_pki(folder: Path) -> Pki:
    """New certificates in the folder. Without openssl the test is skipped, or fails in CI."""
    if shutil.which("openssl") is None and not _IN_CI:
        pytest.skip("needs openssl to make certificates")

    def make(name: str, *more: str) -> Path:
        key, certificate = folder / f"{name}.key", folder / f"{name}.crt"
        command = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ]
        command += [
            "-days",
            "2",
            "-subj",
            f"/CN={name}",
            "-keyout",
            str(key),
            "-out",
            str(certificate),
            *more,
        ]
        subprocess.run(command, check=True, capture_output=True)
        both = folder / f"{name}.pem"
        both.write_bytes(key.read_bytes() + certificate.read_bytes())
        return both

    def signed(name: str) -> Path:
        ca = ["-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key")]
        return make(
            name, *ca, "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"
        )

    make("ca")
    make("other")
    return Pki(folder / "ca.crt", signed("server"), signed("client"), folder / "other.crt")
