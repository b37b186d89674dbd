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
#define SNAP_ERROR_TABLE(X)                                                                                       \
    X(FAILED, "failed", "GenericError")                                                                           \
    X(USAGE, "wrong usage", "GenericError")                                                                       \
    X(NOT_SUPPORTED, "not supported here", "GenericError")                                                        \
    X(PERMISSION, "not permitted", "GenericError")                                                                \
    X(REFUSED, "refused", "GenericError")                                                                         \
    X(GUEST_GONE, "the guest is gone", "DeviceNotFound")                                                          \
    X(LOST, "guest memory was lost before it was saved", "GenericError")                                          \
    X(BUFFER_FULL, "the buffer is full", "GenericError")                                                          \
    X(IO, "input/output error", "GenericError")                                                                   \
    X(NO_SPACE, "no space left", "GenericError")                                                                  \
    X(EXISTS, "exists already", "GenericError")                                                                   \
    X(NOT_FOUND, "not found", "DeviceNotFound")                                                                   \
    X(INCOMPLETE, "the image is incomplete", "GenericError")                                                      \
    X(CORRUPT, "the data is damaged", "GenericError")                                                             \
    X(PROTOCOL, "the other side does not speak the protocol", "GenericError")                                     \
    X(TIMED_OUT, "timed out", "GenericError")                                                                     \
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

/* Bytes in the guest's process. */
typedef struct {
    uint64_t address;
    uint64_t length_bytes;
} SnapRange;

/* A run of guest memory that is one mapping in the guest's process and one file in the image. */
typedef struct {
    char *name;    /* unique in the guest; any UTF-8 without NUL */
    char *refusal; /* (nullable) why it cannot be saved; a snapshot that includes it is refused so */
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

/**
 * snap_region_copy: a copy with a name, a refusal and a descriptor of its own. Where there is no descriptor to be
 * had for it, it has a refusal that says so.
 * @region: (borrow). Return: (out) free with snap_region_free().
 */
SnapRegion *snap_region_copy(const SnapRegion *region);

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
    /* A new userfaultfd of the guest's address space, before UFFDIO_API, O_CLOEXEC | O_NONBLOCK; -1 on error.
     * (nullable) where the guest's memory is this process's. */
    int (*open_uffd)(void *opaque, GError **error);
    /* Stop everything that writes the guest's memory and take its device state. */
    gboolean (*pause)(void *opaque, SnapPauseStep step, GError **error);
    /* Let it run again, if it ran before. @ret_pause_ns: how long the guest was stopped, in ns. */
    gboolean (*resume)(void *opaque, uint64_t *ret_pause_ns, GError **error);
    /* (nullable) Append the SnapState blobs taken in the last pause to @states, (take) by the caller. */
    gboolean (*get_state)(void *opaque, GPtrArray *states, GError **error);
    /*
     * (nullable) Append to @addresses (uint64_t) where the kernel may be about to write for the guest without
     * being able to wait for a fault to be served: locks with priority inheritance that a thread waits for, robust
     * locks that one holds. Their pages are never left protected; the kernel would refuse the guest's call with
     * EFAULT.
     * @paused: between pause(STOP) and resume; else a look at the running guest, which misses what has just begun.
     */
    void (*list_spared)(void *opaque, gboolean paused, GArray *addresses);
    /*
     * (nullable) Append to @ranges (SnapRange) what is written past the page tables whenever it suits a device:
     * buffers that are pinned for good. It is copied while the guest stands, page by page, and always dirty for
     * logs, so it should be little. Called while the guest runs and between pause(STOP) and resume.
     */
    void (*list_unseen)(void *opaque, GArray *ranges);
    void (*free)(void *opaque); /* (nullable) */
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
/**
 * snap_guest_mark_dirty: tell whoever logs this guest now (a SnapTracker; a SnapOutgoing, also one that a client
 * of the QMP server has begun) of a write that page tables do not see: a device's, another process's. After the
 * write; for what is written until the guest stands, before pause(STOP) returns.
 * @address, @length_bytes: in the guest's process; widened to whole pages. What is not logged is passed over:
 * before a log begins there is nothing to tell. Thread: any, which holds no lock that list_regions takes: it may
 * wait for a collection that is under way.
 */
void snap_guest_mark_dirty(SnapGuest *guest, uint64_t address, uint64_t length_bytes);
/**
 * snap_guest_set_identity: what tells this guest from every other for as long as it lives; images carry it, and an
 *   image is not made the child of another guest's. Without it only the kind of guest is compared.
 * @identity: (borrow) UTF-8.
 */
void snap_guest_set_identity(SnapGuest *guest, const char *identity);
/** snap_guest_pid: the process whose memory it is, never 0. Thread: any. */
int snap_guest_pid(const SnapGuest *guest);
/**
 * snap_guest_opaque: what snap_guest_new() was given, for the functions of its own kind of guest. Thread: any.
 * @ops: (borrow) the table that it was made with.
 * Return: (borrow) the guest's for its life; NULL when it is of another kind.
 */
void *snap_guest_opaque(const SnapGuest *guest, const SnapGuestOps *ops);

/* ---- the dirty log --------------------------------------------------------------------------------------- */

/* How writes are logged. The table of switches is in track.c. */
typedef enum {
    SNAP_TRACK_OFF,   /* not at all: nothing is registered */
    SNAP_TRACK_ASYNC, /* by the kernel itself: a first write costs the guest under 1 µs (Linux 6.7) */
    SNAP_TRACK_SYNC,  /* by a thread of ours that every first write waits for (Linux 6.4) */
    SNAP_TRACK_MAX
} SnapTrackMode;

/**
 * snap_track_mode_name: "off", "async" or "sync".
 * Return: a static string; NULL when out of range. Thread: any.
 */
const char *snap_track_mode_name(SnapTrackMode mode);

/*
 * The dirty log of one guest: which pages were written since they were last collected. Exact to the granule of the
 * region: a page may be reported twice, and is never missed, but for what page tables cannot see:
 * writers that do not write through the guest's own mapping (pwrite(2) or another mapping of the same file,
 * devices, a hole punched into shared memory). Those have to be told: snap_tracker_mark_dirty().
 */
typedef struct SnapTracker SnapTracker;

/**
 * snap_tracker_new: the log of a guest, OFF at first. One at a time for one guest.
 * @guest: (borrow) until snap_tracker_free().
 * @region_glob: (nullable) (borrow) only regions whose name matches; read-only mappings are never in it. "": none,
 *   for a tracker that only serves watches.
 * Return: (out) free with snap_tracker_free().
 */
SnapTracker *snap_tracker_new(SnapGuest *guest, const char *region_glob);

/** snap_tracker_free: lets go of the guest's memory, whatever writes it meanwhile. Its watches are gone. NULL is
 *   allowed. */
void snap_tracker_free(SnapTracker *tracker);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapTracker, snap_tracker_free)

