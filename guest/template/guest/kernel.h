/* SPDX-License-Identifier: 0BSD */
/* kernel.h - what the kernel can do, without its console */
#ifndef KERNEL_H
#define KERNEL_H

#include <stdbool.h>
#include <stdint.h>

/* Reads a decimal number; false: `text` is none, or above 4294967295. */
bool parse_number(const char *text, uint32_t *out);

/* The greatest number that divides both; gcd(n, 0) is n. */
uint32_t gcd(uint32_t a, uint32_t b);

#endif
