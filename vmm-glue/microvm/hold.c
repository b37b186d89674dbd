/* See hold.h. One row a reason; all rules are in the table. */
#include "hold.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>

static const struct {
    const char *text;
    bool final;
    bool hidden; /* from clients */
} table[] = {
    [HOLD_CLIENT] = {"a client has stopped it", .final = false, .hidden = false},
    [HOLD_COPY] = {"it is paused for a copy", .final = false, .hidden = true},
    [HOLD_INCOMING] = {"it is to be moved here", .final = false, .hidden = false},
    [HOLD_HANDED_OVER] = {"it was moved away", .final = true, .hidden = false},
    [HOLD_ENDED] = {"it has ended", .final = true, .hidden = false},
};
static_assert(sizeof(table) / sizeof(table[0]) == HOLD_MAX, "a row for each reason");

static unsigned bit(Hold hold) {
    assert(hold < HOLD_MAX);
    return 1u << hold;
}

const char *hold_text(Hold hold) {
    return hold < HOLD_MAX ? table[hold].text : NULL;
}

void hold_add(Holds *holds, Hold hold) {
    holds->reasons |= bit(hold);
}

int hold_remove(Holds *holds, Hold hold) {
    if (table[hold].final && hold_has(holds, hold))
        return -EPERM;
    holds->reasons &= ~bit(hold);
    return 0;
}

bool hold_has(const Holds *holds, Hold hold) {
    return holds->reasons & bit(hold);
}

bool hold_none(const Holds *holds) {
    return holds->reasons == 0;
}

bool hold_looks_running(const Holds *holds) {
    for (Hold hold = 0; hold < HOLD_MAX; hold++)
        if (!table[hold].hidden && hold_has(holds, hold))
            return false;
    return true;
}
