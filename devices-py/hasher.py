# SPDX-License-Identifier: Apache-2.0
"""A hash accelerator: a virtio device in ten lines.

The smallest virtio device with all that they have: a queue, a configuration, a
limit on what the guest may ask for. Copy it to begin one of your own.

    with pyvmm.Machine() as m:
        m.attach(Hasher())                  # or Hasher("blake2b")

or `pyvmm run build/guest/request.elf --cmdline send=abc --device
devices-py/hasher.py`.
The guest finds it by its device id, 63:

    struct virtio_device dev;
    struct virtqueue vq;
    unsigned char digest[64];
    uint32_t len;

    assert(virtio_find(63, 0, &dev) && virtio_start(&dev, 0));
    assert(virtqueue_init(&vq, &dev, 0, 8, false));
    virtio_ready(&dev);
    virtqueue_add(&vq, (struct virtio_buffer[]){{"abc", 3}, {digest, 64}},
                  1, 1);
    virtqueue_kick(&vq);
    virtqueue_wait(&vq, &len);

A request is the bytes to hash and room for the digest, in any number of buffers
each. The answer is the digest. A request that is longer than `limit`, or has
room for less than a digest, is answered with nothing.

| configuration | |
| --- | --- |
| 0x0, 4 bytes | the bytes of a digest |
| 0x4, 4 bytes | `limit`, the most bytes of a request |

Neither a guest nor KVM is needed to try it:

>>> with virtio.driver(Hasher(limit=1000)) as drv:
...     digest = drv.requests(b"ab", b"c", reply=32)
...     nothing = drv.requests(b"abc", reply=31), drv.requests(bytes(1001))
...     faults = drv.device.faults
>>> digest == hashlib.sha256(b"abc").digest()
True
>>> nothing, faults
((b'', b''), 2)
"""

import hashlib
from typing import ClassVar

from pyvmm import virtio


class Hasher(virtio.Device):
    """Hashes what the guest sends, with any algorithm of hashlib.

    Threads: as virtio.Device.
    """

    device_id = 63
    queues: ClassVar[dict[str, int]] = {"requests": 256}
    config = virtio.Struct(digest_size="<I", limit="<I")

    def __init__(
        self,
        algorithm: str = "sha256",
        *,
        limit: int = 1 << 20,
        notify: str = "inline",
    ) -> None:
        self.algorithm = algorithm
        self.notify = notify
        self.config.digest_size = hashlib.new(algorithm).digest_size
        self.config.limit = limit

    def on_requests(self, queue: virtio.Queue) -> None:
        limit = self.config.limit
        for chain in queue:
            if chain.readable_size > limit:
                raise virtio.ShortChain(f"more than {limit} bytes")
            # Copied: another vCPU may change what is hashed meanwhile.
            digest = hashlib.new(self.algorithm, chain.read())
            chain.write(digest.digest())
