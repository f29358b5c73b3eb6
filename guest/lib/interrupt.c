/* SPDX-License-Identifier: 0BSD */
/* interrupt.c - dispatch of vectors; the IOAPIC and the local APIC */
#include <runtime.h>

#include <interrupt.h>

#define EXCEPTIONS 32

static void (*handlers[256])(struct interrupt_frame *);

static const char *const exception_names[EXCEPTIONS] = {
    [0] = "divide error",
    [1] = "debug",
    [2] = "NMI",
    [3] = "breakpoint",
    [4] = "overflow",
    [5] = "bound range exceeded",
    [6] = "invalid opcode",
    [7] = "device not available",
    [8] = "double fault",
    [10] = "invalid TSS",
    [11] = "segment not present",
    [12] = "stack fault",
    [13] = "general protection",
    [14] = "page fault",
    [16] = "x87 error",
    [17] = "alignment check",
    [18] = "machine check",
    [19] = "SIMD error",
};

void
interrupt_handler(unsigned vector, void (*handler)(struct interrupt_frame *))
{
    assert(vector < 256);
    handlers[vector] = handler;
}

void interrupt_dispatch(struct interrupt_frame *frame);

void
interrupt_dispatch(struct interrupt_frame *frame)
{
    const char *name = "interrupt";

    if (handlers[frame->vector]) {
        handlers[frame->vector](frame);
        return;
    }
    if (frame->vector < EXCEPTIONS)
        name = exception_names[frame->vector];
    panic("vector %u (%s), error 0x%x, ip 0x%08x", (unsigned)frame->vector,
          name ? name : "reserved", (unsigned)frame->error,
          (unsigned)frame->ip);
}

#ifdef __i386__

#define LINES           24
#define LINE_VECTOR     0x30
#define SPURIOUS_VECTOR 0xff

#define IOAPIC_INDEX    0x00
#define IOAPIC_DATA     0x10
#define IOAPIC_ENTRY(n) (0x10 + 2 * (n)) /* and the high half after it */
#define IOAPIC_MASKED   0x10000

#define LAPIC_BASE     0xfee00000
#define LAPIC_ID       0x20
#define LAPIC_EOI      0xb0
#define LAPIC_SPURIOUS 0xf0
#define LAPIC_ENABLED  0x100
#define LAPIC_LINT0    0x350
#define LAPIC_MASKED   0x10000

static struct {
    void (*handler)(void *data);
    void *data;
} lines[LINES];

static bool controllers_ready;

static void
ioapic_write(uint32_t reg, uint32_t value)
{
    write32(start_info->ioapic_base + IOAPIC_INDEX, reg);
    write32(start_info->ioapic_base + IOAPIC_DATA, value);
}

static void
handle_line(struct interrupt_frame *frame)
{
    unsigned line = (unsigned)frame->vector - LINE_VECTOR;

    write32(LAPIC_BASE + LAPIC_EOI, 0);
    if (lines[line].handler)
        lines[line].handler(lines[line].data);
}

/* A spurious interrupt: no EOI, nothing to do. */
static void
handle_spurious(struct interrupt_frame *frame)
{
    (void)frame;
}

bool
irq_request(unsigned line, void (*handler)(void *data), void *data)
{
    if (!start_info->ioapic_base || line == 0 || line >= LINES)
        return false;
    if (!controllers_ready) {
        /* Lines below 16 also reach the PIC, which enters by LINT0. */
        write32(LAPIC_BASE + LAPIC_LINT0, LAPIC_MASKED);
        handlers[SPURIOUS_VECTOR] = handle_spurious;
        write32(LAPIC_BASE + LAPIC_SPURIOUS, LAPIC_ENABLED | SPURIOUS_VECTOR);
        controllers_ready = true;
    }
    lines[line].handler = handler;
    lines[line].data = data;
    handlers[LINE_VECTOR + line] = handle_line;
    /* Fixed delivery, edge, active high, to this CPU alone. */
    ioapic_write(IOAPIC_ENTRY(line) + 1,
                 read32(LAPIC_BASE + LAPIC_ID) & 0xff000000);
    ioapic_write(IOAPIC_ENTRY(line), LINE_VECTOR + line);
    return true;
}

void
irq_release(unsigned line)
{
    assert(line < LINES && lines[line].handler);
    ioapic_write(IOAPIC_ENTRY(line), IOAPIC_MASKED);
    lines[line].handler = NULL;
}

void
irq_wait(void)
{
    console_flush();
    /* sti opens only after hlt has begun: no wake-up falls in between. */
    __asm__ volatile("sti; hlt; cli" : : : "memory");
}

#endif
