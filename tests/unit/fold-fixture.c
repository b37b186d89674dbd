/* Chains that are merged, killed and looked at. See fold-fixture.h. */
#include "fold-fixture.h"

#include <signal.h>
#include <sys/wait.h>

static int copy_from_length; /* of the path that is copied, with its slash */
static const char *copy_to;

static int copy_one(const char *path, const struct stat *status, int type, struct FTW *place) {
    (void)place;
    char *data = NULL;
    size_t length = 0;
    g_autofree char *to = g_strconcat(copy_to, path + copy_from_length, NULL);
    if (type == FTW_D)
        return mkdir(to, 0700) == 0 || errno == EEXIST ? 0 : -1;
    if (!g_file_get_contents(path, &data, &length, NULL))
        return -1;
    int fd = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    gboolean good = fd >= 0 && write(fd, data, length) == (ssize_t)length && status->st_size == (off_t)length;
    close(fd);
    g_free(data);
    return good ? 0 : -1;
}

void fold_restore_chain(void **state) {
    g_autofree char *good = fix_path(state, "good"), *now = fix_path(state, "now");
    fix_remove(now);
    copy_from_length = (int)strlen(good);
    copy_to = now;
    assert_int_equal(nftw(good, copy_one, 16, FTW_PHYS), 0);
}

Chain *fold_make_chain(void **state, guint32 seed) {
    g_autofree char *good = fix_path(state, "good"), *now = fix_path(state, "now");
    Chain *chain = chain_new(seed);
    assert_int_equal(mkdir(good, 0700), 0);
    for (guint i = 0; i < FOLD_LEVELS; i++)
        chain_grow(chain, good);
    for (guint i = 0; i < FOLD_LEVELS; i++) {
        g_free(chain->levels[i].dir);
        chain->levels[i].dir = g_strdup_printf("%s/%u", now, i);
    }
    fold_restore_chain(state);
    return chain;
}

guint32 fold_seed(void) {
    guint32 seed = g_random_int();
    print_message("seed %u\n", seed);
    return seed;
}

void fold_check_folder(void **state, const Chain *chain, guint first) {
    g_autofree char *now = fix_path(state, "now");
    assert_int_equal(fix_count_entries(now), chain->n_levels - first);
}

void fold_check_levels(const Chain *chain, guint first) {
    for (guint i = first; i < chain->n_levels; i++)
        chain_check_dir(chain, i, chain->levels[i].dir);
}

guint fold_n_parents(const char *dir) {
    GError *error = NULL;
    g_autoptr(SnapImage) image = snap_image_open(dir, &error);
    expect_ok(image != NULL, error);
    return snap_image_info(image)->n_parents;
}

gboolean fold_act_fold(const Chain *chain, GError **error) {
    return snap_image_fold(chain->levels[0].dir, chain->levels[1].dir, error);
}

gboolean fold_act_recover(const Chain *chain, GError **error) {
    g_autofree char *folder = g_path_get_dirname(chain->levels[0].dir);
    return snap_image_fold_recover(folder, error);
}

gboolean fold_act_and_die(const Chain *chain, FoldAct act, int n) {
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        GError *error = NULL;
        fold_fuse_kill(n);
        _exit(act(chain, &error) ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status))
        assert_int_equal(WEXITSTATUS(status), 0);
    else
        assert_int_equal(WTERMSIG(status), SIGKILL);
    return WIFEXITED(status);
}

void fold_check_oldest(const Chain *chain) {
    GError *error = NULL;
    g_autoptr(SnapImage) image = snap_image_open(chain->levels[0].dir, &error);
    if (image) {
        chain_check_image(chain, 0, image);
        expect_ok(snap_image_verify(image, NULL, NULL, &error), error);
    } else if (error->code == SNAP_ERROR_INCOMPLETE) {
        expect_error(&error, SNAP_ERROR_INCOMPLETE, "being merged");
    } else {
        expect_error(&error, SNAP_ERROR_NOT_FOUND, chain->levels[0].dir);
    }
}

void fold_check_recovered(void **state, const Chain *chain) {
    gboolean merged = access(chain->levels[0].dir, F_OK) != 0;
    fold_check_folder(state, chain, merged ? 1 : 0);
    fold_check_levels(chain, merged ? 1 : 0);
    assert_int_equal(fold_n_parents(chain->levels[1].dir), merged ? 0 : 1);
}

void fold_check_untouched(void **state, const Chain *chain) {
    fold_check_folder(state, chain, 0);
    fold_check_levels(chain, 0);
}
