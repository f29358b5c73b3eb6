/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio_mmio.h - the virtio transport for a range of addresses
 * (virtio 1.2, 4.2, register block version 2)
 *
 * A device embeds `struct vmm_virtio_mmio` by value, gives it a table of ops
 * and its queues, and is put on the address bus with vmm_virtio_mmio_ops and
 * `dev` = the struct vmm_virtio_mmio. The transport answers the registers,
 * negotiates features, runs the status machine, starts and stops the queues and
 * raises interrupts; the device sees "queue n was notified" and chains.
 *
 * Life: the driver resets the device (status 0), negotiates features, starts
 * queues and sets DRIVER_OK. From then on the device is *live*, and only then
 * are its queues worked on. It stops being live when the driver resets it or
 * says FAILED, or when it breaks the rules (a broken queue, rings outside
 * RAM): then NEEDS_RESET is set, with a configuration interrupt if DRIVER_OK
 * was (2.1.2), `fault` says why, `faults` counts, and nothing is done until the
 * driver resets.
 *
 * Liberal in what a driver writes: status bits may arrive one by one or all at
 * once (0 to 0xf), a bit once set stays until reset, and a notification before
 * DRIVER_OK is kept until then. Strict in what reaches memory: FEATURES_OK
 * sticks only with VERSION_1 and without bits that were not offered, DRIVER_OK
 * only with FEATURES_OK; a queue's registers do not change while it is ready;
 * queues do not start before DRIVER, nor without need of a reset. Registers
 * want aligned accesses of 32 bits; others read 0, are ignored, and counted in
 * `odd`. The configuration space takes any offset and length; bytes beyond the
 * device's own read 0.
 *
 * Who works on a notification. Inline, with doorbell_fd = -1: the register
 * write calls the op on the vCPU's thread. Behind a doorbell: doorbell_fd is an
 * eventfd (which KVM may signal as an ioeventfd on the register
 * VIRTIO_MMIO_QUEUE_NOTIFY, 4 bytes, no datamatch), and a thread of the
 * caller's runs vmm_virtio_mmio_serve; a register write that arrives all the
 * same rings the doorbell.
 *
 * Threads: any. `lock` is held around register accesses (but for the interrupt
 * registers and the ringing of the doorbell) and around queue processing, so
 * around every op; an op must not take it. Functions marked (locked) are for
 * ops and for whoever holds `lock`; the others take it themselves. Fields are
 * read under the lock too; the owner's are set before the guest's first access.
 */
#ifndef VMM_VIRTIO_MMIO_H
#define VMM_VIRTIO_MMIO_H

#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <pthread.h>

#include "bus.h"
#include "virtq.h"

#define VMM_VIRTIO_MMIO_SIZE       0x200 /* of the range on the bus */
#define VMM_VIRTIO_MMIO_CONFIG_MAX (VMM_VIRTIO_MMIO_SIZE - VIRTIO_MMIO_CONFIG)
#define VMM_VIRTIO_MMIO_MAX_QUEUES 64
#define VMM_VIRTIO_MMIO_VENDOR     0x6d767970U /* "pyvm" */

/* What the transport offers besides the device's features. */
#define VMM_VIRTIO_MMIO_FEATURES                                               \
    (1ULL << VIRTIO_F_VERSION_1 | 1ULL << VIRTIO_RING_F_INDIRECT_DESC |        \
     1ULL << VIRTIO_RING_F_EVENT_IDX)

struct vmm_virtio_mmio;

/*
 * What a device does. Each op but notify may be NULL. All run under the lock
 * and answer VMM_BUS_DONE, or VMM_BUS_OWNER when the owner has something to
 * do, which the register access that caused them (or serve) then answers too.
 */
