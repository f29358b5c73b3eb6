/* SPDX-License-Identifier: 0BSD */
/*
 * host-call.c - calls functions of the host's and lets it call some
 *
 * It calls `add(a, b)`, `greet(name)` and `missing()`, prints what they give,
 * then answers `double(n)` and `name()` until `stop()` is called.
 */
#include <runtime.h>

#include <host_call.h>

static struct host host;
static bool stopped;

static bool
double_it(const struct host_value *args, unsigned count,
          struct host_value *result)
{
    if (count != 1 || args[0].type != 'i') {
        *result = host_text("double takes an int");
        return false;
    }
    *result = host_int(2 * args[0].number);
    return true;
}

static bool
name(const struct host_value *args, unsigned count, struct host_value *result)
{
    (void)args;
    (void)count;
    *result = host_text("guest");
    return true;
}

static bool
stop(const struct host_value *args, unsigned count, struct host_value *result)
{
    (void)args;
    (void)count;
    (void)result;
    stopped = true;
    return true;
}

static const struct host_function functions[] = {
    {"double", double_it},
    {"name", name},
    {"stop", stop},
};

static void
show(const char *what, bool good, const struct host_value *value)
{
    print("%s: %s", what, good ? "" : "refused: ");
    if (value->type == 's')
        console_write(value->data, value->len);
    else
        print("%ld", (long)value->number);
    puts("");
}

int
main(void)
{
    struct host_value result;
    bool good;

    if (!host_init(&host, functions, sizeof functions / sizeof *functions)) {
        puts("host-call: no such device in the device map");
        return 1;
    }
    good =
        host_call(&host, "add",
                  (struct host_value[]){host_int(40), host_int(2)}, 2, &result);
    show("add", good, &result);
    good = host_call(&host, "greet", (struct host_value[]){host_text("you")}, 1,
                     &result);
    show("greet", good, &result);
    good = host_call(&host, "missing", NULL, 0, &result);
    show("missing", good, &result);
    puts("serving");
    while (!stopped)
        host_poll(&host);
    return 0;
}
