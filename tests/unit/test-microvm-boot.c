/* What a microvm begins with: a multiboot image in memory, and the processor that the guest sees. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../vmm-glue/microvm/cpuid.h"
#include "../../vmm-glue/microvm/multiboot.h"

#include <string.h>

#define RAM_BYTES ((size_t)4 << 20)
#define MAGIC 0x1badb002u
#define FLAGS 0x10002u

/* header, load, load_end, bss_end, entry */
typedef struct {
    uint32_t before;
    uint32_t magic, flags, checksum, header, load, load_end, bss_end, entry;
    char text[8];
} Image;

static Image sound_image(void) {
    return (Image){.before = 0x11111111,
                   .magic = MAGIC,
                   .flags = FLAGS,
                   .checksum = -(MAGIC + FLAGS),
                   .header = 0x100004,
                   .load = 0x100000,
                   .load_end = 0,
                   .bss_end = 0x101000,
                   .entry = 0x100024,
                   .text = "program"};
}

static void assert_refused(const Image *image, size_t image_bytes, const char *words, size_t ram_bytes,
                           const char *why) {
    g_autofree uint8_t *ram = g_malloc0(RAM_BYTES);
    g_autoptr(GError) error = NULL;
    MultibootEntry entry = {0};
    assert_false(multiboot_load((const uint8_t *)image, image_bytes, words, ram, ram_bytes, &entry, &error));
    if (!strstr(error->message, why))
        fail_msg("no '%s' in: %s", why, error->message);
    assert_int_equal(entry.entry, 0);
}

static void image_loaded_is_where_it_says(void **state) {
    (void)state;
    g_autofree uint8_t *ram = g_malloc0(RAM_BYTES);
    g_autoptr(GError) error = NULL;
    const Image image = sound_image();
    MultibootEntry entry;
    multiboot_load((const uint8_t *)&image, sizeof(image), "rate=1", ram, RAM_BYTES, &entry, &error);
    assert_null(error);
    assert_memory_equal(ram + 0x100000, &image, sizeof(image));
    assert_int_equal(entry.entry, 0x100024);
    uint32_t info[13];
    memcpy(info, ram + entry.info, sizeof(info));
    assert_int_equal(info[0], 1u << 2 | 1u << 6);
    assert_string_equal((const char *)ram + info[4], "rate=1");
    assert_int_equal(info[11], 48);
    uint32_t map[12];
    memcpy(map, ram + info[12], sizeof(map));
    const uint32_t expected[] = {20, 0, 0, 0xa0000, 0, 1, 20, 0x100000, 0, RAM_BYTES - 0x100000, 0, 1};
    assert_memory_equal(map, expected, sizeof(map));
}

static void image_that_says_where_it_ends_is_cut_there(void **state) {
    (void)state;
    g_autofree uint8_t *ram = g_malloc0(RAM_BYTES);
    g_autoptr(GError) error = NULL;
    Image image = sound_image();
    image.load_end = 0x100000 + offsetof(Image, text) + 4;
    MultibootEntry entry;
    multiboot_load((const uint8_t *)&image, sizeof(image), NULL, ram, RAM_BYTES, &entry, &error);
    assert_null(error);
    assert_string_equal((const char *)ram + 0x100000 + offsetof(Image, text), "prog");
}

