/* Regions and state blobs as values. */
#include "image-fixture.h"
#include "region.h"

#include <sys/resource.h>

static void memory_name_every_kind_is_named(void **state) {
    (void)state;
    for (int memory = 0; memory < SNAP_MEMORY_MAX; memory++)
        assert_non_null(snap_memory_name((SnapMemory)memory));
    assert_string_equal(snap_memory_name(SNAP_MEMORY_HUGETLB_PRIVATE), "hugetlb-private");
    assert_null(snap_memory_name(SNAP_MEMORY_MAX));
    assert_null(snap_memory_name((SnapMemory)-1));
}

static void region_new_has_this_machines_page(void **state) {
    (void)state;
    g_autoptr(SnapRegion) region = snap_region_new("ram", SNAP_MEMORY_SHMEM, 0x10000, 0x20000);
    assert_string_equal(region->name, "ram");
    assert_int_equal(region->page_bytes, sysconf(_SC_PAGESIZE));
    assert_int_equal(region->granule_bytes, region->page_bytes);
    assert_true(region->guest_address == SNAP_NO_ADDRESS);
    assert_int_equal(region->fd, -1);
    assert_null(region->refusal);
}

static void region_free_closes_its_descriptor(void **state) {
    (void)state;
    SnapRegion *region = snap_region_new("ram", SNAP_MEMORY_SHMEM, 0, 0x1000);
    int fd = region->fd = dup(STDERR_FILENO);
    region->refusal = g_strdup("because");
    snap_region_free(region);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    snap_region_free(NULL);
}

static void region_copy_has_all_of_its_own(void **state) {
    (void)state;
    SnapRegion *region = snap_region_new("ram", SNAP_MEMORY_HUGETLB, 0x200000, 0x400000);
    region->fd = dup(STDERR_FILENO);
    region->refusal = g_strdup("because");
    region->guest_address = 0x1000;
    region->granule_bytes = 0x200000;
    region->fd_offset = 0x3000;
    g_autoptr(SnapRegion) copy = snap_region_copy(region);
    assert_true(copy->fd >= 0 && copy->fd != region->fd);
    assert_int_equal(fcntl(copy->fd, F_GETFD), FD_CLOEXEC);
    assert_true(snap_region_is_same(region, copy));
    snap_region_free(region);
    assert_string_equal(copy->name, "ram");
    assert_string_equal(copy->refusal, "because");
    assert_int_equal(copy->length_bytes, 0x400000);
    assert_int_equal(copy->guest_address, 0x1000);
    assert_int_equal(copy->granule_bytes, 0x200000);
    assert_int_equal(copy->fd_offset, 0x3000);
}

static void region_copy_without_a_descriptor_left_is_refused(void **state) {
    (void)state;
    g_autoptr(SnapRegion) region = snap_region_new("ram", SNAP_MEMORY_SHMEM, 0, 0x1000);
    region->fd = dup(STDERR_FILENO);
    struct rlimit limit, none;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    none = (struct rlimit){0, limit.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    g_autoptr(SnapRegion) copy = snap_region_copy(region);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_int_equal(copy->fd, -1);
    assert_non_null(strstr(copy->refusal, "ulimit -n"));
}

static int new_file(void) {
    FILE *file = tmpfile();
    int fd = dup(fileno(file));
    fclose(file);
    return fd;
}

static void region_listed_again_is_the_same_whatever_its_length(void **state) {
    (void)state;
    g_autoptr(SnapRegion) one = snap_region_new("ram", SNAP_MEMORY_SHMEM, 0x10000, 0x20000);
    g_autoptr(SnapRegion) again = snap_region_new("ram", SNAP_MEMORY_SHMEM, 0x10000, 0x10000);
    assert_true(snap_region_is_same(one, again));
    one->fd = new_file();
    assert_false(snap_region_is_same(one, again));
    assert_false(snap_region_is_same(again, one));
    again->fd = dup(one->fd);
    assert_true(snap_region_is_same(one, again));
    again->fd_offset = 0x1000;
    assert_false(snap_region_is_same(one, again));
}

static void region_elsewhere_of_another_kind_or_file_is_another(void **state) {
    (void)state;
    g_autoptr(SnapRegion) one = snap_region_new("ram", SNAP_MEMORY_SHMEM, 0x10000, 0x20000);
    g_autoptr(SnapRegion) moved = snap_region_new("ram", SNAP_MEMORY_SHMEM, 0x11000, 0x20000);
    g_autoptr(SnapRegion) anon = snap_region_new("ram", SNAP_MEMORY_ANON, 0x10000, 0x20000);
    g_autoptr(SnapRegion) huge = snap_region_new("ram", SNAP_MEMORY_SHMEM, 0x10000, 0x20000);
    g_autoptr(SnapRegion) other = snap_region_new("ram", SNAP_MEMORY_SHMEM, 0x10000, 0x20000);
    huge->granule_bytes *= 512;
    assert_false(snap_region_is_same(one, moved));
    assert_false(snap_region_is_same(one, anon));
    assert_false(snap_region_is_same(one, huge));
    one->fd = new_file();
    other->fd = new_file();
    assert_false(snap_region_is_same(one, other));
}

static void state_new_takes_its_data(void **state) {
    (void)state;
    SnapState *blob = snap_state_new("vcpu", g_bytes_new_static("abc", 3));
    g_autoptr(GBytes) data = g_bytes_ref(blob->data);
    assert_string_equal(blob->name, "vcpu");
    snap_state_free(blob);
    snap_state_free(NULL);
    assert_memory_equal(g_bytes_get_data(data, NULL), "abc", 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_name_every_kind_is_named),
        cmocka_unit_test(region_new_has_this_machines_page),
        cmocka_unit_test(region_free_closes_its_descriptor),
        cmocka_unit_test(region_copy_has_all_of_its_own),
        cmocka_unit_test(region_copy_without_a_descriptor_left_is_refused),
        cmocka_unit_test(region_listed_again_is_the_same_whatever_its_length),
        cmocka_unit_test(region_elsewhere_of_another_kind_or_file_is_another),
        cmocka_unit_test(state_new_takes_its_data),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