/**
 * snap_tracker_set_mode: switch. From OFF the log starts: nothing is dirty but what is written from now on.
 *   Between SYNC and ASYNC everything stays known when the guest stands still; when it runs, all that was mapped
 *   is dirty afterwards, as writes in the moment without protection cannot be known. Takes 10 to 30 ms a GiB of
 *   4 KiB pages, the guest waits for none of it but its own page faults.
 * @stands: the caller has stopped everything that writes the guest's memory.
 * Errors: NOT_SUPPORTED, this kernel has not got that mode, or not for such memory, by name; REFUSED, another
 *   userfaultfd has a region, by name; GUEST_GONE; PERMISSION. The mode is OFF then.
 * Thread: any.
 */
gboolean snap_tracker_set_mode(SnapTracker *tracker, SnapTrackMode mode, gboolean stands, GError **error);

/** snap_tracker_mode: Thread: any. */
SnapTrackMode snap_tracker_mode(SnapTracker *tracker);

/* Bytes [offset, offset + length) of a region are dirty. Called in the thread that collects. */
typedef void (*SnapDirtyFunc)(const SnapRegion *region, uint64_t offset_bytes, uint64_t length_bytes,
                              void *opaque);

/* What a collection found. */
typedef struct {
    uint64_t n_pages;     /* base pages reported */
    uint64_t n_ranges;    /* in so many ranges */
    uint64_t pages_total; /* base pages that are logged */
    uint64_t scan_ns;     /* how long it took, with listing regions anew where mappings have changed */
} SnapDirtyStats;

/**
 * snap_tracker_collect: report what was written since the last collection, and log on from there, page by page in
 *   one step of the kernel. Read a page after the collection that reported it, and no write is missed. What has
 *   come up since is dirty; what has gone is not reported.
 * @func: may not call back into the tracker.
 * @ret_stats: (nullable).
 * Errors: USAGE, the mode is OFF; REFUSED, another userfaultfd has taken a region over; GUEST_GONE. What had been
 *   reported until then is cleared, and the log is void: switch to OFF and begin again.
 * Thread: any.
 */
gboolean snap_tracker_collect(SnapTracker *tracker, SnapDirtyFunc func, void *opaque, SnapDirtyStats *ret_stats,
                              GError **error);

/**
 * snap_tracker_collect_bitmap: the same for one region, as bits.
 * @region: (borrow) its name. @bitmap: bit i of word i / 64 is page i (base pages); bits are set, none is cleared.
 * @n_words: its length; the region has no more than 64 times as many pages.
 * Errors: as above; NOT_FOUND, there is no such region; USAGE, the bitmap is too short.
 */
gboolean snap_tracker_collect_bitmap(SnapTracker *tracker, const char *region, uint64_t *bitmap, gsize n_words,
                                     GError **error);

