/* The answers: JSON in our shape, in OpenAI's, and in those of image-to-latex and pix2tex. */
#ifndef SERVER_ANSWER_H
#define SERVER_ANSWER_H

#include "server.h"

/* What became of one program. */
typedef struct {
    bool known;  // TeX has run
    Compiled c;
    char *files[FORMATS];  // base64, allocated; NULL: not asked for, or not drawn
    char *problem;         // why something could not be drawn, allocated; NULL
} Drawn;

static inline void drawn_free(Drawn *d) {
    compiled_free(&d->c);
    for (int i = 0; i < FORMATS; i++) free(d->files[i]);
    free(d->problem);
    *d = (Drawn){.known = false};
}

/* "compiles", "errors" and the drawings. */
static inline void answer_drawn(JsonWriter *w, const Drawn *d, unsigned formats) {
    Result r = result_begin("");
    if (d->known) result_set_compiled(&r, &d->c);
    json_key(w, "compiles");
    if (d->known)
        json_bool(w, d->c.clean);
    else
        json_null(w);
    TexMessage problem = {0, d->problem};
    if (!r.error_count && d->problem) r.errors = &problem, r.error_count = 1;
    json_key(w, "errors");
    result_write_errors(w, &r);
    for (int i = 0; i < FORMATS; i++)
        if (formats >> i & 1) answer_string(w, format_names[i], d->files[i]);
}

/* "document": the program as a whole .tex file, or null where it cannot be one. */
static inline void answer_document(JsonWriter *w, RenderTask task, const char *text, size_t n) {
    char *document = tex_document_to_keep(task, text, n);
    json_key(w, "document");
    if (document)
        json_string(w, document);
    else
        json_null(w);
    free(document);
}

static inline char *answer_render(const Job *j, RenderTask task, const Drawn *d, size_t *size) {
    JsonWriter w = {0};
    json_begin_object(&w);
    answer_drawn(&w, d, j->fields.formats);
    answer_document(&w, task, j->fields.program, strlen(j->fields.program));
    json_end_object(&w);
    *size = w.length;
    return w.text;
}

/* drawn: of the program; candidates' [candidate_count] drawings, where PNG is asked for. */
static inline char *answer_convert(const Job *j, const Drawn *drawn, Drawn *candidates, size_t *size) {
    JsonWriter w = {0};
    const Program *p = &j->program;
    json_begin_object(&w);
    answer_string(&w, "model", j->instance->name);
    answer_string(&w, "task", render_task_names[j->instance->task]);
    json_key(&w, "program");
    json_string_bytes(&w, p->text, p->bytes);
    answer_document(&w, j->instance->task, p->text, p->bytes);
    answer_number(&w, "log_probability", p->log_probability);
    answer_number(&w, "confidence", p->confidence);
    json_key(&w, "tokens");
    json_integer(&w, p->tokens);
    json_key(&w, "ended");
    json_bool(&w, p->ended);
    answer_number(&w, "similarity", p->similarity);
    answer_string(&w, "preprocessing", p->preprocessing);
    answer_drawn(&w, drawn, j->fields.formats);
    if (j->candidate_count) {
        json_key(&w, "candidates");
        json_begin_array(&w);
        for (int k = 0; k < j->candidate_count; k++) {
            alone_candidate_json(&w, &j->candidates[k]);
            if (candidates[k].files[FORMAT_PNG]) answer_string(&w, "png", candidates[k].files[FORMAT_PNG]);
            json_end_object(&w);
        }
        json_end_array(&w);
    }
    answer_number(&w, "seconds", seconds_now() - j->arrived);
    json_end_object(&w);
    *size = w.length;
    return w.text;
}

/* ---- the ancestors' shapes ---- */

/* The bytes of the LaTeX token that begins at text: a command, \begin{...} and \end{...} whole, or a character. */
static inline size_t answer_latex_token(const char *text, size_t n) {
    if (*text != '\\') {
        const int length = utf8_sequence((const uint8_t *)text, n);
        return length ? (size_t)length : 1;
    }
    size_t end = 1;
    while (end < n && formula_letter(text[end])) end++;
    const bool environment = (end == 6 && !strncmp(text, "\\begin", 6)) || (end == 4 && !strncmp(text, "\\end", 4));
    const char *close =
        environment && end < n && text[end] == '{' ? (const char *)memchr(text + end, '}', n - end) : NULL;
    return close ? (size_t)(close - text) + 1 : end > 1 ? end : n < 2 ? n : 2;
}

/* The formula as image-to-latex writes it: its tokens with a space between them. Allocated. */
static inline char *answer_spaced(const char *text, size_t n) {
    char *out = (char *)xmalloc(2 * n + 1), *to = out;
    for (size_t at = 0; at < n;) {
        const size_t length = answer_latex_token(text + at, n - at);
        if (!strchr(" \t\r\n", text[at])) {
            if (to > out) *to++ = ' ';
            memcpy(to, text + at, length);
            to += length;
        }
        at += length;
    }
    *to = '\0';
    return out;
}

/* The program without the line end that files have. */
static inline size_t answer_trimmed(const Program *p) {
    return p->bytes && p->text[p->bytes - 1] == '\n' ? p->bytes - 1 : p->bytes;
}

static inline char *answer_predict_beam(const Job *j, size_t *size) {
    JsonWriter w = {0};
    const Program *p = &j->program;
    char *spaced = j->instance->task == RENDER_FORMULA ? answer_spaced(p->text, answer_trimmed(p)) : NULL;
    json_begin_object(&w);
    answer_string(&w, "message", "OK");
    json_key(&w, "status-code");
    json_integer(&w, 200);
    json_key(&w, "data");
    json_begin_object(&w);
    json_key(&w, "pred");
    if (spaced)
        json_string(&w, spaced);
    else
        json_string_bytes(&w, p->text, answer_trimmed(p));
    json_end_object(&w);
    json_end_object(&w);
    free(spaced);
    *size = w.length;
    return w.text;
}

static inline char *answer_predict(const Job *j, size_t *size) {
    JsonWriter w = {0};
    json_string_bytes(&w, j->program.text, answer_trimmed(&j->program));
    *size = w.length;
    return w.text;
}

/* GET /v1/models. */
static inline char *answer_models(Registry *r, size_t *size) {
    JsonWriter w = {0};
    json_begin_object(&w);
    answer_string(&w, "object", "list");
    json_key(&w, "data");
    json_begin_array(&w);
    pthread_mutex_lock(&r->lock);
    for (int m = 0; m < r->count; m++) {
        const Instance *i = r->models[m].current;
        const struct {
            const char *key;
            int64_t value;
        } numbers[] = {{"created", i->opened},
                       {"parameters", i->parameters},
                       {"image_height", i->prepare.size.height},
                       {"image_width", i->prepare.size.width},
                       {"max_tokens", i->max_tokens}};
        const char *base = strrchr(r->models[m].path, '/');
        json_begin_object(&w);
        answer_string(&w, "id", r->models[m].name);
        answer_string(&w, "object", "model");
        answer_string(&w, "owned_by", "tikz.c");
        answer_string(&w, "task", render_task_names[i->task]);
        answer_string(&w, "file", base ? base + 1 : r->models[m].path);
        for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++) {
            json_key(&w, numbers[k].key);
            json_integer(&w, numbers[k].value);
        }
        json_end_object(&w);
    }
    pthread_mutex_unlock(&r->lock);
    json_end_array(&w);
    json_end_object(&w);
    *size = w.length;
    return w.text;
}

#endif
