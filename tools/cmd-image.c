/* vmsnap info, verify, list, merge, delete: what one does with an image directory. */
#include "command.h"
#include "units.h"

#include <inttypes.h>
#include <stdio.h>

/* ---- what they have in common ---------------------------------------------------------------------------- */

typedef void (*Print)(json_object *result);

/* A job on the image that the first operand names. @second: (nullable) the argument that the second one is. */
static int run_job(Invocation *invocation, const char *second, const char *doing, const char *command,
                   Print print) {
    int status = STATUS_DONE, n_operands = second ? 2 : 1;
    if (!invocation_parse(invocation, NULL, n_operands, n_operands, &status))
        return status;
    g_autoptr(Client) client = invocation_connect(invocation, &status);
    if (!client)
        return status;
    json_object *arguments = json_object_new_object();
    client_add_path(client, arguments, "path", invocation->argv[0]);
    if (second)
        client_add_path(client, arguments, second, invocation->argv[1]);
    return invocation_run_job(invocation, client, doing, command, arguments, print);
}

/* ---- info ------------------------------------------------------------------------------------------------ */

static void print_region(json_object *region) {
    g_autofree char *length = units_format_size(result_uint(region, "length-bytes"));
    g_autofree char *data = units_format_size(result_uint(region, "data-bytes"));
    g_autofree char *guest = result_object(region, "guest-address")
                                 ? g_strdup_printf("%#" PRIx64, result_uint(region, "guest-address"))
                                 : g_strdup("-");
    g_autofree char *granule = units_format_size(result_uint(region, "granule-bytes"));
    g_autofree char *name = units_format_text(result_string(region, "name"));
    printf("  %-15s %#-18" PRIx64 " %-18s %10s %10s %10s  %s\n", result_string(region, "memory"),
           result_uint(region, "host-address"), guest, length, data, granule, name);
}

static void print_info(json_object *result) {
    g_autofree char *length = units_format_size(result_uint(result, "length-bytes"));
    g_autofree char *data = units_format_size(result_uint(result, "data-bytes"));
    json_object *statistics = result_object(result, "statistics");
    g_autofree char *pause = units_format_us(result_double(statistics, "pause-us"));
    json_object *regions = result_object(result, "regions");
    json_object *states = result_object(result, "states");

    printf("image    %s\n", result_string(result, "dir"));
    printf("id       %s\n", result_string(result, "id"));
    if (result_string(result, "parent-id"))
        printf("parent   %s, image %s\n", result_string(result, "parent-dir"), result_string(result, "parent-id"));
    if (result_uint(result, "parents") > 0)
        printf("chain    %" PRIu64 " images; %" PRIu64 " pages are in this one\n",
               result_uint(result, "parents") + 1, result_uint(result, "pages-held"));
    printf("created  %s\n", result_string(result, "created"));
    printf("driver   %s\n", result_string(result, "driver"));
    printf("memory   %s, of which %s are not zero; pages of %" PRIu64 " bytes\n", length, data,
           result_uint(result, "page-bytes"));
    printf("pause    %s\n", pause);
    for (size_t i = 0; i < json_object_array_length(states); i++)
        printf("%s%s", i ? ", " : "state    ", json_object_get_string(json_object_array_get_idx(states, i)));
    puts(json_object_array_length(states) ? "" : "state    none");

    printf("  %-15s %-18s %-18s %10s %10s %10s  %s\n", "memory", "host address", "guest address", "length", "data",
           "granule", "region");
    for (size_t i = 0; i < json_object_array_length(regions); i++)
        print_region(json_object_array_get_idx(regions, i));
}

static int run_info(Invocation *invocation) {
    int status = STATUS_DONE;
    if (!invocation_parse(invocation, NULL, 1, 1, &status))
        return status;
    g_autoptr(Client) client = invocation_connect(invocation, &status);
    if (!client)
        return status;
    json_object *arguments = json_object_new_object();
    client_add_path(client, arguments, "path", invocation->argv[0]);
    return invocation_run(invocation, client, "query-snapshot", arguments, print_info);
}

const Command command_info = {
    .name = "info",
    .operands = "DIR",
    .summary = "What an image holds: its regions, its device state, when and how it was taken.",
    .description = "Example:\n  vmsnap info /var/tmp/snap",
    .run = run_info,
};

/* ---- list ------------------------------------------------------------------------------------------------ */

