/* SPDX-License-Identifier: 0BSD */
/*
 * start.S - the entries of the image
 *
 * _start      by start_info (see pyvmm/start_info.h)
 * pvh_start   by PVH: like start_info, but ebx points to PVH's information
 *             and there is no stack
 *
 * Both arrive in 32-bit protected mode. With -m32 we stay there, in ring 0;
 * with -m64 the rest of this file goes on to ring 3 of long mode. The loader
 * has zeroed .bss.
 */
#include <pyvmm/start_info.h>

#include "internal.h"

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18              /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long pvh_start

    .section .bss
    .balign 16
    .skip START_INFO_STACK_SIZE
pvh_stack_top:

    .text
    .code32
    .globl pvh_start
    .type pvh_start, @function
pvh_start:
    movl $PVH_MAGIC, %eax
    movl $pvh_stack_top, %esp
    jmp 1f
    .size pvh_start, . - pvh_start

    .globl _start
    .type _start, @function
_start:
1:  cld
    lgdt gdt_pointer

#ifdef __i386__

    ljmp $SELECTOR_CODE, $1f
1:  movl $SELECTOR_DATA, %edx
    movl %edx, %ds
    movl %edx, %es
    movl %edx, %ss
    movl %edx, %fs
    movl %edx, %gs
    lidt idt_pointer
    subl $4, %esp               /* 16-byte aligned at the call */
    pushl %ecx
    pushl %ebx
    pushl %eax
    call runtime_start
    .size _start, . - _start

    .data
    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    /* code */
    .quad 0x00cf93000000ffff    /* data */
gdt_end:

    .globl gdt_pointer
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt

#else /* __x86_64__ */

    /* edi, esi, r12 on arrival in long mode: magic, information, words */
    movl %eax, %edi
    movl %ebx, %esi
    movl %ecx, %ebp

    movl $0x20, %eax            /* PAE */
    movl %eax, %cr4
    movl $page_map, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      /* EFER: LME */
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax       /* PG */
    movl %eax, %cr0
    ljmp $SELECTOR_CODE, $2f

    .code64
2:  xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs
    movl $SELECTOR_DATA, %eax
    movl %eax, %ss

    /*
     * The TSS: the stack for exceptions, and an I/O bitmap of zeros. IOPL 3
     * opens the ports by itself on most hosts, the bitmap on the others.
     */
    movl $tss, %eax
    movw %ax, gdt_tss + 2
    shrl $16, %eax
    movb %al, gdt_tss + 4
    movb %ah, gdt_tss + 7
    movl $SELECTOR_TSS, %eax
    ltr %ax
    lidt idt_pointer

    movl %esp, %ecx             /* 16-byte aligned at the call */
    movl %ebp, %edx
    pushq $SELECTOR_USER_DATA
    pushq %rcx
    pushq $0x3002               /* IOPL 3 */
    pushq $SELECTOR_USER_CODE
    pushq $ring3
    iretq
    .size _start, . - _start

    .type ring3, @function
ring3:
    xorl %ebp, %ebp            /* the last frame */
    call runtime_start
    .size ring3, . - ring3

    .data
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    /* code, 64-bit */
    .quad 0x00cf93000000ffff    /* data */
    .quad 0, 0                  /* so that ring 3 has Linux's selectors */
    .quad 0x00cff3000000ffff    /* data, ring 3 */
    .quad 0x00affb000000ffff    /* code, 64-bit, ring 3 */
gdt_tss:
    .word tss_end - tss - 1, 0
    .byte 0, 0x89, 0, 0
    .quad 0
gdt_end:

gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
    .long 0

    .balign 16
tss:
    .long 0
    .quad exception_stack_top   /* rsp0 */
    .skip 102 - 12
    .word 104                   /* the I/O bitmap's offset */
    .skip 65536 / 8
    .byte 0xff
tss_end:

    .section .bss
    .balign 16
    .skip 8192
exception_stack_top:

    /*
     * The first 4 GiB at their own addresses, in pages of 2 MiB that ring 3
     * may use; the last GiB, where devices are, uncached.
     */
    .data
    .balign 4096
page_map:
    .quad page_pointers + 0x7
    .balign 4096
page_pointers:
    .quad page_directories + 0x0007
    .quad page_directories + 0x1007
    .quad page_directories + 0x2007
    .quad page_directories + 0x3007
    .balign 4096
page_directories:
    .set page, 0
    .rept 4 * 512
    .if page < 3 * 512
    .quad page * 0x200000 + 0x87
    .else
    .quad page * 0x200000 + 0x9f
    .endif
    .set page, page + 1
    .endr

#endif

    .section .note.GNU-stack, "", @progbits
