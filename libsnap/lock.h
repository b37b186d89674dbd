/*
 * A mutex that clang's thread-safety analysis can follow. Lock order is the order of declaration of the structs
 * that hold them; docs/locking.md lists them.
 */
#pragma once

#include <glib.h>

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

typedef struct SNAP_CAPABILITY("mutex") {
    GMutex mutex;
} SnapLock;

static inline void snap_lock_init(SnapLock *lock) {
    g_mutex_init(&lock->mutex);
}

static inline void snap_lock_clear(SnapLock *lock) {
    g_mutex_clear(&lock->mutex);
}

static inline void snap_lock(SnapLock *lock) SNAP_ACQUIRE(lock) SNAP_NO_ANALYSIS {
    g_mutex_lock(&lock->mutex);
}

static inline void snap_unlock(SnapLock *lock) SNAP_RELEASE(lock) SNAP_NO_ANALYSIS {
    g_mutex_unlock(&lock->mutex);
}
