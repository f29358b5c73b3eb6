# SPDX-License-Identifier: Apache-2.0
"""A Vsock with its worker on a thread: asyncio, and lives that end early."""

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from vsock_guest import Guest

from pyvmm import virtio
from pyvmm.devices import vsock_packet as vp
from pyvmm.devices.vsock import Vsock

SECONDS = 10  # more than anything takes here
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextmanager
def threaded(device: Vsock) -> Iterator[Guest]:
    with virtio.driver(device) as drv:
        assert device.notify == "thread"
        yield Guest(drv, device.cid)


def next_packet(vm: Guest) -> tuple[vp.Header, bytes]:
    """Wait for one; none may be there already."""
    vm.make_room()
    data = vm.rooms.pop().wait(SECONDS)
    return vp.parse(data[: vp.HEADER.size]), data[vp.HEADER.size :]


def test_a_server() -> None:
    async def client(*streams: *Streams) -> None:
        reader, writer = streams
        writer.write((await reader.readline()).upper())
        writer.close()

    def play(vm: Guest) -> None:
        vm.send(vp.REQUEST, 1024, 52)
        assert next_packet(vm)[0].op == vp.RESPONSE
        vm.send(vp.RW, 1024, 52, b"hello\n")
        assert next_packet(vm)[1] == b"HELLO\n"
        assert next_packet(vm)[0].op == vp.SHUTDOWN

    async def main() -> None:
        device = Vsock()
        with threaded(device) as vm:
            async with await device.start_server(client, 52) as server:
                await asyncio.to_thread(play, vm)
                with pytest.raises(OSError, match="52 is listened on"):
                    await device.start_server(client, 52)
            assert server.closed and repr(server) == "<Server port 52 closed>"
            vm.send(vp.REQUEST, 1025, 52)
            assert next_packet(vm)[0].op == vp.RST

    asyncio.run(main())


def test_a_server_that_serves_forever() -> None:
    async def main(how: str) -> None:
        device = Vsock()
        with threaded(device):
            server = await device.start_server(print, 52)
            serving = asyncio.create_task(server.serve_forever())
            await asyncio.sleep(0)
            if how == "close":
                server.close()
                await serving
            else:
                serving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await serving
            assert not device._listening

    asyncio.run(main("close"))
    asyncio.run(main("cancel"))


def test_a_client_that_fails() -> None:
    """As with asyncio's own servers: the loop is told, the others go on."""
    told = []

    async def client(*streams: *Streams) -> None:
        streams[1].close()
        raise KeyError("mine")

    async def main() -> None:
        device = Vsock()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: told.append(context))
        with threaded(device) as vm:
            async with await device.start_server(client, 52):
                for port in (1, 2):
                    vm.send(vp.REQUEST, port, 52)
                    got = await asyncio.to_thread(next_packet, vm)
                    assert got[0].op == vp.RESPONSE
                    got = await asyncio.to_thread(next_packet, vm)
                    assert got[0].op == vp.SHUTDOWN

    asyncio.run(main())
    assert [repr(context["exception"]) for context in told] == (
        ["KeyError('mine')"] * 2
    )


def test_a_loop_that_is_no_more() -> None:
    device = Vsock()

    async def main() -> None:
        await device.start_server(print, 52)

    with threaded(device) as vm:
        asyncio.run(main())
        vm.send(vp.REQUEST, 1024, 52)
        assert next_packet(vm)[0].op == vp.RST


def test_a_connection() -> None:
    def play(vm: Guest) -> None:
        header, _ = next_packet(vm)
        assert (header.op, header.dst_port) == (vp.REQUEST, 80)
        ports = header.dst_port, header.src_port
        vm.send(vp.RESPONSE, *ports)
        assert next_packet(vm)[1] == b"hello"
        vm.send(vp.RW, *ports, b"there")
        vm.send(vp.SHUTDOWN, *ports, flags=vp.BOTH)
        assert next_packet(vm)[0].op == vp.RST

    async def main() -> None:
        device = Vsock()
        with threaded(device) as vm:
            playing = asyncio.create_task(asyncio.to_thread(play, vm))
            reader, writer = await device.open_connection(80)
            writer.write(b"hello")
            assert await reader.read() == b"there"
            writer.close()
            await playing

    asyncio.run(main())


def test_a_connection_that_is_refused() -> None:
    def play(vm: Guest) -> None:
        header, _ = next_packet(vm)
        vm.send(vp.RST, header.dst_port, header.src_port)

    async def main() -> None:
        device = Vsock()
        with threaded(device) as vm:
            playing = asyncio.create_task(asyncio.to_thread(play, vm))
            with pytest.raises(ConnectionRefusedError):
                await device.open_connection(80)
            await playing
            with pytest.raises(TimeoutError):
                await device.open_connection(80, timeout=0)
            opening = asyncio.create_task(device.open_connection(80))
            await asyncio.sleep(0)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening

    asyncio.run(main())


def test_a_loop_that_ends_before_the_answer() -> None:
    device = Vsock()

    async def main(vm: Guest) -> vp.Header:
        opening = asyncio.create_task(device.open_connection(80))
        header, _ = await asyncio.to_thread(next_packet, vm)
        assert not opening.done()
        return header

    with threaded(device) as vm:
        assert asyncio.run(main(vm)).op == vp.REQUEST
        assert next_packet(vm)[0].op == vp.RST


def test_lives_of_the_driver() -> None:
    """Resets from the vCPU's thread while the worker is at work."""
    device = Vsock()
    with threaded(device) as vm, ThreadPoolExecutor(1) as pool:
        ends = pool.submit(end_each, listener := device.listen(52))
        for i in range(100):
            vm.make_room(5)
            for port in range(5):
                vm.send(vp.REQUEST, port, 52)
                vm.send(vp.RW, port, 52, b"x" * i)
            vm.drv.reset()
            vm.rooms.clear()
            vm.drv.start()
        vm.send(vp.REQUEST, 9, 52)
        assert next_packet(vm)[0].op == vp.RESPONSE
        listener.close()
        ends.result(SECONDS)


def end_each(listener) -> None:
    """Read what comes, to the end, of one after the other."""
    for sock, (_, port) in listener:
        if port == 9:
            sock.close()
            return
        with sock:
            sock.settimeout(SECONDS)
            while sock.recv(1000).strip(b"x"):
                raise AssertionError


def test_a_callback_that_fails_ends_the_run() -> None:
    def callback(sock: socket.socket, peer: tuple[int, int]) -> None:
        raise KeyError("mine")

    device = Vsock()

    def run() -> None:
        with threaded(device) as vm, device.listen(52, callback):
            vm.send(vp.REQUEST, 1024, 52)
            next_packet(vm)

    with pytest.raises(KeyError, match="mine"):
        run()
