/* The devices of a microvm, port by port; what they print goes into a pipe. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../vmm-glue/microvm/ports.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#define LINE_STATUS (SERIAL_PORT + 5)
#define IDLE 0x60

typedef struct {
    Ports ports;
    int reader, writer;
} Fixture;

static int setup(void **state) {
    static Fixture fixture;
    int fds[2];
    assert_int_equal(pipe2(fds, O_NONBLOCK | O_CLOEXEC), 0);
    fixture = (Fixture){.reader = fds[0], .writer = fds[1]};
    ports_init(&fixture.ports, fds[1]);
    *state = &fixture;
    return 0;
}

static int teardown(void **state) {
    Fixture *f = *state;
    if (f->reader >= 0)
        close(f->reader);
    close(f->writer);
    return 0;
}

static void out8(Fixture *f, uint16_t port, uint8_t value) {
    uint8_t status;
    assert_false(ports_out(&f->ports, port, &value, 1, 1, &status));
}

static uint8_t in8(Fixture *f, uint16_t port) {
    uint8_t value;
    ports_in(&f->ports, port, &value, 1, 1);
    return value;
}

static void print(Fixture *f, const char *text) {
    uint8_t status;
    assert_false(ports_out(&f->ports, SERIAL_PORT, (const uint8_t *)text, 1, (unsigned)strlen(text), &status));
}

static void assert_printed(const Fixture *f, const char *text) {
    char found[256] = "";
    ssize_t n = read(f->reader, found, sizeof(found) - 1);
    assert_int_equal(n < 0 ? 0 : n, strlen(text));
    assert_string_equal(found, text);
}

static void stuff(const Fixture *f) {
    char block[4096] = {0};
    while (write(f->writer, block, sizeof(block)) > 0)
        continue;
}

static void drain(const Fixture *f) {
    char block[4096];
    while (read(f->reader, block, sizeof(block)) > 0)
        continue;
}

static void switch_queues_on(Fixture *f) {
    out8(f, SERIAL_PORT + 2, 0x07);
}

/* ---- COM1 ------------------------------------------------------------------------------------------------ */

static void bytes_printed_arrive(void **state) {
    Fixture *f = *state;
    print(f, "a");
    assert_printed(f, "a");
    switch_queues_on(f);
    print(f, "sixteen bytes ..");
    assert_printed(f, "sixteen bytes ..");
    assert_int_equal(in8(f, LINE_STATUS), IDLE);
}

static void bytes_that_nobody_takes_wait_and_then_are_lost(void **state) {
    Fixture *f = *state;
    switch_queues_on(f);
    stuff(f);
    print(f, "0123456789abcdefLOST");
    assert_int_equal(in8(f, LINE_STATUS), 0);
    print(f, "LOST");
    drain(f);
    assert_int_equal(in8(f, LINE_STATUS), IDLE);
    assert_printed(f, "0123456789abcdef");
}

static void bytes_queued_go_with_the_state(void **state) {
    Fixture *f = *state;
    switch_queues_on(f);
    stuff(f);
    print(f, "later");
    SerialState kept = f->ports.serial.state;
    assert_true(serial_state_valid(&kept));
    drain(f);
    ports_init(&f->ports, f->writer);
    f->ports.serial.state = kept;
    assert_int_equal(in8(f, LINE_STATUS), IDLE);
    assert_printed(f, "later");
}

static void queue_emptied_by_the_guest_is_not_sent(void **state) {
    Fixture *f = *state;
    switch_queues_on(f);
    stuff(f);
    print(f, "LOST");
    switch_queues_on(f);
    drain(f);
    assert_int_equal(in8(f, LINE_STATUS), IDLE);
    assert_printed(f, "");
}

static void registers_keep_what_is_written(void **state) {
    Fixture *f = *state;
    out8(f, SERIAL_PORT + 3, 0x80);
    out8(f, SERIAL_PORT + 0, 3);
    out8(f, SERIAL_PORT + 1, 1);
    assert_int_equal(in8(f, SERIAL_PORT + 0), 3);
    assert_int_equal(in8(f, SERIAL_PORT + 1), 1);
    out8(f, SERIAL_PORT + 3, 0x03);
    assert_int_equal(in8(f, SERIAL_PORT + 0), 0); /* nothing is received */
    out8(f, SERIAL_PORT + 1, 0xff);
    assert_int_equal(in8(f, SERIAL_PORT + 1), 0x0f);
    out8(f, SERIAL_PORT + 4, 0xff);
    assert_int_equal(in8(f, SERIAL_PORT + 4), 0x1f);
    out8(f, SERIAL_PORT + 7, 0x5a);
    assert_int_equal(in8(f, SERIAL_PORT + 7), 0x5a);
    assert_int_equal(in8(f, SERIAL_PORT + 2), 0x01);
    switch_queues_on(f);
    assert_int_equal(in8(f, SERIAL_PORT + 2), 0xc1);
    assert_printed(f, "");
}

static void reader_that_has_gone_is_not_waited_for(void **state) {
    Fixture *f = *state;
    signal(SIGPIPE, SIG_IGN);
    close(f->reader);
    f->reader = -1;
    print(f, "a");
    print(f, "b");
    assert_int_equal(in8(f, LINE_STATUS), IDLE);
}

/* ---- the others ------------------------------------------------------------------------------------------ */

static void configuration_says_one_processor(void **state) {
    Fixture *f = *state;
    const uint8_t cpus[] = {5, 0}, other[] = {6, 0};
    uint8_t status;
    ports_out(&f->ports, 0x510, cpus, 2, 1, &status);
    assert_int_equal(in8(f, 0x511), 1);
    assert_int_equal(in8(f, 0x511), 0);
    assert_int_equal(in8(f, 0x511), 0);
    ports_out(&f->ports, 0x510, cpus, 2, 1, &status);
    assert_int_equal(in8(f, 0x511), 1);
    ports_out(&f->ports, 0x510, other, 2, 1, &status);
    assert_int_equal(in8(f, 0x511), 0);
}

static void exit_port_ends_with_its_byte(void **state) {
    Fixture *f = *state;
    uint8_t three = 3, status = 0;
    assert_true(ports_out(&f->ports, 0xf4, &three, 1, 1, &status));
    assert_int_equal(status, 3);
}

static void port_without_device_reads_as_ones(void **state) {
    Fixture *f = *state;
    uint8_t bytes[8] = {0}, status;
    ports_in(&f->ports, 0xcf8, bytes, 4, 2);
    for (size_t i = 0; i < sizeof(bytes); i++)
        assert_int_equal(bytes[i], 0xff);
    assert_false(ports_out(&f->ports, 0xcf8, bytes, 4, 2, &status));
    ports_in(&f->ports, LINE_STATUS, bytes, 2, 1); /* none so wide */
    assert_int_equal(bytes[0], 0xff);
}

int main(void) {
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        CASE(bytes_printed_arrive),
        CASE(bytes_that_nobody_takes_wait_and_then_are_lost),
        CASE(bytes_queued_go_with_the_state),
        CASE(queue_emptied_by_the_guest_is_not_sent),
        CASE(registers_keep_what_is_written),
        CASE(reader_that_has_gone_is_not_waited_for),
        CASE(configuration_says_one_processor),
        CASE(exit_port_ends_with_its_byte),
        CASE(port_without_device_reads_as_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
