/*
 * A connection of the migration protocol, over socket pairs, pipes and files: records arrive as they were sent,
 * however little goes at a time, and nothing that the other side does is believed. Waiting: test-channel-wait.c.
 */
#include "channel-fixture.h"

#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>

/* ---- records go over ------------------------------------------------------------------------------------- */

static uint8_t pattern(uint64_t at) {
    return (uint8_t)(at * 31 + at / 251);
}

/* @n CHUNKs with bulk in two parts, and a GO behind each. */
static void send_records(SnapChannel *channel, uint32_t n) {
    g_autofree uint8_t *bulk = g_malloc(BULK_BYTES);
    GError *error = NULL;
    for (uint32_t i = 0; i < n; i++) {
        uint8_t body[64];
        const SnapWireChunk chunk = {.chunk = i, .record = {.present = UINT64_MAX, .length_bytes = BULK_BYTES}};
        for (uint32_t at = 0; at < BULK_BYTES; at++)
            bulk[at] = pattern(at + i);
        const struct iovec parts[] = {{bulk, 3 * FIX_PAGE_BYTES},
                                      {bulk + 3 * FIX_PAGE_BYTES, BULK_BYTES - 3 * FIX_PAGE_BYTES}};
        uint32_t bytes = snap_wire_encode_chunk(&chunk, body);
        expect_good(snap_channel_send(channel, SNAP_WIRE_CHUNK, 0, body, bytes, parts, 2, &error), &error);
        bytes = snap_wire_encode_id(&fix_id, body);
        expect_good(snap_channel_send(channel, SNAP_WIRE_GO, 0, body, bytes, NULL, 0, &error), &error);
    }
}

typedef struct {
    SnapChannel *channel;
    uint32_t n;
} Sending;

static void *send_in_thread(void *opaque) {
    const Sending *sending = opaque;
    send_records(sending->channel, sending->n);
    return NULL;
}

static void receive_records(SnapChannel *channel, Rig *rig, uint32_t n) {
    GError *error = NULL;
    for (uint32_t i = 0; i < n; i++) {
        SnapWireChunk chunk;
        expect_good(receive(channel, rig, SOON_MS, &error), &error);
        assert_int_equal(rig->head.type, SNAP_WIRE_CHUNK);
        assert_null(snap_wire_decode_chunk(&rig->head, rig->body, &chunk));
        assert_int_equal(chunk.chunk, i);
        const struct iovec parts[] = {{rig->bulk, 1}, {rig->bulk + 1, 0}, {rig->bulk + 1, BULK_BYTES - 1}};
        expect_good(snap_channel_receive_bulk(channel, parts, 3, &error), &error);
        for (uint32_t at = 0; at < BULK_BYTES; at++)
            if (rig->bulk[at] != pattern(at + i))
                fail_msg("record %u: byte %u is another one", i, at);
        expect_good(snap_channel_expect(channel, SNAP_WIRE_GO, SOON_MS, &rig->head, rig->body, &error), &error);
    }
    const uint64_t bytes = n * (UINT64_C(32) + 56 + BULK_BYTES + 32 + 16);
    assert_int_equal(channel->n_received, 2 * n);
    assert_int_equal(__atomic_load_n(&channel->received_bytes, __ATOMIC_RELAXED), bytes);
}

static void move_records(Rig *rig, uint32_t n) {
    Sending sending = {&rig->source, n};
    rig->source.silence_ms = rig->destination.silence_ms = SOON_MS;
    GThread *thread = g_thread_new("sender", send_in_thread, &sending);
    receive_records(&rig->destination, rig, n);
    g_thread_join(thread);
    assert_int_equal(rig->source.n_sent, 2 * n);
    assert_int_equal(rig->source.sent_bytes, rig->destination.received_bytes);
}

static void records_over_sockets_arrive(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    rig_sockets(&rig);
    move_records(&rig, 20);
}

static void records_over_tiny_buffers_arrive(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    rig_tiny_sockets(&rig);
    move_records(&rig, 4);
}

static void records_over_pipes_arrive(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    rig_pipes(&rig);
    move_records(&rig, 4);
}

static void records_through_a_file_arrive(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    GError *error = NULL;
    rig_new(&rig);
    g_autofree char *path = NULL;
    int out = g_file_open_tmp("channel-XXXXXX", &path, NULL), in = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(out >= 0 && in >= 0);
    unlink(path);
    start(&rig.source, SNAP_WIRE_FROM_SOURCE, -1, out);
    start(&rig.destination, SNAP_WIRE_FROM_DESTINATION, in, -1);
    assert_true(rig.source.never_silent && rig.destination.never_silent);
    send_records(&rig.source, 4);
    receive_records(&rig.destination, &rig, 4);
    expect_error(receive(&rig.destination, &rig, -1, &error), &error, SNAP_ERROR_IO, "the connection was closed");
}

