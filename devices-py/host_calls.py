# SPDX-License-Identifier: Apache-2.0
"""Function calls between guest and host, typed, in both directions.

    calls = HostCalls()

    @calls.export
    def add(a: int, b: int) -> int:
        return a + b

    with pyvmm.Machine() as m:
        m.attach(calls)
        m.load("kernel.elf")
        m.start()
        print(calls.guest.blink(3).result(timeout=1))
        m.wait()

The guest, with `guest/include/host_call.h`:

    int64_t sum;
    static int64_t blink(int64_t times) { ... }

    host_call_init(&host, 0);
    if (host_call(&host, "add", "ii>i", (int64_t)2, (int64_t)3, &sum) == 0)
        print("%d\\n", (int)sum);

A function that is exported has annotations of int, float, bool, str, bytes and
None, which are its types here as well; arguments of other types get the guest
an error, and so does a `HostCalls.Error` that the function raises. Any other
exception is the author's: it leaves run(). `calls.guest.NAME(...)` gives a
`concurrent.futures.Future`, from any thread; `await asyncio.wrap_future(...)`
waits for it in a coroutine. What the guest refuses is raised by it, as
`HostCalls.Error`.

It is a virtio device with the id 62. Queue 0, "calls", takes the guest's: a
call to be read and room for the result. Queue 1, "invites", takes rooms for
calls of the host's: the device fills one with the number of the call, 4 bytes,
and the call; the guest puts it back, number and result before the room. A call
is the length of the name, 1 byte, the name, and the arguments; a result is 0
and a value, or 1 and the text of an error, as a value. A value is a byte for
its type and what follows:

| | type | then |
| --- | --- | --- |
| i | int | 8 bytes, little endian, signed |
| d | float | 8 bytes, IEEE 754 |
| t, f, n | True, False, None | |
| s, b | str, bytes | 4 bytes for the length, and those; str is UTF-8 |

>>> with virtio.driver(HostCalls(max)) as drv:
...     answer = drv.calls(call("max", 3, 7), reply=64)
...     refused = drv.calls(call("min", 3, 7), reply=64)
>>> result(answer)
7
>>> refused[6:].decode()
'the host has no function min'
"""

import inspect
import struct
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ClassVar

from pyvmm import virtio

Value = int | float | bool | str | bytes | None

CALL_MAX = 1 << 20  # bytes of a call or a result
WAITING_MAX = 1024  # calls that the guest has not fetched
TYPES: dict[object, type] = {
    kind: kind for kind in (int, float, bool, str, bytes, type(None))
} | {None: type(None)}


class CallError(Exception):
    """A call that the other side refused, or a function of the host's does."""


class WireError(ValueError):
    """Bytes that are no call and no result."""


# -- the wire ------------------------------------------------------------------


def pack(value: Value) -> bytes:
    """A value as bytes; TypeError, OverflowError when it cannot be."""
    match value:
        case None:
            return b"n"
        case bool():
            return b"t" if value else b"f"
        case int():
            if not -1 << 63 <= value < 1 << 63:
                raise OverflowError(f"{value} does not fit into 64 bits")
            return b"i" + struct.pack("<q", value)
        case float():
            return b"d" + struct.pack("<d", value)
        case str():
            data = value.encode()
            return b"s" + struct.pack("<I", len(data)) + data
        case bytes():
            return b"b" + struct.pack("<I", len(value)) + value
    raise TypeError(f"{value!r} is none of int, float, bool, str, bytes, None")


def unpack(data: bytes, at: int) -> tuple[Value, int]:
    """The value at a place, and where it ends; WireError."""
    kind, at = data[at : at + 1], at + 1
    if kind in (b"t", b"f", b"n") and kind:
        return {b"t": True, b"f": False, b"n": None}[kind], at
    try:
        if kind == b"i":
            return struct.unpack_from("<q", data, at)[0], at + 8
        if kind == b"d":
            return struct.unpack_from("<d", data, at)[0], at + 8
        if kind in (b"s", b"b") and kind:
            (length,) = struct.unpack_from("<I", data, at)
            part = data[at + 4 : at + 4 + length]
            if len(part) < length:
                raise WireError("a value ends early")
            value = part.decode() if kind == b"s" else part
            return value, at + 4 + length
    except (struct.error, UnicodeDecodeError) as exc:
        raise WireError(f"a value that is none: {exc}") from None
    raise WireError(f"a value of the unknown type {kind!r}")


