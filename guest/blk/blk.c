/* SPDX-License-Identifier: 0BSD */
/*
 * blk.c - does things to a virtio-blk and prints what came of them
 *
 * In this order, each if its word is there:
 *
 * info             prints capacity, features, queues, cache
 * serial           prints the ID
 * wce=0|1          sets the write cache, prints whether it is on
 * copy=K           K sectors from sector `from` to sector `to`, in pieces of
 *                  `piece` sectors (8), `depth` of them (4) at a time; each of
 *                  `cpus` (1) copies a part, by the queue of its number
 * zero=K, unmap    K sectors from sector `to` on become zeros
 * discard=K        K sectors from sector `to` on are of no use any more
 * flush            then what was written is stable
 * read=K           K sectors from sector `from` on, one by one: prints of each
 *                  its first byte, or why it cannot be read
 * resize           waits until the capacity changes, and prints it
 *
 * mode=poll|irq    how to wait for requests (poll)
 */
#include <runtime.h>

#include <blk.h>
#include <interrupt.h>
#include <smp.h>

#define CPUS_MAX      8
#define DEPTH_MAX     16
#define PIECE_MAX     128 /* sectors */
#define CAUSE_CHANGED 2
#define QUEUE_ENTRIES 64
#define FEATURES                                                               \
    (VIRTIO_F_EVENT_IDX | BLK_F_RO | BLK_F_FLUSH | BLK_F_CONFIG_WCE |          \
     BLK_F_MQ | BLK_F_DISCARD | BLK_F_ZEROES)

/* What one vCPU works with. */
struct worker {
    struct virtqueue vq;
    struct blk_request request[DEPTH_MAX];
    unsigned char data[DEPTH_MAX][PIECE_MAX * BLK_SECTOR];
    unsigned char stack[8192];
    uint64_t from, to, sectors; /* to be copied */
    const char *volatile problem;
    volatile bool done;
};

static struct blk blk;
static struct worker worker[CPUS_MAX];
static unsigned piece, depth;
static volatile unsigned changes, interrupts;

static void
handle_interrupt(void *unused)
{
    (void)unused;
    interrupts++;
    if (virtio_interrupt(&blk.dev) & CAUSE_CHANGED)
        changes++;
}

static const char *
status_text(int status)
{
    static const char *const names[] = {"ok", "ioerr", "unsupp"};

    return status >= 0 && status <= BLK_S_UNSUPP ? names[status] : "broken";
}

/* Reads or writes pieces, `depth` of them at once, one each in data[]. */
static const char *
move(struct worker *self, uint32_t type, uint64_t sector, uint64_t sectors)
{
    unsigned sent = 0;
    uint32_t written;

    while (sectors) {
        uint32_t now = sectors < piece ? (uint32_t)sectors : piece;

        if (blk_add(&self->vq, &self->request[sent], type, sector,
                    self->data[sent], now * BLK_SECTOR) < 0)
            return "the queue is full";
        sent++;
        sector += now;
        sectors -= now;
    }
    virtqueue_kick(&self->vq);
    for (unsigned i = 0; i < sent; i++)
        if (virtqueue_wait(&self->vq, &written) < 0)
            return "the device is broken";
    for (unsigned i = 0; i < sent; i++)
        if (self->request[i].status != BLK_S_OK)
            return status_text(self->request[i].status);
    return NULL;
}

static void
copy(unsigned id)
{
    struct worker *self = &worker[id];

    while (self->sectors && !self->problem) {
        uint64_t now = (uint64_t)depth * piece;

        if (now > self->sectors)
            now = self->sectors;
        self->problem = move(self, BLK_T_IN, self->from, now);
        if (!self->problem)
            self->problem = move(self, BLK_T_OUT, self->to, now);
        self->from += now;
        self->to += now;
        self->sectors -= now;
    }
    self->done = true;
}

/* All vCPUs at it, each with a part. */
static const char *
copy_all(uint32_t sectors, uint64_t from, uint64_t to, unsigned cpus)
{
    uint32_t part = sectors / cpus;

    for (unsigned id = 0; id < cpus; id++) {
        worker[id].from = from + id * part;
        worker[id].to = to + id * part;
        worker[id].sectors = part;
    }
    worker[cpus - 1].sectors += sectors % cpus;
    for (unsigned id = 1; id < cpus; id++)
        if (!cpu_start(id, worker[id].stack, sizeof(worker[id].stack), copy))
            return "no vCPU can be started";
    copy(0);
    for (unsigned id = 0; id < cpus; id++) {
        while (!worker[id].done)
            cpu_relax();
        if (worker[id].problem)
            return worker[id].problem;
    }
    return NULL;
}

