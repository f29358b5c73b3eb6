# SPDX-License-Identifier: Apache-2.0
"""Tests inside guests, as pytest collects and runs them."""

import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from textwrap import dedent

import pytest
from project import Done, run_pytest

from pyvmm import guest
from pyvmm.testing import guest_image, guest_options, guest_run

pytestmark = pytest.mark.usefixtures("kvm")

ROOT = Path(__file__).resolve().parent.parent.parent

MATH = """\
#include <test.h>

struct pair { int a, b; };

static int setups, count;

void test_setup(void)
{
    setups++;
    puts("set up");
}

TEST(adds) { EXPECT_EQ(setups, 1); EXPECT_EQ(2 + 2, 4); }
TEST(counts) { EXPECT_EQ(++count, 1); }
TEST(counts_anew) { EXPECT_EQ(++count, 1); }
TEST(skips) { SKIP("not today"); }
TEST_PARAMS(twice, int, 0, 1, -5) { EXPECT_EQ(param * 2, param + param); }
TEST_PARAMS(words, const char *, "a", "b c") { EXPECT_TRUE(*param); }
TEST_PARAMS(pairs, struct pair, {1, 2}, {3, 4})
{
    EXPECT_EQ(param.a + 1, param.b);
}
TEST_PARAMS(same, unsigned char, 7, 7) { EXPECT_EQ(param, 7); }
"""

