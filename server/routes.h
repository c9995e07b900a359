/* What the server answers: methods and paths. */
#ifndef SERVER_ROUTES_H
#define SERVER_ROUTES_H

#include "fields.h"

typedef enum {
    ROUTE_CONVERT,
    ROUTE_RENDER,
    ROUTE_PREDICT_BEAM,
    ROUTE_PREDICT,
    ROUTE_CHAT,
    ROUTE_MODELS,
    ROUTE_HEALTH,
    ROUTE_METRICS,
    ROUTE_OPENAPI,
    ROUTE_DOCS,
    ROUTE_FILE
} RouteKind;

typedef struct {
    RouteKind kind;
    const char *method, *path;  // a path that ends in "}" takes a last segment
    int request;                // FOR_...: how its body is read; 0: it has none
    bool open;                  // it asks for no key
    const char *summary, *answer;
} Route;

static const Route routes[] = {
    {ROUTE_CONVERT, "POST", "/v1/convert", FOR_CONVERT, false, "Turns an image into a program.",
     "the program, its log-probability, whether it compiles, and what was drawn of it"},
    {ROUTE_RENDER, "POST", "/v1/render", FOR_RENDER, false, "Compiles a program in the box and draws it.",
     "whether it compiles, the errors, and the drawings in base64"},
    {ROUTE_CHAT, "POST", "/v1/chat/completions", FOR_CHAT, false,
     "The same as OpenAI's clients ask for it: a message with an image, answered by the program.",
     "an object chat.completion, or its chunks"},
    {ROUTE_PREDICT, "POST", "/predict/", FOR_FILE, false, "As pix2tex's server: the program as a JSON string.",
     "the program as a string"},
    {ROUTE_PREDICT, "POST", "/bytes/", FOR_FILE, false, "The same, where pix2tex's own page sends its images.",
     "the program as a string"},
    {ROUTE_PREDICT_BEAM, "POST", "/predict/{beam_width}", FOR_FILE, false,
     "As image-to-latex's server: beam search; the program's tokens with spaces between them.",
     "{\"message\": \"OK\", \"status-code\": 200, \"data\": {\"pred\": ...}}"},
    {ROUTE_MODELS, "GET", "/v1/models", 0, false, "Lists the models.", "OpenAI's list of models, with task and size"},
    {ROUTE_METRICS, "GET", "/metrics", 0, false, "Counters for Prometheus.", "text in Prometheus' format"},
    {ROUTE_HEALTH, "GET", "/healthz", 0, true, "Says whether the server takes requests.", "{\"status\": \"ok\"}"},
    {ROUTE_OPENAPI, "GET", "/openapi.json", 0, true, "This description.", "an OpenAPI 3.1 document"},
    {ROUTE_DOCS, "GET", "/docs", 0, true, "The same for people.", "a page of HTML"},
};
enum { ROUTES = sizeof routes / sizeof *routes };

/* Files of the web page: every other path that is read. */
static const Route route_file = {ROUTE_FILE, "GET", "/", 0, true, "The web page.", "a file"};

/* Whether a path is this route's; *rest is set to the last segment where the route takes one. */
static inline bool route_matches(const Route *r, const char *path, const char **rest) {
    const char *brace = strchr(r->path, '{');
    *rest = NULL;
    if (!brace) return !strcmp(path, r->path);
    const size_t n = (size_t)(brace - r->path);
    if (strncmp(path, r->path, n) || !path[n] || strchr(path + n, '/')) return false;
    *rest = path + n;
    return true;
}

#endif
