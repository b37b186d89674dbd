/*
 * The process behind a unix socket.
 *
 * Happy path: the kernel's socket diagnosis names the inode of the socket that ours is connected to; the process
 * that SO_PEERCRED names has it among its descriptors.
 *
 * Otherwise all processes' descriptors are looked through. Failure modes: a kernel without the diagnosis (then
 * SO_PEERCRED is all there is); nobody's descriptors may be read; the connection is not accepted yet, so that the
 * socket has no inode (not after a greeting was read).
 */
#include "peer.h"

#include <dirent.h>
#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* The answer to a request about one socket: the attribute UNIX_DIAG_PEER in it. */
static uint64_t parse_peer(const void *answer, size_t length) {
    const struct nlmsghdr *head = answer;
    if (!NLMSG_OK(head, length) || head->nlmsg_type != SOCK_DIAG_BY_FAMILY)
        return 0;
    const struct unix_diag_msg *message = NLMSG_DATA(head);
    const struct rtattr *attribute = (const void *)(message + 1);
    size_t left = NLMSG_PAYLOAD(head, sizeof(*message));
    for (; RTA_OK(attribute, left); attribute = RTA_NEXT(attribute, left)) {
        uint32_t inode;
        if (attribute->rta_type != UNIX_DIAG_PEER || RTA_PAYLOAD(attribute) < sizeof(inode))
            continue;
        memcpy(&inode, RTA_DATA(attribute), sizeof(inode));
        return inode;
    }
    return 0;
}

/* The inode of the socket that @fd is connected to; 0 where it is not known. */
static uint64_t peer_inode(int fd) {
    struct stat about;
    int diag = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    if (diag < 0 || fstat(fd, &about) < 0) {
        if (diag >= 0)
            close(diag);
        return 0;
    }
    struct {
        struct nlmsghdr head;
        struct unix_diag_req request;
    } ask = {
        .head = {.nlmsg_len = sizeof(ask), .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST},
        .request = {.sdiag_family = AF_UNIX,
                    .udiag_states = UINT32_MAX,
                    .udiag_ino = (uint32_t)about.st_ino,
                    .udiag_show = UDIAG_SHOW_PEER,
                    .udiag_cookie = {UINT32_MAX, UINT32_MAX}},
    };
    union {
        struct nlmsghdr head;
        char bytes[1024];
    } answer;
    ssize_t got = -1;
    if (send(diag, &ask, sizeof(ask), 0) == (ssize_t)sizeof(ask))
        got = recv(diag, &answer, sizeof(answer), 0);
    close(diag);
    return got > 0 ? parse_peer(&answer, (size_t)got) : 0;
}

static gboolean process_has_socket(int pid, uint64_t inode) {
    g_autofree char *folder = g_strdup_printf("/proc/%d/fd", pid);
    g_autofree char *want = g_strdup_printf("socket:[%" G_GUINT64_FORMAT "]", inode);
    DIR *dir = opendir(folder);
    gboolean found = FALSE;
    if (!dir)
        return FALSE;
    for (struct dirent *entry; !found && (entry = readdir(dir));) {
        char target[64];
        ssize_t length = readlinkat(dirfd(dir), entry->d_name, target, sizeof(target) - 1);
        if (length < 0)
            continue;
        target[length] = '\0';
        found = g_str_equal(target, want);
    }
    closedir(dir);
    return found;
}

static int search_processes(uint64_t inode) {
    DIR *dir = opendir("/proc");
    int found = -1;
    if (!dir)
        return -1;
    for (struct dirent *entry; found < 0 && (entry = readdir(dir));) {
        int pid = atoi(entry->d_name);
        if (pid > 0 && process_has_socket(pid, inode))
            found = pid;
    }
    closedir(dir);
    return found;
}

int peer_find_pid(int fd, GError **error) {
    struct ucred peer = {0};
    socklen_t length = sizeof(peer);
    gboolean named = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.pid > 0;
    uint64_t inode = peer_inode(fd);
    if (named && (inode == 0 || process_has_socket(peer.pid, inode)))
        return peer.pid;
    int pid = inode ? search_processes(inode) : -1;
    if (pid < 0)
        g_set_error(
            error, SNAP_ERROR, SNAP_ERROR_NOT_FOUND,
            "the process behind the QMP socket was not found: does it run in another PID namespace, or as a "
            "user whose processes may not be read?");
    return pid;
}
