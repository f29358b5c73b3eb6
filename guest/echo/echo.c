/* SPDX-License-Identifier: 0BSD */
/* echo.c - echoes lines of console input until one of them is "quit" */
#include <runtime.h>

static void
read_line(char *line, size_t size)
{
    size_t len = 0;
    char c;

    while ((c = getchar()) != '\n')
        if (c != '\r' && len < size - 1) /* what is too long is cut off */
            line[len++] = c;
    line[len] = '\0';
}

int
main(void)
{
    static char line[256];

    for (;;) {
        print("> ");
        read_line(line, sizeof(line));
        if (!strcmp(line, "quit"))
            return 0;
        puts(line);
    }
}
