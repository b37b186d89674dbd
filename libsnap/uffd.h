/*
 * userfaultfd, the one place that issues its ioctls.
 *
 * A descriptor belongs to the address space that made it, whoever holds it: every call here works on another
 * process's memory when the descriptor came from there. All functions return 0 (or a count) or -errno, allocate
 * nothing and may be used in the fault thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "uapi.h"

/* Make a descriptor for this process: the system call, else /dev/userfaultfd. Return: the descriptor or -errno. */
int snap_uffd_open(void);

/*
 * Features of this kernel, asked on a throw-away descriptor (a descriptor takes UFFDIO_API once, and an unknown
 * bit fails it). Return: 0 or -errno.
 */
int snap_uffd_probe(uint64_t *ret_features);

/* Handshake with @features. Return: 0, -EINVAL where the kernel lacks one of them. */
int snap_uffd_api(int uffd, uint64_t features);

/*
 * Register [start, start + length) for write-protection. -EBUSY: another userfaultfd has it; -EINVAL: this kind of
 * mapping cannot be; -EPERM: it can never be written; -ENOMEM: nothing is mapped there.
 */
int snap_uffd_register(int uffd, uint64_t start, uint64_t length);

/*
 * Register it for missing pages: whoever touches a page that is not there waits for snap_uffd_copy() or
 * snap_uffd_zero(). Errors as above.
 */
int snap_uffd_register_missing(int uffd, uint64_t start, uint64_t length);

/* Forget the range; everyone who waits in it is woken. Takes mmap_lock for write and walks the page tables. */
int snap_uffd_unregister(int uffd, uint64_t start, uint64_t length);

/*
 * Protect or un-protect. Un-protecting wakes whoever waits in the range. -EAGAIN: an event is pending, nothing was
 * done: read it, then try again. -ESRCH: the address space is gone. -ENOENT: not, or no longer, registered there.
 */
int snap_uffd_protect(int uffd, uint64_t start, uint64_t length);
int snap_uffd_unprotect(int uffd, uint64_t start, uint64_t length);

/* Wake whoever waits in the range, which need not be registered or mapped any more. */
int snap_uffd_wake(int uffd, uint64_t start, uint64_t length);

/*
 * Put pages in place where there are none, and wake whoever waits for them: of @from, or of zeros (not in
 * hugetlb). Whole pages of that memory, in one registered mapping. Return: how many bytes were, which may be less
 * than @length, or why none was: -EEXIST, the first page is there already; -EAGAIN, as above; -ENOENT; -ESRCH;
 * -ENOMEM and -ENOSPC, there is no memory for it.
 */
int64_t snap_uffd_copy(int uffd, uint64_t start, const void *from, uint64_t length);
int64_t snap_uffd_zero(int uffd, uint64_t start, uint64_t length);

/*
 * Whether the guest is between the start of a munmap, mremap or madvise and the reading of its event. Meanwhile
 * the kernel answers every WRITEPROTECT with EAGAIN before it looks at the range, so an empty range asks without
 * doing. (fs/userfaultfd.c: userfaultfd_writeprotect() tests mmap_changing first; shown by
 * docs/platform-requirements.)
 */
bool snap_uffd_event_pending(int uffd);

/* Next message, faults before events. Return: 1, 0 when there is none, or -errno. */
int snap_uffd_read(int uffd, struct uffd_msg *ret_msg);

/*
 * Unread faults, from the descriptor's fdinfo opened by snap_uffd_open_fdinfo(): when this is 0 and poll() says
 * readable, an event waits. Return: the count or -errno.
 */
int snap_uffd_open_fdinfo(int uffd);
int snap_uffd_unread_faults(int fdinfo);