def call(name: str, *args: Value) -> bytes:
    """A call as bytes."""
    encoded = name.encode()
    if not 0 < len(encoded) < 256:
        raise ValueError(f"the name {name!r} has not 1 to 255 bytes")
    return bytes([len(encoded)]) + encoded + b"".join(map(pack, args))


def parse_call(data: bytes) -> tuple[str, list[Value]]:
    """Name and arguments of a call; WireError."""
    if not data:
        raise WireError("a call without a byte")
    at = 1 + data[0]
    try:
        name = data[1:at].decode()
    except UnicodeDecodeError:
        raise WireError("a name that is no UTF-8") from None
    if len(data) < at:
        raise WireError("a name that ends early")
    args: list[Value] = []
    while at < len(data):
        value, at = unpack(data, at)
        args.append(value)
    return name, args


def result(data: bytes) -> Value:
    """The value of a result; CallError when it is an error, WireError."""
    if data[:1] not in (b"\0", b"\1"):
        raise WireError("a result that is neither value nor error")
    value, _ = unpack(data, 1)
    if data[0]:
        raise CallError(str(value))
    return value


def success(value: Value) -> bytes:
    """A result."""
    return b"\0" + pack(value)


def failure(text: str) -> bytes:
    """A result that is an error."""
    return b"\1" + pack(text)


# -- the device ----------------------------------------------------------------


