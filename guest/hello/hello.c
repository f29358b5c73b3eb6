/* SPDX-License-Identifier: 0BSD */
/* hello.c - the smallest guest */
#include <runtime.h>

int
main(void)
{
    puts("hello from a pyvmm guest");
    return 0;
}
