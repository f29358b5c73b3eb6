/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bare.c - what pyvmm is held against: the same guest on raw ioctls
 *
 * A shared library for the benchmarks (bench/bare.py loads it). It knows
 * nothing of csrc/: the ioctls are those that pyvmm makes, in the same order,
 * and the loop looks at the exit's reason and goes on.
 *
 * Errors: NULL or a negative number, and errno.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT    __attribute__((visibility("default")))
#define TSS_ADDR  0xffffd000UL
#define MAX_CPUID 256
#define ALL_LINES 0xff
#define PAGE      4096UL
#define MIB       (1UL << 20)

/* /dev/kvm, opened once in a process as pyvmm does. */
struct host {
    int fd;
    size_t run_size;
    uint64_t sync;
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entry[MAX_CPUID];
    } cpuid;
};

struct bare {
    int vm_fd;
    int cpu_fd;
    void *ram;
    size_t ram_len;
    struct kvm_run *run;
    size_t run_size;
    uint64_t gpa;
    /* For resets: what it goes back to. */
    uint8_t *image;
    uint64_t *log;
    struct kvm_regs regs;
    struct kvm_sregs sregs;
};

EXPORT struct host *bare_host(void);
EXPORT struct bare *bare_new(struct host *host, int fd, uint64_t gpa,
                             uint64_t len, const void *image,
                             uint64_t image_len, const struct kvm_sregs *sregs,
                             const struct kvm_regs *regs);
EXPORT int bare_run(struct bare *bare, uint64_t exits);
EXPORT int bare_keep(struct bare *bare, uint64_t stop);
EXPORT int64_t bare_reset(struct bare *bare, uint64_t times);
EXPORT void bare_free(struct bare *bare);

struct host *
bare_host(void)
{
    struct host *host = calloc(1, sizeof *host);

    if (!host)
        return NULL;
    host->fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (host->fd < 0)
        goto fail;
    host->run_size = (size_t)ioctl(host->fd, KVM_GET_VCPU_MMAP_SIZE, NULL);
    host->sync =
        (uint64_t)ioctl(host->fd, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_REGS) &
        (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS);
    host->cpuid.head.nent = MAX_CPUID;
    if (ioctl(host->fd, KVM_GET_SUPPORTED_CPUID, &host->cpuid))
        goto fail;
    return host;

fail:
    if (host->fd >= 0)
        close(host->fd);
    free(host);
    return NULL;
}

static int
create_irqchip(int vm_fd)
{
    if (ioctl(vm_fd, KVM_CREATE_IRQCHIP, NULL))
        return -1;
    for (uint32_t id = KVM_IRQCHIP_PIC_MASTER; id <= KVM_IRQCHIP_PIC_SLAVE;
         id++) {
        struct kvm_irqchip chip = {.chip_id = id};

        if (ioctl(vm_fd, KVM_GET_IRQCHIP, &chip))
            return -1;
        chip.chip.pic.imr = ALL_LINES;
        if (ioctl(vm_fd, KVM_SET_IRQCHIP, &chip))
            return -1;
    }
    return 0;
}

static int
create_vm(struct bare *bare, const struct host *host, int fd, uint64_t gpa,
          const void *image, uint64_t image_len)
{
    int anonymous = fd < 0 ? MAP_ANONYMOUS : 0;
    struct kvm_userspace_memory_region slot = {
        .guest_phys_addr = gpa,
        .memory_size = bare->ram_len,
    };

    bare->ram = mmap(NULL, bare->ram_len, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | anonymous | MAP_NORESERVE, fd, 0);
    if (bare->ram == MAP_FAILED)
        return -1;
    if (image_len)
        memcpy(bare->ram, image, image_len);
    bare->vm_fd = ioctl(host->fd, KVM_CREATE_VM, NULL);
    if (bare->vm_fd < 0)
        return -1;
    slot.userspace_addr = (uintptr_t)bare->ram;
    if (ioctl(bare->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot) ||
        ioctl(bare->vm_fd, KVM_SET_TSS_ADDR, TSS_ADDR))
        return -1;
    return create_irqchip(bare->vm_fd);
}

/* Registers go along with the first KVM_RUN where that is possible. */
static int
set_registers(struct bare *bare, uint64_t sync, const struct kvm_sregs *sregs,
              const struct kvm_regs *regs)
{
    struct kvm_sregs now;

    if (ioctl(bare->cpu_fd, KVM_GET_SREGS, &now))
        return -1;
    if (sync == (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS)) {
        bare->run->s.regs.sregs = *sregs;
        bare->run->s.regs.regs = *regs;
        bare->run->kvm_dirty_regs = sync;
        return 0;
    }
    if (ioctl(bare->cpu_fd, KVM_SET_SREGS, sregs))
        return -1;
    return ioctl(bare->cpu_fd, KVM_SET_REGS, regs);
}

static int
create_cpu(struct bare *bare, const struct host *host,
           const struct kvm_sregs *sregs, const struct kvm_regs *regs)
{
    void *run;

    bare->cpu_fd = ioctl(bare->vm_fd, KVM_CREATE_VCPU, NULL);
    if (bare->cpu_fd < 0)
        return -1;
    run = mmap(NULL, host->run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
               bare->cpu_fd, 0);
    if (run == MAP_FAILED)
        return -1;
    bare->run = run;
    bare->run_size = host->run_size;
    if (ioctl(bare->cpu_fd, KVM_SET_CPUID2, &host->cpuid))
        return -1;
    return set_registers(bare, host->sync, sregs, regs);
}

