/* SPDX-License-Identifier: 0BSD */
/*
 * string.c - memory and strings
 *
 * By string instructions where there is one: where a host interprets ring 0
 * they cost a fraction of a loop.
 */
#include <string.h>

void *
memcpy(void *restrict to, const void *restrict from, size_t len)
{
    void *d = to;

    __asm__ volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(len) : : "memory");
    return to;
}

void *
memmove(void *to, const void *from, size_t len)
{
    char *d = (char *)to + len;
    const char *s = (const char *)from + len;

    if ((size_t)((char *)to - (const char *)from) >= len)
        return memcpy(to, from, len);
    while (d != (char *)to) {
        *--d = *--s;
        __asm__ volatile("" : : : "memory"); /* or this becomes memmove() */
    }
    return to;
}

void *
memset(void *to, int byte, size_t len)
{
    void *d = to;

    __asm__ volatile("rep stosb" : "+D"(d), "+c"(len) : "a"(byte) : "memory");
    return to;
}

int
memcmp(const void *a, const void *b, size_t len)
{
    const unsigned char *p = a, *q = b;

    for (; len; p++, q++, len--)
        if (*p != *q)
            return *p - *q;
    return 0;
}

size_t
strlen(const char *s)
{
    const char *end = s;
    size_t left = (size_t)-1;

    __asm__ volatile("repne scasb"
                     : "+D"(end), "+c"(left)
                     : "a"(0)
                     : "cc", "memory");
    return (size_t)(end - s) - 1;
}

int
strcmp(const char *a, const char *b)
{
    for (; *a && *a == *b; a++, b++)
        ;
    return (unsigned char)*a - (unsigned char)*b;
}

int
strncmp(const char *a, const char *b, size_t len)
{
    for (; len && *a && *a == *b; a++, b++, len--)
        ;
    return len ? (unsigned char)*a - (unsigned char)*b : 0;
}

char *
strstr(const char *s, const char *word)
{
    size_t len = strlen(word);

    for (;; s++) {
        if (!strncmp(s, word, len))
            return (char *)s;
        if (!*s)
            return NULL;
    }
}
