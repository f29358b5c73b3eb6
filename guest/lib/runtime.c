/* SPDX-License-Identifier: 0BSD */
/* runtime.c - the way into main(), the ways out, and the command line */
#include <runtime.h>

#include "internal.h"

int main(const struct start_info *si, const char *cmdline);

const struct start_info *start_info;

static const char *command_line;
static char words[2048]; /* the command line with a NUL after each word */
static unsigned words_len;

void
runtime_start(uint32_t magic, uint32_t info, uint32_t cmdline)
{
    if (magic == START_INFO_MAGIC) {
        start_info = (const struct start_info *)(uintptr_t)info;
        command_line = cmdline ? (const char *)(uintptr_t)cmdline : "";
    } else if (magic == PVH_MAGIC) {
        console_width = 1;
        start_info = pvh_start_info(info, &command_line);
    } else {
        panic("started with eax 0x%08x, not by start_info", magic);
    }
    exit((uint32_t)main(start_info, command_line));
}

void
exit(uint32_t status)
{
    console_flush();
    outl(EXIT_PORT, status);
    for (;;) { /* the host let us go on: nothing can come after */
#ifdef __i386__
        __asm__ volatile("cli; hlt");
#else
        cpu_relax();
#endif
    }
}

void
panic(const char *format, ...)
{
    va_list args;

#ifdef __i386__
    __asm__ volatile("cli");
#endif
    va_start(args, format);
    print("panic: ");
    vprint(format, args);
    print("\n");
    va_end(args);
    exit(255);
}

static void
split_words(void)
{
    const char *s = command_line;

    while (words_len < sizeof(words) - 1 && *s)
        words[words_len++] = *s++;
    for (unsigned i = 0; i < words_len; i++)
        if (words[i] == ' ')
            words[i] = '\0';
    words_len++;
}

/* What follows `name` in a word that starts with it and goes on with `end`. */
static const char *
find_word(const char *name, char end)
{
    size_t len = strlen(name);

    if (!words_len)
        split_words();
    for (const char *w = words; w < words + words_len; w += strlen(w) + 1)
        if (!strncmp(w, name, len) && (w[len] == end || w[len] == '\0'))
            return w + len;
    return NULL;
}

const char *
arg(const char *name)
{
    const char *value = find_word(name, '=');

    return value && *value ? value + 1 : value;
}

static uint32_t
parse_number(const char **s)
{
    uint32_t base = 10, value = 0;

    if ((*s)[0] == '0' && (*s)[1] == 'x') {
        base = 16;
        *s += 2;
    }
    for (;; ++*s) {
        char c = **s;
        uint32_t digit;

        if (c >= '0' && c <= '9')
            digit = (uint32_t)(c - '0');
        else if (base == 16 && c >= 'a' && c <= 'f')
            digit = (uint32_t)(c - 'a') + 10;
        else if (base == 16 && c >= 'A' && c <= 'F')
            digit = (uint32_t)(c - 'A') + 10;
        else
            return value;
        value = value * base + digit;
    }
}

uint32_t
arg_number(const char *name, uint32_t otherwise)
{
    const char *s = arg(name);
    const char *end = s;
    uint32_t value;

    if (!s || !*s)
        return otherwise;
    value = parse_number(&end);
    if (end == s || *end)
        panic("%s=%s is not a number", name, s);
    return value;
}

bool
arg_device(const char *name, struct arg_device *out)
{
    const char *s = find_word(name, '@');

    if (!s || !*s)
        return false;
    s++;
    memset(out, 0, sizeof(*out));
    if (!strncmp(s, "port:", 5)) {
        out->port = true;
        s += 5;
    }
    out->base = parse_number(&s);
    if (*s == '+') {
        s++;
        out->size = parse_number(&s);
    }
    if (*s == ':') {
        s++;
        out->line = parse_number(&s);
    }
    return *s == '\0';
}
