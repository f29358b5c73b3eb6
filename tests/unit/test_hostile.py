# SPDX-License-Identifier: Apache-2.0
"""Any traffic against devices that come along; whether it finds mistakes."""
# ruff: noqa: RUF012 - queues are written as users write them

import hashlib

import pytest
from hostile import QueueTraffic
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from pyvmm import virtio
from pyvmm.devices import Hasher


class HasherTraffic(QueueTraffic):
    def make(self) -> virtio.Device:
        return Hasher()

    def alive(self, drv: virtio.Driver) -> None:
        digest = hashlib.sha256(b"abc").digest()
        assert drv.requests(b"abc", reply=32) == digest


TestHasher = HasherTraffic.test_case()


class Careless(virtio.Device):
    """Believes that requests have a byte, and a place for the answer."""

    device_id = 63
    queues = {"requests": 16}

    def on_requests(self, queue: virtio.Queue) -> None:
        for chain in queue:
            chain.writable[0][0] = chain.read()[0]
            chain.written = 1


def test_it_finds_a_careless_device() -> None:
    class CarelessTraffic(HasherTraffic):
        def make(self) -> virtio.Device:
            return Careless()

        def alive(self, drv: virtio.Driver) -> None:
            assert drv.requests(b"a", reply=1) == b"a"

    case = CarelessTraffic.test_case()
    # To make the example small takes minutes on a busy machine.
    quick = settings(case.settings, phases=[Phase.generate])
    with pytest.raises(IndexError):
        run_state_machine_as_test(CarelessTraffic, settings=quick)
