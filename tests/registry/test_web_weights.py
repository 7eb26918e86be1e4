"""Weights that lie elsewhere: which addresses are taken, what is found there, and how the bytes arrive."""

from __future__ import annotations

import re
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE_S
from registry_fixture import (
    BODY,
    COMMIT,
    DIGEST,
    Answers,
    Reply,
    Request,
    a_file,
    make_certificate,
    run_server,
)
from scripted_host import Asked, ScriptedHost, Wire

from ollamaops.errors import (
    AccessDenied,
    AnswerError,
    ConnectionLost,
    DigestMismatch,
    InvalidRequest,
    InvalidValue,
    NotFound,
    ProtocolError,
    ServerFault,
    TooManyRequests,
    UsageError,
    WeightsError,
)
from ollamaops.files.location import HubFile, RemoteFile, RemoteRef, is_remote, parse_hub, parse_remote
from ollamaops.http.exchange import Request as HttpRequest
from ollamaops.http.redirects import Fetcher
from ollamaops.http.session import HttpSession, TlsFiles
from ollamaops.names import Digest
from ollamaops.registry.download import RESUMES, Opened, RemoteStream
from ollamaops.registry.web_weights import RemoteWeights


def moved(answers: Mapping[str, Reply | Answers]) -> Answers:
    """A server with an answer per path."""

    def answer(request: Request) -> Reply:
        found = answers.get(request.path, Reply(404))
        return found if isinstance(found, Reply) else found(request)

    return answer


def weights(**environ: str) -> RemoteWeights:
    return RemoteWeights(environ, timeout_s=PATIENCE_S)


def read_all(stream: RemoteStream, block: int = 1000) -> bytes:
    with stream:
        return b"".join(iter(lambda: stream.read(block), b""))


# addresses


@pytest.mark.parametrize(
    "text, name",
    [
        ("https://host/a/b.gguf", "b.gguf"),
        ("http://127.0.0.1:8080/b.gguf", "b.gguf"),
        ("https://host/with%20blank.gguf", "with blank.gguf"),
        ("hf://org/repo/sub/b.gguf", "b.gguf"),
        ("hf://org/repo@v1/b.gguf", "b.gguf"),
        ("s3://bucket/folder/b.gguf", "b.gguf"),
        ("HTTPS://HOST/b.gguf", "b.gguf"),
    ],
)
def test_an_address_keeps_its_text_and_knows_its_file(text: str, name: str) -> None:
    assert is_remote(text)
    ref = parse_remote(text)
    assert (str(ref), ref.name) == (text, name)


