# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin: fixtures that boot once, and what reports show."""

import re
from pathlib import Path

import pytest
from project import Project, run_pytest

import pyvmm
from pyvmm import testing

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent
ECHO = str(ROOT / "build/guest/echo.elf")
boots: list[str] = []


@testing.machine(memory="16M")
def echo(m: pyvmm.Machine) -> None:
    """A guest that echoes lines."""
    boots.append("echo")
    m.load(ECHO)
    m.console.expect("> ", timeout=20)


@testing.machine
def calls(m: pyvmm.Machine, tmp_path_factory: pytest.TempPathFactory) -> None:
    boots.append("calls")
    assert tmp_path_factory.getbasetemp().exists()
    m.load(
        c="""
        #include <runtime.h>

        int counter;

        int add(int a, int b, int c) { counter++; return a * 100 + b * 10 + c; }
        int recurse(int n) { return n ? n + recurse(n - 1) : 0; }
        void die(void) { panic("dead"); }
        void spin(void) { for (;;) cpu_relax(); }
        int main(void) { return add(1, 2, 3); }
        """
    )
    m.run(until="main", timeout=20)


def test_first(echo: pyvmm.Machine) -> None:
    echo.console.send("one\n")
    echo.console.expect("one", timeout=20)
    assert echo.console.text == "> one\n> "[: len(echo.console.text)]


def test_second_knows_nothing_of_it(echo: pyvmm.Machine) -> None:
    assert echo.console.text == "> "
    echo.console.send("two\n")
    echo.console.expect("two", timeout=20)
    assert boots.count("echo") == 1


def test_one_that_is_closed(echo: pyvmm.Machine) -> None:
    echo.close()


def test_is_booted_anew(echo: pyvmm.Machine) -> None:
    assert not echo.closed and boots.count("echo") == 2
    echo.start()  # and left behind
    echo.attach(pyvmm.Rng())


def test_whatever_was_left_behind(echo: pyvmm.Machine) -> None:
    assert not echo.running and echo.devices == []
    assert echo.console.text == "> "


@pytest.mark.parametrize("n", [0, 1, 10])
def test_functions_are_called(calls: pyvmm.Machine, n: int) -> None:
    before = calls.cpu.rip, calls.cpu.rsp
    assert calls.mem.read_u32("counter") == 0
    assert calls.call("add", 1, n, 3, timeout=20) == 103 + 10 * n
    assert calls.call("recurse", n, timeout=20) == n * (n + 1) // 2
    assert calls.mem.read_u32("counter") == 1
    assert (calls.cpu.rip, calls.cpu.rsp) == before
    assert calls.run(timeout=20).status == 123
    assert boots.count("calls") == 1


def test_a_function_that_dies(calls: pyvmm.Machine) -> None:
    before = calls.cpu.rip
    with pytest.raises(pyvmm.GuestError, match="did not return") as caught:
        calls.call("die", timeout=20)
    assert caught.value.stop.status == 255
    assert "panic: dead" in calls.console.text
    with pytest.raises(pyvmm.GuestTimeout):
        calls.call("spin", timeout=0.05)
    assert calls.cpu.rip == before
    assert calls.call("add", 0, 0, 7, timeout=20) == 7


def test_arguments_that_are_none(calls: pyvmm.Machine) -> None:
    with pytest.raises(TypeError, match="argument 2 is str, not int"):
        calls.call("add", 1, "x")
    with pytest.raises(ValueError, match="33 arguments are more than 32"):
        calls.call("add", *range(33))
    with pytest.raises(ValueError, match="no symbol 'nowhere'"):
        calls.call("nowhere")


def test_two_side_by_side(echo: pyvmm.Machine, calls: pyvmm.Machine) -> None:
    assert echo is not calls
    (clone,) = echo.clone()
    clone.console.send("x\n")
    clone.console.expect("x", timeout=20)
    assert echo.console.text == "> "
    clone.close()


# -- reports and configuration -------------------------------------------------


@pytest.fixture
def project(project: Project) -> Project:
    """One that has no other plugins than ours."""
    project.alone = True
    return project


