/* SPDX-License-Identifier: 0BSD */
/*
 * ninep.c - works with files of the host, by virtio-9p
 *
 * tag=NAME            the device with this mount tag (the first one)
 * msize=N             the largest message (65536)
 * mode=poll|irq       how to wait for answers (poll)
 *
 * and, in this order, as often as wanted:
 *
 * ls=PATH             prints the entries of a directory
 * cat=PATH            prints a file
 * sum=PATH            prints its size, and a sum of its bytes
 * stat=PATH           prints mode, links and size
 * readlink=PATH       prints where a symbolic link leads
 * write=PATH:TEXT     makes or replaces a file
 * fill=PATH:N         the same with N bytes: 0, 1, ... 250, 0, 1 and so on
 * mkdir=PATH
 * symlink=PATH:TEXT
 * rename=PATH:PATH
 * rm=PATH  rmdir=PATH
 *
 * What cannot be done is said with its errno, and the next word is next.
 */
#include <runtime.h>

#include <interrupt.h>
#include <ninep.h>

#define DATA_MAX  (1 << 20)
#define WORD_MAX  1024
#define FILE_FID  1
#define OTHER_FID 2
#define PERIOD    251 /* of the bytes of fill= */

static struct ninep p9;
static uint8_t data[DATA_MAX];
static uint32_t piece; /* bytes of one read or write */

/* Makes `fid` the directory of a path, whose last name is returned. */
static int
walk_parent(uint32_t fid, char *path, const char **name)
{
    char *slash = NULL;

    for (char *p = path; *p; p++)
        if (*p == '/')
            slash = p;
    *name = slash ? slash + 1 : path;
    if (slash)
        *slash = '\0';
    return ninep_walk(&p9, fid, slash ? path : "");
}

static int
list(uint32_t fid)
{
    uint64_t cookie = 0;
    uint32_t got, at;
    int err = ninep_lopen(&p9, fid, NINEP_RDONLY);

    while (!err) {
        static struct ninep_entry entry;

        err = ninep_readdir(&p9, fid, cookie, data, piece, &got);
        if (err || got == 0)
            break;
        for (at = 0; ninep_next(data, got, &at, &entry);) {
            cookie = entry.cookie;
            print("%u %s\n", entry.type, entry.name);
        }
    }
    return err;
}

/* Prints a file, or sums it up. */
static int
read_file(uint32_t fid, bool shown)
{
    uint32_t sum = 0, got, size = 0;
    int err = ninep_lopen(&p9, fid, NINEP_RDONLY);

    while (!err) {
        err = ninep_read(&p9, fid, size, data, piece, &got);
        if (err || got == 0)
            break;
        size += got;
        if (shown)
            console_write((const char *)data, got);
        else
            for (uint32_t i = 0; i < got; i++)
                sum = sum * 31 + data[i];
    }
    if (!err && !shown)
        print("%u bytes, sum %08x\n", size, sum);
    return err;
}

static int
print_attributes(uint32_t fid)
{
    struct ninep_attr attr;
    int err = ninep_getattr(&p9, fid, &attr);

    if (!err)
        print("mode %06x links %u size %u\n", attr.mode, (unsigned)attr.nlink,
              (unsigned)attr.size);
    return err;
}

static int
print_link(uint32_t fid)
{
    static char target[WORD_MAX];
    int err = ninep_readlink(&p9, fid, target, sizeof(target));

    if (!err)
        puts(target);
    return err;
}

/* Writes `size` bytes; of `bytes`, or what fill= writes. */
static int
write_file(uint32_t fid, const char *name, const char *bytes, uint32_t size)
{
    uint32_t done = 0, written = 0;
    int err = ninep_lcreate(&p9, fid, name, NINEP_WRONLY | NINEP_TRUNC, 0644);

    while (!err && done < size) {
        uint32_t len = size - done < piece ? size - done : piece;

        if (bytes)
            memcpy(data, bytes + done, len);
        else
            for (uint32_t i = 0; i < len; i++)
                data[i] = (uint8_t)((done + i) % PERIOD);
        err = ninep_write(&p9, fid, done, data, len, &written);
        if (!err && written == 0)
            err = NINEP_BROKEN;
        done += written;
    }
    return err;
}

static uint32_t
number(const char *text)
{
    uint32_t value = 0;

    while (*text >= '0' && *text <= '9')
        value = value * 10 + (uint32_t)(*text++ - '0');
    return value;
}

