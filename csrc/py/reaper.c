/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reaper.c - closing machines off the caller's thread
 *
 * The kernel takes about 15 ms to destroy a young VM. close() hands the fds
 * over; up to MAX_THREADS threads close them and end when there is no more.
 */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "py.h"

#define MAX_THREADS 4
#define MAX_WAITING 256 /* then the caller closes by itself */

struct corpse {
    struct corpse *next;
    struct vmm_vcpu_rest rest; /* a VM's fd is a rest without a mapping */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct corpse *queue;
static unsigned waiting;
static unsigned threads;
static unsigned generation;

/* With the lock held. In the child of a fork the threads are gone. */
static void
forget_parent(void)
{
    if (generation == fork_generation)
        return;
    generation = fork_generation;
    threads = 0;
}

static void *
reaper(void *ignored)
{
    struct corpse *corpse;

    (void)ignored;
    pthread_mutex_lock(&lock);
    while ((corpse = queue)) {
        queue = corpse->next;
        waiting--;
        pthread_mutex_unlock(&lock);
        vmm_vcpu_rest_close(&corpse->rest);
        free(corpse);
        pthread_mutex_lock(&lock);
    }
    threads--;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* With the lock held. Signals are for the threads of the program. */
static int
start_thread(void)
{
    pthread_attr_t attr;
    sigset_t all, before;
    pthread_t thread;
    int err;

    sigfillset(&all);
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    err = pthread_create(&thread, &attr, reaper, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (!err)
        threads++;
    return err;
}

void
reap_vcpu(struct vmm_vcpu_rest rest)
{
    struct corpse *corpse = malloc(sizeof *corpse);
    bool mine = !corpse;

    pthread_mutex_lock(&lock);
    forget_parent();
    if (!mine && waiting >= MAX_WAITING)
        mine = true;
    if (!mine && threads < MAX_THREADS && start_thread() && !threads)
        mine = true;
    if (!mine) {
        corpse->rest = rest;
        corpse->next = queue;
        queue = corpse;
        waiting++;
    }
    pthread_mutex_unlock(&lock);
    if (mine) {
        free(corpse);
        vmm_vcpu_rest_close(&rest);
    }
}

void
reap_vm(int fd)
{
    struct vmm_vcpu_rest rest = {.fd = fd};

    reap_vcpu(rest);
}

void
reap_all(void)
{
    pthread_mutex_lock(&lock);
    forget_parent();
    while (threads)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}
