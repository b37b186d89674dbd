/* The dirty log of a guest that a helper keeps, collected round by round from here. */
#pragma once

#include "client.h"
#include "qapi/track.h"

/**
 * track_remote: as qapi_track(), by the helper behind @client.
 * Errors: of the commands; GUEST_GONE, the guest has ended, or the helper has.
 */
gboolean track_remote(Client *client, const QapiTrackOptions *options, const QapiTrackFuncs *funcs, void *opaque,
                      GError **error);
