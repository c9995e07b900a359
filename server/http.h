/* HTTP: libmicrohttpd's connections on one side, jobs on the other. One thread of the library's serves all connections; one
 * that waits for its job is suspended, and the job's worker resumes it. */
#ifndef SERVER_HTTP_H
#define SERVER_HTTP_H

#include "exchange.h"
#include "request.h"

#include <arpa/inet.h>
#include <netdb.h>

enum { HTTP_BODIES = 16 };  // so many times the longest body may be in memory

/* ---- the job's answer ---- */

/* Callback of the library: copies events into its buffer; without any, the connection is suspended until there are. */
static inline ssize_t http_read_events(void *context, uint64_t position, char *buffer, size_t capacity) {
    Exchange *x = (Exchange *)context;
    Job *j = x->job;
    (void)position;
    pthread_mutex_lock(&j->lock);
    size_t n = j->event_bytes - j->event_sent;
    if (n > capacity) n = capacity;
    memcpy(buffer, j->events + j->event_sent, n);
    j->event_sent += n;
    x->bytes += n;
    if (j->event_sent == j->event_bytes) j->event_sent = j->event_bytes = 0;
    const bool over = n == 0 && j->done;
    if (n == 0 && !over) {
        j->suspended = true;
        MHD_suspend_connection((struct MHD_Connection *)j->connection);
    }
    pthread_mutex_unlock(&j->lock);
    return over ? MHD_CONTENT_READER_END_OF_STREAM : (ssize_t)n;
}

static inline enum MHD_Result http_stream(Exchange *x, struct MHD_Connection *c) {
    struct MHD_Response *r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 4096, http_read_events, x, NULL);
    http_headers(x->server, r, "text/event-stream; charset=utf-8");
    http_header(r, "Cache-Control", "no-store");
    http_header(r, "X-Accel-Buffering", "no");
    return http_queue(x, c, 200, r);
}

/* Sends what the job has; where it has nothing yet, the connection is suspended. */
static inline enum MHD_Result http_continue(Exchange *x, struct MHD_Connection *c) {
    Job *j = x->job;
    pthread_mutex_lock(&j->lock);
    const bool done = j->done, started = j->started;
    if (!done && !started) {
        j->suspended = true;
        MHD_suspend_connection(c);
    }
    pthread_mutex_unlock(&j->lock);
    if (started) return http_stream(x, c);
    if (!done) return MHD_YES;
    if (j->status == 499) return MHD_NO;  // the client has gone
    char *answer = j->answer;
    j->answer = NULL;
    return http_answer(x, c, j->status, j->type, answer, j->answer_bytes);
}

/* ---- a request begins ---- */

/* Compares a key in a time that does not depend on where it differs. */
static inline bool http_same_key(const char *given, const char *key) {
    const size_t n = strlen(given), m = strlen(key);
    unsigned different = n != m;
    for (size_t i = 0; i < n; i++) different |= (unsigned char)given[i] ^ (unsigned char)key[m ? i % m : 0];
    return !different;
}

static inline bool http_allowed(const Server *server, const Route *route, struct MHD_Connection *c) {
    if (!server->o.api_key || route->open) return true;
    const char *given = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Authorization");
    return given && !strncasecmp(given, "Bearer ", 7) && http_same_key(given + 7, server->o.api_key);
}

/* Finds the route; *allow: the methods of the path. */
static inline const Route *http_route(Exchange *x, const char *method, char *allow, size_t capacity,
                                      const char **rest) {
    const bool head = !strcmp(method, "HEAD");
    bool known = false;
    *allow = '\0';
    for (int i = 0; i < ROUTES; i++) {
        const char *segment;
        if (!route_matches(&routes[i], x->path, &segment)) continue;
        known = true;
        *rest = segment;
        if (!strcmp(routes[i].method, method) || (head && !strcmp(routes[i].method, "GET"))) return &routes[i];
        snprintf(allow, capacity, "%s", strcmp(routes[i].method, "GET") ? routes[i].method : "GET, HEAD");
    }
    if (!known && (!strcmp(method, "GET") || head)) return &route_file;
    if (!known) snprintf(allow, capacity, "GET, HEAD");
    return NULL;
}

