/* SPDX-License-Identifier: Apache-2.0 */
/* test_console.c - the console's buffers and registers, the exit port */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "vmm/console.h"

static struct vmm_console con;

static void
begin(size_t limit)
{
    CHECK_EQ(vmm_console_init(&con, limit), 0);
}

static void
end(void)
{
    vmm_console_fini(&con);
}

static void
print(const char *text)
{
    vmm_console_print(&con, text, strlen(text));
}

/* The output from `from` on is `text`, and begins at `at`. */
static void
shows(uint64_t from, uint64_t at, const char *text)
{
    char buf[4096];
    size_t len = vmm_console_copy(&con, &from, buf, sizeof buf);

    CHECK_EQ(from, at);
    CHECK_EQ(len, strlen(text));
    CHECK(!memcmp(buf, text, strlen(text)));
}

static uint64_t
in(uint64_t offset, unsigned len)
{
    uint64_t val = UINT64_MAX;

    CHECK_EQ(vmm_console_ops.read(&con, offset, len, &val), VMM_BUS_DONE);
    return val;
}

static int
out(uint64_t offset, unsigned len, uint64_t val)
{
    return vmm_console_ops.write(&con, offset, len, val);
}

static void
output_is_kept(void)
{
    begin(1 << 20);
    shows(0, 0, "");
    print("hello ");
    print("");
    print("world");
    CHECK_EQ(vmm_console_end(&con), 11);
    shows(0, 0, "hello world");
    shows(6, 6, "world");
    shows(11, 11, "");
    shows(1000, 1000, ""); /* not printed yet */
    end();
}

static void
copies_stop_at_the_room(void)
{
    uint64_t from = 1;
    char buf[4] = "****";

    begin(100);
    print("abcdef");
    CHECK_EQ(vmm_console_copy(&con, &from, buf, 3), 3);
    CHECK(!memcmp(buf, "bcd*", 4));
    CHECK_EQ(from, 1);
    CHECK_EQ(vmm_console_copy(&con, &from, buf, 0), 0);
    end();
}

static void
the_oldest_is_lost(void)
{
    char buf[4096], want[4096];
    uint64_t from = 0, total = 0;

    begin(1000);
    for (unsigned i = 0; i < 5000; i++) {
        char digit = (char)('0' + i % 10);

        vmm_console_print(&con, &digit, 1);
        total++;
        CHECK(con.out_len <= 1000);
        CHECK(con.out_room <= 1000);
        CHECK_EQ(con.dropped + con.out_len, total);
    }
    CHECK(con.out_len >= 500); /* no more than half goes at a time */
    from = 0;
    CHECK_EQ(vmm_console_copy(&con, &from, buf, sizeof buf), con.out_len);
    CHECK_EQ(from, con.dropped);
    for (unsigned i = 0; i < con.out_len; i++)
        want[i] = (char)('0' + (from + i) % 10);
    CHECK(!memcmp(buf, want, con.out_len));
    end();
}

static void
longer_than_the_limit(void)
{
    char text[100];

    memset(text, 'x', sizeof text);
    memcpy(text + 90, "0123456789", 10);
    begin(10);
    vmm_console_print(&con, text, sizeof text);
    CHECK_EQ(vmm_console_end(&con), 100);
    CHECK_EQ(con.dropped, 90);
    shows(0, 90, "0123456789");
    vmm_console_print(&con, "ab", 2);
    CHECK_EQ(vmm_console_end(&con), 102);
    CHECK(con.out_len <= 10);
    vmm_console_print(&con, text, 10); /* as long as the limit */
    shows(0, 102, "xxxxxxxxxx");
    end();

    begin(1);
    print("abc");
    shows(0, 2, "c");
    print("d");
    shows(0, 3, "d");
    end();
}

static void
input_is_read_in_order(void)
{
    begin(100);
    CHECK_EQ(in(0, 1), 0); /* none */
    CHECK_EQ(in(4, 1), 0);
    CHECK_EQ(vmm_console_send(&con, "ab", 2), 0);
    CHECK_EQ(in(4, 1), 2);
    CHECK_EQ(in(0, 1), 'a');
    CHECK_EQ(vmm_console_send(&con, "c\xff", 2), 0);
    CHECK_EQ(in(4, 1), 3);
    CHECK_EQ(in(0, 4), 'b'); /* a byte whatever the size */
    CHECK_EQ(in(0, 2), 'c');
    CHECK_EQ(in(0, 1), 0xff);
    CHECK_EQ(in(4, 1), 0);
    CHECK_EQ(in(0, 1), 0);
    CHECK_EQ(vmm_console_send(&con, "", 0), 0);
    CHECK_EQ(in(4, 1), 0);
    end();
}