def test_a_failure_shows_the_guest(project: Project) -> None:
    """All of it, in the terminal, from a worker of xdist, and in junit XML."""
    project.write(
        """
        import pytest

        def test_panic(guest):
            guest.call("die", timeout=20)

        def test_assert(guest):
            assert guest.call("add", 1, 2, timeout=20) == 4
        """
    )
    for args in ((), ("-n", "2")):
        done = project.run("--junitxml=report.xml", *args)
        done.counts(failed=2)
        for text in (done.text, project.read("report.xml")):
            assert "console of guest" in text and "panic: dead" in text
            assert "registers of guest" in text and "efer 0" in text
            assert "backtrace of guest" in text
            # By symbol and, since pyelftools is here, with source lines.
            assert re.search(r"#\d .* die\+0x\w+ guest\.c:\d+", text)
            assert "last exits of guest" in text
            assert re.search(r"write of 4 bytes 0xff to port 0xf4", text)
            assert "end of the last run of guest" in text
            assert "exit with status 255" in text
            assert "machine guest" in text and "16384 KiB" in text
        assert "running.py" not in done.text  # nothing of pyvmm's inside


@pytest.mark.parametrize(
    ("call", "error", "end"),
    [
        ("guest.call('spin', timeout=0.05)", "GuestTimeout", "timeout: still"),
        ("guest.call('fault', timeout=20)", "GuestError", "triple fault"),
        (
            "guest.call('unknown', timeout=20)",
            "GuestError",
            "emulation failure",
        ),
        ("guest.call('nowhere', timeout=20)", "GuestError", "unclaimed access"),
        (
            "guest.run(timeout=20)\n    guest.devices[0]",
            "IndexError",
            "exit with",
        ),
    ],
)
def test_what_ended_the_run(
    project: Project, call: str, error: str, end: str
) -> None:
    project.write(f"def test_it(guest):\n    {call}\n")
    done = project.run()
    done.counts(failed=1)
    assert error in done.text
    part = done.section("end of the last run of guest")
    assert part.startswith(end)
    if "spin" in call:
        assert re.search(r"at spin(\+\w+)? (guest\.c|io\.h):\d+", part)
        assert "#0 " in done.section("backtrace of guest")


def test_machines_of_the_test_itself_are_shown(project: Project) -> None:
    project.write(
        """
        import pyvmm

        def test_it(guest):
            (twin,) = guest.clone()
            twin.call("die", timeout=20)

        def test_other():
            with pyvmm.Machine() as mine:
                mine.load(asm="mov al, 65; out 0xe9, al; out 0x99, al")
                mine.run(timeout=20)
        """
    )
    done = project.run()
    done.counts(failed=2)
    assert "panic: dead" in done.section("console of twin")
    assert done.section("console of mine") == "A"
    assert "write of 1 byte 0x41 to port 0x99" in done.text


def test_variables_that_do_not_like_to_be_looked_at(project: Project) -> None:
    """A report asks no object of a test for anything but its type."""
    project.write(
        """
        class Proxy:
            @property
            def __class__(self):
                raise RuntimeError("unbound")

            def __getattr__(self, name):
                raise RuntimeError("unbound")

            def __repr__(self):
                return "<Proxy>"

        def test_it(guest):
            proxy = Proxy()
            guest.call("die", timeout=20)
        """
    )
    done = project.run()
    done.counts(failed=1)
    assert "panic: dead" in done.section("console of guest")


def test_a_boot_that_is_interrupted(project: Project) -> None:
    """With --pdb the session goes on after Ctrl-C: the next test boots anew."""
    project.write(
        """
        from pyvmm import testing
        from conftest import boot

        boots = []

        @testing.machine
        def late(m):
            boots.append(1)
            boot(m)
            if len(boots) == 1:
                raise KeyboardInterrupt

        def test_one(late): pass
        def test_two(late):
            assert late.call("count", timeout=20) == 1
        """
    )
    done = project.run("--pdb", stdin="c\n")
    assert "1 passed, 1 error" in done.text


def test_it_can_be_left_out(project: Project) -> None:
    project.write("def test_bad(guest):\n    assert guest.closed\n")
    done = project.run("-p", "no:pyvmm")
    done.counts(failed=1)
    assert "registers of guest" not in done.text
    assert "assert guest.closed" in done.text or "where" in done.text


