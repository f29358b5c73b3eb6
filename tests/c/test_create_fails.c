/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_create_fails.c - each system call of making a machine fails in turn
 *
 * A machine is made again and again: the first time its first call fails, then
 * its second, until all pass. Each refusal must be passed on as it is, name its
 * call, and leave no fd, no mapping and no memory behind. Needs /dev/kvm.
 *
 * link: -Wl,--wrap=ioctl,--wrap=mmap,--wrap=mmap64,--wrap=madvise
 * link: -Wl,--wrap=open,--wrap=open64,--wrap=__open_2,--wrap=__open64_2
 * link: -Wl,--wrap=memfd_create,--wrap=ftruncate,--wrap=ftruncate64
 * link: -Wl,--wrap=calloc,--wrap=free
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "vmm/vcpu.h"

/* -- failing one call ------------------------------------------------------ */

static unsigned calls;       /* since `arm` */
static unsigned fail_at;     /* the call that fails, from 1; 0: none */
static int fail_with;        /* its errno */
static const char *failed;   /* what it was */
static unsigned long no_cap; /* KVM_CHECK_EXTENSION answers 0 to it */

static const struct {
    unsigned long request;
    const char *name;
} requests[] = {
#define REQUEST(name)                                                          \
    {                                                                          \
        name, #name                                                            \
    }
    REQUEST(KVM_GET_API_VERSION),
    REQUEST(KVM_CHECK_EXTENSION),
    REQUEST(KVM_GET_VCPU_MMAP_SIZE),
    REQUEST(KVM_GET_SUPPORTED_CPUID),
    REQUEST(KVM_CREATE_VM),
    REQUEST(KVM_SET_USER_MEMORY_REGION),
    REQUEST(KVM_SET_IDENTITY_MAP_ADDR),
    REQUEST(KVM_SET_TSS_ADDR),
    REQUEST(KVM_CREATE_IRQCHIP),
    REQUEST(KVM_GET_IRQCHIP),
    REQUEST(KVM_SET_IRQCHIP),
    REQUEST(KVM_CREATE_PIT2),
    REQUEST(KVM_CREATE_VCPU),
    REQUEST(KVM_SET_CPUID2),
    REQUEST(KVM_SET_GSI_ROUTING),
};

static const char *
request_name(unsigned long request)
{
    for (unsigned i = 0; i < sizeof requests / sizeof *requests; i++) {
        if (requests[i].request == request)
            return requests[i].name;
    }
    return "?";
}

static void
arm(unsigned at, int err)
{
    calls = 0;
    fail_at = at;
    fail_with = err;
    failed = NULL;
}

/* Whether this call is the one that fails. */
static bool
fails(const char *name)
{
    if (!fail_at || ++calls != fail_at)
        return false;
    failed = name;
    errno = fail_with;
    return true;
}

int __real_ioctl(int fd, unsigned long request, void *arg);
int __wrap_ioctl(int fd, unsigned long request, void *arg);

int
__wrap_ioctl(int fd, unsigned long request, void *arg)
{
    if (request == KVM_CHECK_EXTENSION && no_cap &&
        (uintptr_t)arg == no_cap - 1)
        return 0;
    /* A question without an answer is a no, not a failure. */
    if (request != KVM_CHECK_EXTENSION && fails(request_name(request)))
        return -1;
    return __real_ioctl(fd, request, arg);
}

#define WRAP_MMAP(fn)                                                          \
    void *__real_##fn(void *at, size_t len, int prot, int flags, int fd,       \
                      off_t off);                                              \
    void *__wrap_##fn(void *at, size_t len, int prot, int flags, int fd,       \
                      off_t off);                                              \
    void *__wrap_##fn(void *at, size_t len, int prot, int flags, int fd,       \
                      off_t off)                                               \
    {                                                                          \
        if (fails("mmap"))                                                     \
            return MAP_FAILED;                                                 \
        return __real_##fn(at, len, prot, flags, fd, off);                     \
    }
WRAP_MMAP(mmap)
WRAP_MMAP(mmap64)

#define WRAP_OPEN(fn)                                                          \
    int __real_##fn(const char *path, int flags);                              \
    int __wrap_##fn(const char *path, int flags);                              \
    int __wrap_##fn(const char *path, int flags)                               \
    {                                                                          \
        return fails("open /dev/kvm") ? -1 : __real_##fn(path, flags);         \
    }
WRAP_OPEN(open)
WRAP_OPEN(open64)
WRAP_OPEN(__open_2)
WRAP_OPEN(__open64_2)

#define WRAP_FTRUNCATE(fn)                                                     \
    int __real_##fn(int fd, off_t len);                                        \
    int __wrap_##fn(int fd, off_t len);                                        \
    int __wrap_##fn(int fd, off_t len)                                         \
    {                                                                          \
        return fails("ftruncate") ? -1 : __real_##fn(fd, len);                 \
    }