FAILS = """\
#include <test.h>

TEST(values)
{
    uint8_t small = 3;
    const char *text = "abc";

    puts("on the console");
    EXPECT_EQ(small, 4u);
    EXPECT_LT(-1, -20);
    EXPECT_EQ(1ULL << 40, 1);
    EXPECT_NE(text, text);
    EXPECT_STR_EQ(text, "ab\\n");
    EXPECT_STR_EQ(text, NULL);
    EXPECT_MEM_EQ("abcd", "abXY", 4);
    EXPECT_TRUE(small == 4);
}

static __attribute__((noinline)) void helper(int n)
{
    ASSERT_EQ(n, 1);
    puts("not reached");
}

TEST(deep) { helper(2); barrier(); }
TEST_PARAMS(some, int, 1, 2) { EXPECT_EQ(param, 1); }
TEST(fails) { FAIL("for a reason"); }
TEST(many) { for (int i = 0; i < 20; i++) EXPECT_EQ(i, -1); }
TEST(skips_too_late) { EXPECT_EQ(1, 2); SKIP("too late"); }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def run(folder: Path, *args: str, cache: bool = False) -> Done:
    return run_pytest(folder, *args, cache=cache, alone=True)


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(dedent(text))


def report(done: Done, name: str) -> str:
    """What was said of the test of that name."""
    found = re.search(
        rf"^_+ {re.escape(name)} _+$\n(.*?)(?=^[_=]{{4,}})",
        done.text,
        re.MULTILINE | re.DOTALL,
    )
    assert found, done.text
    return found[1]


def test_they_pass(folder: Path) -> None:
    write(folder, "guest_math.c", MATH)
    done = run(folder, "-v", "-rs")
    done.counts(passed=12, skipped=1)
    names = re.findall(r"^guest_math.c::(.*?) [PS]", done.text, re.MULTILINE)
    assert names == [
        "adds", "counts", "counts_anew", "skips", "twice[0]", "twice[1]",
        "twice[-5]", "words[a]", "words[b c]", "pairs[0]", "pairs[1]",
        "same[0-7]", "same[1-7]",
    ]  # fmt: skip
    assert re.search(r"SKIPPED .*guest_math.c:16: not today", done.text)


def test_in_ring_3(folder: Path) -> None:
    write(folder, "guest_math.c", f"// pyvmm: mode=user\n{MATH}")
    run(folder).counts(passed=12, skipped=1)


def test_by_clang(folder: Path) -> None:
    write(folder, "guest_math.c", f"// pyvmm: compiler=clang\n{MATH}")
    run(folder).counts(passed=12, skipped=1)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("mode", ["protected", "user"])
@pytest.mark.parametrize("level", ["-O0", "-O3"])
def test_no_warnings(
    compiler: str, mode: str, level: str, tmp_path: Path
) -> None:
    for name, text in (("math.c", MATH), ("fails.c", FAILS)):
        write(tmp_path, name, text)
        flags = [level, "-Wall", "-Wextra", "-Wshadow", "-Werror"]
        guest.build(tmp_path / name, mode=mode, compiler=compiler, flags=flags)


def test_many_tests_are_one_boot(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"TEST(t{i}) {{ EXPECT_EQ(n++, 0); }}" for i in range(100)]
    text = "\n".join(["#include <test.h>", "static int n;", *lines])
    write(folder, "guest_many.c", text)
    image = guest.build(folder / "guest_many.c")
    found = guest_image.read_tests(Path(image).read_bytes())
    assert [test.name for test in found] == [f"t{i}" for i in range(100)]
    boots = []
    boot = guest_run.Tests._boot
    monkeypatch.setattr(
        guest_run.Tests, "_boot", lambda self: boots.append(1) or boot(self)
    )
    tests = guest_run.Tests(image, guest_options.Options(), 20)
    for test in found:
        tests.run(test)
    tests.close()
    assert len(boots) == 1


def test_what_a_failure_says(folder: Path) -> None:
    write(folder, "guest_fails.c", FAILS)
    done = run(folder)
    done.counts(passed=1, failed=6)
    assert report(done, "values").strip() == dedent(
        """\
        guest_fails.c:9: EXPECT_EQ(small, 4u)
            left:  3
            right: 4
        guest_fails.c:10: EXPECT_LT(-1, -20)
            left:  -1
            right: -20 (-0x14)
        guest_fails.c:11: EXPECT_EQ(1ULL << 40, 1)
            left:  1099511627776 (0x10000000000)
            right: 1
        guest_fails.c:12: EXPECT_NE(text, text)
            left:  ADDRESS
            right: ADDRESS
        guest_fails.c:13: EXPECT_STR_EQ(text, "ab\\n")
            left:  "abc"
            right: "ab\\n"
        guest_fails.c:14: EXPECT_STR_EQ(text, NULL)
            left:  "abc"
            right: NULL
        guest_fails.c:15: EXPECT_MEM_EQ("abcd", "abXY", 4)
            byte 2 of 4 differs; from there:
            left:  63 64
            right: 58 59
        guest_fails.c:16: EXPECT_TRUE(small == 4)
        -- console --
        on the console
        """
    ).strip().replace("ADDRESS", found_address(done))
    deep = report(done, "deep")
    assert "guest_fails.c:21: ASSERT_EQ(n, 1)\n    left:  2\n" in deep
    assert re.search(r"#0 helper\S* guest_fails.c:21", deep)
    assert re.search(r"#1 test_deep\S* guest_fails.c:25", deep)
    assert "not reached" not in deep and "test_main" not in deep
    assert "for a reason" in report(done, "fails")
    many = report(done, "many")
    assert many.count("EXPECT_EQ(i, -1)") == 8 and "12 more failures" in many
    assert "too late" not in report(done, "skips_too_late")
    assert "FAILED guest_fails.c::some[2] - guest_fails.c:26: EXP" in done.text


def found_address(done: Done) -> str:
    found = re.search(r"left:  (0x[0-9a-f]+)$", done.text, re.MULTILINE)
    assert found
    return found[1]


# -- what a guest may do to spite us -------------------------------------------

SPITE = """\
/* pyvmm: timeout=1 */
#include <test.h>

#define RECORD pyvmm_test_record

int zero;

static int deep(int n) { return n ? deep(n - 1) + n : 5 / zero; }

static const uint8_t no_idt[6];

TEST(zeros) { memset(&RECORD, 0, sizeof(RECORD)); }
TEST(ones) { memset(&RECORD, 0xff, sizeof(RECORD)); }
TEST(hides) { EXPECT_TRUE(0); RECORD.failures = 0; }
TEST(claims) { RECORD.state = TEST_STATE_PASSED; exit(0); }
TEST(other) { RECORD.test--; }
TEST(forgets) { RECORD.nonce = RECORD.check = 0; EXPECT_TRUE(0); }
TEST(rewinds) { RECORD.check -= TEST_STATE_RUNNING - TEST_STATE_READY;
                RECORD.state = TEST_STATE_READY; exit(TEST_EXIT_READY); }
