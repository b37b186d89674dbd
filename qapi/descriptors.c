/* Descriptors that clients pass: see descriptors.h. */
#include "descriptors.h"

#include "call.h"
#include "schema-handlers.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum { ARRIVED_MAX = 16 };

struct QapiDescriptors {
    GMutex lock;

    /* under lock */
    GArray *arrived; /* of int */
    GHashTable *named;
};

typedef struct {
    int fd;
    char *opaque; /* (nullable) */
} Member;

typedef struct {
    int64_t id;
    GArray *members; /* of Member */
} Fdset;

static void close_value(gpointer value) {
    close(GPOINTER_TO_INT(value));
}

static void close_element(gpointer element) {
    int *fd = element;
    if (*fd >= 0)
        close(*fd);
}

QapiDescriptors *qapi_descriptors_new(void) {
    QapiDescriptors *descriptors = g_new0(QapiDescriptors, 1);
    g_mutex_init(&descriptors->lock);
    descriptors->arrived = g_array_new(FALSE, FALSE, sizeof(int));
    g_array_set_clear_func(descriptors->arrived, close_element);
    descriptors->named = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, close_value);
    return descriptors;
}

void qapi_descriptors_free(QapiDescriptors *descriptors) {
    if (!descriptors)
        return;
    g_array_unref(descriptors->arrived);
    g_hash_table_unref(descriptors->named);
    g_mutex_clear(&descriptors->lock);
    g_free(descriptors);
}

void qapi_descriptors_arrived(QapiDescriptors *descriptors, int fd) {
    g_mutex_lock(&descriptors->lock);
    if (descriptors->arrived->len == ARRIVED_MAX)
        g_array_remove_index(descriptors->arrived, 0);
    g_array_append_val(descriptors->arrived, fd);
    g_mutex_unlock(&descriptors->lock);
}

void qapi_descriptors_forget_arrived(QapiDescriptors *descriptors) {
    g_mutex_lock(&descriptors->lock);
    g_array_set_size(descriptors->arrived, 0);
    g_mutex_unlock(&descriptors->lock);
}

static int next_arrived(QapiDescriptors *descriptors, GError **error) {
    int fd = -1;
    if (descriptors) {
        g_mutex_lock(&descriptors->lock);
        if (descriptors->arrived->len > 0) {
            int *first = &g_array_index(descriptors->arrived, int, 0);
            fd = *first;
            *first = -1;
            g_array_remove_index(descriptors->arrived, 0);
        }
        g_mutex_unlock(&descriptors->lock);
    }
    if (fd < 0)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "No file descriptor supplied via SCM_RIGHTS");
    return fd;
}

/* ---- by name --------------------------------------------------------------------------------------------- */

static gboolean fail_not_found(const char *name, GError **error) {
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "File descriptor named '%s' not found", name);
    return FALSE;
}

json_object *qmp_getfd(QapiCall *call, GError **error) {
    const char *name = qapi_string(call, "fdname");
    int fd = next_arrived(call->descriptors, error);
    if (fd < 0)
        return NULL;
    if (g_ascii_isdigit(name[0])) {
        close(fd);
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED,
                    "Parameter 'fdname' expects a name not starting with a digit");
        return NULL;
    }
    g_mutex_lock(&call->descriptors->lock);
    g_hash_table_replace(call->descriptors->named, g_strdup(name), GINT_TO_POINTER(fd));
    g_mutex_unlock(&call->descriptors->lock);
    return NULL;
}

static int take(QapiDescriptors *descriptors, const char *name) {
    gpointer key = NULL, value = NULL;
    gboolean found = FALSE;
    if (descriptors) {
        g_mutex_lock(&descriptors->lock);
        found = g_hash_table_steal_extended(descriptors->named, name, &key, &value);
        g_mutex_unlock(&descriptors->lock);
    }
    g_free(key);
    return found ? GPOINTER_TO_INT(value) : -1;
}

/* QEMU has other words for who uses a descriptor than for who closes it. */
int qapi_descriptors_take(QapiDescriptors *descriptors, const char *name, GError **error) {
    int fd = take(descriptors, name);
    if (fd < 0)
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "File descriptor named '%s' has not been found", name);
    return fd;
}

json_object *qmp_closefd(QapiCall *call, GError **error) {
    const char *name = qapi_string(call, "fdname");
    int fd = take(call->descriptors, name);
    if (fd >= 0)
        close(fd);
    else
        fail_not_found(name, error);
    return NULL;
}

/* ---- in sets --------------------------------------------------------------------------------------------- */

static void member_clear(gpointer element) {
    Member *member = element;
    close(member->fd);
    g_free(member->opaque);
}

static void fdset_free(gpointer element) {
    Fdset *set = element;
    g_array_unref(set->members);
    g_free(set);
}

GPtrArray *qapi_fdsets_new(void) {
    return g_ptr_array_new_with_free_func(fdset_free);
}

void qapi_fdsets_clear(QapiHelper *helper) {
    g_mutex_lock(&helper->lock);
    g_ptr_array_set_size(helper->fdsets, 0);
    g_mutex_unlock(&helper->lock);
}

static Fdset *find_set_locked(QapiHelper *helper, int64_t id) {
    for (guint i = 0; i < helper->fdsets->len; i++) {
        Fdset *set = helper->fdsets->pdata[i];
        if (set->id == id)
            return set;
    }
    return NULL;
}

/* The highest number first, as QEMU lists them. */
static Fdset *add_set_locked(QapiHelper *helper, int64_t id) {
    Fdset *set = g_new0(Fdset, 1);
    set->id = id;
    set->members = g_array_new(FALSE, FALSE, sizeof(Member));
    g_array_set_clear_func(set->members, member_clear);
    guint at = 0;
    while (at < helper->fdsets->len && ((const Fdset *)helper->fdsets->pdata[at])->id > id)
        at++;
    g_ptr_array_insert(helper->fdsets, (gint)at, set);
    return set;
}

