/*
 * A small virtual machine on KVM: one processor, memory, COM1; enough for tests/guest's multiboot image. It links
 * libsnap, and shows how a VMM is one of its guests: it can be saved, moved away and moved in.
 *
 *     Microvm *vm = microvm_new(&options, &error);
 *     SnapGuest *guest = microvm_guest(vm);               for SnapQmp, snap_save_start(), snap_outgoing_start() …
 *     microvm_cont(vm, &error);                           it runs; of one that is to be moved here: move_ops do it
 *     …                                                   until on_end tells, or nobody wants it any more
 *     snap_guest_free(guest); microvm_free(vm);
 *
 * Its parts: vm.h (KVM, memory), vcpu.h and registers.h (the processor), ports.h and serial.h (devices), runner.h
 * (its thread), hold.h (why it stands), state.h (what is saved of it), multiboot.h (how it begins); guest.c makes
 * it a SnapGuest.
 *
 * Threads: any, but new and free.
 */
#pragma once

#include "libsnap.h"
#include "ram.h"

G_BEGIN_DECLS

typedef struct Microvm Microvm;

typedef enum {
    MICROVM_BOOT,     /* run a kernel */
    MICROVM_INCOMING, /* wait for a guest to be moved here */
} MicrovmBegin;

typedef struct {
    RamKind memory;
    uint64_t ram_bytes; /* 32 MiB to 3 GiB, a multiple of 2 MiB */
    int serial_fd;      /* (borrow) for its life: what it prints; -1: nowhere */
    MicrovmBegin begin;
    const char *kernel; /* BOOT: a multiboot image */
    const char *words;  /* BOOT: (nullable) its command line */
    /*
     * It has ended: @why is NULL where it has said so, with @status, and otherwise what happened to it. Once at
     * most, in the processor's thread; of a guest that had ended before it was moved here, in that of the move. Be
     * quick, do not call back.
     */
    void (*on_end)(int status, const char *why, void *opaque);
    void *opaque;
} MicrovmOptions;

/**
 * microvm_new: a machine that stands: where it boots, as if a client had stopped it.
 * @options: (borrow).
 * Errors: NOT_SUPPORTED, this machine has no KVM, or an old one; PERMISSION; USAGE, an option is out of range;
 *   NO_SPACE, there is not so much memory; NOT_FOUND, REFUSED: the kernel; IO.
 */
Microvm *microvm_new(const MicrovmOptions *options, GError **error);
/** microvm_free: after its guest. NULL is allowed. */
void microvm_free(Microvm *vm);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Microvm, microvm_free)

/** microvm_guest: (out) snap_guest_free() it before @vm. One for each machine. */
SnapGuest *microvm_guest(Microvm *vm);

/*
 * What a client may say; stop returns when it stands.
 * Errors: REFUSED, it is to be moved here, was moved away, or has ended.
 */
gboolean microvm_stop(Microvm *vm, GError **error);
gboolean microvm_cont(Microvm *vm, GError **error);
gboolean microvm_is_running(Microvm *vm);

G_END_DECLS
