/*
 * The async dirty log: which pages of an area were written since they were last collected.
 *
 * Happy path: init on a fresh userfaultfd of the guest's address space, register a range, arm the area; then
 * collect, again and again. The kernel takes the first write of a page by itself (it drops the protection, nobody
 * waits and no message comes), and PAGEMAP_SCAN finds what is not protected, reports it and protects it again in
 * one step. There is no thread and no event here, and the guest is never held up.
 *
 * Two kinds of memory in an area, told apart by its armed runs (async-area.h):
 * - *Armed* units. Every entry is protected, holes by a marker. So an entry that has lost its protection was
 *   written, or dropped (MADV_DONTNEED), which changes it just as well: both are dirty. A hole that is only read
 *   stays clean.
 * - *Gaps*, where nothing was when we last looked. They have no protection, hence no page tables: terabytes cost
 *   nothing. What is found there is new, so it is dirty, and its unit becomes armed. Of memory that has a file it
 *   is the file that tells as well, so pages that are new to it are found whoever made them, also by a read.
 *
 * Invariants: a page is protected only in a step that reports it, unless it is a hole. What a collect reported may
 * be written again before the caller reads it, and is reported again by the next one then: read pages *after* the
 * collect that reported them, and nothing is lost. The first copy of all is read after the arm, and of armed units
 * only: what is not armed is holes at that point, and a page that is put there and dropped again is never heard
 * of. Never is a range called clean of which a part is not mapped, or not registered: that is -EPERM.
 *
 * Reports are exact to the base page, but for hugetlb, and but for shared memory in transparent huge pages: the
 * first write into such a page is told of all of it, because the kernel unmaps it as a whole then.
 *
 * What page tables cannot tell, so that whoever does it has to tell us:
 * - writers that do not write through this mapping: pwrite(2), other mappings of a file, devices;
 * - content that is dropped and leaves the protection behind: holes punched into a file, its truncation, and
 *   MADV_DONTNEED of anything but private anonymous memory. See snap_async_watch_drops() for what can be had;
 * - a mapping that was replaced by one that another userfaultfd holds in async mode.
 *
 * Threads: one at a time. Functions return 0 or -errno; -ESRCH: the guest is gone.
 */
#pragma once

#include "area.h"
#include "async-drops.h"
#include "async-owed.h"
#include "coverage.h"
#include "uapi.h"

#define SNAP_ASYNC_VECTOR 512u /* runs the kernel gives at once; it has room for no more than that itself */

typedef struct {
    int uffd;
    int pagemap;
    SnapCoverage coverage;
    struct page_region *vector; /* any length gives the same answers */
    unsigned n_vector;
    SnapOwed owed;    /* by address */
    GPtrArray *drops; /* of SnapDrops, one for each area where they are watched */
} SnapAsync;

typedef enum {
    SNAP_COLLECT_PEEK,  /* report, change nothing */
    SNAP_COLLECT_CLEAR, /* report and protect again */
    SNAP_COLLECT_MAX,
} SnapCollect;

/* Bytes [start, end) of the area are dirty. Runs come in order, and neither touch nor overlap in one collect. */
typedef void (*SnapAsyncReport)(void *opaque, uint64_t start, uint64_t end);

/*
 * @uffd: (take, also in an error) a fresh descriptor of the address space of @pid, before UFFDIO_API. Return: 0;
 * -EOPNOTSUPP where the kernel lacks UFFD_FEATURE_WP_ASYNC or PAGEMAP_SCAN (Linux 6.7), or its scan leaves out
 * what has no page table; else -errno of opening /proc/PID/pagemap or maps, or a userfaultfd of our own. Clear it
 * in any case.
 */
int snap_async_init(SnapAsync *async, int pid, int uffd);

/* The kernel forgets all registrations with the descriptor. */
void snap_async_clear(SnapAsync *async);

/* Ask the kernel for @n runs at once instead of SNAP_ASYNC_VECTOR. For tests. */
void snap_async_set_vector(SnapAsync *async, unsigned n);

/*
 * Address ranges, whole pages (of hugetlb: whole huge pages). Registering: -EBUSY, another userfaultfd has a part;
 * -EPERM, a part can never be written; -ENOMEM or -EINVAL, nothing is mapped in a part. Unregistering forgets what
 * was armed and watched there.
 */
int snap_async_register(const SnapAsync *async, uint64_t address, uint64_t length);
int snap_async_unregister(SnapAsync *async, uint64_t address, uint64_t length);

/* Forget what is noted of the range, without unregistering: the guest has unmapped it. */
void snap_async_forget(SnapAsync *async, uint64_t address, uint64_t length);

/*
 * From the next arm on, look for pages of @area that lose their content without being written, as async-drops.h
 * says. Of hugetlb that is always done, and of private anonymous memory nothing is to be done. Each collect then
 * looks at every page: ten times the work on clean shared memory, forty times where a file is mapped privately.
 * Pages that are reclaimed while they are mapped (of shared memory), or swapped out, count as dropped too.
 */
void snap_async_watch_drops(SnapAsync *async, const SnapArea *area);

/*
 * Protect what the area holds, and report nothing of what was: the log starts here. Its range is registered. What
 * is not armed is dirty as far as it is filled. Armed runs that the area has already are armed again. Errors as in
 * collect.
 */
int snap_async_arm(SnapAsync *async, SnapArea *area);

/*
 * Report the dirty pages of [from, end), bytes of the area, whole granules.
 * @how: PEEK or CLEAR.
 * @max_pages: at most so many pages are reported, and what is cleared and not reported is remembered; 0: no limit.
 * Of hugetlb at least one huge page.
 * @report: called in this thread; may not call back into @async.
 * @ret_next: (out) how far it came; @end when all is done. Continue there, or start over: what was not reported
 * still is dirty. Return: 0; -EPERM when a part of what was looked at is not mapped, or not registered in async
 * mode: the log of this area is worth nothing then, also what was just reported; -ESRCH. In an error @ret_next is
 * untouched.
 */
int snap_async_collect(SnapAsync *async, SnapArea *area, uint64_t from, uint64_t end, SnapCollect how,
                       uint64_t max_pages, SnapAsyncReport report, void *opaque, uint64_t *ret_next);

/* Whether all of the range is mapped and registered in async mode. Return: 0, -EPERM when not, or -errno. */
int snap_async_check(SnapAsync *async, uint64_t start, uint64_t end);

/* ---- between track-async.c and async-collect.c ------------------------------------------------------------- */

#define SNAP_ASYNC_PROTECT (PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC)

/* The end of a piece of the area from @start on that is looked at by one call: the kernel holds mmap_lock
 * meanwhile. */
uint64_t snap_async_piece_end(const SnapArea *area, uint64_t start, uint64_t end);

/* Protect bytes of the area, whatever they are, reporting nothing. */
int snap_async_protect(const SnapAsync *async, const SnapArea *area, uint64_t start, uint64_t end);

/* Protect all units of the area that hold something, reporting nothing, and add them to the armed ones. */
int snap_async_arm_units(SnapAsync *async, SnapArea *area);

/* NULL where drops are not watched. */
SnapDrops *snap_async_drops(const SnapAsync *async, const SnapArea *area);