static int
fail(const char *why)
{
    print("blk: %s\n", why);
    return 1;
}

static const char *
start(unsigned queues, bool irq)
{
    const char *problem = blk_find(&blk, FEATURES);

    if (problem)
        return problem;
    if (queues > blk.queues)
        return "the disk has not so many queues";
    for (unsigned i = 0; i < queues; i++)
        if (!virtqueue_init(&worker[i].vq, &blk.dev, i, QUEUE_ENTRIES, irq))
            return "the disk has no such queue";
    if (irq && !irq_request(blk.dev.line, handle_interrupt, NULL))
        return "no interrupt of the disk can be taken";
    virtio_ready(&blk.dev);
    return NULL;
}

static void
print_info(void)
{
    print("sectors %llu, features %06x, queues %u, cache %s\n",
          (unsigned long long)blk_capacity(&blk),
          (unsigned)blk.dev.features & 0xffffff, blk.queues,
          blk_writeback(&blk) ? "on" : "off");
}

static void
print_serial(struct worker *self)
{
    static char name[BLK_ID_SIZE + 1];
    int status =
        blk_do(&self->vq, self->request, BLK_T_GET_ID, 0, name, BLK_ID_SIZE);

    print("serial \"%s\" %s\n", name, status_text(status));
}

static void
print_sectors(struct worker *self, uint64_t from, uint32_t count)
{
    print("read:");
    for (uint32_t i = 0; i < count; i++) {
        int status = blk_do(&self->vq, self->request, BLK_T_IN, from + i,
                            self->data[0], BLK_SECTOR);

        if (status == BLK_S_OK)
            print(" %02x", self->data[0][0]);
        else
            print(" %s", status_text(status));
    }
    puts("");
}

/* A request that is about sectors `to` and following, and has no data. */
static void
do_range(struct worker *self, const char *name, uint32_t type, uint64_t to)
{
    struct blk_range range = {to, arg_number(name, 0), 0};

    if (!arg(name))
        return;
    range.unmap = type == BLK_T_ZEROES && arg("unmap");
    print("%s %s\n", name,
          status_text(blk_do(&self->vq, self->request, type, 0, &range,
                             sizeof(range))));
}

static void
wait_for_resize(bool irq)
{
    uint64_t before = blk_capacity(&blk);

    puts("waiting");
    console_flush();
    while (irq && !changes)
        irq_wait();
    while (blk_capacity(&blk) == before)
        cpu_relax();
    print("now %llu sectors\n", (unsigned long long)blk_capacity(&blk));
}

int
main(void)
{
    uint32_t from = arg_number("from", 0), to = arg_number("to", 0);
    unsigned cpus = arg_number("cpus", 1);
    const char *mode = arg("mode"), *problem;
    bool irq = mode && !strcmp(mode, "irq");
    struct worker *self = &worker[0];

    piece = arg_number("piece", 8);
    depth = arg_number("depth", 4);
    if (mode && !irq && strcmp(mode, "poll"))
        return fail("mode is poll or irq");
    if (!piece || piece > PIECE_MAX || !depth || depth > DEPTH_MAX)
        return fail("piece is 1 to 128 sectors, depth 1 to 16");
    if (!cpus || cpus > CPUS_MAX || (irq && cpus > 1))
        return fail("cpus is 1 to 8, and 1 with mode=irq");
    problem = start(cpus, irq);
    if (problem)
        return fail(problem);

    if (arg("info"))
        print_info();
    if (arg("serial"))
        print_serial(self);
    if (arg("wce")) {
        blk_set_writeback(&blk, arg_number("wce", 0));
        print("cache %s\n", blk_writeback(&blk) ? "on" : "off");
    }
    if (arg("copy")) {
        problem = copy_all(arg_number("copy", 0), from, to, cpus);
        print("copy %s\n", problem ? problem : "ok");
    }
    do_range(self, "zero", BLK_T_ZEROES, to);
    do_range(self, "discard", BLK_T_DISCARD, to);
    if (arg("flush"))
        print("flush %s\n", status_text(blk_do(&self->vq, self->request,
                                               BLK_T_FLUSH, 0, NULL, 0)));
    if (arg("read"))
        print_sectors(self, from, arg_number("read", 0));
    if (arg("resize"))
        wait_for_resize(irq);
    while (irq && !interrupts) /* a fast device needs no waiting */
        irq_wait();
    print("interrupts: %u\n", interrupts);
    return 0;
}
