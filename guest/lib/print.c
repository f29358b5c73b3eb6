/* SPDX-License-Identifier: 0BSD */
/* print.c - formatted output without libgcc: no 64-bit division by operator */
#include <runtime.h>

struct spec {
    bool left;
    bool zero;
    unsigned width;
};

/* Divides *value by `base`, returns the remainder. */
static unsigned
divide(uint64_t *value, uint32_t base)
{
    uint32_t high = (uint32_t)(*value >> 32), low = (uint32_t)*value;
    uint32_t rest = high % base;

    high /= base;
    __asm__("divl %2" : "+a"(low), "+d"(rest) : "r"(base) : "cc");
    *value = (uint64_t)high << 32 | low;
    return rest;
}

static void
pad(char c, unsigned width, unsigned used)
{
    for (; used < width; used++)
        putchar(c);
}

static void
put_text(const char *s, unsigned len, const struct spec *spec)
{
    if (!spec->left)
        pad(' ', spec->width, len);
    for (unsigned i = 0; i < len; i++)
        putchar(s[i]);
    if (spec->left)
        pad(' ', spec->width, len);
}

static void
put_number(uint64_t value, uint32_t base, bool negative, bool upper,
           struct spec *spec)
{
    const char *digits = upper ? "0123456789ABCDEF" : "0123456789abcdef";
    char text[24];
    char *p = text + sizeof(text);

    do
        *--p = digits[divide(&value, base)];
    while (value);
    if (spec->zero && !spec->left) {
        if (negative) {
            putchar('-');
            spec->width -= spec->width != 0;
        }
        pad('0', spec->width, (unsigned)(text + sizeof(text) - p));
        spec->width = 0;
    } else if (negative) {
        *--p = '-';
    }
    put_text(p, (unsigned)(text + sizeof(text) - p), spec);
}

void
vprint(const char *format, va_list args)
{
    for (; *format; format++) {
        const char *start = format;
        struct spec spec = {false, false, 0};
        unsigned longs = 0;
        uint64_t value;
        char c;

        if (*format != '%') {
            putchar(*format);
            continue;
        }
        for (format++; *format == '0' || *format == '-'; format++) {
            spec.zero |= *format == '0';
            spec.left |= *format == '-';
        }
        if (*format == '*') {
            spec.width = va_arg(args, unsigned);
            format++;
        }
        for (; *format >= '0' && *format <= '9'; format++)
            spec.width = spec.width * 10 + (unsigned)(*format - '0');
        for (; *format == 'l' || *format == 'z' || *format == 'h'; format++)
            longs += *format == 'l'   ? 1
                     : *format == 'z' ? sizeof(size_t) / 8
                                      : 0;
        switch (*format) {
        case 'd':
        case 'i': {
            int64_t n;

            if (longs >= 2 || (longs && sizeof(long) == 8))
                n = va_arg(args, int64_t);
            else
                n = va_arg(args, int32_t);
            value = n < 0 ? -(uint64_t)n : (uint64_t)n;
            put_number(value, 10, n < 0, false, &spec);
            break;
        }
        case 'u':
        case 'x':
        case 'X':
            if (longs >= 2 || (longs && sizeof(long) == 8))
                value = va_arg(args, uint64_t);
            else
                value = va_arg(args, uint32_t);
            put_number(value, *format == 'u' ? 10 : 16, false, *format == 'X',
                       &spec);
            break;
        case 'p':
            print("0x");
            spec.zero = true;
            spec.width = 8;
            put_number((uintptr_t)va_arg(args, void *), 16, false, false,
                       &spec);
            break;
        case 's': {
            const char *s = va_arg(args, const char *);

            s = s ? s : "(null)";
            put_text(s, (unsigned)strlen(s), &spec);
            break;
        }
        case 'c':
            c = (char)va_arg(args, int);
            put_text(&c, 1, &spec);
            break;
        case '%':
            putchar('%');
            break;
        default:
            while (start < format)
                putchar(*start++);
            format--; /* print what stopped us in the usual way */
        }
    }
}

void
print(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vprint(format, args);
    va_end(args);
}
