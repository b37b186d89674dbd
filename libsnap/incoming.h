/*
 * Inside of the destination of a migration; libsnap.h has the outside, docs/protocol.md what goes over the
 * connections. First the job itself, then the way of a guest that arrives:
 *
 *     incoming.c            the public functions: what others ask of the job
 *     incoming-run.c        the thread "snap-incoming": connections, and what follows when one has ended; phases
 *     incoming-connect.c    HELLO, REGION, WELCOME, further channels, resuming
 *     incoming-link.c       the connections that belong together, and the threads that read them
 *     incoming-records.c    the table of states, and what each record of the main channel does
 *     incoming-switch.c     from the last END to the guest that runs, or to the standby
 *     incoming-state.c      blobs of device state, put together
 *     incoming-regions.c    the guest's memory, as both sides know it
 *     incoming-chunk.c      CHUNK: into memory, or where else it belongs now
 *     incoming-epoch.c      replication: chunks that are kept apart until their epoch is complete
 *     incoming-missing.c    post-copy: what is missing, and when nothing is any more
 *     incoming-faults.c     post-copy: who waits for a page, and asks for it
 *     incoming-place.c      post-copy: a page goes where it was missing, once
 *     incoming-image.c      without a guest: epochs become images
 *
 * Invariants: start is called once at most, only when the source has let go of the guest (GO, the owner's promote,
 * a file's END), and only after all was checked and load_state has succeeded. FAILED is sent only while no GO can
 * be under way, and never is the guest started after it.
 */
#pragma once

#include "channel.h"
#include "guest.h"
#include "lock.h"
#include "stats.h"
#include "transport.h"

#include <zstd.h>

typedef struct SnapMissing SnapMissing;
typedef struct SnapArrivals SnapArrivals;

/* ---- states ---------------------------------------------------------------------------------------------- */

/* Where the conversation on the main channel is. incoming-records.c has the table of what may come, and what
 * follows. */
typedef enum {
    SNAP_INCOMING_NOWHERE,
    SNAP_INCOMING_MEMORY,   /* the first copy, or an epoch */
    SNAP_INCOMING_LAYOUT,   /* a replication: the regions that the guest has now */
    SNAP_INCOMING_LAST,     /* the masks of what will be missing, and the device state */
    SNAP_INCOMING_ENDED,    /* all was said here; other channels are still to end, and all is to be put in force */
    SNAP_INCOMING_READY,    /* READY was sent: the guest may become ours at any moment */
    SNAP_INCOMING_STANDBY,  /* the same of an epoch: the guest may become ours, or another epoch comes */
    SNAP_INCOMING_RUNS,     /* started; in a post-copy memory follows */
    SNAP_INCOMING_ALL_SENT, /* what is missing now is on its way on other channels */
    SNAP_INCOMING_STATE_MAX
} SnapIncomingState;

/* Where the pages of a CHUNK go. The table of functions is in incoming-chunk.c. */
typedef enum {
    SNAP_PLACE_MEMORY,  /* straight into the guest's memory, which nobody uses yet */
    SNAP_PLACE_KEPT,    /* into a buffer, until the epoch is complete */
    SNAP_PLACE_MISSING, /* into memory that a guest runs on, where a page is missing */
    SNAP_PLACE_IMAGE,   /* into a file, until the epoch is complete */
    SNAP_PLACE_MAX
} SnapPlace;

/* What others have asked of the job: bits. */
enum {
    SNAP_ASKED_CANCEL = 1,
    SNAP_ASKED_PROMOTE = 2,
    SNAP_ASKED_RECOVER = 4,
    SNAP_ASKED_END = 8, /* free */
};

/* ---- memory and connections ------------------------------------------------------------------------------ */

/* A region as both sides know it, numbered as the source does. */
typedef struct {
    /* set before the first CHUNK */
    SnapRegion *region; /* the guest's own; without a guest what the source says */
    uint8_t *memory;    /* NULL without a guest */
    uint64_t n_chunks;
    uint64_t source_granule_bytes;
    bool huge_pages; /* the kernel may make huge pages of it, and of holes in it */
    bool anew;       /* it is not what the epoch before had under this name: what does not come is zeros */

    /* who places a chunk: the thread of its channel, before the guest runs; then under SnapMissing.lock */
    uint64_t *put; /* a mask a chunk: pages that may hold something. NULL without a guest */

    /* under SnapMissing.lock; NULL where nothing is missing */
    uint64_t *missing; /* a mask a chunk */
    uint64_t *asked;   /* a part of missing */
    uint8_t **parts;   /* of a huge granule that is not complete: what there is of it; a pointer a granule */
} SnapIncomingRegion;

