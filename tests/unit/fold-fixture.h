/*
 * What the tests of merging in place share: libc with a fuse, a book about what is on disk, and chains that are
 * merged, killed and looked at.
 *
 * The linker puts the functions of fold-libc.c in the place of libc's (--wrap), so the code under test is what
 * ships. Only one test runs at a time.
 */
#pragma once

#include "chain-fixture.h"

#define FOLD_LEVELS 4u

/* ---- fold-libc.c ----------------------------------------------------------------------------------------- */

/* From here on the @n-th call that changes something fails with @errnum. */
void fold_fuse_fail(int n, int errnum);
/* The same, but it kills this process, in the middle of what it does. */
void fold_fuse_kill(int n);
/* Nothing fails from here on. Return: TRUE when the fuse had blown. */
gboolean fold_fuse_take_out(void);

/* Whether there is an io_uring; without, all that is written is a call of its own. */
void fold_allow_uring(gboolean allowed);

/*
 * Note what has been changed and not been fsynced, and fail the test when a step that others rely on is taken
 * before what it relies on is on disk. @folder: where the images are.
 */
void fold_book_open(const char *folder);
/* Return: how often directories were exchanged meanwhile. */
int fold_book_close(void);

/* Have @act called just before the lock on the directory that now is at @dir is taken; once. */
void fold_before_lock(const char *dir, void (*act)(void));
gboolean fold_before_lock_is_due(void);

/* ---- fold-fixture.c -------------------------------------------------------------------------------------- */

/* A seed, which is printed. */
guint32 fold_seed(void);
/* A random chain of FOLD_LEVELS in NAME/good; its directories are said to be in NAME/now, where a copy is. */
Chain *fold_make_chain(void **state, guint32 seed);
/* Put a fresh copy of NAME/good to NAME/now. */
void fold_restore_chain(void **state);

typedef gboolean (*FoldAct)(const Chain *chain, GError **error);
/* Merge the oldest image into the next one; go on with what was interrupted. */
gboolean fold_act_fold(const Chain *chain, GError **error);
gboolean fold_act_recover(const Chain *chain, GError **error);
/* Run @act in a process of its own that is killed at its @n-th system call. TRUE: it came to its end before. */
gboolean fold_act_and_die(const Chain *chain, FoldAct act, int n);

/* Nothing beside the images from @first on. */
void fold_check_folder(void **state, const Chain *chain, guint first);
/* Images from @first on read as they should. */
void fold_check_levels(const Chain *chain, guint first);
/* The oldest image is whole or says that it is none; and whole if the next one needs it and nothing is marked. */
void fold_check_oldest(const Chain *chain);
/* After what was interrupted has been finished or undone. */
void fold_check_recovered(void **state, const Chain *chain);
void fold_check_untouched(void **state, const Chain *chain);
/* How many images there are below the one at @dir. */
guint fold_n_parents(const char *dir);
