/* ELF notes: their framing, and what stands in those of a process. */
#include <elf.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "libsnap.h"
#include "notes.h"

/* A note as read back. */
typedef struct {
    guint32 type;
    char owner[16];
    const guint8 *data;
    gsize length;
} Note;

static guint read_notes(GBytes *bytes, Note *ret_notes, guint max) {
    gsize left = 0;
    const guint8 *at = g_bytes_get_data(bytes, &left);
    guint n = 0;
    while (left > 0) {
        Elf64_Nhdr head;
        assert_true(left >= sizeof(head) && n < max);
        memcpy(&head, at, sizeof(head));
        gsize owner = (head.n_namesz + 3u) & ~3u, data = (head.n_descsz + 3u) & ~3u;
        assert_true(left >= sizeof(head) + owner + data && head.n_namesz <= sizeof(ret_notes[n].owner));
        ret_notes[n] = (Note){.type = head.n_type, .data = at + sizeof(head) + owner, .length = head.n_descsz};
        memcpy(ret_notes[n].owner, at + sizeof(head), head.n_namesz);
        at += sizeof(head) + owner + data;
        left -= sizeof(head) + owner + data;
        n++;
    }
    return n;
}

static void note_of_any_length_is_padded(void **state) {
    (void)state;
    for (gsize length = 0; length < 9; length++) {
        GByteArray *array = g_byte_array_new();
        notes_append(array, "CORE", 7, "12345678", length);
        notes_append(array, "LINUX", 8, "x", 1);
        g_autoptr(GBytes) bytes = g_byte_array_free_to_bytes(array);
        Note notes[2];
        assert_int_equal(read_notes(bytes, notes, 2), 2);
        assert_int_equal(notes[0].length, length);
        assert_memory_equal(notes[0].data, "12345678", length);
        assert_string_equal(notes[1].owner, "LINUX");
        assert_int_equal(notes[1].data[0], 'x');
    }
}

static const char maps_text[] = "1000-3000 r-xp 00002000 08:01 42                         /bin/program\n"
                                "5000-6000 rw-p 00000000 00:00 0                          [heap]\n"
                                "7000-8000 rw-s 00000000 00:01 43                         /memfd:ram (deleted)\n";

static void process_of_two_threads_has_their_notes_in_order(void **state) {
    (void)state;
    guint8 xstate[1024];
    memset(xstate, 0xab, sizeof(xstate));
    FreezeThread frozen[2] = {{.tid = 100, .captured = TRUE, .xstate = xstate, .xstate_bytes = sizeof(xstate)},
                              {.tid = 101, .captured = TRUE, .xstate = xstate, .xstate_bytes = 512, .signal = 11}};
    frozen[1].registers.rip = 0x1234;
    frozen[1].siginfo.si_signo = 11;
    NotesThread threads[2] = {{.thread = &frozen[0], .parent = 1}, {.thread = &frozen[1]}};
    g_autoptr(ProcMaps) maps = maps_parse(maps_text, strlen(maps_text), NULL);
    g_autoptr(GBytes) auxv = g_bytes_new_static("auxvauxv", 8);
    prpsinfo_t info = {.pr_pid = 100, .pr_fname = "program"};
    NotesProcess process = {.info = &info, .auxv = auxv, .maps = maps, .page_bytes = 0x1000};
    g_autoptr(GBytes) bytes = notes_build(&process, threads, 2);
    Note notes[16];
    static const guint32 expected[] = {NT_PRSTATUS,   NT_PRPSINFO, NT_AUXV,    NT_FILE,    NT_FPREGSET,
                                       NT_X86_XSTATE, NT_PRSTATUS, NT_SIGINFO, NT_FPREGSET};
    assert_int_equal(read_notes(bytes, notes, G_N_ELEMENTS(notes)), G_N_ELEMENTS(expected));
    for (size_t i = 0; i < G_N_ELEMENTS(expected); i++) {
        assert_int_equal(notes[i].type, expected[i]);
        assert_string_equal(notes[i].owner, expected[i] == NT_X86_XSTATE ? "LINUX" : "CORE");
    }
    struct elf_prstatus status;
    assert_int_equal(notes[6].length, sizeof(status));
    memcpy(&status, notes[6].data, sizeof(status));
    assert_int_equal(status.pr_pid, 101);
    assert_int_equal(status.pr_cursig, 11);
    struct user_regs_struct registers;
    memcpy(&registers, &status.pr_reg, sizeof(registers));
    assert_int_equal(registers.rip, 0x1234);
    assert_memory_equal(notes[2].data, "auxvauxv", 8);
    assert_int_equal(notes[5].length, sizeof(xstate));
}

static void files_are_listed_with_offsets_in_pages(void **state) {
    (void)state;
    FreezeThread frozen = {.tid = 100, .captured = TRUE};
    NotesThread thread = {.thread = &frozen};
    g_autoptr(ProcMaps) maps = maps_parse(maps_text, strlen(maps_text), NULL);
    g_autoptr(GBytes) auxv = g_bytes_new_static("", 0);
    prpsinfo_t info = {0};
    NotesProcess process = {.info = &info, .auxv = auxv, .maps = maps, .page_bytes = 0x1000};
    g_autoptr(GBytes) bytes = notes_build(&process, &thread, 1);
    Note notes[4];
    assert_int_equal(read_notes(bytes, notes, 4), 4);
    static const guint64 numbers[] = {2, 0x1000, 0x1000, 0x3000, 2, 0x7000, 0x8000, 0};
    static const char names[] = "/bin/program\0/memfd:ram (deleted)";
    assert_int_equal(notes[3].type, NT_FILE);
    assert_int_equal(notes[3].length, sizeof(numbers) + sizeof(names));
    assert_memory_equal(notes[3].data, numbers, sizeof(numbers));
    assert_memory_equal(notes[3].data + sizeof(numbers), names, sizeof(names));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(note_of_any_length_is_padded),
        cmocka_unit_test(process_of_two_threads_has_their_notes_in_order),
        cmocka_unit_test(files_are_listed_with_offsets_in_pages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
