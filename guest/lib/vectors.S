/* SPDX-License-Identifier: 0BSD */
/*
 * vectors.S - the IDT, made by the assembler and the linker, and its stubs
 *
 * Each stub takes 16 bytes; link.ld puts the 256 of them on a 4 KiB boundary
 * and splits their address into stubs_low and stubs_high, so that the table
 * costs nothing at run time.
 */
#include "internal.h"

    .section .text.stubs, "ax", @progbits
    .globl interrupt_stubs
interrupt_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || \
          vector == 21 || vector == 29 || vector == 30)
    push $0                     /* where the CPU pushes no error code */
    .endif
    push $vector
    jmp interrupt_entry
    .set vector, vector + 1
    .endr

    .text
    .cfi_sections .debug_frame  /* for the host's backtraces */
    .type interrupt_entry, @function
interrupt_entry:
    .cfi_startproc simple

#ifdef __i386__

    pushal
    cld
    movl %esp, %eax
    pushl 40(%eax)              /* a frame of its own, whose return address */
    pushl %ebp                  /* is eip: who walks the stack gets from the */
    movl %esp, %ebp             /* handler to the code that was interrupted */
    .cfi_def_cfa %ebp, 60
    .cfi_offset %ebp, -60
    .cfi_offset %eip, -56
    pushl %eax
    call interrupt_dispatch
    addl $12, %esp
    popal
    addl $8, %esp               /* vector and error code */

    /*
     * The way back without iret, which not every host emulates in 32-bit
     * code: now (esp) is eip, then cs, then eflags. When interrupts were on
     * they come on by sti, which holds them off for one more instruction,
     * and so none arrives before lret has left this stack frame.
     */
    testl $0x200, 8(%esp)
    jz 1f
    andl $~0x200, 8(%esp)
    pushl 8(%esp)
    popfl
    sti
    lret $4
1:  pushl 8(%esp)
    popfl
    lret $4
    .cfi_endproc
    .size interrupt_entry, . - interrupt_entry

#else /* __x86_64__ */

    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    pushq 136(%rdi)             /* a frame, as in 32-bit code: rip */
    pushq %rbp
    movq %rsp, %rbp
    .cfi_def_cfa %rbp, 16
    .cfi_offset %rbp, -16
    .cfi_offset %rip, -8
    .cfi_offset %rsp, 160
    call interrupt_dispatch     /* 24 words were pushed: 16-byte aligned */
    addq $16, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq
    .cfi_endproc
    .size interrupt_entry, . - interrupt_entry

#endif

    .section .rodata
    .balign 16
idt:
    .set vector, 0
    .rept 256
    .word stubs_low + 16 * vector
    .word SELECTOR_CODE
    .word 0x8e00                /* present, interrupt gate */
    .word stubs_high
#ifdef __x86_64__
    .quad 0
#endif
    .set vector, vector + 1
    .endr
idt_end:

    .globl idt_pointer
idt_pointer:
    .word idt_end - idt - 1
    .long idt
    .long 0

    .section .note.GNU-stack, "", @progbits
