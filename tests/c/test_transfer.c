/* SPDX-License-Identifier: Apache-2.0 */
/* test_transfer.c - bytes between chains and files, however both are cut */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "vmm/transfer.h"

#define RAM      0x100000ULL
#define RAM_SIZE (8ULL << 20)
#define FILE_LEN 3000U

static struct vmm_mem mem;

static void
begin(void)
{
    vmm_mem_init(&mem);
    CHECK_EQ(vmm_mem_add(&mem, RAM, RAM_SIZE, 0), 0);
    vmm_mem_freeze(&mem);
}

static void
end(void)
{
    vmm_mem_fini(&mem);
}

/* A chain whose segments, `readable` and then others, are set by add(). */
static struct vmm_chain
chain_of(unsigned room)
{
    return (struct vmm_chain){.seg = calloc(room, sizeof(struct vmm_segment)),
                              .room = room};
}

static void
add(struct vmm_chain *chain, uint64_t offset, uint32_t len, bool write)
{
    unsigned n = chain->readable + chain->writable;
    uint64_t got;
    uint8_t *hva =
        vmm_mem_ptr(&mem, RAM + offset, len, true, VMM_MEM_GUEST, &got);

    CHECK(hva && got == len);
    chain->seg[n] = (struct vmm_segment){hva, RAM + offset, len};
    if (write) {
        chain->writable++;
        chain->writable_len += len;
    } else {
        chain->readable++;
        chain->readable_len += len;
    }
}

static int
file_of(const void *bytes, size_t len)
{
    int fd = memfd_create("transfer", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    CHECK_EQ(write(fd, bytes, len), len);
    return fd;
}

static void
pattern(uint8_t *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++)
        bytes[i] = (uint8_t)(i * 7 + i / 251);
}

/* Pieces of many lengths, a page apart, with a readable one before. */
static const uint32_t pieces[] = {1, 7, 512, 1, 1, 4096, 100, 2, 1000};
#define PIECES     (sizeof pieces / sizeof *pieces)
#define PIECES_LEN 5720U

static uint64_t
pieces_add(struct vmm_chain *chain, uint64_t at, bool write)
{
    uint64_t total = 0;

    for (unsigned i = 0; i < PIECES; i++) {
        add(chain, at + 8192ULL * i, pieces[i], write);
        total += pieces[i];
    }
    return total;
}

static void
pieces_copy(const struct vmm_segment *seg, uint8_t *bytes, bool write)
{
    for (unsigned i = 0; i < PIECES; bytes += pieces[i++])
        memcpy(write ? seg[i].hva : bytes, write ? bytes : seg[i].hva,
               pieces[i]);
}

static void
test_read(void)
{
    uint8_t want[FILE_LEN], got[PIECES_LEN];
    struct vmm_chain chain;
    uint64_t room;
    int fd;

    begin();
    chain = chain_of(PIECES + 1);
    pattern(want, sizeof want);
    fd = file_of(want, sizeof want);
    add(&chain, 0x200000, 16, false);
    room = pieces_add(&chain, 0, true);
    for (uint64_t from = 0; from < 9; from++) {
        for (uint64_t offset = 0; offset < 530; offset += 13) {
            struct vmm_stretch to = {&chain, from, 2000};

            CHECK_EQ(vmm_transfer_read(&mem, fd, (int64_t)offset, &to, 1),
                     2000);
            CHECK_EQ(chain.seg[0].len, 16);
            pieces_copy(chain.seg + 1, got, false);
            CHECK(!memcmp(got + from, want + offset, 2000));
        }
    }
    CHECK_EQ(room, PIECES_LEN);
    /* It ends before the room does; behind its end is nothing. */
    CHECK_EQ(vmm_transfer_read(&mem, fd, 100,
                               &(struct vmm_stretch){&chain, 5, room - 5}, 1),
             FILE_LEN - 100);
    CHECK_EQ(vmm_transfer_read(&mem, fd, FILE_LEN,
                               &(struct vmm_stretch){&chain, 0, 1}, 1),
             0);
    CHECK_EQ(
        vmm_transfer_read(&mem, fd, 0, &(struct vmm_stretch){&chain, 0, 0}, 1),
        0);
    CHECK_EQ(vmm_transfer_read(&mem, fd, 0, NULL, 0), 0);
    close(fd);
    vmm_chain_fini(&chain);
    end();
}

