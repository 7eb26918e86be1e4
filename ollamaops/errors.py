"""Everything that can go wrong, as one tree.

::

    OllamaopsError                    exit 1
    ├── UsageError                    exit 64  the command line asks for something impossible
    ├── ManifestError                 exit 65  carries every Problem found in the user's files
    │   └── ModelfileError                     one Modelfile is not valid; Ollama's own words, and the line
    ├── InvalidName                   exit 65  not a model name that an Ollama server would take
    ├── InvalidValue                  exit 65  a size, duration or digest that cannot be read
    ├── WeightsError                  exit 1   a local weights file is missing, cut short, changed or not what it says
    ├── StateError                    exit 1   the ledger or the state folder cannot be used
    ├── RefusedError                  exit 4   a safety rule said no; nothing was changed
    ├── Cancelled                     exit 130 the user or another thread asked to stop
    └── RemoteError                   exit 3   something on the other side of the wire; names the host
        ├── TransportError                     no complete HTTP answer arrived
        │   ├── ConnectError                   transient: refused, no route, name not found, no connection in time
        │   ├── TlsError                       the certificate or the handshake was not accepted
        │   ├── ConnectionLost                 transient: cut while sending or receiving
        │   └── TimeoutExceeded                transient: connected, but silent, or "completed" stood still
        ├── ProtocolError                      an answer that is not what Ollama answers (HTML, bad JSON)
        │   └── CutStream                      transient: a stream ended without its last "success"
        └── AnswerError                        the server answered with an error; carries status and text
            ├── InvalidRequest                 400 and other 4xx that will not change
            ├── AccessDenied                   401, 403
            ├── NotFound                       404
            ├── TooManyRequests                transient: 429; honours Retry-After
            ├── ServerFault                    transient: 5xx and error lines of unknown cause
            ├── DiskFull                       the server's disk is full; never retried
            ├── DigestMismatch                 bytes and digest do not agree
            │   └── BrokenDownload             transient: a pull brought other bytes; the server has dropped them
            └── RegistryRefused                the registry behind a pull or push said no; not retried

Each class knows `transient` (worth another try), `exit_code` (design of the command line) and each value may
carry a `hint`: what to do about it, one sentence. Messages read "what: why", lower case, no final period.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar

from msgspec import Struct

MAX_SERVER_TEXT = 256


def cut_text(text: str, limit: int = MAX_SERVER_TEXT) -> str:
    """One line of at most `limit` characters of what a server said; longer text ends in `…`."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`: did you mean 'x'?`, or nothing when no known word is near."""
    folded = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    return f": did you mean '{folded[near[0]]}'?" if near else ""


class OllamaopsError(Exception):
    """The root. `str(error)` is the message without the hint."""

    transient: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(OllamaopsError):
    """The command line cannot be carried out as written."""

    exit_code = 64


class Problem(Struct, frozen=True, order=True):
    """One thing wrong in a user's file. Lines and columns count from 1; 0 means "the file as a whole"."""

    path: str
    line: int
    column: int
    message: str
    hint: str | None = None

    @property
    def place(self) -> str:
        """`file:line:column`, or just the file when the problem is about all of it."""
        return f"{self.path}:{self.line}:{self.column}" if self.line else self.path


class ManifestError(OllamaopsError):
    """The user's files are not valid. `problems` holds all of them, sorted by place."""

    exit_code = 65

    def __init__(self, problems: tuple[Problem, ...] | list[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda p: (p.path, p.line, p.column, p.message)))
        super().__init__("\n".join(f"{p.place}: {p.message}" for p in self.problems))


class ModelfileError(ManifestError):
    """A Modelfile is not valid. `message` is what Ollama's own parser says; `line` counts from 1, 0 if unknown."""

    def __init__(self, message: str, *, line: int = 0, path: str = "Modelfile") -> None:
        super().__init__([Problem(path, line, 1 if line else 0, message)])
        self.message = message
        self.line = line

    def __str__(self) -> str:
        return self.message


class InvalidName(OllamaopsError):
    """Not a name that an Ollama server would take."""

    exit_code = 65


class InvalidValue(OllamaopsError):
    """A size, duration, digest or the like that cannot be read."""

    exit_code = 65


class WeightsError(OllamaopsError):
    """A local weights file cannot be used as it is."""


class StateError(OllamaopsError):
    """The state folder or the ledger in it cannot be used."""


class RefusedError(OllamaopsError):
    """A safety rule refused; nothing was changed."""

    exit_code = 4


class Cancelled(OllamaopsError):
    """Somebody asked to stop: Ctrl-C, or another thread."""

    exit_code = 130


class RemoteError(OllamaopsError):
    """Something on the other side of the wire failed. `host` is the host's name in the manifest."""

    exit_code = 3

    def __init__(self, message: str, *, host: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.host = host


class TransportError(RemoteError):
    """No complete HTTP answer arrived."""


class ConnectError(TransportError):
    """Nobody answers at the address: refused, no route, unknown name, no connection in time. Nothing was sent."""

    transient = True


class TlsError(TransportError):
    """The certificate or the handshake was not accepted. Trying again does not help."""


class ConnectionLost(TransportError):
    """The connection was cut while sending or receiving."""

    transient = True


class TimeoutExceeded(TransportError):
    """The server was connected to, and took longer than allowed to send the next bytes or to make progress."""

    transient = True


class ProtocolError(RemoteError):
    """The answer is not one that an Ollama server (or registry) gives."""


class CutStream(ProtocolError):
    """A pull, create or push stream ended without `success` as its last line."""

    transient = True


class AnswerError(RemoteError):
    """The server answered with an error. `status` is the HTTP status, 200 for an error line inside a stream."""

    def __init__(
        self,
        message: str,
        *,
        host: str = "",
        status: int = 0,
        text: str = "",
        retry_after_s: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, host=host, hint=hint)
        self.status = status
        self.text = text
        self.retry_after_s = retry_after_s


class InvalidRequest(AnswerError):
    """400 and other 4xx: the same request will be refused again."""


class AccessDenied(AnswerError):
    """401 or 403, from the server or a proxy before it."""


class NotFound(AnswerError):
    """404: no such model, blob or path."""


class TooManyRequests(AnswerError):
    """429; `retry_after_s` holds what Retry-After asked for."""

    transient = True


class ServerFault(AnswerError):
    """5xx, or an error line whose cause is not known to be lasting."""

    transient = True


class DiskFull(AnswerError):
    """The server has no space left. Retrying only makes it worse."""


class DigestMismatch(AnswerError):
    """Bytes and digest do not agree."""


class BrokenDownload(DigestMismatch):
    """A pull brought other bytes than it should have. The server has removed them, so pulling again fetches anew."""

    transient = True


class RegistryRefused(AnswerError):
    """The registry behind a pull or push answered with a lasting error (not found, denied, too old a server)."""