/*
 * A VM of `len` bytes of RAM at `gpa` that begins with the image, an irqchip
 * and one vCPU in the given state. The RAM is a private mapping of `fd`, unless
 * that is -1.
 */
struct bare *
bare_new(struct host *host, int fd, uint64_t gpa, uint64_t len,
         const void *image, uint64_t image_len, const struct kvm_sregs *sregs,
         const struct kvm_regs *regs)
{
    struct bare *bare = calloc(1, sizeof *bare);

    if (!bare)
        return NULL;
    bare->vm_fd = bare->cpu_fd = -1;
    bare->ram_len = len;
    bare->gpa = gpa;
    bare->ram = MAP_FAILED;
    if (create_vm(bare, host, fd, gpa, image, image_len) ||
        create_cpu(bare, host, sregs, regs)) {
        int err = errno;

        bare_free(bare);
        errno = err;
        return NULL;
    }
    return bare;
}

void
bare_free(struct bare *bare)
{
    if (bare->run)
        munmap(bare->run, bare->run_size);
    if (bare->cpu_fd >= 0)
        close(bare->cpu_fd);
    if (bare->vm_fd >= 0)
        close(bare->vm_fd);
    if (bare->ram != MAP_FAILED)
        munmap(bare->ram, bare->ram_len);
    if (bare->image)
        munmap(bare->image, bare->ram_len);
    free(bare->log);
    free(bare);
}

/* The loop: so many accesses to ports or addresses, answered by nobody. */
int
bare_run(struct bare *bare, uint64_t exits)
{
    while (exits) {
        if (ioctl(bare->cpu_fd, KVM_RUN, NULL)) {
            if (errno == EINTR)
                continue;
            return -1;
        }
        switch (bare->run->exit_reason) {
        case KVM_EXIT_IO:
        case KVM_EXIT_MMIO:
            exits--;
            continue;
        default:
            errno = EPROTO;
            return -1;
        }
    }
    return 0;
}

/* -- resets ---------------------------------------------------------------- */

static int
log_writes(struct bare *bare)
{
    struct kvm_enable_cap cap = {.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
                                 .args = {KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE}};
    struct kvm_userspace_memory_region slot = {
        .flags = KVM_MEM_LOG_DIRTY_PAGES,
        .guest_phys_addr = bare->gpa,
        .memory_size = bare->ram_len,
        .userspace_addr = (uintptr_t)bare->ram,
    };

    if (ioctl(bare->vm_fd, KVM_ENABLE_CAP, &cap))
        return -1;
    return ioctl(bare->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot);
}

/*
 * The state as it is, before it has run, is what resets go back to; a run ends
 * before the instruction at `stop`, by a debug register.
 */
int
bare_keep(struct bare *bare, uint64_t stop)
{
    struct kvm_guest_debug debug = {
        .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP,
        .arch.debugreg = {[0] = stop, [7] = 0x402},
    };
    void *image = mmap(NULL, bare->ram_len, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (image == MAP_FAILED)
        return -1;
    bare->image = image;
    /* Only its first MiB is not zero. */
    memcpy(bare->image, bare->ram, bare->ram_len < MIB ? bare->ram_len : MIB);
    bare->log = calloc(bare->ram_len / PAGE / 64, sizeof *bare->log);
    if (!bare->log || log_writes(bare))
        return -1;
    bare->regs = bare->run->s.regs.regs;
    bare->sregs = bare->run->s.regs.sregs;
    return ioctl(bare->cpu_fd, KVM_SET_GUEST_DEBUG, &debug);
}

/* Copies back what was written, by the dirty log. How many pages, or -1. */
static int64_t
copy_back(struct bare *bare)
{
    struct kvm_dirty_log log = {.dirty_bitmap = bare->log};
    struct kvm_clear_dirty_log clear = {0};
    uint64_t words = bare->ram_len / PAGE / 64, first = words, end = 0;
    int64_t count = 0;

    if (ioctl(bare->vm_fd, KVM_GET_DIRTY_LOG, &log))
        return -1;
    for (uint64_t at = 0; at < words; at++) {
        uint64_t bits = bare->log[at];

        if (!bits)
            continue;
        first = first < at ? first : at;
        end = at + 1;
        for (; bits; bits &= bits - 1, count++) {
            uint64_t page = 64 * at + (uint64_t)__builtin_ctzll(bits);

            memcpy((uint8_t *)bare->ram + page * PAGE,
                   bare->image + page * PAGE, PAGE);
        }
    }
    if (!end)
        return 0;
    clear.first_page = 64 * first;
    clear.num_pages = (uint32_t)(64 * (end - first));
    clear.dirty_bitmap = bare->log + first;
    return ioctl(bare->vm_fd, KVM_CLEAR_DIRTY_LOG, &clear) ? -1 : count;
}

/* Runs to the stop and goes back, so often. Pages copied, or -1. */
int64_t
bare_reset(struct bare *bare, uint64_t times)
{
    int64_t total = 0;

    while (times) {
        int64_t count;

        bare->run->s.regs.regs = bare->regs;
        bare->run->s.regs.sregs = bare->sregs;
        bare->run->kvm_dirty_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
        if (ioctl(bare->cpu_fd, KVM_RUN, NULL)) {
            if (errno == EINTR)
                continue;
            return -1;
        }
        if (bare->run->exit_reason != KVM_EXIT_DEBUG) {
            errno = EPROTO;
            return -1;
        }
        count = copy_back(bare);
        if (count < 0)
            return -1;
        total += count;
        times--;
    }
    return total;
}
