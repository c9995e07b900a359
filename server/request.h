/* The readers: from the body of a request to what the engine or the drawer works on. */
#ifndef SERVER_REQUEST_H
#define SERVER_REQUEST_H

#include "../generate/tell_task.h"
#include "../lib/image_header.h"
#include "server.h"
#include "multipart.h"

enum { JSON_VALUES = 10000 };  // of a body: each takes 36 times the memory of its two bytes

/* Whether a text of JSON has more values than any request needs: one for each comma or opening bracket that is in no string. */
static inline bool request_too_many_values(const char *text, size_t n) {
    int values = 0;
    bool string = false;
    for (size_t i = 0; i < n; i++) {
        if (string && text[i] == '\\')
            i++;
        else if (text[i] == '"')
            string = !string;
        else if (!string && (text[i] == ',' || text[i] == '[' || text[i] == '{') && ++values > JSON_VALUES)
            return true;
    }
    return false;
}

/* A sentence on a field that the request may not have, with those that it may. */
static inline int request_unknown(const Job *j, const char *name, Error *err) {
    char known[512] = "";
    for (int i = 0; i < FIELD_COUNT; i++) {
        const size_t used = strlen(known);
        if (fields_table[i].routes & j->route->request)
            snprintf(known + used, sizeof known - used, "%s%s", used ? ", " : "", fields_table[i].name);
    }
    return error_set(err, "there is no field '%.60s'; there are %s", name, known);
}

/* Reads the fields from JSON. Returns 0, or the status of the failure. OpenAI's clients send fields that mean nothing here. */
static inline int request_read_json(Job *j, Error *err) {
    Json json;
    int status = 0;
    if (request_too_many_values(j->body, j->body_bytes)) {
        error_set(err, "the body has more than %d values", JSON_VALUES);
        return 422;
    }
    if (json_parse(&json, j->body, j->body_bytes, "the body", err)) return 400;
    if (json.values[0].type != JSON_OBJECT) {
        error_set(err, "the body must be a JSON object");
        status = 422;
    }
    for (int v = status ? -1 : json.values[0].child; v >= 0 && !status; v = json.values[v].next) {
        const Field *f = fields_find(json.values[v].key, j->route->request);
        if (f && fields_set_json(&j->fields, f, &json, v, err)) status = 422;
        if (!f && j->route->request != FOR_CHAT && request_unknown(j, json.values[v].key, err)) status = 422;
    }
    json_free(&json);
    return status;
}

/* The same from a form. */
static inline int request_read_form(Job *j, Error *err) {
    Multipart m;
    MultipartPart part;
    if (multipart_begin(&m, j->content_type, j->body, j->body_bytes, err)) return 400;
    for (int more; (more = multipart_next(&m, &part, err)) != 0;) {
        if (more < 0) return 400;
        const Field *f = fields_find(part.name, j->route->request);
        if (!f && request_unknown(j, part.name, err)) return 422;
        char *bytes = (char *)memcpy(xmalloc(part.size + 1), part.bytes, part.size);
        bytes[part.size] = '\0';
        const int bad = fields_set_part(&j->fields, f, bytes, part.size, err);
        free(bytes);
        if (bad) return 422;
    }
    return 0;
}

/* Whether a Content-Type is `type`, with parameters or without. */
static inline bool request_is_of_type(const char *content_type, const char *type) {
    const size_t n = strlen(type);
    return content_type && !strncasecmp(content_type, type, n) && strchr("; \t", content_type[n]);
}

static inline bool request_is_form(const char *content_type) {
    return request_is_of_type(content_type, "multipart/form-data");
}

/* Reads the fields, checks that the required ones are there, and frees the body. */
static inline int request_read(Server *server, Job *j, Error *err) {
    int status = request_is_form(j->content_type) ? request_read_form(j, err) : request_read_json(j, err);
    for (int i = 0; i < FIELD_COUNT && !status; i++) {
        const Field *f = &fields_table[i];
        if (!(f->routes & j->route->request) || !f->required || *(void **)((char *)&j->fields + f->offset)) continue;
        error_set(err, "the field %s is missing: %s", f->name, f->help);
        status = 422;
    }
    job_free_body(server, j);
    return status;
}

/* ---- what the fields mean together ---- */

