/* TCP connections and the small messages that go over them: a header of 16 bytes, then `bytes` bytes.
 *
 * Every machine of a run has the byte order of the others (little-endian, as the files have it). */
#ifndef LIB_SOCKET_H
#define LIB_SOCKET_H

#include "clock.h"
#include "error.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ADDRESS_BYTES = 64 };  // of a numeric address, IPv4 or IPv6

/* "HOST:PORT" or "[IPv6]:PORT". */
static inline int socket_split(const char *text, char *host, size_t size, int *port, Error *err) {
    const char *colon = strrchr(text, ':');
    size_t length = colon ? (size_t)(colon - text) : 0;
    char *end = NULL;
    long number = colon ? strtol(colon + 1, &end, 10) : 0;
    if (length > 1 && text[0] == '[' && text[length - 1] == ']') text++, length -= 2;
    if (!length || length >= size || number < 1 || number > 65535 || *end)
        return error_set(err, "'%.200s' names no meeting point; expected HOST:PORT with a port from 1 to 65535",
                         text);
    memcpy(host, text, length);
    host[length] = '\0';
    *port = (int)number;
    return 0;
}

/* The addresses of a host (NULL: this machine's, to listen on). The caller frees them with freeaddrinfo. */
static inline struct addrinfo *socket_resolve(const char *host, int port, Error *err) {
    struct addrinfo hints, *found = NULL;
    char service[16];
    memset(&hints, 0, sizeof hints);
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_NUMERICSERV | (host ? 0 : AI_PASSIVE);
    snprintf(service, sizeof service, "%d", port);
    int status = getaddrinfo(host, service, &hints, &found);
    if (status == 0) return found;
    error_set(err, "the host '%.200s' is not known: %s", host ? host : "", gai_strerror(status));
    return NULL;
}

/* Messages are small and wait for each other: none may be held back to be sent with the next. */
static inline void socket_at_once(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static inline int socket_listen_on(const struct addrinfo *a) {
    int on = 1, off = 0, fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (a->ai_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);  // IPv4 too
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0) return fd;
    int error_number = errno;
    close(fd);
    errno = error_number;
    return -1;
}

/* Listens on one numeric address of this machine, or on all (NULL); port 0: one that is free. The socket, or -1. */
static inline int socket_listen(const char *address, int port, Error *err) {
    struct addrinfo *list = socket_resolve(address, port, err);
    int fd = -1, error_number = EADDRNOTAVAIL;
    if (!list) return -1;
    for (int family = 0; family < 2 && fd < 0; family++)  // IPv6 first: on all addresses it takes IPv4 as well
        for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
            if ((a->ai_family == AF_INET6) != (family == 0)) continue;
            fd = socket_listen_on(a);
            if (fd < 0 && errno != EAFNOSUPPORT) error_number = errno;
        }
    freeaddrinfo(list);
    errno = error_number;
    if (fd < 0)
        error_set(err, "cannot listen on %s port %d: %s%s", address ? address : "any address,", port,
                  strerror(error_number),
                  error_number == EADDRINUSE ? "; another process has it, perhaps one with the same --rank 0" : "");
    return fd;
}

/* The address and port of this end of a connection (or of a listening socket), or of the other end. */
static inline int socket_name(int fd, bool other_end, char address[ADDRESS_BYTES]) {
    struct sockaddr_storage name;
    socklen_t size = sizeof name;
    char host[NI_MAXHOST], service[NI_MAXSERV];
    int status = other_end ? getpeername(fd, (struct sockaddr *)&name, &size)
                           : getsockname(fd, (struct sockaddr *)&name, &size);
    if (status || getnameinfo((struct sockaddr *)&name, size, host, sizeof host, service, sizeof service,
                              NI_NUMERICHOST | NI_NUMERICSERV)) {
        address[0] = '\0';
        return 0;
    }
    bool mapped = !strncmp(host, "::ffff:", 7) && strchr(host, '.');  // IPv4 that came to an IPv6 socket
    snprintf(address, ADDRESS_BYTES, "%.*s", ADDRESS_BYTES - 1, mapped ? host + 7 : host);
    return atoi(service);
}

static inline bool address_is_loopback(const char *address) {
    return !strncmp(address, "127.", 4) || !strcmp(address, "::1") || !*address;
}

