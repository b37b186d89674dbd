/* See vm.h. */
#include "vm.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Pages that KVM itself needs, where neither memory nor devices are. */
#define TSS_ADDRESS 0xfffbd000ul
#define IDENTITY_MAP_ADDRESS 0xfffbc000ul

static const struct {
    unsigned capability;
    const char *name;
} needed[] = {
    {KVM_CAP_IRQCHIP, "interrupt controllers of the kernel"},
    {KVM_CAP_PIT_STATE2, "the timer's state"},
    {KVM_CAP_IMMEDIATE_EXIT, "immediate exits"},
    {KVM_CAP_XSAVE2, "all of the processor's extended state"},
    {KVM_CAP_SREGS2, "all of its segment registers"},
    {KVM_CAP_ADJUST_CLOCK, "the clock"},
};

gboolean vm_ioctl(int fd, unsigned long request, void *argument, const char *what, GError **error) {
    if (ioctl(fd, request, argument) >= 0)
        return TRUE;
    snap_set_errno(error, errno, "KVM: %s", what);
    return FALSE;
}

int vm_check(const Vm *vm, unsigned capability) {
    return ioctl(vm->fd, KVM_CHECK_EXTENSION, capability);
}

/* ---- setting up ------------------------------------------------------------------------------------------ */

static gboolean open_kvm(Vm *vm, GError **error) {
    vm->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (vm->kvm_fd < 0 && (errno == ENOENT || errno == ENODEV || errno == ENXIO)) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED, "/dev/kvm: this machine has no KVM");
        return FALSE;
    }
    if (vm->kvm_fd < 0) {
        snap_set_errno(error, errno, "/dev/kvm");
        return FALSE;
    }
    if (ioctl(vm->kvm_fd, KVM_GET_API_VERSION, 0) == KVM_API_VERSION)
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED, "/dev/kvm: it is of another version");
    return FALSE;
}

static gboolean create(Vm *vm, GError **error) {
    vm->fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0);
    if (vm->fd < 0) {
        snap_set_errno(error, errno, "KVM: a virtual machine");
        return FALSE;
    }
    for (gsize i = 0; i < G_N_ELEMENTS(needed); i++)
        if (vm_check(vm, needed[i].capability) <= 0) {
            g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED, "this kernel's KVM lacks %s", needed[i].name);
            return FALSE;
        }
    return TRUE;
}

static gboolean add_board(const Vm *vm, GError **error) {
    uint64_t identity_map = IDENTITY_MAP_ADDRESS;
    struct kvm_pit_config timer = {.flags = KVM_PIT_SPEAKER_DUMMY}; /* port 0x61 too: it starts channel 2 */
    struct kvm_userspace_memory_region memory = {.memory_size = vm->ram.length_bytes,
                                                 .userspace_addr = (uintptr_t)vm->ram.bytes};
    return vm_ioctl(vm->fd, KVM_SET_TSS_ADDR, (void *)TSS_ADDRESS, "its own pages", error) &&
           vm_ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity_map, "its own pages", error) &&
           vm_ioctl(vm->fd, KVM_CREATE_IRQCHIP, NULL, "interrupt controllers", error) &&
           vm_ioctl(vm->fd, KVM_CREATE_PIT2, &timer, "a timer", error) &&
           vm_ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &memory, "guest memory", error);
}

gboolean vm_init(Vm *vm, RamKind kind, uint64_t ram_bytes, GError **error) {
    *vm = (Vm){.kvm_fd = -1, .fd = -1};
    if (open_kvm(vm, error) && create(vm, error) && ram_init(&vm->ram, kind, ram_bytes, error) &&
        add_board(vm, error))
        return TRUE;
    vm_clear(vm);
    return FALSE;
}

void vm_clear(Vm *vm) {
    if (vm->fd >= 0)
        close(vm->fd);
    if (vm->kvm_fd >= 0)
        close(vm->kvm_fd);
    ram_clear(&vm->ram);
    *vm = (Vm){.kvm_fd = -1, .fd = -1};
}

/* ---- state ----------------------------------------------------------------------------------------------- */

gboolean vm_get_state(const Vm *vm, MachineState *state, GError **error) {
    for (uint32_t i = 0; i < STATE_IRQCHIPS; i++) {
        state->irqchips[i] = (struct kvm_irqchip){.chip_id = i};
        if (!vm_ioctl(vm->fd, KVM_GET_IRQCHIP, &state->irqchips[i], "an interrupt controller's state", error))
            return FALSE;
    }
    return vm_ioctl(vm->fd, KVM_GET_PIT2, &state->timer, "the timer's state", error) &&
           vm_ioctl(vm->fd, KVM_GET_CLOCK, &state->time.kvm_clock, "the clock", error);
}

gboolean vm_set_state(const Vm *vm, const MachineState *state, uint64_t elapsed_ns, GError **error) {
    struct kvm_clock_data clock = {.clock = state->time.kvm_clock.clock + elapsed_ns};
    struct kvm_pit_state2 timer = state->timer;
    for (uint32_t i = 0; i < STATE_IRQCHIPS; i++) {
        struct kvm_irqchip chip = state->irqchips[i];
        if (!vm_ioctl(vm->fd, KVM_SET_IRQCHIP, &chip, "an interrupt controller's state", error))
            return FALSE;
    }
    return vm_ioctl(vm->fd, KVM_SET_PIT2, &timer, "the timer's state", error) &&
           vm_ioctl(vm->fd, KVM_SET_CLOCK, &clock, "the clock", error);
}