/* Byte by byte: as slow as a peer can be without being silent. */
static void *trickle(void *opaque) {
    const Rig *rig = opaque;
    uint8_t bytes[SNAP_WIRE_HEAD_BYTES + 512];
    SnapWireHead head = fix_seal(SNAP_WIRE_HELLO, 0, bytes, bytes + SNAP_WIRE_HEAD_BYTES);
    for (uint32_t i = 0; i < SNAP_WIRE_HEAD_BYTES + head.body_bytes; i++) {
        g_usleep(2000);
        assert_int_equal(write(rig->raw, bytes + i, 1), 1);
    }
    return NULL;
}

static void record_byte_by_byte_arrives(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    GError *error = NULL;
    rig_raw(&rig);
    GThread *thread = g_thread_new("trickle", trickle, &rig);
    rig.destination.silence_ms = SOON_MS;
    bool good = receive(&rig.destination, &rig, -1, &error);
    g_thread_join(thread);
    expect_good(good, &error);
    assert_int_equal(rig.head.type, SNAP_WIRE_HELLO);
    assert_int_equal(rig.head.body_bytes, 67);
}

/* Nothing is read beyond the record that is asked for. */
static void what_follows_a_record_stays(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    GError *error = NULL;
    rig_sockets(&rig);
    assert_false(snap_channel_has_input(&rig.destination));
    move_records(&rig, 1);
    assert_false(snap_channel_has_input(&rig.destination));
    snap_channel_send_failed(&rig.source, "enough");
    assert_true(snap_channel_has_input(&rig.destination));
    expect_good(receive(&rig.destination, &rig, 0, &error), &error);
    assert_false(snap_channel_has_input(&rig.destination));
    snap_channel_clear(&rig.source);
    assert_true(snap_channel_has_input(&rig.destination)); /* its end */
}

/* ---- the other side -------------------------------------------------------------------------------------- */

/* @bytes of a record with bulk, and then the end. */
static void a_connection_that_ends_anywhere_is_told(void **state) {
    (void)state;
    uint8_t bytes[SNAP_WIRE_HEAD_BYTES + 512];
    const SnapWireHead head = fix_seal(SNAP_WIRE_CHUNK, 0, bytes, bytes + SNAP_WIRE_HEAD_BYTES);
    for (size_t cut = 0; cut <= SNAP_WIRE_HEAD_BYTES + head.body_bytes; cut++) {
        g_auto(Rig) rig = {0};
        GError *error = NULL;
        rig_raw(&rig);
        assert_int_equal(write(rig.raw, bytes, cut), cut);
        close(rig.raw);
        rig.raw = -1;
        bool good = receive(&rig.destination, &rig, -1, &error);
        if (cut == SNAP_WIRE_HEAD_BYTES + head.body_bytes) {
            expect_good(good, &error);
            const struct iovec part = {rig.bulk, head.bulk_bytes};
            good = snap_channel_receive_bulk(&rig.destination, &part, 1, &error);
        }
        expect_error(good, &error, SNAP_ERROR_IO, "the connection was closed");
    }
}

/* No SIGPIPE: the test would end. */
static void sending_to_who_is_gone_is_told(void **state) {
    (void)state;
    g_auto(Rig) rig = {0}, pipes = {0};
    GError *error = NULL;
    sigset_t pending;
    rig_sockets(&rig);
    rig_pipes(&pipes);
    snap_channel_clear(&rig.destination);
    snap_channel_clear(&pipes.destination);
    expect_error(send_much(&rig.source, &error), &error, SNAP_ERROR_IO, "the connection was closed");
    expect_error(send_much(&pipes.source, &error), &error, SNAP_ERROR_IO, "the connection was closed");
    snap_channel_send_failed(&rig.source, "nobody hears it");
    snap_channel_send_failed(&pipes.source, "nobody hears it");
    assert_int_equal(sigpending(&pending), 0);
    assert_false(sigismember(&pending, SIGPIPE));
}

static void tcp_pair(int *ends) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, length), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    ends[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(ends[0], (struct sockaddr *)&address, length), 0);
    ends[1] = accept(listener, NULL, NULL);
    assert_true(ends[1] >= 0);
    close(listener);
}

