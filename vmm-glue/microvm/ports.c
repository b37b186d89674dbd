/* See ports.h. */
#include "ports.h"

#include <string.h>

enum { CONFIG_SELECTOR = 0x510, CONFIG_DATA = 0x511, CONFIG_CPUS = 5 };
enum { EXIT_PORT = 0xf4 };
enum { CPUS = 1 };

void ports_init(Ports *ports, int serial_fd) {
    *ports = (Ports){0};
    serial_init(&ports->serial, serial_fd);
}

static bool is_serial(uint16_t port, unsigned size) {
    return port >= SERIAL_PORT && port < SERIAL_PORT + SERIAL_PORTS && size == 1;
}

static uint8_t read_config(PortsState *config) {
    uint8_t byte = config->selector == CONFIG_CPUS && config->position == 0 ? CPUS : 0;
    if (config->position < UINT32_MAX)
        config->position++;
    return byte;
}

static void select_config(PortsState *config, const uint8_t *data, unsigned size) {
    config->selector = data[0] | (size > 1 ? (uint32_t)data[1] << 8 : 0);
    config->position = 0;
}

void ports_in(Ports *ports, uint16_t port, uint8_t *data, unsigned size, unsigned count) {
    memset(data, 0xff, (size_t)size * count);
    for (unsigned i = 0; i < count && is_serial(port, size); i++)
        data[i] = serial_read(&ports->serial, port - (unsigned)SERIAL_PORT);
    for (unsigned i = 0; i < size * count && port == CONFIG_DATA; i++)
        data[i] = read_config(&ports->config);
}

bool ports_out(Ports *ports, uint16_t port, const uint8_t *data, unsigned size, unsigned count,
               uint8_t *ret_status) {
    if (is_serial(port, size))
        serial_write(&ports->serial, port - (unsigned)SERIAL_PORT, data, count);
    if (port == CONFIG_SELECTOR)
        select_config(&ports->config, data + (size_t)size * (count - 1), size);
    if (port != EXIT_PORT)
        return false;
    *ret_status = data[0];
    return true;
}
