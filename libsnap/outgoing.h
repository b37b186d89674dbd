/*
 * Inside of the source of a migration; libsnap.h has the outside, docs/protocol.md what goes over the wire. First
 * the job, then the way of the data:
 *
 *     outgoing.c            the job: what others ask of it, and its life
 *     outgoing-phase.c      where it is: phases, the end, figures
 *     outgoing-link.c       connections, records in both directions, silence
 *     outgoing-greet.c      HELLO, REGION, WELCOME
 *     outgoing-alive.c      saying that we live
 *     outgoing-layout.c     the guest's regions, as they were announced, and as they are now
 *     outgoing-memory.c     its log, and which pages are still to be sent (pageset.h)
 *     outgoing-read.c       pages, out of the guest
 *     outgoing-lane.c       a lane: one channel, and what sends chunks on it
 *     outgoing-lanes.c      all of them at work
 *     outgoing-rounds.c     the first copy and the rounds after it, until it converges (converge.h)
 *     outgoing-switch.c     the guest stops; the last of its memory, its state; who has it from then on
 *     outgoing-postcopy.c   switching over with pages missing, and what follows
 *     outgoing-resume.c     connecting again where neither side can end it
 *     outgoing-replicate.c  epoch after epoch
 *
 * What may follow what (outgoing-phase.c has the table):
 *
 *     SETUP ──> ACTIVE ──────────────────> DEVICE ──> COMPLETED
 *                 │ └─> PRE_SWITCHOVER ──>   │ └────> POSTCOPY ──> COMPLETED
 *                 │                          │           │
 *                 └──> STANDBY ──────────>   └─> UNCONNECTED <─> RECOVER ──> POSTCOPY, COMPLETED
 *
 * from STANDBY to PRE_SWITCHOVER as well; and from SETUP, ACTIVE, PRE_SWITCHOVER, STANDBY, DEVICE and RECOVER:
 * FAILED or CANCELLED. From the last two only as long as `committed` is not set: from then on the other side may
 * have the guest, and it does not run here. It is set under the lock, in one with a last look at what was asked,
 * just before the first byte of GO is written; and taken back, which leads from RECOVER to an end without the
 * guest there, where the other side says FAILED instead of STARTED, or the owner takes the guest back (reclaim).
 *
 * Failure modes: whatever fails before that, the guest is resumed first, then the other side is told (FAILED),
 * then the log ends and the phase says so. What fails after it is UNCONNECTED.
 *
 * Threads: the job's, "snap-outgoing", is the only one that calls the guest's functions. A lane that has a channel
 * to itself has a thread "snap-lane"; it sends while the job's thread sends, and no longer. "snap-alive" says that
 * we live, while the job's thread is at the log or at the guest's functions. "snap-urgent" answers requests in a
 * post-copy.
 */
#pragma once

#include "area.h"
#include "channel.h"
#include "converge.h"
#include "guest.h"
#include "lock.h"
#include "memory.h"
#include "pace.h"
#include "pageset.h"
#include "stats.h"
#include "track.h"
#include "transport.h"

#include <zstd.h>

typedef struct {
    SnapArea *area;    /* owned; its region is the one that was announced */
    SnapPageSet pages; /* still to be sent */
    bool late;         /* sent in the pause only, and whole: it may change in ways that the log does not see */
    bool direct;       /* memory of this process: it is read by memcpy() */
    bool kept;         /* it was in the layout before this one: the other side has the rest of it */
    uint64_t serial;   /* of the mapping, for the log; 0: it is not in it */
} SnapSource;

/* A chunk. */
typedef struct {
    uint32_t region;
    uint64_t chunk;
} SnapPosition;

/* Pages of a chunk that were copied while the guest stood. */
typedef struct {
    SnapPosition place;
    uint64_t mask;
    uint64_t offset; /* in the buffer */
} SnapKeptChunk;

/* What is being sent, for the figures. */
typedef enum { SNAP_PART_PRECOPY, SNAP_PART_DOWNTIME, SNAP_PART_POSTCOPY, SNAP_PART_MAX } SnapPart;