static void print_listed(json_object *image) {
    if (!result_bool(image, "complete")) {
        g_autofree char *problem = units_format_text(result_string(image, "problem"));
        printf("%s  incomplete  %s\n", result_string(image, "dir"), problem);
        return;
    }
    g_autofree char *length = units_format_size(result_uint(image, "length-bytes"));
    g_autofree char *parent =
        result_string(image, "parent-dir") ? g_path_get_basename(result_string(image, "parent-dir")) : NULL;
    printf("%s  complete  %s  %s  %s  %" PRIu64 " regions  %s  %" PRIu64 " pages%s%s\n",
           result_string(image, "dir"), result_string(image, "id"), result_string(image, "created"),
           result_string(image, "driver"), result_uint(image, "regions"), length, result_uint(image, "pages-held"),
           parent ? "  on " : "", parent ? parent : "");
}

static void print_list(json_object *result) {
    json_object *images = result_object(result, "images");
    for (size_t i = 0; i < json_object_array_length(images); i++)
        print_listed(json_object_array_get_idx(images, i));
}

static json_object *paths_of(const Client *client, char *const *operands) {
    json_object *paths = json_object_new_array();
    for (; *operands; operands++) {
        g_autofree char *path = client_path(client, *operands);
        json_object_array_add(paths, json_object_new_string(path));
    }
    return paths;
}

static int run_list(Invocation *invocation) {
    int status = STATUS_DONE;
    if (!invocation_parse(invocation, NULL, 1, -1, &status))
        return status;
    g_autoptr(Client) client = invocation_connect(invocation, &status);
    if (!client)
        return status;
    json_object *arguments = json_object_new_object();
    qapi_json_add(arguments, "paths", paths_of(client, invocation->argv));
    g_autoptr(GError) error = NULL;
    json_object *images = client_command(client, "query-snapshots", arguments, &error);
    if (!images)
        return invocation_fail(invocation, error);
    g_autoptr(json_object) result = json_object_new_object();
    qapi_json_add(result, "images", images);
    return invocation_finish(invocation, result, print_list);
}

const Command command_list = {
    .name = "list",
    .operands = "DIR...",
    .summary = "One line an image. DIR is an image, or a folder with images in it.",
    .description =
        "The images of a folder are listed oldest first, each with the pages that it holds itself and the\n"
        "name of its parent. An image without its manifest is one that was not finished: it cannot be\n"
        "restored, and vmsnap delete removes it.",
    .run = run_list,
};

/* ---- verify ---------------------------------------------------------------------------------------------- */

static void print_verified(json_object *result) {
    g_autofree char *length = units_format_size(result_uint(result, "length-bytes"));
    printf("%s: sound, %" PRIu64 " regions, %s\n", result_string(result, "dir"), result_uint(result, "regions"),
           length);
}

static int run_verify(Invocation *invocation) {
    return run_job(invocation, NULL, "verifying", "snapshot-verify", print_verified);
}

const Command command_verify = {
    .name = "verify",
    .operands = "DIR",
    .summary = "Read a whole image, and its parents, and check every byte against its checksums.",
    .description = "Exit status 1 and the first thing wrong, with its file, when the image is damaged.",
    .run = run_verify,
};

/* ---- merge ----------------------------------------------------------------------------------------------- */

static void print_merged(json_object *result) {
    g_autofree char *length = units_format_size(result_uint(result, "length-bytes"));
    printf("%s: complete by itself, %" PRIu64 " merged, %" PRIu64 " regions, %s\n", result_string(result, "out"),
           result_uint(result, "merged"), result_uint(result, "regions"), length);
}

static int run_merge(Invocation *invocation) {
    return run_job(invocation, "out", "merging", "snapshot-merge", print_merged);
}

const Command command_merge = {
    .name = "merge",
    .operands = "DIR OUT",
    .summary = "Write an image without a parent that is equal to DIR and all its parents.",
    .description =
        "OUT has the id of DIR: images whose parent is DIR accept OUT in its place. OUT must not exist, or\n"
        "be empty; it is there when it is complete, and not before. DIR and its parents stay as they are.\n\n"
        "Example:\n  vmsnap merge chain/000020 full && vmsnap restore full --qemu -- …",
    .run = run_merge,
};

/* ---- delete ---------------------------------------------------------------------------------------------- */

static void print_deleted(json_object *result) {
    printf("%s: deleted\n", result_string(result, "dir"));
}

static int run_delete(Invocation *invocation) {
    return run_job(invocation, NULL, "deleting", "snapshot-delete", print_deleted);
}

const Command command_delete = {
    .name = "delete",
    .operands = "DIR",
    .summary = "Remove an image, complete or not.",
    .description = "A folder that holds anything but an image is refused and stays as it is; so is an image that\n"
                   "another one beside it has as its parent.",
    .run = run_delete,
};
