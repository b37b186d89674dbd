/*
 * Probe: what this kernel, this machine and this user can do, and what is missing for the rest.
 *
 * One table row a question. A row says what it is called, how it is asked, what is lost where the answer is no,
 * and how to get it; snap_probe() asks all of them and hands out the rows with their answers.
 *
 * Happy path: look once at what many rows share (which uffd can be made and which features it reports, whether
 * /proc/self/pagemap scans), then ask every row. Nothing is kept open, no other process is touched.
 *
 * Failure modes: none of its own. A question that cannot be asked is answered NO where the thing is not there
 * and DENIED where it is there and kept from us (EPERM, EACCES, or a policy file that says so).
 *
 * Invariants: a uffd takes UFFDIO_API once, and an unknown feature bit makes it fail, so the features are asked
 * for with none wanted, on a throw-away descriptor. Nothing is concluded from version numbers.
 */
#include "libsnap.h"
#include "uapi.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/capability.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Looked at once, used by many rows. Errors are positive errno values, 0 where it works. */
typedef struct {
    int syscall_errno;   /* userfaultfd(2) that also handles faults raised by the kernel */
    int device_errno;    /* /dev/userfaultfd */
    int user_mode_errno; /* userfaultfd(2) for faults of user mode only */
    uint64_t features;   /* of any descriptor that could be made */
    int scan_errno;      /* PAGEMAP_SCAN of a page of our own */
    gboolean cap_sys_ptrace;
    int yama_scope; /* kernel.yama.ptrace_scope; 0 where there is no Yama */
} Machine;

typedef struct {
    SnapProbeItem item; /* all but the answer */
    SnapProbeAnswer (*ask)(const Machine *machine, uint64_t argument);
    uint64_t argument; /* feature or category bit */
} Row;

static SnapProbeAnswer answer_from_errno(int errnum) {
    switch (errnum) {
    case 0:
        return SNAP_PROBE_YES;
    case EPERM:
    case EACCES:
        return SNAP_PROBE_DENIED;
    default:
        return SNAP_PROBE_NO;
    }
}

static void close_if_open(int fd) {
    if (fd >= 0)
        close(fd);
}

/* The first number in a small file of /proc or /sys; @fallback where it is missing or holds something else. */
static int64_t read_number(const char *path, int64_t fallback) {
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL))
        return fallback;
    char *end = NULL;
    int64_t number = g_ascii_strtoll(text, &end, 0);
    return end == text ? fallback : number;
}

/* ---- userfaultfd ----------------------------------------------------------------------------------------- */

/* The features of @fd, which is closed; 0 when it does not answer. */
static uint64_t take_features(int fd) {
    struct uffdio_api api = {.api = UFFD_API};
    uint64_t features = fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0 ? api.features : 0;
    close_if_open(fd);
    return features;
}

static int open_by_syscall(int flags) {
    return (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);
}

static int open_by_device(void) {
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0)
        return -1;
    int fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    int saved = errno;
    close(device);
    errno = saved;
    return fd;
}

static void look_at_userfaultfd(Machine *machine) {
    int fd = open_by_syscall(0);
    machine->syscall_errno = fd < 0 ? errno : 0;
    machine->features |= take_features(fd);

    fd = open_by_device();
    machine->device_errno = fd < 0 ? errno : 0;
    machine->features |= take_features(fd);

    fd = open_by_syscall(UFFD_USER_MODE_ONLY);
    machine->user_mode_errno = fd < 0 ? errno : 0;
    machine->features |= take_features(fd);
}

static SnapProbeAnswer ask_full_uffd(const Machine *machine, uint64_t argument) {
    (void)argument;
    SnapProbeAnswer by_syscall = answer_from_errno(machine->syscall_errno);
    SnapProbeAnswer by_device = answer_from_errno(machine->device_errno);
    if (by_syscall == SNAP_PROBE_YES || by_device == SNAP_PROBE_YES)
        return SNAP_PROBE_YES;
    return by_syscall == SNAP_PROBE_DENIED || by_device == SNAP_PROBE_DENIED ? SNAP_PROBE_DENIED : SNAP_PROBE_NO;
}