/* One channel, and what it takes to send chunks on it. The thread's that sends, and the job's while none does. */
typedef struct {
    SnapOutgoing *outgoing;
    uint32_t number; /* of the channel */
    SnapChannel channel;
    bool open;
    SnapLock lock;              /* who sends a record: on main also "snap-alive" */
    uint64_t counted_bytes;     /* under lock: of channel.sent_bytes, in the figures */
    uint8_t *staging;           /* pages, one behind the other */
    uint8_t *packed;            /* (nullable) the same compressed */
    ZSTD_CCtx *zstd;            /* (nullable) */
    SnapPosition at;            /* where it looks next */
    guint64 wanted;             /* the last wish to look elsewhere that it has seen */
    uint64_t n_chunks, n_pages; /* since HELLO or the last END */
    GThread *thread;            /* (nullable) */
} SnapLane;

/* What others ask of the job. */
typedef struct {
    bool go_on;               /* from PRE_SWITCHOVER */
    bool hand_over;           /* a replication */
    bool cut;                 /* the connection, in POSTCOPY */
    bool reclaim;             /* the guest, in UNCONNECTED */
    bool ended;               /* free(): wherever it is, let the thread come to an end */
    SnapTransport *transport; /* (nullable) owned: to connect by anew */
} SnapWishes;

struct SnapOutgoing {
    /* set before start */
    SnapGuest *guest;
    SnapOutgoingOptions options; /* with defaults put in, without text; its limits are under the lock */
    GPatternSpec *glob;          /* (nullable) which regions */
    SnapMigrationFunc func;
    void *opaque;
    SnapWireId id;
    uint64_t start_ns;
    bool one_way;
    int wake_fd; /* eventfd: something was asked, look again */
    GThread *thread;

    /* atomic: flags and counts, ordered by nothing */
    gint cancelled;
    gint want_postcopy;
    gint halt; /* lanes send no more */
    uint64_t part_bytes[SNAP_PART_MAX];
    uint64_t multifd_bytes;
    uint64_t pages_zero;
    uint64_t pages_normal;
    uint64_t normal_bytes; /* of them */
    uint64_t n_chunks;
    uint64_t n_requests;
    gint part; /* SnapPart */

    SnapLock lock;
    SnapCond changed; /* anything below */
    /* under lock */
    SnapMigrationPhase phase, since;
    GError *error;
    bool committed; /* the other side may have the guest */
    bool may_read;  /* sources may be looked at by others than the job */
    SnapWishes wishes;
    SnapMigrationLimits limits;
    SnapMigrationStats stats; /* what the job has written down */
    SnapRate byte_rate, page_rate;
    SnapTransport *transport;
    GPtrArray *channels; /* of SnapChannel, borrowed: those that are open */
    guint64 turn;        /* lanes: one more, and they work */
    guint busy;          /* lanes at work */
    bool lanes_end;
    bool alive_end; /* "snap-alive" */
    GError *lane_error;
    GError *urgent_error; /* (nullable) */
    bool urgent_ended;    /* by itself */
    SnapPosition wanted;  /* post-copy: the background goes on from here */
    guint64 n_wanted;

    SnapPace pace;

    /* job thread only, or read by lanes while it waits for them */
    GPtrArray *sources; /* of SnapSource, as announced */
    GArray *by_address; /* of guint: sources by address */
    guint last_source;  /* that the log spoke of */
    SnapMemoryReader reader;
    int pagemap;
    SnapTracker *tracker;
    uint64_t late_bytes; /* of SNAP_MEMORY_COPIED, which is sent in the pause */
    SnapLane lanes[SNAP_WIRE_MAX_CHANNELS];
    guint n_lanes;
    SnapLane urgent;
    const GArray *kept; /* (nullable) of SnapKeptChunk: lanes send these instead */
    uint8_t *kept_bytes;
    GArray *skipped; /* of SnapKeptChunk: what could not be read while the guest ran */
    bool greeted;    /* WELCOME has come */
    GThread *alive;  /* (nullable) */
    uint8_t *body;   /* of the record received last */
    int64_t looked_us;
    SnapConverge converge;
    bool paused;   /* to be resumed: from READY on */
    bool stands;   /* from STOP on */
    bool postcopy; /* it was switched over with pages missing */
    unsigned throttled_percent;
    uint64_t stop_ns;   /* when the guest was stopped */
    uint64_t device_ns; /* when DEVICE began */
    uint64_t rounds;
};

static inline SnapSource *snap_outgoing_source(const SnapOutgoing *outgoing, guint i) {
    return g_ptr_array_index(outgoing->sources, i);
}