typedef struct SnapIncoming SnapIncoming;
typedef struct SnapIncomingLink SnapIncomingLink;

/* One connection, and what its reader needs. */
typedef struct {
    SnapIncoming *incoming;
    SnapIncomingLink *link;
    uint32_t number; /* as in HELLO */
    SnapChannel channel;
    GThread *thread;   /* of a data channel */
    uint8_t *body;     /* room for any */
    uint8_t *pages;    /* room for a chunk's */
    uint8_t *packed;   /* the same, as they came */
    ZSTD_DCtx *zstd;   /* NULL before it is needed */
    uint64_t n_chunks; /* since the END before */
    uint64_t n_pages;  /* the same */
} SnapIncomingLane;

/* The connections of one migration at one time. */
struct SnapIncomingLink {
    /* set before start; lanes are added by snap-incoming, under SnapIncoming.lock */
    SnapIncomingLane *lanes[SNAP_WIRE_MAX_CHANNELS]; /* by number; the first is the main one */
    SnapIncomingLane *urgent;                        /* (nullable) */
    unsigned n_channels;
    bool one_way;
    GThread *alive; /* (nullable) sends ALIVE */

    /* under send_lock: who speaks on the main channel */
    SnapLock send_lock;
    SnapCond silent; /* alive is to end */
    bool mute;       /* nothing can be sent any more */
    bool ending;

    /* under SnapIncoming.lock */
    GError *failure;   /* of another channel than the main one */
    int64_t failed_us; /* when */
    unsigned n_ended;  /* data channels that are at their END */
    unsigned turn;     /* they go on when it is another */
    bool stopped;
};

struct SnapIncoming {
    /* set before start */
    SnapGuest *guest;    /* (nullable) */
    char *image_dir;     /* (nullable) */
    unsigned image_keep; /* 0: all */
    bool image_dir_made; /* by us: it goes again if there is nothing in it at the end */
    uint64_t silence_ms; /* 0: what the source says */
    SnapMigrationFunc func;
    void *opaque;
    int64_t start_us;
    int wake_fd; /* eventfd: something for snap-incoming */
    GThread *thread;

    /* under lock */
    SnapLock lock;
    SnapCond changed;
    SnapMigrationPhase phase;
    SnapMigrationPhase since;
    GError *error; /* of FAILED, CANCELLED and UNCONNECTED */
    unsigned asked;
    bool committed;             /* too late for a cancel */
    bool taken;                 /* the guest is this side's: GO was read, or the owner has said so */
    bool resumable;             /* a source may come back */
    SnapTransport *transport;   /* (nullable) where connections come from */
    SnapIncomingLink *link;     /* (nullable) changed by snap-incoming only, which may read it without */
    SnapIncomingLane *newcomer; /* (nullable) who has come, and is to say who it is; the same holds for it */
    char *uri;
    uint64_t past_bytes; /* of connections that are closed */
    uint64_t past_multifd_bytes;
    uint64_t switch_bytes[2]; /* what had come when the guest was stopped, and when it was started here */
    int64_t welcome_us, stopped_us, started_us, ended_us; /* 0: not yet. Stopped: all but memory begins to come */
    uint64_t total_bytes;
    uint64_t rounds;
    uint64_t dirty_pages_per_second;
    uint64_t epoch; /* the last one in force */
    SnapRate rate;

    /* atomic, relaxed: counts */
    uint64_t n_chunks; /* in place */
    uint64_t pages_zero;
    uint64_t pages_normal;
    uint64_t requests;
    uint64_t pages_missing; /* the last count of them */