struct vmm_virtio_mmio_dev_ops {
    /*
     * There may be chains in `queue`, which is live and started. Pops them all,
     * within bounds: when it stops early it sets `due_ns` (in the past means
     * at once) and answers VMM_BUS_OWNER. Called without cause at times.
     */
    int (*notify)(struct vmm_virtio_mmio *dev, unsigned queue);
    /* The driver reset the device: the queues are stopped already, all chains
     * stale. Also called when it was not live. */
    int (*reset)(struct vmm_virtio_mmio *dev);
    /* The status went from `old` to dev->status, not by a reset. When
     * FEATURES_OK is new, `driver_features` is final. */
    int (*status)(struct vmm_virtio_mmio *dev, uint32_t old);
    /* An access to the configuration space, all inside it (offset + len at most
     * VMM_VIRTIO_MMIO_CONFIG_MAX). Without config_read the bytes of `config`
     * answer; without config_write writes are dropped. */
    int (*config_read)(struct vmm_virtio_mmio *dev, unsigned offset,
                       unsigned len, uint64_t *val);
    int (*config_write)(struct vmm_virtio_mmio *dev, unsigned offset,
                        unsigned len, uint64_t val);
};

struct vmm_virtio_mmio {
    pthread_mutex_t lock;
    struct vmm_mem *mem;
    const struct vmm_virtio_mmio_dev_ops *ops;

    /* The owner's, set before the guest's first access. */
    uint64_t features;   /* offered; init sets the device's and the transport's,
                            the owner may clear bits */
    uint8_t *config;     /* the device's configuration bytes, or NULL */
    uint32_t config_len; /* at most VMM_VIRTIO_MMIO_CONFIG_MAX */
    int irq_fd;          /* eventfd to write for an interrupt, -1: none */
    int doorbell_fd;     /* eventfd of vmm_virtio_mmio_serve, -1: inline */

    uint32_t device_id;
    struct vmm_virtq *queue; /* the device's array */
    unsigned queues;

    /* The driver's view. */
    uint32_t status;
    uint32_t interrupt_status; /* atomic */
    uint32_t config_generation;
    uint64_t driver_features; /* final once FEATURES_OK is set */
    bool alien_features;      /* accepted a bit above 63 */
    uint32_t features_sel;
    uint32_t driver_features_sel;
    uint32_t queue_sel;
    uint64_t early; /* queues notified before DRIVER_OK, a bit each */

    /* Set and cleared by notify ops: work is left that waits for nothing but
     * this moment of CLOCK_MONOTONIC, 0 for none. The owner of an inline
     * device calls vmm_virtio_mmio_process then, which clears it and calls
     * them all; serve does so by itself. A reset clears it. */
    uint64_t due_ns;

    const char *fault;      /* why NEEDS_RESET is set; NULL when it is not */
    uint64_t faults;        /* times NEEDS_RESET was set */
    uint64_t odd;           /* accesses that no driver makes: size, alignment */
    uint64_t notifications; /* at the register or, with a doorbell,
                               rings, which merge several */
    uint64_t interrupts;    /* raised */
};

/*
 * A device in reset. `queue` is the device's array of `queues` queues (at most
 * VMM_VIRTIO_MMIO_MAX_QUEUES) made by vmm_virtq_init on the same mem.
 * `features` are the device's own: of the bits 24 to 49, which belong to
 * transports, only IN_ORDER, ACCESS_PLATFORM and ORDER_PLATFORM, else -EINVAL.
 * -EINVAL as well for device_id 0 and too many queues. `mem`, `ops` and the
 * queues outlive the device. irq_fd and doorbell_fd are -1, config NULL: the
 * owner sets them, and closes what it opened after fini.
 */
int vmm_virtio_mmio_init(struct vmm_virtio_mmio *dev, struct vmm_mem *mem,
                         const struct vmm_virtio_mmio_dev_ops *ops,
                         uint32_t device_id, uint64_t features,
                         struct vmm_virtq *queue, unsigned queues);

/* Only when no one can call it any more: off the bus, no serve running. */
void vmm_virtio_mmio_fini(struct vmm_virtio_mmio *dev);

/* For struct vmm_range; `dev` is the struct vmm_virtio_mmio. */
extern const struct vmm_bus_ops vmm_virtio_mmio_ops;

/*
 * Calls the notify op for each started queue of a live device, as if all had
 * been notified. Answers VMM_BUS_DONE or VMM_BUS_OWNER.
 */
int vmm_virtio_mmio_process(struct vmm_virtio_mmio *dev);

