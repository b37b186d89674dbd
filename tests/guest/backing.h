/*
 * The memory of the process guest: one mapping of a chosen kind, between two inaccessible neighbours, so that it
 * never merges with another mapping.
 */
#pragma once

#include <stddef.h>

typedef struct {
    const char *kind;     /* as given */
    void *arena;          /* aligned to granule_bytes */
    size_t length_bytes;  /* a multiple of granule_bytes */
    size_t page_bytes;    /* base page of this machine */
    size_t granule_bytes; /* huge page of thp and hugetlb, otherwise the base page */
    int fd;               /* backing file, or -1 */
} Backing;

/* backing_kinds: what backing_map() takes, separated by '|'. */
const char *backing_kinds(void);

/*
 * backing_map: map at least @length_bytes of zeros.
 * @dir: where the file of a tmpfs guest is made; it has no name.
 * Return: 0; -ENOMEM also when there are too few huge pages; -EINVAL for an unknown kind; another -errno.
 */
int backing_map(const char *kind, size_t length_bytes, const char *dir, Backing *ret_backing);