    /* snap-incoming; others read them between a turn and the END after it */
    SnapWireHello hello; /* without its text */
    bool one_way;
    bool may_postcopy;
    char *driver;
    GPtrArray *regions; /* of SnapIncomingRegion */
    GPtrArray *layout;  /* (nullable) the next ones, as they come; their `anew` is as REGION says */
    uint64_t n_layout;  /* how many they will be */
    SnapPlace place;
    SnapMissing *missing;            /* (nullable) a post-copy may come */
    SnapArrivals *arrivals;          /* (nullable) chunks that are kept */
    struct SnapIncomingImage *image; /* (nullable) */

    /* snap-incoming only */
    SnapIncomingState state;
    bool met_once; /* a HELLO was accepted */
    bool met;      /* a source may come back, and want to know that the guest runs here */
    bool told;     /* by the source, FAILED: it keeps its guest */
    bool postcopy; /* END said so. Whoever sees UNCONNECTED or RECOVER may read it, as it stays then */
    bool hopeless; /* it was this side's, and cannot run */
    bool started;
    bool complete;          /* and all of it is here */
    bool done;              /* nothing more is to be said on this connection */
    int64_t ends_us;        /* since when only ENDs of data channels lack; 0: they do not */
    int64_t all_sent_us;    /* 0: not yet, on some channel */
    uint32_t n_masks;       /* MISSING records */
    GPtrArray *states;      /* of SnapState: of the last part that is complete, or in a move of the only one */
    GPtrArray *next_states; /* as they come */
    struct {
        char *name; /* NULL: none is begun */
        GByteArray *data;
        uint64_t total_bytes;
    } blob;
    uint64_t blob_bytes; /* of all in next_states */
};

/* ---- incoming.c ------------------------------------------------------------------------------------------ */

