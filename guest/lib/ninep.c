/* SPDX-License-Identifier: 0BSD */
/* ninep.c - virtio-9p: messages put together, sent, and taken apart */
#include <runtime.h>

#include <interrupt.h>
#include <ninep.h>

#define MOUNT_TAG   (1ULL << 0)
#define CONFIG      0x100 /* tag_len[2] tag[tag_len] */
#define DEVICES_MAX 16

#define HEADER     7  /* size[4] type[1] tag[2] */
#define DATA_READ  11 /* in front of the data of an Rread */
#define DATA_WRITE 23
#define NO_FID     0xffffffffU
#define NAMES_MAX  16 /* of one walk */
#define ENTRY      24 /* of a directory, without its name */
#define ERROR_MAX  4095

enum {
    RLERROR = 7,
    TLOPEN = 12,
    TLCREATE = 14,
    TSYMLINK = 16,
    TREADLINK = 22,
    TGETATTR = 24,
    TREADDIR = 40,
    TMKDIR = 72,
    TRENAMEAT = 74,
    TUNLINKAT = 76,
    TVERSION = 100,
    TATTACH = 104,
    TWALK = 110,
    TREAD = 116,
    TWRITE = 118,
    TCLUNK = 120,
};

/* -- fields ---------------------------------------------------------------- */

static void
put(struct ninep *p9, const void *data, uint32_t len)
{
    if (len > NINEP_MESSAGE - p9->out) {
        p9->overrun = true;
        return;
    }
    memcpy(p9->request + p9->out, data, len);
    p9->out += len;
}

/* Numbers are little endian, as they are here. */
static void
put32(struct ninep *p9, uint32_t value)
{
    put(p9, &value, sizeof(value));
}

static void
put64(struct ninep *p9, uint64_t value)
{
    put(p9, &value, sizeof(value));
}

static void
put_name(struct ninep *p9, const char *name, size_t len)
{
    uint16_t size = (uint16_t)len;

    put(p9, &size, sizeof(size));
    put(p9, name, size);
}

static void
put_string(struct ninep *p9, const char *s)
{
    put_name(p9, s, strlen(s));
}

static uint64_t
get(struct ninep *p9, uint32_t len)
{
    uint64_t value = 0;

    if (len > p9->end - p9->in) {
        p9->overrun = true;
        return 0;
    }
    memcpy(&value, p9->reply + p9->in, len);
    p9->in += len;
    return value;
}

/* -- requests -------------------------------------------------------------- */

static void
begin(struct ninep *p9, uint8_t type)
{
    static const uint16_t tag = 1; /* there is never another one */

    p9->out = 0;
    p9->overrun = false;
    put32(p9, 0);
    put(p9, &type, sizeof(type));
    put(p9, &tag, sizeof(tag));
}

/*
 * Sends the request, with `data_out` bytes behind it that are elsewhere, and
 * waits. The answer's first `head` bytes come into p9->reply, the rest into
 * `data_in`. The lengths of both may be 0.
 */
static int
send(struct ninep *p9, const void *data_out, uint32_t len_out, uint32_t head,
     void *data_in, uint32_t len_in)
{
    uint32_t size = p9->out + len_out, written;
    struct virtio_buffer buffers[4];
    unsigned readable = 0, writable = 0;
    uint8_t type = p9->request[4];

    if (p9->overrun || size > p9->msize)
        return NINEP_BROKEN;
    memcpy(p9->request, &size, sizeof(size));
    buffers[readable++] = (struct virtio_buffer){p9->request, p9->out};
    if (len_out)
        buffers[readable++] =
            (struct virtio_buffer){(void *)(uintptr_t)data_out, len_out};
    buffers[readable + writable++] = (struct virtio_buffer){p9->reply, head};
    if (len_in)
        buffers[readable + writable++] =
            (struct virtio_buffer){data_in, len_in};
    if (virtqueue_add(&p9->vq, buffers, readable, writable) < 0)
        return NINEP_BROKEN;
    virtqueue_kick(&p9->vq);
    if (virtqueue_wait(&p9->vq, &written) < 0 || written > head + len_in)
        return NINEP_BROKEN;

    p9->in = 0;
    p9->end = written < head ? written : head;
    if (get(p9, 4) != written || written < HEADER)
        return NINEP_BROKEN;
    if (get(p9, 1) == RLERROR) {
        get(p9, 2);
        size = (uint32_t)get(p9, 4);
        return size && size <= ERROR_MAX ? (int)size : NINEP_BROKEN;
    }
    if (p9->reply[4] != type + 1 || get(p9, 2) != 1)
        return NINEP_BROKEN;
    return 0;
}

static int
ask(struct ninep *p9)
{
    uint32_t room = p9->msize < NINEP_MESSAGE ? p9->msize : NINEP_MESSAGE;

    return send(p9, NULL, 0, room, NULL, 0);
}

