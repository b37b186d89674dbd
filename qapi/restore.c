/* Command family restore: see restore.h. */
#include "restore.h"

json_object *qapi_restore(const QapiRestoreOptions *options, QemuProcess **ret_process, GError **error) {
    g_autoptr(SnapImage) image = snap_image_open(options->dir, error);
    if (!image)
        return NULL;
    QemuRestoreStats stats = {0};
    QemuProcess *process = qemu_restore(image, options->argv, &options->qemu, &stats, error);
    if (!process)
        return NULL;
    json_object *result = json_object_new_object();
    qapi_json_add_string(result, "dir", options->dir);
    qapi_json_add_uint(result, "pid", (uint64_t)qemu_process_pid(process));
    qapi_json_add_bool(result, "running", stats.running);
    qapi_json_add_double(result, "ready-ms", (double)stats.ready_ns / 1e6);
    qapi_json_add_uint(result, "stream-bytes", stats.stream_bytes);
    qapi_json_add_uint(result, "mapped-bytes", stats.mapped_bytes);
    *ret_process = process;
    return result;
}
