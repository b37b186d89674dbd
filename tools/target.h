/*
 * Which guest a command is about: --pid PID | --qemu QMP-SOCKET; and the target that it is where commands go.
 *
 *     target_parse → target_acquire → commands with its id → target_release
 *
 * A guest that somebody has added with target-add is used as it is. Otherwise it is added for as long as
 * somebody's command needs it.
 */
#pragma once

#include "command.h"
#include "qapi/save.h"

typedef struct {
    char *pid;
    char *qemu;
    char *libvirt; /* known, so that it can be refused by name */
} TargetOptions;

void target_options_clear(TargetOptions *options);

/**
 * target_parse: exactly one guest.
 * @options: (borrow) for as long as @ret_target is used. @ret_target: (out) without options of its kind.
 * Return: FALSE on wrong usage, with the exit status in @ret_status.
 */
gboolean target_parse(const Invocation *invocation, const TargetOptions *options, QapiGuestOptions *ret_target,
                      int *ret_status);

/**
 * target_acquire: a target that is this guest.
 * Errors: REFUSED, another command has added it for itself and does not care about its disks; of target-add.
 * Return: (out) its id, for target_release().
 */
char *target_acquire(Client *client, const QapiGuestOptions *guest, GError **error);

/** target_release: done with it. The last command that uses what a command has added lets go of the guest. */
void target_release(Client *client, const char *id);