@pytest.mark.parametrize("text", ["weights/a.gguf", "./hf:/a", "C:/a.gguf", "hf.co/org/repo", "://x", ""])
def test_a_path_is_no_address(text: str) -> None:
    assert not is_remote(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ("ftp://host/a.gguf", "'ftp://' is not a place to fetch weights from"),
        ("file:///etc/passwd", "'file://' is not a place to fetch weights from"),
        ("https:///a.gguf", "the address cannot be read"),
        ("https://host:port/a.gguf", "the address cannot be read"),
        ("https://[::1/a.gguf", "the address cannot be read"),
        ("https://host/a b.gguf", "the address cannot be read"),
        ("https://host/a\nb.gguf", "the address cannot be read"),
        ("https://me:secret@host/a.gguf", "an address with a user or password in it"),
        ("https://host/a.gguf?token=secret", "an address with '?' or '#' in it"),
        ("https://host/a.gguf#x", "an address with '?' or '#' in it"),
        ("https://host/", "the address names no file"),
        ("https://host", "the address names no file"),
        ("hf://org/a.gguf", "not a file of a repository"),
        ("hf://org/repo@/a.gguf", "not a file of a repository"),
        ("hf://org/repo/../a.gguf", "not a file of a repository"),
        ("hf://org/repo//a.gguf", "not a file of a repository"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_its_secrets(text: str, message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_remote(text)
    assert str(caught.value) == message
    assert caught.value.hint
    assert "secret" not in caught.value.hint.replace("may be a secret", "")


@pytest.mark.parametrize(
    "text, file",
    [
        ("hf://org/repo/a.gguf", HubFile("org/repo", "main", "a.gguf")),
        ("hf://org/repo@v1.0/a/b.gguf", HubFile("org/repo", "v1.0", "a/b.gguf")),
        ("hf://org/repo/@v1.0/b.gguf", HubFile("org/repo", "v1.0", "b.gguf")),
        ("hf://org/repo@refs%2Fpr%2F1/b.gguf", HubFile("org/repo", "refs/pr/1", "b.gguf")),
        ("hf://o.r-g/re_po/b%20c.gguf", HubFile("o.r-g/re_po", "main", "b c.gguf")),
    ],
)
def test_an_address_at_hugging_face_has_repository_revision_and_path(text: str, file: HubFile) -> None:
    assert parse_hub(parse_remote(text)) == file


# web addresses


def test_a_web_file_is_what_the_manifest_states_and_has_the_size_the_server_tells() -> None:
    with run_server(a_file()) as server, weights() as remote:
        ref = parse_remote(f"{server.url}/w/a.gguf")
        found = remote.resolve(ref, DIGEST)
        assert found == RemoteFile(
            ref=ref, url=str(ref), digest=DIGEST, size_bytes=len(BODY), version='"one"'
        )
        assert [request.method for request in server.requests] == ["HEAD"]
        assert read_all(remote.open(found)) == BODY


def test_a_web_file_without_a_stated_digest_is_refused_before_anything_is_asked() -> None:
    with run_server(a_file()) as server, weights() as remote:
        with pytest.raises(WeightsError, match="its digest is not known"):
            remote.resolve(parse_remote(f"{server.url}/a.gguf"))
        assert server.requests == []


@pytest.mark.parametrize("status", [400, 403, 405, 501])
def test_a_server_that_refuses_head_is_asked_for_the_first_byte(status: int) -> None:
    def answer(request: Request) -> Reply:
        if request.method == "HEAD":
            return Reply(status)
        assert request.headers["range"] == "bytes=0-0"
        return Reply(206, {"Content-Range": f"bytes 0-0/{len(BODY)}"}, BODY[:1])

    with run_server(answer) as server, weights() as remote:
        assert remote.resolve(parse_remote(f"{server.url}/a.gguf"), DIGEST).size_bytes == len(BODY)


@pytest.mark.parametrize(
    "status, kind",
    [
        (401, AccessDenied),
        (404, NotFound),
        (410, NotFound),
        (418, InvalidRequest),
        (429, TooManyRequests),
        (503, ServerFault),
    ],
)
def test_a_status_becomes_the_error_that_it_means(status: int, kind: type[AnswerError]) -> None:
    with run_server(lambda _: Reply(status)) as server, weights() as remote:
        with pytest.raises(AnswerError) as caught:
            remote.resolve(parse_remote(f"{server.url}/w/a.gguf"), DIGEST)
        assert type(caught.value) is kind
        assert str(caught.value) == f"127.0.0.1:{server.port}: /w/a.gguf: status {status}"
        assert (caught.value.host, caught.value.status) == (f"127.0.0.1:{server.port}", status)


def test_ten_redirects_are_followed_and_no_eleventh() -> None:
    chain: dict[str, Reply | Answers] = {
        f"/{number}.gguf": Reply(302, {"Location": f"/{number + 1}.gguf"}) for number in range(11)
    }
    with run_server(moved({**chain, "/11.gguf": a_file()})) as server, weights() as remote:
        found = remote.resolve(parse_remote(f"{server.url}/1.gguf"), DIGEST)
        assert read_all(remote.open(found)) == BODY
        with pytest.raises(ProtocolError, match=r"more than 10 redirects$"):
            remote.resolve(parse_remote(f"{server.url}/0.gguf"), DIGEST)
        with pytest.raises(ProtocolError, match=r"more than 10 redirects$"):
            remote.open(RemoteFile(ref=found.ref, url=f"{server.url}/0.gguf", digest=DIGEST, size_bytes=None))


def test_a_redirect_from_https_to_http_is_not_followed(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with run_server(a_file()) as plain:
        answer = Reply(302, {"Location": f"{plain.url}/a.gguf"})
        with (
            run_server(lambda _: answer, tls=certificate.server_context) as server,
            RemoteWeights({}, tls=TlsFiles(ca=str(certificate.certificate))) as remote,
        ):
            ref = parse_remote(f"{server.url}/a.gguf")
            with pytest.raises(ProtocolError, match="a redirect from https to http"):
                remote.resolve(ref, DIGEST)
            with pytest.raises(ProtocolError, match="a redirect from https to http"):
                remote.open(RemoteFile(ref=ref, url=str(ref), digest=DIGEST, size_bytes=None))
        assert plain.requests == []


# Hugging Face


def a_hub(*, storage: str = "", linked: Mapping[str, str] | None = None, status: int = 302) -> Answers:
    """A hub with org/repo/a.gguf, whose bytes lie at `storage`."""
    headers = {"X-Repo-Commit": COMMIT, "Location": storage, **(linked or {})}
    return moved(
        {
            "/org/repo/resolve/main/a.gguf": Reply(status, headers),
            f"/org/repo/resolve/{COMMIT}/a.gguf": Reply(status, headers),
        }
    )


LINKED = {"X-Linked-Etag": f'"{DIGEST.hex}"', "X-Linked-Size": str(len(BODY))}


def test_hugging_face_tells_digest_and_size_without_the_storage_being_asked() -> None:
    with run_server(a_file()) as storage:
        hub = a_hub(storage=f"{storage.url}/blob", linked=LINKED)
        with run_server(hub) as server, weights(HF_ENDPOINT=f"{server.url}/") as remote:
            found = remote.resolve(parse_remote("hf://org/repo/a.gguf"))
            assert storage.requests == []
            assert (found.digest, found.size_bytes, found.version) == (DIGEST, len(BODY), COMMIT)
            assert found.url == f"{server.url}/org/repo/resolve/{COMMIT}/a.gguf"
            assert read_all(remote.open(found)) == BODY


def test_the_token_goes_to_the_endpoint_and_to_no_other_server() -> None:
    with run_server(a_file()) as storage:
        hub = a_hub(storage=f"{storage.url}/blob", linked=LINKED)
        environ = {"HF_TOKEN": "hf_secret\n"}
        with run_server(hub) as server, weights(HF_ENDPOINT=server.url, **environ) as remote:
            read_all(remote.open(remote.resolve(parse_remote("hf://org/repo/a.gguf"))))
            assert {request.headers["authorization"] for request in server.requests} == {"Bearer hf_secret"}
        assert storage.requests
        assert not [request for request in storage.requests if "authorization" in request.headers]


def test_the_token_does_not_go_with_plain_web_addresses() -> None:
    with run_server(a_file()) as server, weights(HF_ENDPOINT=server.url, HF_TOKEN="hf_secret") as remote:
        remote.resolve(parse_remote(f"{server.url}/a.gguf"), DIGEST)
        assert "authorization" not in server.requests[0].headers


def test_a_mirror_that_serves_files_itself_is_enough() -> None:
    path = "/org/repo/resolve/main/a.gguf"
    with (
        run_server(moved({path: a_file(etag=f'"{DIGEST.hex}"')})) as server,
        weights(HF_ENDPOINT=server.url) as remote,
    ):
        found = remote.resolve(parse_remote("hf://org/repo/a.gguf"))
        assert (found.digest, found.size_bytes) == (DIGEST, len(BODY))
        assert read_all(remote.open(found)) == BODY


@pytest.mark.parametrize(
    "raw, digest",
    [
        (f"version https://git-lfs.github.com/spec/v1\noid sha256:{DIGEST.hex}\nsize 3\n".encode(), DIGEST),
        (b"GGUF", None),
        (bytes(5000), None),
    ],
    ids=["pointer", "small file", "large file"],
)
def test_without_linked_headers_the_pointer_in_the_repository_tells_the_digest(
    raw: bytes, digest: Digest | None
) -> None:
    answers: dict[str, Reply | Answers] = {
        "/org/repo/resolve/v1/a.gguf": Reply(200, {"ETag": f'"{COMMIT}"'}, BODY),
        "/org/repo/raw/v1/a.gguf": Reply(200, {}, raw),
    }
    with run_server(moved(answers)) as server, weights(HF_ENDPOINT=server.url) as remote:
        found = remote.resolve(parse_remote("hf://org/repo@v1/a.gguf"))
        assert (found.digest, found.size_bytes, found.version) == (digest, len(BODY), f'"{COMMIT}"')


def test_a_stated_digest_is_compared_with_what_hugging_face_has() -> None:
    stated = Digest.of(b"another")
    with run_server(a_hub(linked=LINKED)) as server, weights(HF_ENDPOINT=server.url) as remote:
        assert remote.resolve(parse_remote("hf://org/repo/a.gguf"), DIGEST).digest == DIGEST
        with pytest.raises(DigestMismatch) as caught:
            remote.resolve(parse_remote("hf://org/repo/a.gguf"), stated)
        message = f"hf://org/repo/a.gguf: the digest there is {DIGEST}, the manifest states {stated}"
        assert str(caught.value) == message


def test_what_hugging_face_says_of_a_refusal_is_passed_on() -> None:
    gated = Reply(403, {"X-Error-Message": "Access to model org/repo is restricted"})
    with run_server(lambda _: gated) as server, weights(HF_ENDPOINT=server.url) as remote:
        with pytest.raises(AccessDenied) as caught:
            remote.resolve(parse_remote("hf://org/repo/a.gguf"))
        words = "org/repo/a.gguf: status 403, Access to model org/repo is restricted"
        assert str(caught.value) == f"127.0.0.1:{server.port}: {words}"
        assert "HF_TOKEN" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "environ, message",
    [
        ({"HF_TOKEN": "hf secret"}, "the environment variable HF_TOKEN holds no token"),
        ({"HF_ENDPOINT": "https://host:port"}, "the environment variable HF_ENDPOINT holds no address"),
        ({"HF_ENDPOINT": "mirror.corp.example"}, "the environment variable HF_ENDPOINT holds no address"),
    ],
)
def test_an_unusable_environment_is_a_usage_error_without_the_secret(
    environ: dict[str, str], message: str
) -> None:
    with weights(**environ) as remote, pytest.raises(UsageError) as caught:
        remote.resolve(parse_remote("hf://org/repo/a.gguf"))
    assert str(caught.value) == message


# connections that end


@contextmanager
def a_server_that_hangs_up_on(first: int) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the methods it heard; the first requests are cut before their answer begins."""
    heard: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            heard.append(self.rfile.readline().decode().partition(" ")[0])
            while self.rfile.readline().strip():
                pass
            if len(heard) > first:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", heard
        server.shutdown()
        thread.join()


def test_a_connection_that_ends_before_its_answer_is_no_failure_when_it_happens_once() -> None:
    with a_server_that_hangs_up_on(1) as (url, heard), weights() as remote:
        assert remote.resolve(parse_remote(f"{url}/a.gguf"), DIGEST).size_bytes == 5
        assert heard == ["HEAD", "HEAD"]


def test_connections_that_end_again_and_again_are_given_up() -> None:
    with a_server_that_hangs_up_on(9) as (url, heard), weights() as remote:
        with pytest.raises(ConnectionLost, match="closed before an answer came"):
            remote.resolve(parse_remote(f"{url}/a.gguf"), DIGEST)
        assert heard == ["HEAD", "HEAD"]


def test_what_changes_something_is_never_asked_twice() -> None:
    with a_server_that_hangs_up_on(1) as (url, heard), closing(HttpSession()) as session:
        with pytest.raises(ConnectionLost):
            Fetcher(session).ask(HttpRequest(method="POST", url=url, host="h", what="s"))
        assert heard == ["POST"]


# streams


@given(st.integers(1, len(BODY) - 1), st.integers(1, 5000))
def test_a_file_arrives_whole_however_often_its_connection_is_cut(cut_at: int, block: int) -> None:
    cut_at = max(cut_at, len(BODY) // 12)
    with run_server(a_file(cut_at=cut_at)) as server, weights() as remote:
        ref = parse_remote(f"{server.url}/a.gguf")
        file = RemoteFile(ref=ref, url=str(ref), digest=DIGEST, size_bytes=len(BODY))
        stream = remote.open(file)
        assert read_all(stream, block) == BODY
        assert stream.size_bytes == len(BODY)
        assert all(request.headers["if-range"] == '"one"' for request in server.requests[1:])


def test_an_answer_without_its_head_is_not_the_end_of_a_file() -> None:
    def script(asked: Asked, wire: Wire) -> None:
        if len(server.asked) == 1:
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Le")
            wire.close()
        else:
            wire.answer(200, BODY)

    with ScriptedHost(script) as server, weights() as remote:
        ref = parse_remote(f"{server.url}/a.gguf")
        file = RemoteFile(ref=ref, url=str(ref), digest=DIGEST, size_bytes=None)
        assert read_all(remote.open(file)) == BODY


def test_reading_may_begin_in_the_middle() -> None:
    with run_server(a_file()) as server, weights() as remote:
        ref = parse_remote(f"{server.url}/a.gguf")
        file = RemoteFile(ref=ref, url=str(ref), digest=DIGEST, size_bytes=len(BODY))
        assert read_all(remote.open(file, offset=5000, version='"one"')) == BODY[5000:]


def test_a_server_without_ranges_is_read_over_from_the_start() -> None:
    lengths = iter([3000, 7000, None])

    def answer(_: Request) -> Reply:
        return Reply(200, {"ETag": '"one"'}, BODY, cut_at=next(lengths))

    with run_server(answer) as server, weights() as remote:
        ref = parse_remote(f"{server.url}/a.gguf")
        file = RemoteFile(ref=ref, url=str(ref), digest=DIGEST, size_bytes=len(BODY))
        assert read_all(remote.open(file)) == BODY


@pytest.mark.parametrize("etags", [('"one"', '"two"'), ('W/"one"', 'W/"two"')])
def test_a_file_that_changes_between_two_pieces_is_refused(etags: tuple[str, str]) -> None:
    replies = iter([a_file(etag=etags[0], cut_at=3000), a_file(etag=etags[1])])
    with run_server(lambda request: next(replies)(request)) as server, weights() as remote:
        ref = parse_remote(f"{server.url}/a.gguf")
        file = RemoteFile(ref=ref, url=str(ref), digest=DIGEST, size_bytes=len(BODY))
        with pytest.raises(WeightsError, match=r"changed while it was fetched$"):
            read_all(remote.open(file))


def test_another_piece_than_the_one_asked_for_is_refused() -> None:
    replies = iter(
        [
            Reply(200, {}, BODY, cut_at=3000),
            Reply(206, {"Content-Range": f"bytes 0-{len(BODY) - 1}/{len(BODY)}"}, BODY),
        ]
    )
    with run_server(lambda _: next(replies)) as server, weights() as remote:
        ref = parse_remote(f"{server.url}/a.gguf")
        file = RemoteFile(ref=ref, url=str(ref), digest=DIGEST, size_bytes=len(BODY))
        with pytest.raises(ProtocolError, match="another piece than asked for"):
            read_all(remote.open(file))


class Pieces:
    """A connection that gives these pieces and is then cut."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.is_closed = False

    def read(self, size: int, /) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    def close(self) -> None:
        self.is_closed = True


def test_a_connection_that_brings_nothing_is_given_up_after_some_attempts() -> None:
    waits: list[float] = []
    opened: list[Pieces] = []

    def open_at(offset: int, version: str) -> Opened:
        opened.append(Pieces(b"ab") if not opened else Pieces())
        return Opened(source=opened[-1], start=offset, version="", size_bytes=4)

    stream = RemoteStream("a.gguf", open_at, sleep=waits.append)
    assert stream.read(10) == b"ab"
    with pytest.raises(ConnectionLost, match=re.escape("a.gguf: cut after 2 of 4 bytes")):
        stream.read(10)
    assert waits == [0.25 * 2**number for number in range(RESUMES - 1)]
    assert all(one.is_closed for one in opened)


def test_progress_forgives_earlier_cuts() -> None:
    def open_at(offset: int, version: str) -> Opened:
        return Opened(source=Pieces(b"x"), start=offset, version="", size_bytes=3 * RESUMES)

    assert read_all(RemoteStream("a.gguf", open_at, sleep=lambda _: None)) == b"x" * 3 * RESUMES


def test_a_file_of_unknown_size_ends_where_its_connection_does() -> None:
    def open_at(offset: int, version: str) -> Opened:
        return Opened(source=Pieces(b"abc"), start=offset, version="", size_bytes=None)

    assert read_all(RemoteStream("a.gguf", open_at)) == b"abc"


def test_a_lasting_error_ends_the_stream_at_once() -> None:
    def open_at(offset: int, version: str) -> Opened:
        if offset:
            raise NotFound("gone", host="h", status=404)
        return Opened(source=Pieces(b"ab"), start=0, version="", size_bytes=4)

    stream = RemoteStream("a.gguf", open_at, sleep=lambda _: pytest.fail("nothing to wait for"))
    assert stream.read(2) == b"ab"
    with pytest.raises(NotFound):
        stream.read(2)


def test_the_size_may_not_change_between_two_pieces() -> None:
    sizes = iter([4, 5])

    def open_at(offset: int, version: str) -> Opened:
        return Opened(source=Pieces(b"ab"), start=offset, version="", size_bytes=next(sizes))

    with pytest.raises(WeightsError, match="changed while it was fetched"):
        read_all(RemoteStream("a.gguf", open_at, sleep=lambda _: None))


def test_a_reference_is_a_key_and_sorts() -> None:
    assert sorted({RemoteRef("b://x"), RemoteRef("a://x"), RemoteRef("a://x")}) == [
        RemoteRef("a://x"),
        RemoteRef("b://x"),
    ]
