/*
 * A kernel before 6.7 for a program that is started with this in LD_PRELOAD: userfaultfd has no WP_ASYNC, and
 * pagemap no PAGEMAP_SCAN.
 *
 * Happy path: UFFDIO_API is answered without that feature, and refused with EINVAL when it is asked for, as an
 * unknown one is; PAGEMAP_SCAN gets ENOTTY. All else goes through. Only calls by way of the C library are seen;
 * there are no others here.
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

int ioctl(int fd, unsigned long request, ...) {
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    struct uffdio_api *api = request == UFFDIO_API ? argument : NULL;
    if (api && api->features & UFFD_FEATURE_WP_ASYNC) {
        errno = EINVAL;
        return -1;
    }
    if ((request >> 8 & 0xff) == 'f' &&
        (request & 0xff) == 16) { /* PAGEMAP_SCAN, whatever the size of its struct */
        errno = ENOTTY;
        return -1;
    }
    int result = (int)syscall(SYS_ioctl, fd, request, argument);
    if (api) {
        api->features &= ~(uint64_t)UFFD_FEATURE_WP_ASYNC;
    }
    return result;
}