/* What a browser asks before it sends a request of another page's. */
static inline enum MHD_Result http_preflight(Exchange *x, struct MHD_Connection *c) {
    struct MHD_Response *r = MHD_create_response_from_buffer(0, (void *)"", MHD_RESPMEM_PERSISTENT);
    http_headers(x->server, r, "text/plain");
    http_header(r, "Access-Control-Allow-Methods", "GET, POST");
    http_header(r, "Access-Control-Allow-Headers", "Authorization, Content-Type");
    http_header(r, "Access-Control-Max-Age", "600");
    return http_queue(x, c, 204, r);
}

/* What the headers say of the body's length; 0: nothing. */
static inline unsigned long long http_body_bytes(struct MHD_Connection *c) {
    const char *length = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Content-Length");
    return length ? strtoull(length, NULL, 10) : 0;
}

/* Whether the client sends a body without waiting for a word (Expect), and not one so long that it is not worth receiving. */
static inline bool http_is_sending(const Server *server, struct MHD_Connection *c) {
    const unsigned long long bytes = http_body_bytes(c);
    const bool chunked = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Transfer-Encoding") != NULL;
    return (bytes || chunked) && bytes <= HTTP_BODIES * server->o.max_body &&
           !MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Expect");
}

/* Checks what can be known before the body comes, and makes the job. */
static inline enum MHD_Result http_begin_job(Exchange *x, struct MHD_Connection *c, const char *rest) {
    Server *server = x->server;
    const char *type = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Content-Type");
    const bool form = request_is_form(type), json = request_is_of_type(type, "application/json");
    const bool takes_form = x->route->request == FOR_CONVERT || x->route->request == FOR_FILE,
               takes_json = x->route->request != FOR_FILE;
    char *end = NULL;
    const long width = rest ? strtol(rest, &end, 10) : 1;
    if (server_stopping(server))
        return http_error(x, c, 503, "Retry-After", "10", "the server is stopping and takes no new requests");
    if (!(form && takes_form) && !(json && takes_json))
        return http_error(x, c, 415, NULL, NULL, "the body must be %s, not %.60s",
                          !takes_json   ? "a form (multipart/form-data)"
                          : !takes_form ? "application/json"
                                        : "application/json or multipart/form-data",
                          type ? type : "without a type");
    if (rest && (*end || width < 1 || width > 16))
        return http_error(x, c, 422, NULL, NULL, "the beam width must be a number from 1 to 16, not %.40s", rest);
    const unsigned long long bytes = http_body_bytes(c);
    if (bytes > server->o.max_body)
        return http_error(x, c, 413, NULL, NULL, "the body has %llu bytes; at most %zu are taken here", bytes,
                          server->o.max_body);
    x->job = server_job(server, x->route);
    x->job->content_type = xstrdup(type);
    x->job->beam_width = (int)width;
    x->job->connection = c;
    x->job->wake = (void (*)(void *))MHD_resume_connection;
    x->job->descriptor = MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    return MHD_YES;
}

static inline enum MHD_Result http_begin(Exchange *x, struct MHD_Connection *c, const char *method) {
    char allow[40];
    const char *rest = NULL;
    Server *server = x->server;
    if (x->zero) return http_error(x, c, 400, NULL, NULL, "the path has a zero byte");
    if (!strcmp(method, "OPTIONS") && server->o.cors) return http_preflight(x, c);
    x->route = http_route(x, method, allow, sizeof allow, &rest);
    if (!x->route) return http_error(x, c, 405, "Allow", allow, "%.20s is not possible here; %s is", method, allow);
    if (!http_allowed(server, x->route, c))
        return http_error(x, c, 401, "WWW-Authenticate", "Bearer",
                          "this server asks for its key: send the header Authorization: Bearer KEY");
    return x->route->request ? http_begin_job(x, c, rest) : MHD_YES;
}

/* ---- the body ---- */

