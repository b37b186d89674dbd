/* The limit of bytes a second; see throttle.h. */
#include "throttle.h"

#include <glib.h>

#define NS_PER_SECOND 1e9
#define WAIT_MAX_NS (UINT64_C(3600) * 1000000000) /* for the smallest of limits; whoever waits looks again */

void snap_throttle_spend(SnapThrottle *throttle, uint64_t bytes) {
    throttle->owed_bytes += (double)bytes;
}

uint64_t snap_throttle_wait_ns(SnapThrottle *throttle, uint64_t now_ns, uint64_t bytes_per_second) {
    double rate = (double)bytes_per_second / NS_PER_SECOND;
    double paid = (double)(now_ns - MIN(throttle->paid_ns, now_ns)) * rate;
    throttle->paid_ns = now_ns;
    if (bytes_per_second == 0 || paid >= throttle->owed_bytes) {
        throttle->owed_bytes = 0;
        return 0;
    }
    throttle->owed_bytes -= paid;
    double wait_ns = throttle->owed_bytes / rate + 1;
    return wait_ns < (double)WAIT_MAX_NS ? (uint64_t)wait_ns : WAIT_MAX_NS;
}