UNUSED = """
import sys

def test_nothing():
    loaded = [name for name in sys.modules if name.startswith("pyvmm")]
    assert sorted(loaded) == ["pyvmm", "pyvmm.plugin"], loaded
    assert "hypothesis" not in sys.modules

def test_bad():
    assert not "nothing is imported for its report"
"""
OPENED = """
import sys

opened = []

def watch(event, args):
    if event == "open" and str(args[0]) == "/dev/kvm":
        opened.append(args[0])

sys.addaudithook(watch)

def pytest_sessionfinish():
    assert opened == []
    assert not any("/dev/kvm" in path for path in paths())

def paths():
    import os

    for number in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            pass
"""


def test_it_costs_nothing_where_it_is_not_used(tmp_path: Path) -> None:
    """Nor does a test that fails: nothing of pyvmm is imported for it."""
    (tmp_path / "conftest.py").write_text(OPENED)
    (tmp_path / "test_unused.py").write_text(UNUSED + TRAILER)
    done = run_pytest(tmp_path)
    done.counts(passed=2, failed=1)


TRAILER = """
def test_still_nothing():
    test_nothing()
"""


# -- the fixture ---------------------------------------------------------------


def test_a_boot_that_fails_is_not_tried_again(project: Project) -> None:
    """One test shows how it failed; the others say so in a line."""
    project.write(
        """
        import pytest
        from pyvmm import testing

        @testing.machine
        def broken(m):
            with open("boots", "a") as file:
                file.write("boot ")
            m.load(asm="mov al, 66; out 0xe9, al; again: jmp again")
            m.console.expect("never", timeout=0.05)

        @pytest.mark.parametrize("n", range(5))
        def test_it(broken, n):
            assert False, "never here"
        """
    )
    for args, boots in (((), 1), (("-n", "2"), 2)):
        (project.folder / "boots").write_text("")
        done = project.run(*args)
        done.counts(errors=5)
        assert project.read("boots").split() == ["boot"] * boots
        assert done.text.count("_ ERROR at setup of") == 5
        assert done.text.count("- registers of broken -") == boots
        assert done.section("console of broken") == "B"
        said = "broken did not boot, as test_it.py::test_it["
        assert done.text.count(f"\n{said}") == 5 - boots
        assert "has shown: GuestTimeout: 'never' did not come" in done.text


def test_a_boot_that_skips(project: Project) -> None:
    project.write(
        """
        import pytest
        from pyvmm import testing

        @testing.machine
        def absent(m):
            pytest.skip("no image today")

        def test_one(absent): pass
        def test_two(absent): pass
        """
    )
    done = project.run("-rs")
    done.counts(skipped=2)
    assert "no image today" in done.text


def test_a_host_without_kvm_is_a_skip_with_its_reason(project: Project) -> None:
    project.write(
        """
        import pytest
        import pyvmm.host

        tried = []

        def refused():
            tried.append(1)
            raise OSError(2, "No such file", "/dev/kvm")

        pyvmm.host._kvm = None
        pyvmm.host._vmm.KVM = refused

        def test_guest(guest): pass
        def test_kvm(kvm): pass
        def test_again(guest): pass
        def test_once(): assert tried == [1]
        """
    )
    done = project.run("-rs")
    done.counts(skipped=3, passed=1)
    assert "/dev/kvm" in done.text


def test_what_tests_leave_behind(project: Project) -> None:
    """Running guests, breakpoints, devices, a closed machine."""
    project.write(
        """
        import pytest, pyvmm

        def test_running(guest):
            guest.cpu.rip = guest.symbols["spin"]
            guest.start()

        def test_stands_still(guest):
            assert not guest.running
            assert guest.call("add", 1, 2, timeout=20) == 3

        def test_breakpoint(guest):
            guest.breakpoint("add")
            guest.trace = print

        def test_none(guest):
            assert guest.breakpoints == [] and guest.trace is None
            assert guest.call("add", 1, 2, timeout=20) == 3

        def test_devices(guest):
            guest.attach(pyvmm.Rng())

        def test_no_devices(guest):
            assert guest.devices == []
            guest.close()

        def test_open(guest):
            assert not guest.closed

        def test_of_a_thread(guest):
            guest._runner.fail(RuntimeError("of a device's thread"))

        def test_is_over(guest):
            assert guest.call("add", 1, 2, timeout=20) == 3
        """
    )
    project.run().counts(passed=9)