static inline const SnapRegion *snap_outgoing_region(const SnapOutgoing *outgoing, guint i) {
    return snap_outgoing_source(outgoing, i)->area->region;
}

/* ---- outgoing-phase.c ------------------------------------------------------------------------------------ */

/* Nothing follows it. */
bool snap_outgoing_is_over(SnapMigrationPhase phase);
/* It is in @phase now, and who is to be told is told. */
void snap_outgoing_enter(SnapOutgoing *outgoing, SnapMigrationPhase phase) SNAP_EXCLUDES(outgoing->lock);
void snap_outgoing_enter_locked(SnapOutgoing *outgoing, SnapMigrationPhase phase) SNAP_REQUIRES(outgoing->lock);
void snap_outgoing_tell(SnapOutgoing *outgoing);

/* Its end, of COMPLETED, FAILED and CANCELLED; @error: (take) (nullable). */
void snap_outgoing_end(SnapOutgoing *outgoing, SnapMigrationPhase phase, GError *error);

/* From here on the other side may have the guest. FALSE: it was cancelled before. */
gboolean snap_outgoing_commit(SnapOutgoing *outgoing, GError **error);

/* Whether it is to end; *error says so. */
gboolean snap_outgoing_is_cancelled(SnapOutgoing *outgoing, GError **error);

/* ---- outgoing.c ------------------------------------------------------------------------------------------ */

/* Which limit of bandwidth holds, in the part that is being sent. */
void snap_outgoing_apply_limit_locked(SnapOutgoing *outgoing) SNAP_REQUIRES(outgoing->lock);

/* ---- outgoing-link.c ------------------------------------------------------------------------------------- */

/* A connection for @lane. */
gboolean snap_outgoing_open_lane(SnapOutgoing *outgoing, SnapLane *lane, uint32_t number, GError **error);
/* Close everything. */
void snap_outgoing_disconnect(SnapOutgoing *outgoing);
/* End every wait of channels and transport. */
void snap_outgoing_stop_locked(SnapOutgoing *outgoing) SNAP_REQUIRES(outgoing->lock);

gboolean snap_outgoing_send(SnapOutgoing *outgoing, SnapWireType type, uint16_t flags, const void *body,
                            uint32_t body_bytes, GError **error);
gboolean snap_outgoing_send_id(SnapOutgoing *outgoing, SnapWireType type, GError **error);

/*
 * Between two pieces of work: whether to go on. Hears what has come. Errors:
 * CANCELLED; REFUSED, the other side gives up, in its words; TIMED_OUT, it is silent; IO; PROTOCOL.
 */
gboolean snap_outgoing_look(SnapOutgoing *outgoing, GError **error);
/* The same after a wait of @timeout_ms at most, that anything ends. */
gboolean snap_outgoing_doze(SnapOutgoing *outgoing, uint64_t timeout_ms, GError **error);
/* Until @type has come on the main channel: its body is outgoing->body. @ret_head: (nullable). */
gboolean snap_outgoing_await(SnapOutgoing *outgoing, SnapWireType type, SnapWireHead *ret_head, GError **error);
/* READY of @epoch; STARTED or COMPLETE, of this migration. */
gboolean snap_outgoing_await_ready(SnapOutgoing *outgoing, uint64_t epoch, GError **error);
gboolean snap_outgoing_await_id(SnapOutgoing *outgoing, SnapWireType type, GError **error);
/* An error IO is mostly because the other side said why it gives up and went: then that is the error. */
void snap_outgoing_explain(SnapOutgoing *outgoing, GError **error);
/* What a record says is @wrong. Return: FALSE. */
gboolean snap_outgoing_fail_content(SnapWireType type, const char *wrong, GError **error);

/* ---- outgoing-greet.c ------------------------------------------------------------------------------------ */

/* Connect main and data channels, and greet. @resume: it was connected before. */
gboolean snap_outgoing_connect(SnapOutgoing *outgoing, bool resume, SnapWireWelcome *ret_welcome, GError **error);
/* LAYOUT: sources are others than those announced before. */
gboolean snap_outgoing_send_layout(SnapOutgoing *outgoing, GError **error);
/* And the urgent one, if there is to be one. */
gboolean snap_outgoing_connect_urgent(SnapOutgoing *outgoing, bool resume, GError **error);