/* What is done with an existing file. */
static int
look(const char *verb, const char *path)
{
    int err = ninep_walk(&p9, FILE_FID, path);

    if (err)
        return err;
    if (!strcmp(verb, "ls"))
        err = list(FILE_FID);
    else if (!strcmp(verb, "stat"))
        err = print_attributes(FILE_FID);
    else if (!strcmp(verb, "readlink"))
        err = print_link(FILE_FID);
    else
        err = read_file(FILE_FID, !strcmp(verb, "cat"));
    ninep_clunk(&p9, FILE_FID);
    return err;
}

static int
rename_entry(uint32_t fid, const char *name, char *path)
{
    const char *new_name;
    int err = walk_parent(OTHER_FID, path, &new_name);

    if (err)
        return err;
    err = ninep_rename(&p9, fid, name, OTHER_FID, new_name);
    ninep_clunk(&p9, OTHER_FID);
    return err;
}

/* What changes a directory: `path`, and what followed a colon. */
static int
change(const char *verb, char *path, char *more)
{
    const char *name;
    int err = walk_parent(FILE_FID, path, &name);

    if (err)
        return err;
    if (!strcmp(verb, "write"))
        err = write_file(FILE_FID, name, more, (uint32_t)strlen(more));
    else if (!strcmp(verb, "fill"))
        err = write_file(FILE_FID, name, NULL, number(more));
    else if (!strcmp(verb, "mkdir"))
        err = ninep_mkdir(&p9, FILE_FID, name, 0755);
    else if (!strcmp(verb, "symlink"))
        err = ninep_symlink(&p9, FILE_FID, name, more);
    else if (!strcmp(verb, "rename"))
        err = rename_entry(FILE_FID, name, more);
    else
        err = ninep_unlink(&p9, FILE_FID, name,
                           strcmp(verb, "rm") ? NINEP_REMOVEDIR : 0);
    ninep_clunk(&p9, FILE_FID);
    return err;
}

static bool
is_one_of(const char *word, const char *const *words)
{
    for (; *words; words++)
        if (!strcmp(word, *words))
            return true;
    return false;
}

/* A word of the command line, which is taken apart. */
static void
run(char *word)
{
    static const char *const looks[] = {"ls",   "cat",      "sum",
                                        "stat", "readlink", NULL};
    static const char *const changes[] = {"write",   "fill",   "mkdir", "rm",
                                          "symlink", "rename", "rmdir", NULL};
    static char none[] = "";
    char *path = none, *more = none;
    int err;

    for (char *p = word; *p; p++) {
        if (*p == '=' && path == none) {
            *p = '\0';
            path = p + 1;
        } else if (*p == ':' && more == none) {
            *p = '\0';
            more = p + 1;
        }
    }
    if (is_one_of(word, looks))
        err = look(word, path);
    else if (is_one_of(word, changes))
        err = change(word, path, more);
    else
        return;
    if (err == NINEP_BROKEN)
        panic("%s: the device is broken", word);
    else if (err)
        print("%s: errno %d\n", word, err);
    else if (is_one_of(word, changes))
        print("%s: done\n", word);
}

static int
fail(const char *why)
{
    print("ninep: %s\n", why);
    return 1;
}

int
main(const struct start_info *si, const char *cmdline)
{
    const char *mode = arg("mode"), *problem;
    uint32_t msize = arg_number("msize", 65536);
    bool irq = mode && !strcmp(mode, "irq");
    static char word[WORD_MAX];
    size_t len = 0;

    (void)si;
    if (mode && !irq && strcmp(mode, "poll"))
        return fail("mode is poll or irq");
    if (msize < 4096 || msize > DATA_MAX)
        return fail("msize is 4096 to 1048576");
    problem = ninep_open(&p9, arg("tag"), msize, irq);
    if (problem)
        return fail(problem);
    piece = p9.msize - 24; /* as Linux has it: room for any header */
    for (;; cmdline++) {
        if (*cmdline != ' ' && *cmdline) {
            if (len == WORD_MAX - 1)
                return fail("a word is too long");
            word[len++] = *cmdline;
            continue;
        }
        word[len] = '\0';
        run(word);
        len = 0;
        if (!*cmdline)
            break;
    }
    print("msize %u, kicks %u, interrupts %u\n", p9.msize, p9.vq.kicks,
          p9.interrupts);
    return 0;
}
