/*
 * libsnap: point-in-time copies of a running guest's memory, and the image they are kept in.
 *
 *     SnapGuest  = regions of memory + how to stop and go on     (an interface; vmm-glue/ has several)
 *     SnapSave   = one snapshot of one guest into one image directory, a job with a thread of its own
 *     SnapImage  = an image directory opened for reading
 *
 * A guest address (where the guest's own CPU or program sees a byte) is a uint64_t, a pointer of this process
 * is a void *; the two are never mixed. Sizes carry their unit in the name: _bytes, _pages, _ns.
 *
 * Ownership: (borrow) the callee keeps nothing after it returns, unless it says how long; (take) the callee
 * owns it, whether it succeeds or not; (out) the caller owns what comes back.
 *
 * Threads: a function may be called from any thread, but one object by one thread at a time, unless the
 * function says otherwise.
 */
#pragma once

#include <glib.h>
#include <stdint.h>

G_BEGIN_DECLS

/* ---- errors ---------------------------------------------------------------------------------------------- */
/* X(NAME, text for people, QMP error class) */
#define SNAP_ERROR_TABLE(X)                                                       \
    X(FAILED, "failed", "GenericError")                                           \
    X(USAGE, "wrong usage", "GenericError")                                       \
    X(NOT_SUPPORTED, "not supported here", "GenericError")                        \
    X(PERMISSION, "not permitted", "GenericError")                                \
    X(REFUSED, "refused", "GenericError")                                         \
    X(GUEST_GONE, "the guest is gone", "DeviceNotFound")                          \
    X(LOST, "guest memory was lost before it was saved", "GenericError")          \
    X(BUFFER_FULL, "the buffer is full", "GenericError")                          \
    X(IO, "input/output error", "GenericError")                                   \
    X(NO_SPACE, "no space left", "GenericError")                                  \
    X(EXISTS, "exists already", "GenericError")                                   \
    X(NOT_FOUND, "not found", "DeviceNotFound")                                   \
    X(INCOMPLETE, "the image is incomplete", "GenericError")                      \
    X(CORRUPT, "the image is damaged", "GenericError")                            \
    X(PROTOCOL, "the other side does not speak the protocol", "GenericError")     \
    X(TIMED_OUT, "timed out", "GenericError")                                     \
    X(CANCELLED, "cancelled", "GenericError")

typedef enum {
#define X(name, text, qmp_class) SNAP_ERROR_##name,
    SNAP_ERROR_TABLE(X)
#undef X
        SNAP_ERROR_MAX
} SnapErrorCode;

#define SNAP_ERROR (snap_error_quark())

/**
 * snap_error_quark: the GError domain of everything in libsnap.
 * Return: the quark. Thread: any.
 */
GQuark snap_error_quark(void);

/**
 * snap_error_text: what a code means, in a few words for people.
 * @code: a SnapErrorCode; anything else reads as FAILED.
 * Return: a static string. Thread: any.
 */
const char *snap_error_text(int code);

/**
 * snap_error_qmp_class: the error class a QMP server answers with.
 * @code: a SnapErrorCode; anything else reads as FAILED.
 * Return: a static string. Thread: any.
 */
const char *snap_error_qmp_class(int code);

/**
 * snap_error_from_errno: the code that an errno value stands for where nothing better is known.
 * @errnum: a positive errno value.
 * Return: PERMISSION for EPERM and EACCES, GUEST_GONE for ESRCH, NO_SPACE for ENOSPC and EDQUOT, EXISTS for
 *   EEXIST, NOT_FOUND for ENOENT, TIMED_OUT for ETIMEDOUT, otherwise IO. Thread: any.
 */
SnapErrorCode snap_error_from_errno(int errnum);

/**
 * snap_set_errno: set @error from an errno value: "MESSAGE: strerror text".
 * @error: (out) (nullable) where the GError goes, as in g_set_error().
 * @errnum: a positive errno value, which also chooses the code.
 * @format: what was being done, to what.
 * Thread: any.
 */
void snap_set_errno(GError **error, int errnum, const char *format, ...) G_GNUC_PRINTF(3, 4);

/* ---- guest memory ---------------------------------------------------------------------------------------- */

/* What backs a region. It decides how the region is protected, how it is read, and how its holes are known. */
typedef enum {
    SNAP_MEMORY_ANON,            /* private anonymous, with or without transparent huge pages */
    SNAP_MEMORY_SHMEM,           /* shared mapping of a memfd, tmpfs file, SysV segment or /dev/zero */
    SNAP_MEMORY_SHMEM_PRIVATE,   /* private mapping of a memfd or tmpfs file */
    SNAP_MEMORY_HUGETLB,         /* shared hugetlb */
    SNAP_MEMORY_HUGETLB_PRIVATE, /* private hugetlb */
    SNAP_MEMORY_COPIED,          /* cannot be protected: copied whole while the guest is stopped */
    SNAP_MEMORY_FIXED,           /* nobody writes it (read-only mappings): read at leisure */
    SNAP_MEMORY_MAX
} SnapMemory;