/**
 * snap_tracker_mark_dirty: tell of a write that page tables do not see.
 * @address, @length_bytes: in the guest's process; widened to whole pages. What is not logged is passed over.
 * Thread: any.
 */
void snap_tracker_mark_dirty(SnapTracker *tracker, uint64_t address, uint64_t length_bytes);

/*
 * Write watch: the addresses in one range that were written since it was last reset; for emulators, captures of
 * graphics memory, garbage collectors. Several watches and collections of one tracker may overlap: each has its
 * own view, and none takes anything from another. While a snapshot of the guest is being taken, the kernel's log
 * is not to be had, and watches report all of their range.
 */
typedef struct SnapWatch SnapWatch;

/**
 * snap_watch_new: watch a range of any mapping, from now on. The tracker is in ASYNC or SYNC.
 * @address, @length_bytes: in the guest's process, mapped, whole pages (of hugetlb: whole huge pages).
 * Errors: USAGE, the mode is OFF, or no whole pages; NOT_FOUND, a part is not mapped; REFUSED, another userfaultfd
 *   has it; NOT_SUPPORTED, not for such memory in this mode.
 * Return: (out) free with snap_watch_free(), before the tracker.
 */
SnapWatch *snap_watch_new(SnapTracker *tracker, uint64_t address, uint64_t length_bytes, GError **error);

/** snap_watch_free: NULL is allowed. Thread: any. */
void snap_watch_free(SnapWatch *watch);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapWatch, snap_watch_free)

typedef enum {
    SNAP_WATCH_PEEK,  /* leave it as it is */
    SNAP_WATCH_RESET, /* what is returned is clean from then on, until it is written again: in one step */
} SnapWatchGet;

/**
 * snap_watch_get: addresses written, ascending, one a granule.
 * @start_address: where to look from, inside the watch; *@ret_next of the call before to go on.
 * @ret_addresses: (out) up to @n_addresses of them. @ret_n: (out) how many.
 * @ret_next: (out) where to go on; the end of the watch when all was looked at.
 * @ret_granule_bytes: (out) (nullable) what one address stands for.
 * Errors: REFUSED, a part of the range is no longer mapped, or no longer watched; it is then never called clean.
 *   GUEST_GONE; USAGE.
 * Thread: any, several at once.
 */
gboolean snap_watch_get(SnapWatch *watch, SnapWatchGet how, uint64_t start_address, uint64_t *ret_addresses,
                        gsize n_addresses, gsize *ret_n, uint64_t *ret_next, uint64_t *ret_granule_bytes,
                        GError **error);

/** snap_watch_reset: call all of it clean. Errors: as above. Thread: any. */
gboolean snap_watch_reset(SnapWatch *watch, GError **error);

/* ---- the save job ---------------------------------------------------------------------------------------- */

/* What happens when pre-images fill the buffer. */
typedef enum {
    SNAP_AT_CAP_BLOCK, /* the guest's write waits for the sweep to reach it */
    SNAP_AT_CAP_ABORT, /* the snapshot fails, the guest runs on */
} SnapAtCap;

typedef struct {
    const char *dir;         /* image directory; must not exist, or be empty */
    const char *parent_dir;  /* (nullable) an image of the same guest: hold only what differs from it */
    gboolean keep_log;       /* log what is written from the point in time on, until snap_guest_free(): the next
                                save with this image as its parent then knows what to look at. Costs the guest
                                a fault for the first write to each page after each point */
    const char *region_glob; /* (nullable) save only regions whose name matches; * ? as in a shell */
    uint64_t buffer_bytes;   /* hard cap on pre-images and staging; 0 = 64 MiB */
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
    guint attempts;           /* how often it was started: a loss of guest memory starts it again */
    uint64_t pages_total;     /* base pages in the saved regions */
    uint64_t pages_done;      /* of them: captured, known to be zero or unchanged */
    uint64_t pages_unchanged; /* the parent image has them */
    uint64_t pages_zero;
    uint64_t pages_by_sweep;
    uint64_t pages_by_fault;
    uint64_t bytes_written; /* page data to the image */
    uint64_t pause_ns;
    uint64_t prepare_ns;   /* start to pause */
    uint64_t total_ns;     /* start to the manifest on disk; or till now */
    uint64_t faults;       /* messages served after the point in time */
    uint64_t fault_p50_ns; /* message read to guest released */
    uint64_t fault_p99_ns;
    uint64_t fault_p999_ns;
    uint64_t fault_max_ns;
    uint64_t buffer_bytes;      /* in use now: pre-images and staging */
    uint64_t buffer_cap_bytes;  /* what may be */
    uint64_t peak_buffer_bytes; /* what was at most */
    uint64_t bytes_per_second;  /* of page data to the image, over the last second or so; 0 at the end */
    gboolean paused;            /* by snap_save_pause() */
} SnapSaveStats;

