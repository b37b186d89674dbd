/*
 * Fuzzing the records of the migration protocol: any bytes may come in; none may crash, or be read beyond.
 *
 *     clang -g -O1 -D_GNU_SOURCE -fsanitize=fuzzer,address,undefined -Ilibsnap -Itests/unit tests/fuzz/fuzz-wire.c
 * \
 *         libsnap/{wire,wire-hello,wire-body,channel,chunk,error}.c \
 *         $(pkg-config --cflags --libs glib-2.0 libxxhash) -o fuzz-wire
 *     ./fuzz-wire -max_total_time=60
 *
 * The first byte chooses: a body for a decoder, whose checksum would be right; or a stream for a channel.
 */
#include "channel.h"
#include "wire-fixture.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

/* @data: [1] flags, [4] length of the bulk, the body. What is accepted is encoded again as it was. */
static void decode_body(SnapWireType type, const uint8_t *data, size_t length) {
    if (length < 5 || length - 5 > SNAP_WIRE_MAX_BODY_BYTES)
        return;
    const SnapWireHead head = {
        .type = type, .flags = data[0], .bulk_bytes = get32(data + 1), .body_bytes = (uint32_t)(length - 5)};
    uint8_t *body = malloc(head.body_bytes + !head.body_bytes);
    static uint8_t again[SNAP_WIRE_MAX_BODY_BYTES];
    uint32_t again_bytes = 0;
    memcpy(body, data + 5, head.body_bytes);
    const char *wrong = fix_records[type].recode(&head, body, again, &again_bytes);
    if (!wrong && type != SNAP_WIRE_FAILED)
        g_assert(again_bytes == head.body_bytes && memcmp(again, body, again_bytes) == 0);
    free(body);
}

/* One after another until something is wrong, or the end. */
static void receive_stream(SnapWireSender self, const uint8_t *data, size_t length) {
    SnapChannel channel;
    SnapWireHead head;
    static uint8_t body[SNAP_WIRE_MAX_BODY_BYTES], bulk[SNAP_WIRE_MAX_BULK_BYTES];
    int fd = memfd_create("stream", MFD_CLOEXEC);
    if (fd >= 0 && pwrite(fd, data, length, 0) == (ssize_t)length &&
        snap_channel_init(&channel, self, fd, -1, 1, NULL)) {
        bool good = true;
        while (good && snap_channel_receive(&channel, -1, &head, body, NULL)) {
            const struct iovec part = {bulk, head.bulk_bytes};
            good = snap_channel_receive_bulk(&channel, &part, 1, NULL);
        }
        snap_channel_clear(&channel);
    } else if (fd >= 0) {
        close(fd);
    }
}

/* A stream begins with a record that is right, since no fuzzer finds a checksum. */
static void receive_after(SnapWireType type, const uint8_t *data, size_t length) {
    uint8_t *stream = malloc(SNAP_WIRE_HEAD_BYTES + 512 + length);
    const SnapWireHead head = fix_seal(type, 0, stream, stream + SNAP_WIRE_HEAD_BYTES);
    memcpy(stream + SNAP_WIRE_HEAD_BYTES + head.body_bytes, data, length);
    receive_stream(fix_records[type].sender == FROM_S ? FROM_D : FROM_S, stream,
                   SNAP_WIRE_HEAD_BYTES + head.body_bytes + length);
    free(stream);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length) {
    if (length == 0)
        return 0;
    unsigned choice = data[0] % (2 * SNAP_WIRE_MAX);
    SnapWireType type = choice % SNAP_WIRE_MAX;
    if (type == SNAP_WIRE_NONE)
        receive_stream(choice == 0 ? FROM_S : FROM_D, data + 1, length - 1);
    else if (choice < SNAP_WIRE_MAX)
        decode_body(type, data + 1, length - 1);
    else
        receive_after(type, data + 1, length - 1);
    return 0;
}
