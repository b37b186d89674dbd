/*
 * The rules by which a mapping becomes a region.
 *
 *     private anonymous                  anon
 *     shared memory, ours alone          shmem, hugetlb; read-only: fixed
 *       also written by another process  refused when writable; else copied
 *       written through a second mapping copied: writes there pass by the protection here
 *     private mapping of shared memory   shmem-private, hugetlb-private; read-only: as a file
 *     private mapping of a file          as the kernel's own core dumps do:
 *       any page of it copied on write   whole; copied when writable, else fixed
 *       none                             its first page when that is an ELF header, which tells a debugger what
 *                                        was mapped; otherwise nothing
 *     shared mapping of a file           copied when writable; otherwise the file has it
 *     [vdso]                             fixed
 *     a device                           refused
 *     [vvar] and other kernel pages      nothing
 *
 * What a file maps beyond its end does not exist: reading there raises SIGBUS in the guest too.
 */
#include "classify.h"

#include <elf.h>
#include <string.h>
#include <sys/uio.h>

#include "foreign.h"
#include "kind.h"

typedef struct {
    const ClassifyContext *context;
    const ProcMap *map;   /* the part in question */
    const ProcMap *whole; /* the mapping that it is a part of */
    MappingInfo info;
    const SharedObject *object; /* (nullable) with its foreign writer */
} Case;

void classify_free(Mapping *mapping) {
    if (mapping) {
        g_free((char *)mapping->map.path);
        g_free(mapping->label);
        snap_region_free(mapping->region);
        g_free(mapping);
    }
}

static gboolean is_shared_memory(const Case *c) {
    return c->info.kind == MAPPING_SHMEM || c->info.kind == MAPPING_HUGETLB;
}

/* Is the same memory mapped shared and writable once more in this process? */
static gboolean has_writable_alias(const Case *c) {
    uint64_t length = c->map->end - c->map->start;
    for (guint i = 0; i < c->context->maps->n_entries; i++) {
        const ProcMap *other = &c->context->maps->entries[i];
        if (other->start != c->whole->start && other->shared && other->writable && other->ino == c->map->ino &&
            other->dev == c->map->dev && other->offset < c->map->offset + length &&
            c->map->offset < other->offset + (other->end - other->start)) {
            return TRUE;
        }
    }
    return FALSE;
}

static uint64_t end_in_file(const Case *c) {
    uint64_t page = c->context->page_bytes;
    uint64_t mapped = c->map->end - c->map->start;
    if (c->info.file_bytes == UINT64_MAX) {
        return c->map->end;
    }
    uint64_t in_file = c->info.file_bytes > c->map->offset ? c->info.file_bytes - c->map->offset : 0;
    return c->map->start + MIN(mapped, (in_file + page - 1) / page * page);
}

static SnapRegion *make(const Case *c, SnapMemory memory) {
    g_autofree char *label = kind_label(c->map);
    g_autofree char *name = g_strdup_printf("%s@%lx", label, c->map->start);
    uint64_t length = end_in_file(c) - c->map->start;
    if (length == 0) {
        return NULL;
    }
    SnapRegion *region = snap_region_new(name, memory, c->map->start, length);
    region->granule_bytes = c->info.granule_bytes;
    region->fd_offset = c->map->offset;
    return region;
}

static SnapRegion *refuse(SnapRegion *region, char *why) {
    if (region && !region->refusal) {
        region->refusal = why;
    } else {
        g_free(why);
    }
    return region;
}

static SnapRegion *refuse_foreign(SnapRegion *region, const SharedObject *object) {
    return refuse(region,
                  g_strdup_printf("process %d (%s) can write this memory too, which cannot be seen from here: "
                                  "leave it out with --region, or end that process",
                                  object->writer_pid, object->writer_name));
}

