/* Output: see output.h. */
#include "output.h"

#include "libsnap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* A name beside @name that nobody uses; the file is made, readable by its owner only, as guest memory should be.
 */
static gboolean open_beside(QapiOutput *output, GError **error) {
    g_autofree char *path = g_strdup_printf("%s.part-XXXXXX", output->name);
    output->fd = g_mkstemp_full(path, O_RDWR | O_CLOEXEC, S_IRUSR | S_IWUSR);
    if (output->fd < 0) {
        snap_set_errno(error, errno, "%s: cannot create it", output->name);
        return FALSE;
    }
    output->path = g_steal_pointer(&path);
    output->sparse = TRUE;
    return TRUE;
}

static gboolean open_as_it_is(QapiOutput *output, GError **error) {
    output->fd = open(output->name, O_WRONLY | O_CLOEXEC);
    if (output->fd < 0)
        snap_set_errno(error, errno, "%s: cannot open it", output->name);
    return output->fd >= 0;
}

static gboolean open_standard_output(QapiOutput *output, GError **error) {
    output->fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    if (output->fd < 0)
        snap_set_errno(error, errno, "standard output");
    return output->fd >= 0;
}

QapiOutput *qapi_output_open(const char *name, GError **error) {
    g_autoptr(QapiOutput) output = g_new0(QapiOutput, 1);
    output->fd = -1;
    output->name = g_strdup(name);

    struct stat found;
    gboolean exists = stat(name, &found) == 0;
    gboolean opened = FALSE;
    if (g_str_equal(name, "-"))
        opened = open_standard_output(output, error);
    else if (exists && S_ISDIR(found.st_mode))
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_EXISTS, "%s: is a directory", name);
    else if (exists && !S_ISREG(found.st_mode))
        opened = open_as_it_is(output, error);
    else
        opened = open_beside(output, error);
    return opened ? g_steal_pointer(&output) : NULL;
}

QapiOutput *qapi_output_new_fd(int fd) {
    QapiOutput *output = g_new0(QapiOutput, 1);
    output->fd = fd;
    output->name = g_strdup_printf("/proc/self/fd/%d", fd);
    return output;
}

gboolean qapi_output_commit(QapiOutput *output, GError **error) {
    if (output->path && fsync(output->fd) < 0) {
        snap_set_errno(error, errno, "%s: fsync", output->name);
        return FALSE;
    }
    int fd = output->fd;
    output->fd = -1;
    if (close(fd) < 0) {
        snap_set_errno(error, errno, "%s: close", output->name);
        return FALSE;
    }
    if (output->path && rename(output->path, output->name) < 0) {
        snap_set_errno(error, errno, "%s: rename", output->name);
        return FALSE;
    }
    g_clear_pointer(&output->path, g_free);
    return TRUE;
}

void qapi_output_free(QapiOutput *output) {
    if (!output)
        return;
    if (output->fd >= 0)
        close(output->fd);
    if (output->path)
        unlink(output->path);
    g_free(output->path);
    g_free(output->name);
    g_free(output);
}
