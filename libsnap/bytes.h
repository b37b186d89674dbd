/*
 * Integers in files and records: little endian, at any address. put* return where the next one goes.
 */
#pragma once

#include <glib.h>
#include <stdint.h>
#include <string.h>

static inline uint8_t *put16(uint8_t *at, uint16_t value) {
    value = GUINT16_TO_LE(value);
    return (uint8_t *)memcpy(at, &value, sizeof value) + sizeof value;
}

static inline uint8_t *put32(uint8_t *at, uint32_t value) {
    value = GUINT32_TO_LE(value);
    return (uint8_t *)memcpy(at, &value, sizeof value) + sizeof value;
}

static inline uint8_t *put64(uint8_t *at, uint64_t value) {
    value = GUINT64_TO_LE(value);
    return (uint8_t *)memcpy(at, &value, sizeof value) + sizeof value;
}

static inline uint16_t get16(const uint8_t *at) {
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return GUINT16_FROM_LE(value);
}

static inline uint32_t get32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return GUINT32_FROM_LE(value);
}

static inline uint64_t get64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return GUINT64_FROM_LE(value);
}