def test_what_nobody_has_waited_for_is_told(project: Project) -> None:
    project.write(
        """
        def test_crash(guest):
            guest.cpu.rip = guest.symbols["fault"]
            guest.start()
            while guest.running:
                pass

        def test_after(guest):
            assert guest.call("add", 1, 2, timeout=20) == 3
        """
    )
    done = project.run()
    done.counts(passed=2, errors=1)
    assert "ERROR at teardown of test_crash" in done.text
    assert "GuestError: triple fault" in done.text


def test_scopes(project: Project) -> None:
    """Fixtures of a class or module may be built on machines of that scope."""
    project.write(
        """
        import pytest
        from pyvmm import testing
        from conftest import boot

        @testing.machine(scope="module")
        def shared(m):
            boot(m)

        @pytest.fixture(scope="module")
        def prepared(shared):
            assert shared.call("count", timeout=20) == 1
            return shared.snapshot()

        @pytest.fixture
        def fresh(shared, prepared):
            shared.restore(prepared)
            return shared

        @pytest.mark.parametrize("n", range(3))
        def test_fresh(fresh, n):
            assert fresh.call("count", timeout=20) == 2

        def test_shared(shared):
            assert shared.call("count", timeout=20) == 3

        @testing.machine(scope="class")
        def classy(m):
            boot(m)

        class TestClass:
            def test_one(self, classy):
                assert classy.call("count", timeout=20) == 1

            def test_two(self, classy):
                assert classy.call("count", timeout=20) == 2
                assert False, "look"

        class TestOther:
            def test_one(self, classy):
                assert classy.call("count", timeout=20) == 1

        @pytest.fixture(scope="module")
        def too_wide(guest): pass

        def test_mismatch(too_wide): pass
        """
    )
    done = project.run()
    done.counts(passed=6, failed=1, errors=1)
    assert "registers of classy" in done.text
    assert "ScopeMismatch" in done.text and "fixture guest" in done.text


def test_params(project: Project) -> None:
    project.write(
        """
        import pytest
        from pyvmm import testing
        from conftest import boot

        booted = []

        @testing.machine(params=[{"memory": "8M"}, {"memory": "32M"}])
        def sized(m):
            booted.append(m.memory.size)
            boot(m)

        @testing.machine(params=[1, 2], ids=["one", "two"])
        def numbered(m, request):
            booted.append(request.param)
            boot(m)
            m.mem.write_u32("counter", request.param)

        def test_sizes(sized, numbered):
            size = sized.memory.size
            assert size in (8 << 20, 32 << 20)
            assert numbered.call("count", timeout=20) in (2, 3)

        @pytest.mark.parametrize("numbered", [2], indirect=True)
        def test_indirect(numbered):
            assert numbered.call("count", timeout=20) == 3

        def test_each_is_booted_once():
            assert sorted(booted) == [1, 2, 8 << 20, 32 << 20]
        """
    )
    done = project.run("-v")
    done.counts(passed=6)
    assert "test_sizes[memory=8M-one]" in done.text
    assert "test_sizes[memory=32M-two]" in done.text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def boot(m):\n    yield", "boot() is no plain function"),
        ("async def boot(m):\n    pass", "boot() is no plain function"),
        ("def boot():\n    pass", "boot() has no parameter for its machine"),
        ("def boot(self, m):\n    pass", "boot() is a method: one machine"),
        (
            "def boot(m, tmp_path):\n    pass",
            "boot boots once per process and takes 'tmp_path', which is made "
            "for each function",
        ),
        ("def boot(m, nobody):\n    pass", "fixture 'nobody' not found"),
    ],
)
def test_boots_that_are_none(project: Project, source: str, said: str) -> None:
    project.write(
        f"from pyvmm import testing\n@testing.machine\n{source}\n"
        "def test_it(boot): pass\n"
    )
    done = project.run()
    assert done.code != 0 and said in done.text


def test_ctrl_c_in_a_run(project: Project) -> None:
    project.write(
        """
        import os, signal, pytest, pyvmm

        class Key(pyvmm.Device):
            size = 1
            port = 0x500

            def write(self, offset, size, value):
                os.kill(os.getpid(), signal.SIGINT)

            def read(self, offset, size):
                return 0

        def test_it(guest):
            guest.attach(Key())
            guest.call("ring")

        def test_never(guest): pass
        """
    )
    done = project.run()
    assert done.code == 2, done.text
    assert "KeyboardInterrupt" in done.text
    assert "no tests ran" in done.text
