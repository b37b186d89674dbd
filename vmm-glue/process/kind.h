/*
 * What a mapping is made of: decides whether and how its memory can be protected.
 */
#pragma once

#include <glib.h>
#include <stdint.h>

#include "maps.h"

G_BEGIN_DECLS

typedef enum {
    MAPPING_NONE,    /* not the guest's memory: [vvar], rings of io_uring, a vCPU's communication page */
    MAPPING_ANON,    /* private anonymous */
    MAPPING_SHMEM,   /* memfd, tmpfs, SysV, shared anonymous */
    MAPPING_HUGETLB, /* the same of huge pages */
    MAPPING_FILE,    /* a file on disk */
    MAPPING_VDSO,    /* the kernel's code page */
    MAPPING_DEVICE,  /* memory of a device */
    MAPPING_UNKNOWN, /* could not be looked at */
} MappingKind;

typedef struct {
    MappingKind kind;
    uint64_t granule_bytes; /* of HUGETLB: its page; of others the base page */
    uint64_t file_bytes; /* how long the file is: beyond it there is nothing to read; UINT64_MAX without a file */
} MappingInfo;

/**
 * kind_of_mapping: look at one mapping of process @pid; a system call or two where it has a file.
 * @map: (borrow) exactly as maps has it. @page_bytes: the base page.
 */
MappingInfo kind_of_mapping(int pid, const ProcMap *map, uint64_t page_bytes);

/** kind_open: the object behind a SHMEM or HUGETLB mapping, for reading. Return: (out) a descriptor, or -1. */
int kind_open(int pid, const ProcMap *map);

/** kind_label: a short word for what is mapped: "heap", "memfd:ram", "libc.so.6". Return: (out) g_free() it. */
char *kind_label(const ProcMap *map);

/**
 * kind_was_written: are there pages in [@start, @end) of a private file mapping that are not the file's any more?
 * @pagemap_fd: (borrow) of /proc/PID/pagemap.
 * Return: TRUE also when it cannot be told.
 */
gboolean kind_was_written(int pagemap_fd, uint64_t start, uint64_t end, uint64_t page_bytes);

G_END_DECLS
