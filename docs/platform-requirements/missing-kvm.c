/*
 * A guest of KVM that touches a missing page waits in KVM_RUN for it, and finds what was put in place; its write
 * to another one succeeds after zeros were.
 *
 * Relied on by post-copy: the destination's guest runs while its memory comes.
 */
#include "missing.h"

#if !defined(__x86_64__)

int main(void) {
    end(77, "the guest is written for x86");
}

#else

#include <linux/kvm.h>

enum { CODE_AT = 0, DATA_AT = 0x2000, STORE_AT = 0x3000, GUEST_PAGES = 16, RUN_BYTES_MOST = 1 << 20 };

/* Real mode: AL is what is at DATA_AT; it goes to STORE_AT; halt. */
static const uint8_t code[] = {0xa0, 0x00, 0x20, 0xa2, 0x00, 0x30, 0xf4};

static void task_run(Task *task) {
    const struct kvm_run *run = task->argument;
    int vcpu = *(const int *)task->address;
    CHECK(ioctl(vcpu, KVM_RUN, 0) == 0);
    CHECK(run->exit_reason == KVM_EXIT_HLT);
}

static int make_vcpu(char *memory, struct kvm_run **ret_run) {
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0)
        end(77, "no /dev/kvm: %s", strerror(errno));
    int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    CHECK(vm >= 0);
    struct kvm_userspace_memory_region slot = {.memory_size = GUEST_PAGES * page_bytes(),
                                               .userspace_addr = (uintptr_t)memory};
    CHECK(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0);
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    CHECK(vcpu >= 0);
    int length = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    CHECK(length > 0 && length <= RUN_BYTES_MOST);
    *ret_run = (struct kvm_run *)(void *)map((size_t)length, MAP_SHARED, vcpu);
    struct kvm_sregs sregs;
    CHECK(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0);
    sregs.cs.base = sregs.cs.selector = 0;
    sregs.ds.base = sregs.ds.selector = 0;
    CHECK(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0);
    struct kvm_regs regs = {.rip = CODE_AT, .rflags = 2};
    CHECK(ioctl(vcpu, KVM_SET_REGS, &regs) == 0);
    return vcpu;
}

int main(void) {
    const size_t page = page_bytes();
    if (page != DATA_AT / 2)
        end(77, "pages of %zu bytes; the guest is written for %d", page, DATA_AT / 2);
    char *memory = map_anon(GUEST_PAGES), *from = map_anon(1);
    struct kvm_run *run = NULL;
    memset(from, 'n', page);
    memcpy(memory + CODE_AT, code, sizeof code);
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        end(77, "no userfaultfd for faults of the kernel: %s; run as root", strerror(errno));
    uffd_api(fd, 0);
    CHECK(missing_register(fd, memory, GUEST_PAGES * page) == 0);

    int vcpu = make_vcpu(memory, &run);
    Task guest = {.body = task_run, .address = (char *)&vcpu, .argument = run};
    task_start(&guest);
    missing_expect(fd, &guest, memory + DATA_AT, page);
    CHECK(missing_copy(fd, memory + DATA_AT, from, page, NULL) == 0);
    missing_expect(fd, &guest, memory + STORE_AT, page);
    CHECK(missing_zero(fd, memory + STORE_AT, page) == 0);
    CHECK(task_wait(&guest, WAIT_MS));
    pthread_join(guest.thread, NULL);
    CHECK(memory[STORE_AT] == 'n' && memory[STORE_AT + 1] == 0);
    return 0;
}

#endif
