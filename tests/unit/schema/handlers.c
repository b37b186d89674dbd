/* The handlers of the test schema, which nobody calls. */
#include "test-schema-handlers.h"

#define HANDLER(name)                                                                                             \
    json_object *test_qmp_##name(QapiCall *call, GError **error) {                                                \
        (void)call;                                                                                               \
        (void)error;                                                                                              \
        return NULL;                                                                                              \
    }

HANDLER(block_dirty_bitmap_merge)
HANDLER(blockdev_add)
HANDLER(human_monitor_command)
HANDLER(input_send_event)
HANDLER(migrate_set_capabilities)
HANDLER(migrate_set_parameters)
HANDLER(qmp_capabilities)
HANDLER(qom_set)
HANDLER(query_stats)
HANDLER(send_key)
HANDLER(set_numa_node)
HANDLER(test_boxed)
HANDLER(test_kinds)
HANDLER(test_oob)
