/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_virtq.c - a queue and a driver that does anything
 *
 * The input is a byte of set-up and then steps: an opcode and its operands.
 * After each pop, what the device would touch must be RAM.
 */
#include <errno.h>

#include "driver.h"
#include "fuzz.h"

#define RAM   0x10000ULL
#define ROM   0x11000ULL
#define FAR   0x13000ULL
#define PAGES 5 /* the hole at 0x12000 and a page beyond are poked at too */
#define FLY   4

static void
check_chain(const struct vmm_mem *mem, const struct vmm_virtq *vq,
            struct vmm_chain *chain)
{
    unsigned count = chain->readable + chain->writable;

    must(chain->descs && chain->descs <= vq->size);
    must(count <= vq->size + VMM_MEM_MAX_REGIONS);
    for (unsigned i = 0; i < count; i++) {
        const struct vmm_segment *s = &chain->seg[i];
        const struct vmm_region *r = vmm_mem_find(mem, s->gpa);

        must(r && s->len && s->len <= r->len - (s->gpa - r->gpa));
        must(s->hva == r->hva + (s->gpa - r->gpa));
        must(i < chain->readable || !(r->flags & VMM_MEM_READONLY));
    }
}

/* Writes into guest memory, wherever it is. */
static void
poke(struct vmm_mem *mem, struct input *in)
{
    uint64_t gpa = RAM + next(in, 2) % (PAGES * 0x1000);
    uint64_t n = next(in, 1) % 64 + 1;
    uint8_t buf[64];

    for (uint64_t i = 0; i < n; i++)
        buf[i] = (uint8_t)next(in, 1);
    vmm_mem_write(mem, gpa, buf, n, VMM_MEM_HOST);
}

/* A descriptor whose fields are mostly sensible. */
static void
poke_desc(struct driver *drv, struct input *in)
{
    static const uint64_t base[] = {RAM + 0xc00, ROM - 4, ROM + 0xffe, FAR,
                                    FAR + 0xff0, 0,       1ULL << 63,  RAM};
    uint64_t what = next(in, 4), table = drv->desc;

    if (what >> 30 & 1)
        table = RAM + 0x800;
    table_set(drv->mem, table, what % 8, base[what >> 3 & 7] + (what >> 6 & 15),
              what >> 31 ? (uint32_t)next(in, 4) : (what >> 10 & 15) << 2,
              what >> 16 & 7, what >> 20 & 7);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct input in = {data, len};
    struct vmm_chain fly[FLY] = {0};
    uint8_t buf[256] = {0};
    struct vmm_virtq vq;
    struct vmm_mem mem;
    struct driver drv;
    unsigned setup = (unsigned)next(&in, 1);

    vmm_mem_init(&mem);
    must(!vmm_mem_add(&mem, RAM, 0x1000, 0));
    must(!vmm_mem_add(&mem, ROM, 0x1000, VMM_MEM_READONLY));
    must(!vmm_mem_add(&mem, FAR, 0x1000, 0));
    vmm_mem_freeze(&mem);
    must(!vmm_virtq_init(&vq, &mem, 16));
    driver_init(&drv, &mem, RAM, 1U << setup % 5);
    driver_connect(&drv, &vq);
    vq.indirect = setup & 0x20;
    vq.event_idx = setup & 0x40;
    must(!vmm_virtq_start(&vq));
    while (in.left) {
        unsigned op = (unsigned)next(&in, 1);
        struct vmm_chain *chain = &fly[op >> 4 & (FLY - 1)];

        switch (op & 15) {
        case 0:
            poke(&mem, &in);
            break;
        case 1:
        case 2:
            poke_desc(&drv, &in);
            break;
        case 3:
        case 4:
            driver_offer(&drv, (uint16_t)next(&in, 1));
            break;
        case 5:
            driver_set_avail(&drv, (uint16_t)next(&in, 2));
            break;
        case 6:
        case 7:
            if (!vmm_chain_alive(chain, &vq) && vmm_virtq_pop(&vq, chain) == 1)
                check_chain(&mem, &vq, chain);
            break;
        case 8:
            must(vmm_virtq_push(&vq, chain, (uint32_t)next(&in, 1)) <= 0);
            break;
        case 9:
            vmm_virtq_unpop(&vq, chain);
            break;
        case 10:
            vmm_virtq_notify_off(&vq);
            break;
        case 11:
            vmm_virtq_notify_on(&vq);
            break;
        case 12:
            vmm_virtq_must_interrupt(&vq);
            break;
        case 13:
            vmm_virtq_stop(&vq);
            vq.size = (uint32_t)next(&in, 1);
            vq.used_gpa = RAM + next(&in, 2);
            vmm_virtq_start(&vq);
            break;
        case 14:
            vmm_virtq_stop(&vq);
            driver_init(&drv, &mem, RAM, 1U << (op >> 4) % 5);
            driver_connect(&drv, &vq);
            must(!vmm_virtq_start(&vq));
            break;
        case 15:
            if (!vmm_chain_alive(chain, &vq))
                break;
            vmm_chain_read(chain, next(&in, 1), buf, sizeof buf);
            vmm_chain_write(chain, &mem, next(&in, 1), buf, sizeof buf);
            break;
        }
    }
    for (unsigned i = 0; i < FLY; i++)
        vmm_chain_fini(&fly[i]);
    vmm_mem_fini(&mem);
    return 0;
}