TEST(exits) { exit(0); }
TEST(exits_skipped) { exit(TEST_EXIT_SKIPPED); }
TEST(exits_ready) { exit(TEST_EXIT_READY); }
TEST(panics) { panic("at the disco"); }
TEST(asserts) { assert(zero == 3); }
TEST(divides) { EXPECT_EQ(deep(3), 3); }
TEST(hangs) { for (;;) cpu_relax(); }
TEST(hangs_late, .timeout = 2) { EXPECT_EQ(1, 2); for (;;) cpu_relax(); }
TEST(halts) { __asm__ volatile("cli; hlt"); }
TEST(triple) { __asm__ volatile("lidt %0; ud2" : : "m"(no_idt)); }
TEST(emulation) { __asm__ volatile("fwait; int3"); }
TEST(unclaimed) { outl(0x1234, 1); }
TEST(lost) { EXPECT_EQ(1, 2); RECORD.failure[0].file = 0xfffffff0;
             RECORD.failure[0].expression = ~0ULL;
             RECORD.failure[0].left_len = ~0U; RECORD.failure[0].kind = 99; }
TEST(colours) { FAIL("\\033[31mred\\n"); }
TEST(stack) { memset(__builtin_frame_address(0), 0, 64); }
TEST(reasons) { test_skip((const char *)0xfffffff0); }
TEST(fine) { }
"""

OVER = "the guest has written over the record of its test, pyvmm_test_record"

SAID = {
    "zeros": f"{OVER} at 0x[0-9a-f]+: magic is 0x0, not 0x74737470",
    "ones": OVER,
    "hides": f"{OVER}.*: check is",
    "claims": f"{OVER}.*: check is",
    "other": f"{OVER}.*: test is 0x[0-9a-f]+, not 0x[0-9a-f]+",
    "forgets": f"{OVER}.*: nonce is 0x0, not 0x[0-9a-f]+",
    "rewinds": "the record of the test has no state 1|is not what|written",
    "exits": "the test ended the run itself, with status 0",
    "exits_skipped": "the test ended the run itself, with status 77",
    "exits_ready": "the test ended the run itself, with status 1511",
    "panics": "the guest panicked: at the disco",
    "asserts": r"the guest panicked: .*: assertion failed: zero == 3",
    "divides": r"panicked: vector 0 \(divide error\)[^$]*guest_spite.c:8",
    "hangs": r"timeout: still running after 1 s\n.*\n[^$]*test_hangs",
    "hangs_late": r"timeout: still running after 2 s\n.*EXPECT_EQ\(1, 2\)",
    "halts": "the run ended inside the test: halt with interrupts off",
    "triple": r"triple fault\n[^$]*test_triple\S* guest_spite.c",
    "emulation": r"emulation failure|panicked",
    "unclaimed": "unclaimed access: write of 4 bytes 0x1 to port 0x1234",
    "lost": r"\(no text at 0xfffffff0\):\d+: \(no text at 0xf+\)",
    "colours": r"spite.c:\d+: \\x1b\[31mred\\n\n",
    "stack": r"triple fault|panicked|unclaimed|timeout|emulation",
}


@pytest.fixture(scope="module")
def spite(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("spite")
    write(folder, "guest_spite.c", SPITE)
    return run(folder, "-rA")


@pytest.mark.parametrize("name", SAID)
def test_spite(spite: Done, name: str) -> None:
    assert f"FAILED guest_spite.c::{name} - " in spite.text
    text = report(spite, name)
    assert re.match(SAID[name], text) or re.search(SAID[name], text), text


def test_spite_is_forgotten(spite: Done) -> None:
    spite.counts(passed=1, failed=len(SAID), skipped=1)
    assert "PASSED guest_spite.c::fine" in spite.text
    assert "(no text at 0xfffffff0)" in spite.text


def test_a_guest_that_does_not_boot(folder: Path) -> None:
    write(
        folder,
        "guest_no.c",
        """\
        #include <test.h>
        void test_setup(void) { panic("no disk"); }
        TEST(one) { }
        TEST(two) { }
        """,
    )
    done = run(folder)
    done.counts(failed=2)
    for name in ("one", "two"):
        text = report(done, name)
        assert "the guest did not come to its tests: exit with" in text
        assert "panic: no disk" in text


def test_an_image_of_another_version(folder: Path) -> None:
    source = folder / "one.c"
    write(
        folder,
        "one.c",
        """\
        #define TEST_OWN_MAIN
        #include <test.h>
        TEST(one) { }
        int main(void)
        {
            pyvmm_test_record.magic = TEST_MAGIC;
            pyvmm_test_record.version = 7;
            return TEST_EXIT_READY;
        }
        """,
    )
    guest.build(source, out=folder / "guest_one.elf")
    done = run(folder)
    done.counts(failed=1)
    assert "tests of version 7" in done.text


# -- what does not become a test -----------------------------------------------


def test_one_that_does_not_compile(folder: Path) -> None:
    write(folder, "guest_bad.c", "#include <test.h>\nTEST(one) { nonsense }\n")
    write(folder, "guest_math.c", MATH)
    done = run(folder)
    done.counts(passed=12, skipped=1, failed=1)
    text = report(done, "build")
    assert text.startswith("guest_bad.c: In function 'test_one':\n")
    assert "guest_bad.c:2:13: error: 'nonsense' undeclared" in text
    assert "Traceback" not in text
    assert "FAILED guest_bad.c::build - guest_bad.c: In f" in done.text


WRONG = [
    ("memroy=1M", r"'memroy' is none of cmdline, compiler, cpus,"),
    ("memory=1X", r"memory '1X' is not a size"),
    ("timeout=-1", r"'-1' is not more than 0"),
    ("rng=1", r"rng has no value, 'rng=1' was given"),
    ("cpus", r"cpus needs a value: cpus=\.\.\."),
    ("mode=real", r"mode 'real': C snippets run in protected or user"),
    ("sources=none.c", r"none\.c"),
    ("pass=3", "pass is of programs, and this file has tests"),
]


def test_words_that_are_wrong(folder: Path) -> None:
    for i, (words, _) in enumerate(WRONG):
        write(folder, f"guest_{i}.c", f"/*\n * pyvmm: {words}\n */\n{MATH}")
    done = run(folder)
    done.counts(failed=len(WRONG))
    for i, (_, message) in enumerate(WRONG):
        assert re.search(rf"^guest_{i}\.c: .*{message}", done.text, re.M)


ODD = [
    (".magic = 1", "test 0 has magic 0x1, not 0x74737470"),
    (".name.number = 16", "0x10 is in none of the image's segments"),
    (".name.at = long_name", "has more than 200 bytes"),
    (
        ".params.at = &x, .param_count = ~0U",
        "x has 4294967295 parameters, more than 100000",
    ),
    (
        ".params.number = ~0ULL, .param_count = 5, .param_size = 4,"
        ".param_kind = TEST_KIND_SIGNED",
        "0xffffffffffffffff is in none of the image's segments",
    ),
]


def test_images_that_make_no_sense(folder: Path) -> None:
    for i, (entry, _) in enumerate(ODD):
        write(
            folder,
            f"guest_{i}.c",
            f"""\
            #include <test.h>
            const char long_name[999] = {{[0 ... 998] = 'x'}};
            static void run(const void *param) {{ (void)param; }}
            static const struct pyvmm_test x
                __attribute__((section("pyvmm_tests"), used)) = {{
                .name = {{"x"}}, .run = {{.call = run}}, .file = {{__FILE__}},
                .magic = TEST_MAGIC, {entry}
            }};
            """,
        )
    done = run(folder)
    done.counts(failed=len(ODD))
    for i, (_, message) in enumerate(ODD):
        pattern = rf"^guest_{i}\.c: .*{re.escape(message)}"
        assert re.search(pattern, done.text, re.M), done.text


def test_two_of_one_name(folder: Path) -> None:
    write(folder, "guest_one.c", "/* pyvmm: sources=two.c */\n" + MATH)
    write(folder, "two.c", "#include <test.h>\nTEST(adds) { }\n")
    done = run(folder)
    done.counts(failed=1)
    assert "two tests are called 'adds': " in done.text


# -- the options of pytest -----------------------------------------------------


def test_node_ids_and_k_and_x(folder: Path) -> None:
    write(folder, "guest_fails.c", FAILS)
    write(folder, "guest_math.c", MATH)
    run(folder, "guest_math.c::twice[-5]").counts(passed=1)
    done = run(folder, "-k", "twice or deep")
    assert "1 failed, 3 passed, 16 deselected" in done.text
    done = run(folder, "-x")
    done.counts(failed=1)
    assert run(folder, "guest_math.c::nothing").code == 4


def test_in_any_order(folder: Path) -> None:
    """A file that pytest has left and comes back to boots again."""
    for name in ("one", "two"):
        write(folder, f"guest_{name}.c", MATH)
    ids = [
        f"guest_{name}.c::{test}"
        for test in ("counts", "counts_anew", "adds")
        for name in ("one", "two")
    ]
    done = run(folder, "-v", *ids)
    done.counts(passed=6)
    assert re.findall(r"^(\S+) PASSED", done.text, re.MULTILINE) == ids


def test_last_failed(folder: Path) -> None:
    write(folder, "guest_fails.c", FAILS)
    write(folder, "guest_math.c", MATH)
    run(folder, cache=True).counts(passed=13, skipped=1, failed=6)
    done = run(folder, "--lf", cache=True)
    assert "6 failed" in done.text and "passed" not in done.text
    write(folder, "guest_fails.c", FAILS.replace("for a reason", "again"))
    assert "again" in run(folder, "--lf", cache=True).text


def test_junit(folder: Path) -> None:
    write(folder, "guest_fails.c", FAILS)
    write(folder, "guest_math.c", MATH)
    run(folder, "--junitxml=report.xml")
    cases = {
        case.get("name"): case
        for case in ElementTree.parse(folder / "report.xml").iter("testcase")
    }
    assert len(cases) == 20 and "twice[-5]" in cases
    failure = cases["deep"].find("failure")
    assert failure is not None
    assert failure.get("message") == "guest_fails.c:21: ASSERT_EQ(n, 1)"
    assert "left:  2" in str(failure.text)
    assert cases["skips"].find("skipped") is not None


def test_xdist(folder: Path) -> None:
    write(folder, "guest_fails.c", FAILS)
    write(folder, "guest_math.c", MATH)
    done = run_pytest(folder, "-n2")
    done.counts(passed=13, skipped=1, failed=6)
    assert "guest_fails.c:21: ASSERT_EQ(n, 1)\n    left:  2" in done.text
    assert "FAILED guest_fails.c::deep" in done.text


def test_collecting_needs_no_kvm(folder: Path) -> None:
    write(folder, "guest_math.c", MATH)
    write(
        folder,
        "conftest.py",
        """\
        import pyvmm.host

        def kvm():
            raise OSError("no KVM in here")

        pyvmm.host.kvm = kvm
        """,
    )
    assert "13 tests collected" in run(folder, "--collect-only").text
    done = run(folder, "-rs")
    done.counts(skipped=13)
    assert "no KVM in here" in done.text


# -- machines, builds and files by options -------------------------------------


def test_words_in_a_source(folder: Path) -> None:
    write(
        folder,
        "tests/guest_words.c",
        """\
        // SPDX-License-Identifier: 0BSD
        // pyvmm: memory=32M cmdline="a=1 b=two" rng
        // pyvmm: sources=../kernel/kernel.c include=../kernel flags=-DN=3
        #include <test.h>
        #include <rng.h>
        #include <kernel.h>

        TEST(machine)
        {
            struct virtio_device dev;

            EXPECT_EQ(arg_number("a", 0), 1);
            EXPECT_STR_EQ(arg("b"), "two");
            EXPECT_TRUE(virtio_find(VIRTIO_ID_RNG, 0, &dev));
            EXPECT_EQ(*(volatile char *)(30 << 20), 0);
        }

        TEST(kernel) { EXPECT_EQ(kernel(), 2 * N); }
        """,
    )
    write(folder, "kernel/kernel.h", "int kernel(void);\n")
    write(
        folder,
        "kernel/kernel.c",
        '#include "kernel.h"\nint kernel(void) { return 2 * N; }\n',
    )
    run(folder, "tests").counts(passed=2)
    # And the same by the ini file, whose paths are seen from there.
    write(
        folder,
        "pytest.ini",
        """\
        [pytest]
        pyvmm_guest_files = tests/*.guest.c
        pyvmm_guest_options = memory=32M rng sources=kernel/kernel.c
            include=kernel flags=-DN=4 cmdline="a=1 b=two"
        """,
    )
    text = (folder / "tests/guest_words.c").read_text()
    plain = "".join(
        line for line in text.splitlines(True) if "pyvmm:" not in line
    )
    write(folder, "tests/words.guest.c", plain)
    write(folder, "tests/guest_not.c", "this is none of them")
    run(folder).counts(passed=2)


def test_a_device_of_the_projects(folder: Path) -> None:
    write(
        folder,
        "tests/guest_square.c",
        """\
        // pyvmm: device=../square.py:Square@port:0x100
        #include <test.h>
        TEST(squares) { outb(0x100, 9); EXPECT_EQ(inb(0x100), 81); }
        TEST(is_new) { EXPECT_EQ(inb(0x100), 0); }
        """,
    )
    write(
        folder,
        "square.py",
        """\
        import pyvmm

        class Square(pyvmm.Device):
            size, value = 1, 0

            def read(self, offset, size):
                return self.value**2

            def write(self, offset, size, value):
                self.value = value
        """,
    )
    run(folder).counts(passed=2)


def test_the_time_that_is_left(folder: Path) -> None:
    write(
        folder,
        "guest_hangs.c",
        """\
        #include <test.h>
        TEST(hangs) { for (;;) cpu_relax(); }
        """,
    )
    write(folder, "pytest.ini", "[pytest]\npyvmm_guest_timeout = 0.25\n")
    assert "still running after 0.25 s" in run(folder).text
    write(folder, "pytest.ini", "[pytest]\npyvmm_guest_timeout = soon\n")
    done = run(folder)
    assert done.code != 0
    assert "pyvmm_guest_timeout: 'soon' is not a number of seconds" in done.text


def test_ended_by_pytest_timeout(folder: Path) -> None:
    """The report is of the guest, not of the stack of pytest."""
    write(
        folder,
        "guest_hangs.c",
        """\
        #include <test.h>
        TEST(hangs, .timeout = 600) { for (;;) cpu_relax(); }
        TEST(fine) { }
        """,
    )
    done = run(folder, "-p", "pytest_timeout", "--timeout=2")
    done.counts(passed=1, failed=1)
    text = report(done, "hangs")
    assert text.startswith("Timeout (>2.0s) from pytest-timeout.")
    assert re.search(r"#0 test_hangs\S* io.h:", text)
    assert "Traceback" not in text and "item.runtest" not in text


def test_coverage(folder: Path) -> None:
    """gcc counts the lines of all sources; of a test that hangs, too."""
    write(
        folder,
        "guest_it.c",
        """\
        /* pyvmm: sources=kernel.c timeout=2 */
        #include <test.h>
        int sign(int n);
        TEST(positive) { EXPECT_EQ(sign(5), 1); }
        TEST(again) { EXPECT_EQ(sign(6), 1); }
        TEST(hangs) { sign(0); }
        """,
    )
    write(
        folder,
        "kernel.c",
        """\
        int sign(int n)
        {
            if (n > 0)
                return 1;
            while (!n)
                __asm__ volatile("pause");
            return -1;
        }
        """,
    )
    for _ in range(2):  # compiled, and out of the cache
        done = run(folder, "--pyvmm-cov=it.lcov")
        done.counts(passed=2, failed=1)
        text = (folder / "it.lcov").read_text()
        lines = text.split(f"SF:{folder}/kernel.c\n")[1].split("end_of")[0]
        for line in ("DA:1,3", "DA:3,3", "DA:4,2", "DA:7,0"):
            assert f"{line}\n" in lines


def test_coverage_where_there_is_none(folder: Path) -> None:
    write(folder, "guest_math.c", f"// pyvmm: compiler=clang\n{MATH}")
    done = run(folder, "--pyvmm-cov=it.lcov")
    assert "12 passed" in done.text and "guest coverage: none" in done.text


def test_assembly(folder: Path) -> None:
    for mode in ("protected", "user"):
        write(
            folder,
            f"guest_{mode}.S",
            f"""\
            /* pyvmm: mode={mode} */
            #include <test.h>

            TEST(equal)
                movl $1, %eax
                cmpl $1, %eax
                ASSERT_CC(e)
                ret

            TEST(unequal)
                cmpl $2, %eax
                movl $1, %eax
                testl %eax, %eax
                ASSERT_CC(z)
                ret
            """,
        )
    done = run(folder)
    done.counts(passed=2, failed=2)
    for mode in ("protected", "user"):
        assert f"guest_{mode}.S:14: ASSERT_CC(z)" in done.text
        assert re.search(rf"#0 unequal\S* guest_{mode}.S:14", done.text)


def test_files_that_are_no_images(folder: Path) -> None:
    (folder / "guest_empty.elf").write_bytes(b"")
    (folder / "guest_text.elf").write_bytes(b"hello" * 99)
    whole = (ROOT / "build/guest/hello.elf").read_bytes()
    (folder / "guest_half.elf").write_bytes(whole[: len(whole) // 2])
    binary = bytes(range(256)) + b"test.h"
    (folder / "guest_binary.c").write_bytes(binary)
    done = run(folder)
    done.counts(failed=4)
    assert "Traceback" not in done.text and "INTERNAL" not in done.text
    assert "guest_empty.elf: " in done.text


def test_an_image_made_elsewhere(folder: Path) -> None:
    write(folder, "math.c", MATH)
    guest.build(folder / "math.c", out=folder / "guest_math.elf")
    run(folder).counts(passed=12, skipped=1)


# -- programs, TAP, kernels of others ------------------------------------------

PROGRAM = """\
#include <runtime.h>

