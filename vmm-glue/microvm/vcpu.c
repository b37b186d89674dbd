/* See vcpu.h. */
#include "vcpu.h"

#include "cpuid.h"
#include "registers.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define FLAT_LIMIT 0xffffffffu
#define PROTECTED_MODE 1u /* CR0.PE */
#define FLAGS_ALWAYS 2u   /* RFLAGS: the bit that is always set */
enum { SEGMENT_CODE = 11, SEGMENT_DATA = 3, SELECTOR_CODE = 0x8, SELECTOR_DATA = 0x10 };

/* ---- making one ------------------------------------------------------------------------------------------ */

static gboolean map_run(Vcpu *vcpu, GError **error) {
    int length = ioctl(vcpu->vm->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    void *run =
        length > 0 ? mmap(NULL, (size_t)length, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0) : MAP_FAILED;
    if (run == MAP_FAILED) {
        snap_set_errno(error, errno, "KVM: a processor's shared page");
        return FALSE;
    }
    vcpu->run = run;
    vcpu->run_bytes = (size_t)length;
    return TRUE;
}

gboolean vcpu_set_cpuid(Vcpu *vcpu, const struct kvm_cpuid_entry2 *entries, uint32_t n, GError **error) {
    g_autofree struct kvm_cpuid2 *cpuid = g_malloc0(sizeof(*cpuid) + n * sizeof(*entries));
    cpuid->nent = n;
    memcpy(cpuid->entries, entries, n * sizeof(*entries));
    if (!vm_ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid, "what processor it is", error))
        return FALSE;
    vcpu->n_cpuid = n;
    memcpy(vcpu->cpuid, cpuid->entries, n * sizeof(*entries));
    return TRUE;
}

static gboolean choose_cpuid(Vcpu *vcpu, GError **error) {
    g_autofree struct kvm_cpuid2 *cpuid = g_malloc0(sizeof(*cpuid) + sizeof(vcpu->cpuid));
    cpuid->nent = STATE_MAX_CPUID;
    if (!vm_ioctl(vcpu->vm->kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid, "what processors there are", error))
        return FALSE;
    cpuid_adjust(cpuid->entries, cpuid->nent);
    return vcpu_set_cpuid(vcpu, cpuid->entries, cpuid->nent, error);
}

static gboolean measure_xsave(Vcpu *vcpu, GError **error) {
    int length = vm_check(vcpu->vm, KVM_CAP_XSAVE2);
    if (length < (int)sizeof(struct kvm_xsave) || length > (int)STATE_MAX_XSAVE_BYTES) {
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_NOT_SUPPORTED,
                    "this processor's extended state has %d bytes, more than is known of", length);
        return FALSE;
    }
    vcpu->n_xsave = (uint32_t)length;
    return TRUE;
}

gboolean vcpu_init(Vcpu *vcpu, const Vm *vm, GError **error) {
    *vcpu = (Vcpu){.vm = vm, .fd = ioctl(vm->fd, KVM_CREATE_VCPU, 0)};
    if (vcpu->fd < 0) {
        snap_set_errno(error, errno, "KVM: a processor");
        *vcpu = (Vcpu){0};
        return FALSE;
    }
    if (map_run(vcpu, error) && choose_cpuid(vcpu, error) && measure_xsave(vcpu, error) &&
        registers_find_msrs(vcpu, error))
        return TRUE;
    vcpu_clear(vcpu);
    return FALSE;
}

void vcpu_clear(Vcpu *vcpu) {
    if (!vcpu->vm)
        return;
    if (vcpu->run)
        munmap(vcpu->run, vcpu->run_bytes);
    close(vcpu->fd);
    *vcpu = (Vcpu){0};
}

static struct kvm_segment flat_segment(uint8_t type, uint16_t selector) {
    return (struct kvm_segment){
        .limit = FLAT_LIMIT, .selector = selector, .type = type, .present = 1, .db = 1, .s = 1, .g = 1};
}

