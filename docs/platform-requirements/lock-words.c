/*
 * The kernel writes some words of a process without waiting for a protected page. In sync mode it then refuses
 * (EFAULT), or leaves the word as it is, and no fault comes: a lock with priority inheritance that has to be
 * waited for, FUTEX_WAKE_OP, the robust lock of a thread that ends, and the number that its end clears. In async
 * mode it writes them.
 *
 * Relied on by libsnap/spared.c, which leaves such pages unprotected. A kernel where this does not hold any more
 * needs that no longer, and loses nothing by it.
 */
#include "proof.h"

#include <linux/futex.h>

enum { LOCK, WOKEN, NUMBER, ROBUST, WORDS };

typedef struct {
    uint32_t *words; /* one page of them */
    int fd;
    bool async;
} Proof;

static long futex(uint32_t *word, int operation, unsigned long fourth, uint32_t *second, uint32_t argument) {
    return syscall(SYS_futex, word, operation, 1, fourth, second, argument) < 0 ? -errno : 0;
}

static void protect(const Proof *proof) {
    CHECK(uffd_protect(proof->fd, proof->words, page_bytes()) == 0);
}

static void check_not_caught(const Proof *proof) {
    CHECK(!uffd_wait(proof->fd, 0));
}

/* A lock that is free: the kernel writes the caller's number. */
static void prove_lock(const Proof *proof) {
    protect(proof);
    long result = futex(&proof->words[LOCK], FUTEX_LOCK_PI_PRIVATE, 0, NULL, 0);
    check_not_caught(proof);
    CHECK(result == (proof->async ? 0 : -EFAULT));
    CHECK(proof->words[LOCK] == (proof->async ? (uint32_t)syscall(SYS_gettid) : 0));
}

static void prove_wake_op(const Proof *proof) {
    protect(proof);
    uint32_t set_5_if_0 = FUTEX_OP(FUTEX_OP_SET, 5u, FUTEX_OP_CMP_EQ, 0u);
    long result = futex(&proof->words[WORDS], FUTEX_WAKE_OP_PRIVATE, 1, &proof->words[WOKEN], set_5_if_0);
    check_not_caught(proof);
    CHECK(result == (proof->async ? 0 : -EFAULT));
    CHECK(proof->words[WOKEN] == (proof->async ? 5 : 0));
}

/* A thread that holds a robust lock, and ends when its argument says so, without another write to the page. */
static void end_with_lock(Task *task) {
    uint32_t *words = (uint32_t *)(void *)task->address;
    uint32_t number = (uint32_t)syscall(SYS_gettid);
    struct {
        struct robust_list_head head;
        struct robust_list entry;
    } list = {.head = {.list = {&list.entry}}, .entry = {&list.head.list}};
    list.head.futex_offset = (char *)&words[ROBUST] - (char *)&list.entry;
    words[NUMBER] = words[ROBUST] = number;
    syscall(SYS_set_tid_address, &words[NUMBER]);
    CHECK(syscall(SYS_set_robust_list, &list, sizeof(list.head)) == 0);
    atomic_bool *go = task->argument;
    atomic_store(&task->done, true);
    while (!atomic_load(go))
        usleep(1000);
    syscall(SYS_exit, 0);
}

static void prove_end(const Proof *proof) {
    static atomic_bool go;
    atomic_store(&go, false);
    CHECK(uffd_unprotect(proof->fd, proof->words, page_bytes()) == 0);
    Task task = {.body = end_with_lock, .address = (char *)proof->words, .argument = &go};
    task_start(&task); /* which never comes back */
    CHECK(task_wait(&task, WAIT_MS));
    uint32_t number = proof->words[NUMBER];
    protect(proof);
    atomic_store(&go, true);
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/task/%u", number);
    for (int ms = 0; ms < WAIT_MS && access(path, F_OK) == 0; ms++)
        usleep(1000);
    CHECK(access(path, F_OK) < 0);
    check_not_caught(proof);
    CHECK(proof->words[NUMBER] == (proof->async ? 0 : number));
    CHECK((proof->words[ROBUST] & FUTEX_OWNER_DIED) == (proof->async ? FUTEX_OWNER_DIED : 0));
}

static void prove(bool async) {
    uint64_t features = UFFD_FEATURE_PAGEFAULT_FLAG_WP;
    if (async)
        features |= UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC;
    Proof proof = {.words = (uint32_t *)(void *)map_anon(1), .fd = uffd_open(features), .async = async};
    proof.words[WORDS] = 0;
    CHECK(uffd_register(proof.fd, proof.words, page_bytes()) == 0);
    prove_lock(&proof);
    prove_wake_op(&proof);
    prove_end(&proof);
}

int main(void) {
    prove(false);
    prove(true);
    return 0;
}
