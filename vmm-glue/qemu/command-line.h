/*
 * A QEMU command line, looked at and changed for a restore.
 */
#pragma once

#include "qemu.h"
#include "stream.h"

/* What becomes of the user's command. */
typedef struct {
    GPtrArray *argv;         /* of char *, without a NULL at the end yet */
    StreamContent *contents; /* for each block of the description: what must be sent */
    uint64_t mapped_bytes;
} CommandLine;

/**
 * command_line_new: the command that restores an image. RAM that can be mapped, and is to be, becomes a private
 * mapping of the image's raw file; everything else stays as the user wrote it.
 * @argv: (borrow) the user's command.
 * Errors: USAGE, it has -incoming already; NOT_SUPPORTED, with QEMU_MAP_ALWAYS: why nothing can be mapped.
 * Return: (out) free with command_line_free().
 */
CommandLine *command_line_new(char *const *argv, const SnapImage *image, const QemuDescription *description,
                              QemuMap map, GError **error);

/** command_line_add: append an option, or an option and its value (nullable). */
void command_line_add(CommandLine *line, const char *option, const char *value);

void command_line_free(CommandLine *line);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(CommandLine, command_line_free)