/* ---- outgoing-alive.c ------------------------------------------------------------------------------------ */

/* How often something has to be sent. */
uint64_t snap_outgoing_alive_ms(const SnapOutgoing *outgoing);
void snap_outgoing_start_alive(SnapOutgoing *outgoing);
void snap_outgoing_stop_alive(SnapOutgoing *outgoing);

/* ---- outgoing-layout.c ----------------------------------------------------------------------------------- */

/* What the guest has; before it is announced. Errors: REFUSED; the guest's. */
gboolean snap_outgoing_list(SnapOutgoing *outgoing, GError **error);
/* The guest stands: that it still has just that. Errors: REFUSED. */
gboolean snap_outgoing_check_regions(SnapOutgoing *outgoing, GError **error);
/* Remember which mapping it is for the log now. Return: whether it is the same as the last time. */
bool snap_outgoing_note_serial(const SnapOutgoing *outgoing, SnapSource *source);
/* Whether other regions, and other mappings in their places, can be announced. A guest that can be handed over
 * keeps its regions: it may go to one that has the same. */
static inline bool snap_outgoing_can_announce(const SnapOutgoing *outgoing) {
    const SnapMoveOps *ops = outgoing->guest->move_ops;
    return outgoing->options.epoch_ms && outgoing->options.n_channels == 1 && !(ops && ops->hand_over);
}
/*
 * The guest stands, and the log has been collected: sources are what it has now; what is new of it is to be sent.
 * *ret_changed: it has to be announced again. Errors: REFUSED, on several channels that cannot be.
 */
gboolean snap_outgoing_update_layout(SnapOutgoing *outgoing, bool *ret_changed, GError **error);
void snap_outgoing_forget_regions(SnapOutgoing *outgoing);
/* The source that begins at @address; NULL: none does. Thread: the job's. */
SnapSource *snap_outgoing_find_source(SnapOutgoing *outgoing, uint64_t address);

/* ---- outgoing-memory.c ----------------------------------------------------------------------------------- */

/* All that @source holds is to be sent; what is late, only where the guest stands (@last). */
gboolean snap_outgoing_add_source(SnapOutgoing *outgoing, SnapSource *source, bool last, GError **error);

/* The log begins, and everything that holds data is to be sent. */
gboolean snap_outgoing_begin_log(SnapOutgoing *outgoing, GError **error);
/* What was written since is to be sent; @last: the guest stands. */
gboolean snap_outgoing_collect(SnapOutgoing *outgoing, bool last, SnapDirtyStats *ret_stats, GError **error);
/* Pages that are to be sent, in bytes; what is sent in the pause only, too. Thread: any that knows of sources. */
uint64_t snap_outgoing_remaining(const SnapOutgoing *outgoing);

/* ---- outgoing-read.c ------------------------------------------------------------------------------------- */

/* The pages of @mask one behind the other, without those that are zeros: @ret_zero. Thread: any. NOT_FOUND: there
 * are none. */
gboolean snap_outgoing_read(const SnapOutgoing *outgoing, SnapPosition place, uint64_t mask, uint8_t *ret_pages,
                            uint64_t *ret_zero, GError **error);
/* With zeros and all: as quick as can be. */
gboolean snap_outgoing_copy(const SnapOutgoing *outgoing, SnapPosition place, uint64_t mask, uint8_t *ret_pages,
                            GError **error);
/* The former in place, of @pages that are one behind the other. Return: which are zeros. */
uint64_t snap_outgoing_drop_zeros(uint8_t *pages, uint64_t page_bytes, uint64_t mask);

/* ---- outgoing-lane.c ------------------------------------------------------------------------------------- */

void snap_lane_init(SnapLane *lane, SnapOutgoing *outgoing, uint32_t number);
void snap_lane_clear(SnapLane *lane);
/* The guest's memory is laid out differently now. */
void snap_lane_fit(SnapLane *lane);
/* Read @mask of the chunk, and send it. */
gboolean snap_lane_send(SnapLane *lane, SnapPosition place, uint64_t mask, GError **error);
/* The same of what was read before: @pages, one behind the other. */
gboolean snap_lane_send_kept(SnapLane *lane, SnapPosition place, uint64_t mask, uint8_t *pages, GError **error);
/* A record on its channel, counted. */
gboolean snap_lane_transmit(SnapLane *lane, SnapWireType type, uint16_t flags, const void *body,
                            uint32_t body_bytes, const struct iovec *bulk, GError **error)
    SNAP_EXCLUDES(lane->lock);