static void image_that_lies_is_refused(void **state) {
    (void)state;
    const struct {
        size_t offset;
        uint32_t word;
        const char *why;
    } lies[] = {
        {offsetof(Image, magic), 0, "no multiboot image"},
        {offsetof(Image, checksum), 0, "no multiboot image"},
        {offsetof(Image, header), 0x100008, "lies about where"},
        {offsetof(Image, header), 0x0ffffc, "lies about where"},
        {offsetof(Image, load), 0x100005, "lies about where"},
        {offsetof(Image, load_end), 0x200000, "shorter than"},
        {offsetof(Image, load_end), 0x0fffff, "shorter than"},
        {offsetof(Image, bss_end), 0xffffffff, "does not fit"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(lies); i++) {
        Image image = sound_image();
        memcpy((char *)&image + lies[i].offset, &lies[i].word, sizeof(lies[i].word));
        assert_refused(&image, sizeof(image), NULL, RAM_BYTES, lies[i].why);
    }
}

static void image_that_wants_more_than_there_is_is_refused(void **state) {
    (void)state;
    Image image = sound_image();
    image.flags = 2;
    image.checksum = -(MAGIC + 2);
    assert_refused(&image, sizeof(image), NULL, RAM_BYTES, "no load addresses");
    image.flags = FLAGS | 4;
    image.checksum = -(MAGIC + image.flags);
    assert_refused(&image, sizeof(image), NULL, RAM_BYTES, "not here");
    image = sound_image();
    image.header -= 0xff000;
    image.load -= 0xff000;
    assert_refused(&image, sizeof(image), NULL, RAM_BYTES, "does not fit");
    image = sound_image();
    assert_refused(&image, sizeof(image), NULL, 1 << 20, "too little memory");
    assert_refused(&image, 35, NULL, RAM_BYTES, "no multiboot image");
    assert_refused(&image, 0, NULL, RAM_BYTES, "no multiboot image");
    g_autofree char *words = g_strnfill(4096, 'w');
    assert_refused(&image, sizeof(image), words, RAM_BYTES, "more than 4095");
}

/* ---- CPUID ----------------------------------------------------------------------------------------------- */

static void processor_adjusted_is_the_first_and_cannot_nest(void **state) {
    (void)state;
    struct kvm_cpuid_entry2 entries[] = {
        {.function = 1, .ebx = 0x05010203, .ecx = 1u << 5 | 1},
        {.function = 0xb, .index = 1, .eax = 4, .edx = 5},
        {.function = 0x80000001, .ecx = 1u << 2 | 1},
        {.function = 7, .ebx = UINT32_MAX},
    };
    cpuid_adjust(entries, G_N_ELEMENTS(entries));
    assert_int_equal(entries[0].ebx, 0x00010203);
    assert_int_equal(entries[0].ecx, 1);
    assert_int_equal(entries[1].eax, 4);
    assert_int_equal(entries[1].edx, 0);
    assert_int_equal(entries[2].ecx, 1);
    assert_int_equal(entries[3].ebx, UINT32_MAX);
}

static void feature_missing_is_named(void **state) {
    (void)state;
    char text[64];
    const struct kvm_cpuid_entry2 has[] = {{.function = 1, .ecx = 3}, {.function = 7, .ebx = 0x10020}};
    const struct kvm_cpuid_entry2 less[] = {{.function = 1, .ecx = 7}, {.function = 7, .ebx = 0x20}};
    const struct kvm_cpuid_entry2 none[] = {{.function = 1, .ecx = 3}};
    assert_null(cpuid_find_missing(has, 2, has, 2, text, sizeof(text)));
    assert_string_equal(cpuid_find_missing(has, 2, less, 2, text, sizeof(text)), "leaf 0x7 EBX: 0x00010000");
    assert_string_equal(cpuid_find_missing(has, 2, none, 1, text, sizeof(text)), "leaf 0x7 EBX: 0x00010020");
    assert_null(cpuid_find_missing(none, 1, has, 2, text, sizeof(text)));
}

static void bits_that_the_guest_switches_are_not_missed(void **state) {
    (void)state;
    char text[64];
    const struct kvm_cpuid_entry2 has[] = {{.function = 1, .ecx = 1u << 27, .edx = 1u << 9}};
    const struct kvm_cpuid_entry2 here[] = {{.function = 1}};
    assert_null(cpuid_find_missing(has, 1, here, 1, text, sizeof(text)));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(image_loaded_is_where_it_says),
        cmocka_unit_test(image_that_says_where_it_ends_is_cut_there),
        cmocka_unit_test(image_that_lies_is_refused),
        cmocka_unit_test(image_that_wants_more_than_there_is_is_refused),
        cmocka_unit_test(processor_adjusted_is_the_first_and_cannot_nest),
        cmocka_unit_test(feature_missing_is_named),
        cmocka_unit_test(bits_that_the_guest_switches_are_not_missed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