/* How long faults took, by powers of two from about a microsecond to about a second. */
#define SNAP_HISTOGRAM_BUCKETS 22u
#define SNAP_HISTOGRAM_FIRST_NS UINT64_C(1024)

typedef struct {
    uint64_t
        upper_ns; /* counted here: below this, and not below that of the bucket before; the last: UINT64_MAX */
    uint64_t count;
} SnapHistogramBucket;

typedef struct {
    SnapHistogramBucket buckets[SNAP_HISTOGRAM_BUCKETS];
} SnapHistogram;

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

/**
 * snap_save_cancel: ask it to stop; returns at once. The guest is released, the image removed. Also while it is
 *   paused. Thread: any.
 */
void snap_save_cancel(SnapSave *save);

/**
 * snap_save_set_max_bandwidth: change the limit that SnapSaveOptions gave; holds at once. Thread: any.
 * @bytes_per_second: of page data to the image; 0: no limit.
 */
void snap_save_set_max_bandwidth(SnapSave *save, uint64_t bytes_per_second);

/**
 * snap_save_pause: take no more of the guest's memory than the guest's own writes force. The guest is not held up:
 *   its writes are served as ever, and where they fill half of the buffer, the save goes on until there is room
 *   again. In any phase: before the point in time it counts from there on; once all is captured, the image is
 *   completed nevertheless. Returns at once; what is being captured at that moment is. Thread: any.
 */
void snap_save_pause(SnapSave *save);

/** snap_save_resume: go on after snap_save_pause(); without one, nothing. Thread: any. */
void snap_save_resume(SnapSave *save);

/** snap_save_is_paused: whether snap_save_pause() is in force; FALSE when the save has ended. Thread: any. */
gboolean snap_save_is_paused(SnapSave *save);

/** snap_save_get_stats: where it is. @ret_stats: (out). Never blocks on I/O. Thread: any. */
void snap_save_get_stats(SnapSave *save, SnapSaveStats *ret_stats);

/**
 * snap_save_get_histogram: how long the faults took that SnapSaveStats counts, message read to guest released.
 * @ret_histogram: (out). Never blocks on I/O. Thread: any.
 */
void snap_save_get_histogram(SnapSave *save, SnapHistogram *ret_histogram);

/** snap_save_free: cancel it if it runs, wait for its thread, free. NULL is allowed. */
void snap_save_free(SnapSave *save);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapSave, snap_save_free)

/* ---- images ---------------------------------------------------------------------------------------------- */

typedef struct SnapImage SnapImage;

/* One region as the image holds it. Borrowed from the SnapImage. */
typedef struct {
    const char *name;
    const char *raw_path;   /* absolute path of its .img, mappable as it is; NULL when the image has a parent */
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
    const char *parent_id;  /* (nullable) */
    const char *parent_dir; /* (nullable) where the parent was found */
    guint n_parents;        /* how many images there are below it; 0: it is complete by itself */
    const char *driver;
    const char *guest;   /* (nullable) which guest it was; opaque */
    const char *created; /* ISO 8601, UTC: the point in time of the copy */
    uint64_t page_bytes;
    uint64_t pages_held; /* pages that are in this image itself, those of zeros included */
    guint n_regions;
    guint n_states;
} SnapImageInfo;

/**
 * snap_image_open: open an image directory, and the images that it is a child of, and check manifests, every
 *   file's presence and length, and the checksums of the small ones (.idx and state); page data is checked as it
 *   is read. A parent is looked for where it was when the child was saved, and then beside the child.
 *   While it is open, nothing else that respects it (snap_image_fold()) changes any of these images.
 * Errors: NOT_FOUND, no such directory, or a parent is missing; INCOMPLETE, it or a parent has no manifest;
 *   CORRUPT, what is wrong and in which file, or a parent that cannot be one: of another guest, newer than its
 *   child, or in a circle; NOT_SUPPORTED, a newer format.
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
 * snap_image_read: guest memory as it was: pages that the image does not hold are its parent's, and zeros where
 *   there is none or it does not have them either; checksums are verified.
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
gboolean snap_image_next_data(const SnapImage *image, guint region, uint64_t from_bytes, uint64_t *ret_start_bytes,
                              uint64_t *ret_end_bytes);

/* Called now and then by long work: bytes done of all; return FALSE to cancel. */
typedef gboolean (*SnapProgressFunc)(uint64_t done_bytes, uint64_t total_bytes, void *opaque);

/**
 * snap_image_verify: read everything, of its parents too, and check it against its checksums, and that pages
 *   recorded as zero or absent are holes. @progress: (nullable) called in this thread.
 * Errors: CORRUPT with the first thing wrong; IO; CANCELLED.
 */
gboolean snap_image_verify(const SnapImage *image, SnapProgressFunc progress, void *opaque, GError **error);

