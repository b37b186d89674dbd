/*
 * Which process is at the other end of a unix socket.
 */
#pragma once

#include "libsnap.h"

/**
 * peer_find_pid: the process that holds the other end of @fd.
 *
 * SO_PEERCRED tells who began to listen, which is not the one that answers when a manager hands a listening socket
 * to the QEMU it starts. So the socket itself is looked for among the descriptors of processes.
 *
 * Errors: NOT_FOUND, no process that can be looked into has it.
 * Return: its pid; -1 on error.
 */
int peer_find_pid(int fd, GError **error);
