"""Which error an unhappy answer is: from HTTP status and text to a class of the error tree, with a way out.

The status alone says little: a model that a registry does not have is a 500 or a line under HTTP 200, never a 404.
Texts differ by version, so the rules look for the words that all of Ollama 0.3 to 0.33 share.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from ollamaops.errors import (
    AnswerError,
    BrokenDownload,
    ConnectionLost,
    DigestMismatch,
    DiskFull,
    InvalidRequest,
    NotFound,
    ProtocolError,
    RegistryRefused,
    RemoteError,
    ServerFault,
    TimeoutExceeded,
    cut_text,
)
from ollamaops.http.answer import error_kind, parse_retry_after

# Ollama's own words for this (`http: no Location header in response`) do not say what to do: ollama#7244
_NO_REDIRECT: Final = r"no location header in response|unexpected status code 200"
_NO_REDIRECT_WORDS: Final = (
    "the registry serves blobs itself, and Ollama only pulls from one that redirects to another host name"
)
_NO_REDIRECT_HINT: Final = (
    "let the registry redirect to its storage (docker-registry: an object store, or middleware: storage: redirect), "
    "or put a proxy before it that does"
)


class Rule(Struct, frozen=True):
    """Text in which `pattern` is found, whatever its case, is this error, whatever the status."""

    pattern: str
    error: type[AnswerError]
    hint: str | None = None


# a proxy had no answer from the server in time (RFC 9110 §15.6; 524 is Cloudflare's)
_GATEWAY_TIMEOUTS: Final = frozenset({504, 524})
_BAD_GATEWAY: Final = 502

# the first rule that matches wins
_RULES: Final = (
    Rule(
        r"no space left on device|not enough space on the disk|disk quota exceeded",
        DiskFull,
        "free space on the host: delete models, or restart the server so that it removes unused blobs",
    ),
    Rule(
        r"requires more (?:\w+ )?memory",
        ServerFault,
        "unload other models (ollamaops ps), set a smaller num_ctx, or declare a smaller quantization",
    ),
    Rule(
        r"digest mismatch, file must be downloaded again",
        BrokenDownload,
        "the server has removed the broken file: pull again to download it anew",
    ),
    Rule(r"digest mismatch", DigestMismatch, "the file changed since its digest was computed: run again"),
    Rule(
        r"pull model manifest: file does not exist",
        RegistryRefused,
        "the registry has no such model or tag: check the spelling",
    ),
    Rule(r"pull model manifest: 412", RegistryRefused, "the model needs a newer Ollama: upgrade this host"),
    Rule(_NO_REDIRECT, RegistryRefused, _NO_REDIRECT_HINT),
    Rule(
        r"HTTP request (?:was sent )?to (?:an )?HTTPS (?:server|port)",
        InvalidRequest,
        "a server with TLS is https:// in url",
    ),
    Rule(
        r"\brealm host\b",
        RegistryRefused,
        "the registry sends the server to another host for its token, which Ollama refuses since 0.14.3",
    ),
    Rule(
        r"server gave HTTP response to HTTPS client|insecure protocol http",
        RegistryRefused,
        "the registry speaks plain http: set insecure: true",
    ),
    Rule(
        r"x509:|tls: failed to verify",
        RegistryRefused,
        "the server does not trust the registry's certificate: add its authority to the trust store of the host",
    ),
    Rule(
        r"\bunauthorized\b|insufficient_scope|access denied|pull model manifest: (?:401|403)\b",
        RegistryRefused,
        "the registry does not know the server's key, or the name is not its own: "
        "register ~/.ollama/id_ed25519.pub of the user that runs the server",
    ),
    Rule(r"pull model manifest: (?:429|5\d\d)\b", ServerFault),
    Rule(r"pull model manifest: [34]\d\d\b", RegistryRefused),
    Rule(
        r"unable to load model: .*[\\/]blobs[\\/]",
        InvalidRequest,
        "its weights may be broken, or this server too old for them: ollamaops apply --repair brings them back",
    ),
    Rule(r"requires MLX support", RegistryRefused, "this model runs on hosts with MLX only"),
    Rule(
        r"[\\/]blobs[\\/]sha256-[0-9a-f]{64}: (?:no such file|the system cannot find)",
        NotFound,
        "the blob has gone from the server since it was seen there: upload it again",
    ),
    Rule(r"[\\/]manifests[\\/].*: (?:no such file|the system cannot find)", NotFound),
    Rule(
        r"(?:path|modelfile) or modelfile (?:is|are) required",
        InvalidRequest,
        "this server is older than 0.5.5 and only takes a Modelfile",
    ),
    Rule(
        r"neither 'from' or 'files' was specified",
        InvalidRequest,
        "this server is 0.5.5 or newer and takes no Modelfile",
    ),
    Rule(
        r"quantiz\w+ .*(?:no longer|not) supported",
        InvalidRequest,
        "this server does not quantize: give it a file that is quantized already, and leave out quantize",
    ),
    Rule(
        r"failed to validate GGUF",
        InvalidRequest,
        "the server's llama.cpp cannot read these weights: convert them anew, or use another version of Ollama",
    ),
    Rule(
        r"unsupported architecture|unknown type|not in GGUF format|unsupported content type|invalid file magic"
        r"|quantization is only supported|unsupported quantization|unknown filetype|unknown parameter"
        r"|invalid (?:int|float|bool) value|invalid model (?:name|path|reference)|unqualified name"
        r"|only one adapter|template error|command must be one of|message role must be|no FROM line"
        r"|file path must be relative|invalid digest format|must be of type|does not support"
        r"|not supported by your version|split GGUF|requires a DRAFT model|is a directory"
        r"|unknown model architecture|info field",
        InvalidRequest,
    ),
)

_STATUS_HINTS: Final[dict[int, str]] = {
    401: "the server or a proxy before it wants to know who asks: set auth for this host",
    403: "the server or a proxy before it does not allow this",
    405: "a proxy before the server may not let this method through",
    413: "a proxy before the server limits the size of uploads (nginx: client_max_body_size 0)",
}
_REFUSED_HINT: Final = (
    "what auth and headers of this host say was sent and not accepted: it may be wrong, expired, or of another kind "
    "than the server wants"
)
_HOST_CHECK_HINT: Final = (
    "a server that listens on loopback only answers to its own names: use its address or localhost in url, "
    "or let the proxy before it send 'Host: localhost'"
)


def text_of_error(body: str) -> str:
    """What the body of an error answer says: its JSON `error`, the title of a web page, or the text itself."""
    if is_web_page(body):
        title = re.search(r"<title[^>]*>(.*?)</title", body, re.IGNORECASE | re.DOTALL)
        return f"{title[1].strip() if title else 'untitled'} (a web page, not from Ollama)"
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError):
        return body.strip()
    return text_of_value(value) or body.strip()


def text_of_value(value: object) -> str:
    """The text in `{"error": "text"}`, in `{"error": {"message": "text"}}`, or nothing."""
    while isinstance(value, Mapping):
        value = value.get("error", value.get("message"))
    return value.strip() if isinstance(value, str) else ""


def is_web_page(body: str) -> bool:
    """Whether this is HTML, as proxies answer."""
    return body.lstrip()[:200].lower().startswith(("<!doctype", "<html", "<head", "<title", "<center", "<h1"))


def build_answer_error(
    host: str,
    what: str,
    status: int,
    body: str,
    headers: Mapping[str, str],
    method: str = "GET",
    *,
    told_who: bool = False,
) -> RemoteError:
    """The error for an HTTP answer outside 2xx. `what` is what was asked for, in the user's words.

    `told_who` says that credentials went with the request.
    """
    text = text_of_error(body)
    if 300 <= status < 400:
        return _build_redirect_error(host, what, status, headers.get("Location", ""))
    content_type = headers.get("Content-Type", "")
    if status == 404 and (content_type.startswith("text/") or is_web_page(body)):
        return ProtocolError(
            _message(host, what, f"HTTP 404: {text or 'no page at this address'}"),
            host=host,
            hint="there is no Ollama API at this address: check url, its port and its path",
        )
    error, hint = _classify(status, text)
    if status == 401 and told_who:
        hint = _REFUSED_HINT
    if status == 403 and not body and method != "HEAD":
        hint = _HOST_CHECK_HINT
    return error(
        _message(host, what, _in_clear(text) or f"HTTP {status}"),
        host=host,
        status=status,
        text=cut_text(text),
        retry_after_s=parse_retry_after(headers.get("Retry-After")),
        hint=hint,
    )


def build_line_error(host: str, what: str, line: Mapping[str, object]) -> AnswerError:
    """The error for an `{"error": …}` line in a stream; servers up to 0.12.5 may add the `status` they meant."""
    text = text_of_value(line) or "an error without text"
    status = line.get("status", line.get("StatusCode"))
    intended = status if isinstance(status, int) and status >= 400 else 0
    error, hint = _classify(intended, text)
    return error(
        _message(host, what, _in_clear(text)),
        host=host,
        status=intended or 200,
        text=cut_text(text),
        hint=hint,
    )


def is_overdue(error: RemoteError) -> bool:
    """Whether the server was reached but did not answer in time, by our own limit or a proxy's."""
    if isinstance(error, AnswerError):
        return error.status in _GATEWAY_TIMEOUTS
    return isinstance(error, TimeoutExceeded)


