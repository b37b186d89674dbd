/* See microvm.h. */
#include "machine.h"

#include "multiboot.h"

/* ---- beginning ------------------------------------------------------------------------------------------- */

static gboolean boot(Microvm *vm, const MicrovmOptions *options, GError **error) {
    g_autoptr(GError) problem = NULL;
    g_autofree char *image = NULL;
    gsize length;
    MultibootEntry entry;
    if (!g_file_get_contents(options->kernel, &image, &length, &problem)) {
        g_set_error_literal(error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND, problem->message);
        return FALSE;
    }
    if (multiboot_load((const uint8_t *)image, length, options->words, vm->vm.ram.bytes, vm->vm.ram.length_bytes,
                       &entry, error))
        return vcpu_enter_kernel(&vm->vcpu, &entry, error);
    g_prefix_error(error, "%s: ", options->kernel);
    return FALSE;
}

Microvm *microvm_new(const MicrovmOptions *options, GError **error) {
    g_autoptr(Microvm) vm = g_new0(Microvm, 1);
    Hold hold = options->begin == MICROVM_INCOMING ? HOLD_INCOMING : HOLD_CLIENT;
    vm->vm = (Vm){.kvm_fd = -1, .fd = -1};
    ports_init(&vm->ports, options->serial_fd);
    if (!vm_init(&vm->vm, options->memory, options->ram_bytes, error) || !vcpu_init(&vm->vcpu, &vm->vm, error) ||
        (options->begin == MICROVM_BOOT && !boot(vm, options, error)) ||
        !runner_init(&vm->runner, &vm->vcpu, &vm->ports, hold, options->on_end, options->opaque, error))
        return NULL;
    return g_steal_pointer(&vm);
}

void microvm_free(Microvm *vm) {
    if (!vm)
        return;
    runner_clear(&vm->runner);
    vcpu_clear(&vm->vcpu);
    vm_clear(&vm->vm);
    g_free(vm->taken);
    g_free(vm);
}

/* ---- what clients say ------------------------------------------------------------------------------------ */

/* Neither runs or stops what is not here. */
static gboolean is_here(Microvm *vm, GError **error) {
    static const Hold away[] = {HOLD_INCOMING, HOLD_HANDED_OVER, HOLD_ENDED};
    Holds holds = runner_holds(&vm->runner);
    for (gsize i = 0; i < G_N_ELEMENTS(away); i++)
        if (hold_has(&holds, away[i])) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_REFUSED, "the guest does not run here: %s",
                        hold_text(away[i]));
            return FALSE;
        }
    return TRUE;
}

gboolean microvm_stop(Microvm *vm, GError **error) {
    if (!is_here(vm, error))
        return FALSE;
    runner_hold(&vm->runner, HOLD_CLIENT);
    return TRUE;
}

gboolean microvm_cont(Microvm *vm, GError **error) {
    if (!is_here(vm, error))
        return FALSE;
    runner_release(&vm->runner, HOLD_CLIENT);
    return TRUE;
}

gboolean microvm_is_running(Microvm *vm) {
    Holds holds = runner_holds(&vm->runner);
    return hold_looks_running(&holds);
}