class Export:
    """A function that the guest may call, with the types it has."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function
        self.types: list[type] | None = None  # None: it takes any
        self.returns: type | None = None
        try:
            signature = inspect.signature(function, eval_str=True)
        except ValueError:  # of a builtin: they say nothing
            return
        types = []
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL:
                return
            if parameter.annotation not in TYPES:
                raise TypeError(
                    f"{name}: {parameter.name} has no type of int, float, "
                    "bool, str, bytes, None"
                )
            types.append(TYPES[parameter.annotation])
        if signature.return_annotation not in TYPES:
            raise TypeError(
                f"{name} returns none of int, float, bool, str, bytes, None"
            )
        self.types = types
        self.returns = TYPES[signature.return_annotation]

    def check(self, args: list[Value]) -> None:
        """CallError unless the arguments are of these types."""
        if self.types is None:
            return
        if len(args) != len(self.types):
            raise CallError(
                f"{self.name} takes {len(self.types)} arguments, not "
                f"{len(args)}"
            )
        for number, (arg, kind) in enumerate(
            zip(args, self.types, strict=True), 1
        ):
            if type(arg) is not kind:
                raise CallError(
                    f"{self.name}: argument {number} is {type(arg).__name__}, "
                    f"not {kind.__name__}"
                )

    def __call__(self, args: list[Value]) -> bytes:
        value = self.function(*args)
        if self.returns is not None and type(value) is not self.returns:
            raise TypeError(
                f"{self.name} returned {value!r}, no {self.returns.__name__}"
            )
        return success(value)


class Guest:
    """The functions of the guest, as attributes."""

    def __init__(self, device: "HostCalls") -> None:
        self._device = device

    def __getattr__(self, name: str) -> Callable[..., "Future[Value]"]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args: self._device.call_guest(name, *args)


class HostCalls(virtio.Device):
    """Typed calls between the guest and Python.

    `functions` are exported under their names, as by export(). `guest` has
    the guest's functions.

    Threads: exported functions run where the device's handlers do (`notify`);
    `guest` may be used from any.
    """

    device_id = 62
    queues: ClassVar[dict[str, int]] = {"calls": 64, "invites": 64}
    Error = CallError

    def __init__(
        self, *functions: Callable[..., Any], notify: str = "inline"
    ) -> None:
        self.notify = notify
        self.exports: dict[str, Export] = {}
        self.guest = Guest(self)
        self._lock = threading.RLock()
        self._rooms: deque[virtio.Chain] = deque()
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._futures: dict[int, Future[Value]] = {}
        self._next = 1
        for function in functions:
            self.export(function)

    def export(
        self, function: Callable[..., Any], name: str | None = None
    ) -> Callable[..., Any]:
        """Let the guest call a function; a decorator, too. TypeError."""
        name = name or function.__name__
        self.exports[name] = Export(name, function)
        return function

    # -- the guest calls -----------------------------------------------------

    def on_calls(self, queue: virtio.Queue) -> None:
        for chain in queue:
            if chain.readable_size > CALL_MAX:
                answer = failure(f"a call has at most {CALL_MAX} bytes")
            else:
                answer = self.answer(chain.read())
            if len(answer) > chain.writable_size:
                answer = failure(f"the result has {len(answer)} bytes")
            chain.write(answer)

    def answer(self, data: bytes) -> bytes:
        """The result of a call."""
        try:
            name, args = parse_call(data)
            export = self.exports.get(name)
            if export is None:
                return failure(f"the host has no function {name}")
            export.check(args)
            return export(args)
        except (CallError, WireError) as exc:
            return failure(str(exc))

    # -- the host calls ------------------------------------------------------

    def call_guest(self, name: str, *args: Value) -> "Future[Value]":
        """Call a function of the guest's. ValueError, TypeError at once.

        The future has its result, or CallError when the guest refuses, has not
        room enough or is reset before it answers.
        """
        data = call(name, *args)
        future: Future[Value] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            if len(self._waiting) == WAITING_MAX:
                raise ValueError(
                    f"{WAITING_MAX} calls wait for the guest already"
                )
            number, self._next = self._next, self._next % 0xFFFF_FFFF + 1
            self._futures[number] = future
            self._waiting.append((number, data))
            self._hand_over()
        return future

    def on_invites(self, queue: virtio.Queue) -> None:
        for chain in queue:
            answered = chain.read(4 + CALL_MAX)
            with self._lock:
                chain.defer()
                self._rooms.append(chain)
                self._hand_over()
            if answered:
                self._answered(answered)

    def _hand_over(self) -> None:
        """Calls that wait go into rooms that are free."""
        while self._waiting and self._rooms:
            room = self._rooms.popleft()
            if not room.alive:
                continue
            number, data = self._waiting.popleft()
            try:
                room.write(struct.pack("<I", number) + data)
            except virtio.ShortChain:
                self._fail(number, "the guest has no room for the call")
                self._rooms.appendleft(room)
                continue
            except virtio.StaleChain:
                self._waiting.appendleft((number, data))
                continue
            room.complete()

    def _answered(self, data: bytes) -> None:
        with self._lock:
            number = int.from_bytes(data[:4], "little")
            future = self._futures.pop(number, None)
        if future is None:
            return  # an answer to nothing: the guest's own affair
        try:
            future.set_result(result(data[4:]))
        except (CallError, WireError) as exc:
            future.set_exception(CallError(str(exc)))

    def _fail(self, number: int, why: str) -> None:
        future = self._futures.pop(number, None)
        if future is not None:
            future.set_exception(CallError(why))

    def _fail_asked(self, why: str) -> None:
        """What was handed over gets no answer; what waits may wait on."""
        with self._lock:
            self._rooms.clear()
            waiting = {number for number, _ in self._waiting}
            asked = [n for n in self._futures if n not in waiting]
        for number in asked:
            self._fail(number, why)

    def reset(self) -> None:
        """What the guest was asked it will not answer."""
        self._fail_asked("the guest has reset the device")

    def detached(self) -> None:
        """Nobody is left to answer."""
        with self._lock:
            self._waiting.clear()
        self._fail_asked("the device was detached")

    # -- state ---------------------------------------------------------------

    def save(self) -> dict[str, Any]:
        """Nothing: futures are not the guest's."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Calls that were under way fail; rooms come again by themselves."""
        self._fail_asked("the machine went back to a snapshot")

    def clone(self) -> "HostCalls":
        """The same functions for another machine."""
        twin = HostCalls(notify=self.notify)
        twin.exports = dict(self.exports)
        return twin
