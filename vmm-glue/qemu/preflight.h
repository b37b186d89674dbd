/*
 * What forbids a snapshot of a QEMU, found out before the guest is touched.
 */
#pragma once

#include "qemu.h"
#include "qmp.h"

/**
 * preflight_check: look for everything that would make a snapshot wrong, or hurt the guest.
 *
 * @ret_running: (out) whether the guest runs now.
 * Errors: NOT_SUPPORTED, not an x86 machine; REFUSED, what stands in the way and what to do about it, the first
 *   that was found.
 */
gboolean preflight_check(Qmp *qmp, int pid, QemuDisks disks, gboolean *ret_running, GError **error);

/**
 * preflight_migration: may this guest be asked for its device state? @migration: (borrow) answer of query-migrate.
 * Errors: REFUSED.
 */
gboolean preflight_migration(json_object *migration, GError **error);

/**
 * preflight_status: is it running, or paused? @answer: (borrow) of query-status. @ret_running: (out).
 * Errors: REFUSED.
 */
gboolean preflight_status(json_object *answer, gboolean *ret_running, GError **error);

/**
 * preflight_regions: whether another process writes the guest's memory where nothing sees it.
 * @regions: (borrow) of SnapRegion; one that is only left out of the snapshot may be the one: it gets a refusal.
 */
void preflight_regions(int pid, GPtrArray *regions);