/* Sending fails, but why is there to be read, though the other side closed with a GO that it had not read. */
static void last_words_of_who_is_gone_are_heard(void **state) {
    (void)state;
    void (*const pairs[])(int *) = {socket_pair, tcp_pair};
    for (size_t i = 0; i < G_N_ELEMENTS(pairs); i++) {
        g_auto(Rig) rig = {0};
        GError *error = NULL;
        int ends[2];
        uint8_t id[16];
        rig_new(&rig);
        pairs[i](ends);
        start(&rig.source, SNAP_WIRE_FROM_SOURCE, ends[0], ends[0]);
        start(&rig.destination, SNAP_WIRE_FROM_DESTINATION, ends[1], ends[1]);
        snap_wire_encode_id(&fix_id, id);
        expect_good(snap_channel_send(&rig.source, SNAP_WIRE_GO, 0, id, sizeof id, NULL, 0, &error), &error);
        snap_channel_send_failed(&rig.destination, "no such region");
        snap_channel_clear(&rig.destination);
        expect_error(send_much(&rig.source, &error), &error, SNAP_ERROR_IO, "the connection was closed");
        expect_error(snap_channel_expect(&rig.source, SNAP_WIRE_WELCOME, -1, &rig.head, rig.body, &error), &error,
                     SNAP_ERROR_REFUSED, "the other side: no such region");
    }
}

