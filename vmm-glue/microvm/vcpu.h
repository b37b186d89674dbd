/*
 * The processor of a microvm: running it, and its registers.
 *
 * Happy path: init → enter_kernel, or set_state → run, again and again, in one thread → clear.
 *
 * Invariant: when run returns VCPU_INTERRUPTED no access to a port or device is half done: KVM completes the last
 * one as it is entered again, and only then looks whether it is to leave (Documentation/virt/kvm/api.rst,
 * KVM_RUN). So state is got and set (registers.h) only after that.
 */
#pragma once

#include "multiboot.h"
#include "vm.h"

typedef struct {
    const Vm *vm;
    int fd;
    struct kvm_run *run; /* shared with the kernel */
    size_t run_bytes;
    uint32_t n_xsave; /* bytes of the extended state */
    uint32_t n_msrs;
    uint32_t msrs[STATE_MAX_MSRS]; /* those that can be got */
    uint32_t n_cpuid;
    struct kvm_cpuid_entry2 cpuid[STATE_MAX_CPUID]; /* what the guest sees; before a state is set, what it can */
} Vcpu;

/** vcpu_init: @vm: (borrow) until vcpu_clear(). Errors: IO; NOT_SUPPORTED. */
gboolean vcpu_init(Vcpu *vcpu, const Vm *vm, GError **error);
/* Of one that was zeroed only: nothing. */
void vcpu_clear(Vcpu *vcpu);

/** vcpu_enter_kernel: begin there, as a multiboot loader does. Errors: IO. */
gboolean vcpu_enter_kernel(Vcpu *vcpu, const MultibootEntry *entry, GError **error);

/* Whoever runs it leaves, or leaves at once when it enters, until vcpu_go_on(). One that is inside needs the
 * signal besides. Thread: any. */
void vcpu_leave(Vcpu *vcpu);
void vcpu_go_on(Vcpu *vcpu);

/**
 * vcpu_set_signal: the one signal that ends a run; it stays blocked in the thread that runs it outside of KVM, and
 *   so needs no handler. Errors: IO.
 */
gboolean vcpu_set_signal(Vcpu *vcpu, int signal_number, GError **error);

typedef enum {
    VCPU_INTERRUPTED, /* by vcpu_leave(), or the signal */
    VCPU_EXITED,      /* the guest has written its exit port */
    VCPU_FAILED,      /* it cannot go on */
} VcpuStop;

/**
 * vcpu_run: run the guest until it stops. @ret_status: of VCPU_EXITED. @ret_why: (out) of VCPU_FAILED, for people;
 *   g_free() it. Thread: the one that it runs in.
 */
VcpuStop vcpu_run(Vcpu *vcpu, Ports *ports, uint8_t *ret_status, char **ret_why);

/** vcpu_set_cpuid: it is such a processor, before it has ever run. Errors: IO. */
gboolean vcpu_set_cpuid(Vcpu *vcpu, const struct kvm_cpuid_entry2 *entries, uint32_t n, GError **error);
