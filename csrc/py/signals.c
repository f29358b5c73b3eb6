/* SPDX-License-Identifier: Apache-2.0 */
/*
 * signals.c - how a thread inside KVM_RUN is made to leave it
 *
 * A signal interrupts KVM_RUN, but one whose handler runs just before the entry
 * would be lost. So the handler of our own signal sets the flag that KVM looks
 * at on entry (immediate_exit), for the vCPU that its thread runs. Kicks from
 * other threads set the flag themselves and send the signal.
 *
 * Signals of others (Ctrl-C, a test runner's alarm) have handlers that know
 * nothing of this. They are caught by the tick: a timer of the thread sends our
 * signal every TICK_NS, the run loop takes the GIL and lets Python look. So no
 * signal is lost; one in 10 to 40 waits for the tick.
 *
 * The same tick serves time limits, calls that are due at a given time
 * (VCPU.due_ns), and the look at silent vCPUs.
 */
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "py.h"

/* initial-exec: a handler may not allocate. */
#define IN_HANDLER __attribute__((tls_model("initial-exec")))

static __thread struct vmm_vcpu *running IN_HANDLER;
static __thread timer_t timer;
static __thread bool has_timer;
static __thread unsigned timer_generation;

static pthread_key_t timer_key;
static int init_error;

int
kick_signal(void)
{
    return SIGRTMIN + 5;
}

static void
on_signal(int signal)
{
    (void)signal;
    if (running)
        vmm_vcpu_tick(running);
}

static void
delete_timer(void *ignored)
{
    (void)ignored;
    if (has_timer && timer_generation == fork_generation)
        timer_delete(timer);
    has_timer = false;
}

static void
init_once(void)
{
    /* SA_RESTART: only KVM_RUN, which never restarts, is to be interrupted. */
    struct sigaction action = {
        .sa_handler = on_signal,
        .sa_flags = SA_RESTART | SA_ONSTACK,
    };

    sigemptyset(&action.sa_mask);
    init_error = -pthread_key_create(&timer_key, delete_timer);
    if (!init_error && sigaction(kick_signal(), &action, NULL))
        init_error = -errno;
}

/* The timer of the calling thread, which lives as long as the thread. */
static int
make_timer(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct sigevent event = {
        .sigev_notify = SIGEV_THREAD_ID,
        .sigev_signo = kick_signal(),
    };
    sigset_t set;

    pthread_once(&once, init_once);
    if (init_error)
        return init_error;
    if (has_timer && timer_generation == fork_generation)
        return 0;
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    if (timer_create(CLOCK_MONOTONIC, &event, &timer))
        return -errno;
    has_timer = true;
    timer_generation = fork_generation;
    pthread_setspecific(timer_key, &timer_key);
    sigemptyset(&set);
    sigaddset(&set, kick_signal());
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    return 0;
}

static void
set_timer(uint64_t first_ns, uint64_t every_ns)
{
    struct itimerspec spec = {
        .it_value = {.tv_sec = (time_t)(first_ns / 1000000000),
                     .tv_nsec = (long)(first_ns % 1000000000)},
        .it_interval = {.tv_sec = (time_t)(every_ns / 1000000000),
                        .tv_nsec = (long)(every_ns % 1000000000)},
    };

    timer_settime(timer, 0, &spec, NULL);
}

void
tick_arm(uint64_t first_ns)
{
    set_timer(first_ns ? first_ns : 1, TICK_NS);
}

void
tick_send(const struct vmm_vcpu *cpu)
{
    pid_t tid = __atomic_load_n(&cpu->tid, __ATOMIC_SEQ_CST);

    if (tid)
        syscall(SYS_tgkill, getpid(), tid, kick_signal());
}

int
tick_enter(struct vmm_vcpu *cpu, struct vmm_vcpu **previous)
{
    int err = make_timer();

    if (err)
        return err;
    *previous = running;
    running = cpu;
    __atomic_store_n(&cpu->tid, (pid_t)syscall(SYS_gettid), __ATOMIC_SEQ_CST);
    return 0;
}

void
tick_leave(struct vmm_vcpu *cpu, struct vmm_vcpu *previous)
{
    running = previous;
    __atomic_store_n(&cpu->tid, 0, __ATOMIC_SEQ_CST);
    if (previous)
        tick_arm(TICK_FIRST_NS);
    else
        set_timer(0, 0);
}