/**
 * snap_memory_name: "anon", "shmem", "shmem-private", "hugetlb", "hugetlb-private", "copied" or "fixed".
 * Return: a static string; NULL when out of range. Thread: any.
 */
const char *snap_memory_name(SnapMemory memory);

#define SNAP_NO_ADDRESS UINT64_MAX

/* A run of guest memory that is one mapping in the guest's process and one file in the image. */
typedef struct {
    char *name;             /* unique in the guest; any UTF-8 without NUL */
    char *refusal;          /* (nullable) why it cannot be saved; a snapshot that includes it is refused so */
    SnapMemory memory;
    uint64_t guest_address; /* where the guest sees it, or SNAP_NO_ADDRESS */
    uint64_t host_address;  /* where the guest's process maps it */
    uint64_t length_bytes;  /* a multiple of page_bytes */
    uint64_t page_bytes;    /* base page size: what the image counts in */
    uint64_t granule_bytes; /* what the kernel protects at once: a base page, or the huge page of hugetlb */
    int fd;                 /* backing file for SHMEM and HUGETLB (owned), readable; -1 for the others */
    uint64_t fd_offset;     /* where in that file the region starts */
} SnapRegion;

/**
 * snap_region_new: a region with page_bytes and granule_bytes of this machine's base page, no refusal, no
 *   guest address and no descriptor; change the fields before it is handed on.
 * @name: (borrow) its name.
 * Return: (out) free with snap_region_free().
 */
SnapRegion *snap_region_new(const char *name, SnapMemory memory, uint64_t host_address, uint64_t length_bytes);

/** snap_region_free: free a region and close its descriptor; NULL is allowed. */
void snap_region_free(SnapRegion *region);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapRegion, snap_region_free)

/* ---- guests ---------------------------------------------------------------------------------------------- */

/*
 * What turns a VMM, or any process, into a guest. All functions are called in the thread of the job that works
 * on the guest, never in the fault thread. Order in one snapshot:
 *
 *     list_regions(FALSE)  open_uffd  …pre-arm while the guest runs…
 *     pause(READY)  …once more…  pause(STOP)  list_regions(TRUE)  …arm…  resume  get_state  …sweep…
 *
 * resume is called after every pause, of either step, whether that succeeded or not.
 */
typedef enum {
    SNAP_PAUSE_READY, /* all that can be done for the stop while the guest runs; what takes long belongs here */
    SNAP_PAUSE_STOP,  /* stop it */
} SnapPauseStep;

typedef struct {
    /*
     * Append every region of the guest as it is now to @regions, (take) by the caller. With @paused the guest is
     * stopped: be quick, and list what has changed since as well. A region that is also in the previous listing
     * keeps its name.
     */
    gboolean (*list_regions)(void *opaque, gboolean paused, GPtrArray *regions, GError **error);
    /* A new userfaultfd of the guest's address space, before UFFDIO_API, O_CLOEXEC | O_NONBLOCK; -1 on error. */
    int (*open_uffd)(void *opaque, GError **error);
    /* Stop everything that writes the guest's memory and take its device state. */
    gboolean (*pause)(void *opaque, SnapPauseStep step, GError **error);
    /* Let it run again, if it ran before. @ret_pause_ns: how long the guest was stopped, in ns. */
    gboolean (*resume)(void *opaque, uint64_t *ret_pause_ns, GError **error);
    /* Append the SnapState blobs taken in the last pause to @states, (take) by the caller. */
    gboolean (*get_state)(void *opaque, GPtrArray *states, GError **error);
    void (*free)(void *opaque);
} SnapGuestOps;

/* A named blob of device state: NAME/state/<name> in the image. */
typedef struct {
    char *name;
    GBytes *data;
} SnapState;

/** snap_state_new: a blob. @name: (borrow). @data: (take). Return: (out) free with snap_state_free(). */
SnapState *snap_state_new(const char *name, GBytes *data);
/** snap_state_free: NULL is allowed. */
void snap_state_free(SnapState *state);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapState, snap_state_free)

typedef struct SnapGuest SnapGuest;

/**
 * snap_guest_new: a guest.
 * @driver: (borrow) what kind it is, for the manifest: "process", "qemu", "embedded" …
 * @pid: the process whose memory it is; 0 for this process.
 * @ops: (borrow) for the life of the guest.
 * @opaque: (take) handed to every function of @ops, freed by ops->free.
 * Return: (out) free with snap_guest_free().
 */