WRAP_FTRUNCATE(ftruncate)
WRAP_FTRUNCATE(ftruncate64)

int __real_memfd_create(const char *name, unsigned flags);
int __wrap_memfd_create(const char *name, unsigned flags);

int
__wrap_memfd_create(const char *name, unsigned flags)
{
    return fails("memfd_create") ? -1 : __real_memfd_create(name, flags);
}

int __wrap_madvise(void *at, size_t len, int advice);

/* Always refused when it may be: hosts without huge pages do. */
int
__wrap_madvise(void *at, size_t len, int advice)
{
    (void)at;
    (void)len;
    (void)advice;
    return fails("madvise(MADV_HUGEPAGE)") ? -1 : 0;
}

static int allocated; /* by the core: calls of calloc less those of free */

void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);

void *
__wrap_calloc(size_t count, size_t size)
{
    if (fails("calloc"))
        return NULL;
    allocated++;
    return __real_calloc(count, size);
}

void __real_free(void *ptr);
void __wrap_free(void *ptr);

void
__wrap_free(void *ptr)
{
    allocated -= ptr != NULL;
    __real_free(ptr);
}

/* -- what is held ---------------------------------------------------------- */

struct holdings {
    int fds;
    int maps;
    int allocated;
};

static struct holdings
holdings(void)
{
    static char text[1 << 20]; /* reading must not take memory */
    struct holdings now = {.allocated = allocated};
    int fd;
    ssize_t len;

    for (fd = 0; fd < 1024; fd++)
        now.fds += fcntl(fd, F_GETFD) >= 0;
    fd = openat(AT_FDCWD, "/proc/self/maps", O_RDONLY | O_CLOEXEC);
    while ((len = read(fd, text, sizeof text)) > 0) {
        for (ssize_t i = 0; i < len; i++)
            now.maps += text[i] == '\n';
    }
    close(fd);
    return now;
}

static void
nothing_is_left(const struct holdings *before)
{
    struct holdings now = holdings();

    CHECK_EQ(now.fds, before->fds);
    CHECK_EQ(now.maps, before->maps);
    CHECK_EQ(now.allocated, before->allocated);
}

/* -- making a machine ------------------------------------------------------ */

#define PAGE VMM_PAGE_SIZE

static struct vmm_kvm kvm;
static struct vmm_mem mem;
static struct vmm_vm vm;
static struct vmm_vcpu cpus[2];
static const char *said; /* the call that was named */

static int
make_memory(void)
{
    int err = vmm_mem_add(&mem, 0, 16 * PAGE, 0);

    if (!err)
        err = vmm_mem_add(&mem, 0x100000, PAGE, VMM_MEM_SHARED);
    if (!err)
        err = vmm_mem_add(&mem, 0x200000, PAGE, VMM_MEM_HUGE);
    if (!err)
        err = vmm_mem_add(&mem, 0x300000, PAGE,
                          VMM_MEM_HUGE | VMM_MEM_SHARED | VMM_MEM_READONLY);
    said = mem.call;
    return err;
}

static int
make_vm(uint64_t tss_addr)
{
    int err = vmm_vm_init(&vm, &kvm, &mem, tss_addr);

    if (!err)
        err = vmm_vm_irqchip(&vm);
    if (!err)
        err = vmm_vm_pit(&vm);
    if (!err)
        err = vmm_vm_route_msi(&vm, 30, 0xfee00000, 0x40);
    said = vm.call;
    return err;
}

static int
make_vcpus(void)
{
    for (unsigned i = 0; i < 2; i++) {
        int err = vmm_vcpu_init(&cpus[i], &vm, 2);

        said = cpus[i].call;
        if (err)
            return err;
    }
    return 0;
}

static int
make_all(uint64_t tss_addr)
{
    int err;

    memset(&kvm, 0, sizeof kvm);
    memset(&vm, 0, sizeof vm);
    memset(cpus, 0, sizeof cpus);
    vmm_mem_init(&mem);
    err = vmm_kvm_init(&kvm);
    said = kvm.call;
    if (!err)
        err = make_memory();
    if (!err)
        err = make_vm(tss_addr);
    if (!err)
        err = make_vcpus();
    return err;
}

static void
unmake_all(void)
{
    for (unsigned i = 0; i < 2; i++)
        vmm_vcpu_fini(&cpus[i]);
    vmm_vm_fini(&vm);
    vmm_mem_fini(&mem);
    vmm_kvm_fini(&kvm);
}

