/*
 * The state of a microvm's devices, and the blob that it is kept and moved in. Pure.
 *
 * Encoders copy, decoders check all that the bytes alone can tell: what is in a decoded MachineState is in range.
 * The structures of KVM are taken as the kernel's x86-64 interface has them, which is fixed and little endian. The
 * image or the stream that the blob is in has its checksum.
 */
#pragma once

#include "ports.h"

#include <glib.h>
#include <linux/kvm.h>

#define STATE_VERSION 1u
#define STATE_MAX_CPUID 256u
#define STATE_MAX_MSRS 512u
#define STATE_MAX_XSAVE_BYTES 32768u
#define STATE_MIN_XSAVE_BYTES 576u /* the legacy area, and the header that says what else there is */
#define STATE_IRQCHIPS 3u

typedef enum { STATE_NOT_ENDED, STATE_EXITED, STATE_FAILED, STATE_END_MAX } StateEnd;

/* Why it does not run where it arrives either. */
typedef struct {
    uint64_t ram_bytes;
    uint8_t stopped;  /* 1: by a client */
    uint8_t ended;    /* StateEnd */
    uint8_t status;   /* that it has EXITED with */
    uint8_t zeros[5]; /* for later */
} StateMachine;

/* When the guest stood still, by its own clocks and by the wall's. */
typedef struct {
    uint64_t realtime_ns;
    uint64_t tsc;
    uint64_t tsc_khz;
    struct kvm_clock_data kvm_clock;
} StateTime;

typedef struct {
    StateMachine machine;
    StateTime time;
    SerialState serial;
    PortsState config;
    /* the processor */
    struct kvm_mp_state activity;
    struct kvm_regs regs;
    struct kvm_sregs2 sregs;
    struct kvm_xcrs xcrs;
    struct kvm_debugregs debugregs;
    struct kvm_lapic_state lapic;
    struct kvm_vcpu_events events;
    uint32_t n_cpuid;
    struct kvm_cpuid_entry2 cpuid[STATE_MAX_CPUID];
    uint32_t n_msrs;
    struct kvm_msr_entry msrs[STATE_MAX_MSRS]; /* without the time stamp counter */
    uint32_t n_xsave;
    uint8_t xsave[STATE_MAX_XSAVE_BYTES];
    /* the board */
    struct kvm_irqchip irqchips[STATE_IRQCHIPS];
    struct kvm_pit_state2 timer;
} MachineState;

/* Return: (out) the blob. */
GBytes *state_encode(const MachineState *state);

/* @ret_state: untouched unless it could be read. Return: NULL, or what is wrong: a static string. */
const char *state_decode(GBytes *blob, MachineState *ret_state);

/*
 * How much of the time since the state was taken the guest's clocks are to go on by. All of it, so that a guest
 * that is moved sees its downtime; none when the wall clock was set back, or when the guest was put away rather
 * than moved: it goes on where it was then.
 */
uint64_t state_elapsed_ns(uint64_t then_ns, uint64_t now_ns);
/* The counter after that time. */
uint64_t state_tsc_after(const StateTime *time, uint64_t elapsed_ns);
