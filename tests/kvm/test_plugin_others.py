# SPDX-License-Identifier: Apache-2.0
"""Machines as fixtures beside pytest's other plugins."""

import re

import pytest
from project import Project

pytestmark = pytest.mark.usefixtures("kvm")


# -- pytest itself -------------------------------------------------------------


def test_last_failed_and_exit_first(project: Project) -> None:
    project.write(
        """
        import pytest

        @pytest.mark.parametrize("n", range(6))
        def test_it(guest, n):
            assert guest.call("add", n, 1, timeout=20) not in (3, 5)
        """
    )
    project.run(cache=True).counts(passed=4, failed=2)
    done = project.run("--lf", cache=True)
    done.counts(failed=2)
    done = project.run("-x", cache=True)
    done.counts(passed=2, failed=1)
    assert done.text.count("- registers of guest -") == 1


def test_pdb_has_the_machine_alive(project: Project) -> None:
    """It begins in the test, and the guest may be run on."""
    project.write(
        """
        def test_it(guest):
            local = 7
            guest.call("die", timeout=20)
        """
    )
    commands = """
        p local
        p guest.cpu
        p guest.closed, guest.call("add", 40, 2, timeout=20)
        p guest.backtrace()
        q
    """
    done = project.run("--pdb", stdin=commands)
    assert "(Pdb) 7" in done.text
    assert re.search(
        r"\\(Pdb\\) <Cpu 0 at main".replace("\\\\", "\\"), done.text
    )
    assert "(Pdb) (False, 42)" in done.text
    assert "(Pdb) <Backtrace" in done.text
    # What the report says is there before the first prompt.
    assert done.text.index("registers of guest") < done.text.index("(Pdb)")


def test_pdb_after_a_boot_that_failed(project: Project) -> None:
    project.write(
        """
        from pyvmm import testing

        @testing.machine
        def broken(m):
            m.load(asm="mov eax, 0x1234; out 0x99, al")
            m.run(timeout=20)

        def test_it(broken): pass
        """
    )
    done = project.run("--pdb", stdin="p hex(m.cpu.eax)\nq\n")
    assert "(Pdb) '0x1234'" in done.text


# -- pytest-xdist --------------------------------------------------------------


def test_workers_have_machines_of_their_own(project: Project) -> None:
    project.write(
        """
        import os, pytest
        from pyvmm import testing
        from conftest import boot

        @testing.machine
        def other(m):
            with open("boots", "a") as file:
                file.write(f"{os.getpid()}\\n")
            boot(m)

        @pytest.mark.parametrize("n", range(8))
        def test_both(guest, other, n):
            assert guest.call("count", timeout=20) == 1
            assert other.call("add", n, n, timeout=20) == 2 * n
            assert guest is not other

        def test_bad(guest, other):
            other.call("die", timeout=20)
        """
    )
    done = project.run("-n", "2")
    done.counts(passed=8, failed=1)
    boots = project.read("boots").split()
    assert len(boots) == len(set(boots)) <= 2
    assert "registers of guest" in done.text
    assert "panic: dead" in done.section("console of other")


# -- pytest-timeout ------------------------------------------------------------

HANGS = """
    import pytest

    def test_boots(guest):
        assert "main" in str(guest.backtrace())  # its DWARF is read

    @pytest.mark.timeout(1)
    def test_hangs(guest):
        guest.call("spin")

    def test_next(guest):
        assert not guest.running
        assert guest.call("add", 1, 2, timeout=20) == 3

    @pytest.mark.timeout(1)
    def test_in_the_background(guest):
        guest.cpu.rip = guest.symbols["spin"]
        guest.start()
        guest.wait()

    def test_last(guest):
        assert guest.call("add", 1, 2, timeout=20) == 3
"""


@pytest.mark.parametrize("method", ["signal", "thread"])
def test_a_guest_that_hangs(project: Project, method: str) -> None:
    """It says where it span, and the tests after it run."""
    limit = 1 if method == "signal" else 3
    project.write(HANGS.replace("timeout(1)", f"timeout({limit})"))
    done = project.run("-o", f"timeout_method={method}")
    done.counts(passed=3, failed=2)
    assert "Timeout" in done.text
    assert re.search(r"#0 +0x\w+ spin", done.section("backtrace of guest"))
    assert done.text.count(" spin") >= 2