/* Adds a piece of the body; the memory of all bodies together is limited. */
static inline enum MHD_Result http_add_body(Exchange *x, const char *data, size_t n) {
    Server *server = x->server;
    Job *j = x->job;
    x->cut |= j->body_bytes + n > server->o.max_body;
    x->full |= __atomic_load_n(&server->bodies, __ATOMIC_RELAXED) > (int64_t)(HTTP_BODIES * server->o.max_body);
    if (x->cut || x->full) return MHD_YES;
    if (j->body_bytes + n + 1 > j->body_capacity) {
        const size_t before = j->body_capacity;
        j->body_capacity = 2 * (j->body_bytes + n) + 1024;
        __atomic_fetch_add(&server->bodies, (int64_t)(j->body_capacity - before), __ATOMIC_RELAXED);
        j->body = (char *)xrealloc(j->body, j->body_capacity);
    }
    memcpy(j->body + j->body_bytes, data, n);
    j->body_bytes += n;
    j->body[j->body_bytes] = '\0';
    return MHD_YES;
}

/* The body is there: the job sets out. */
static inline enum MHD_Result http_submit(Exchange *x, struct MHD_Connection *c) {
    Server *server = x->server;
    if (x->cut)
        return http_error(x, c, 413, NULL, NULL, "the body is too long; at most %zu bytes are taken here",
                          server->o.max_body);
    if (x->full)
        return http_error(x, c, 503, "Retry-After", "5",
                          "the bodies of other requests fill the memory for them; try again");
    if (!x->job->body_bytes) return http_error(x, c, 400, NULL, NULL, "the request has no body");
    const bool entered = server_enter(server, x->job);
    if (!entered && server_stopping(server))
        return http_error(x, c, 503, "Retry-After", "10", "the server is stopping and takes no new requests");
    if (!entered)
        return http_error(x, c, 429, "Retry-After", "2",
                          "%d requests are waiting or worked on, and no more are taken; try again", server->o.queue);
    x->submitted = true;
    queue_push(&server->readers, x->job);
    return http_continue(x, c);
}

/* ---- what the library calls ---- */

/* A request begins: its first line is there, as the client wrote it. */
static inline void *http_on_uri(void *context, const char *uri, struct MHD_Connection *c) {
    Exchange *x = (Exchange *)xcalloc(1, sizeof *x);
    (void)c;
    const char *zero = strstr(uri, "%00"), *query = strchr(uri, '?');
    x->zero = zero && !(query && query < zero);
    x->server = (Server *)context;
    x->began = seconds_now();
    return x;
}

/* Notes that the connection's request has all its headers, or has ended. */
static inline void http_note(Server *server, struct MHD_Connection *c, bool asking) {
    Connection *v = (Connection *)MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
    pthread_mutex_lock(&server->lock);
    v->asking = asking;
    v->since = seconds_now();
    pthread_mutex_unlock(&server->lock);
}

static inline enum MHD_Result http_on_request(void *context, struct MHD_Connection *c, const char *path,
                                              const char *method, const char *version, const char *data, size_t *size,
                                              void **state) {
    Exchange *x = (Exchange *)*state;
    (void)context, (void)version;
    if (!x->path) {  // the headers are there
        http_note(x->server, c, true);
        x->path = xstrdup(path);
        x->method = method;
        x->sending = http_is_sending(x->server, c);
        return http_begin(x, c, method);
    }
    if (*size) {
        const size_t n = *size;
        *size = 0;
        if (seconds_now() - x->began > x->server->o.timeout)
            return MHD_NO;  // sent too slowly; no answer can be sent in its middle
        if (x->refused) return MHD_YES;
        return x->job ? http_add_body(x, data, n) : MHD_YES;
    }
    x->sending = false;
    if (x->waits) {
        struct MHD_Response *r = x->waits;
        x->waits = NULL;
        return http_queue(x, c, x->status, r);
    }
    if (x->refused) return MHD_YES;
    if (!x->job) return http_get(x, c);
    return x->submitted ? http_continue(x, c) : http_submit(x, c);
}

/* One line on stderr: who asked for what, and how it was answered. */
static inline void http_log(const Exchange *x, struct MHD_Connection *c, int status, double seconds) {
    char address[INET6_ADDRSTRLEN] = "-", asked[224];
    const struct sockaddr *a = MHD_get_connection_info(c, MHD_CONNECTION_INFO_CLIENT_ADDRESS)->client_addr;
    if (a->sa_family == AF_INET)
        inet_ntop(AF_INET, &((const struct sockaddr_in *)a)->sin_addr, address, sizeof address);
    if (a->sa_family == AF_INET6)
        inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)a)->sin6_addr, address, sizeof address);
    const int method = snprintf(asked, sizeof asked, "%.20s", x->method);
    snprintf(asked + method, sizeof asked - (size_t)method, " %.200s", x->path);
    for (char *at = asked; *at; at++)
        if ((*at <= ' ' && at != asked + method) || *at > '~') *at = '?';
    fprintf(stderr, "%s %s %d %zu bytes %.3f s\n", address, asked, status, x->bytes, seconds);
}