static SnapProbeAnswer ask_syscall(const Machine *machine, uint64_t argument) {
    (void)argument;
    return answer_from_errno(machine->syscall_errno);
}

static SnapProbeAnswer ask_device(const Machine *machine, uint64_t argument) {
    (void)argument;
    return answer_from_errno(machine->device_errno);
}

static SnapProbeAnswer ask_user_mode(const Machine *machine, uint64_t argument) {
    (void)argument;
    return answer_from_errno(machine->user_mode_errno);
}

/* Without any descriptor the features stay unknown: denied, if that is why there is none. */
static SnapProbeAnswer ask_feature(const Machine *machine, uint64_t feature) {
    if (machine->features & feature)
        return SNAP_PROBE_YES;
    return machine->features == 0 ? ask_full_uffd(machine, 0) : SNAP_PROBE_NO;
}

/* ---- pagemap --------------------------------------------------------------------------------------------- */

/* Scan one page of our own, asking about @category: 0, or the errno that says why not. */
static int scan_errno(uint64_t category) {
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t here = (uintptr_t)&fd / page_bytes * page_bytes;
    struct page_region found;
    struct pm_scan_arg scan = {
        .size = sizeof(scan),
        .start = here,
        .end = here + page_bytes,
        .vec = (uintptr_t)&found,
        .vec_len = 1,
        .category_mask = category,
        .return_mask = category,
    };
    int errnum = ioctl(fd, PAGEMAP_SCAN, &scan) < 0 ? errno : 0;
    close(fd);
    return errnum;
}

static SnapProbeAnswer ask_scan(const Machine *machine, uint64_t argument) {
    (void)argument;
    return answer_from_errno(machine->scan_errno);
}

static SnapProbeAnswer ask_category(const Machine *machine, uint64_t category) {
    return answer_from_errno(machine->scan_errno ? machine->scan_errno : scan_errno(category));
}

/* ---- devices --------------------------------------------------------------------------------------------- */

/* A node without its driver opens with ENXIO or ENODEV: not there, as an absent node is. */
static SnapProbeAnswer ask_kvm(const Machine *machine, uint64_t argument) {
    (void)machine, (void)argument;
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return answer_from_errno(errno);
    int version = ioctl(fd, KVM_GET_API_VERSION, 0);
    int vm = version == KVM_API_VERSION ? ioctl(fd, KVM_CREATE_VM, 0) : -1;
    int errnum = vm < 0 ? errno : 0;
    close_if_open(vm);
    close(fd);
    return version == KVM_API_VERSION ? answer_from_errno(errnum) : SNAP_PROBE_NO;
}

static SnapProbeAnswer ask_fuse(const Machine *machine, uint64_t argument) {
    (void)machine, (void)argument;
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    int errnum = fd < 0 ? errno : 0;
    close_if_open(fd);
    return answer_from_errno(errnum);
}

/* The sysctl and a seccomp filter both answer EPERM; ENOMEM is the locked-memory limit of old kernels. */
static SnapProbeAnswer ask_io_uring(const Machine *machine, uint64_t argument) {
    (void)machine, (void)argument;
    struct io_uring ring;
    int result = io_uring_queue_init(1, &ring, 0);
    if (result == 0)
        io_uring_queue_exit(&ring);
    return result == -ENOMEM ? SNAP_PROBE_DENIED : answer_from_errno(-result);
}

/* ---- the machine and this user --------------------------------------------------------------------------- */

static gboolean has_capability(unsigned capability) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};
    if (syscall(SYS_capget, &header, data) < 0)
        return FALSE;
    return (data[capability / 32].effective >> (capability % 32) & 1) != 0;
}

/* Yama: 0 any process of the same user, 1 descendants only, 2 with the capability only, 3 nobody. */
static SnapProbeAnswer ask_ptrace(const Machine *machine, uint64_t argument) {
    (void)argument;
    int scope_allowed = machine->cap_sys_ptrace ? 2 : 0;
    return machine->yama_scope <= scope_allowed ? SNAP_PROBE_YES : SNAP_PROBE_DENIED;
}

static SnapProbeAnswer ask_cap_sys_ptrace(const Machine *machine, uint64_t argument) {
    (void)argument;
    return machine->cap_sys_ptrace ? SNAP_PROBE_YES : SNAP_PROBE_DENIED;
}