static int64_t free_id_locked(QapiHelper *helper) {
    int64_t id = 0;
    while (find_set_locked(helper, id))
        id++;
    return id;
}

json_object *qmp_add_fd(QapiCall *call, GError **error) {
    int64_t id = qapi_int(call, "fdset-id", 0);
    int fd = next_arrived(call->descriptors, error);
    if (fd < 0)
        return NULL;
    if (id < 0) {
        close(fd);
        g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Parameter 'fdset-id' expects a non-negative value");
        return NULL;
    }
    g_mutex_lock(&call->helper->lock);
    if (!qapi_has(call, "fdset-id"))
        id = free_id_locked(call->helper);
    Fdset *set = find_set_locked(call->helper, id);
    Member member = {.fd = fd, .opaque = g_strdup(qapi_string(call, "opaque"))};
    g_array_append_val((set ? set : add_set_locked(call->helper, id))->members, member);
    g_mutex_unlock(&call->helper->lock);

    json_object *result = json_object_new_object();
    qapi_json_add(result, "fdset-id", json_object_new_int64(id));
    qapi_json_add(result, "fd", json_object_new_int64(fd));
    return result;
}

static gboolean remove_locked(QapiHelper *helper, Fdset *set, gboolean all, int64_t fd) {
    if (!set)
        return FALSE;
    guint before = set->members->len;
    for (guint i = set->members->len; i-- > 0;)
        if (all || g_array_index(set->members, Member, i).fd == fd)
            g_array_remove_index(set->members, i);
    gboolean removed = all || set->members->len < before;
    if (set->members->len == 0)
        g_ptr_array_remove(helper->fdsets, set);
    return removed;
}

json_object *qmp_remove_fd(QapiCall *call, GError **error) {
    int64_t id = qapi_int(call, "fdset-id", 0), fd = qapi_int(call, "fd", 0);
    gboolean one = qapi_has(call, "fd");
    g_mutex_lock(&call->helper->lock);
    gboolean removed = remove_locked(call->helper, find_set_locked(call->helper, id), !one, fd);
    g_mutex_unlock(&call->helper->lock);
    g_autofree char *name = one ? g_strdup_printf("fdset-id:%" G_GINT64_FORMAT ", fd:%" G_GINT64_FORMAT, id, fd)
                                : g_strdup_printf("fdset-id:%" G_GINT64_FORMAT, id);
    if (!removed)
        fail_not_found(name, error);
    return NULL;
}

json_object *qmp_query_fdsets(QapiCall *call, GError **error) {
    (void)error;
    json_object *sets = json_object_new_array();
    g_mutex_lock(&call->helper->lock);
    for (guint i = 0; i < call->helper->fdsets->len; i++) {
        const Fdset *set = call->helper->fdsets->pdata[i];
        json_object *fds = json_object_new_array(), *object = json_object_new_object();
        for (guint j = 0; j < set->members->len; j++) {
            const Member *member = &g_array_index(set->members, Member, j);
            json_object *about = json_object_new_object();
            qapi_json_add(about, "fd", json_object_new_int64(member->fd));
            qapi_json_add_string(about, "opaque", member->opaque);
            json_object_array_add(fds, about);
        }
        qapi_json_add(object, "fdset-id", json_object_new_int64(set->id));
        qapi_json_add(object, "fds", fds);
        json_object_array_add(sets, object);
    }
    g_mutex_unlock(&call->helper->lock);
    return sets;
}

/* ---- as files -------------------------------------------------------------------------------------------- */

/* Return: (out) a duplicate that can be written; -1 with errno. */
static int duplicate_locked(const Fdset *set) {
    for (guint i = 0; set && i < set->members->len; i++) {
        int fd = g_array_index(set->members, Member, i).fd;
        int flags = fcntl(fd, F_GETFL);
        if (flags >= 0 && (flags & O_ACCMODE) != O_RDONLY)
            return fcntl(fd, F_DUPFD_CLOEXEC, 0);
    }
    errno = set ? EACCES : ENOENT;
    return -1;
}

static int open_fdset(QapiHelper *helper, const char *number) {
    guint64 id = 0;
    if (!g_ascii_string_to_unsigned(number, 10, 0, G_MAXINT64, &id, NULL)) {
        errno = ENOENT;
        return -1;
    }
    g_mutex_lock(&helper->lock);
    int fd = duplicate_locked(find_set_locked(helper, (int64_t)id));
    g_mutex_unlock(&helper->lock);
    return fd;
}

/* FALSE with errno. */
static gboolean can_be_made(const char *path) {
    g_autofree char *folder = g_path_get_dirname(path);
    if (!g_file_test(path, G_FILE_TEST_IS_DIR))
        return access(folder, W_OK | X_OK) == 0;
    errno = EISDIR;
    return FALSE;
}

QapiOutput *qapi_open_file(QapiHelper *helper, const char *path, GError **error) {
    static const char prefix[] = "/dev/fdset/";
    if (g_str_has_prefix(path, prefix)) {
        int fd = open_fdset(helper, path + strlen(prefix));
        if (fd >= 0)
            return qapi_output_new_fd(fd);
    } else if (!path[0]) {
        errno = ENOENT;
    } else {
        g_autofree char *absolute = qapi_path(helper, path);
        if (can_be_made(absolute))
            return qapi_output_open(absolute, error);
    }
    g_set_error(error, SNAP_ERROR, SNAP_ERROR_FAILED, "Could not open '%s': %s", path, g_strerror(errno));
    return NULL;
}
