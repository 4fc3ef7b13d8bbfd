/* Loaded into a server by LD_PRELOAD, this gives it a disk that stalls and a clock
 * that jumps, as a test says by two files:
 *   SHIM_STALL  while this file exists, fsync and fdatasync do not return;
 *   SHIM_CLOCK  seconds in this file are added to the wall clock. The monotonic
 *               clock stays as it is, as with a clock that somebody sets.
 * What waits until a time of the wall clock waits until the kernel's own, so such
 * times are put back by what the clock has jumped. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static void stall(void) {
    const char *path = getenv("SHIM_STALL");
    while (path && syscall(SYS_access, path, F_OK) == 0)
        syscall(SYS_nanosleep, &(struct timespec){0, 5000000}, NULL);
}

int fsync(int file) {
    stall();
    return syscall(SYS_fsync, file);
}

int fdatasync(int file) {
    stall();
    return syscall(SYS_fdatasync, file);
}

static long jumped(void) {
    static long offset, looked;
    const char *path = getenv("SHIM_CLOCK");
    struct timespec now;
    if (!path)
        return 0;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    long tenth = now.tv_sec * 10 + now.tv_nsec / 100000000;
    if (__atomic_exchange_n(&looked, tenth, __ATOMIC_RELAXED) != tenth) {
        char text[24] = {0};
        int file = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            if (syscall(SYS_read, file, text, sizeof text - 1) > 0)
                __atomic_store_n(&offset, atol(text), __ATOMIC_RELAXED);
            syscall(SYS_close, file);
        }
    }
    return __atomic_load_n(&offset, __ATOMIC_RELAXED);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += jumped();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int failed = syscall(SYS_gettimeofday, now, zone);
    if (!failed)
        now->tv_sec += jumped();
    return failed;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to)
        *to = now.tv_sec;
    return now.tv_sec;
}

/* Until may be of either clock: times of the monotonic one are small. */
int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!real)
        real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!real)
        real = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    struct timespec back = *until;
    if (back.tv_sec > 1000000000)
        back.tv_sec -= jumped();
    return real(condition, mutex, &back);
}