SnapGuest *snap_guest_new(const char *driver, int pid, const SnapGuestOps *ops, void *opaque);
/** snap_guest_free: NULL is allowed. No job may be using it. */
void snap_guest_free(SnapGuest *guest);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapGuest, snap_guest_free)
/** snap_guest_pid: the process whose memory it is, never 0. Thread: any. */
int snap_guest_pid(const SnapGuest *guest);

/* ---- the save job ---------------------------------------------------------------------------------------- */

/* What happens when pre-images fill the buffer. */
typedef enum {
    SNAP_AT_CAP_BLOCK, /* the guest's write waits for the sweep to reach it */
    SNAP_AT_CAP_ABORT, /* the snapshot fails, the guest runs on */
} SnapAtCap;

typedef struct {
    const char *dir;              /* image directory; must not exist, or be empty */
    const char *region_glob;      /* (nullable) save only regions whose name matches; * ? as in a shell */
    uint64_t buffer_bytes;        /* hard cap on pre-images and staging; 0 = 64 MiB */
    SnapAtCap at_cap;
    uint64_t max_bandwidth_bytes; /* a second, to the image; 0 = no limit */
} SnapSaveOptions;

typedef enum {
    SNAP_SAVE_PREPARING, /* attaching, pre-arming */
    SNAP_SAVE_PAUSED,    /* the guest is stopped */
    SNAP_SAVE_SWEEPING,  /* the guest runs, its memory is being written out */
    SNAP_SAVE_FINISHING, /* everything is captured; fsync and manifest */
    SNAP_SAVE_DONE,
    SNAP_SAVE_FAILED,
} SnapSavePhase;

/* Where a save is; after its end, what it was. */
typedef struct {
    SnapSavePhase phase;
    guint attempts;              /* how often it was started: a loss of guest memory starts it again */
    uint64_t pages_total;        /* base pages in the saved regions */
    uint64_t pages_done;         /* of them: captured or known to be zero */
    uint64_t pages_zero;
    uint64_t pages_by_sweep;
    uint64_t pages_by_fault;
    uint64_t bytes_written;      /* page data to the image */
    uint64_t pause_ns;
    uint64_t prepare_ns;         /* start to pause */
    uint64_t total_ns;           /* start to the manifest on disk; or till now */
    uint64_t faults;             /* messages served after the point in time */
    uint64_t fault_p50_ns;       /* message read to guest released */
    uint64_t fault_p99_ns;
    uint64_t fault_p999_ns;
    uint64_t fault_max_ns;
    uint64_t peak_buffer_bytes;
} SnapSaveStats;

typedef struct SnapSave SnapSave;

/**
 * snap_save_start: begin a snapshot; returns at once, the work is done by a thread "snap-save".
 * @guest: (borrow) until snap_save_free().
 * @options: (borrow).
 * Errors: EXISTS, the directory is there and not empty; others when it cannot be made.
 * Return: (out) free with snap_save_free(); NULL on error.
 */
SnapSave *snap_save_start(SnapGuest *guest, const SnapSaveOptions *options, GError **error);

/**
 * snap_save_wait: wait for the end, at most @timeout_ms (-1: without limit).
 * Errors: TIMED_OUT, it still runs; otherwise what the save failed with: REFUSED, PERMISSION, GUEST_GONE, LOST,
 *   BUFFER_FULL, NO_SPACE, IO, CANCELLED, NOT_SUPPORTED.
 * Return: TRUE when the image is complete and on disk. Blocks. Thread: any.
 */
gboolean snap_save_wait(SnapSave *save, int timeout_ms, GError **error);

/** snap_save_cancel: ask it to stop; returns at once. The guest is released, the image removed. Thread: any. */
void snap_save_cancel(SnapSave *save);

/** snap_save_get_stats: where it is. @ret_stats: (out). Never blocks on I/O. Thread: any. */
void snap_save_get_stats(SnapSave *save, SnapSaveStats *ret_stats);

/** snap_save_free: cancel it if it runs, wait for its thread, free. NULL is allowed. */
void snap_save_free(SnapSave *save);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapSave, snap_save_free)

/* ---- images ---------------------------------------------------------------------------------------------- */

typedef struct SnapImage SnapImage;

/* One region as the image holds it. Borrowed from the SnapImage. */
typedef struct {
    const char *name;
    const char *raw_path;   /* absolute path of its .img, mappable as it is; NULL when compressed */
    const char *memory;     /* snap_memory_name() of what it was */
    uint64_t guest_address; /* or SNAP_NO_ADDRESS */
    uint64_t host_address;
    uint64_t length_bytes;
    uint64_t page_bytes;
    uint64_t granule_bytes;
} SnapImageRegion;

