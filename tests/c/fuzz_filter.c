/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fuzz_filter.c - any registers, any accesses, held against a plain model
 *
 * The input declares up to eight registers and then takes steps: accesses of
 * any place and size, values that the owner sets, writes that he takes. The
 * model looks registers up one by one, works bit by bit and has one long list
 * of what was posted.
 */
#include <string.h>

#include "fuzz.h"
#include "vmm/filter.h"

#define MOST 8U
#define SPAN 64U /* addresses */

struct model {
    struct vmm_reg reg[MOST];
    uint64_t value[MOST]; /* what the filter has */
    uint64_t own[MOST];   /* what it should have */
    unsigned count;
    struct vmm_filter filter;
    struct vmm_post post;
    uint64_t *posted; /* all that ever was; `taken` of them have gone */
    unsigned *whose;
    size_t sent, taken;
};

static void
declare(struct model *model, struct input *in)
{
    unsigned count = (unsigned)next(in, 1) % (MOST + 1);
    uint64_t offset = 0;

    for (unsigned i = 0; i < count; i++) {
        struct vmm_reg *reg = &model->reg[i];
        unsigned shape = (unsigned)next(in, 1);
        uint64_t bits = next(in, 8);

        reg->len = 1U << (shape & 3);
        offset += shape >> 2 & 7;
        reg->offset = offset;
        offset += reg->len;
        if (offset > SPAN)
            return;
        reg->here = shape >> 5;
        reg->number = i;
        reg->value = &model->value[i];
        bits &= vmm_ones(reg->len);
        reg->readable = bits ^ (bits >> 3);
        reg->stored = bits & 0x3c3c3c3c3c3c3c3cULL;
        reg->w1c = bits & ~reg->stored & 0x1818181818181818ULL;
        model->count++;
    }
}

static unsigned
exact(const struct model *model, uint64_t offset, unsigned len)
{
    for (unsigned i = 0; i < model->count; i++) {
        if (model->reg[i].offset == offset && model->reg[i].len == len)
            return i;
    }
    return MOST;
}

static unsigned
ends_behind(const struct model *model, uint64_t offset)
{
    unsigned i = 0;

    while (i < model->count &&
           model->reg[i].offset + model->reg[i].len <= offset)
        i++;
    return i;
}

static uint64_t
by_bits(const struct vmm_reg *reg, uint64_t old, uint64_t val)
{
    for (unsigned i = 0; i < 64; i++) {
        uint64_t bit = 1ULL << i;

        if (reg->stored & bit)
            old = (old & ~bit) | (val & bit);
        else if (reg->w1c & val & bit)
            old &= ~bit;
    }
    return old;
}

static void
do_read(struct model *model, uint64_t offset, unsigned len)
{
    unsigned at = exact(model, offset, len);
    const struct vmm_reg *reg = &model->reg[at];
    bool here = at < MOST && reg->here & model->filter.here & VMM_REG_READ &&
                model->sent == model->taken;
    uint64_t val = 99;
    int answer = vmm_filter_ops.read(&model->filter, offset, len, &val);

    must(answer == (here ? VMM_BUS_DONE : VMM_BUS_OUTSIDE));
    must(val == (here ? model->own[at] & reg->readable : 99));
}

static void
do_write(struct model *model, uint64_t offset, unsigned len, uint64_t val)
{
    unsigned at = exact(model, offset, len);
    const struct vmm_reg *reg = &model->reg[at];
    bool here = at < MOST && reg->here & model->filter.here & VMM_REG_WRITE;
    bool post = here && reg->here & VMM_REG_POSTED;
    size_t waiting = model->sent - model->taken;
    int due = VMM_BUS_DONE;

    if (post && waiting == model->post.room)
        here = post = false;
    if (!here || (!post && waiting))
        due = VMM_BUS_OUTSIDE;
    else if (post && waiting + 1 + VMM_POST_SPARE >= model->post.room)
        due = VMM_BUS_OWNER;
    must(vmm_filter_ops.write(&model->filter, offset, len, val) == due);
    if (due == VMM_BUS_OUTSIDE)
        return;
    model->own[at] = by_bits(reg, model->own[at], val);
    if (post) {
        model->posted[model->sent] = val & (reg->stored | reg->w1c);
        model->whose[model->sent++] = at;
    }
}

static void
do_take(struct model *model, unsigned most)
{
    unsigned number, due = 0, run = vmm_post_run(&model->post, most, &number);
    uint8_t out[(256 + VMM_POST_SPARE) * 8];
    size_t at = model->taken;

    while (due < most && at + due < model->sent &&
           model->whose[at + due] == model->whose[at])
        due++;
    must(run == due);
    if (!run)
        return;
    must(number == model->whose[at]);
    vmm_post_take(&model->post, run, model->reg[number].len, out);
    for (unsigned i = 0; i < run; i++) {
        uint64_t val = 0;

        memcpy(&val, out + (size_t)i * model->reg[number].len,
               model->reg[number].len);
        must(val == model->posted[at + i]);
    }
    vmm_post_done(&model->post, run);
    model->taken += run;
}

static void
step(struct model *model, struct input *in)
{
    unsigned op = (unsigned)next(in, 1), len = 1 + (op >> 3) % 8;
    uint64_t offset = next(in, 1) % SPAN;

    switch (op & 7) {
    case 0:
    case 1:
        do_read(model, offset, len);
        break;
    case 2:
    case 3:
    case 4:
        do_write(model, offset, len, next(in, 8) & vmm_ones(len));
        break;
    case 5:
        must(vmm_filter_first(&model->filter, offset) ==
             ends_behind(model, offset));
        break;
    case 6:
        if (offset < model->count)
            model->value[offset] = model->own[offset] = next(in, 8);
        break;
    case 7:
        do_take(model, (op >> 3) * 8);
        break;
    }
    must(!memcmp(model->value, model->own, sizeof model->own));
    must(vmm_post_waiting(&model->post) == model->sent - model->taken);
    must(vmm_post_count(&model->post) == model->sent - model->taken);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct input in = {data, len};
    struct model model = {0};

    declare(&model, &in);
    model.filter = (struct vmm_filter){
        .reg = model.reg, .count = model.count, .post = &model.post};
    model.filter.here = (unsigned)next(&in, 1) & 3;
    must(!vmm_post_init(&model.post, (unsigned)next(&in, 1)));
    model.posted = calloc(len + 1, sizeof *model.posted);
    model.whose = calloc(len + 1, sizeof *model.whose);
    must(model.posted && model.whose);
    while (in.left)
        step(&model, &in);
    vmm_post_fini(&model.post);
    free(model.posted);
    free(model.whose);
    return 0;
}
