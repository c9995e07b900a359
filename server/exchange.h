/* One request of a connection, and how it is answered: JSON, errors, files. */
#ifndef SERVER_EXCHANGE_H
#define SERVER_EXCHANGE_H

#include "docs.h"
#include "drawings.h"
#include "files.h"

#include <microhttpd.h>

/* One request of a connection. */
typedef struct {
    Server *server;
    const char *method;
    char *path;
    const Route *route;          // NULL: there is none
    Job *job;                    // of a request with a body
    bool zero;                   // the path has a zero byte, at which it seems to end
    bool sending;                // the client is still sending the body, and does not read before it is done
    bool refused;                // its answer is known
    bool cut, full;              // the body, or all bodies together, are too long: what comes of it is dropped
    struct MHD_Response *waits;  // an answer that waits for the end of the body; NULL: none
    bool submitted;              // the job has set out
    int status;
    size_t bytes;
    double began;
} Exchange;

/* ---- answering ---- */

static inline void http_header(struct MHD_Response *r, const char *name, const char *value) {
    MHD_add_response_header(r, name, value);
}

/* The headers that every answer has. */
static inline void http_headers(const Server *server, struct MHD_Response *r, const char *type) {
    http_header(r, "Content-Type", type);
    http_header(r, "X-Content-Type-Options", "nosniff");
    http_header(r, "Referrer-Policy", "no-referrer");
    if (!server->o.cors) return;
    http_header(r, "Access-Control-Allow-Origin", server->o.cors);
    if (strcmp(server->o.cors, "*")) http_header(r, "Vary", "Origin");
}

/* Sends an answer, or keeps it until the body is there: after one that comes before, the connection would be reset. */
static inline enum MHD_Result http_queue(Exchange *x, struct MHD_Connection *c, int status, struct MHD_Response *r) {
    x->status = status;
    x->refused = true;
    if (x->sending) {
        x->waits = r;
        return MHD_YES;
    }
    const enum MHD_Result ok = MHD_queue_response(c, (unsigned)status, r);
    MHD_destroy_response(r);
    return ok;
}

/* Answers with n bytes, allocated, which become the library's. */
static inline enum MHD_Result http_answer(Exchange *x, struct MHD_Connection *c, int status, const char *type,
                                          char *text, size_t n) {
    struct MHD_Response *r = MHD_create_response_from_buffer(n, text, MHD_RESPMEM_MUST_FREE);
    http_headers(x->server, r, type);
    http_header(r, "Cache-Control", "no-store");
    if (!strncmp(type, "text/html", 9)) http_header(r, "Content-Security-Policy", FILES_POLICY);
    x->bytes = n;
    return http_queue(x, c, status, r);
}

/* Answers with an error, and `header`: value where header is not NULL. */
__attribute__((format(printf, 6, 7))) static inline enum MHD_Result http_error(Exchange *x, struct MHD_Connection *c,
                                                                               int status, const char *header,
                                                                               const char *value, const char *format,
                                                                               ...) {
    Error e;
    va_list args;
    va_start(args, format);
    vsnprintf(e.text, sizeof e.text, format, args);
    va_end(args);
    char *json = error_json(status, e.text);
    x->bytes = strlen(json);
    struct MHD_Response *r = MHD_create_response_from_buffer(x->bytes, json, MHD_RESPMEM_MUST_FREE);
    http_headers(x->server, r, "application/json");
    http_header(r, "Cache-Control", "no-store");
    if (header) http_header(r, header, value);
    return http_queue(x, c, status, r);
}

static inline enum MHD_Result http_file(Exchange *x, struct MHD_Connection *c) {
    char *name, tag[64];
    struct stat s;
    const int fd = file_of_path(file_folder(x->server->o.web, x->path), x->path, &name, &s);
    if (fd < 0)
        return http_error(x, c, 404, NULL, NULL, "there is nothing at %.200s; /docs lists what there is", x->path);
    snprintf(tag, sizeof tag, "\"%llx-%llx\"", (unsigned long long)s.st_size,
             (unsigned long long)s.st_mtim.tv_sec * 1000000000ull + (unsigned long long)s.st_mtim.tv_nsec);
    const char *known = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "If-None-Match");
    const bool same = known && !strcmp(known, tag);
    struct MHD_Response *r = same ? MHD_create_response_from_buffer(0, (void *)"", MHD_RESPMEM_PERSISTENT)
                                  : MHD_create_response_from_fd64((uint64_t)s.st_size, fd);
    if (same) close(fd);
    http_headers(x->server, r, file_type(name));
    http_header(r, "Content-Security-Policy", FILES_POLICY);
    http_header(r, "Cache-Control", "no-cache");
    http_header(r, "ETag", tag);
    x->bytes = same ? 0 : (size_t)s.st_size;
    free(name);
    return http_queue(x, c, same ? 304 : 200, r);
}

/* Requests without a body are answered at once. */
static inline enum MHD_Result http_get(Exchange *x, struct MHD_Connection *c) {
    Server *server = x->server;
    char *text = NULL;
    size_t n = 0;
    const char *type = "application/json";
    int status = 200;
    if (x->route->kind == ROUTE_FILE) return http_file(x, c);
    if (x->route->kind == ROUTE_HEALTH) {
        status = server_stopping(server) ? 503 : 200;
        text = xstrdup(status == 200 ? "{\"status\":\"ok\"}" : "{\"status\":\"stopping\"}");
        n = strlen(text);
    } else if (x->route->kind == ROUTE_MODELS) {
        text = answer_models(&server->registry, &n);
    } else if (x->route->kind == ROUTE_METRICS) {
        pthread_mutex_lock(&server->engine.queue.lock);
        const int queued = server->engine.queue.count;
        pthread_mutex_unlock(&server->engine.queue.lock);
        text = metrics_text(&server->metrics, queued, &n);
        type = "text/plain; version=0.0.4; charset=utf-8";
    } else if (x->route->kind == ROUTE_OPENAPI) {
        text = docs_openapi(&n);
    } else {
        text = docs_page(&n);
        type = "text/html; charset=utf-8";
    }
    return http_answer(x, c, status, type, text, n);
}

#endif
