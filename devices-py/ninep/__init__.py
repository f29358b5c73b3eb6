# SPDX-License-Identifier: Apache-2.0
"""A folder of the host as a file system of the guest: virtio-9p.

    with pyvmm.Machine() as m:
        m.attach(NineP("/srv/share", "share"))
        m.load("vmlinux", cmdline="...")

and in a Linux guest (CONFIG_NET_9P_VIRTIO and CONFIG_9P_FS)

    mount -t 9p -o trans=virtio,version=9p2000.L share /mnt

The device is on virtio-mmio: a kernel that is not told by other means finds it
by `virtio_mmio.device=0x200@0xd0000000:16` (CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES,
the address and the line being the device's `base` and `irq_line`). Options of
use: `msize=` up to what the device offers, 1 MiB; `cache=loose` when the host
leaves the folder alone; `access=any`, as users of the guest are all one here.

From a shell a file says which folder:

    $ cat share.py
    from pyvmm.devices import NineP

    def share():
        return NineP("/srv/share", "share")

    $ pyvmm run build/guest/ninep.elf --device share.py:share --cmdline "ls=/"

The guest sees what the user that runs this process may read, and can change
nothing: every request to is answered with EROFS. With `readonly=False` it
writes, in this user's name:

* New files belong to this user, with the mode asked for less the process's
  umask. A change of owner is EPERM, unless it changes nothing; so are
  set-user-ID and set-group-ID for files, and devices, FIFOs and sockets.
* Extended attributes are not there (EOPNOTSUPP): some of them are privileges.
* Locks hold among processes of the guest; programs of the host do not see
  them.
* A symbolic link may say anything, and the guest follows it in its own tree.
  Programs of the host that look into the folder should mind that.

Nothing outside of the folder can be reached: not by "..", not by a symbolic
link, not by changing something while it is looked at (folder.py tells
how). File systems that are mounted in the folder are part of it, so "/" is a
folder to think twice about: /proc has the memory of this process. What the
host moves out of the folder stays open to a guest that has walked there
before, as an open file does. Special files are seen, never opened.

A guest can hold so many fids, and so many descriptors of the host, as `limit`
says; then it gets EMFILE. By default that is half of what the process may open
(`ulimit -n`), 16384 at most; Linux needs many only with `cache=loose`.

Requests are carried out one by one, on a thread of the device's own: a disk or
a network that keeps one waiting does not keep the vCPU. `notify="inline"` saves
the way to that thread where the folder is in memory. Data goes straight between
the file and the guest's memory.

>>> import os, struct, tempfile
>>> from pyvmm.devices.ninep.wire import NOFID, VERSION
>>> folder = tempfile.TemporaryDirectory()
>>> with open(os.path.join(folder.name, "hello"), "w") as file:
...     _ = file.write("from the host")
>>> def ask(drv, kind, layout, *fields, reply=64):
...     body = struct.pack("<" + layout, *fields)
...     head = HEADER.pack(HEADER.size + len(body), kind, 1)
...     return drv.requests(head + body, reply=reply)[HEADER.size:]
>>> with virtio.driver(NineP(folder.name, "share")) as drv:
...     drv.config["tag_size"], drv.config["tag"].rstrip(bytes(1))
...     _ = ask(drv, T.VERSION, "IH8s", 8192, 8, VERSION)
...     _ = ask(drv, T.ATTACH, "IIHHI", 0, NOFID, 0, 0, 0)
...     _ = ask(drv, T.WALK, "IIHH5s", 0, 1, 1, 5, b"hello")
...     _ = ask(drv, T.LOPEN, "II", 1, os.O_RDONLY)
...     ask(drv, T.READ, "IQI", 1, 0, 50)
...     ask(drv, T.REMOVE, "I", 1) == struct.pack("<I", errno.EROFS)
(5, b'share')
b'\\r\\x00\\x00\\x00from the host'
True
>>> folder.cleanup()

Sources: Linux, include/uapi/linux/virtio_9p.h (virtio 1.2 gives the device its
number, 9, and no section); for the protocol see wire.py.
"""

