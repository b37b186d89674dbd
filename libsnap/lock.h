/*
 * A mutex that clang's thread-safety analysis can follow. Lock order is the order of declaration of the structs
 * that hold them; docs/locking.md lists them.
 */
#pragma once

#include <glib.h>
#include <pthread.h>
#include <time.h>

#if defined(__clang__)
#define SNAP_CAPABILITY(name) __attribute__((capability(name)))
#define SNAP_GUARDED_BY(lock) __attribute__((guarded_by(lock)))
#define SNAP_REQUIRES(lock) __attribute__((requires_capability(lock)))
#define SNAP_ACQUIRE(lock) __attribute__((acquire_capability(lock)))
#define SNAP_RELEASE(lock) __attribute__((release_capability(lock)))
#define SNAP_EXCLUDES(lock) __attribute__((locks_excluded(lock)))
#define SNAP_NO_ANALYSIS __attribute__((no_thread_safety_analysis))
#else
#define SNAP_CAPABILITY(name)
#define SNAP_GUARDED_BY(lock)
#define SNAP_REQUIRES(lock)
#define SNAP_ACQUIRE(lock)
#define SNAP_RELEASE(lock)
#define SNAP_EXCLUDES(lock)
#define SNAP_NO_ANALYSIS
#endif

/* With priority inheritance: the fault thread, which is raised, never waits for one that was put aside for others.
 */
typedef struct SNAP_CAPABILITY("mutex") {
    pthread_mutex_t mutex;
} SnapLock;

typedef struct {
    pthread_cond_t cond;
} SnapCond;

static inline void snap_lock_init(SnapLock *lock) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(&lock->mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

static inline void snap_lock_clear(SnapLock *lock) {
    pthread_mutex_destroy(&lock->mutex);
}

static inline void snap_lock(SnapLock *lock) SNAP_ACQUIRE(lock) SNAP_NO_ANALYSIS {
    pthread_mutex_lock(&lock->mutex);
}

static inline void snap_unlock(SnapLock *lock) SNAP_RELEASE(lock) SNAP_NO_ANALYSIS {
    pthread_mutex_unlock(&lock->mutex);
}

static inline void snap_cond_init(SnapCond *cond) {
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&cond->cond, &attributes);
    pthread_condattr_destroy(&attributes);
}

static inline void snap_cond_clear(SnapCond *cond) {
    pthread_cond_destroy(&cond->cond);
}

static inline void snap_cond_broadcast(SnapCond *cond) {
    pthread_cond_broadcast(&cond->cond);
}

static inline void snap_cond_wait(SnapCond *cond, SnapLock *lock) SNAP_REQUIRES(lock) {
    pthread_cond_wait(&cond->cond, &lock->mutex);
}

/* @until_us: as g_get_monotonic_time(). Return: FALSE when the time has come. */
static inline gboolean snap_cond_wait_until(SnapCond *cond, SnapLock *lock, gint64 until_us) SNAP_REQUIRES(lock) {
    struct timespec until = {.tv_sec = until_us / G_USEC_PER_SEC, .tv_nsec = until_us % G_USEC_PER_SEC * 1000};
    return pthread_cond_timedwait(&cond->cond, &lock->mutex, &until) == 0;
}
