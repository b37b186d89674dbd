/* Inside of a QEMU guest: what else than snapshots is done with it. See qemu.h for the outside. */
#pragma once

#include "connection.h"

/** qemu_guest_connection: (borrow) for the life of the guest. NULL: it is no QEMU. Thread: any. */
Connection *qemu_guest_connection(const SnapGuest *guest);
