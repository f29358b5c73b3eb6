/* SPDX-License-Identifier: 0BSD */
/*
 * ninep.h - files of the host by virtio-9p, protocol 9P2000.L
 *
 * Fids are numbers that the caller chooses. ninep_open() makes fid 0 the root;
 * ninep_walk() makes others, ninep_clunk() ends them. Every function returns 0
 * or an errno of Linux; NINEP_BROKEN is none of those: the device is broken, or
 * answered what makes no sense.
 *
 * Sources: diod, protocol.md; Linux, include/net/9p/9p.h.
 */
#ifndef GUEST_NINEP_H
#define GUEST_NINEP_H

#include <virtio.h>

#define VIRTIO_ID_9P 9

#define NINEP_BROKEN   4096
#define NINEP_MESSAGE  8192 /* of requests and answers, without data */
#define NINEP_NAME_MAX 255

/* Flags of ninep_lopen() and ninep_lcreate(). */
#define NINEP_RDONLY 0
#define NINEP_WRONLY 1
#define NINEP_RDWR   2
#define NINEP_EXCL   0200
#define NINEP_TRUNC  01000

#define NINEP_REMOVEDIR 0x200 /* of ninep_unlink() */
#define NINEP_IFMT      0170000
#define NINEP_IFDIR     0040000

struct ninep {
    struct virtio_device dev;
    struct virtqueue vq;
    volatile unsigned interrupts; /* how many came */
    uint32_t msize;               /* the largest message, as agreed */
    uint8_t request[NINEP_MESSAGE];
    uint8_t reply[NINEP_MESSAGE];
    uint32_t out;     /* bytes of the request so far */
    uint32_t in, end; /* of the answer: what was looked at, and all */
    bool overrun;     /* a message was too long, or ended too early */
};

struct ninep_attr {
    uint32_t mode, uid, gid;
    uint64_t inode, nlink, size;
};

struct ninep_entry {
    uint64_t inode;
    uint64_t cookie; /* where the next entry is */
    uint8_t type;    /* DT_DIR is 4, DT_REG 8, DT_LNK 10 */
    char name[NINEP_NAME_MAX + 1];
};

/*
 * Finds and starts the device with this tag (NULL: the first one), agrees on a
 * version and on messages of at most `msize` bytes, and attaches the root.
 * With `interrupts` every request sleeps until the device interrupts, else it
 * polls. Returns NULL or what is missing.
 */
const char *ninep_open(struct ninep *p9, const char *tag, uint32_t msize,
                       bool interrupts);

/* The fid `to` becomes what `path` is, from the root; both "/a/b" and "a/b". */
int ninep_walk(struct ninep *p9, uint32_t to, const char *path);
int ninep_clunk(struct ninep *p9, uint32_t fid);

int ninep_getattr(struct ninep *p9, uint32_t fid, struct ninep_attr *out);
int ninep_readlink(struct ninep *p9, uint32_t fid, char *buf, uint32_t size);

/* Entries of the directory that `fid` is. */
int ninep_mkdir(struct ninep *p9, uint32_t fid, const char *name,
                uint32_t mode);
int ninep_symlink(struct ninep *p9, uint32_t fid, const char *name,
                  const char *target);
int ninep_rename(struct ninep *p9, uint32_t fid, const char *name,
                 uint32_t into, const char *new_name);
int ninep_unlink(struct ninep *p9, uint32_t fid, const char *name,
                 uint32_t flags);

/* Opens what `fid` is; or makes a file in it, which the fid then is. */
int ninep_lopen(struct ninep *p9, uint32_t fid, uint32_t flags);
int ninep_lcreate(struct ninep *p9, uint32_t fid, const char *name,
                  uint32_t flags, uint32_t mode);

/*
 * One request: the device reads or writes `buf` itself. *done may be less than
 * `len`; 0 is the end of the file.
 */
int ninep_read(struct ninep *p9, uint32_t fid, uint64_t offset, void *buf,
               uint32_t len, uint32_t *done);
int ninep_write(struct ninep *p9, uint32_t fid, uint64_t offset,
                const void *buf, uint32_t len, uint32_t *done);

/*
 * Entries from a cookie on (0: the first), as they are sent; ninep_next() takes
 * them apart, beginning with *at = 0. False: there are no more of these.
 */
int ninep_readdir(struct ninep *p9, uint32_t fid, uint64_t cookie, void *buf,
                  uint32_t len, uint32_t *done);
bool ninep_next(const void *buf, uint32_t done, uint32_t *at,
                struct ninep_entry *out);

#endif
