/*
 * Lookup: a host's name to addresses, without waiting for it where it is not wanted any more.
 *
 * getaddrinfo() cannot be stopped, and waits for as long as a name server does not answer. So it has a thread of
 * its own, "snap-lookup", which owns what it needs and outlives, if it must, who asked: the one thread here that
 * does not end with its job. Addresses in figures are there at once, without a thread.
 *
 * Threads: one, that asks.
 */
#pragma once

#include <netdb.h>
#include <stdbool.h>

typedef struct SnapLookup SnapLookup;

/**
 * snap_lookup_new: begin. @host: NULL: to listen at, any; else this machine. @port: in figures.
 * Return: (out) snap_lookup_free() it. NULL with errno: no descriptor, or no thread.
 */
SnapLookup *snap_lookup_new(const char *host, const char *port, bool to_listen);
void snap_lookup_free(SnapLookup *lookup);

/** snap_lookup_fd: readable when it is done. */
int snap_lookup_fd(const SnapLookup *lookup);
/** snap_lookup_addresses: (borrow) when it is done; NULL: @ret_wrong says why, a static string. */
const struct addrinfo *snap_lookup_addresses(SnapLookup *lookup, const char **ret_wrong);