/* REFUSED, and why. Return: FALSE. */
gboolean snap_incoming_refuse(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* ---- incoming-run.c -------------------------------------------------------------------------------------- */

gpointer snap_incoming_run(gpointer data);

/* TRUE in the phases in which snap_incoming_wait() returns. */
bool snap_incoming_rests(SnapMigrationPhase phase);

/* Under the lock and told to who wants to know, which is after it. */
void snap_incoming_set_phase(SnapIncoming *incoming, SnapMigrationPhase phase);
/* Another round. */
void snap_incoming_tell(SnapIncoming *incoming);

/* From here on it cannot be cancelled; the second time in a move, or in a replication at once, it is this side's.
 * FALSE: something was asked before. */
bool snap_incoming_commit(SnapIncoming *incoming, GError **error);

/* Let snap-incoming look again. */
void snap_incoming_wake(SnapIncoming *incoming);

/* End every wait of snap-incoming, now and later. */
void snap_incoming_interrupt_locked(SnapIncoming *incoming) SNAP_REQUIRES(incoming->lock);

/* ---- incoming-connect.c ---------------------------------------------------------------------------------- */

/* Wait for a source, and come to terms with it. */
gboolean snap_incoming_meet(SnapIncoming *incoming, GError **error);
/* Wait for the source to come back. */
gboolean snap_incoming_meet_again(SnapIncoming *incoming, GError **error);

/* ---- incoming-link.c ------------------------------------------------------------------------------------- */

/* A lane on descriptors (take). */
SnapIncomingLane *snap_incoming_lane_new(SnapIncoming *incoming, int in, int out, GError **error);
void snap_incoming_lane_free(SnapIncomingLane *lane);

/* A link whose main channel is @lane (take); it is the incoming's from now on. FALSE: something was asked. */
gboolean snap_incoming_link_open(SnapIncoming *incoming, SnapIncomingLane *lane, GError **error);
/* Another channel of it (take), by its number; and its thread, if it has one. */
gboolean snap_incoming_link_add(SnapIncoming *incoming, SnapIncomingLane *lane, GError **error);
/* Send ALIVE from now on. */
void snap_incoming_link_keep_alive(SnapIncoming *incoming);
/* Close everything, after saying why where @why is given. */
void snap_incoming_link_close(SnapIncoming *incoming, const char *why);

/* On the main channel; of what is one-way nothing. Thread: snap-incoming. Errors: snap_channel_send()'s. */
gboolean snap_incoming_send(SnapIncoming *incoming, SnapWireType type, const void *body, uint32_t body_bytes,
                            GError **error);

/* @lane cannot go on (take @error). Thread: the lane's. */
void snap_incoming_lane_failed(SnapIncomingLane *lane, GError *error);
/* The first failure of another channel than the main one; FALSE when there is none that counts already. */
gboolean snap_incoming_link_failed(SnapIncoming *incoming, GError **error);
/* There is one, which may not count yet. */
bool snap_incoming_link_is_failing(SnapIncoming *incoming);
/* Whether all data channels are at their END. */
bool snap_incoming_link_ended(SnapIncoming *incoming);
/* Let data channels go on behind their END. */
void snap_incoming_link_go_on(SnapIncoming *incoming);

/* ---- incoming-records.c ---------------------------------------------------------------------------------- */

/* Do what the records say until the connection has served its purpose. */
gboolean snap_incoming_listen(SnapIncoming *incoming, GError **error);

/* Against what was received: FALSE with PROTOCOL. Counting begins anew. */
gboolean snap_incoming_check_end(SnapIncomingLane *lane, const SnapWireEnd *end, GError **error);

/* PROTOCOL: the record received last on @lane, and what is wrong with it. */
gboolean snap_incoming_wrong(const SnapIncomingLane *lane, SnapWireType type, const char *wrong, GError **error);

/* ---- incoming-switch.c ----------------------------------------------------------------------------------- */

/* All of a part has come. */
gboolean snap_incoming_part_done(SnapIncoming *incoming, GError **error);
/* It is this side's. */
gboolean snap_incoming_take_over(SnapIncoming *incoming, GError **error);
/* Say STARTED. */
gboolean snap_incoming_say_started(SnapIncoming *incoming, GError **error);
/* It is this side's: by GO, or as its owner says so, or as there is nobody to say it. */
gboolean snap_incoming_start_guest(SnapIncoming *incoming, GError **error);
/* Nothing is missing any more: let go of the memory, and tell the source. */
gboolean snap_incoming_all_there(SnapIncoming *incoming, GError **error);
/* What is one-way could not be read on (@failure). TRUE: that was its end, and what came before it is put in
 * force; otherwise *failure is why not. */
gboolean snap_incoming_end_of_file(SnapIncoming *incoming, GError **failure);

/* ---- incoming-state.c ------------------------------------------------------------------------------------ */

/* A STATE record. What is wrong with it; NULL when nothing is. */
const char *snap_incoming_add_state(SnapIncoming *incoming, const SnapWireState *state);
/* @n blobs have come, and all are whole. What is wrong; NULL: next_states are states. */
const char *snap_incoming_check_states(SnapIncoming *incoming, uint64_t n);
/* What has come of an epoch that will not be complete. */
void snap_incoming_drop_states(SnapIncoming *incoming);

/* ---- incoming-regions.c ---------------------------------------------------------------------------------- */

/* A REGION: the guest's own of that name, which has to be like it. @own: the guest's, as it listed them; NULL
 * without a guest. */
gboolean snap_incoming_add_region(SnapIncoming *incoming, GPtrArray *own, const SnapWireRegion *region,
                                  GError **error);
/* LAYOUT: @n others follow; and one of them. What is wrong; NULL when nothing is. */
const char *snap_incoming_begin_layout(SnapIncoming *incoming, uint64_t n);
const char *snap_incoming_add_to_layout(SnapIncoming *incoming, const SnapWireRegion *region, bool kept);
/* All of the source's are there: none of @own may be left. */
gboolean snap_incoming_check_regions(const GPtrArray *own, GError **error);
/* The guest's regions. NULL on error. */
GPtrArray *snap_incoming_list_regions(SnapIncoming *incoming, GError **error);
/* Nothing is in them. */
void snap_incoming_drop_memory(SnapIncoming *incoming);
/* The same of a part that nobody uses and no userfaultfd has. Return: 0 or -errno. */
int snap_incoming_drop_range(const SnapIncomingRegion *region, uint64_t offset, uint64_t length_bytes);
/* What is known of single pages is not needed any more: the guest runs, and nothing is missing. */
void snap_incoming_region_drop_masks(SnapIncomingRegion *region);
void snap_incoming_region_free(gpointer region);

/* ---- incoming-chunk.c ------------------------------------------------------------------------------------ */

/* A CHUNK whose head and body have come, and its bulk. */
gboolean snap_incoming_take_chunk(SnapIncomingLane *lane, const SnapWireHead *head, GError **error);
/* Its stored pages, one after the other, into @ret_pages, which has room for them; checked. */
gboolean snap_incoming_read_pages(SnapIncomingLane *lane, const SnapIncomingRegion *region,
                                  const SnapWireChunk *chunk, uint8_t *ret_pages, GError **error);
/* @pages of a chunk, as read above, into memory that nobody uses. */
void snap_incoming_put_pages(SnapIncomingRegion *region, uint64_t chunk, uint64_t present, uint64_t zero,
                             const uint8_t *pages);

/* ---- incoming-epoch.c ------------------------------------------------------------------------------------ */

SnapArrivals *snap_arrivals_new(SnapIncoming *incoming);
void snap_arrivals_free(SnapArrivals *arrivals);
gboolean snap_arrivals_take(SnapIncomingLane *lane, SnapIncomingRegion *region, const SnapWireChunk *chunk,
                            GError **error);
/* Put all of them in force; nothing can fail. */
void snap_arrivals_apply(SnapArrivals *arrivals);
void snap_arrivals_drop(SnapArrivals *arrivals);
bool snap_arrivals_is_empty(SnapArrivals *arrivals);

/* ---- incoming-missing.c ---------------------------------------------------------------------------------- */

/* Errors: NOT_SUPPORTED, REFUSED, PERMISSION: why there can be no post-copy here. */
SnapMissing *snap_missing_new(SnapIncoming *incoming, GError **error);
/* A guest that runs, and has not got everything, is left waiting where it touches what is missing. */
void snap_missing_free(SnapMissing *missing);

/* A MISSING record. What is wrong with it; NULL when nothing is. */
const char *snap_missing_add(SnapMissing *missing, const SnapWireMissing *record, const uint64_t *masks);
/* From now on whoever touches what is missing waits for it. */
gboolean snap_missing_arm(SnapMissing *missing, GError **error);
/* Around load_state. The second: FALSE, a connection was lost meanwhile, and what was loaded may be wrong; @error
 * may be set already. */
void snap_missing_begin_load(SnapMissing *missing);
gboolean snap_missing_end_load(SnapMissing *missing, GError **error);
/* Ask on @lane; NULL: nowhere, and when it returns nobody uses the one before. */
void snap_missing_connect(SnapMissing *missing, SnapIncomingLane *lane);
/* Pages that are missing. */
uint64_t snap_missing_left(SnapMissing *missing);
/* Send MISSING records of what is; or just say how many there are, where @ret_n is given. */
gboolean snap_missing_list(SnapMissing *missing, uint64_t *ret_n, GError **error);
/* Nothing is: the memory is the guest's alone. */
void snap_missing_finish(SnapMissing *missing);

/* ---- incoming-place.c ------------------------------------------------------------------------------------ */

gboolean snap_missing_take(SnapIncomingLane *lane, SnapIncomingRegion *region, const SnapWireChunk *chunk,
                           GError **error);

/* ---- incoming-image.c ------------------------------------------------------------------------------------ */

typedef struct SnapIncomingImage SnapIncomingImage;

/* Whether @dir can hold images of a replication: it is there now (*ret_made: by us), and none is in it. Errors:
 * EXISTS; IO. */
gboolean snap_incoming_image_prepare(const char *dir, bool *ret_made, GError **error);
SnapIncomingImage *snap_incoming_image_new(SnapIncoming *incoming, GError **error);
void snap_incoming_image_free(SnapIncomingImage *image);
gboolean snap_incoming_image_take(SnapIncomingLane *lane, SnapIncomingRegion *region, const SnapWireChunk *chunk,
                                  GError **error);
/* Regions are those of @layout from now on. What is wrong with it, and nothing has changed; or NULL. */
const char *snap_incoming_image_change(SnapIncoming *incoming, GPtrArray *layout);
/* Make an image of what has come, and begin anew. */
gboolean snap_incoming_image_commit(SnapIncoming *incoming, GError **error);
/* Merge the oldest images where there are more than are to be kept, two at most; what somebody reads stays for
 * now. Errors: those of snap_image_fold() but TIMED_OUT. */
gboolean snap_incoming_image_fold_old(SnapIncoming *incoming, GError **error);