static void
waiting_is_at_most_255(void)
{
    char data[300] = {0};

    begin(100);
    CHECK_EQ(vmm_console_send(&con, data, 255), 0);
    CHECK_EQ(in(4, 1), 255);
    CHECK_EQ(vmm_console_send(&con, data, 45), 0);
    CHECK_EQ(in(4, 1), 255);
    for (unsigned left = 300; left; left--) {
        CHECK_EQ(in(4, 4), left > 255 ? 255 : left);
        in(0, 1);
    }
    CHECK_EQ(in(4, 1), 0);
    end();
}

static void
writes_append(void)
{
    begin(100);
    CHECK_EQ(out(0, 1, 'a'), VMM_BUS_DONE);
    CHECK_EQ(out(0, 2, 0x6362), VMM_BUS_DONE);
    CHECK_EQ(out(0, 4, 0x67666564), VMM_BUS_DONE);
    CHECK_EQ(out(4, 1, 'x'), VMM_BUS_DONE); /* the counter: ignored */
    CHECK_EQ(out(1, 1, 'x'), VMM_BUS_DONE);
    shows(0, 0, "abcdefg");
    CHECK_EQ(in(1, 1), 0); /* no register */
    CHECK_EQ(in(2, 2), 0);
    end();
}

static void
owners_are_told(void)
{
    uint64_t val;

    begin(100);
    con.lines = true;
    CHECK_EQ(out(0, 1, 'a'), VMM_BUS_DONE);
    CHECK_EQ(out(0, 1, '\n'), VMM_BUS_OWNER);
    CHECK_EQ(out(0, 4, 0x00000a61), VMM_BUS_OWNER);
    CHECK_EQ(out(0, 1, 0x0a61), VMM_BUS_DONE); /* the byte is 'a' */
    con.watch = true;
    CHECK_EQ(out(0, 1, 'b'), VMM_BUS_OWNER);
    CHECK_EQ(vmm_console_ops.read(&con, 0, 1, &val), VMM_BUS_OWNER);
    end();
}

/* Whether exactly `text` waits in the pipe. */
static void
piped(int fd, const char *text)
{
    char buf[256] = {0};
    ssize_t len = read(fd, buf, sizeof buf - 1);

    CHECK_EQ(len < 0 ? 0 : len, strlen(text));
    CHECK(!strcmp(buf, text));
}

static void
lines_go_to_the_fd(void)
{
    int fd[2];

    CHECK_EQ(pipe2(fd, O_NONBLOCK), 0);
    begin(16);
    con.out_fd = fd[1];
    print("ab");
    piped(fd[0], "");
    print("c\nd");
    piped(fd[0], "abc\nd");
    vmm_console_flush(&con);
    piped(fd[0], "");
    print("e");
    vmm_console_flush(&con);
    piped(fd[0], "e");
    /* What is forgotten was written before. */
    print("0123456789");
    print("0123456789");
    vmm_console_flush(&con);
    piped(fd[0], "01234567890123456789");
    end();
    close(fd[0]);
    close(fd[1]);
}

/* A reader that went away does not stop the guest. */
static void
broken_pipes_are_left(void)
{
    int fd[2];

    signal(SIGPIPE, SIG_IGN);
    CHECK_EQ(pipe(fd), 0);
    close(fd[0]);
    begin(100);
    con.out_fd = fd[1];
    print("a\n");
    CHECK_EQ(con.out_fd, -1);
    print("b\n");
    shows(0, 0, "a\nb\n");
    end();
    close(fd[1]);
}

static void
exit_port_stops(void)
{
    uint64_t val = 0;

    CHECK_EQ(vmm_exit_port_ops.write(NULL, 0, 1, 3), VMM_BUS_STOP);
    CHECK_EQ(vmm_exit_port_ops.write(NULL, 0, 4, 0), VMM_BUS_STOP);
    CHECK_EQ(vmm_exit_port_ops.write(NULL, 1, 1, 3), VMM_BUS_DONE);
    CHECK_EQ(vmm_exit_port_ops.read(NULL, 0, 2, &val), VMM_BUS_DONE);
    CHECK_EQ(val, 0xffff);
}

static void
fini_is_safe(void)
{
    memset(&con, 0, sizeof con);
    vmm_console_fini(&con);
    begin(10);
    print("abc");
    vmm_console_send(&con, "abc", 3);
    vmm_console_fini(&con);
    vmm_console_fini(&con);
}

int
main(void)
{
    RUN(output_is_kept);
    RUN(copies_stop_at_the_room);
    RUN(the_oldest_is_lost);
    RUN(longer_than_the_limit);
    RUN(input_is_read_in_order);
    RUN(waiting_is_at_most_255);
    RUN(writes_append);
    RUN(owners_are_told);
    RUN(lines_go_to_the_fd);
    RUN(broken_pipes_are_left);
    RUN(exit_port_stops);
    RUN(fini_is_safe);
    return check_done();
}