/*
 * The worker, on a thread of the caller's: processes what is there, then waits
 * for the doorbell, for due_ns, for stop_fd to become readable (which it does
 * not read) or for `until_ns` of CLOCK_MONOTONIC (0: for ever); the last two
 * end it, and *over says so. Returns 0 then; VMM_BUS_OWNER when the owner must
 * act, after which the caller calls it again unless it is over, as it does
 * after -EINTR, a signal; -errno when poll or read failed, -EBADF with no
 * doorbell. No notification is lost between two calls, and each call processes
 * at least once.
 */
int vmm_virtio_mmio_serve(struct vmm_virtio_mmio *dev, int stop_fd,
                          uint64_t until_ns, bool *over);

/*
 * Changes configuration bytes: copies `len` bytes to config + offset, counts
 * the generation and, when the device is live, interrupts the driver. -EINVAL
 * when there are none or they are not inside config_len.
 */
int vmm_virtio_mmio_config_set(struct vmm_virtio_mmio *dev, uint32_t offset,
                               const void *buf, uint32_t len);

/* What the registers are like, for a snapshot; queues apart. */
struct vmm_virtio_mmio_state {
    uint32_t device_id;
    uint32_t queues;
    uint64_t features;
    uint64_t driver_features;
    uint64_t early;
    uint32_t status;
    uint32_t interrupt_status;
    uint32_t config_generation;
    uint32_t features_sel;
    uint32_t driver_features_sel;
    uint32_t queue_sel;
    uint32_t alien_features;
    uint32_t config_len;
    uint8_t config[VMM_VIRTIO_MMIO_CONFIG_MAX];
};

/* (locked) */
void vmm_virtio_mmio_save(const struct vmm_virtio_mmio *dev,
                          struct vmm_virtio_mmio_state *out);

/*
 * (locked) Makes the registers like that; the queues are to follow
 * (vmm_virtq_load). No op is called. -EINVAL, and nothing changed: it is the
 * state of another kind of device.
 */
int vmm_virtio_mmio_load(struct vmm_virtio_mmio *dev,
                         const struct vmm_virtio_mmio_state *state);

/* (locked) Whether queues may be worked on. */
static inline bool
vmm_virtio_mmio_live(const struct vmm_virtio_mmio *dev)
{
    return (dev->status &
            (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET |
             VIRTIO_CONFIG_S_FAILED)) == VIRTIO_CONFIG_S_DRIVER_OK;
}

/*
 * (locked) vmm_virtq_pop, with what a device owes besides: 0 when not live,
 * and a queue that turns out to be broken fails the device. `queue` is less
 * than dev->queues.
 */
int vmm_virtio_mmio_pop(struct vmm_virtio_mmio *dev, unsigned queue,
                        struct vmm_chain *chain);

/*
 * (locked) vmm_virtq_push, likewise: -ESTALE when not live. Does not interrupt.
 */
int vmm_virtio_mmio_push(struct vmm_virtio_mmio *dev, unsigned queue,
                         struct vmm_chain *chain, uint32_t written);

/* (locked) vmm_virtq_put and vmm_virtq_publish, likewise. */
int vmm_virtio_mmio_put(struct vmm_virtio_mmio *dev, unsigned queue,
                        struct vmm_chain *chain, uint32_t written);
void vmm_virtio_mmio_publish(struct vmm_virtio_mmio *dev, unsigned queue);

/* (locked) After one or more pushes: interrupts if the driver wants it. */
void vmm_virtio_mmio_used(struct vmm_virtio_mmio *dev, unsigned queue);

/*
 * (locked) Raises an interrupt: `bits` (VIRTIO_MMIO_INT_VRING or _CONFIG) are
 * added to InterruptStatus and irq_fd is written. Each call writes it, whatever
 * is pending: the line is edge-triggered, and the driver may be about to
 * acknowledge.
 */
void vmm_virtio_mmio_raise(struct vmm_virtio_mmio *dev, uint32_t bits);

/* (locked) Sets NEEDS_RESET; `why` is a constant string. Counted once a life.
 */
void vmm_virtio_mmio_fail(struct vmm_virtio_mmio *dev, const char *why);

#endif