/* A request has ended, well or not: counts it, logs it, and lets go of its job. */
static inline void http_on_end(void *context, struct MHD_Connection *c, void **state,
                               enum MHD_RequestTerminationCode why) {
    Exchange *x = (Exchange *)*state;
    (void)context;
    if (!x) return;
    Server *server = x->server;
    Job *j = x->job;
    const double seconds = seconds_now() - x->began;
    http_note(server, c, false);
    const int status = why == MHD_REQUEST_TERMINATED_COMPLETED_OK ? x->status : 499;  // 499: the client has gone
    if (x->path) metrics_request(&server->metrics, x->route, status, seconds);
    if (x->path && !server->o.quiet) http_log(x, c, status, seconds);
    if (j) {
        pthread_mutex_lock(&j->lock);
        j->connection = NULL;
        j->suspended = false;
        pthread_mutex_unlock(&j->lock);
        job_cancel(j, GONE);
        server_release(server, j);
    }
    if (x->waits) MHD_destroy_response(x->waits);
    free(x->path);
    free(x);
    *state = NULL;
}

/* A connection begins or ends. */
static inline void http_on_connection(void *context, struct MHD_Connection *c, void **state,
                                      enum MHD_ConnectionNotificationCode what) {
    Server *server = (Server *)context;
    const bool begins = what == MHD_CONNECTION_NOTIFY_STARTED;
    Connection *v = begins ? (Connection *)xcalloc(1, sizeof *v) : (Connection *)*state;
    __atomic_fetch_add(&server->metrics.connections, begins ? 1 : -1, __ATOMIC_RELAXED);
    pthread_mutex_lock(&server->lock);
    if (begins) {
        *v = (Connection){MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd, false,
                          seconds_now(), NULL, server->connections_open};
        if (v->older) v->older->newer = v;
        server->connections_open = v;
    } else {
        *(v->newer ? &v->newer->older : &server->connections_open) = v->older;
        if (v->older) v->older->newer = v->newer;
    }
    pthread_mutex_unlock(&server->lock);
    *state = begins ? v : NULL;
    if (!begins) free(v);
}

/* ---- opening ---- */

/* Opens the socket that the server listens to. Returns it, and the port in *port where the system chose it; -1 with *err. */
static inline int http_listen(const char *address, int *port, Error *err) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV},
                    *found;
    char service[16];
    const int yes = 1;
    snprintf(service, sizeof service, "%d", *port);
    if (getaddrinfo(address, service, &hints, &found))
        return error_set(err, "--address must be an IP address, such as 127.0.0.1 or ::, not '%.60s'", address);
    const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    const char *problem = NULL;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) ||
        bind(fd, found->ai_addr, found->ai_addrlen) || listen(fd, 1024) ||
        getsockname(fd, (struct sockaddr *)&bound, &size))
        problem = strerror(errno);
    freeaddrinfo(found);
    if (problem && fd >= 0) close(fd);
    if (problem)
        return error_set(err, "cannot listen on %s port %d: %s%s", address, *port, problem,
                         errno == EADDRINUSE ? "; another program uses it, so choose another with --port" : "");
    *port = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                              : ((struct sockaddr_in *)&bound)->sin_port);
    return fd;
}

static inline struct MHD_Daemon *http_start(Server *server, int listener, Error *err) {
    struct MHD_Daemon *d = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME, 0, NULL, NULL, http_on_request, server,
        MHD_OPTION_LISTEN_SOCKET, listener, MHD_OPTION_URI_LOG_CALLBACK, http_on_uri, server,
        MHD_OPTION_NOTIFY_COMPLETED, http_on_end, server, MHD_OPTION_NOTIFY_CONNECTION, http_on_connection, server,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)server->o.connections, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)server->o.header_timeout, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)32768, MHD_OPTION_END);
    if (!d) error_set(err, "the HTTP server cannot be started: %s", strerror(errno));
    return d;
}

#endif
