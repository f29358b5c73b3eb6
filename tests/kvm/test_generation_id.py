# SPDX-License-Identifier: Apache-2.0
"""A guest learns that it was put back to a snapshot, or is a clone."""

import pytest

import pyvmm
from pyvmm.devices import GenerationId

pytestmark = pytest.mark.usefixtures("kvm")

# Prints a dot for each interrupt that it waits for, after an 'r' for ready.
GUEST = r"""
#include <runtime.h>
#include <interrupt.h>
#include <io.h>

static volatile unsigned changes;

static void on_change(void *ignored) { (void)ignored; changes++; }

int main(void)
{
    struct arg_device id;

    if (!arg_device("generationid", &id) ||
        !irq_request(id.line, on_change, 0))
        return 99;
    print("ready\n");
    for (;;) {
        while (!changes)
            irq_wait();
        changes--;
        print("%08x\n", read32(id.base));
    }
}
"""


@pytest.fixture
def m():
    with pyvmm.Machine() as m:
        m.attach(GenerationId())
        m.load(c=GUEST)
        m.run(until=pyvmm.printed("ready\n"), timeout=20)
        yield m


def told(m: pyvmm.Machine) -> str:
    """The identifier that the guest prints."""
    m.run(until=pyvmm.printed("\n"), timeout=20)
    return m.console.text.splitlines()[-1]


def first_word(device: GenerationId) -> str:
    return f"{int.from_bytes(device.id[:4], 'little'):08x}"


def test_each_restore_is_told(m) -> None:
    device = m.devices[0]
    snap = m.snapshot()
    seen = [device.id]
    for _ in range(3):
        m.restore(snap)
        assert told(m) == first_word(device)
        seen.append(device.id)
    assert len(set(seen)) == 4


def test_each_clone_is_another(m) -> None:
    ids = {m.devices[0].id}
    clones = m.clone(3)
    for one in clones:
        assert told(one) == first_word(one.devices[0])
        ids.add(one.devices[0].id)
        one.close()
    assert len(ids) == 4


def test_from_a_file(m, tmp_path) -> None:
    before = m.devices[0].id
    m.snapshot().save(tmp_path / "moment")
    snap = pyvmm.Snapshot.load(tmp_path / "moment")
    with snap.machine(lambda new: new.attach(GenerationId())) as new:
        assert new.devices[0].id != before
        assert told(new) == first_word(new.devices[0])


def test_hook() -> None:
    seen: list[bytes] = []
    with pyvmm.Machine() as m:
        device = m.attach(GenerationId(on_change=seen.append))
        m.load(asm="hlt")
        snap = m.snapshot()
        m.restore(snap)
        assert seen == [device.id]
        m.clone()[0].close()
        assert len(seen) == 2 and seen[1] != device.id
