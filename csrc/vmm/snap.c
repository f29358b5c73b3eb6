/* SPDX-License-Identifier: Apache-2.0 */
/* snap.c - snapshots: nodes of a tree, taken and gone back to */
#include "snap.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dirty.h"

#define PRESENT   (1ULL << 63) /* of /proc/self/pagemap: in RAM */
#define SWAPPED   (1ULL << 62)
#define LOOK_SIZE 512U /* pages that are asked for at once */

/* -- nodes ----------------------------------------------------------------- */

struct vmm_snap *
vmm_snap_hold(struct vmm_snap *snap)
{
    __atomic_fetch_add(&snap->refs, 1, __ATOMIC_RELAXED);
    return snap;
}

static void
snap_free(struct vmm_snap *snap)
{
    if (snap->image)
        munmap((void *)(uintptr_t)snap->image, snap->pages * VMM_PAGE_SIZE);
    if (snap->fd >= 0)
        close(snap->fd);
    if (snap->data)
        munmap(snap->data, snap->count * VMM_PAGE_SIZE);
    free(snap->number);
    for (unsigned i = 0; snap->cpu && i < snap->cpus; i++)
        vmm_vcpu_save_fini(&snap->cpu[i]);
    free(snap->cpu);
    free(snap);
}

void
vmm_snap_drop(struct vmm_snap *snap)
{
    /* A loop: a long line of nodes must not be a deep recursion. */
    while (snap && !__atomic_sub_fetch(&snap->refs, 1, __ATOMIC_ACQ_REL)) {
        struct vmm_snap *parent = snap->parent;

        snap_free(snap);
        snap = parent;
    }
}

void
vmm_snap_leave(struct vmm_mem *mem)
{
    vmm_snap_drop(mem->at);
    mem->at = NULL;
}

static void
move_to(struct vmm_mem *mem, struct vmm_snap *snap)
{
    struct vmm_snap *before = mem->at;

    mem->at = vmm_snap_hold(snap);
    vmm_snap_drop(before);
}

static const struct vmm_snap *
root_of(const struct vmm_snap *snap)
{
    while (snap->parent)
        snap = snap->parent;
    return snap;
}

