"""Below HTTP: resetting one connection, and refusing new ones on the same port.

`FaultProtocol` (`uvicorn.Config(http=FaultProtocol)`) lets the application see the connection of its call.
`ListenerGate` closes and reopens the listening sockets of a running `uvicorn.Server`. While the gate is shut,
a socket that does not listen keeps the port bound, so that nothing else takes it and clients are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import uvicorn
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

_EXTENSION = "ollamaops.transport"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class FaultProtocol(HttpToolsProtocol):
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
        with contextlib.suppress(OSError):  # the peer has closed it already
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


class ListenerGate:
    """The listening sockets and open connections of one running server. For use in the server's event loop."""

    def __init__(self, server: uvicorn.Server) -> None:
        self._server = server
        self._refusals = 0
        self._reserved: list[socket.socket] = []

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

    async def refuse(self, for_s: float, sleep: Callable[[float], Awaitable[object]]) -> None:
        """Reset all connections, refuse new ones for `for_s`. The last of several refusals opens the gate."""
        self._refusals += 1
        self._stop_listening()
        self.drop_connections()
        try:
            await sleep(for_s)
            while self._reserved and self._refusals == 1 and not self.is_stopping:
                await self._listen_on(self._reserved.pop())
        finally:
            self._refusals -= 1
            while self._reserved and not self._refusals:
                self._reserved.pop().close()

    def _stop_listening(self) -> None:
        for server in self._server.servers:
            addresses = [(listening.family, listening.getsockname()) for listening in server.sockets]
            server.close()
            self._reserved += [_bound(*address) for address in addresses]
        self._server.servers = []

    async def _listen_on(self, bound: socket.socket) -> None:
        """Listen again. The server knows the listener at once, so that stopping the server stops this too."""
        config = self._server.config

        def protocol() -> asyncio.Protocol:
            kind = cast("Callable[..., asyncio.Protocol]", config.http_protocol_class)
            return kind(
                config=config, server_state=self._server.server_state, app_state=self._server.lifespan.state
            )

        loop = asyncio.get_running_loop()
        opened = await loop.create_server(
            protocol, sock=bound, ssl=config.ssl, backlog=config.backlog, start_serving=False
        )
        self._server.servers.append(opened)
        await opened.start_serving()


def _bound(family: int, address: object) -> socket.socket:
    """A socket that keeps the address without listening: connecting to it is refused."""
    holder = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # so that asyncio sends at once
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    holder.bind(cast("tuple[str, int]", address))
    holder.setblocking(False)
    return holder
