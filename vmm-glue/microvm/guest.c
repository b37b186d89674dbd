/*
 * A microvm as a guest of libsnap: SnapGuestOps for snapshots, SnapMoveOps for moves.
 *
 * Happy path, leaving: pause(STOP) has the processor stand and takes the state of all devices; get_state makes a
 * blob of it, which may be after the guest was resumed. Arriving: the machine was made to wait; memory comes in,
 * load_state gives the state to KVM; start lets it run, if it ran; one that had ended has ended here as well.
 *
 * Failure modes: a state that does not fit this machine is refused by load_state, by name. The machine is never
 * run then: INCOMING is given up only by start, which needs a state that was loaded.
 */
#include "machine.h"

#include "registers.h"

#define DRIVER "microvm"
#define STATE_NAME "machine"

/* ---- memory ---------------------------------------------------------------------------------------------- */

static gboolean list_regions(void *opaque, gboolean paused, GPtrArray *regions, GError **error) {
    const Microvm *vm = opaque;
    (void)paused, (void)error;
    g_ptr_array_add(regions, ram_region(&vm->vm.ram));
    return TRUE;
}

/* ---- stopping, and the state then ------------------------------------------------------------------------ */

static uint64_t realtime_ns(void) {
    return (uint64_t)g_get_real_time() * 1000;
}

static gboolean take_state(Microvm *vm, GError **error) {
    g_autofree MachineState *state = g_new0(MachineState, 1);
    Holds holds = runner_holds(&vm->runner);
    state->machine =
        (StateMachine){.ram_bytes = vm->vm.ram.length_bytes, .stopped = hold_has(&holds, HOLD_CLIENT)};
    state->machine.ended = (uint8_t)runner_end(&vm->runner, &state->machine.status);
    state->serial = vm->ports.serial.state;
    state->config = vm->ports.config;
    if (!vm_get_state(&vm->vm, state, error) || !registers_get(&vm->vcpu, state, error))
        return FALSE;
    state->time.realtime_ns = realtime_ns(); /* at once after the counter */
    g_free(vm->taken);
    vm->taken = g_steal_pointer(&state);
    return TRUE;
}

static gboolean pause_guest(void *opaque, SnapPauseStep step, GError **error) {
    Microvm *vm = opaque;
    if (step == SNAP_PAUSE_READY)
        return TRUE;
    vm->paused_us = g_get_monotonic_time();
    runner_hold(&vm->runner, HOLD_COPY);
    return take_state(vm, error);
}

static gboolean resume_guest(void *opaque, uint64_t *ret_pause_ns, GError **error) {
    Microvm *vm = opaque;
    (void)error;
    runner_release(&vm->runner, HOLD_COPY);
    *ret_pause_ns = vm->paused_us ? (uint64_t)(g_get_monotonic_time() - vm->paused_us) * 1000 : 0;
    vm->paused_us = 0;
    return TRUE;
}

static gboolean get_state(void *opaque, GPtrArray *states, GError **error) {
    const Microvm *vm = opaque;
    (void)error;
    g_ptr_array_add(states, snap_state_new(STATE_NAME, state_encode(vm->taken)));
    return TRUE;
}

static const SnapGuestOps guest_ops = {
    .list_regions = list_regions, .pause = pause_guest, .resume = resume_guest, .get_state = get_state};

/* ---- moving ---------------------------------------------------------------------------------------------- */

static void hand_over(void *opaque) {
    Microvm *vm = opaque;
    runner_hold(&vm->runner, HOLD_HANDED_OVER);
    runner_release(&vm->runner, HOLD_COPY);
}

static void throttle(void *opaque, unsigned percent) {
    Microvm *vm = opaque;
    runner_throttle(&vm->runner, percent);
}

static gboolean refuse(GError **error, SnapErrorCode code, const char *why) {
    g_set_error(error, SNAP_ERROR, (gint)code, "the microvm's state: %s", why);
    return FALSE;
}

/* The one blob that there is to be. */
static MachineState *find_state(const Microvm *vm, const GPtrArray *states, GError **error) {
    g_autofree MachineState *state = g_new0(MachineState, 1);
    const SnapState *blob = states->len == 1 ? g_ptr_array_index(states, 0) : NULL;
    if (!blob || !g_str_equal(blob->name, STATE_NAME)) {
        refuse(error, SNAP_ERROR_CORRUPT, "it is not that of a microvm");
        return NULL;
    }
    const char *wrong = state_decode(blob->data, state);
    if (wrong) {
        refuse(error, SNAP_ERROR_CORRUPT, wrong);
        return NULL;
    }
    if (state->machine.ram_bytes != vm->vm.ram.length_bytes) {
        refuse(error, SNAP_ERROR_CORRUPT, "it is of a machine with other memory");
        return NULL;
    }
    return g_steal_pointer(&state);
}

static gboolean load_state(void *opaque, GPtrArray *states, GError **error) {
    Microvm *vm = opaque;
    Holds holds = runner_holds(&vm->runner);
    if (!hold_has(&holds, HOLD_INCOMING))
        return refuse(error, SNAP_ERROR_REFUSED, "this machine does not wait for a guest");
    g_autofree MachineState *state = find_state(vm, states, error);
    if (!state)
        return FALSE;
    uint64_t elapsed_ns = state_elapsed_ns(state->time.realtime_ns, realtime_ns());
    if (!registers_set(&vm->vcpu, state, elapsed_ns, error) || !vm_set_state(&vm->vm, state, elapsed_ns, error))
        return FALSE;
    vm->ports.serial.state = state->serial;
    vm->ports.config = state->config;
    vm->arrives = state->machine;
    vm->loaded = TRUE;
    return TRUE;
}

static gboolean start(void *opaque, GError **error) {
    Microvm *vm = opaque;
    if (!vm->loaded)
        return refuse(error, SNAP_ERROR_REFUSED, "there is none yet");
    if (vm->arrives.stopped)
        runner_hold(&vm->runner, HOLD_CLIENT);
    if (vm->arrives.ended)
        runner_arrive_ended(&vm->runner, vm->arrives.ended, vm->arrives.status);
    runner_release(&vm->runner, HOLD_INCOMING);
    return TRUE;
}

static const SnapMoveOps move_ops = {
    .hand_over = hand_over, .throttle = throttle, .load_state = load_state, .start = start};

SnapGuest *microvm_guest(Microvm *vm) {
    SnapGuest *guest = snap_guest_new(DRIVER, 0, &guest_ops, vm);
    snap_guest_set_move_ops(guest, &move_ops);
    return guest;
}