/* The same of the last one; what fails is passed over. */
void snap_lane_transmit_failed(SnapLane *lane, const char *text) SNAP_EXCLUDES(lane->lock);
/* END on its channel. @n_states: main channel only. */
gboolean snap_lane_end(SnapLane *lane, uint16_t flags, uint64_t epoch, uint64_t n_states, GError **error);

/* ---- outgoing-lanes.c ------------------------------------------------------------------------------------ */

/* Threads for all lanes but the first. */
void snap_outgoing_start_lanes(SnapOutgoing *outgoing);
void snap_outgoing_stop_lanes(SnapOutgoing *outgoing);
/*
 * Send everything that is to be sent; less, and TRUE, when outgoing->halt was set. @kept: (nullable) these chunks
 * instead, from @bytes.
 */
gboolean snap_outgoing_sweep(SnapOutgoing *outgoing, GError **error);
gboolean snap_outgoing_sweep_kept(SnapOutgoing *outgoing, const GArray *kept, uint8_t *bytes, GError **error);
/* END on all channels, data ones first. */
gboolean snap_outgoing_send_end(SnapOutgoing *outgoing, uint16_t flags, uint64_t epoch, uint64_t n_states,
                                GError **error);
/* What is sent from now on is of @part. */
void snap_outgoing_set_part(SnapOutgoing *outgoing, SnapPart part);

/* ---- outgoing-rounds.c ----------------------------------------------------------------------------------- */

/* All rounds; TRUE when it is time to switch over. */
gboolean snap_outgoing_iterate(SnapOutgoing *outgoing, GError **error);
void snap_outgoing_throttle(SnapOutgoing *outgoing, unsigned percent);

/* ---- outgoing-switch.c ----------------------------------------------------------------------------------- */

/* READY, and STOP. The throttle is off then. */
gboolean snap_outgoing_get_ready(SnapOutgoing *outgoing, GError **error);
gboolean snap_outgoing_stop_guest(SnapOutgoing *outgoing, GError **error);
/* Let it run again, if it stands. @ret_pause_ns: (nullable) how long it stood. */
gboolean snap_outgoing_resume_guest(SnapOutgoing *outgoing, uint64_t *ret_pause_ns, GError **error);
/* From the pause on to the end of the migration; @epoch: 0 in a move. */
gboolean snap_outgoing_switch_over(SnapOutgoing *outgoing, uint64_t epoch, GError **error);
/* The guest's blobs, of which the protocol can send each. Return: of SnapState, g_ptr_array_unref() it. */
GPtrArray *snap_outgoing_get_states(SnapOutgoing *outgoing, GError **error);
gboolean snap_outgoing_send_states(SnapOutgoing *outgoing, const GPtrArray *states, GError **error);
/* GO, STARTED: the guest is the other side's. */
gboolean snap_outgoing_let_go(SnapOutgoing *outgoing, GError **error);
/* It has started there. */
void snap_outgoing_handed_over(SnapOutgoing *outgoing);

/* ---- outgoing-postcopy.c --------------------------------------------------------------------------------- */

/* The guest stands, and what is missing is in the sets: tell of it. */
gboolean snap_outgoing_send_missing(SnapOutgoing *outgoing, GError **error);
/* Before the guest runs there: answer requests from now on, until end. */
void snap_outgoing_start_answering(SnapOutgoing *outgoing);
void snap_outgoing_stop_answering(SnapOutgoing *outgoing);
/* The guest runs there: send the rest. TRUE: nothing is missing any more. */
gboolean snap_outgoing_send_rest(SnapOutgoing *outgoing, GError **error);

/* ---- outgoing-resume.c ----------------------------------------------------------------------------------- */

/* The connection was lost with *@error when the other side may have had the guest. TRUE: it has all of it. FALSE:
 * the guest is ours again, and *error says why; or else it was let go of. */
gboolean snap_outgoing_recover(SnapOutgoing *outgoing, GError **error);

/* ---- outgoing-replicate.c -------------------------------------------------------------------------------- */

/* Epoch after epoch; TRUE when the guest was handed over. */
gboolean snap_outgoing_replicate(SnapOutgoing *outgoing, GError **error);