static gboolean begins_with_elf_header(const Case *c) {
    char magic[SELFMAG];
    struct iovec here = {magic, sizeof(magic)}, there = {(void *)(uintptr_t)c->map->start, sizeof(magic)};
    return c->map->offset == 0 && c->map->readable &&
           process_vm_readv(c->context->pid, &here, 1, &there, 1, 0) == (ssize_t)sizeof(magic) &&
           memcmp(magic, ELFMAG, SELFMAG) == 0;
}

static SnapRegion *make_elf_header(const Case *c) {
    SnapRegion *region = begins_with_elf_header(c) ? make(c, SNAP_MEMORY_FIXED) : NULL;
    if (region) {
        char *name = g_strconcat(region->name, "#elf", NULL);
        g_free(region->name);
        region->name = name;
        region->length_bytes = c->context->page_bytes;
    }
    return region;
}

static SnapRegion *make_private_file(const Case *c, gboolean *ret_may_turn) {
    if (kind_was_written(c->context->pagemap_fd, c->map->start, end_in_file(c), c->context->page_bytes)) {
        return make(c, c->map->writable ? SNAP_MEMORY_COPIED : SNAP_MEMORY_FIXED);
    }
    *ret_may_turn = c->map->writable;
    return make_elf_header(c);
}

static SnapRegion *open_backing(const Case *c, SnapRegion *region) {
    if (region) {
        region->fd = kind_open(c->context->pid, c->whole);
        if (region->fd < 0) {
            refuse(region, g_strdup("the memory object behind it cannot be opened: run as root"));
        }
    }
    return region;
}

static SnapRegion *make_shared_memory(const Case *c) {
    gboolean foreign = c->object && c->object->writer_pid;
    gboolean huge = c->info.kind == MAPPING_HUGETLB;
    if (!c->map->writable) {
        return make(c, foreign || has_writable_alias(c) ? SNAP_MEMORY_COPIED : SNAP_MEMORY_FIXED);
    }
    if (!foreign && has_writable_alias(c)) {
        return make(c, SNAP_MEMORY_COPIED);
    }
    SnapRegion *region = open_backing(c, make(c, huge ? SNAP_MEMORY_HUGETLB : SNAP_MEMORY_SHMEM));
    return foreign && region ? refuse_foreign(region, c->object) : region;
}

/* Pages not written yet are still those of the object below, whoever changes it. */
static SnapRegion *make_private_shared_memory(const Case *c, gboolean *ret_may_turn) {
    gboolean foreign = c->object && c->object->writer_pid;
    gboolean alias = has_writable_alias(c);
    gboolean huge = c->info.kind == MAPPING_HUGETLB;
    if (c->map->writable) {
        SnapMemory memory = huge ? SNAP_MEMORY_HUGETLB_PRIVATE : SNAP_MEMORY_SHMEM_PRIVATE;
        SnapRegion *region = make(c, alias && !foreign ? SNAP_MEMORY_COPIED : memory);
        return foreign && region ? refuse_foreign(region, c->object) : region;
    }
    if (foreign || alias) {
        return make(c, SNAP_MEMORY_COPIED);
    }
    /* A memfd has no name in the file system, so nobody could find its content later. */
    return huge || c->map->deleted ? make(c, SNAP_MEMORY_FIXED) : make_private_file(c, ret_may_turn);
}

static SnapRegion *decide(const Case *c, gboolean *ret_may_turn) {
    switch (c->info.kind) {
    case MAPPING_ANON:
        return make(c, SNAP_MEMORY_ANON);
    case MAPPING_SHMEM:
    case MAPPING_HUGETLB:
        return c->map->shared ? make_shared_memory(c) : make_private_shared_memory(c, ret_may_turn);
    case MAPPING_FILE:
        if (c->map->shared) {
            return c->map->writable ? make(c, SNAP_MEMORY_COPIED) : NULL;
        }
        return make_private_file(c, ret_may_turn);
    case MAPPING_VDSO:
        return make(c, SNAP_MEMORY_FIXED);
    case MAPPING_DEVICE:
        return refuse(make(c, SNAP_MEMORY_COPIED),
                      g_strdup_printf("it is memory of the device %s, which cannot be saved: "
                                      "leave it out with --region",
                                      c->map->path));
    case MAPPING_UNKNOWN:
        return refuse(make(c, SNAP_MEMORY_COPIED),
                      g_strdup_printf("cannot find out what %s is: run as root", c->map->path));
    case MAPPING_NONE:
        return NULL;
    }
    g_assert_not_reached();
}

