/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_virtio_mmio.c - the registers with an entropy device behind them
 *
 * The input is a byte of set-up and then steps: accesses of any offset and
 * length, writes into guest memory, a whole driver's start, a request, and the
 * owner's part.
 */
#include "driver.h"
#include "fuzz.h"
#include "vmm/rng.h"

#define RAM  0x10000ULL
#define NEXT 0x14000ULL
#define ROM  0x18000ULL

/* What holds after every step. */
static void
check(const struct vmm_rng *rng)
{
    const struct vmm_virtio_mmio *dev = &rng->mmio;

    must(!dev->fault == !(dev->status & VIRTIO_CONFIG_S_NEEDS_RESET));
    must(!(dev->status & VIRTIO_CONFIG_S_DRIVER_OK) ||
         (dev->status & VIRTIO_CONFIG_S_FEATURES_OK));
    must(!(dev->status & VIRTIO_CONFIG_S_FEATURES_OK) ||
         (dev->driver_features >> VIRTIO_F_VERSION_1 & 1));
    must(!rng->requestq.fault || dev->fault);
    must(rng->pool_pos <= rng->pool_end && rng->pool_end <= rng->pool_size);
    must(rng->tokens <= rng->burst * 1000000000ULL);
}

static void
step(struct vmm_rng *rng, struct driver *drv, struct input *in)
{
    static const uint64_t offers = 1ULL << VIRTIO_F_VERSION_1 |
                                   1ULL << VIRTIO_RING_F_INDIRECT_DESC |
                                   1ULL << VIRTIO_RING_F_EVENT_IDX;
    struct vmm_virtio_mmio *dev = &rng->mmio;
    unsigned op = (unsigned)next(in, 1);
    uint8_t buf[64] = "random bytes of the owner's source, as it happens.";
    uint64_t val = 0, offset;

    switch (op & 7) {
    case 0:
        reg_write(dev, (unsigned)(next(in, 1) & 63) * 4, (uint32_t)next(in, 4));
        break;
    case 1:
        offset = next(in, 2) % VMM_VIRTIO_MMIO_SIZE;
        val = next(in, 4);
        vmm_virtio_mmio_ops.write(
            dev, offset,
            (unsigned)vmm_min(1 + (op >> 5), VMM_VIRTIO_MMIO_SIZE - offset),
            val);
        break;
    case 2:
        offset = next(in, 2) % VMM_VIRTIO_MMIO_SIZE;
        vmm_virtio_mmio_ops.read(
            dev, offset,
            (unsigned)vmm_min(1 + (op >> 5), VMM_VIRTIO_MMIO_SIZE - offset),
            &val);
        break;
    case 3:
        for (unsigned i = 0; i < sizeof buf; i++)
            buf[i] = (uint8_t)next(in, 1);
        vmm_mem_write(drv->mem, RAM + next(in, 2), buf, 1 + (op >> 3),
                      VMM_MEM_HOST);
        break;
    case 4:
        driver_init(drv, drv->mem, RAM + (op & 0x10 ? 0x3e00 : 0),
                    1U << (op >> 5));
        reg_boot(dev, op & 8 ? offers : 1ULL << VIRTIO_F_VERSION_1, drv);
        break;
    case 5:
        val = next(in, 4);
        driver_desc(drv, op >> 3 & (drv->size - 1), RAM + (val & 0xffff),
                    (val >> 16 & 0xff) << (op >> 6) * 2, val >> 24 & 7,
                    val >> 27 & 7);
        break;
    case 6:
        driver_offer(drv, op >> 3);
        reg_write(dev, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        break;
    case 7:
        if (op >> 3 > 1)
            vmm_rng_feed(rng, buf, op >> 3);
        else if (op >> 3)
            vmm_rng_limit(rng, next(in, 4), next(in, 4));
        vmm_rng_process_at(rng, next(in, 4) << 8);
        vmm_rng_wanted(rng);
        vmm_rng_due_ns(rng);
        break;
    }
    check(rng);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct input in = {data, len};
    unsigned setup = (unsigned)next(&in, 1);
    struct vmm_rng rng;
    struct vmm_mem mem;
    struct driver drv;

    vmm_mem_init(&mem);
    must(!vmm_mem_add(&mem, RAM, NEXT - RAM, 0));
    must(!vmm_mem_add(&mem, NEXT, ROM - NEXT, 0));
    must(!vmm_mem_add(&mem, ROM, 0x1000, VMM_MEM_READONLY));
    vmm_mem_freeze(&mem);
    must(!vmm_rng_init(&rng, &mem, 1U << setup % 9));
    if (setup & 0x80)
        must(!vmm_rng_external(&rng, 40));
    driver_init(&drv, &mem, RAM, 1);
    while (in.left)
        step(&rng, &drv, &in);
    vmm_rng_fini(&rng);
    vmm_mem_fini(&mem);
    return 0;
}