/* Three chains, of which the one in the middle gives nothing. */
static void
test_write(void)
{
    uint8_t want[2 * PIECES_LEN], got[sizeof want];
    struct vmm_chain first, last, none;
    uint64_t each;
    int fd;

    begin();
    first = chain_of(PIECES);
    last = chain_of(PIECES);
    none = chain_of(1);
    each = pieces_add(&first, 0, false);
    CHECK_EQ(pieces_add(&last, 0x100000, false), each);
    CHECK_EQ(each, PIECES_LEN);
    pattern(want, sizeof want);
    pieces_copy(first.seg, want, true);
    pieces_copy(last.seg, want + each, true);
    fd = file_of("", 0);
    for (uint64_t skip = 0; skip < each; skip += 501) {
        struct vmm_stretch from[3] = {{&first, skip, each - skip},
                                      {&none, 0, 0},
                                      {&last, 0, each - skip}};
        uint64_t all = 2 * (each - skip);

        CHECK_EQ(vmm_transfer_write(fd, 10, from, 3), all);
        CHECK_EQ(pread(fd, got, sizeof got, 10), sizeof got);
        CHECK(!memcmp(got, want + skip, each - skip));
        CHECK(!memcmp(got + each - skip, want + each, each - skip));
    }
    close(fd);
    vmm_chain_fini(&first);
    vmm_chain_fini(&last);
    vmm_chain_fini(&none);
    end();
}

static void
test_errors(void)
{
    struct vmm_chain chain;
    struct vmm_stretch two;
    uint8_t page[4096] = {0};
    int fd;

    begin();
    chain = chain_of(2);
    add(&chain, 0, 8192, false);
    add(&chain, 8192, 8192, true);
    two = (struct vmm_stretch){&chain, 0, 8192};
    CHECK_EQ(vmm_transfer_read(&mem, -1, 0, &two, 1), -EBADF);
    CHECK_EQ(vmm_transfer_write(-1, 0, &two, 1), -EBADF);
    CHECK_EQ(vmm_transfer_write(-1, -1, &two, 1), -EBADF);
    fd = open("/dev/full", O_RDWR | O_CLOEXEC);
    CHECK_EQ(vmm_transfer_write(fd, 0, &two, 1), -ENOSPC);
    close(fd);
    /* It may not grow: the first page is written, then it fails. */
    fd = file_of(page, sizeof page);
    CHECK_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), 0);
    CHECK_EQ(vmm_transfer_write(fd, 0, &two, 1), 4096);
    CHECK_EQ(vmm_transfer_write(fd, 4096, &two, 1), -EPERM);
    close(fd);
    vmm_chain_fini(&chain);
    end();
}

/* Buffers that overlap: one call takes as much as is good, then returns. */
static void
test_most(void)
{
    struct vmm_chain chain;
    uint64_t all = 17 * (4ULL << 20);
    int fd;

    begin();
    chain = chain_of(17);
    for (unsigned i = 0; i < 17; i++)
        add(&chain, 4096, 4U << 20, true);
    fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    CHECK_EQ(vmm_transfer_read(&mem, fd, 0,
                               &(struct vmm_stretch){&chain, 0, all}, 1),
             VMM_TRANSFER_MOST);
    CHECK_EQ(vmm_transfer_read(&mem, fd, 0,
                               &(struct vmm_stretch){&chain, VMM_TRANSFER_MOST,
                                                     all - VMM_TRANSFER_MOST},
                               1),
             all - VMM_TRANSFER_MOST);
    close(fd);
    vmm_chain_fini(&chain);
    end();
}