static SnapProbeAnswer ask_process_vm_readv(const Machine *machine, uint64_t argument) {
    (void)machine, (void)argument;
    char from = 1, to = 0;
    struct iovec local = {.iov_base = &to, .iov_len = 1};
    struct iovec remote = {.iov_base = &from, .iov_len = 1};
    ssize_t done = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
    return answer_from_errno(done == 1 ? 0 : errno);
}

static SnapProbeAnswer ask_pidfd_getfd(const Machine *machine, uint64_t argument) {
    (void)machine, (void)argument;
    int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (pidfd < 0)
        return answer_from_errno(errno);
    int fd = (int)syscall(SYS_pidfd_getfd, pidfd, pidfd, 0);
    int errnum = fd < 0 ? errno : 0;
    close_if_open(fd);
    close(pidfd);
    return answer_from_errno(errnum);
}

static SnapProbeAnswer ask_memfd(const Machine *machine, uint64_t argument) {
    (void)machine, (void)argument;
    int fd = memfd_create("snap-probe", MFD_CLOEXEC);
    int errnum = fd < 0 ? errno : 0;
    close_if_open(fd);
    return answer_from_errno(errnum);
}

/* Huge pages of any size, in the pool already or allowed to be added to it on demand. */
static SnapProbeAnswer ask_hugetlb(const Machine *machine, uint64_t argument) {
    (void)machine, (void)argument;
    const char *folder = "/sys/kernel/mm/hugepages";
    g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
    int64_t pages = 0;
    for (const char *size = dir ? g_dir_read_name(dir) : NULL; size; size = g_dir_read_name(dir)) {
        g_autofree char *pool = g_build_filename(folder, size, "nr_hugepages", NULL);
        g_autofree char *surplus = g_build_filename(folder, size, "nr_overcommit_hugepages", NULL);
        pages += read_number(pool, 0) + read_number(surplus, 0);
    }
    return pages > 0 ? SNAP_PROBE_YES : SNAP_PROBE_NO;
}

/* The setting in brackets is the one in force. "never" and "deny" mean that no guest has them. */
static SnapProbeAnswer answer_from_thp_setting(const char *path) {
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL))
        return SNAP_PROBE_NO;
    gboolean off = strstr(text, "[never]") || strstr(text, "[deny]");
    return off ? SNAP_PROBE_NO : SNAP_PROBE_YES;
}

static SnapProbeAnswer ask_thp(const Machine *machine, uint64_t argument) {
    (void)machine, (void)argument;
    return answer_from_thp_setting("/sys/kernel/mm/transparent_hugepage/enabled");
}

