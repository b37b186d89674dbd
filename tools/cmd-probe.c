/* vmsnap probe: what this machine can do, and what is missing for the rest. */
#include "command.h"

#include <stdio.h>

/* One line an item; where the answer is not yes, two more lines say what that costs and what helps. */
static void print_item(json_object *item) {
    const char *answer = result_string(item, "answer");
    gboolean missing = !g_str_equal(answer, "yes");
    printf("  %-22s %s%s\n", result_string(item, "name"), answer,
           missing && result_bool(item, "required") ? ", and required" : "");
    if (missing) {
        printf("      lost without it: %s\n", result_string(item, "lost"));
        printf("      how to get it:   %s\n", result_string(item, "remedy"));
    }
}

static const char *describe_log(const char *mode) {
    return g_str_equal(mode, "async")  ? "async (kernel)"
           : g_str_equal(mode, "sync") ? "sync (a thread)"
                                       : "none: something required is missing";
}

static void print_result(json_object *result) {
    json_object *items = result_object(result, "items");
    const char *group = "";
    for (size_t i = 0; i < json_object_array_length(items); i++) {
        json_object *item = json_object_array_get_idx(items, i);
        const char *item_group = result_string(item, "group");
        if (!g_str_equal(item_group, group))
            printf("%s\n", item_group);
        group = item_group;
        print_item(item);
    }
    printf("dirty log: %s\n", describe_log(result_string(result, "dirty-log")));
    puts(result_bool(result, "ready") ? "Snapshots work here."
                                      : "Snapshots do not work here: something required is missing.");
}

static int run(Invocation *invocation) {
    int status = STATUS_DONE;
    if (!invocation_parse(invocation, NULL, 0, 0, &status))
        return status;
    g_autoptr(Client) client = invocation_connect(invocation, &status);
    if (!client)
        return status;
    g_autoptr(GError) error = NULL;
    g_autoptr(json_object) result = client_command(client, "query-probe", NULL, &error);
    if (!result)
        return invocation_fail(invocation, error);
    status = invocation_finish(invocation, result, print_result);
    return status == STATUS_DONE && !result_bool(result, "ready") ? STATUS_FAILED : status;
}

const Command command_probe = {
    .name = "probe",
    .operands = "",
    .summary = "What this machine can do, and what is missing for the rest.",
    .description = "Asks the kernel for each thing that libsnap can use: present, absent, or there but denied to\n"
                   "you; what is lost without it; how to get it. Touches no guest. Exit status 1 when something\n"
                   "that every snapshot needs is missing.",
    .run = run,
};