/**
 * snap_image_delete: remove an image directory, complete or not; the manifest goes first, so that an interrupted
 *   delete leaves an incomplete image. Nothing but the files of an image is removed.
 * Errors: NOT_FOUND; REFUSED, something in it is not part of an image, or an image beside it has it as its parent
 *   and no other (nothing has been removed then); IO.
 */
gboolean snap_image_delete(const char *dir, GError **error);

/**
 * snap_image_merge: write a full image that is equal to @image and its parents: the same id, time, state and
 *   statistics, but no parent; children of @image accept it as theirs.
 * @out: its directory; must not exist, or be empty. @progress: (nullable) called in this thread.
 * Errors: those of reading; EXISTS; NO_SPACE; IO; CANCELLED. Nothing is left at @out then.
 */
gboolean snap_image_merge(const SnapImage *image, const char *out, SnapProgressFunc progress, void *opaque,
                          GError **error);

/* An image, or what looks like one, in a list. */
typedef struct {
    char *dir;
    GError *problem;       /* (nullable) why it cannot be opened, or its parents cannot */
    SnapImageInfo info;    /* of an image that can be opened by itself; otherwise info.id is NULL */
    char *parent_dir;      /* (nullable) instead of the one in info */
    uint64_t length_bytes; /* of its regions */
} SnapImageEntry;

/**
 * snap_image_list: the images in a folder, oldest first, each opened once; or the one that @dir is itself. What is
 *   damaged or incomplete comes last. Directories whose names start with a dot are left out.
 * Errors: NOT_FOUND, PERMISSION: the folder cannot be read.
 * Return: (out) of SnapImageEntry, g_ptr_array_unref() it.
 */
GPtrArray *snap_image_list(const char *dir, GError **error);

/**
 * snap_image_fold: merge the oldest image of a chain into its child, in time proportional to that one, without a
 *   copy: after it @child_dir is complete by itself, with the same id and content, and @parent_dir is gone. At no
 *   moment, not even after a kill or power cut, is another image than @parent_dir's unreadable; that one may stop
 *   being an image by itself. An attempt that was interrupted, or failed, goes on with the next one, or with
 *   snap_image_fold_recover().
 * @parent_dir: an image without a parent. @child_dir: its only child, beside it.
 * Errors: REFUSED, they are not that, or a data file of the parent has a second name (a hard link); TIMED_OUT,
 *   somebody has the images open, or maps a data file, or merges in this folder: try again later; NOT_SUPPORTED, a
 *   file system without hard links or RENAME_EXCHANGE; CORRUPT; IO; NO_SPACE.
 */
gboolean snap_image_fold(const char *parent_dir, const char *child_dir, GError **error);

/**
 * snap_image_fold_recover: finish or undo what interrupted snap_image_fold()s left in the folder @dir.
 * Errors: those of snap_image_fold().
 */
gboolean snap_image_fold_recover(const char *dir, GError **error);

/* ---- moving a guest -------------------------------------------------------------------------------------- */

/*
 * What a guest needs beyond SnapGuestOps to be moved: the first two where it leaves, the others where it arrives.
 * The program at each end has a SnapGuest of its own, made by snap_guest_new(); the one that receives has not run
 * yet. All are called in the thread of the migration.
 *
 * Leaving:   …rounds while it runs…  pause(READY)  pause(STOP)  list_regions(TRUE)  get_state  …  then one of
 *            resume, it stays here after all; or hand_over: it never runs here again.
 * Arriving:  list_regions(FALSE)  …memory…  load_state  start
 */
typedef struct {
    /* Stopped, and owned by the other side from now on. resume is not called any more. */
    void (*hand_over)(void *opaque);
    /* (nullable) Slow the guest down: it may run at most 100 - @percent of the time, 0 to 99; 0: as it likes. To
     * be spread out: of every 50 ms it gets its part. Quick. */
    void (*throttle)(void *opaque, unsigned percent);
    /* All memory is in place, or will be by the time it is touched: load the device state. Nothing may run yet. In
     * a post-copy a page that is touched is fetched; where that fails it is zeros, and so does the migration. */
    gboolean (*load_state)(void *opaque, GPtrArray *states, GError **error);
    /* It is this side's now: let it run, if by its state it ran. Leave memory to the threads that run it: in a
     * post-copy they may wait for a page until this thread has connected again. */
    gboolean (*start)(void *opaque, GError **error);
} SnapMoveOps;

/** snap_guest_set_move_ops: let it be moved. @ops: (borrow) for the life of the guest; they get its opaque
 * pointer. */
void snap_guest_set_move_ops(SnapGuest *guest, const SnapMoveOps *ops);
/** snap_guest_move_ops: (borrow) NULL where it cannot be moved. Thread: any. */
const SnapMoveOps *snap_guest_move_ops(const SnapGuest *guest);

