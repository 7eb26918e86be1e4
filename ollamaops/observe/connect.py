"""From a HostSpec to an OllamaClient: secrets are read here, at the last moment, and go nowhere else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

from ollamaops.errors import UsageError
from ollamaops.http.cancel import CancelToken
from ollamaops.http.session import Credentials, TimeLimits, TlsFiles
from ollamaops.manifest.types import (
    BasicAuth,
    BearerAuth,
    HostSpec,
    Secret,
    SecretFromCommand,
    SecretFromEnv,
    SecretFromFile,
    Tls,
)
from ollamaops.ollama.client import OllamaClient

COMMAND_TIMEOUT_S = 30


def connect(
    spec: HostSpec, cancel: CancelToken | None = None, environ: Mapping[str, str] = os.environ
) -> OllamaClient:
    """A client for the host, nothing sent yet. UsageError if a secret cannot be read; its value is never shown."""
    auth: Credentials | None = None
    match spec.auth:
        case None:
            pass
        case BearerAuth(token=token):
            auth = Credentials(bearer=read_secret(token, spec.name, environ))
        case BasicAuth(user=user, password=password):
            auth = Credentials(basic=(user, read_secret(password, spec.name, environ)))
        case _:
            assert_never(spec.auth)
    headers = {
        name: value if isinstance(value, str) else read_secret(value, spec.name, environ)
        for name, value in spec.headers.items()
    }
    return OllamaClient.connect(
        spec.url,
        host_name=spec.name,
        headers=headers,
        auth=auth,
        tls=_tls_files(spec.tls),
        proxy=spec.proxy,
        limits=TimeLimits(connect_s=spec.timeout_s, idle_s=spec.timeout_s, stall_s=spec.stall_s),
        cancel=cancel,
    )


def _tls_files(tls: Tls) -> TlsFiles:
    ca, cert, key = (str(path) if path else None for path in (tls.ca, tls.cert, tls.key))
    return TlsFiles(ca=ca, cert=cert, key=key, verify=tls.verify)


def read_secret(secret: Secret, host: str, environ: Mapping[str, str] = os.environ) -> str:
    """The secret's text without its trailing newline. UsageError names where it should have come from."""
    match secret:
        case SecretFromEnv(name=name):
            if not environ.get(name):
                raise UsageError(
                    f"{host}: the environment variable {name} is not set", hint=f"export {name}=…"
                )
            return environ[name]
        case SecretFromFile(path=path):
            text, source = _read(path, host), str(path)
        case SecretFromCommand(argv=argv):
            text, source = _run(argv, host), f"what {argv[0]!r} prints"
        case _:
            assert_never(secret)
    if not text:
        raise UsageError(f"{host}: cannot use the secret in {source}: it is empty")
    return text


def _read(path: Path, host: str) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        reason = (error.strerror or "input/output error").lower()
    except UnicodeDecodeError:
        reason = "not text"
    raise UsageError(f"{host}: cannot read the secret in {path}: {reason}") from None


def _run(argv: tuple[str, ...], host: str) -> str:
    """What a command prints, which nothing of ours repeats: not even when it fails."""
    try:
        done = subprocess.run(  # noqa: S603  the user's own manifest names the command, and no shell reads it
            argv, capture_output=True, timeout=COMMAND_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
        text = done.stdout.decode("utf-8").rstrip("\r\n")
    except OSError as error:
        raise _cannot_run(argv, host, (error.strerror or "input/output error").lower()) from None
    except subprocess.TimeoutExpired:
        raise _cannot_run(argv, host, f"no answer within {COMMAND_TIMEOUT_S} s") from None
    except UnicodeDecodeError:
        raise _cannot_run(argv, host, "it does not print text") from None
    if done.returncode != 0:
        raise _cannot_run(argv, host, f"it ended {done.returncode}")
    return text


def _cannot_run(argv: tuple[str, ...], host: str, reason: str) -> UsageError:
    return UsageError(f"{host}: cannot get a secret from {argv[0]!r}: {reason}")
