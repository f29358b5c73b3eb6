/* SPDX-License-Identifier: 0BSD */
/*
 * vsock.c - talks with the host by virtio-vsock
 *
 * connect=PORT    connects to the host, n times one after the other
 *   send=WORD       sends that, says so (shutdown), prints the answer
 *   bytes=N         sends so many, counting up, says so, and reads as many
 *                   as come; prints a sum of each direction
 *     plain           the same bytes again and again, and no sums
 * listen=PORT     lets the host connect, n times in all, and sends back what
 *                 comes, to all at a time
 *   await=reset     then waits until the host says that connections are no more
 * n=N             how many connections (1)
 * mode=poll|irq   how to wait (poll)
 */
#include <runtime.h>

#include <vsock.h>

#define SOCKETS 32 /* at a time */
#define CHUNK   (1U << 18)

static struct vsock vsock;
static struct vsock_socket sockets[SOCKETS];
static uint8_t chunk[CHUNK];

static int
fail(const char *why)
{
    print("vsock: %s\n", why);
    return 1;
}

/* Fletcher's sum, of 32-bit words; `len` is a multiple of four. */
struct sum {
    uint32_t low, high;
};

static void
add_to_sum(struct sum *sum, const uint8_t *data, uint32_t len)
{
    for (uint32_t i = 0; i < len; i += 4) {
        sum->low += *(const uint32_t *)(const void *)(data + i);
        sum->high += sum->low;
    }
}

/* Sends `bytes` of a sequence that never repeats, unless they are plain. */
static bool
send_bulk(struct vsock_socket *s, uint32_t bytes, struct sum *sum)
{
    static uint32_t count;
    bool plain = arg("plain") != NULL;

    while (bytes) {
        uint32_t n = bytes < CHUNK ? bytes : CHUNK;

        for (uint32_t i = 0; i < n && !plain; i += 4)
            *(uint32_t *)(void *)(chunk + i) = count++;
        if (!plain)
            add_to_sum(sum, chunk, n);
        if (!vsock_send(s, chunk, n))
            return false;
        bytes -= n;
    }
    return true;
}

/* Reads until the end: how many bytes. */
static uint32_t
receive_bulk(struct vsock_socket *s, struct sum *sum)
{
    uint32_t total = 0, have = 0, n;
    bool plain = arg("plain") != NULL;

    while ((n = vsock_recv(s, chunk + have, CHUNK - have)) > 0) {
        total += n;
        if (plain)
            continue;
        have += n;
        if (have == CHUNK) {
            add_to_sum(sum, chunk, CHUNK);
            have = 0;
        }
    }
    add_to_sum(sum, chunk, have & ~3U);
    return total;
}

static int
connect_bulk(struct vsock_socket *s, uint32_t bytes)
{
    struct sum out = {0, 0}, in = {0, 0};
    uint32_t total;

    if (!send_bulk(s, bytes, &out))
        return fail("the host has gone");
    vsock_shutdown(s, VSOCK_SEND);
    print("sent %u sum %08x%08x\n", bytes, out.high, out.low);
    total = receive_bulk(s, &in);
    vsock_close(s);
    print("received %u sum %08x%08x\n", total, in.high, in.low);
    return 0;
}

static int
connect_word(struct vsock_socket *s, const char *word)
{
    uint32_t n;

    if (!vsock_send(s, word, (uint32_t)strlen(word)))
        return fail("the host has gone");
    vsock_shutdown(s, VSOCK_SEND);
    while ((n = vsock_recv(s, chunk, CHUNK)) > 0)
        console_write((const char *)chunk, n);
    vsock_close(s);
    puts("");
    return 0;
}

static int
connect_host(uint32_t port, unsigned n)
{
    uint32_t bytes = arg_number("bytes", 0) & ~3U;
    const char *word = arg("send");

    while (n--) {
        int status;

        if (!vsock_connect(&vsock, sockets, port))
            return fail("the host refuses");
        if (bytes)
            status = connect_bulk(sockets, bytes);
        else
            status = connect_word(sockets, word ? word : "");
        if (status)
            return status;
    }
    return 0;
}

/* Sends back what has come; true: something has. */
static bool
echo(struct vsock_socket *s, uint32_t *total)
{
    uint32_t n;

    if (s->arrived) {
        n = vsock_recv(s, chunk, CHUNK);
        if (!vsock_send(s, chunk, n))
            vsock_close(s);
        *total += n;
        return true;
    }
    if (s->ended & VSOCK_SEND) {
        vsock_close(s);
        return true;
    }
    return false;
}

static int
serve(uint32_t port, unsigned n)
{
    unsigned accepted = 0, open = 0;
    uint32_t total = 0;

    vsock_listen(&vsock, port);
    print("listening on %u of %u\n", port, (uint32_t)vsock.cid);
    while (accepted < n || open) {
        bool busy = false;

        open = 0;
        for (unsigned i = 0; i < SOCKETS; i++) {
            struct vsock_socket *s = &sockets[i];

            if (!s->is_open && !s->arrived && accepted < n &&
                vsock_accept(&vsock, s)) {
                accepted++;
                busy = true;
            }
            if (s->is_open || s->arrived) {
                busy |= echo(s, &total);
                open++;
            }
        }
        if (!busy && (accepted < n || open))
            vsock_wait(&vsock);
    }
    print("echoed %u bytes of %u connections\n", total, accepted);
    return 0;
}

int
main(void)
{
    const char *mode = arg("mode"), *await = arg("await"), *why;
    unsigned n = arg_number("n", 1);
    int status = 0;

    if (mode && strcmp(mode, "irq") && strcmp(mode, "poll"))
        return fail("mode is poll or irq");
    why = vsock_open(&vsock, mode && !strcmp(mode, "irq"));
    if (why)
        return fail(why);
    if (arg("connect"))
        status = connect_host(arg_number("connect", 0), n);
    else if (arg("listen"))
        status = serve(arg_number("listen", 0), n);
    if (!status && await && !strcmp(await, "reset")) {
        puts("waiting for a reset");
        while (!vsock.resets)
            vsock_wait(&vsock);
        print("connections are no more, cid %u\n", (uint32_t)vsock.cid);
    }
    return status;
}