static SnapProbeAnswer ask_thp_shmem(const Machine *machine, uint64_t argument) {
    (void)machine, (void)argument;
    return answer_from_thp_setting("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
}

/* ---- the table ------------------------------------------------------------------------------------------- */

#define ROW(group, name, required, ask, argument, lost, remedy)                                                   \
    { {group, name, SNAP_PROBE_NO, required, lost, remedy}, ask, argument }
#define UFFD(name, required, bit, lost, remedy) ROW("userfaultfd", name, required, ask_feature, bit, lost, remedy)
#define CATEGORY(name, required, bit, lost, remedy) ROW("pagemap", name, required, ask_category, bit, lost, remedy)

static const Row rows[] = {
    /* Access. */
    ROW("userfaultfd", "kernel-faults", TRUE, ask_full_uffd, 0,
        "snapshots of a running guest: system calls and KVM write guest memory too, and must be caught",
        "run as root, or get one of the next two; the kernel needs CONFIG_USERFAULTFD"),
    ROW("userfaultfd", "syscall", FALSE, ask_syscall, 0, "one of the two ways to a full userfaultfd",
        "run as root or with CAP_SYS_PTRACE; or sysctl vm.unprivileged_userfaultfd=1"),
    ROW("userfaultfd", "/dev/userfaultfd", FALSE, ask_device, 0,
        "guests whose own process may not call userfaultfd(2), such as a sandboxed QEMU",
        "Linux 6.1; let the user open it: chgrp and chmod g+rw /dev/userfaultfd, by a udev rule to last"),
    ROW("userfaultfd", "user-mode-only", FALSE, ask_user_mode, 0,
        "tracking without privileges of memory that only the program itself writes",
        "Linux 5.11 with CONFIG_USERFAULTFD, and a container profile that allows userfaultfd(2)"),

    /* Feature bits 0 to 16, in their order. */
    UFFD("pagefault-flag-wp", TRUE, UFFD_FEATURE_PAGEFAULT_FLAG_WP, "snapshots of a running guest",
         "Linux 5.7 on an architecture with CONFIG_HAVE_ARCH_USERFAULTFD_WP (x86-64, arm64)"),
    UFFD("event-fork", FALSE, UFFD_FEATURE_EVENT_FORK, "nothing: a forked child is left untracked on purpose",
         "Linux 4.11"),
    UFFD("event-remap", TRUE, UFFD_FEATURE_EVENT_REMAP,
         "snapshots of a running guest: memory that it moves by mremap has to be followed", "Linux 4.11"),
    UFFD("event-remove", TRUE, UFFD_FEATURE_EVENT_REMOVE,
         "snapshots of a running guest: what it discards by madvise has to be saved before", "Linux 4.11"),
    UFFD("missing-hugetlbfs", FALSE, UFFD_FEATURE_MISSING_HUGETLBFS,
         "loading huge pages on demand when a guest is restored", "Linux 4.11"),
    UFFD("missing-shmem", FALSE, UFFD_FEATURE_MISSING_SHMEM,
         "loading shared memory on demand when a guest is restored", "Linux 4.11"),
    UFFD("event-unmap", TRUE, UFFD_FEATURE_EVENT_UNMAP,
         "snapshots of a running guest: what it unmaps before it was saved has to be noticed", "Linux 4.11"),
    UFFD("sigbus", FALSE, UFFD_FEATURE_SIGBUS, "nothing: faults are messages here, not signals", "Linux 4.14"),
    UFFD("thread-id", FALSE, UFFD_FEATURE_THREAD_ID, "telling which thread waited for a fault", "Linux 4.14"),
    UFFD("minor-hugetlbfs", FALSE, UFFD_FEATURE_MINOR_HUGETLBFS,
         "filling huge pages through a second mapping when a guest is restored", "Linux 5.13"),
    UFFD("minor-shmem", FALSE, UFFD_FEATURE_MINOR_SHMEM,
         "filling shared memory through a second mapping when a guest is restored", "Linux 5.14"),
    UFFD("exact-address", FALSE, UFFD_FEATURE_EXACT_ADDRESS, "the exact byte of a fault; the page is known anyway",
         "Linux 5.18"),
    UFFD("wp-hugetlbfs-shmem", TRUE, UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
         "snapshots of a running guest: memfd, tmpfs and hugetlb memory could not be protected",
         "Linux 5.19 with CONFIG_PTE_MARKER_UFFD_WP"),
    UFFD("wp-unpopulated", TRUE, UFFD_FEATURE_WP_UNPOPULATED,
         "snapshots of a running guest: a first write to memory that was never touched would not be seen",
         "Linux 6.4 with CONFIG_PTE_MARKER_UFFD_WP"),
    UFFD("poison", FALSE, UFFD_FEATURE_POISON, "marking pages that could not be restored", "Linux 6.6"),
    UFFD("wp-async", FALSE, UFFD_FEATURE_WP_ASYNC,
         "the dirty log without faults in user space, and any log of file mappings",
         "Linux 6.7 with CONFIG_PTE_MARKER_UFFD_WP"),
    UFFD("move", FALSE, UFFD_FEATURE_MOVE, "restoring pages without a copy", "Linux 6.8"),

    /* PAGEMAP_SCAN and its categories. */
    ROW("pagemap", "scan", FALSE, ask_scan, 0,
        "speed: page tables are read entry by entry, holes of terabytes too",
        "Linux 6.7 with CONFIG_PROC_PAGE_MONITOR"),
    CATEGORY("wp-allowed", FALSE, PAGE_IS_WPALLOWED, "telling ranges that are logged from those that are not",
             "Linux 6.7"),
    CATEGORY("written", FALSE, PAGE_IS_WRITTEN, "the set of pages written since they were protected", "Linux 6.7"),
    CATEGORY("file", FALSE, PAGE_IS_FILE, "telling file pages from anonymous ones", "Linux 6.7"),
    CATEGORY("present", FALSE, PAGE_IS_PRESENT, "speed, as for scan", "Linux 6.7"),
    CATEGORY("swapped", FALSE, PAGE_IS_SWAPPED, "swapped guests: pages in swap cannot be told from holes",
             "Linux 6.7"),
    CATEGORY("pfnzero", FALSE, PAGE_IS_PFNZERO, "skipping pages that were only ever read", "Linux 6.7"),
    CATEGORY("huge", FALSE, PAGE_IS_HUGE, "telling huge pages from base pages", "Linux 6.7"),
    CATEGORY("soft-dirty", FALSE, PAGE_IS_SOFT_DIRTY, "nothing here: write protection says it better",
             "Linux 6.7 or later"),
    CATEGORY("guard", FALSE, PAGE_IS_GUARD, "telling guard pages from holes", "Linux 6.15"),

    /* Devices and queues. */
    ROW("device", "/dev/kvm", FALSE, ask_kvm, 0, "guests that run at the speed of the machine",
        "modprobe kvm_intel or kvm_amd, virtualisation on in the firmware or the outer VM; join group kvm"),
    ROW("device", "io_uring", FALSE, ask_io_uring, 0,
        "writing images in the background: pages are written one call at a time instead",
        "sysctl kernel.io_uring_disabled=0; in a container, a seccomp profile that allows io_uring_setup(2)"),
    ROW("device", "/dev/fuse", FALSE, ask_fuse, 0, "looking into an image through a mounted folder",
        "modprobe fuse; in a container, pass the device in"),

    /* The machine and this user. */
    ROW("machine", "ptrace", FALSE, ask_ptrace, 0, "guests from outside: --pid and --qemu",
        "run as root or with CAP_SYS_PTRACE; or sysctl kernel.yama.ptrace_scope=0 (3 forbids it till reboot)"),
    ROW("machine", "cap-sys-ptrace", FALSE, ask_cap_sys_ptrace, 0,
        "guests that belong to another user, or that changed their user", "run as root, or setcap cap_sys_ptrace"),
    ROW("machine", "process-vm-readv", FALSE, ask_process_vm_readv, 0,
        "reading private memory of a guest from outside",
        "CONFIG_CROSS_MEMORY_ATTACH; in a container, a seccomp profile that allows process_vm_readv(2)"),
    ROW("machine", "pidfd-getfd", FALSE, ask_pidfd_getfd, 0, "guests from outside: --pid and --qemu",
        "Linux 5.6; in a container, a seccomp profile that allows pidfd_getfd(2)"),
    ROW("machine", "memfd", FALSE, ask_memfd, 0, "memory that is shared by descriptor", "Linux 3.17"),
    ROW("machine", "hugetlb-pages", FALSE, ask_hugetlb, 0, "guests in hugetlb memory: none can run here now",
        "sysctl vm.nr_hugepages=N"),
    ROW("machine", "thp", FALSE, ask_thp, 0,
        "fast arming: with transparent huge pages it costs a thousandth of what base pages cost",
        "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"),
    ROW("machine", "thp-shmem", FALSE, ask_thp_shmem, 0, "the same for memfd and tmpfs guests",
        "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled"),
};

SnapProbeItem *snap_probe(guint *ret_n_items) {
    Machine machine = {
        .scan_errno = scan_errno(0),
        .cap_sys_ptrace = has_capability(CAP_SYS_PTRACE),
        .yama_scope = (int)read_number("/proc/sys/kernel/yama/ptrace_scope", 0),
    };
    look_at_userfaultfd(&machine);

    SnapProbeItem *items = g_new(SnapProbeItem, G_N_ELEMENTS(rows));
    for (guint i = 0; i < G_N_ELEMENTS(rows); i++) {
        items[i] = rows[i].item;
        items[i].answer = rows[i].ask(&machine, rows[i].argument);
    }
    *ret_n_items = G_N_ELEMENTS(rows);
    return items;
}
