/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gather.c - several chains as one: the room for what a device has to say
 *
 * A driver that fills a queue with empty buffers, for what may come, need not
 * make each large enough for the most that can come: a device that knows how
 * long its message is takes as many as that needs, and the driver must find
 * them all at once (virtio 1.2, 5.1.6.4). Taken and not enough, they go back:
 * none is lost, and none is kept where a snapshot would miss it.
 */
#include "py.h"

/* Pops under the device's lock. A queue that is found empty has asked to be
 * notified, and looked once more. As vmm_virtio_mmio_pop. */
static int
pop(struct virtio *virtio, unsigned index, struct vmm_chain *chain)
{
    struct vmm_virtio_mmio *dev = virtio->dev;
    PyThreadState *thread = lock_acquire(&dev->lock);
    int answer;

    do {
        answer = vmm_virtio_mmio_pop(dev, index, chain);
    } while (!answer && vmm_virtio_mmio_live(dev) &&
             vmm_virtq_notify_on(&dev->queue[index]));
    lock_release(&dev->lock, thread);
    return answer;
}

/* The chains of a list go back to the queue; those that cannot, because another
 * thread has popped meanwhile, to the driver. */
static void
give_back(struct virtio *virtio, unsigned index, PyObject *list)
{
    struct vmm_virtio_mmio *dev = virtio->dev;
    PyThreadState *thread = lock_acquire(&dev->lock);

    for (Py_ssize_t i = PyList_GET_SIZE(list) - 1; i >= 0; i--) {
        struct chain *chain = (struct chain *)PyList_GET_ITEM(list, i);

        if (vmm_virtq_unpop(&dev->queue[index], &chain->chain) == -EINVAL)
            vmm_virtio_mmio_push(dev, index, &chain->chain, 0);
        chain->returned = true;
    }
    vmm_virtio_mmio_used(dev, index);
    lock_release(&dev->lock, thread);
}

/* Pops until there is enough room, or `most` are there. 1, 0 when the queue is
 * empty or broken, or -1 with an exception. */
static int
take(struct virtio *virtio, unsigned index, uint64_t room, uint64_t most,
     PyObject *list, uint64_t *found)
{
    struct state *state = state_of(Py_TYPE(virtio));
    struct vmm_virtio_mmio *dev = virtio->dev;

    while (*found < room && (uint64_t)PyList_GET_SIZE(list) < most) {
        struct chain *chain;
        int answer;

        /* Each time: making an object may collect, and that run anything. */
        if (!virtio->open) {
            raise_closed((PyObject *)virtio);
            return -1;
        }
        chain = chain_new(state, (PyObject *)virtio, virtio->memory,
                          &dev->queue[index], &dev->lock);
        if (!chain)
            return -1;
        chain_of(chain, virtio, index);
        answer = pop(virtio, index, &chain->chain);
        chain->deferred = answer > 0;
        if (answer == -ENOMEM)
            PyErr_NoMemory();
        else if (answer > 0)
            answer = PyList_Append(list, (PyObject *)chain) ? -ENOMEM : 1;
        *found += answer > 0 ? chain->chain.writable_len : 0;
        Py_DECREF(chain);
        if (answer <= 0)
            return answer == -ENOMEM ? -1 : 0;
    }
    return 1;
}

PyObject *
gather_chains(struct virtio *virtio, unsigned index, uint64_t room,
              uint64_t most, uint64_t *faults)
{
    PyObject *list = PyList_New(0), *done;
    uint64_t found = 0;
    int answer;

    if (!list)
        return NULL;
    answer = take(virtio, index, room, most, list, &found);
    if (answer > 0 && found >= room)
        return list;
    if (answer <= 0) {
        give_back(virtio, index, list);
        Py_DECREF(list);
        if (answer < 0)
            return NULL;
        Py_RETURN_NONE;
    }
    ++*faults;
    done = complete_chains(virtio, index, list);
    if (done)
        PyErr_Format(state_of(Py_TYPE(virtio))->short_error,
                     "%zd chains have room for %llu bytes, not %llu",
                     PyList_GET_SIZE(list), (unsigned long long)found,
                     (unsigned long long)room);
    Py_XDECREF(done);
    Py_DECREF(list);
    return NULL;
}

/* ValueError or TypeError unless all can be pushed. 0 or -1. */
static int
check(struct virtio *virtio, unsigned index, PyObject *chains)
{
    struct state *state = state_of(Py_TYPE(virtio));

    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(chains); i++) {
        struct chain *chain = chain_check(state, PyTuple_GET_ITEM(chains, i),
                                          &virtio->dev->queue[index]);

        if (!chain)
            return -1;
        if (chain->returned) {
            PyErr_Format(PyExc_ValueError, "chain %u went back to its queue",
                         chain->chain.head);
            return -1;
        }
    }
    return 0;
}

PyObject *
complete_chains(struct virtio *virtio, unsigned index, PyObject *chains)
{
    struct vmm_virtio_mmio *dev = virtio->dev;
    PyObject *all = PySequence_Tuple(chains);
    PyThreadState *thread;
    bool alive = true;

    if (!all || check(virtio, index, all)) {
        Py_XDECREF(all);
        return NULL;
    }
    thread = lock_acquire(&dev->lock);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(all); i++) {
        struct chain *chain = (struct chain *)PyTuple_GET_ITEM(all, i);

        alive &=
            !vmm_virtio_mmio_put(dev, index, &chain->chain, chain->written);
        chain->pushed = true;
    }
    vmm_virtio_mmio_publish(dev, index);
    vmm_virtio_mmio_used(dev, index);
    lock_release(&dev->lock, thread);
    Py_DECREF(all);
    return PyBool_FromLong(alive);
}
