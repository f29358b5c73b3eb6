/* SPDX-License-Identifier: 0BSD */
/* host_call.c - calls between guest and host, the guest's side */
#include <runtime.h>

#include <host_call.h>

/* Bytes that are written or read one after the other; `bad` is for good. */
struct stream {
    uint8_t *at, *end;
    bool bad;
};

static void
put(struct stream *s, const void *data, uint32_t len)
{
    if (s->bad || (size_t)(s->end - s->at) < len) {
        s->bad = true;
        return;
    }
    memcpy(s->at, data, len);
    s->at += len;
}

static const uint8_t *
get(struct stream *s, uint32_t len)
{
    const uint8_t *data = s->at;

    if (s->bad || (size_t)(s->end - s->at) < len) {
        s->bad = true;
        return NULL;
    }
    s->at += len;
    return data;
}

static void
put_value(struct stream *s, const struct host_value *value)
{
    char type = value->type;

    if (type == 't' && !value->number)
        type = 'f';
    put(s, &type, 1);
    if (type == 'i' || type == 'd')
        put(s, &value->number, 8);
    if (type == 's' || type == 'b') {
        put(s, &value->len, 4);
        put(s, value->data, value->len);
    }
}

static struct host_value
get_value(struct stream *s)
{
    struct host_value value = {.type = 'n'};
    const uint8_t *data = get(s, 1);

    if (!data)
        return value;
    value.type = (char)*data;
    switch (value.type) {
    case 'i':
    case 'd':
        data = get(s, 8);
        if (data)
            memcpy(&value.number, data, 8);
        break;
    case 't':
    case 'f':
        value.number = value.type == 't';
        value.type = 't';
        break;
    case 's':
    case 'b':
        data = get(s, 4);
        if (data)
            memcpy(&value.len, data, 4);
        value.data = (const char *)get(s, value.len);
        break;
    case 'n':
        break;
    default:
        s->bad = true;
    }
    return value;
}

/* Offers an invite, with so many bytes of an answer before its room. */
static void
invite(struct host *host, unsigned i, uint32_t answer)
{
    struct virtio_buffer buffers[2] = {
        {host->invite[i].answer, answer},
        {host->invite[i].room, HOST_CALL_MAX},
    };
    int head =
        virtqueue_add(&host->invites, buffers + (answer == 0), answer != 0, 1);

    assert(head >= 0);
    host->of_head[head] = (uint8_t)i;
}

bool
host_init(struct host *host, const struct host_function *functions,
          unsigned count)
{
    host->functions = functions;
    host->count = count;
    if (!virtio_find(VIRTIO_ID_HOST_CALLS, 0, &host->dev) ||
        !virtio_start(&host->dev, VIRTIO_F_EVENT_IDX) ||
        !virtqueue_init(&host->calls, &host->dev, 0, 8, false) ||
        !virtqueue_init(&host->invites, &host->dev, 1, 2 * HOST_INVITES, false))
        return false;
    virtio_ready(&host->dev);
    for (unsigned i = 0; i < HOST_INVITES; i++)
        invite(host, i, 0);
    virtqueue_kick(&host->invites);
    return true;
}

static bool
refuse(struct host_value *result, const char *why)
{
    *result = host_text(why);
    return false;
}

bool
host_call(struct host *host, const char *name, const struct host_value *args,
          unsigned count, struct host_value *result)
{
    struct stream s = {host->call, host->call + HOST_CALL_MAX, false};
    uint32_t len = host_text(name).len, written;
    uint8_t byte = (uint8_t)len;
    struct virtio_buffer buffers[2];
    const uint8_t *status;

    put(&s, &byte, 1);
    put(&s, name, len);
    for (unsigned i = 0; i < count; i++)
        put_value(&s, &args[i]);
    if (s.bad || len > 255)
        return refuse(result, "the call is too long");
    buffers[0] =
        (struct virtio_buffer){host->call, (uint32_t)(s.at - host->call)};
    buffers[1] = (struct virtio_buffer){host->result, HOST_CALL_MAX};
    if (virtqueue_add(&host->calls, buffers, 1, 1) < 0)
        return refuse(result, "no descriptor is left");
    virtqueue_kick(&host->calls);
    if (virtqueue_wait(&host->calls, &written) < 0 || written > HOST_CALL_MAX)
        return refuse(result, "the device is broken");
    s = (struct stream){host->result, host->result + written, false};
    status = get(&s, 1);
    *result = get_value(&s);
    if (s.bad)
        return refuse(result, "the result makes no sense");
    return *status == 0;
}

/* Writes the answer to a call that came: number, then the result. */
static uint32_t
answer(struct host *host, struct host_invite *in, uint32_t len)
{
    struct stream s = {in->room, in->room + len, false};
    struct stream out = {in->answer, in->answer + HOST_CALL_MAX, false};
    struct host_value args[HOST_ARGS_MAX], result = {.type = 'n'};
    const uint8_t *number = get(&s, 4), *name_len = get(&s, 1), *name;
    bool good = refuse(&result, "the guest has no such function");
    unsigned count = 0;
    uint8_t status;

    name = name_len ? get(&s, *name_len) : NULL;
    while (!s.bad && s.at < s.end && count < HOST_ARGS_MAX)
        args[count++] = get_value(&s);
    if (!number)
        return 0;
    for (unsigned i = 0; !s.bad && name && i < host->count; i++) {
        const char *mine = host->functions[i].name;

        if (host_text(mine).len != *name_len || memcmp(mine, name, *name_len))
            continue;
        result = (struct host_value){.type = 'n'};
        good = host->functions[i].call(args, count, &result);
        break;
    }
    status = !good;
    put(&out, number, 4);
    put(&out, &status, 1);
    put_value(&out, &result);
    return out.bad ? 0 : (uint32_t)(out.at - in->answer);
}

unsigned
host_poll(struct host *host)
{
    uint32_t written;
    unsigned count = 0;
    int head;

    while ((head = virtqueue_take(&host->invites, &written)) >= 0) {
        unsigned i = host->of_head[head];

        if (written > HOST_CALL_MAX)
            written = HOST_CALL_MAX;
        invite(host, i, answer(host, &host->invite[i], written));
        count++;
    }
    if (count)
        virtqueue_kick(&host->invites);
    return count;
}
