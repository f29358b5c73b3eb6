/* SPDX-License-Identifier: Apache-2.0 */
/* kvm.c - opening /dev/kvm, its capabilities, and what refusals mean */
#include "kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static const struct {
    unsigned cap;
    const char *name;
} needed[] = {
    {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
    {KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},
    {KVM_CAP_SET_TSS_ADDR, "KVM_CAP_SET_TSS_ADDR"},
    {KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
    {KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING"},
    {KVM_CAP_IRQFD, "KVM_CAP_IRQFD"},
    {KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD"},
    {KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},
    {KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
    {KVM_CAP_DESTROY_MEMORY_REGION_WORKS,
     "KVM_CAP_DESTROY_MEMORY_REGION_WORKS"},
    {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
};

static const struct {
    const char *call;
    int err; /* 0: any */
    const char *hint;
} hints[] = {
    {"open /dev/kvm", ENOENT,
     "the kernel offers no KVM here: load kvm_intel or kvm_amd (modprobe), "
     "and enable virtualisation in the firmware or, inside a virtual machine, "
     "nested virtualisation"},
    {"open /dev/kvm", EACCES,
     "the device file is not for this user: join its group or run as root"},
    {"open /dev/kvm", EPERM,
     "the container or sandbox forbids it: pass the device in (for example "
     "--device /dev/kvm)"},
    {"open /dev/kvm", ENODEV, "the KVM module found no hardware support"},
    {"KVM_GET_API_VERSION", 0,
     "pyvmm speaks version 12 of the KVM API, which every kernel since 2.6.22 "
     "does: this is not KVM"},
    {"KVM_CREATE_VM", EMFILE,
     "this process has all the files open that it may: raise the limit "
     "(ulimit -n), a machine takes two and its devices more"},
    {"KVM_CREATE_VCPU", EMFILE,
     "this process has all the files open that it may: raise the limit "
     "(ulimit -n)"},
    {"timer_create", EAGAIN,
     "this user has too many signals pending or timers: raise the limit "
     "(ulimit -i)"},
    {"KVM_CREATE_VM", ENOMEM, "the host has no memory left for another VM"},
    {"KVM_CREATE_VM", EBUSY,
     "another hypervisor may own the virtualisation hardware"},
    {"KVM_SET_TSS_ADDR", EINVAL,
     "the three pages must lie below 4 GiB: 0xffffd000, or 0xfffbd000 under "
     "firmware"},
    {"KVM_SET_USER_MEMORY_REGION", EEXIST,
     "it overlaps another slot or a page that KVM itself owns (the APIC page "
     "at 0xfee00000, the TSS pages)"},
    {"KVM_SET_USER_MEMORY_REGION", EINVAL,
     "the slot number, address or size is not one that this host takes"},
    {"KVM_CREATE_IRQCHIP", EEXIST, "this VM has an interrupt controller"},
    {"KVM_CREATE_IRQCHIP", EINVAL,
     "the interrupt controller must be made before the first vCPU"},
    {"KVM_CREATE_PIT2", EEXIST, "this VM has a PIT"},
    {"KVM_CREATE_PIT2", ENOENT, "the PIT needs the interrupt controller first"},
    {"KVM_CREATE_VCPU", EEXIST, "a vCPU of this index exists"},
    {"KVM_CREATE_VCPU", EINVAL, "more vCPUs than the host allows"},
    {"KVM_IRQFD", EINVAL, "interrupts need the interrupt controller first"},
    {"KVM_IRQFD", EBUSY, "this eventfd serves another GSI already"},
    {"KVM_IOEVENTFD", EEXIST, "an ioeventfd is there already"},
    {"KVM_IRQ_LINE", ENXIO, "interrupts need the interrupt controller first"},
    {"KVM_SIGNAL_MSI", EINVAL,
     "interrupts need the interrupt controller first"},
    {"KVM_SET_GSI_ROUTING", ENXIO,
     "interrupts need the interrupt controller first"},
    {"KVM_RUN", EIO, "KVM objects do not survive fork()"},
    {"KVM_RUN", EFAULT,
     "the host could not provide a page of guest memory, or the guest "
     "executes from a place that is not RAM"},
};

int
vmm_kvm_ioctl(int fd, unsigned long request, void *arg, const char *name,
              const char **call)
{
    int ret;

    do
        ret = ioctl(fd, request, arg);
    while (ret < 0 && errno == EINTR);
    if (ret >= 0)
        return ret;
    *call = name;
    return -errno;
}

int
vmm_kvm_check(struct vmm_kvm *kvm, unsigned cap)
{
    int ret = ioctl(kvm->fd, KVM_CHECK_EXTENSION, (unsigned long)cap);

    return ret < 0 ? 0 : ret;
}

static int
check_needed(struct vmm_kvm *kvm)
{
    for (unsigned i = 0; i < sizeof needed / sizeof *needed; i++) {
        if (!vmm_kvm_check(kvm, needed[i].cap)) {
            kvm->call = needed[i].name;
            return -ENOTSUP;
        }
    }
    return 0;
}

static void
ask_sizes(struct vmm_kvm *kvm)
{
    int xsave = vmm_kvm_check(kvm, KVM_CAP_XSAVE2);

    kvm->xsave2 = xsave > 0;
    kvm->xsave_size = sizeof(struct kvm_xsave);
    if (xsave > (int)kvm->xsave_size)
        kvm->xsave_size = (size_t)xsave;
    kvm->sync_regs = (uint64_t)vmm_kvm_check(kvm, KVM_CAP_SYNC_REGS);
    kvm->max_vcpus = (unsigned)vmm_kvm_check(kvm, KVM_CAP_MAX_VCPUS);
    kvm->max_slots = (unsigned)vmm_kvm_check(kvm, KVM_CAP_NR_MEMSLOTS);
    kvm->ring_page = (unsigned)vmm_kvm_check(kvm, KVM_CAP_COALESCED_MMIO);
    kvm->ring_pio = vmm_kvm_check(kvm, KVM_CAP_COALESCED_PIO);
}

int
vmm_kvm_init(struct vmm_kvm *kvm)
{
    int ret;

    memset(kvm, 0, sizeof *kvm);
    kvm->call = "open /dev/kvm";
    kvm->fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm->fd < 0)
        return -errno;
    ret = vmm_kvm_ioctl(kvm->fd, KVM_GET_API_VERSION, NULL,
                        "KVM_GET_API_VERSION", &kvm->call);
    if (ret >= 0 && ret != KVM_API_VERSION) {
        kvm->call = "KVM_GET_API_VERSION";
        ret = -EPROTO;
    }
    if (ret < 0)
        goto fail;
    ret = check_needed(kvm);
    if (ret)
        goto fail;
    ask_sizes(kvm);
    ret = vmm_kvm_ioctl(kvm->fd, KVM_GET_VCPU_MMAP_SIZE, NULL,
                        "KVM_GET_VCPU_MMAP_SIZE", &kvm->call);
    if (ret < 0)
        goto fail;
    kvm->run_size = (size_t)ret;
    kvm->cpuid.nent = VMM_KVM_MAX_CPUID;
    ret = vmm_kvm_ioctl(kvm->fd, KVM_GET_SUPPORTED_CPUID, &kvm->cpuid,
                        "KVM_GET_SUPPORTED_CPUID", &kvm->call);
    if (ret < 0)
        goto fail;
    return 0;

fail:
    close(kvm->fd);
    kvm->fd = -1;
    return ret;
}

void
vmm_kvm_fini(struct vmm_kvm *kvm)
{
    if (kvm->run_size && kvm->fd >= 0)
        close(kvm->fd);
    kvm->fd = -1;
    kvm->run_size = 0;
}

int
vmm_kvm_msr_list(struct vmm_kvm *kvm, uint32_t *index, unsigned room)
{
    struct {
        uint32_t nmsrs;
        uint32_t index[VMM_KVM_MAX_MSRS];
    } list = {.nmsrs = VMM_KVM_MAX_MSRS}; /* like struct kvm_msr_list */
    int err = vmm_kvm_ioctl(kvm->fd, KVM_GET_MSR_INDEX_LIST, &list,
                            "KVM_GET_MSR_INDEX_LIST", &kvm->call);

    if (err)
        return err;
    memcpy(index, list.index, vmm_min(room, list.nmsrs) * sizeof *index);
    return (int)list.nmsrs;
}

const char *
vmm_kvm_hint(const char *call, int err)
{
    for (unsigned i = 0; i < sizeof hints / sizeof *hints; i++) {
        if (strcmp(hints[i].call, call))
            continue;
        if (!hints[i].err || hints[i].err == err)
            return hints[i].hint;
    }
    return NULL;
}
