/* See registers.h. */
#include "registers.h"

#include "cpuid.h"

#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#define MSR_TSC 0x10u
#define TSC_SLACK_US 1000u     /* so near it is not set: it is right, or setting it would be no nearer */
#define TSC_TOLERANCE_PPM 250u /* what KVM itself takes as the same rate */

/* ---- one request after another --------------------------------------------------------------------------- */

typedef struct {
    unsigned long request;
    size_t offset; /* of its structure in MachineState */
    const char *what;
} Request;

#define REQUEST(request, field, what)                                                                             \
    { request, offsetof(MachineState, field), what }

static const Request get_requests[] = {
    REQUEST(KVM_GET_MP_STATE, activity, "whether the processor runs"), /* first: it may change the others */
    REQUEST(KVM_GET_REGS, regs, "registers"),
    REQUEST(KVM_GET_SREGS2, sregs, "segment registers"),
    REQUEST(KVM_GET_XSAVE2, xsave, "extended state"),
    REQUEST(KVM_GET_XCRS, xcrs, "extended control registers"),
    REQUEST(KVM_GET_DEBUGREGS, debugregs, "debug registers"),
    REQUEST(KVM_GET_LAPIC, lapic, "the local interrupt controller"),
    REQUEST(KVM_GET_VCPU_EVENTS, events, "what is pending"),
};

static const Request set_requests[] = {
    REQUEST(KVM_SET_MP_STATE, activity, "whether the processor runs"),
    REQUEST(KVM_SET_REGS, regs, "registers"),
    REQUEST(KVM_SET_SREGS2, sregs, "segment registers"),
    REQUEST(KVM_SET_XSAVE, xsave, "extended state"),
    REQUEST(KVM_SET_XCRS, xcrs, "extended control registers"),
    REQUEST(KVM_SET_DEBUGREGS, debugregs, "debug registers"),
    REQUEST(KVM_SET_LAPIC, lapic, "the local interrupt controller"),
};

static gboolean do_requests(const Vcpu *vcpu, const Request *requests, size_t n, MachineState *state,
                            GError **error) {
    for (size_t i = 0; i < n; i++)
        if (!vm_ioctl(vcpu->fd, requests[i].request, (char *)state + requests[i].offset, requests[i].what, error))
            return FALSE;
    return TRUE;
}

/* ---- model specific registers ---------------------------------------------------------------------------- */

/* struct kvm_msrs, with room. */
typedef struct {
    uint32_t n;
    uint32_t pad;
    struct kvm_msr_entry entries[STATE_MAX_MSRS];
} Msrs;
G_STATIC_ASSERT(offsetof(Msrs, entries) == sizeof(struct kvm_msrs));

static int do_msrs(const Vcpu *vcpu, unsigned long request, Msrs *msrs, uint32_t n) {
    msrs->n = n;
    return ioctl(vcpu->fd, request, msrs);
}

static gboolean can_be_got(const Vcpu *vcpu, uint32_t index) {
    Msrs one = {.entries = {{.index = index}}};
    return do_msrs(vcpu, KVM_GET_MSRS, &one, 1) == 1;
}

gboolean registers_find_msrs(Vcpu *vcpu, GError **error) {
    g_autofree struct kvm_msr_list *list = g_malloc0(sizeof(*list) + sizeof(vcpu->msrs));
    list->nmsrs = STATE_MAX_MSRS;
    if (!vm_ioctl(vcpu->vm->kvm_fd, KVM_GET_MSR_INDEX_LIST, list, "which registers there are", error))
        return FALSE;
    for (uint32_t i = 0; i < list->nmsrs; i++)
        if (list->indices[i] != MSR_TSC && can_be_got(vcpu, list->indices[i]))
            vcpu->msrs[vcpu->n_msrs++] = list->indices[i];
    return TRUE;
}

static gboolean get_msrs(const Vcpu *vcpu, MachineState *state, GError **error) {
    Msrs msrs = {0};
    for (uint32_t i = 0; i < vcpu->n_msrs; i++)
        msrs.entries[i].index = vcpu->msrs[i];
    int n = do_msrs(vcpu, KVM_GET_MSRS, &msrs, vcpu->n_msrs);
    if (n < 0 || (uint32_t)n != vcpu->n_msrs) {
        snap_set_errno(error, n < 0 ? errno : EIO, "KVM: model specific registers");
        return FALSE;
    }
    state->n_msrs = vcpu->n_msrs;
    memcpy(state->msrs, msrs.entries, vcpu->n_msrs * sizeof(*msrs.entries));
    return TRUE;
}

/* One that cannot be set is well if it has that value anyway. */
static gboolean is_as_saved(const Vcpu *vcpu, const struct kvm_msr_entry *saved) {
    Msrs one = {.entries = {{.index = saved->index}}};
    return do_msrs(vcpu, KVM_GET_MSRS, &one, 1) == 1 && one.entries[0].data == saved->data;
}

