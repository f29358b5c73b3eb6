/* SPDX-License-Identifier: 0BSD */
/* ap.S - where a vCPU begins that another one starts: smp.c copies it */
#include "internal.h"

#ifdef __i386__

    .section .rodata
    .globl ap_begin, ap_end, ap_gdt
    .code16
ap_begin:
    cli
    movw %cs, %ax               /* the page that the SIPI names */
    movw %ax, %ds
    lgdtl ap_gdt - ap_begin
    movl %cr0, %eax
    andl $~0x60000000, %eax     /* INIT leaves the cache off: CD, NW */
    orb $1, %al                 /* PE */
    movl %eax, %cr0
    ljmpl $SELECTOR_CODE, $ap_protected
    .balign 4
ap_gdt:
    .skip 6                     /* what gdt_pointer says */
ap_end:

    .text
    .code32
    .type ap_protected, @function
ap_protected:
    movl $SELECTOR_DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    lidt idt_pointer
    movl ap_stack, %esp
    call ap_main
    .size ap_protected, . - ap_protected

#endif

    .section .note.GNU-stack, "", @progbits
