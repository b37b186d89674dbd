/*
 * What processor the guest of a microvm sees. Pure.
 *
 * It is the host's, as KVM can give it, less what no state is kept of, and less which of the host's processors
 * happened to be asked. A guest that was moved keeps that of the machine where it began; it can go only where
 * nothing of it is missing.
 */
#pragma once

#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>

/* Make what KVM says it can give into what a guest is given. */
void cpuid_adjust(struct kvm_cpuid_entry2 *entries, size_t n);

/* A feature that @has shows and @can does not have: its word, e.g. "leaf 0x7 EBX: 0x00010000"; NULL when there
 * is none. @ret_text: room for @text_bytes. */
const char *cpuid_find_missing(const struct kvm_cpuid_entry2 *has, size_t n_has,
                               const struct kvm_cpuid_entry2 *can, size_t n_can, char *ret_text,
                               size_t text_bytes);
