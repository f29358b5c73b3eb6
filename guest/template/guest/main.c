/* SPDX-License-Identifier: 0BSD */
/*
 * main.c - a kernel with a console: `gcd 84 36`, `quit`
 *
 * What it may use is in the headers of the guest SDK: runtime.h (console,
 * arguments, panic), interrupt.h, virtio.h and the drivers. `python -c "import
 * pyvmm.guest; print(pyvmm.guest.INCLUDE)"` says where they are.
 */
#include <runtime.h>

#include "kernel.h"

#define LINE_MAX  80
#define WORDS_MAX 4

static void
read_line(char *line)
{
    unsigned len = 0;
    char c;

    while ((c = getchar()) != '\n')
        if (len < LINE_MAX - 1)
            line[len++] = c;
    line[len] = '\0';
}

static unsigned
split(char *line, const char **words)
{
    unsigned count = 0;

    while (count < WORDS_MAX) {
        while (*line == ' ')
            *line++ = '\0';
        if (!*line)
            break;
        words[count++] = line;
        while (*line && *line != ' ')
            line++;
    }
    return count;
}

int
main(void)
{
    char line[LINE_MAX];
    const char *words[WORDS_MAX];
    uint32_t a, b;

    for (;;) {
        unsigned count;

        print("> ");
        read_line(line);
        count = split(line, words);
        if (count == 1 && !strcmp(words[0], "quit"))
            return 0;
        if (count == 3 && !strcmp(words[0], "gcd") &&
            parse_number(words[1], &a) && parse_number(words[2], &b))
            print("%u\n", gcd(a, b));
        else
            puts("what?");
    }
}
