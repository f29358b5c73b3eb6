/* SPDX-License-Identifier: 0BSD */
/*
 * vconsole.c - talks to a virtio-console, and says on the console port how
 *
 * ports=N         take at most N ports (1), at most 4
 * early=WORD      first write this by the emergency register
 * hello=WORD      write this to the console, when all is ready
 * burst=N         then N bytes of a pattern, `step` (256) at a time
 * late=WORD       and this by the emergency register
 * open            open the ports that are no consoles, as they come
 * resizes=N       end after N changes of size
 * echo            send back what comes, each port by itself, in upper case,
 *                 until a full stop comes on some port
 */
#include <runtime.h>

#include <interrupt.h>
#include <vconsole.h>

#define STEP_MAX 4096

static struct vconsole con;
static unsigned resizes;
static bool opens;

static int
fail(const char *why)
{
    print("vconsole: %s\n", why);
    return 1;
}

static void
write_emergency(const struct virtio_device *dev, const char *word)
{
    for (; word && *word; word++)
        vconsole_emergency(dev, *word);
}

static void
told(struct vconsole *c, unsigned n, unsigned event)
{
    struct vconsole_port *port = &c->port[n];

    switch (event) {
    case VIRTIO_CONSOLE_PORT_ADD:
        print("port %u added\n", n);
        break;
    case VIRTIO_CONSOLE_PORT_REMOVE:
        print("port %u removed\n", n);
        break;
    case VIRTIO_CONSOLE_CONSOLE_PORT:
        print("port %u is a console\n", n);
        break;
    case VIRTIO_CONSOLE_RESIZE:
        resizes++;
        print("port %u has %u columns, %u rows\n", n, port->cols, port->rows);
        break;
    case VIRTIO_CONSOLE_PORT_OPEN:
        print("port %u %s\n", n, port->host_open ? "connected" : "alone");
        break;
    case VIRTIO_CONSOLE_PORT_NAME:
        print("port %u is %s\n", n, port->name);
        if (opens && vconsole_set_open(c, n, true) < 0)
            panic("the device is broken");
        break;
    }
}

static int
burst(unsigned total, unsigned step)
{
    static unsigned char data[STEP_MAX + 256];

    for (unsigned i = 0; i < sizeof(data); i++)
        data[i] = (unsigned char)i;
    for (unsigned done = 0; done < total; done += step) {
        if (step > total - done)
            step = total - done;
        if (vconsole_write(&con, 0, data + done % 256, step) < 0)
            return -1;
    }
    return 0;
}

/* Echoes what has come; -1 on a full stop or an error. */
static int
echo(unsigned n)
{
    unsigned char data[VCONSOLE_BUFFER];
    uint32_t len;
    bool stop = false;

    while ((len = vconsole_read(&con, n, data, sizeof(data)))) {
        for (uint32_t i = 0; i < len; i++) {
            stop |= data[i] == '.';
            if (data[i] >= 'a' && data[i] <= 'z')
                data[i] &= (unsigned char)~0x20;
        }
        if (vconsole_write(&con, n, data, len) < 0)
            return -1;
    }
    return stop ? -1 : 0;
}

int
main(void)
{
    const char *hello = arg("hello"), *problem;
    unsigned ports = arg_number("ports", 1), step = arg_number("step", 256);
    unsigned wanted = arg_number("resizes", 0);
    bool echoes = arg("echo") != NULL, over = false;

    if (ports == 0 || ports > VCONSOLE_PORTS_MAX)
        return fail("ports is 1 to 4");
    if (step == 0 || step > STEP_MAX)
        return fail("step is 1 to 4096");
    if (!virtio_find(VIRTIO_ID_CONSOLE, 0, &con.dev))
        return fail("no virtio-console in the device map");
    write_emergency(&con.dev, arg("early"));
    opens = arg("open") != NULL;
    con.told = told;
    problem = vconsole_open(&con, ports);
    if (problem)
        return fail(problem);
    print("%u ports, %u columns, %u rows\n", con.ports, con.port[0].cols,
          con.port[0].rows);
    if (hello && vconsole_write(&con, 0, hello, (uint32_t)strlen(hello)) < 0)
        return fail("the device is broken");
    if (burst(arg_number("burst", 0), step) < 0)
        return fail("the device is broken");
    write_emergency(&con.dev, arg("late"));

    for (vconsole_service(&con);; vconsole_wait(&con)) {
        for (unsigned n = 0; n < con.ports && echoes; n++)
            over |= echo(n) < 0;
        if ((over || !echoes) && resizes >= wanted)
            break;
    }
    while ((hello || echoes) && !con.interrupts) /* a fast host: it is due */
        irq_wait();
    print("interrupts: %s\n", con.interrupts ? "some" : "none");
    return 0;
}