def test_a_timeout_with_several_vcpus(project: Project) -> None:
    """The other vCPUs have come out, too, when the test has ended."""
    project.write(
        """
        import pytest
        from pyvmm import testing

        SPIN = "again: jmp again"

        @testing.machine(cpus=2)
        def pair(m):
            m.load(asm=SPIN)
            m.run(timeout=0.05, check=False)

        def test_boots(pair): pass

        @pytest.mark.timeout(1)
        def test_hangs(pair):
            pair.run()

        @pytest.mark.parametrize("n", range(3))
        def test_next(pair, n):
            stop = pair.run(timeout=0.05, check=False)
            assert stop.reason == "timeout"
            assert not any(cpu.vcpu.running for cpu in pair.cpus)
        """
    )
    done = project.run()
    done.counts(passed=4, failed=1)
    assert "registers of pair, vCPU 0" in done.text
    assert "registers of pair, vCPU 1" in done.text


# -- asyncio -------------------------------------------------------------------

ASYNC = """
    import asyncio, pytest
    import pyvmm

    class Slow(pyvmm.Device):
        size = 4
        port = 0x500
        notify = "asyncio"
        go = pyvmm.Reg(0, 1, access="wo")
        seen = 0

        @go.on_write
        async def later(self, value):
            await asyncio.sleep(0)
            self.seen += 1

    {mark}
    @pytest.mark.parametrize("n", range(3))
    async def test_beside_the_loop(guest, n):
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.ensure_future(tick())
        stop = await guest.run_async(timeout=20)
        ticking.cancel()
        assert stop.status == 0 and ticks

    {mark}
    async def test_cancelled(guest):
        guest.cpu.rip = guest.symbols["spin"]
        running = asyncio.ensure_future(guest.run_async())
        while not guest.running:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not guest.running

    {mark}
    async def test_dies(guest):
        guest.cpu.rip = guest.symbols["fault"]
        await guest.run_async(timeout=20)

    def test_without(guest):
        assert guest.call("count", timeout=20) == 1
"""


@pytest.mark.parametrize(
    ("mark", "fixture"),
    [
        ("@pytest.mark.asyncio", ""),
        (
            "@pytest.mark.anyio",
            "@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n",
        ),
    ],
    ids=["pytest-asyncio", "anyio"],
)
def test_async_tests(project: Project, mark: str, fixture: str) -> None:
    project.write(ASYNC.replace("{mark}", mark))
    if fixture:
        path = project.folder / "test_it.py"
        text = path.read_text().replace("class Slow", f"{fixture}\nclass Slow")
        path.write_text(text)
    done = project.run()
    done.counts(passed=5, failed=1)
    assert "GuestError: triple fault" in done.text
    assert " fault" in done.section("backtrace of guest")


# -- coverage ------------------------------------------------------------------


def test_coverage_of_devices(project: Project) -> None:
    """Methods that the guest calls are measured, on each vCPU's thread."""
    project.write(
        """
        import pyvmm

        class Port(pyvmm.Device):
            size = 1
            port = 0x500

            def write(self, offset, size, value):
                self.machine.exit(value + 1)

            def read(self, offset, size):
                return 0  # not read
        """,
        "port.py",
    )
    project.write(
        """
        from port import Port

        def test_it(guest):
            guest.attach(Port())
            guest.cpu.rip = guest.symbols["ring"]
            assert guest.run(timeout=20).status == 2
        """
    )
    done = project.run("--cov=port", "--cov-report=term-missing")
    done.counts(passed=1)
    assert re.search(r"^port\.py +8 +1 +88% +12$", done.text, re.MULTILINE)


# -- subtests ------------------------------------------------------------------


def test_subtests(project: Project) -> None:
    project.write(
        """
        def test_it(guest, subtests):
            for n in range(3):
                with subtests.test(n=n):
                    assert guest.call("add", n, 1, timeout=20) != 2
            with subtests.test("dies"):
                guest.call("die", timeout=20)
            assert guest.call("add", 1, 2, timeout=20) == 3
        """
    )
    done = project.run("--junitxml=report.xml")
    assert "2 failed, 1 passed" in done.text or "2 failed" in done.text
    assert "panic: dead" in done.section("console of guest")
    assert "registers of guest" in project.read("report.xml")


# -- Hypothesis ----------------------------------------------------------------


