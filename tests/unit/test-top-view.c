/* tools/top-view.c and screen_clip(): what vmsnap top shows, and how much of it. */
#include "tools/screen.h"
#include "tools/top-view.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static char **view(const char *targets_text, const char *jobs_text) {
    g_autoptr(json_object) targets = json_tokener_parse(targets_text);
    g_autoptr(json_object) jobs = json_tokener_parse(jobs_text);
    assert_non_null(targets);
    assert_non_null(jobs);
    return top_view_lines("/s", targets, jobs);
}

static void view_of_nothing_is_a_head(void **state) {
    (void)state;
    g_auto(GStrv) lines = view("[]", "[]");
    assert_int_equal(g_strv_length(lines), 1);
    assert_string_equal(lines[0], "/s: 0 guests, 0 jobs");
}

static void view_of_guests_shows_dirty_rates_where_there_are(void **state) {
    (void)state;
    g_auto(GStrv) lines =
        view("[{'id':'a','driver':'process','state':'attached','pid':1,'jobs':0,'dirty-log':false},"
             "{'id':'b','driver':'qemu','state':'attached','pid':22,'jobs':0,'dirty-log':true},"
             "{'id':'c','driver':'qemu','state':'gone','pid':333,'jobs':0,'dirty-log':true,"
             "'dirty-pages-per-second':12345,'qmp-socket':'/q'}]",
             "[]");
    assert_int_equal(g_strv_length(lines), 6);
    assert_string_equal(lines[0], "/s: 3 guests, 0 jobs");
    assert_string_equal(lines[2], "GUEST                DRIVER         PID  STATE      DIRTY PAGES/S");
    assert_string_equal(lines[3], "a                    process          1  attached               -");
    assert_string_equal(lines[4], "b                    qemu            22  attached              on");
    assert_string_equal(lines[5], "c                    qemu           333  gone               12345");
}

static void view_of_a_save_shows_pages_faults_and_buffers(void **state) {
    (void)state;
    g_auto(GStrv) lines = view(
        "[]", "[{'id':'j','type':'snapshot-save','status':'running','target':'g','path':'/i','elapsed-ms':9.5,"
              "'current-progress':0,'total-progress':0,'save':{'phase':'sweeping','attempts':1,"
              "'pages':{'total':200,'done':50,'zero':1,'unchanged':2,'by-sweep':30,'by-fault':17},"
              "'bytes-written':1,'bytes-per-second':10485760,'faults':18,"
              "'fault-latency-us':{'p50':5.119,'p99':19.5,'p999':29,'max':1200.0,'histogram':[]},"
              "'buffers':{'in-use-bytes':1048576,'peak-bytes':2,'cap-bytes':67108864},"
              "'pause-us':1,'prepare-ms':1,'total-ms':1}}]");
    assert_int_equal(g_strv_length(lines), 7);
    assert_string_equal(lines[0], "/s: 0 guests, 1 job");
    assert_string_equal(lines[3], "j                    running   save    sweeping     25%   10.0 MiB/s  g");
    assert_string_equal(lines[4], "    pages    30 by the sweep, 17 by fault");
    assert_string_equal(lines[5], "    faults   18: half within 5.12 µs, 99 % 19.5 µs, longest 1.20 ms");
    assert_string_equal(lines[6], "    buffers  1.00 MiB of 64.0 MiB");
}

static void view_of_another_job_shows_its_path_and_error(void **state) {
    (void)state;
    g_auto(GStrv) lines = view(
        "[]", "[{'id':'v','type':'snapshot-verify','status':'concluded','path':'/i\\u001b[2J','elapsed-ms':2000,"
              "'current-progress':4194304,'total-progress':8388608,'error':'bad\\nend','code':'CORRUPT'}]");
    assert_int_equal(g_strv_length(lines), 5);
    assert_string_equal(lines[3], "v                    concluded verify  -            50%   2.00 MiB/s  /i?[2J");
    assert_string_equal(lines[4], "    failed   bad?end");
}

static void clip_cuts_by_columns_not_by_bytes(void **state) {
    (void)state;
    static const struct {
        const char *line;
        int columns;
        const char *clipped;
    } cases[] = {
        {"abc", 5, "abc"},   {"abc", 3, "abc"},          {"abc", 2, "ab"},    {"abc", 0, ""},
        {"", 0, ""},         {"5 µs", 3, "5 µ"},         {"5 µs", 4, "5 µs"}, {"日本", 3, "日"},
        {"日本", 4, "日本"}, {"e\u0301x", 1, "e\u0301"},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *clipped = screen_clip(cases[i].line, cases[i].columns);
        assert_string_equal(clipped, cases[i].clipped);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(view_of_nothing_is_a_head),
        cmocka_unit_test(view_of_guests_shows_dirty_rates_where_there_are),
        cmocka_unit_test(view_of_a_save_shows_pages_faults_and_buffers),
        cmocka_unit_test(view_of_another_job_shows_its_path_and_error),
        cmocka_unit_test(clip_cuts_by_columns_not_by_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
