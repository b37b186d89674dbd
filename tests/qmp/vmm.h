/*
 * A VMM of the tests' own, with a QMP server in it: its guest is memory of this process and threads that write the
 * known sequence (../guest/sequence.h) into it, as fast as they can.
 *
 * As in any VMM two can stop the guest, a client by `stop` and a snapshot for its point in time: it runs when
 * neither wants it to stand. Needs cmocka.h before it.
 */
#pragma once

#include "../../qapi/libsnap-qmp.h"
#include "../guest/backing.h"
#include "../guest/seqcheck.h"
#include "../guest/writers.h"

#include <pthread.h>

#define VMM_BYTES ((size_t)64 << 20)
#define VMM_SOCKET "s" /* in the folder */

/* Who calls the server. */
typedef enum { VMM_THREAD, VMM_OWN_LOOP, VMM_NOBODY } VmmServing;

typedef struct {
    /* set before start */
    VmmServing serving;
    SnapMemory memory;
    Backing backing;
    SnapQmp *qmp;
    char folder[64];
    char *socket; /* its path */

    pthread_mutex_t lock;

    /* under lock */
    Writers writers;
    bool stopped; /* by a client */
    bool paused;  /* by a snapshot */
    bool writing;
    bool fails;       /* stop and cont do */
    unsigned slow_ms; /* that they take */
    uint64_t at;      /* the sequence at the last point in time */
    unsigned quits;   /* so often was quit given */

    /* the loop */
    pthread_t loop;
    int wake_fd;

    /* atomic, relaxed */
    bool end;
    uint64_t wakeups;    /* so often there was something for the server */
    uint64_t longest_ns; /* that it took */
    uint64_t busy_ns;    /* that it took in all */
} Vmm;

/* vmm_can_run: or says what is missing. */
bool vmm_can_run(void);
bool vmm_has_async(void);

/* vmm_init: memory of @kind ("anon", "memfd"), writers that run, a server that listens. */
void vmm_init(Vmm *vmm, const char *kind, VmmServing serving);

/* vmm_end_server: free the server, as the VMM itself would. */
void vmm_end_server(Vmm *vmm);
/* vmm_begin_server: another one, for the same guest; vmm_serve: let it be called. */
void vmm_begin_server(Vmm *vmm);
void vmm_serve(Vmm *vmm, VmmServing serving);

/* vmm_clear: end everything; fails when the guest itself has found a wrong word. */
void vmm_clear(Vmm *vmm);

/* vmm_written: so far the sequence is. Thread: any. */
uint64_t vmm_written(const Vmm *vmm);
/* vmm_await_writes: until the guest has written @n more; fails after ten seconds. */
void vmm_await_writes(const Vmm *vmm, uint64_t n);

/* vmm_touch: a write of page @page that changes nothing. The guest stands. */
void vmm_touch(Vmm *vmm, uint64_t page);

/* vmm_check_image: the image in the folder is the memory at the last point in time, byte for byte; and delete it.
 */
void vmm_check_image(Vmm *vmm, const char *name);