/* Whether `said` names the call that failed. */
static void
is_named(void)
{
    if (!failed || !strcmp(failed, "calloc"))
        return; /* ENOMEM says it all */
    if (!strcmp(failed, "mmap") && said && !strcmp(said, "mmap of a vCPU"))
        return;
    CHECK(said != NULL);
    if (said && strcmp(said, failed)) {
        printf("# %s failed, %s was named\n", failed, said);
        CHECK(!"the right call is named");
    }
}

static void
each_call_fails(uint64_t tss_addr)
{
    static const int errors[] = {EINVAL, ENOMEM, EMFILE, EIO, ENOSPC, EPERM};
    struct holdings before;
    unsigned at;
    int err = 0;

    /* Once without: what libc keeps for ever is there then. */
    arm(0, 0);
    CHECK_EQ(make_all(tss_addr), 0);
    unmake_all();
    before = holdings();
    for (at = 1; at < 1000; at++) {
        for (unsigned i = 0; i < sizeof errors / sizeof *errors; i++) {
            arm(at, errors[i]);
            err = make_all(tss_addr);
            fail_at = 0;
            if (failed) {
                CHECK_EQ(err, strcmp(failed, "calloc") ? -errors[i] : -ENOMEM);
                is_named();
            }
            unmake_all();
            unmake_all(); /* safe twice */
            nothing_is_left(&before);
        }
        if (!failed)
            break;
    }
    CHECK_EQ(err, 0);
    CHECK(at > 20); /* every one of them was met */
    printf("# %u calls\n", at - 1);
}

static void
without_firmware(void)
{
    each_call_fails(VMM_TSS_ADDR);
}

static void
with_firmware(void)
{
    each_call_fails(VMM_TSS_ADDR_FIRMWARE);
}

/* EINTR is no refusal: an ioctl is made again. */
static void
interrupted_calls_are_made_again(void)
{
    unsigned at = 1, met = 0;

    do {
        arm(at++, EINTR);
        if (make_all(VMM_TSS_ADDR)) {
            CHECK(strncmp(failed, "KVM_", 4) != 0);
        } else if (failed) {
            CHECK(!strncmp(failed, "KVM_", 4));
            met++;
        }
        fail_at = 0;
        unmake_all();
    } while (failed);
    CHECK(met > 15);
}

/* What a kernel without one of the capabilities would say. */
static void
missing_capabilities_are_named(void)
{
    static const struct {
        unsigned long cap;
        const char *name;
    } caps[] = {
        {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
        {KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
        {KVM_CAP_IRQFD, "KVM_CAP_IRQFD"},
        {KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD"},
        {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
    };
    struct holdings before = holdings();

    for (unsigned i = 0; i < sizeof caps / sizeof *caps; i++) {
        no_cap = caps[i].cap + 1;
        CHECK_EQ(vmm_kvm_init(&kvm), -ENOTSUP);
        CHECK(!strcmp(kvm.call, caps[i].name));
        vmm_kvm_fini(&kvm);
        nothing_is_left(&before);
    }
    no_cap = 0;
}

/* Without KVM_CAP_SYNC_REGS and KVM_CAP_XSAVE2 each part is an ioctl. */
static void
optional_capabilities(void)
{
    struct kvm_regs regs = {0};
    struct kvm_sregs sregs;
    uint8_t xsave[4096];

    no_cap = KVM_CAP_SYNC_REGS + 1;
    CHECK_EQ(make_all(VMM_TSS_ADDR), 0);
    CHECK_EQ(kvm.sync_regs, 0);
    CHECK_EQ(vmm_vcpu_get_regs(&cpus[0], &regs), 0);
    regs.rax = 0x1234;
    CHECK_EQ(vmm_vcpu_set_regs(&cpus[0], &regs), 0);
    regs.rax = 0;
    CHECK_EQ(vmm_vcpu_get_regs(&cpus[0], &regs), 0);
    CHECK_EQ(regs.rax, 0x1234);
    CHECK_EQ(vmm_vcpu_get_sregs(&cpus[0], &sregs), 0);
    CHECK_EQ(vmm_vcpu_set_sregs(&cpus[0], &sregs), 0);
    unmake_all();
    no_cap = KVM_CAP_XSAVE2 + 1;
    CHECK_EQ(make_all(VMM_TSS_ADDR), 0);
    CHECK_EQ(kvm.xsave_size, 4096);
    CHECK_EQ(vmm_vcpu_get_xsave(&cpus[0], xsave), 0);
    CHECK_EQ(vmm_vcpu_set_xsave(&cpus[0], xsave), 0);
    unmake_all();
    no_cap = 0;
}

int
main(void)
{
    if (access("/dev/kvm", F_OK)) {
        printf("# no /dev/kvm here: nothing was tested\n");
        return 0;
    }
    RUN(without_firmware);
    RUN(with_firmware);
    RUN(interrupted_calls_are_made_again);
    RUN(missing_capabilities_are_named);
    RUN(optional_capabilities);
    return check_done();
}
