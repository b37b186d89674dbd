/* See cpuid.h. Leaves and bits are those of the processor manuals' CPUID. */
#include "cpuid.h"

#include <stdio.h>

enum { EAX, EBX, ECX, EDX };
static const char *const names[] = {"EAX", "EBX", "ECX", "EDX"};

/* Bits that are taken away. */
static const struct {
    uint32_t leaf, index;
    int word;
    uint32_t bits;
} removed[] = {
    {0x1, 0, ECX, 1u << 5},        /* VMX: the state of guests in the guest is not kept */
    {0x80000001, 0, ECX, 1u << 2}, /* SVM */
    {0x1, 0, EBX, 0xff000000},     /* number of the processor: it is the first */
    {0xb, 0, EDX, UINT32_MAX},     /* the same */
    {0xb, 1, EDX, UINT32_MAX},     {0x1f, 0, EDX, UINT32_MAX},
    {0x1f, 1, EDX, UINT32_MAX},    {0x8000001e, 0, EAX, UINT32_MAX},
};

/* Words that are features, a bit each. Bits that the guest itself switches are not looked at. */
static const struct {
    uint32_t leaf, index;
    int word;
    uint32_t ignored;
} features[] = {
    {0x1, 0, ECX, 1u << 27 /* OSXSAVE */},
    {0x1, 0, EDX, 1u << 9 /* APIC */},
    {0x7, 0, EBX, 0},
    {0x7, 0, ECX, 1u << 4 /* OSPKE */},
    {0x7, 0, EDX, 0},
    {0x7, 1, EAX, 0},
    {0xd, 0, EAX, 0},
    {0xd, 1, EAX, 0},
    {0x80000001, 0, ECX, 0},
    {0x80000001, 0, EDX, 0},
    {0x80000008, 0, EBX, 0},
};

#define N(array) (sizeof(array) / sizeof((array)[0]))

static uint32_t *word_of(struct kvm_cpuid_entry2 *entry, int word) {
    uint32_t *words[] = {&entry->eax, &entry->ebx, &entry->ecx, &entry->edx};
    return words[word];
}

static const struct kvm_cpuid_entry2 *find(const struct kvm_cpuid_entry2 *entries, size_t n, uint32_t leaf,
                                           uint32_t index) {
    for (size_t i = 0; i < n; i++)
        if (entries[i].function == leaf && entries[i].index == index)
            return &entries[i];
    return NULL;
}

static uint32_t word_at(const struct kvm_cpuid_entry2 *entries, size_t n, uint32_t leaf, uint32_t index,
                        int word) {
    const struct kvm_cpuid_entry2 *entry = find(entries, n, leaf, index);
    struct kvm_cpuid_entry2 copy = entry ? *entry : (struct kvm_cpuid_entry2){0};
    return *word_of(&copy, word);
}

void cpuid_adjust(struct kvm_cpuid_entry2 *entries, size_t n) {
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < N(removed); k++)
            if (entries[i].function == removed[k].leaf && entries[i].index == removed[k].index)
                *word_of(&entries[i], removed[k].word) &= ~removed[k].bits;
}

const char *cpuid_find_missing(const struct kvm_cpuid_entry2 *has, size_t n_has,
                               const struct kvm_cpuid_entry2 *can, size_t n_can, char *ret_text,
                               size_t text_bytes) {
    for (size_t i = 0; i < N(features); i++) {
        uint32_t leaf = features[i].leaf, index = features[i].index;
        uint32_t missing = word_at(has, n_has, leaf, index, features[i].word) &
                           ~word_at(can, n_can, leaf, index, features[i].word) & ~features[i].ignored;
        if (!missing)
            continue;
        snprintf(ret_text, text_bytes, "leaf 0x%x %s: 0x%08x", leaf, names[features[i].word], missing);
        return ret_text;
    }
    return NULL;
}
