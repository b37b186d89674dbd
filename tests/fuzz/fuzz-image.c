/*
 * Fuzzing the decoders of an image: any bytes may come in, as a manifest or as an index; none may crash.
 *
 *     clang -g -O1 -D_GNU_SOURCE -fsanitize=fuzzer,address,undefined -Ilibsnap tests/fuzz/fuzz-image.c \
 *         libsnap/{chunk,manifest,manifest-text,image-file,index-read,region,error}.c \
 *         $(pkg-config --cflags --libs glib-2.0 json-c libxxhash) -o fuzz-image
 *     ./fuzz-image -max_total_time=60
 *
 * The first byte chooses the decoder. A manifest gets a checksum line that is right, since no fuzzer finds one.
 */
#include "hash.h"
#include "index-read.h"
#include "manifest.h"

#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

static void decode_manifest(const uint8_t *data, size_t length) {
    GString *text = g_string_new_len((const char *)data, (gssize)length);
    guint64 xxh3 = XXH3_64bits(text->str, text->len);
    g_string_append_printf(text, "  \"checksum\": \"%016" G_GINT64_MODIFIER "x\"\n}\n", xxh3);
    g_autoptr(SnapManifest) manifest = snap_manifest_decode(text->str, text->len, NULL);
    size_t encoded_length = 0;
    g_autofree char *encoded = manifest ? snap_manifest_encode(manifest, &encoded_length) : NULL;
    if (encoded) {
        g_autoptr(SnapManifest) again = snap_manifest_decode(encoded, encoded_length, NULL);
        g_assert(again); /* what was accepted is accepted again */
    }
    g_string_free(text, TRUE);
}

static void check_index(const uint8_t *data, size_t length) {
    const SnapIndexHeader header = {.page_bytes = 4096, .n_chunks = 3, .region_bytes = 150 * 4096};
    uint64_t held = 0;
    int64_t chunk = 0;
    const char *wrong = NULL;
    int fd = memfd_create("index", MFD_CLOEXEC);
    if (fd >= 0 && write(fd, data, length) == (ssize_t)length)
        snap_index_check(fd, &header, &held, &chunk, &wrong);
    if (fd >= 0)
        close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length) {
    if (length == 0)
        return 0;
    if (data[0] % 2 == 0)
        decode_manifest(data + 1, length - 1);
    else
        check_index(data + 1, length - 1);
    return 0;
}