def ends_unheard(error: RemoteError) -> bool:
    """Whether the server may have done what it was asked for, or may still be doing it, although no answer came."""
    if isinstance(error, AnswerError) and error.status == _BAD_GATEWAY:
        return True
    return is_overdue(error) or isinstance(error, ConnectionLost)


def _classify(status: int, text: str) -> tuple[type[AnswerError], str | None]:
    """By text first: a server's words are more precise than its status. But who may ask is a matter of status."""
    if status not in (401, 403, 429):
        for rule in _RULES:
            if re.search(rule.pattern, text, re.IGNORECASE):
                return rule.error, rule.hint
    return error_kind(status), _STATUS_HINTS.get(status)


def _in_clear(text: str) -> str:
    """The server's words, or ours where those do not say what is wrong."""
    return _NO_REDIRECT_WORDS if re.search(_NO_REDIRECT, text, re.IGNORECASE) else text


def _build_redirect_error(host: str, what: str, status: int, location: str) -> ProtocolError:
    target = re.sub(r"//[^/@]*@", "//", location.partition("?")[0].partition("#")[0])
    return ProtocolError(
        _message(host, what, f"HTTP {status}: redirected to '{cut_text(target)}'"),
        host=host,
        hint="redirects are not followed, so that no secret goes astray: write the final address as url",
    )


def _message(host: str, what: str, why: str) -> str:
    return ": ".join(part for part in (host, what, cut_text(why)) if part)
