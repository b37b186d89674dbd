/*
 * Linked into a thread-vm with --wrap=snap_outgoing_get_stats: whoever asks for the figures of a migration is held
 * up before he gets them, as he may be on a busy machine, and by then they are of the past.
 */
#include "../../libsnap/libsnap.h"

#define HELD_UP_US 100000

void __real_snap_outgoing_get_stats(SnapOutgoing *outgoing, SnapMigrationStats *ret_stats);
void __wrap_snap_outgoing_get_stats(SnapOutgoing *outgoing, SnapMigrationStats *ret_stats);

void __wrap_snap_outgoing_get_stats(SnapOutgoing *outgoing, SnapMigrationStats *ret_stats) {
    __real_snap_outgoing_get_stats(outgoing, ret_stats);
    g_usleep(HELD_UP_US);
}
