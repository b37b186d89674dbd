/*
 * snap_probe(): every row says something, says it once, and says what asking the kernel directly says; a user
 * without privileges is told DENIED, not NO.
 */
#include "libsnap.h"
#include "uapi.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static const SnapProbeItem *find(const SnapProbeItem *items, guint n, const char *group, const char *name) {
    for (guint i = 0; i < n; i++)
        if (g_str_equal(items[i].group, group) && g_str_equal(items[i].name, name))
            return &items[i];
    return NULL;
}

static void probe_rows_are_complete(void **state) {
    (void)state;
    guint n = 0;
    g_autofree SnapProbeItem *items = snap_probe(&n);
    assert_true(n > 30);
    for (guint i = 0; i < n; i++) {
        assert_true(*items[i].group && *items[i].name && *items[i].lost && *items[i].remedy);
        assert_true(items[i].answer >= SNAP_PROBE_YES && items[i].answer <= SNAP_PROBE_DENIED);
        assert_ptr_equal(find(items, n, items[i].group, items[i].name), &items[i]);
    }
}

static void probe_features_match_the_kernel(void **state) {
    (void)state;
    static const char *const names[] = {
        "pagefault-flag-wp",
        "event-fork",
        "event-remap",
        "event-remove",
        "missing-hugetlbfs",
        "missing-shmem",
        "event-unmap",
        "sigbus",
        "thread-id",
        "minor-hugetlbfs",
        "minor-shmem",
        "exact-address",
        "wp-hugetlbfs-shmem",
        "wp-unpopulated",
        "poison",
        "wp-async",
        "move",
    };
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    if (fd < 0)
        skip();
    struct uffdio_api api = {.api = UFFD_API};
    assert_int_equal(ioctl(fd, UFFDIO_API, &api), 0);
    close(fd);

    guint n = 0;
    g_autofree SnapProbeItem *items = snap_probe(&n);
    for (guint bit = 0; bit < G_N_ELEMENTS(names); bit++) {
        const SnapProbeItem *item = find(items, n, "userfaultfd", names[bit]);
        assert_non_null(item);
        assert_int_equal(item->answer == SNAP_PROBE_YES, (api.features >> bit) & 1);
    }
}

/* What the sync tracker asks for, it cannot do without: probe says so, and says it of nothing else. */
static void probe_requires_what_snapshots_ask_for(void **state) {
    (void)state;
    static const char *const names[] = {"kernel-faults", "pagefault-flag-wp",  "event-remap",   "event-remove",
                                        "event-unmap",   "wp-hugetlbfs-shmem", "wp-unpopulated"};
    guint n = 0, n_required = 0;
    g_autofree SnapProbeItem *items = snap_probe(&n);
    for (guint i = 0; i < n; i++)
        n_required += items[i].required ? 1 : 0;
    assert_int_equal(n_required, G_N_ELEMENTS(names));
    for (guint i = 0; i < G_N_ELEMENTS(names); i++)
        assert_true(find(items, n, "userfaultfd", names[i])->required);
}

static gboolean kernel_knows_category(uint64_t category) {
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    struct pm_scan_arg scan = {.size = sizeof(scan), .category_mask = category, .return_mask = category};
    gboolean known = ioctl(fd, PAGEMAP_SCAN, &scan) == 0;
    close(fd);
    return known;
}

static void probe_categories_match_the_kernel(void **state) {
    (void)state;
    static const char *const names[] = {"wp-allowed", "written", "file",       "present", "swapped",
                                        "pfnzero",    "huge",    "soft-dirty", "guard"};
    guint n = 0;
    g_autofree SnapProbeItem *items = snap_probe(&n);
    for (guint bit = 0; bit < G_N_ELEMENTS(names); bit++) {
        const SnapProbeItem *item = find(items, n, "pagemap", names[bit]);
        assert_non_null(item);
        assert_int_equal(item->answer == SNAP_PROBE_YES, kernel_knows_category(UINT64_C(1) << bit));
    }
}

/* In a child of user "nobody": 0 when both privileged ways are DENIED as the kernel says, else which is not. */
static int answers_of_nobody(void) {
    if (setgroups(0, NULL) < 0 || setresgid(65534, 65534, 65534) < 0 || setresuid(65534, 65534, 65534) < 0)
        return 77;
    guint n = 0;
    g_autofree SnapProbeItem *items = snap_probe(&n);
    if (find(items, n, "machine", "cap-sys-ptrace")->answer != SNAP_PROBE_DENIED)
        return 1;
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    if (fd < 0 && errno == EPERM && find(items, n, "userfaultfd", "syscall")->answer != SNAP_PROBE_DENIED)
        return 2;
    fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (fd < 0 && errno == EACCES &&
        find(items, n, "userfaultfd", "/dev/userfaultfd")->answer != SNAP_PROBE_DENIED)
        return 3;
    return 0;
}

static void probe_without_privileges_says_denied(void **state) {
    (void)state;
    if (geteuid() != 0)
        skip(); /* needs root, to become somebody else */
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(answers_of_nobody());
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static guint open_descriptors(void) {
    guint n = 0;
    g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
    while (g_dir_read_name(dir))
        n++;
    return n;
}

static void probe_leaves_no_descriptor_open(void **state) {
    (void)state;
    guint before = open_descriptors();
    guint n = 0;
    g_free(snap_probe(&n));
    assert_int_equal(open_descriptors(), before);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(probe_rows_are_complete),
        cmocka_unit_test(probe_features_match_the_kernel),
        cmocka_unit_test(probe_requires_what_snapshots_ask_for),
        cmocka_unit_test(probe_categories_match_the_kernel),
        cmocka_unit_test(probe_without_privileges_says_denied),
        cmocka_unit_test(probe_leaves_no_descriptor_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