/* Where a migration is, at either end. What follows what: outgoing.h, and the head of incoming-run.c. */
typedef enum {
    SNAP_MIGRATION_SETUP,          /* connecting, listening, comparing */
    SNAP_MIGRATION_ACTIVE,         /* memory goes over, the guest runs at the source */
    SNAP_MIGRATION_PRE_SWITCHOVER, /* source: waits for snap_outgoing_continue() */
    SNAP_MIGRATION_DEVICE,         /* the guest stands: the last of its memory, and its state */
    SNAP_MIGRATION_POSTCOPY,       /* it runs at the destination, and memory follows */
    SNAP_MIGRATION_UNCONNECTED,    /* the connection was lost at a point where neither can end it: to be resumed */
    SNAP_MIGRATION_RECOVER,        /* it is being resumed */
    SNAP_MIGRATION_STANDBY,        /* replication: an epoch is in force at the destination */
    SNAP_MIGRATION_COMPLETED,
    SNAP_MIGRATION_FAILED,    /* the source has the guest as before; the destination none */
    SNAP_MIGRATION_CANCELLED, /* the same, on request */
    SNAP_MIGRATION_MAX
} SnapMigrationPhase;

/** snap_migration_phase_name: "setup", "active", "pre-switchover" … Return: a static string; NULL when out of
 * range. */
const char *snap_migration_phase_name(SnapMigrationPhase phase);

typedef enum { SNAP_COMPRESS_NONE, SNAP_COMPRESS_ZSTD } SnapCompress;

/* What may be changed while it runs: snap_outgoing_set_limits(). */
typedef struct {
    uint64_t max_bandwidth_bytes;          /* a second, all channels together; 0: no limit */
    uint64_t max_postcopy_bandwidth_bytes; /* a second, of what is not asked for; 0: no limit */
    uint64_t downtime_limit_ms;            /* the guest may stand so long; 0: 300 */
    uint64_t dirty_limit_bytes;            /* throttle it so that it dirties no more a second; 0: no limit */
} SnapMigrationLimits;

typedef struct {
    const char *uri; /* unix:PATH, tcp:HOST:PORT, fd:N (taken), exec:COMMAND, file:PATH */
    SnapMigrationLimits limits;
    guint n_channels; /* 1 to 8; 0: 1. Above 1: unix: and tcp: only */
    SnapCompress compress;
    int compress_level; /* 1 to 19; 0: 1 */
    gboolean
        pause_before_switchover; /* wait for snap_outgoing_continue() in PRE_SWITCHOVER, with the guest stopped */
    gboolean may_postcopy;       /* snap_outgoing_start_postcopy() may come; the destination has to be able to */
    /* Throttle a guest that does not converge: from throttle_initial per cent on, in steps of throttle_increment,
     * up to throttle_max. 0: 20, 10, 99. */
    gboolean auto_converge;
    unsigned throttle_initial, throttle_increment, throttle_max;
    /* Fail when so many rounds in a row have not brought it nearer, throttled as far as it may be; 0: 30. Not
     * where may_postcopy is set, which is another way out. */
    unsigned max_useless_rounds;
    /* A connection that is silent for so long is lost; 0: 10 s. A guest that stands for so long, and four times
     * the downtime limit, without the other side being ready is resumed. */
    uint64_t silence_ms;
    /* Replicate instead of moving: an epoch every so many ms; 0: move. */
    uint64_t epoch_ms;
    const char *region_glob; /* (nullable) replicate only regions whose name matches; * ? as in a shell */
} SnapOutgoingOptions;

/* Where a migration is, in numbers; after its end, what it was. */
typedef struct {
    SnapMigrationPhase phase;
    SnapMigrationPhase
        since; /* the phase before UNCONNECTED or RECOVER: POSTCOPY, DEVICE where GO was under way, or STANDBY */
    uint64_t total_bytes;                                   /* of memory */
    uint64_t remaining_bytes;                               /* of memory, still to be sent, as is known now */
    uint64_t sent_bytes;                                    /* on all channels */
    uint64_t precopy_bytes, downtime_bytes, postcopy_bytes; /* of them: in which part */
    uint64_t multifd_bytes;                                 /* of them: on data channels */
    uint64_t pages_zero;
    uint64_t pages_normal;
    uint64_t rounds; /* how often the log was collected; 1: the first copy */
    uint64_t dirty_pages_per_second;
    uint64_t bytes_per_second; /* of memory that goes over */
    uint64_t pages_per_second;
    uint64_t postcopy_requests;
    uint64_t expected_downtime_ns;
    uint64_t downtime_ns; /* 0 before it is known. Source: stop to STARTED, also over a connection that was lost.
                             Destination: what it saw of it */
    uint64_t setup_ns;
    uint64_t total_ns;
    unsigned throttle_percent;
    uint64_t epoch;          /* replication: the last one in force */
    uint64_t epoch_pause_ns; /* the guest's pause for it */
    uint64_t page_bytes;
} SnapMigrationStats;

/* Tells of each new phase and each round (SNAP_MIGRATION_ACTIVE again); of nothing more after COMPLETED, FAILED or
 * CANCELLED. In the migration's thread: be quick, do not call back. */
