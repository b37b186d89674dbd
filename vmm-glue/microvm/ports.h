/*
 * The ports of a microvm: COM1, what tells the guest how many processors there are, and the port by which it ends.
 * The interrupt controllers and the timer are the kernel's and never come here.
 *
 *     0x3f8–0x3ff    COM1: serial.h
 *     0x510, 0x511   QEMU's fw_cfg: a selector, and a byte of what it selects at each read; item 5 is the number
 *                    of processors, everything else reads as zeros
 *     0xf4           a byte written there ends the guest, with that as its status
 *
 * Any other port reads as ones, and what is written to it is lost: no device is there.
 */
#pragma once

#include "serial.h"

/* Of fw_cfg: a part of the guest's state, as bytes. */
typedef struct {
    uint32_t selector;
    uint32_t position;
} PortsState;

typedef struct {
    Serial serial;
    PortsState config;
} Ports;

void ports_init(Ports *ports, int serial_fd);

/* A run of @count reads or writes of @size bytes each, at @data, of one port. */
void ports_in(Ports *ports, uint16_t port, uint8_t *data, unsigned size, unsigned count);
/* Return: whether the guest ends by it, with @ret_status. */
bool ports_out(Ports *ports, uint16_t port, const uint8_t *data, unsigned size, unsigned count,
               uint8_t *ret_status);