/* What was taken from the answer was there. */
static int
done(struct ninep *p9)
{
    return p9->overrun ? NINEP_BROKEN : 0;
}

/* -- the session ----------------------------------------------------------- */

static void
handle_interrupt(void *data)
{
    struct ninep *p9 = data;

    virtio_interrupt(&p9->dev);
    p9->interrupts++;
}

static bool
has_tag(const struct virtio_device *dev, const char *tag)
{
    uint32_t len = read16(dev->base + CONFIG);

    if (len != strlen(tag))
        return false;
    for (uint32_t i = 0; i < len; i++)
        if (read8(dev->base + CONFIG + 2 + i) != (uint8_t)tag[i])
            return false;
    return true;
}

static bool
find(struct virtio_device *dev, const char *tag)
{
    for (unsigned i = 0; i < DEVICES_MAX; i++) {
        if (!virtio_find(VIRTIO_ID_9P, i, dev))
            return false;
        if (!tag || has_tag(dev, tag))
            return true;
    }
    return false;
}

static int
start_session(struct ninep *p9, uint32_t msize)
{
    int err;

    p9->msize = msize;
    begin(p9, TVERSION);
    put32(p9, msize);
    put_string(p9, "9P2000.L");
    err = ask(p9);
    if (err)
        return err;
    p9->msize = (uint32_t)get(p9, 4);
    if (get(p9, 2) != 8 || p9->msize > msize || p9->end - p9->in < 8 ||
        memcmp(p9->reply + p9->in, "9P2000.L", 8))
        return NINEP_BROKEN;

    begin(p9, TATTACH);
    put32(p9, 0);
    put32(p9, NO_FID);
    put_string(p9, "guest");
    put_string(p9, "");
    put32(p9, 0);
    return ask(p9);
}

const char *
ninep_open(struct ninep *p9, const char *tag, uint32_t msize, bool interrupts)
{
    if (!find(&p9->dev, tag))
        return "no virtio-9p with that tag in the device map";
    if (!virtio_start(&p9->dev, VIRTIO_F_EVENT_IDX | MOUNT_TAG))
        return "the device refused the features";
    if (!virtqueue_init(&p9->vq, &p9->dev, 0, VIRTQUEUE_MAX, interrupts))
        return "the device has no queue";
    p9->interrupts = 0;
    if (interrupts && !irq_request(p9->dev.line, handle_interrupt, p9))
        return "no interrupt of the device can be taken";
    virtio_ready(&p9->dev);
    if (start_session(p9, msize))
        return "the device does not speak 9P2000.L";
    return NULL;
}

int
ninep_clunk(struct ninep *p9, uint32_t fid)
{
    begin(p9, TCLUNK);
    put32(p9, fid);
    return ask(p9);
}

/* The next name of a path, and how long it is; moves *path behind it. */
static const char *
next_name(const char **path, size_t *len)
{
    const char *name;

    while (**path == '/')
        ++*path;
    name = *path;
    while (**path && **path != '/')
        ++*path;
    *len = (size_t)(*path - name);
    return *len ? name : NULL;
}

/* From `from` to `to`, the next NAMES_MAX names at most. */
static int
walk_some(struct ninep *p9, uint32_t from, uint32_t to, const char **path)
{
    uint16_t count = 0;
    const char *name;
    uint32_t at;
    size_t len;
    int err;

    begin(p9, TWALK);
    put32(p9, from);
    put32(p9, to);
    at = p9->out;
    put(p9, &count, sizeof(count));
    while (count < NAMES_MAX && (name = next_name(path, &len))) {
        put_name(p9, name, len);
        count++;
    }
    memcpy(p9->request + at, &count, sizeof(count));
    err = ask(p9);
    if (err)
        return err;
    return get(p9, 2) == count ? done(p9) : 2; /* ENOENT */
}

int
ninep_walk(struct ninep *p9, uint32_t to, const char *path)
{
    int err = walk_some(p9, 0, to, &path);

    if (err)
        return err;
    while (*path) {
        err = walk_some(p9, to, to, &path);
        if (err) {
            ninep_clunk(p9, to);
            return err;
        }
    }
    return 0;
}

int
ninep_getattr(struct ninep *p9, uint32_t fid, struct ninep_attr *out)
{
    int err;

    begin(p9, TGETATTR);
    put32(p9, fid);
    put64(p9, 0x7ff);
    err = ask(p9);
    if (err)
        return err;
    get(p9, 8); /* valid */
    get(p9, 5); /* of the qid, type and version */
    out->inode = get(p9, 8);
    out->mode = (uint32_t)get(p9, 4);
    out->uid = (uint32_t)get(p9, 4);
    out->gid = (uint32_t)get(p9, 4);
    out->nlink = get(p9, 8);
    get(p9, 8); /* rdev */
    out->size = get(p9, 8);
    return done(p9);
}

