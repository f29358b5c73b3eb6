/* SPDX-License-Identifier: 0BSD */
/* print.c - formatted output without libgcc: no 64-bit division by operator */
#include <runtime.h>

#define DIGITS_MAX 32 /* that zeros fill up to; 2^64 has 20 */

struct spec {
    bool left;
    bool zero;
    bool upper;
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
put_text(const char *s, unsigned len, const struct spec *spec)
{
    if (!spec->left)
        for (unsigned i = len; i < spec->width; i++)
            putchar(' ');
    console_write(s, len);
    if (spec->left)
        for (unsigned i = len; i < spec->width; i++)
            putchar(' ');
}

static void
put_number(uint64_t value, uint32_t base, bool negative,
           const struct spec *spec)
{
    char text[DIGITS_MAX + 1];
    char *end = text + sizeof(text), *p = end;
    unsigned zeros = spec->zero && !spec->left ? spec->width : 1;

    zeros -= negative && zeros > 1;
    if (zeros > DIGITS_MAX)
        zeros = DIGITS_MAX;
    while (value) {
        unsigned digit;

        if (base == 16) {
            digit = value & 15;
            value >>= 4;
        } else {
            digit = divide(&value, base);
        }
        *--p = (spec->upper ? "0123456789ABCDEF" : "0123456789abcdef")[digit];
    }
    while ((unsigned)(end - p) < zeros)
        *--p = '0';
    if (negative)
        *--p = '-';
    put_text(p, (unsigned)(end - p), spec);
}

void
vprint(const char *format, va_list args)
{
    for (; *format; format++) {
        const char *start = format;
        struct spec spec = {false, false, false, 0};
        unsigned longs = 0;
        uint64_t value;
        char c;

        if (*format != '%') {
            while (format[1] && format[1] != '%')
                format++;
            console_write(start, (size_t)(format + 1 - start));
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
            put_number(value, 10, n < 0, &spec);
            break;
        }
        case 'u':
        case 'x':
        case 'X':
            if (longs >= 2 || (longs && sizeof(long) == 8))
                value = va_arg(args, uint64_t);
            else
                value = va_arg(args, uint32_t);
            spec.upper = *format == 'X';
            put_number(value, *format == 'u' ? 10 : 16, false, &spec);
            break;
        case 'p':
            console_write("0x", 2);
            spec.zero = true;
            spec.width = 8;
            put_number((uintptr_t)va_arg(args, void *), 16, false, &spec);
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
            console_write(start, (size_t)(format - start));
            format--; /* what stopped us is printed in the usual way */
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