/* The head of the manifest. Borrowed from the SnapImage. */
typedef struct {
    const char *dir;
    const char *id;
    const char *parent_id; /* (nullable) */
    const char *driver;
    const char *created;   /* ISO 8601, UTC: the point in time of the copy */
    uint64_t page_bytes;
    guint n_regions;
    guint n_states;
} SnapImageInfo;

/**
 * snap_image_open: open an image directory and check its manifest, every file's presence and length, and the
 *   checksums of the small ones (.idx and state); page data is checked as it is read.
 * Errors: NOT_FOUND, no such directory; INCOMPLETE, it has no manifest; CORRUPT, what is wrong and in which
 *   file; NOT_SUPPORTED, a newer format.
 * Return: (out) free with snap_image_free().
 */
SnapImage *snap_image_open(const char *dir, GError **error);
/** snap_image_free: NULL is allowed. */
void snap_image_free(SnapImage *image);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapImage, snap_image_free)

/** snap_image_info: the head of the manifest, (borrow) for the life of @image. */
const SnapImageInfo *snap_image_info(const SnapImage *image);
/** snap_image_region: region @i < n_regions, in the order they were saved, (borrow) for the life of @image. */
const SnapImageRegion *snap_image_region(const SnapImage *image, guint i);
/** snap_image_find_region: the index of the region called @name, or -1. */
int snap_image_find_region(const SnapImage *image, const char *name);
/** snap_image_state_name: name of state blob @i < n_states, (borrow) for the life of @image. */
const char *snap_image_state_name(const SnapImage *image, guint i);
/** snap_image_statistic: a number of the manifest's statistics by its JSON name, or 0 where it is not there. */
uint64_t snap_image_statistic(const SnapImage *image, const char *name);
/**
 * snap_image_state: the content of a state blob. Errors: NOT_FOUND, CORRUPT, IO.
 * Return: (out) g_bytes_unref() it.
 */
GBytes *snap_image_state(const SnapImage *image, const char *name, GError **error);

/**
 * snap_image_read: guest memory as it was; absent and zero pages read as zeros; checksums are verified.
 * @region: its index. @offset_bytes, @length_bytes: inside the region, multiples of its page size.
 * Errors: CORRUPT, naming region and chunk; IO. Thread: any, several at once.
 */
gboolean snap_image_read(const SnapImage *image, guint region, uint64_t offset_bytes, void *ret_data,
                         size_t length_bytes, GError **error);

/**
 * snap_image_next_data: the next run of pages that are not zero.
 * @from_bytes: where to look from. @ret_start_bytes, @ret_end_bytes: (out) the run, page aligned, in the region.
 * Return: FALSE when there is none up to the end. Thread: any.
 */
gboolean snap_image_next_data(const SnapImage *image, guint region, uint64_t from_bytes,
                              uint64_t *ret_start_bytes, uint64_t *ret_end_bytes);

/* Called now and then by long work: bytes done of all; return FALSE to cancel. */
typedef gboolean (*SnapProgressFunc)(uint64_t done_bytes, uint64_t total_bytes, void *opaque);

/**
 * snap_image_verify: read everything and check it against its checksums, and that pages recorded as zero or
 *   absent are holes. @progress: (nullable) called in this thread.
 * Errors: CORRUPT with the first thing wrong; IO; CANCELLED.
 */
gboolean snap_image_verify(const SnapImage *image, SnapProgressFunc progress, void *opaque, GError **error);

/**
 * snap_image_delete: remove an image directory, complete or not; the manifest goes first, so that an interrupted
 *   delete leaves an incomplete image. Nothing but the files of an image is removed.
 * Errors: NOT_FOUND; REFUSED, something in it is not part of an image (nothing has been removed then); IO.
 */
gboolean snap_image_delete(const char *dir, GError **error);

/* ---- this machine ---------------------------------------------------------------------------------------- */

typedef enum {
    SNAP_PROBE_YES,
    SNAP_PROBE_NO,      /* this kernel or machine does not have it */
    SNAP_PROBE_DENIED,  /* it is there, this user may not use it */
} SnapProbeAnswer;

/* One thing the library can use. All strings are static or owned by the array. */
typedef struct {
    const char *group;   /* "userfaultfd", "pagemap", "device", "machine" */
    const char *name;    /* e.g. "wp-async" */
    SnapProbeAnswer answer;
    gboolean required;   /* nothing works without it */
    const char *lost;    /* what is lost without it */
    const char *remedy;  /* how to get it */
} SnapProbeItem;

/**
 * snap_probe: ask kernel and machine what is there. Touches no guest; takes a few ms.
 * @ret_n_items: (out) how many.
 * Return: (out) g_free() the array. Thread: any.
 */
SnapProbeItem *snap_probe(guint *ret_n_items);

G_END_DECLS
