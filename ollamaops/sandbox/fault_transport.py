"""Below HTTP: resetting one connection, and refusing new ones on the same port.

`FaultProtocol` (`uvicorn.Config(http=FaultProtocol)`) lets the application see the connection of its call; `Door`
closes and opens the listening sockets of a running `uvicorn.Server`. The fact one would miss: while the door is shut
its port stays bound by a socket that does not listen, so that nobody else gets the port and clients are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import uvicorn
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

_EXTENSION = "ollamaops.transport"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class FaultProtocol(H11Protocol):
    """HTTP as uvicorn speaks it; the connection's transport is in the scope's `extensions`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its base does
        super().connection_made(transport)
        app = self.app

        async def with_transport(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            extensions = cast("dict[str, dict[str, object]]", scope).setdefault("extensions", {})
            extensions[_EXTENSION] = transport
            await app(scope, receive, send)

        self.app = with_transport


def transport_of(scope: object) -> asyncio.Transport:
    """The connection behind an ASGI scope. RuntimeError when the server does not use FaultProtocol."""
    extensions = scope.get("extensions") if isinstance(scope, dict) else None
    transport = extensions.get(_EXTENSION) if isinstance(extensions, dict) else None
    if not isinstance(transport, asyncio.Transport):
        raise RuntimeError("faults need uvicorn.Config(http=FaultProtocol)")
    return transport


def reset_connection(transport: asyncio.Transport) -> None:
    """Close with a TCP RST and drop what was not sent yet."""
    peer = transport.get_extra_info("socket")
    if peer is not None and not transport.is_closing():
        with contextlib.suppress(OSError):  # the peer was quicker
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


class Door:
    """The listening sockets and open connections of one running server. For use in the server's event loop."""

    def __init__(self, server: uvicorn.Server) -> None:
        self._server = server

    @property
    def is_stopping(self) -> bool:
        """Whether the server was asked to stop."""
        return self._server.should_exit

    def drop_connections(self, but: asyncio.Transport | None = None) -> None:
        """Reset every open connection, except one."""
        for connection in list(self._server.server_state.connections):
            transport = getattr(connection, "transport", None)
            if isinstance(transport, asyncio.Transport) and transport is not but:
                reset_connection(transport)

    async def refuse(self, for_s: float, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Reset all connections, refuse new ones for so long, then listen again unless the server stops."""
        with contextlib.ExitStack() as placeholders:
            addresses = list(self._stop_listening())
            sockets = [placeholders.enter_context(_bound(*address)) for address in addresses]
            self.drop_connections()
            await sleep(for_s)
            if not self.is_stopping:
                placeholders.pop_all()
                self._server.servers = [await self._listening(bound) for bound in sockets]

    def _stop_listening(self) -> Iterator[tuple[int, object]]:
        for server in self._server.servers:
            for listening in server.sockets:
                yield listening.family, listening.getsockname()
            server.close()

    async def _listening(self, bound: socket.socket) -> asyncio.Server:
        config = self._server.config

        def protocol() -> asyncio.Protocol:
            kind = cast("Callable[..., asyncio.Protocol]", config.http_protocol_class)
            return kind(
                config=config, server_state=self._server.server_state, app_state=self._server.lifespan.state
            )

        loop = asyncio.get_running_loop()
        return await loop.create_server(protocol, sock=bound, ssl=config.ssl, backlog=config.backlog)


def _bound(family: int, address: object) -> socket.socket:
    """A socket that holds the address without listening: connecting to it is refused."""
    holder = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # so that asyncio sends at once
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    holder.bind(cast("tuple[str, int]", address))
    holder.setblocking(False)
    return holder