import errno
import os
import resource
import threading
import weakref
from collections.abc import Mapping
from typing import Any, ClassVar

from pyvmm import virtio

from .folder import Folder, error
from .server import SMALLEST, Server
from .wire import (
    COUNT,
    ERROR,
    HEADER,
    MOST_NAMES,
    REQUESTS,
    RLERROR,
    WRITE,
    Malformed,
    T,
)

MOUNT_TAG = 1 << 0  # VIRTIO_9P_MOUNT_TAG
TAG_MOST = 254  # bytes: what a configuration has room for
MSIZE = 1 << 20
MSIZE_MOST = 16 << 20
LEAST_LIMIT = 16
USUAL_LIMIT = 1 << 14
QID_SIZE = 13


class NineP(virtio.Device):
    """A virtio-9p device that serves a folder by 9P2000.L.

    `path`: the folder; the device stays with it when it is renamed.
    `tag`: what the guest mounts it by, 1 to 254 bytes in UTF-8.
    `readonly`: whether the guest cannot change anything.
    `msize`: the largest message in bytes, 4096 to 16 MiB.
    `limit`: most fids, and most descriptors of the host, that a guest has.

    OSError when the folder cannot be opened or there is no /proc.

    Threads: as virtio.Device.
    """

    device_id = 9
    features = MOUNT_TAG
    queues: ClassVar[dict[str, int]] = {"requests": 128}
    config = virtio.Struct(tag_size="<H", tag=f"{TAG_MOST}s")

    def __init__(
        self,
        path: str | os.PathLike[str],
        tag: str = "host",
        *,
        readonly: bool = True,
        msize: int = MSIZE,
        limit: int | None = None,
        notify: str = "thread",
    ) -> None:
        name = tag.encode()
        if not 0 < len(name) <= TAG_MOST or b"\0" in name:
            raise ValueError(
                f"tag {tag!r} is not 1 to {TAG_MOST} bytes without NUL"
            )
        if not SMALLEST <= msize <= MSIZE_MOST:
            raise ValueError(
                f"msize {msize} is not {SMALLEST} to {MSIZE_MOST} bytes"
            )
        if limit is None:
            files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            if not 0 <= files <= 2 * USUAL_LIMIT:  # -1: without a limit
                files = 2 * USUAL_LIMIT
            limit = max(files // 2, LEAST_LIMIT)
        if limit < LEAST_LIMIT:
            raise ValueError(f"limit {limit} is less than {LEAST_LIMIT}")
        if not os.path.isdir("/proc/self/fd"):
            raise OSError(errno.ENOSYS, "files are opened by /proc: mount it")
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        self._root = os.open(path, flags)
        weakref.finalize(self, os.close, self._root)
        self.path = os.fspath(path)
        self.tag = tag
        self.readonly = readonly
        self.msize = msize
        self.limit = limit
        self.notify = notify
        self.config.tag_size = len(name)
        self.config.tag = name
        # A reset comes on the vCPU's thread, while a request may be carried
        # out: the session it is in is left to it, and ends after it.
        self._guard = threading.Lock()
        self._server = self._session()
        self._busy: Server | None = None

    def _session(self) -> Server:
        folder = Folder(self._root, self.readonly, self.limit)
        return Server(folder, self.msize, self.limit)

    # -- life ----------------------------------------------------------------

    def reset(self) -> None:
        """The driver began anew: nothing is left of its session."""
        with self._guard:
            old, self._server = self._server, self._session()
            if self._busy is old:
                return
        old.close()

    def detached(self) -> None:
        """No descriptor of a guest's is left, but that of the folder."""
        self.reset()

    def save(self) -> dict[str, Any]:
        """The session: the fids, by path and inode, and the locks.

        To be asked for while no request is being carried out.
        """
        return self._server.save()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what save() has returned, as far as it is still there.

        What the files hold is no part of it. Files that are gone, or others by
        now, are lost: their fids answer ESTALE. Nothing but the folder is
        looked at for that.
        """
        self._server.restore(state)

    # -- requests ------------------------------------------------------------

    def on_requests(self, queue: virtio.Queue) -> None:
        for chain in queue:
            # A chain of the session before is stale: nothing comes of it.
            with self._guard:
                server = self._busy = self._server
            try:
                answer(server, chain)
            finally:
                with self._guard:
                    self._busy = None
                    over = server is not self._server
                if over:
                    server.close()

    def __repr__(self) -> str:
        mode = "read only" if self.readonly else "writable"
        return f"{super().__repr__()[:-1]}, {self.path!r} {mode}>"


def answer(server: Server, chain: virtio.Chain) -> None:
    """Carry out the request in `chain`, and write what comes of it there.

    ShortChain when there is no header, or no room even for an error.
    """
    size, kind, tag = HEADER.unpack(chain.take(HEADER.size))
    if chain.writable_size < ERROR.size:
        raise virtio.ShortChain(f"no room for an error: {ERROR.size} bytes")
    try:
        if size != chain.readable_size:
            raise Malformed(f"size {size} is not that of the message")
        if size > (server.msize or server.most):
            raise error(errno.EMSGSIZE)
        server.admit(kind)
        body, data = carry_out(server, kind, chain, size)
        total = HEADER.size + len(body) + data
        head = HEADER.pack(total, kind + 1, tag) + body
    except OSError as exc:
        number = exc.errno or errno.EIO
        head = ERROR.pack(ERROR.size, RLERROR, tag, number)
        total = ERROR.size
    chain.write(head, 0)
    chain.written = total


def carry_out(
    server: Server, kind: int, chain: virtio.Chain, size: int
) -> tuple[bytes, int]:
    """The fields of the answer, and how many bytes of data are behind already.

    OSError for an error, EMSGSIZE for want of room: then nothing is done.
    """
    if kind == T.READ:
        return read(server, chain, size)
    if kind == T.WRITE:
        return write(server, chain, size), 0
    request = REQUESTS[kind]
    fields = request.layout.unpack(chain.take(size - HEADER.size))
    room = min(chain.writable_size, server.msize or server.most)
    need = request.reply
    if kind == T.WALK:
        need += QID_SIZE * min(len(fields[2]), MOST_NAMES)
    elif kind == T.READDIR:
        fields[2] = min(fields[2], room - need)
    if need > room:
        raise error(errno.EMSGSIZE)
    body = server.call(kind, fields)
    if HEADER.size + len(body) > room:  # a link, a lock: nothing has changed
        raise error(errno.EMSGSIZE)
    return body, 0


def read(server: Server, chain: virtio.Chain, size: int) -> tuple[bytes, int]:
    """A Tread: from the file into the guest's buffers."""
    layout = REQUESTS[T.READ].layout
    fid, offset, count = layout.unpack(chain.take(size - HEADER.size))
    file = server.data(fid, offset)
    head = HEADER.size + COUNT.size
    count = min(count, min(chain.writable_size, server.msize) - head)
    chain.write(bytes(head))  # the data is behind that
    rest = chain.writable_size - head - count
    done = virtio.preadv(file, [chain], offset, rest)
    return COUNT.pack(done), done


def write(server: Server, chain: virtio.Chain, size: int) -> bytes:
    """A Twrite: from the guest's buffers into the file; the answer."""
    if size < HEADER.size + WRITE.size:
        raise Malformed("it ends too early")
    fid, offset, count = WRITE.unpack(chain.take(WRITE.size))
    if count != size - HEADER.size - WRITE.size:
        raise Malformed(f"{count} bytes of data are not there, or too few")
    file = server.data(fid, offset)
    return COUNT.pack(virtio.pwritev(file, [chain], offset))