typedef void (*SnapMigrationFunc)(SnapMigrationPhase phase, uint64_t round, void *opaque);

/*
 * The source of a migration: a job with a thread "snap-outgoing". Until the destination has confirmed that it has
 * everything, the guest runs on here whatever fails.
 */
typedef struct SnapOutgoing SnapOutgoing;

/**
 * snap_outgoing_start: begin; returns at once.
 * @guest: (borrow) until snap_outgoing_free(). To be moved it needs hand_over. Nobody else may log its writes.
 * @options: (borrow). @func, @opaque: (nullable) who is told.
 * Errors: USAGE, an option is out of range, or the URI; REFUSED, the guest cannot be moved, or not be throttled as
 * the options want it, or its writes are logged by somebody else; NOT_FOUND, fd: is no descriptor; IO, no
 * descriptors are left. Return: (out) free with snap_outgoing_free().
 */
SnapOutgoing *snap_outgoing_start(SnapGuest *guest, const SnapOutgoingOptions *options, SnapMigrationFunc func,
                                  void *opaque, GError **error);

/**
 * snap_outgoing_wait: until it is in COMPLETED (TRUE), or FAILED, CANCELLED or UNCONNECTED (FALSE); at most
 * @timeout_ms (-1: without limit).
 * Errors: TIMED_OUT, it still runs; IO, what happened to the connection, also in UNCONNECTED; REFUSED, by the
 * other side, in its words; PROTOCOL; CANCELLED; FAILED, the guest does not converge; those of
 * snap_tracker_collect() and of the guest's functions. Thread: any.
 */
gboolean snap_outgoing_wait(SnapOutgoing *outgoing, int timeout_ms, GError **error);

/**
 * snap_outgoing_cancel: give it up; returns at once. The guest stays here, and runs if it ran.
 * Errors: REFUSED, it is too late: the other side may have the guest. Thread: any.
 */
gboolean snap_outgoing_cancel(SnapOutgoing *outgoing, GError **error);

/** snap_outgoing_continue: go on from PRE_SWITCHOVER. Errors: REFUSED, it is not there. Thread: any. */
gboolean snap_outgoing_continue(SnapOutgoing *outgoing, GError **error);

/** snap_outgoing_start_postcopy: switch over as soon as may be, with pages missing. Errors: REFUSED, may_postcopy
 * was not set, or it is not in SETUP or ACTIVE. Thread: any. */
gboolean snap_outgoing_start_postcopy(SnapOutgoing *outgoing, GError **error);

/** snap_outgoing_pause: cut the connection in POSTCOPY, which is UNCONNECTED then. Errors: REFUSED, it is not
 * there. Thread: any. */
gboolean snap_outgoing_pause(SnapOutgoing *outgoing, GError **error);

/** snap_outgoing_resume: connect again, from UNCONNECTED. @uri: (borrow). Errors: USAGE; REFUSED, it has not lost
 * its connection, or this kind cannot resume it; NOT_FOUND, IO: as in start. Thread: any. */
gboolean snap_outgoing_resume(SnapOutgoing *outgoing, const char *uri, GError **error);

/**
 * snap_outgoing_reclaim: take the guest back from UNCONNECTED, and let it run here. The caller vouches that the
 * other side does not run it and never will: that it has ended, for example. The migration has FAILED then.
 * Errors: REFUSED, it is not there, or the guest is known to have run at the other side. Thread: any.
 */
gboolean snap_outgoing_reclaim(SnapOutgoing *outgoing, GError **error);

/** snap_outgoing_hand_over: end a replication by handing the guest over at the next epoch. Errors: REFUSED, it is
 * none, or one-way, or over, or the guest has no hand_over. Thread: any. */
gboolean snap_outgoing_hand_over(SnapOutgoing *outgoing, GError **error);

/** snap_outgoing_set_limits: they hold at once. @limits: (borrow). Errors: REFUSED, a dirty limit, and the guest
 * has no throttle; those of before hold. Thread: any. */
gboolean snap_outgoing_set_limits(SnapOutgoing *outgoing, const SnapMigrationLimits *limits, GError **error);

/** snap_outgoing_get_stats: @ret_stats: (out). Never blocks on I/O. Thread: any. */
void snap_outgoing_get_stats(SnapOutgoing *outgoing, SnapMigrationStats *ret_stats);

/**
 * snap_outgoing_free: cancel it if it runs, wait for its thread, free. Where it cannot be cancelled any more the
 * guest is not resumed: it is the other side's. NULL is allowed.
 */
void snap_outgoing_free(SnapOutgoing *outgoing);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapOutgoing, snap_outgoing_free)

/*
 * The destination: a job with a thread "snap-incoming", and "snap-missing" where a post-copy may come. The guest
 * is started when all of it is here, or in a post-copy will be, and the source has let go of it; never before.
 */
