/* Which guest: see target.h. */
#include "target.h"

void target_options_clear(TargetOptions *options) {
    g_free(options->pid);
    g_free(options->qemu);
    g_free(options->libvirt);
}

static gboolean refuse(const Invocation *invocation, int *ret_status, const char *what) {
    *ret_status = invocation_usage(invocation, "%s", what);
    return FALSE;
}

gboolean target_parse(const Invocation *invocation, const TargetOptions *options, QapiGuestOptions *ret_target,
                      int *ret_status) {
    guint64 pid = 0;
    if (options->libvirt)
        return refuse(invocation, ret_status, "--libvirt: not built yet; --qemu with the domain's QMP socket is");
    if (!options->pid == !options->qemu)
        return refuse(invocation, ret_status, "one target, please: --pid PID or --qemu QMP-SOCKET");
    if (options->qemu) {
        *ret_target = (QapiGuestOptions){.kind = QAPI_GUEST_QEMU, .qemu = {.qmp_path = options->qemu}};
        return TRUE;
    }
    if (!g_ascii_string_to_unsigned(options->pid, 10, 1, G_MAXINT, &pid, NULL))
        return refuse(invocation, ret_status, "--pid: not a process id; a number from ps or pidof");
    *ret_target = (QapiGuestOptions){.kind = QAPI_GUEST_PROCESS, .process = {.pid = (int)pid}};
    return TRUE;
}
