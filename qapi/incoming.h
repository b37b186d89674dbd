/*
 * Destinations: a guest that is moved to this VMM, or copies of one that are kept as images.
 */
#pragma once

#include "libsnap-qmp.h"
#include "migration-state.h"

/**
 * qapi_incoming_set_up: what @options say of migrations of the target "embedded". Before there are clients.
 * Errors: REFUSED, a guest is to come that has no move_ops to arrive with; those of snap_incoming_start().
 */
gboolean qapi_incoming_set_up(QapiHelper *helper, const SnapQmpOptions *options, GError **error);

/**
 * qapi_incoming_into_images: take replications at @uri from now on, one after another, each into a folder
 *   "incoming-<n>" of the snapshot folder. query-migrate tells of it as long as there is no target. @keep: images
 * of each, see SnapIncomingOptions; 0: all. Errors: those of snap_incoming_start().
 */
gboolean qapi_incoming_into_images(QapiHelper *helper, const char *uri, guint keep, GError **error);
/** qapi_incoming_images: (borrow) what is known of these; NULL: there are none. */
Migration *qapi_incoming_images(const QapiHelper *helper);
void qapi_incoming_images_free(QapiHelper *helper);

/** qapi_incoming_tell_uri: remember where it listens, for query-migrate. */
void qapi_incoming_tell_uri(QapiHelper *helper, Migration *migration, SnapIncoming *incoming);