static inline int socket_connect_to(const struct addrinfo *a, double until) {
    int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
    if (fd < 0) return -1;
    int failed = connect(fd, a->ai_addr, a->ai_addrlen) ? errno : 0;
    if (failed == EINPROGRESS) {
        struct pollfd p = {fd, POLLOUT, 0};
        socklen_t size = sizeof failed;
        double left = until - seconds_now();
        failed = ETIMEDOUT;
        if (poll(&p, 1, left > 0 ? (int)(left * 1000) : 0) == 1) getsockopt(fd, SOL_SOCKET, SO_ERROR, &failed, &size);
    }
    if (failed) {
        close(fd);
        errno = failed;
        return -1;
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    socket_at_once(fd);
    return fd;
}

/* Connects to a host, in one try on each of its addresses. The socket, or -1. `until`: on the clock of seconds_now.
 */
static inline int socket_connect(const char *host, int port, double until, Error *err) {
    struct addrinfo *list = socket_resolve(host, port, err);
    int fd = -1;
    if (!list) return -1;
    for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) fd = socket_connect_to(a, until);
    if (fd < 0) error_set(err, "%s", strerror(errno));
    freeaddrinfo(list);
    return fd;
}

/* ---- messages ---- */

enum { MESSAGE_MAGIC = 0x31635a54, MESSAGE_LONGEST = 64 << 20 };

typedef struct {
    uint32_t magic, kind, rank, bytes;
} MessageHeader;

/* A connection from which messages are read as their bytes come in, by one thread. */
typedef struct {
    int fd;        // -1: none
    double heard;  // when bytes last came
    size_t have;   // bytes of header and body that are there
    MessageHeader header;
    char *body;  // header.bytes, and a zero
} Connection;

static inline void connection_begin(Connection *c, int fd) {
    memset(c, 0, sizeof *c);
    c->fd = fd;
    c->heard = seconds_now();
}

static inline void connection_close(Connection *c) {
    if (c->fd >= 0) close(c->fd);
    free(c->body);
    memset(c, 0, sizeof *c);
    c->fd = -1;
}

typedef enum { READ_MORE, READ_MESSAGE, READ_END, READ_STRANGE } ReadResult;

/* Reads what is there, at most one message and not a byte after it. READ_MESSAGE: header and body are whole, and stay
 * so until the next call. READ_STRANGE: what came is not a message; longest: more bytes than this are strange too. */
static inline ReadResult connection_read(Connection *c, size_t longest) {
    const size_t head = sizeof c->header;
    if (c->have >= head && c->have == head + c->header.bytes) {  // that was the last message
        free(c->body);
        c->body = NULL;
        c->have = 0;
    }
    for (;;) {
        bool in_head = c->have < head;
        size_t total = in_head ? head : head + c->header.bytes;
        char *to = in_head ? (char *)&c->header + c->have : c->body + (c->have - head);
        ssize_t n = recv(c->fd, to, total - c->have, MSG_DONTWAIT);
        if (n == 0) return READ_END;
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK ? READ_MORE : READ_END;
        c->heard = seconds_now();
        c->have += (size_t)n;
        if (in_head && c->have == head) {
            if (c->header.magic != MESSAGE_MAGIC || c->header.bytes > longest) return READ_STRANGE;
            c->body = (char *)xcalloc((size_t)c->header.bytes + 1, 1);
        }
        if (c->have >= head && c->have == head + c->header.bytes) return READ_MESSAGE;
    }
}

static inline int socket_write(int fd, const void *data, size_t bytes) {
    for (const char *p = (const char *)data; bytes;) {
        ssize_t n = send(fd, p, bytes, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -1;
        p += n;
        bytes -= (size_t)n;
    }
    return 0;
}

/* Waits for room as long as the socket's send timeout says. -1: it did not all go out; the reader's side will tell.
 */
static inline int message_send(int fd, int kind, int rank, const void *body, size_t bytes) {
    MessageHeader h = {MESSAGE_MAGIC, (uint32_t)kind, (uint32_t)rank, (uint32_t)bytes};
    return socket_write(fd, &h, sizeof h) || socket_write(fd, body, bytes) ? -1 : 0;
}

#endif