int main(void)
{{
    print("{text}");
    return {status};
}}
"""


PROGRAMS = [
    ("hello\\n", 0, "PASSED", ""),
    ("hello\\n", 3, "FAILED", "the status is 3, not 0"),
    ("1..2\\nok 1\\nok 2 - two\\n", 0, "PASSED", ""),
    ("1..2\\nok 1\\nnot ok 2 - two\\n", 0, "FAILED", "TAP: not ok 2 - two"),
    ("1..2\\nok 1\\nnot ok 2 # TODO\\n", 0, "PASSED", ""),
    ("1..2\\nok 1\\n", 0, "FAILED", "TAP: 2 tests were planned, 1 came"),
    ("TAP version 14\\nok 1\\n", 0, "FAILED", "TAP: 1 tests came, without a"),
    ("1..2\\nok\\nBail out! no\\n", 0, "FAILED", "TAP: it bailed out: no"),
    ("1..0 # skip old\\n", 0, "SKIPPED", "skip old"),
    ("1..1\\nok 1\\n", 9, "FAILED", "the status is 9, not 0"),
]


def test_programs(folder: Path) -> None:
    for i, (text, status, _, _) in enumerate(PROGRAMS):
        source = PROGRAM.format(text=text, status=status)
        write(folder, f"guest_{i}.c", source)
    done = run(folder, "-v", "-rfs")
    for i, (_, _, expected, said) in enumerate(PROGRAMS):
        assert re.search(rf"guest_{i}.c::program {expected}", done.text)
        if expected == "FAILED":
            line = f"FAILED guest_{i}.c::program - {said}"
            assert line in done.text
    assert re.search("SKIPPED.*: skip old", done.text)


def test_tests_without_a_host_speak_tap(folder: Path) -> None:
    """The same image by `pyvmm run`."""
    import pyvmm

    write(folder, "math.c", FAILS)
    for compiler in ("gcc", "clang"):
        for mode in ("protected", "user"):
            image = guest.build(folder / "math.c", mode=mode, compiler=compiler)
            with pyvmm.Machine() as m:
                m.load(image)
                assert m.run(timeout=20).status == 1
            text = m.console.text
            assert text.startswith("TAP version 13\n1..7\n")
            assert re.findall(r"^((?:not )?ok .*)", text, re.M) == [
                "not ok 1 - values",
                "not ok 2 - deep",
                "ok 3 - some 0",
                "not ok 4 - some 1",
                "not ok 5 - fails",
                "not ok 6 - many",
                "not ok 7 - skips_too_late",
            ]
            assert "math.c:21: ASSERT_EQ(n, 1)\n#   left 2, right 1\n" in text


KERNEL = """\
#include <io.h>
#include <runtime.h>