/* More segments than one system call takes; and a pipe, which has no offset. */
static void
test_many_segments(void)
{
    unsigned count = 2500;
    uint8_t want[2500], got[2500];
    struct vmm_chain chain;
    struct vmm_stretch all;
    int fd, pipes[2];

    begin();
    chain = chain_of(count);
    for (unsigned i = 0; i < count; i++)
        add(&chain, 3ULL * i, 1, true);
    all = (struct vmm_stretch){&chain, 0, count};
    pattern(want, sizeof want);
    fd = file_of(want, sizeof want);
    CHECK_EQ(vmm_transfer_read(&mem, fd, 0, &all, 1), count);
    for (unsigned i = 0; i < count; i++)
        got[i] = *chain.seg[i].hva;
    CHECK(!memcmp(got, want, sizeof want));
    CHECK_EQ(pipe2(pipes, O_CLOEXEC), 0);
    CHECK_EQ(write(pipes[1], want, 1500), 1500);
    /* Not a byte more than is there, or it would block. */
    CHECK_EQ(vmm_transfer_read(&mem, pipes[0], -1, &all, 1), 1500);
    CHECK_EQ(write(pipes[1], want, 5), 5);
    CHECK_EQ(vmm_transfer_read(&mem, pipes[0], -1, &all, 1), 5);
    CHECK_EQ(vmm_transfer_read(&mem, pipes[0], 0, &all, 1), -ESPIPE);
    close(pipes[0]);
    close(pipes[1]);
    close(fd);
    vmm_chain_fini(&chain);
    end();
}

static void
test_dirty(void)
{
    uint64_t bits[RAM_SIZE / 4096 / 64];
    struct vmm_chain chain;
    uint8_t byte = 1;
    int fd;

    begin();
    chain = chain_of(2);
    add(&chain, 4095, 2, true);
    add(&chain, 10 * 4096, 1, true);
    vmm_mem_take_dirty(&mem, 0, bits);
    fd = file_of(&byte, 1);
    CHECK_EQ(
        vmm_transfer_read(&mem, fd, 0, &(struct vmm_stretch){&chain, 0, 3}, 1),
        1);
    CHECK_EQ(vmm_mem_take_dirty(&mem, 0, bits), 3);
    CHECK_EQ(bits[0], 0x403);
    CHECK_EQ(vmm_transfer_write(fd, 0, &(struct vmm_stretch){&chain, 0, 0}, 1),
             0);
    CHECK_EQ(vmm_mem_take_dirty(&mem, 0, bits), 0);
    close(fd);
    vmm_chain_fini(&chain);
    end();
}

/* -- a queue on loan ------------------------------------------------------- */

struct loan {
    struct vmm_virtq vq;
    int stopped; /* atomic */
};

static void *
stop(void *arg)
{
    struct loan *loan = arg;

    vmm_virtq_stop(&loan->vq);
    __atomic_store_n(&loan->stopped, 1, __ATOMIC_RELEASE);
    return NULL;
}

/* Whoever stops it waits for the last one to give it back. */
static void
test_lend(void)
{
    struct loan loan = {.stopped = 0};
    pthread_t thread;

    begin();
    CHECK_EQ(vmm_virtq_init(&loan.vq, &mem, 4), 0);
    loan.vq.desc_gpa = RAM;
    loan.vq.avail_gpa = RAM + 0x1000;
    loan.vq.used_gpa = RAM + 0x2000;
    CHECK_EQ(vmm_virtq_start(&loan.vq), 0);
    vmm_virtq_lend(&loan.vq);
    vmm_virtq_lend(&loan.vq);
    CHECK_EQ(pthread_create(&thread, NULL, stop, &loan), 0);
    vmm_virtq_return(&loan.vq);
    CHECK_EQ(pthread_rwlock_trywrlock(&loan.vq.lent), EBUSY);
    CHECK_EQ(__atomic_load_n(&loan.stopped, __ATOMIC_ACQUIRE), 0);
    vmm_virtq_return(&loan.vq);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK(!loan.vq.ready);
    end();
}

int
main(void)
{
    RUN(test_read);
    RUN(test_write);
    RUN(test_errors);
    RUN(test_most);
    RUN(test_many_segments);
    RUN(test_dirty);
    RUN(test_lend);
    return check_done();
}
