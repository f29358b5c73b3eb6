# SPDX-License-Identifier: Apache-2.0
"""The host's ends of vsock as streams of asyncio.

>>> async def shout(reader, writer):
...     writer.write((await reader.readline()).upper())
...     writer.close()
>>> async def main(ours, theirs):
...     async with Server(52, shout, limit=1000, forget=repr) as server:
...         server.offer(theirs, (3, 1024))     # by the device
...         reader, writer = await asyncio.open_connection(sock=ours)
...         writer.write(b"hello\\n")
...         line = await reader.readline()
...     writer.close()
...     return line
>>> asyncio.run(main(*socket.socketpair()))
b'HELLO\\n'
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Self

from pyvmm.devices.vsock_listener import Listening, Peer

Client = Callable[
    [asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None
]


class Server(Listening):
    """What Vsock.start_server() returns, to be used as an asyncio.Server.

    Threads: close() any, the rest that of its loop.
    """

    def __init__(
        self,
        port: int,
        client: Client,
        limit: int,
        forget: Callable[[Listening], object],
    ) -> None:
        super().__init__(port, forget)
        self._client = client
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(self, sock: socket.socket, peer: Peer) -> bool:
        """For the device: a guest has connected; False: it is refused."""
        return not self.closed and self._call(self._connected, sock)

    def _call(self, call: Callable[..., object], *args: object) -> bool:
        """Have the loop make a call; False: it is no more."""
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            return False
        return True

    def _connected(self, sock: socket.socket) -> None:
        task = self._loop.create_task(self._serve(sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket) -> None:
        reader = asyncio.StreamReader(self._limit, self._loop)
        # It calls the client, as that of asyncio.start_server() does.
        protocol = asyncio.StreamReaderProtocol(
            reader, self._client, loop=self._loop
        )
        sock.setblocking(False)
        await self._loop.connect_accepted_socket(lambda: protocol, sock)

    def close(self) -> None:
        """Listen no more; twice is once. What was accepted goes on."""
        super().close()
        self._call(self._ended.set)

    async def wait_closed(self) -> None:
        """Wait until it is closed."""
        await self._ended.wait()

    async def serve_forever(self) -> None:
        """Wait until it is closed; cancelled, it is."""
        try:
            await self.wait_closed()
        finally:
            self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()
        await self.wait_closed()


async def answer(
    request: Callable[[Callable[[OSError | None], object]], socket.socket],
    timeout: float | None,
    limit: int,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The streams of a connection, when the guest has answered.

    `request` begins it, given what is to be told of the answer.
    """
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[OSError | None] = loop.create_future()

    def settle(error: OSError | None) -> None:
        if not answered.done():
            answered.set_result(error)

    def tell(error: OSError | None) -> None:
        with suppress(RuntimeError):  # the loop is no more
            loop.call_soon_threadsafe(settle, error)

    sock = request(tell)
    try:
        async with asyncio.timeout(timeout):
            error = await answered
        if error is not None:
            raise error
        sock.setblocking(False)
        return await asyncio.open_connection(sock=sock, limit=limit)
    except BaseException:
        sock.close()
        raise