typedef struct SnapIncoming SnapIncoming;

typedef struct {
    const char *uri;       /* where to listen; file: and exec: are read */
    uint64_t silence_ms;   /* 0: what the source says */
    const char *image_dir; /* without a guest: a folder, in which each epoch is an image "000001"…, each a child of
                              the one before */
    guint image_keep; /* so many of them; what is older is merged into the oldest (snap_image_fold()). 0: all */
} SnapIncomingOptions;

/**
 * snap_incoming_start: listen; returns when it does.
 * @guest: (borrow) until snap_incoming_free(): with move_ops, never run. What its memory holds is dropped. NULL:
 * into images. Errors: USAGE; EXISTS, somebody listens there, or images are in the folder; REFUSED, the guest
 * cannot be moved here; NOT_FOUND, PERMISSION, NO_SPACE: the descriptor, file or folder; TIMED_OUT, the name to
 * listen at was not found in time; IO.
 */
SnapIncoming *snap_incoming_start(SnapGuest *guest, const SnapIncomingOptions *options, SnapMigrationFunc func,
                                  void *opaque, GError **error);

/** snap_incoming_wait: until the guest runs here and all of it is (COMPLETED; TRUE), or FAILED, CANCELLED or
 * UNCONNECTED. Errors: as of snap_outgoing_wait(); CORRUPT, a checksum is wrong; REFUSED, NOT_SUPPORTED,
 * PERMISSION: also where the memory here does not fit, or there can be no post-copy; those of load_state and
 * start, and of writing images. TIMED_OUT is @timeout_ms only: a source that was silent is IO. Thread: any. */
gboolean snap_incoming_wait(SnapIncoming *incoming, int timeout_ms, GError **error);

/** snap_incoming_cancel: give it up; a standby as well. Errors: REFUSED, it is too late: the guest may be this
 * side's, or it has ended. Thread: any. */
gboolean snap_incoming_cancel(SnapIncoming *incoming, GError **error);

/** snap_incoming_recover: listen again, in UNCONNECTED; or in COMPLETED, for a source that lost its connection
 * before it heard of that. @uri: (borrow); of fd: the descriptor is taken in any case. Waits at most 0.1 s for a
 * name; what takes longer goes on, and where it fails it is in UNCONNECTED, or COMPLETED, as before. Errors:
 * REFUSED, no connection was lost; for @uri those of snap_incoming_start() but TIMED_OUT. Thread: any. */
gboolean snap_incoming_recover(SnapIncoming *incoming, const char *uri, GError **error);

/**
 * snap_incoming_promote: run the guest here without its source. A standby: what has come of an unfinished epoch is
 * dropped, and it is started as it was at the last one. A guest that was being moved, of which all is here, and
 * whose source was lost before it let go of it (UNCONNECTED since DEVICE, or RECOVER): it is started as it came.
 * The caller vouches that the source does not run it and never will. Returns when it was asked for;
 * snap_incoming_wait() tells how it went.
 * @force: of a standby, although the source is connected, and so most likely runs it: it is to be ended by other
 * means. Errors: REFUSED, it is neither, or no epoch is complete, or pages are missing (post-copy), or without
 * @force the source is connected. Thread: any.
 */
gboolean snap_incoming_promote(SnapIncoming *incoming, gboolean force, GError **error);

/** snap_incoming_uri: (out) g_free() it: where it listens, of tcp: with port 0 with the port. Thread: any. */
char *snap_incoming_uri(SnapIncoming *incoming);

/** snap_incoming_get_stats: @ret_stats: (out). Thread: any. */
void snap_incoming_get_stats(SnapIncoming *incoming, SnapMigrationStats *ret_stats);

/** snap_incoming_free: end it; a guest that was started runs on, if nothing of it is missing. NULL is allowed. */
void snap_incoming_free(SnapIncoming *incoming);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SnapIncoming, snap_incoming_free)

/* ---- this machine ---------------------------------------------------------------------------------------- */

typedef enum {
    SNAP_PROBE_YES,
    SNAP_PROBE_NO,     /* this kernel or machine does not have it */
    SNAP_PROBE_DENIED, /* it is there, this user may not use it */
} SnapProbeAnswer;

/* One thing the library can use. All strings are static or owned by the array. */
typedef struct {
    const char *group; /* "userfaultfd", "pagemap", "device", "machine" */
    const char *name;  /* e.g. "wp-async" */
    SnapProbeAnswer answer;
    gboolean required;  /* nothing works without it */
    const char *lost;   /* what is lost without it */
    const char *remedy; /* how to get it */
} SnapProbeItem;

/**
 * snap_probe: ask kernel and machine what is there. Touches no guest; takes a few ms.
 * @ret_n_items: (out) how many.
 * Return: (out) g_free() the array. Thread: any.
 */
SnapProbeItem *snap_probe(guint *ret_n_items);

G_END_DECLS
