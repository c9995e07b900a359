/* The drawers: compile programs in the box, draw them, and finish the requests. */
#ifndef SERVER_DRAWINGS_H
#define SERVER_DRAWINGS_H

#include "../generate/draw.h"
#include "answer.h"

static __thread const Job *drawing_job;  // that this thread works on, for drawing_cancelled

static inline bool drawing_cancelled(void) { return drawing_job && job_cancelled(drawing_job) != GOES_ON; }

/* One format of a compiled program, in base64. */
static inline void draw_format(const Server *server, Drawn *d, Format format) {
    Error err;
    Image image = {0};
    size_t size = d->c.pdf_bytes;
    uint8_t *bytes = NULL;
    char *svg = NULL;
    if (format == FORMAT_PNG && !render_image(&server->renderer, &d->c, 0, DRAW_DPI, &image, &err))
        bytes = png_encode(&image, &size);
    if (format == FORMAT_SVG && (svg = render_svg(&server->renderer, &d->c, &err))) size = strlen(svg);
    const void *from = format == FORMAT_PDF ? d->c.pdf : format == FORMAT_PNG ? (char *)bytes : svg;
    if (from)
        d->files[format] = base64_encode((const uint8_t *)from, size);
    else if (!d->problem && !drawing_cancelled())
        d->problem = xstrdup(err.text);
    image_free(&image);
    free(bytes);
    free(svg);
}

/* Compiles a program of n bytes, and draws the formats. What the machine cannot do is said in d->problem. */
static inline void draw_program(Server *server, RenderTask task, const char *text, size_t n, unsigned formats,
                                Drawn *d) {
    Error err;
    if (!server->renders) {
        d->problem = xstrdup(server->no_tex.text);
        return;
    }
    metrics_add(&server->metrics.renders, 1);
    d->known = render_compile(&server->renderer, task, text, n, &d->c, &err) == 0;
    if (!d->known) d->problem = xstrdup(err.text);
    for (int f = 0; f < FORMATS && d->known && d->c.pdf; f++)
        if (formats >> f & 1) draw_format(server, d, (Format)f);
}

/* What /v1/render draws: the task it was told, else a formula unless the program looks like a document or a figure. */
static inline RenderTask draw_task(const Job *j) {
    Error ignored;
    const char *task = j->fields.task, *text = j->fields.program;
    if (task && strcmp(task, "auto")) return strcmp(task, "formula") ? RENDER_TIKZ : RENDER_FORMULA;
    char *document = tex_document(RENDER_TIKZ, text, strlen(text), &ignored);
    free(document);
    return document ? RENDER_TIKZ : RENDER_FORMULA;
}

/* POST /v1/render. */
static inline void draw_render(Server *server, Job *j) {
    Drawn d = {.known = false};
    size_t size;
    const RenderTask task = draw_task(j);
    draw_program(server, task, j->fields.program, strlen(j->fields.program), j->fields.formats, &d);
    if (!job_left(j)) {
        if (!d.known) {
            job_fail(j, server->renders ? 500 : 501, "the program was not compiled: %s", d.problem);
        } else {
            char *answer = answer_render(j, task, &d, &size);
            job_finish(j, 200, "application/json", answer, size);
        }
    }
    drawn_free(&d);
}

/* POST /v1/convert: the program is there. */
static inline void draw_convert(Server *server, Job *j) {
    const Program *p = &j->program;
    const Fields *f = &j->fields;
    const RenderTask task = j->instance->task;
    Drawn d = {.known = false}, *candidates = (Drawn *)xcalloc((size_t)j->candidate_count, sizeof(Drawn));
    size_t size;
    if (j->draws) draw_program(server, task, p->text, p->bytes, f->formats, &d);
    for (int k = 0; k < j->candidate_count && f->formats >> FORMAT_PNG & 1 && !drawing_cancelled(); k++) {
        Candidate *c = &j->candidates[k];
        draw_program(server, task, c->text, c->bytes, 1u << FORMAT_PNG, &candidates[k]);
        if (candidates[k].known) c->compiled = true, c->clean = candidates[k].c.clean;
    }
    if (!job_left(j)) {
        char *answer = answer_convert(j, &d, candidates, &size);
        if (f->stream) job_event(j, "result", answer);
        job_finish(j, 200, "application/json", answer, size);
    }
    for (int k = 0; k < j->candidate_count; k++) drawn_free(&candidates[k]);
    free(candidates);
    drawn_free(&d);
}

/* Finishes a request whose program needs no drawing. */
static inline void draw_nothing(Job *j) {
    size_t size = 0;
    char *answer = NULL;
    if (j->route->kind == ROUTE_CHAT && j->fields.stream) {
        answer = chat_chunk(j, NULL, 0, chat_finish_reason(j));
        job_event(j, NULL, answer);
        job_event(j, NULL, "[DONE]");
    } else if (j->route->kind == ROUTE_CHAT) {
        answer = chat_answer(j, &size);
    } else if (j->route->kind == ROUTE_PREDICT_BEAM) {
        answer = answer_predict_beam(j, &size);
    } else {
        answer = answer_predict(j, &size);
    }
    job_finish(j, 200, "application/json", answer, size);
}

/* Finishes the jobs of a queue until it is closed. */
static inline void draw_all(Server *server, JobQueue *queue) {
    for (Job *j; (j = queue_pop(queue));) {
        drawing_job = j;
        if (!j->done && !job_left(j)) {
            if (j->route->kind == ROUTE_RENDER)
                draw_render(server, j);
            else if (j->route->kind == ROUTE_CONVERT)
                draw_convert(server, j);
            else
                draw_nothing(j);
        }
        drawing_job = NULL;
        server_leave(server, j);
    }
}

static inline void *draw_thread(void *argument) {
    Server *server = (Server *)argument;
    draw_all(server, &server->outlet.drawers);
    return NULL;
}

static inline void *write_thread(void *argument) {
    Server *server = (Server *)argument;
    draw_all(server, &server->outlet.writers);
    return NULL;
}

#endif