gboolean vcpu_enter_kernel(Vcpu *vcpu, const MultibootEntry *entry, GError **error) {
    struct kvm_sregs2 sregs;
    struct kvm_regs regs = {
        .rax = MULTIBOOT_LOADED, .rbx = entry->info, .rip = entry->entry, .rflags = FLAGS_ALWAYS};
    if (!vm_ioctl(vcpu->fd, KVM_GET_SREGS2, &sregs, "segment registers", error))
        return FALSE;
    sregs.cr0 |= PROTECTED_MODE;
    sregs.cs = flat_segment(SEGMENT_CODE, SELECTOR_CODE);
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat_segment(SEGMENT_DATA, SELECTOR_DATA);
    return vm_ioctl(vcpu->fd, KVM_SET_SREGS2, &sregs, "segment registers", error) &&
           vm_ioctl(vcpu->fd, KVM_SET_REGS, &regs, "registers", error);
}

/* ---- running --------------------------------------------------------------------------------------------- */

void vcpu_leave(Vcpu *vcpu) {
    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_RELAXED);
}

void vcpu_go_on(Vcpu *vcpu) {
    __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_RELAXED);
}

gboolean vcpu_set_signal(Vcpu *vcpu, int signal_number, GError **error) {
    enum { KERNEL_BYTES = (_NSIG - 1) / 8 }; /* of a set of signals, as the kernel has it */
    g_autofree struct kvm_signal_mask *mask = g_malloc0(sizeof(*mask) + KERNEL_BYTES);
    mask->len = KERNEL_BYTES;
    memset(mask->sigset, 0xff, KERNEL_BYTES);
    mask->sigset[(signal_number - 1) / 8] &= (uint8_t) ~(1u << (signal_number - 1) % 8);
    return vm_ioctl(vcpu->fd, KVM_SET_SIGNAL_MASK, mask, "the signal that stops a processor", error);
}

/* Return: whether the guest ends by it. */
static bool access_ports(const Vcpu *vcpu, Ports *ports, uint8_t *ret_status) {
    const struct kvm_run *run = vcpu->run;
    uint8_t *data = (uint8_t *)vcpu->run + run->io.data_offset;
    if (run->io.direction == KVM_EXIT_IO_OUT)
        return ports_out(ports, run->io.port, data, run->io.size, run->io.count, ret_status);
    ports_in(ports, run->io.port, data, run->io.size, run->io.count);
    return false;
}

/* No device is there. */
static void access_nothing(struct kvm_run *run) {
    if (!run->mmio.is_write)
        memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
}

static char *describe_exit(const struct kvm_run *run) {
    if (run->exit_reason == KVM_EXIT_SHUTDOWN)
        return g_strdup("the guest's processor has shut down (a triple fault)");
    if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
        return g_strdup_printf("KVM cannot run the guest: internal error %u", run->internal.suberror);
    if (run->exit_reason == KVM_EXIT_FAIL_ENTRY)
        return g_strdup_printf("KVM cannot run the guest: the processor refuses, 0x%llx",
                               run->fail_entry.hardware_entry_failure_reason);
    return g_strdup_printf("KVM cannot run the guest: exit %u", run->exit_reason);
}

VcpuStop vcpu_run(Vcpu *vcpu, Ports *ports, uint8_t *ret_status, char **ret_why) {
    struct kvm_run *run = vcpu->run;
    for (;;) {
        int result = ioctl(vcpu->fd, KVM_RUN, 0);
        if (result < 0 && errno == EINTR)
            return VCPU_INTERRUPTED;
        if (result < 0 && errno == EAGAIN)
            continue;
        if (result < 0) {
            *ret_why = g_strdup_printf("KVM cannot run the guest: %s", g_strerror(errno));
            return VCPU_FAILED;
        }
        if (run->exit_reason == KVM_EXIT_MMIO) {
            access_nothing(run);
        } else if (run->exit_reason == KVM_EXIT_IO) {
            if (access_ports(vcpu, ports, ret_status))
                return VCPU_EXITED;
        } else {
            *ret_why = describe_exit(run);
            return VCPU_FAILED;
        }
    }
}
