/* Which guest a command is about: --pid PID | --qemu QMP-SOCKET. */
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
