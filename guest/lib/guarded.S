/* SPDX-License-Identifier: 0BSD */
/*
 * guarded.S - a call that can be left from anywhere inside
 *
 * void call_guarded(void (*run)(const void *), const void *param);
 * void leave_guarded(void);   returns from the call_guarded() that goes on
 */
    .bss
    .balign 8
guarded_stack:
    .skip 8

    .text
    .globl call_guarded
    .type call_guarded, @function
    .globl leave_guarded
    .type leave_guarded, @function

#ifdef __i386__

call_guarded:
    pushl %ebp
    movl %esp, %ebp
    pushl %ebx
    pushl %esi
    pushl %edi
    movl %esp, guarded_stack
    subl $8, %esp               /* 16-byte aligned at the call */
    pushl 12(%ebp)
    call *8(%ebp)
leave_guarded:
    movl guarded_stack, %esp
    popl %edi
    popl %esi
    popl %ebx
    popl %ebp
    ret

#else /* __x86_64__ */

call_guarded:
    pushq %rbp
    movq %rsp, %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    subq $8, %rsp               /* 16-byte aligned at the call */
    movq %rsp, guarded_stack
    movq %rdi, %rax
    movq %rsi, %rdi
    call *%rax
leave_guarded:
    movq guarded_stack, %rsp
    addq $8, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret

#endif
    .size call_guarded, . - call_guarded
    .size leave_guarded, . - leave_guarded

    .section .note.GNU-stack, "", @progbits