/* Refuses what cannot be done together, and what the model cannot do. */
static inline int request_check(const Server *server, const Job *j, Error *err) {
    const Fields *f = &j->fields;
    const Instance *i = j->instance;
    BestOptions budget = {0};
    if ((f->beam > 1) + (f->candidates > 1) + (f->search != NULL) > 1)
        return error_set(err, "beam, candidates and search cannot be used together");
    if (f->beam > 1 && f->temperature > 0) return error_set(err, "beam does not sample; leave out temperature");
    if (f->beam > i->generator.max_B)
        return error_set(err, "beam must be at most %d on this server", i->generator.max_B);
    if ((f->candidates > 1 || f->search) && f->temperature == 0)
        return error_set(err, "candidates and search sample; temperature must not be 0");
    if (f->search && i->task != RENDER_TIKZ)
        return error_set(err, "search is for figures, and the model %s writes formulas", i->name);
    if (f->search && best_budget(&budget, f->search, err)) {
        return error_set(
            err, "search must be seconds, such as 10s, or a number of programs, such as 200, not '%.40s'", f->search);
    }
    if (budget.seconds > server->o.timeout - 1)
        return error_set(err, "search must be shorter than the %g s that a request may take on this server",
                         server->o.timeout);
    if ((f->candidates > 1 || f->search) && !server->renders)
        return error_set(err, "candidates and search need TeX: %s", server->no_tex.text);
    if (f->max_tokens && f->max_tokens <= i->prefix.count)
        return error_set(err, "max_tokens must be more than %d for this model", i->prefix.count);
    return 0;
}

/* Decides how the program is written. */
static inline void request_plan(const Server *server, Job *j) {
    const Fields *f = &j->fields;
    const Instance *i = j->instance;
    const bool best = f->candidates > 1 || f->search;
    j->alone = best || f->beam > 1;
    j->draws = f->formats || (f->compile && server->renders);
    j->max_tokens = f->max_tokens && f->max_tokens < i->max_tokens ? (int)f->max_tokens : i->max_tokens;
    j->sampling = (Sampling){.temperature = (float)(!isnan(f->temperature) ? f->temperature
                                                    : best                 ? 0.8
                                                                           : 0),
                             .top_p = (float)f->top_p,
                             .top_k = (int)f->top_k,
                             .seed = (uint64_t)f->seed};
}

/* ---- the image ---- */

/* Refuses an image whose header says that it has too many pixels: an early word; the decoder's own limit is what counts. */
static inline int request_check_pixels(const Server *server, const Job *j, Error *err) {
    ImageHeader size;
    const Fields *f = &j->fields;
    if (!image_header_read(f->image, f->image_bytes, &size) ||
        (uint64_t)size.width * size.height <= server->o.max_pixels)
        return 0;
    return error_set(err, "the image has %u x %u pixels; at most %.6g million are taken here, so make it smaller",
                     size.width, size.height, (double)server->o.max_pixels / 1e6);
}

/* The task that the model must have, or NULL: any. Where none is asked for and there are models of both, the image tells it, as in
 * infer. */
static inline const char *request_task(Server *server, const Fields *f, const Image *image) {
    if (f->task && strcmp(f->task, "auto")) return f->task;
    return f->model || !registry_has_both(&server->registry) ? NULL : render_task_names[tell_task(image, true)];
}

/* Prepares the image as infer does. */
static inline int request_prepare_image(Job *j, Image *image, Error *err) {
    const Instance *i = j->instance;
    ImageBox box;
    j->input = (Input){.path = (char *)"of the request"};
    j->program.input = &j->input;
    j->program.model = &i->known;
    if (program_preprocess(&j->program, &i->prepare, image, &box, err)) return -1;
    j->pixels = (uint8_t *)xmalloc(image_size_bytes(i->prepare.size));
    j->program.extent = image_prepare_box(j->pixels, image, box, i->prepare.size);
    return 0;
}

/* Chooses the model, and plans the work for an image. Returns 0, or the status of the failure. */
static inline int request_begin_image(Server *server, Job *j, Image *image, Error *err) {
    const Fields *f = &j->fields;
    const int status = registry_get(&server->registry, f->model, request_task(server, f, image), &j->instance, err);
    if (status) return status;
    if (request_check(server, j, err)) return 422;
    request_plan(server, j);
    return request_prepare_image(j, image, err) ? 422 : 0;
}

/* Reads a request. Returns 0, or the status of the failure. */
static inline int request_begin(Server *server, Job *j, Error *err) {
    Fields *f = &j->fields;
    Image image;
    int status = request_read(server, j, err);
    if (status) return status;
    j->draws = j->route->kind == ROUTE_RENDER;
    if (j->draws) return 0;
    if (j->route->kind != ROUTE_CONVERT) f->compile = false;
    if (j->route->kind == ROUTE_PREDICT_BEAM) f->beam = j->beam_width;
    if (request_check_pixels(server, j, err)) return 413;
    status = image_decode_limited(&image, f->image, f->image_bytes, server->o.max_pixels, "of the request", err);
    if (status) return status == IMAGE_TOO_LARGE ? 413 : 422;
    free(f->image);
    f->image = NULL;
    status = request_begin_image(server, j, &image, err);
    image_free(&image);
    return status;
}

static inline void *request_thread(void *argument) {
    Server *server = (Server *)argument;
    for (Job *j; (j = queue_pop(&server->readers));) {
        Error err;
        const int status = job_cancelled(j) ? 0 : request_begin(server, j, &err);
        if (status) job_fail(j, status, "%s", err.text);
        if (!j->done && !job_left(j) && j->route->kind != ROUTE_RENDER)
            queue_push(&server->engine.queue, j);
        else
            outlet_push(&server->outlet, j);
    }
    return NULL;
}

#endif