static gboolean has_other_userfaultfd(const ClassifyContext *context, const ProcMap *map) {
    for (guint i = 0; context->flags && i < context->flags->len; i++) {
        const ProcVmFlags *flags = &g_array_index(context->flags, ProcVmFlags, i);
        if (flags->userfault && flags->start < map->end && map->start < flags->end) {
            return TRUE;
        }
    }
    return FALSE;
}

static Mapping *classify_case(const Case *c) {
    Mapping *mapping = g_new0(Mapping, 1);
    mapping->map = *c->map;
    mapping->map.path = g_strdup(c->map->path);
    mapping->label = kind_label(c->map);
    mapping->end_in_file = end_in_file(c);
    mapping->region = decide(c, &mapping->may_turn);
    if (mapping->region && has_other_userfaultfd(c->context, c->map)) {
        refuse(mapping->region,
               g_strdup("another userfaultfd watches this memory already: leave it out with --region"));
    }
    return mapping;
}

SnapRegion *classify_turned(const Mapping *mapping) {
    g_autofree char *name = g_strdup_printf("%s@%lx", mapping->label, mapping->map.start);
    return snap_region_new(name, SNAP_MEMORY_COPIED, mapping->map.start,
                           mapping->end_in_file - mapping->map.start);
}

/* One object for every different one among @cases; each case is given a pointer to its own. */
static GArray *find_objects(int pid, Case *cases, guint n_cases) {
    g_autoptr(GHashTable) known = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    GArray *objects = g_array_new(FALSE, TRUE, sizeof(SharedObject));
    g_autofree guint *numbers = g_new0(guint, n_cases + 1); /* from 1; 0 is none */
    for (guint i = 0; i < n_cases; i++) {
        if (!is_shared_memory(&cases[i])) {
            continue;
        }
        SharedObject object = {.dev = cases[i].map->dev, .ino = cases[i].map->ino};
        char *key = g_strdup_printf("%lx:%lu", object.dev, object.ino);
        numbers[i] = GPOINTER_TO_UINT(g_hash_table_lookup(known, key));
        if (!numbers[i]) {
            g_array_append_val(objects, object);
            numbers[i] = objects->len;
        }
        g_hash_table_replace(known, key, GUINT_TO_POINTER(numbers[i]));
    }
    foreign_find(pid, (SharedObject *)(void *)objects->data, objects->len);
    for (guint i = 0; i < n_cases; i++) {
        cases[i].object = numbers[i] ? &g_array_index(objects, SharedObject, numbers[i] - 1) : NULL;
    }
    return objects;
}

void classify(const ClassifyContext *context, const ProcMap *wanted, guint n_wanted, GPtrArray *ret_mappings) {
    g_autofree Case *cases = g_new0(Case, n_wanted + 1);
    for (guint i = 0; i < n_wanted; i++) {
        const ProcMap *whole = maps_find(context->maps, wanted[i].start);
        cases[i] = (Case){.context = context,
                          .map = &wanted[i],
                          .whole = whole,
                          .info = kind_of_mapping(context->pid, whole, context->page_bytes)};
    }
    g_autoptr(GArray) objects = find_objects(context->pid, cases, n_wanted);
    for (guint i = 0; i < n_wanted; i++) {
        g_ptr_array_add(ret_mappings, classify_case(&cases[i]));
    }
    for (guint i = 0; i < objects->len; i++) {
        g_free(g_array_index(objects, SharedObject, i).writer_name);
    }
}