static const uint8_t none[6];

static void say(const char *s)
{{
    while (*s)
        outb(0x3f8, (uint8_t)*s++);
}}

int main(void)
{{
    {body}
    return 0;
}}
"""


KERNELS = [
    ("port=0x501 pass=33", "outl(0x501, 16);", ""),
    ("port=0x501 pass=33", "outl(0x501, 17);", "the status is 35, not 33"),
    ("port=0xf4 pass=33", "outl(0xf4, 16);", ""),
    ("pass=5", "exit(5);", ""),
    ("memory=64M timeout=20", "", ""),
    ('serial log="ALL PASSED"', 'say("ALL PASSED"); for (;;) cpu_relax();', ""),
    (
        'serial log="ALL PASSED" timeout=0.3',
        'say("ONE FAILED"); for (;;) cpu_relax();',
        "the console does not say 'ALL PASSED': timeout",
    ),
    (
        'serial log="ALL PASSED"',
        'say("ALL"); __asm__ volatile("lidt %0; ud2" : : "m"(none));',
        "the console does not say 'ALL PASSED': triple fault",
    ),
    (
        "serial port=0x501 pass=1 log=DONE",
        'say("DONE"); outb(0x501, 0);',
        "",
    ),
    (
        "serial port=0x501 pass=1 log=DONE",
        'say("DON"); outb(0x501, 0);',
        "the console does not say 'DONE'",
    ),
    ("serial tap", 'say("1..1\\nok 1\\n");', ""),
    ("serial tap", 'say("hello\\n");', "there is no TAP on the console"),
    ("serial prot=1", "", "pyvmm_guests: 'prot' is none of"),
    ("mode=user", "", "mode is of sources, and this is an image"),
    ("preset=mac", "", "ValueError: preset 'mac' is none of pc"),
]


def test_kernels(folder: Path) -> None:
    (folder / "kernels").mkdir()
    (folder / "tests").mkdir()
    lines = ["[pytest]", "testpaths = tests", "pyvmm_guests ="]
    for i, (words, body, _) in enumerate(KERNELS):
        write(folder, "kernel.c", KERNEL.format(body=body))
        name = f"kernels/k{i}.elf"
        guest.build(folder / "kernel.c", out=folder / name)
        lines.append(f"    {name}  {words}")
    (folder / "pytest.ini").write_text("\n".join(lines))
    done = run(folder, "-v")
    for i, (_, _, said) in enumerate(KERNELS):
        if said:
            pattern = rf"FAILED kernels/k{i}.elf::\S+ - {re.escape(said)}"
        else:
            pattern = rf"kernels/k{i}.elf::k{i} PASSED"
        assert re.search(pattern, done.text), done.text


def test_kernels_are_listed(folder: Path) -> None:
    """Several lines of one kernel; one that is not there; told where to go."""
    (folder / "kernels").mkdir()
    write(folder, "test_it.py", "def test_it(): pass\n")
    shutil.copy(ROOT / "build/guest/hello.elf", folder / "kernels")
    shutil.copy(ROOT / "build/guest/faults.elf", folder / "kernels")
    lines = """\
        [pytest]
        testpaths = test_it.py
        pyvmm_guests =
            kernels/h*.elf
            kernels/faults.elf cmdline=panic pass=255 name=panics
            kernels/faults.elf cmdline=halt
        """
    write(folder, "pytest.ini", lines)
    done = run(folder, "-v")
    done.counts(passed=3, failed=1)
    for name in ("hello", "panics", "faults-1"):
        assert re.search(rf"kernels/\w+\.elf::{name} ", done.text)
    assert "the run ended by halt" in done.text
    run_pytest(folder, "-n2").counts(passed=3, failed=1)
    run(folder, "test_it.py").counts(passed=1)
    run(folder, "kernels", "-k", "hello or panics").counts(passed=2)
    write(folder, "pytest.ini", lines + "            kernels/none.elf\n")
    done = run(folder)
    assert done.code == 4 and "kernels/none.elf" in done.text


def test_sources_of_others_are_left_alone(folder: Path) -> None:
    """A name is not enough, unless the ini file says so."""
    write(folder, "guest_list.c", "int main(void) { return guests(); }\n")
    write(folder, "guest_math.c", MATH)
    run(folder).counts(passed=12, skipped=1)
    ini = "[pytest]\npyvmm_guest_files = guest_l*.c\n"
    (folder / "pytest.ini").write_text(ini)
    run(folder).counts(failed=1)