static void garbage_is_refused(void **state) {
    (void)state;
    uint8_t good[SNAP_WIRE_HEAD_BYTES + 512], bytes[sizeof good];
    const SnapWireHead head = fix_seal(SNAP_WIRE_HELLO, 0, good, good + SNAP_WIRE_HEAD_BYTES);
    const struct {
        size_t at;
        uint8_t value;
        const char *text;
    } cases[] = {
        {0, 'G', "record 0 (HELLO): it does not begin as a record does"},
        {4, 3, "record 0 (WELCOME): this side does not send such"},
        {5, 1, "record 0 (unknown): unknown type"},
        {7, 0x80, "record 0 (HELLO): unknown flags"},
        {10, 1, "record 0 (HELLO): the body is longer than it may be"},
        {11, 0xff, "record 0 (HELLO): the body is longer than it may be"},
        {15, 0x80, "record 0 (HELLO): the bulk is longer than it may be"},
        {16, 1, "record 0 (HELLO): its number is out of order"},
        {31, 1, "record 0 (HELLO): its checksum is wrong"},
        {70, 9, "record 0 (HELLO): its checksum is wrong"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_auto(Rig) rig = {0};
        GError *error = NULL;
        rig_raw(&rig);
        memcpy(bytes, good, sizeof bytes);
        assert_int_not_equal(bytes[cases[i].at], cases[i].value);
        bytes[cases[i].at] = cases[i].value;
        assert_int_equal(write(rig.raw, bytes, SNAP_WIRE_HEAD_BYTES + head.body_bytes),
                         SNAP_WIRE_HEAD_BYTES + head.body_bytes);
        expect_error(receive(&rig.destination, &rig, -1, &error), &error, SNAP_ERROR_PROTOCOL, cases[i].text);
    }
}

static void record_that_was_lost_or_comes_twice_is_refused(void **state) {
    (void)state;
    for (uint64_t second = 0; second < 3; second++) {
        g_auto(Rig) rig = {0};
        GError *error = NULL;
        uint8_t bytes[SNAP_WIRE_HEAD_BYTES + 512];
        rig_raw(&rig);
        for (uint64_t i = 0; i < 2; i++) {
            const SnapWireHead head = fix_seal(SNAP_WIRE_ROUND, i * second, bytes, bytes + SNAP_WIRE_HEAD_BYTES);
            assert_int_equal(write(rig.raw, bytes, SNAP_WIRE_HEAD_BYTES + head.body_bytes),
                             SNAP_WIRE_HEAD_BYTES + head.body_bytes);
        }
        expect_good(receive(&rig.destination, &rig, -1, &error), &error);
        bool good = receive(&rig.destination, &rig, -1, &error);
        if (second == 1)
            expect_good(good, &error);
        else
            expect_error(good, &error, SNAP_ERROR_PROTOCOL, "record 1 (ROUND): its number is out of order");
    }
}

/* A bulk that nobody took would be read as records. */
static void bulk_that_nobody_takes_ends_it(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    GError *error = NULL;
    uint8_t bytes[SNAP_WIRE_HEAD_BYTES + 512];
    const SnapWireHead head = fix_seal(SNAP_WIRE_CHUNK, 0, bytes, bytes + SNAP_WIRE_HEAD_BYTES);
    rig_raw(&rig);
    assert_true(write(rig.raw, bytes, SNAP_WIRE_HEAD_BYTES + head.body_bytes) > 0);
    expect_good(receive(&rig.destination, &rig, -1, &error), &error);
    expect_error(receive(&rig.destination, &rig, -1, &error), &error, SNAP_ERROR_PROTOCOL,
                 "record 0 (CHUNK): its bulk has no place to go");
}

/* ---- what was to come ------------------------------------------------------------------------------------ */

static void send_number(SnapChannel *channel, SnapWireType type, uint64_t number) {
    uint8_t body[16];
    GError *error = NULL;
    snap_wire_encode_number(number, body);
    expect_good(snap_channel_send(channel, type, 0, body, sizeof body, NULL, 0, &error), &error);
}

static void expect_passes_over_alive(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    GError *error = NULL;
    uint64_t number = 0;
    rig_sockets(&rig);
    send_number(&rig.destination, SNAP_WIRE_ALIVE, 1);
    send_number(&rig.destination, SNAP_WIRE_ALIVE, 2);
    send_number(&rig.destination, SNAP_WIRE_READY, 3);
    send_number(&rig.destination, SNAP_WIRE_ALIVE, 4);
    expect_good(snap_channel_expect(&rig.source, SNAP_WIRE_READY, -1, &rig.head, rig.body, &error), &error);
    assert_null(snap_wire_decode_number(&rig.head, rig.body, &number));
    assert_int_equal(number, 3);
    expect_good(snap_channel_expect(&rig.source, SNAP_WIRE_ALIVE, -1, &rig.head, rig.body, &error), &error);
}

/* Who only ever says that he is there is not silent, but does not come to the point. */
static void expect_with_a_limit_ends_in_spite_of_alive(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    GError *error = NULL;
    rig_sockets(&rig);
    for (uint64_t i = 0; i < 30; i++)
        send_number(&rig.destination, SNAP_WIRE_ALIVE, i);
    expect_error(snap_channel_expect(&rig.source, SNAP_WIRE_READY, 0, &rig.head, rig.body, &error), &error,
                 SNAP_ERROR_TIMED_OUT, "silent");
    assert_int_equal(rig.source.n_received, 1);
}

static void expect_failed_says_why(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    GError *error = NULL;
    rig_sockets(&rig);
    send_number(&rig.destination, SNAP_WIRE_ALIVE, 1);
    snap_channel_send_failed(&rig.destination, "the page sizes differ");
    snap_channel_send_failed(&rig.destination, "and more"); /* one is the last */
    expect_error(snap_channel_expect(&rig.source, SNAP_WIRE_READY, -1, &rig.head, rig.body, &error), &error,
                 SNAP_ERROR_REFUSED, "the other side: the page sizes differ");
    assert_false(snap_channel_has_input(&rig.source));
}

static void expect_something_else_is_refused(void **state) {
    (void)state;
    g_auto(Rig) rig = {0};
    GError *error = NULL;
    rig_sockets(&rig);
    send_number(&rig.destination, SNAP_WIRE_ALIVE, 1);
    send_number(&rig.destination, SNAP_WIRE_READY, 1);
    expect_error(snap_channel_expect(&rig.source, SNAP_WIRE_WELCOME, -1, &rig.head, rig.body, &error), &error,
                 SNAP_ERROR_PROTOCOL, "record 1 (READY): WELCOME was to come");
}

static void descriptor_that_is_none_is_refused(void **state) {
    (void)state;
    SnapChannel channel = {0}, never = {0};
    GError *error = NULL;
    int ends[2];
    socket_pair(ends);
    const int none = 1 << 20;
    expect_error(snap_channel_init(&channel, SNAP_WIRE_FROM_SOURCE, ends[0], none, 1, &error), &error,
                 SNAP_ERROR_IO, "the connection cannot be used");
    assert_int_equal(fcntl(ends[0], F_GETFD), -1);
    close(ends[1]);
    snap_channel_clear(&channel);
    snap_channel_stop(&never);
    snap_channel_shutdown(&never);
    snap_channel_send_failed(&never, "nothing");
    snap_channel_clear(&never);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_over_sockets_arrive),
        cmocka_unit_test(records_over_tiny_buffers_arrive),
        cmocka_unit_test(records_over_pipes_arrive),
        cmocka_unit_test(records_through_a_file_arrive),
        cmocka_unit_test(record_byte_by_byte_arrives),
        cmocka_unit_test(what_follows_a_record_stays),
        cmocka_unit_test(a_connection_that_ends_anywhere_is_told),
        cmocka_unit_test(sending_to_who_is_gone_is_told),
        cmocka_unit_test(last_words_of_who_is_gone_are_heard),
        cmocka_unit_test(garbage_is_refused),
        cmocka_unit_test(record_that_was_lost_or_comes_twice_is_refused),
        cmocka_unit_test(bulk_that_nobody_takes_ends_it),
        cmocka_unit_test(expect_passes_over_alive),
        cmocka_unit_test(expect_with_a_limit_ends_in_spite_of_alive),
        cmocka_unit_test(expect_failed_says_why),
        cmocka_unit_test(expect_something_else_is_refused),
        cmocka_unit_test(descriptor_that_is_none_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