static gboolean set_msrs(const Vcpu *vcpu, const MachineState *state, GError **error) {
    for (uint32_t at = 0; at < state->n_msrs;) {
        Msrs msrs = {0};
        uint32_t left = state->n_msrs - at;
        memcpy(msrs.entries, state->msrs + at, left * sizeof(*msrs.entries));
        int n = do_msrs(vcpu, KVM_SET_MSRS, &msrs, left);
        if (n < 0) {
            snap_set_errno(error, errno, "KVM: model specific registers");
            return FALSE;
        }
        at += (uint32_t)n;
        if (at == state->n_msrs || is_as_saved(vcpu, &state->msrs[at++]))
            continue;
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "this machine's processor does not take register 0x%x as 0x%llx", state->msrs[at - 1].index,
                    state->msrs[at - 1].data);
        return FALSE;
    }
    return TRUE;
}

/* ---- the time stamp counter ------------------------------------------------------------------------------ */

static gboolean get_tsc(const Vcpu *vcpu, uint64_t *ret_tsc, GError **error) {
    Msrs one = {.entries = {{.index = MSR_TSC}}};
    if (do_msrs(vcpu, KVM_GET_MSRS, &one, 1) != 1) {
        snap_set_errno(error, EIO, "KVM: the time stamp counter");
        return FALSE;
    }
    *ret_tsc = one.entries[0].data;
    return TRUE;
}

static gboolean get_tsc_khz(const Vcpu *vcpu, uint64_t *ret_khz, GError **error) {
    int khz = ioctl(vcpu->fd, KVM_GET_TSC_KHZ, 0);
    if (khz <= 0) {
        snap_set_errno(error, khz < 0 ? errno : EIO, "KVM: the rate of the time stamp counter");
        return FALSE;
    }
    *ret_khz = (uint64_t)khz;
    return TRUE;
}

/* The guest has measured it once, and relies on it. */
static gboolean set_tsc_khz(const Vcpu *vcpu, uint64_t khz, GError **error) {
    uint64_t here = 0;
    if (!get_tsc_khz(vcpu, &here, error))
        return FALSE;
    uint64_t off = khz > here ? khz - here : here - khz;
    if (off <= here * TSC_TOLERANCE_PPM / 1000000 || ioctl(vcpu->fd, KVM_SET_TSC_KHZ, (unsigned long)khz) == 0)
        return TRUE;
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                "this machine's time stamp counter cannot run at %" G_GUINT64_FORMAT
                " kHz, but at %" G_GUINT64_FORMAT,
                khz, here);
    return FALSE;
}

static gboolean set_tsc(const Vcpu *vcpu, const StateTime *time, uint64_t elapsed_ns, GError **error) {
    uint64_t wanted = state_tsc_after(time, elapsed_ns), here = 0;
    if (!get_tsc(vcpu, &here, error))
        return FALSE;
    uint64_t off = wanted > here ? wanted - here : here - wanted;
    if (here >= time->tsc && off <= time->tsc_khz * TSC_SLACK_US / 1000)
        return TRUE;
    Msrs one = {.entries = {{.index = MSR_TSC, .data = wanted}}};
    if (do_msrs(vcpu, KVM_SET_MSRS, &one, 1) == 1)
        return TRUE;
    snap_set_errno(error, EIO, "KVM: the time stamp counter");
    return FALSE;
}

/* ---- all of it ------------------------------------------------------------------------------------------- */

gboolean registers_get(const Vcpu *vcpu, MachineState *state, GError **error) {
    state->n_xsave = vcpu->n_xsave;
    state->n_cpuid = vcpu->n_cpuid;
    memcpy(state->cpuid, vcpu->cpuid, vcpu->n_cpuid * sizeof(*vcpu->cpuid));
    return do_requests(vcpu, get_requests, G_N_ELEMENTS(get_requests), state, error) &&
           get_msrs(vcpu, state, error) && get_tsc_khz(vcpu, &state->time.tsc_khz, error) &&
           get_tsc(vcpu, &state->time.tsc, error);
}

static gboolean check_processor(const Vcpu *vcpu, const MachineState *state, GError **error) {
    char text[64];
    if (cpuid_find_missing(state->cpuid, state->n_cpuid, vcpu->cpuid, vcpu->n_cpuid, text, sizeof(text)))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "this machine's processor lacks features that the guest has seen, CPUID %s", text);
    else if (state->n_xsave > vcpu->n_xsave)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "this machine's processor has less extended state: %u bytes of %u", vcpu->n_xsave,
                    state->n_xsave);
    else
        return TRUE;
    return FALSE;
}

gboolean registers_set(Vcpu *vcpu, const MachineState *state, uint64_t elapsed_ns, GError **error) {
    g_autofree MachineState *copy = g_memdup2(state, sizeof(*state)); /* requests take what they may change */
    return check_processor(vcpu, state, error) && vcpu_set_cpuid(vcpu, state->cpuid, state->n_cpuid, error) &&
           set_tsc_khz(vcpu, state->time.tsc_khz, error) && set_tsc(vcpu, &state->time, elapsed_ns, error) &&
           do_requests(vcpu, set_requests, G_N_ELEMENTS(set_requests), copy, error) &&
           set_msrs(vcpu, state, error) &&
           vm_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &copy->events, "what is pending", error);
}