uint32_t
vmm_snap_first(const struct vmm_snap *snap, uint64_t number)
{
    uint32_t low = 0, high = snap->count;

    while (low < high) {
        uint32_t mid = low + (high - low) / 2;

        if (snap->number[mid] < number)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

const uint8_t *
vmm_snap_page(const struct vmm_snap *snap, uint64_t number)
{
    assert(number < snap->pages);
    for (; snap->parent; snap = snap->parent) {
        uint32_t at = vmm_snap_first(snap, number);

        if (at < snap->count && snap->number[at] == number)
            return snap->data + at * VMM_PAGE_SIZE;
    }
    return snap->image + number * VMM_PAGE_SIZE;
}

int
vmm_snap_poke(struct vmm_snap *snap, uint64_t offset, uint8_t byte)
{
    uint64_t number = offset / VMM_PAGE_SIZE;
    uint32_t at = vmm_snap_first(snap, number);

    if (at == snap->count || snap->number[at] != number)
        return -ENOENT;
    snap->data[at * VMM_PAGE_SIZE + offset % VMM_PAGE_SIZE] = byte;
    return 0;
}

/* -- the state of the machine, without its memory -------------------------- */

static int
vm_ioctl(struct vmm_vm *vm, unsigned long request, void *arg, const char *name)
{
    int ret = vmm_kvm_ioctl(vm->fd, request, arg, name, &vm->call);

    return ret < 0 ? ret : 0;
}

static int
save_vm(struct vmm_vm *vm, struct vmm_snap *snap)
{
    int err = 0;

    snap->irqchip = vm->irqchip;
    for (unsigned i = 0; !err && vm->irqchip && i < 3; i++) {
        snap->chip[i].chip_id = i; /* two PICs and the IOAPIC */
        err = vm_ioctl(vm, KVM_GET_IRQCHIP, &snap->chip[i], "KVM_GET_IRQCHIP");
    }
    snap->pit = vm->pit;
    if (!err && vm->pit)
        err = vm_ioctl(vm, KVM_GET_PIT2, &snap->pit_state, "KVM_GET_PIT2");
    if (!err)
        snap->clock = !vm_ioctl(vm, KVM_GET_CLOCK, &snap->clock_data, "");
    return err;
}

int
vmm_snap_chips_differ(struct vmm_vm *vm, const struct vmm_snap *snap,
                      bool *differ)
{
    struct vmm_snap now = {0};
    int err = save_vm(vm, &now);

    *differ =
        memcmp(now.chip, snap->chip, sizeof now.chip) != 0 ||
        memcmp(&now.pit_state, &snap->pit_state, sizeof now.pit_state) != 0;
    return err;
}

int
vmm_snap_load_chips(struct vmm_vm *vm, const struct vmm_snap *snap)
{
    int err = 0;

    for (unsigned i = 0; !err && snap->irqchip && i < 3; i++)
        err = vm_ioctl(vm, KVM_SET_IRQCHIP, (void *)(uintptr_t)&snap->chip[i],
                       "KVM_SET_IRQCHIP");
    if (!err && snap->pit)
        err = vm_ioctl(vm, KVM_SET_PIT2, (void *)(uintptr_t)&snap->pit_state,
                       "KVM_SET_PIT2");
    if (!err && snap->clock) {
        struct kvm_clock_data clock = {.clock = snap->clock_data.clock};

        err = vm_ioctl(vm, KVM_SET_CLOCK, &clock, "KVM_SET_CLOCK");
    }
    return err;
}

static int
save_cpus(struct vmm_vm *vm, struct vmm_vcpu *const *cpu, unsigned cpus,
          struct vmm_snap *snap)
{
    int err = 0;

    vm->call = "malloc";
    snap->cpu = calloc(cpus, sizeof *snap->cpu);
    if (!snap->cpu)
        return -ENOMEM;
    snap->cpus = cpus;
    for (unsigned i = 0; !err && i < cpus; i++) {
        err = vmm_vcpu_save(cpu[i], &snap->cpu[i]);
        vm->call = cpu[i]->call;
    }
    return err;
}

/* -- taking ---------------------------------------------------------------- */

static bool
is_zero(const uint8_t *page)
{
    return !page[0] && !memcmp(page, page + 1, VMM_PAGE_SIZE - 1);
}

static int
write_all(int fd, const uint8_t *from, uint64_t len, uint64_t offset)
{
    while (len) {
        ssize_t done = pwrite(fd, from, len, (off_t)offset);

        if (done < 0 && errno != EINTR)
            return -errno;
        if (done < 0)
            continue;
        from += done;
        len -= (uint64_t)done;
        offset += (uint64_t)done;
    }
    return 0;
}

/*
 * Copies what a region holds into the file from `offset` on, but for zeros:
 * pages that nobody touched are not even looked at, where /proc tells of them.
 */
static int
copy_region(const struct vmm_region *region, int fd, uint64_t offset,
            int pagemap)
{
    uint64_t pages = region->len / VMM_PAGE_SIZE, map[LOOK_SIZE];
    int err = 0;

    for (uint64_t page = 0; !err && page < pages; page += LOOK_SIZE) {
        uint64_t count = vmm_min(LOOK_SIZE, pages - page);
        uint64_t first = (uintptr_t)region->hva / VMM_PAGE_SIZE + page;
        bool known = pread(pagemap, map, count * 8, (off_t)(first * 8)) ==
                     (ssize_t)(count * 8);

        for (uint64_t i = 0; !err && i < count; i++) {
            const uint8_t *from = region->hva + (page + i) * VMM_PAGE_SIZE;

            if ((known && !(map[i] & (PRESENT | SWAPPED))) || is_zero(from))
                continue;
            err = write_all(fd, from, VMM_PAGE_SIZE,
                            offset + (page + i) * VMM_PAGE_SIZE);
        }
    }
    return err;
}

/* The file of a root, with all that the memory holds, and its mapping. */
static int
make_image(struct vmm_mem *mem, struct vmm_snap *snap, const char **call)
{
    uint64_t size = snap->pages * VMM_PAGE_SIZE, offset = 0;
    int pagemap, err = 0;
    void *image;

    *call = "memfd_create";
    snap->fd = memfd_create("pyvmm snapshot", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (snap->fd < 0)
        return -errno;
    *call = "ftruncate";
    if (ftruncate(snap->fd, (off_t)size))
        return -errno;
    pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    *call = "pwrite to a snapshot";
    for (unsigned i = 0; !err && i < mem->count; i++) {
        err = copy_region(&mem->region[i], snap->fd, offset, pagemap);
        offset += mem->region[i].len;
    }
    if (pagemap >= 0)
        close(pagemap);
    if (err)
        return err;
    /* Nobody shall write there any more, nor shorten it under a mapping. */
    *call = "F_ADD_SEALS";
    if (fcntl(snap->fd, F_ADD_SEALS,
              F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        return -errno;
    *call = "mmap";
    image =
        mmap(NULL, size, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, snap->fd, 0);
    if (image == MAP_FAILED)
        return -errno;
    snap->image = image;
    return 0;
}

/* Maps all regions over the file of a root. */
static int
map_regions(struct vmm_mem *mem, const struct vmm_snap *root)
{
    uint64_t offset = root->offset;
    int err = 0;

    for (unsigned i = 0; !err && i < mem->count; i++) {
        err = vmm_mem_map_file(mem, i, root->fd, offset);
        offset += mem->region[i].len;
    }
    return err;
}

static void
forget_dirty(struct vmm_mem *mem)
{
    for (unsigned i = 0; i < mem->count; i++) {
        uint64_t word = 0;

        while (vmm_mem_take_word(mem, i, &word))
            word++;
    }
}

/*
 * What can fail comes first: the mapping is the last step. One that fails half
 * way leaves regions that hold the same bytes, mapped or not.
 */
static int
take_root(struct vmm_vm *vm, struct vmm_snap *snap)
{
    struct vmm_mem *mem = vm->mem;
    int err;

    snap->regions = mem->count;
    for (unsigned i = 0; i < mem->count; i++)
        snap->region[i] = (struct vmm_snap_region){
            mem->region[i].gpa, mem->region[i].len, mem->region[i].flags};
    err = make_image(mem, snap, &vm->call);
    if (!err)
        err = vmm_dirty_start(vm);
    if (!err) {
        err = map_regions(mem, snap);
        vm->call = mem->call;
    }
    if (!err)
        err = vmm_dirty_harvest(vm);
    if (!err)
        forget_dirty(mem);
    return err;
}

/* How many pages are dirty: looks, and takes nothing. */
static uint64_t
count_dirty(const struct vmm_mem *mem)
{
    uint64_t count = 0;

    for (unsigned i = 0; i < mem->count; i++) {
        const struct vmm_region *region = &mem->region[i];
        uint64_t words = (region->len / VMM_PAGE_SIZE + 63) / 64;

        for (uint64_t w = 0; w < words; w++)
            count += (uint64_t)__builtin_popcountll(region->dirty[w]);
    }
    return count;
}

/* A walk over the pages that are dirty, which takes them. */
struct walk {
    struct vmm_mem *mem;
    unsigned region;
    uint64_t first; /* the number of the region's first page among all */
    uint64_t word, bits;
};

/* The next one's number among all, and where it is. False: there is none. */
static bool
next_dirty(struct walk *walk, uint64_t *number, uint8_t **hva)
{
    uint64_t page;

    while (!walk->bits) {
        if (walk->region == walk->mem->count)
            return false;
        walk->bits = vmm_mem_take_word(walk->mem, walk->region, &walk->word);
        if (!walk->bits) {
            walk->first += walk->mem->region[walk->region].len / VMM_PAGE_SIZE;
            walk->region++;
            walk->word = 0;
        }
    }
    page = 64 * walk->word + (uint64_t)__builtin_ctzll(walk->bits);
    *number = walk->first + page;
    *hva = walk->mem->region[walk->region].hva + page * VMM_PAGE_SIZE;
    walk->bits &= walk->bits - 1;
    if (!walk->bits)
        walk->word++;
    return true;
}

static int
take_child(struct vmm_vm *vm, struct vmm_snap *snap)
{
    struct vmm_mem *mem = vm->mem;
    struct walk walk = {.mem = mem};
    uint64_t count, number;
    uint8_t *hva;
    int err = vmm_dirty_harvest(vm);

    if (err)
        return err;
    count = count_dirty(mem);
    vm->call = "mmap";
    if (count > UINT32_MAX)
        return -ENOMEM;
    snap->number = malloc((count ? count : 1) * sizeof *snap->number);
    if (!snap->number)
        return -ENOMEM;
    if (count) {
        void *data = mmap(NULL, count * VMM_PAGE_SIZE, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        if (data == MAP_FAILED)
            return -errno;
        snap->data = data;
    }
    snap->count = (uint32_t)count; /* what is unmapped with it */
    for (count = 0; next_dirty(&walk, &number, &hva); count++) {
        snap->number[count] = number;
        memcpy(snap->data + count * VMM_PAGE_SIZE, hva, VMM_PAGE_SIZE);
    }
    assert(count == snap->count);
    return 0;
}

int
vmm_snap_take(struct vmm_vm *vm, struct vmm_vcpu *const *cpu, unsigned cpus,
              struct vmm_snap **out)
{
    struct vmm_mem *mem = vm->mem;
    struct vmm_snap *snap;
    int err;

    vm->call = "snapshot";
    for (unsigned i = 0; i < mem->count; i++)
        if (mem->region[i].flags & VMM_MEM_SHARED)
            return -EINVAL;
    for (unsigned i = 0; i < cpus; i++)
        if (cpu[i]->unsettled)
            return -EBUSY;
    snap = calloc(1, sizeof *snap);
    if (!snap)
        return -ENOMEM;
    snap->refs = 1;
    snap->fd = -1;
    for (unsigned i = 0; i < mem->count; i++)
        snap->pages += mem->region[i].len / VMM_PAGE_SIZE;
    err = save_cpus(vm, cpu, cpus, snap);
    if (!err)
        err = save_vm(vm, snap);
    if (!err)
        err = mem->at ? take_child(vm, snap) : take_root(vm, snap);
    if (err) {
        vmm_snap_drop(snap);
        return err;
    }
    if (mem->at)
        snap->parent = vmm_snap_hold(mem->at);
    move_to(mem, snap);
    *out = snap;
    return 0;
}

/* -- going back ------------------------------------------------------------ */

static unsigned
depth_of(const struct vmm_snap *snap)
{
    unsigned depth = 0;

    for (; snap->parent; snap = snap->parent)
        depth++;
    return depth;
}

/* The pages by which a node differs from its parent are dirty. */
static void
mark_pages_of(struct vmm_mem *mem, const struct vmm_snap *snap)
{
    uint64_t first = 0;
    unsigned region = 0;

    for (uint32_t i = 0; i < snap->count; i++) {
        uint64_t pages = mem->region[region].len / VMM_PAGE_SIZE;

        while (snap->number[i] - first >= pages) {
            first += pages;
            pages = mem->region[++region].len / VMM_PAGE_SIZE;
        }
        vmm_mem_mark_pages(mem, region, snap->number[i] - first, 1);
    }
}

/* What lies between two nodes of a tree is dirty. */
static void
mark_between(struct vmm_mem *mem, const struct vmm_snap *one,
             const struct vmm_snap *other)
{
    unsigned depth = depth_of(one), depth_other = depth_of(other);

    while (one != other) {
        if (depth >= depth_other) {
            mark_pages_of(mem, one);
            one = one->parent;
            depth--;
        } else {
            mark_pages_of(mem, other);
            other = other->parent;
            depth_other--;
        }
    }
}

/* Copies every dirty page from the snapshot. How many. */
int64_t
vmm_snap_copy_back(struct vmm_mem *mem, const struct vmm_snap *snap)
{
    struct walk walk = {.mem = mem};
    int64_t count = 0;
    uint64_t number;
    uint8_t *hva;

    for (; next_dirty(&walk, &number, &hva); count++)
        memcpy(hva, vmm_snap_page(snap, number), VMM_PAGE_SIZE);
    return count;
}

static bool
same_shape(const struct vmm_vm *vm, unsigned cpus, const struct vmm_snap *snap)
{
    return vm->mem->at && root_of(vm->mem->at) == root_of(snap) &&
           cpus == snap->cpus && vm->irqchip == snap->irqchip &&
           vm->pit == snap->pit;
}

int64_t
vmm_snap_restore(struct vmm_vm *vm, struct vmm_vcpu *const *cpu, unsigned cpus,
                 struct vmm_snap *snap)
{
    int64_t count;
    int err;

    vm->call = "restore";
    if (!same_shape(vm, cpus, snap))
        return -EXDEV;
    for (unsigned i = 0; i < cpus; i++)
        if (cpu[i]->unsettled)
            return -EBUSY;
    err = vmm_dirty_start(vm);
    if (!err)
        err = vmm_dirty_harvest(vm);
    if (err)
        return err;
    mark_between(vm->mem, vm->mem->at, snap);
    count = vmm_snap_copy_back(vm->mem, snap);
    move_to(vm->mem, snap);
    for (unsigned i = 0; !err && i < cpus; i++) {
        cpu[i]->past_count = 0; /* those exits have never been */
        err = vmm_vcpu_load(cpu[i], &snap->cpu[i]);
        vm->call = cpu[i]->call;
    }
    if (!err)
        err = vmm_snap_load_chips(vm, snap);
    return err ? err : count;
}

int
vmm_snap_map(struct vmm_snap *snap, struct vmm_mem *mem)
{
    const struct vmm_snap *root = root_of(snap);
    int err = 0;

    for (unsigned i = 0; !err && i < root->regions; i++) {
        const struct vmm_snap_region *region = &root->region[i];

        err = vmm_mem_add(mem, region->gpa, region->len, region->flags);
    }
    if (!err)
        err = map_regions(mem, root);
    if (!err)
        mem->at = vmm_snap_hold((struct vmm_snap *)(uintptr_t)root);
    return err;
}

static bool
same_regions(const struct vmm_mem *mem, const struct vmm_snap *root)
{
    if (mem->count != root->regions)
        return false;
    for (unsigned i = 0; i < mem->count; i++) {
        const struct vmm_region *one = &mem->region[i];
        const struct vmm_snap_region *other = &root->region[i];

        if (one->gpa != other->gpa || one->len != other->len ||
            (one->flags ^ other->flags) & (VMM_MEM_READONLY | VMM_MEM_SHARED))
            return false;
    }
    return true;
}

int
vmm_snap_adopt(struct vmm_snap *snap, struct vmm_mem *mem)
{
    const struct vmm_snap *root = root_of(snap);
    int err;

    mem->call = "restore";
    if (mem->at && root_of(mem->at) == root)
        return 0;
    if (!same_regions(mem, root))
        return -EXDEV;
    err = map_regions(mem, root);
    if (err)
        return err;
    /* Of the guest's dirty pages the log still tells: they are copied. */
    forget_dirty(mem);
    move_to(mem, (struct vmm_snap *)(uintptr_t)root);
    return 0;
}
