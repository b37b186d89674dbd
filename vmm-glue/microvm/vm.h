/*
 * A virtual machine of KVM, less its processor: memory, interrupt controllers and timer of the kernel.
 *
 * Happy path: init → a vcpu.h on it → clear. Linux 5.17 or later, which is less than what snapshots need.
 * Failure modes: there is no KVM, or the user may not use it: init says so, by NOT_SUPPORTED and PERMISSION.
 * Threads: any; state is got and set while the processor stands.
 */
#pragma once

#include "ram.h"
#include "state.h"

typedef struct {
    int kvm_fd;
    int fd;
    Ram ram;
} Vm;

/** vm_init: Errors: NOT_SUPPORTED; PERMISSION; those of ram_init(); IO. */
gboolean vm_init(Vm *vm, RamKind kind, uint64_t ram_bytes, GError **error);
void vm_clear(Vm *vm);

/* What KVM says about @capability. */
int vm_check(const Vm *vm, unsigned capability);

/** vm_get_state: interrupt controllers, timer and the paravirtual clock. Errors: IO. */
gboolean vm_get_state(const Vm *vm, MachineState *state, GError **error);
/** vm_set_state: the same; clocks go on by @elapsed_ns. */
gboolean vm_set_state(const Vm *vm, const MachineState *state, uint64_t elapsed_ns, GError **error);

/* Of any descriptor of KVM: TRUE, or IO and "WHAT: …". */
gboolean vm_ioctl(int fd, unsigned long request, void *argument, const char *what, GError **error);