int
ninep_readlink(struct ninep *p9, uint32_t fid, char *buf, uint32_t size)
{
    uint32_t len;
    int err;

    begin(p9, TREADLINK);
    put32(p9, fid);
    err = ask(p9);
    if (err)
        return err;
    len = (uint32_t)get(p9, 2);
    if (len >= size || len > p9->end - p9->in)
        return NINEP_BROKEN;
    memcpy(buf, p9->reply + p9->in, len);
    buf[len] = '\0';
    return done(p9);
}

/* -- directories ----------------------------------------------------------- */

int
ninep_mkdir(struct ninep *p9, uint32_t fid, const char *name, uint32_t mode)
{
    begin(p9, TMKDIR);
    put32(p9, fid);
    put_string(p9, name);
    put32(p9, mode);
    put32(p9, 0);
    return ask(p9);
}

int
ninep_symlink(struct ninep *p9, uint32_t fid, const char *name,
              const char *target)
{
    begin(p9, TSYMLINK);
    put32(p9, fid);
    put_string(p9, name);
    put_string(p9, target);
    put32(p9, 0);
    return ask(p9);
}

int
ninep_rename(struct ninep *p9, uint32_t fid, const char *name, uint32_t into,
             const char *new_name)
{
    begin(p9, TRENAMEAT);
    put32(p9, fid);
    put_string(p9, name);
    put32(p9, into);
    put_string(p9, new_name);
    return ask(p9);
}

int
ninep_unlink(struct ninep *p9, uint32_t fid, const char *name, uint32_t flags)
{
    begin(p9, TUNLINKAT);
    put32(p9, fid);
    put_string(p9, name);
    put32(p9, flags);
    return ask(p9);
}

bool
ninep_next(const void *buf, uint32_t size, uint32_t *at,
           struct ninep_entry *out)
{
    const uint8_t *p = (const uint8_t *)buf + *at;
    uint16_t len;

    if (size - *at < ENTRY)
        return false;
    memcpy(&out->inode, p + 5, 8);
    memcpy(&out->cookie, p + 13, 8);
    out->type = p[21];
    memcpy(&len, p + 22, 2);
    if (len > NINEP_NAME_MAX || size - *at - ENTRY < len)
        return false;
    memcpy(out->name, p + ENTRY, len);
    out->name[len] = '\0';
    *at += ENTRY + len;
    return true;
}

/* -- open files ------------------------------------------------------------ */

int
ninep_lopen(struct ninep *p9, uint32_t fid, uint32_t flags)
{
    begin(p9, TLOPEN);
    put32(p9, fid);
    put32(p9, flags);
    return ask(p9);
}

int
ninep_lcreate(struct ninep *p9, uint32_t fid, const char *name, uint32_t flags,
              uint32_t mode)
{
    begin(p9, TLCREATE);
    put32(p9, fid);
    put_string(p9, name);
    put32(p9, flags);
    put32(p9, mode);
    put32(p9, 0);
    return ask(p9);
}

/* Tread and Treaddir: count[4], and the data where the caller wants it. */
static int
read_data(struct ninep *p9, uint8_t type, uint32_t fid, uint64_t offset,
          void *buf, uint32_t len, uint32_t *got)
{
    int err;

    if (len > p9->msize - DATA_READ)
        len = p9->msize - DATA_READ;
    begin(p9, type);
    put32(p9, fid);
    put64(p9, offset);
    put32(p9, len);
    err = send(p9, NULL, 0, DATA_READ, buf, len);
    if (err)
        return err;
    *got = (uint32_t)get(p9, 4);
    return *got > len ? NINEP_BROKEN : done(p9);
}

int
ninep_read(struct ninep *p9, uint32_t fid, uint64_t offset, void *buf,
           uint32_t len, uint32_t *got)
{
    return read_data(p9, TREAD, fid, offset, buf, len, got);
}

int
ninep_readdir(struct ninep *p9, uint32_t fid, uint64_t cookie, void *buf,
              uint32_t len, uint32_t *got)
{
    return read_data(p9, TREADDIR, fid, cookie, buf, len, got);
}

int
ninep_write(struct ninep *p9, uint32_t fid, uint64_t offset, const void *buf,
            uint32_t len, uint32_t *written)
{
    int err;

    if (len > p9->msize - DATA_WRITE)
        len = p9->msize - DATA_WRITE;
    begin(p9, TWRITE);
    put32(p9, fid);
    put64(p9, offset);
    put32(p9, len);
    err = send(p9, buf, len, HEADER + 4, NULL, 0);
    if (err)
        return err;
    *written = (uint32_t)get(p9, 4);
    return *written > len ? NINEP_BROKEN : done(p9);
}
