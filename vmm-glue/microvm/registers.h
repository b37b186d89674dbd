/*
 * The registers of a microvm's processor, all that there are: general, segment, floating point and vector, model
 * specific, debug; its local interrupt controller, what is pending, and its time stamp counter.
 *
 * Order matters when they are set: the interrupt controller needs its base address, and the deadline timer, which
 * is a model specific register, the interrupt controller.
 *
 * The time stamp counter goes on by the time that has passed elsewhere. Where it has done so by itself, as on the
 * machine that the guest has left, it is not touched.
 */
#pragma once

#include "vcpu.h"

/** registers_find_msrs: which can be got on this machine. Errors: IO. */
gboolean registers_find_msrs(Vcpu *vcpu, GError **error);

/** registers_get: while it stands. Errors: IO. */
gboolean registers_get(const Vcpu *vcpu, MachineState *state, GError **error);

/**
 * registers_set: before it has ever run.
 * Errors: NOT_SUPPORTED, this machine's processor lacks what the guest has seen, by name; IO.
 */
gboolean registers_set(Vcpu *vcpu, const MachineState *state, uint64_t elapsed_ns, GError **error);