def test_each_example_is_fresh(project: Project) -> None:
    project.write(
        """
        import pytest
        from hypothesis import given, settings, strategies as st

        count = 0

        @settings(max_examples=30, deadline=None)
        @given(n=st.integers(0, 1000))
        def test_fresh(guest, n):
            global count
            count += 1
            assert guest.call("count", timeout=20) == 1
            if n == 3:
                guest.close()

        def test_often():
            assert count >= 20

        @settings(max_examples=20, deadline=None)
        @given(n=st.integers(0, 1000))
        @pytest.mark.parametrize("m", [1, 2])
        def test_param(guest, n, m):
            assert guest.call("count", timeout=20) == 1

        class TestMethods:
            @settings(max_examples=20, deadline=None)
            @given(n=st.integers(0, 1000))
            def test_method(self, guest, n):
                assert guest.call("count", timeout=20) == 1

        @settings(max_examples=20, deadline=None, database=None)
        @given(n=st.integers(0, 1 << 20))
        def test_shrinks(guest, n):
            assert guest.call("add", n, 1, timeout=20) < 1000

        @pytest.mark.asyncio
        @settings(max_examples=20, deadline=None)
        @given(n=st.integers(0, 1000))
        async def test_async(guest, n):
            guest.mem.write_u32("counter", guest.mem.read_u32("counter") + n)
            assert (await guest.run_async(timeout=20)).status == n
        """
    )
    done = project.run()
    done.counts(passed=6, failed=1)
    assert "n=999" in done.text
    assert "registers of guest" in done.text


def test_other_fixtures_still_have_the_health_check(project: Project) -> None:
    project.write(
        """
        import pytest
        from hypothesis import given, settings, strategies as st

        @pytest.fixture
        def once(): return []

        @settings(deadline=None)
        @given(n=st.integers())
        def test_it(guest, once, n): pass

        @settings(deadline=None)
        @given(n=st.integers())
        def test_alone(once, n): pass

        @settings(deadline=None, max_examples=2)
        @given(n=st.integers())
        def test_ours(guest, n): pass
        """
    )
    done = project.run()
    done.counts(failed=2, passed=1)
    assert "function-scoped fixture" in done.text


def test_the_settings_profile(project: Project) -> None:
    project.write(
        """
        import pytest
        from hypothesis import HealthCheck, given, settings, strategies as st

        @pytest.fixture
        def once(): return []

        @given(n=st.integers())
        def test_it(guest, once, n):
            assert guest.call("count", timeout=20) == 1

        def test_settings():
            assert settings.default.deadline is None
            assert HealthCheck.function_scoped_fixture in (
                settings.default.suppress_health_check)
        """
    )
    project.run("--hypothesis-profile=pyvmm").counts(passed=2)


def test_a_guest_as_a_state_machine(project: Project) -> None:
    project.write(
        """
        from hypothesis import settings, strategies as st
        from hypothesis.stateful import rule, invariant
        from pyvmm import testing
        from conftest import boot

        boots = []

        class Counting(testing.GuestStateMachine, memory="8M"):
            @staticmethod
            def boot(m):
                boots.append(m.memory.size)
                boot(m)

            def __init__(self):
                super().__init__()
                self.count = 0

            @rule()
            def up(self):
                self.count += 1
                assert self.guest.call("count", timeout=20) == self.count

            @rule()
            def leave_behind(self):
                self.guest.mem.write_u32("counter", 100)
                self.count = 100

            @invariant()
            def same(self):
                assert self.guest.mem.read_u32("counter") == self.count

        class Wrong(Counting):
            @rule()
            def bad(self):
                self.guest.call("die", timeout=20)

        quick = settings(max_examples=10, stateful_step_count=6,
                         deadline=None, database=None)
        TestCounting = Counting.TestCase
        TestCounting.settings = quick
        TestWrong = Wrong.TestCase
        TestWrong.settings = quick

        def test_once():
            assert boots == [8 << 20, 8 << 20]
        """
    )
    done = project.run()
    done.counts(passed=2, failed=1)
    assert "state.bad()" in done.text
    assert "panic: dead" in done.text
    assert "registers of self" in done.text


def test_hypothesis_is_imported_when_it_is_used(project: Project) -> None:
    project.write(
        """
        import sys

        def test_it(guest):
            import pyvmm.testing
            assert "hypothesis" not in sys.modules
            assert pyvmm.testing.GuestStateMachine.__doc__
            assert "hypothesis" in sys.modules
        """
    )
    project.run().counts(passed=1)
