/* /openapi.json and /docs, both made of the tables in server/routes.h and server/fields.h. */
#ifndef SERVER_DOCS_H
#define SERVER_DOCS_H

#include "../lib/html.h"
#include "chat.h"

/* ---- OpenAPI 3.1 ---- */

static inline void docs_default(JsonWriter *w, const Field *f) {
    const char *at = (const char *)&fields_default + f->offset;
    const bool number = f->type == VALUE_NUMBER && !isnan(*(const double *)at);
    if (!number && f->type != VALUE_INTEGER && f->type != VALUE_FLAG) return;
    json_key(w, "default");
    if (number) json_number(w, *(const double *)at);
    if (f->type == VALUE_INTEGER) json_integer(w, *(const int64_t *)at);
    if (f->type == VALUE_FLAG) json_bool(w, *(const bool *)at);
}

/* The types that a field may have, with spaces between them: what JSON may leave out may also be null, and a form has text. */
static inline const char *docs_types(const Field *f, bool form) {
    static const char *const types[] = {
        [VALUE_TEXT] = "string ",   [VALUE_NUMBER] = "number ",        [VALUE_INTEGER] = "integer ",
        [VALUE_FLAG] = "boolean ",  [VALUE_FORMATS] = "array string ", [VALUE_IMAGE] = "string ",
        [VALUE_MESSAGES] = "array "};
    if (form && f->type == VALUE_FORMATS) return "string ";
    return !form && f->offset == FIELD_AT(search) ? "string number " : types[f->type];
}

/* The words of a text or of a list. */
static inline void docs_enum(JsonWriter *w, const char *words, bool null) {
    json_key(w, "enum");
    json_begin_array(w);
    for (const char *at = words; *at; at += strcspn(at, " ") + 1) json_string_bytes(w, at, strcspn(at, " "));
    if (null) json_null(w);
    json_end_array(w);
}

/* The schema of a field; in a form, a list is a string with commas. */
static inline void docs_schema(JsonWriter *w, const Field *f, bool form) {
    const bool null = !form && !f->required;
    const char *types = docs_types(f, form);
    json_begin_object(w);
    json_key(w, "type");
    json_begin_array(w);
    for (const char *at = types; *at; at += strcspn(at, " ") + 1) json_string_bytes(w, at, strcspn(at, " "));
    if (null) json_string(w, "null");
    json_end_array(w);
    if (f->type == VALUE_FORMATS) answer_string(w, "pattern", "^[ ,]*((png|svg|pdf)([ ,]+|$))*$");
    if (f->type == VALUE_FORMATS && !form) {
        json_key(w, "items");
        json_begin_object(w);
        docs_enum(w, f->values, false);
        json_end_object(w);
    }
    if (f->type == VALUE_TEXT && f->values) docs_enum(w, f->values, null);
    if (f->type == VALUE_IMAGE) answer_string(w, form ? "format" : "contentEncoding", form ? "binary" : "base64");
    if (f->type == VALUE_IMAGE || f->type == VALUE_MESSAGES) {
        json_key(w, f->type == VALUE_IMAGE ? "minLength" : "minItems");
        json_integer(w, 1);
    }
    if (f->type == VALUE_NUMBER || f->type == VALUE_INTEGER) {
        answer_number(w, "minimum", f->min);
        answer_number(w, "maximum", f->max);
    }
    docs_default(w, f);
    answer_string(w, "description", f->help);
    json_end_object(w);
}

/* The body of a route in one content type. */
static inline void docs_body(JsonWriter *w, const Route *r, bool form) {
    json_key(w, form ? "multipart/form-data" : "application/json");
    json_begin_object(w);
    json_key(w, "schema");
    json_begin_object(w);
    answer_string(w, "type", "object");
    json_key(w, "properties");
    json_begin_object(w);
    for (int i = 0; i < FIELD_COUNT; i++) {
        if (!(fields_table[i].routes & r->request)) continue;
        json_key(w, fields_table[i].name);
        docs_schema(w, &fields_table[i], form);
    }
    json_end_object(w);
    json_key(w, "required");
    json_begin_array(w);
    for (int i = 0; i < FIELD_COUNT; i++)
        if (fields_table[i].routes & r->request && fields_table[i].required) json_string(w, fields_table[i].name);
    json_end_array(w);
    json_key(w, "additionalProperties");
    json_bool(w, r->request == FOR_CHAT);
    json_end_object(w);
    json_end_object(w);
}

/* The statuses of errors that a request with a body may have, and those that any may have. */
static const struct {
    int status;
    bool body;
    const char *what;
} docs_errors[] = {{400, true, "The body is broken."},
                   {401, false, "The key is missing or wrong."},
                   {404, true, "There is no such model."},
                   {413, true, "The body or the image is too large."},
                   {415, true, "The body has another type."},
                   {422, true, "A field is missing, unknown or out of range, or the image cannot be read."},
                   {429, true, "Too many requests wait; Retry-After says when to try again."},
                   {500, true, "The server failed."},
                   {501, true, "The server has no TeX, which the request needs."},
                   {503, true, "The server is stopping, or has no memory for the body."},
                   {504, true, "The request took too long."}};

static inline void docs_responses(JsonWriter *w, const Route *r) {
    char status[8];
    const char *type = r->kind == ROUTE_METRICS ? "text/plain"
                       : r->kind == ROUTE_DOCS  ? "text/html"
                                                : "application/json";
    json_key(w, "responses");
    json_begin_object(w);
    json_key(w, "200");
    json_begin_object(w);
    answer_string(w, "description", r->answer);
    json_key(w, "content");
    json_begin_object(w);
    json_key(w, type);
    json_begin_object(w);
    json_end_object(w);
    if (fields_find("stream", r->request)) {
        json_key(w, "text/event-stream");
        json_begin_object(w);
        json_end_object(w);
    }
    json_end_object(w);
    json_end_object(w);
    for (size_t i = 0; i < sizeof docs_errors / sizeof *docs_errors; i++) {
        const bool health = r->kind == ROUTE_HEALTH && docs_errors[i].status == 503;
        if (docs_errors[i].body ? !r->request && !health : r->open) continue;
        snprintf(status, sizeof status, "%d", docs_errors[i].status);
        json_key(w, status);
        json_begin_object(w);
        answer_string(w, "description", docs_errors[i].what);
        json_key(w, "content");
        json_begin_object(w);
        json_key(w, "application/json");
        json_begin_object(w);
        if (!health) {
            json_key(w, "schema");
            json_begin_object(w);
            answer_string(w, "$ref", "#/components/schemas/Error");
            json_end_object(w);
        }
        json_end_object(w);
        json_end_object(w);
        json_end_object(w);
    }
    json_end_object(w);
}

/* The parameter of a path. */
static inline void docs_parameters(JsonWriter *w) {
    json_key(w, "parameters");
    json_begin_array(w);
    json_begin_object(w);
    answer_string(w, "name", "beam_width");
    answer_string(w, "in", "path");
    json_key(w, "required");
    json_bool(w, true);
    json_key(w, "schema");
    json_begin_object(w);
    answer_string(w, "type", "integer");
    answer_number(w, "minimum", 1);
    answer_number(w, "maximum", 16);
    json_end_object(w);
    json_end_object(w);
    json_end_array(w);
}

static inline void docs_route(JsonWriter *w, const Route *r) {
    json_key(w, r->path);
    json_begin_object(w);
    json_key(w, strcmp(r->method, "GET") ? "post" : "get");
    json_begin_object(w);
    answer_string(w, "summary", r->summary);
    if (strchr(r->path, '{')) docs_parameters(w);
    if (r->request) {
        json_key(w, "requestBody");
        json_begin_object(w);
        json_key(w, "required");
        json_bool(w, true);
        json_key(w, "content");
        json_begin_object(w);
        if (r->request == FOR_CONVERT || r->request == FOR_FILE) docs_body(w, r, true);
        if (r->request != FOR_FILE) docs_body(w, r, false);
        json_end_object(w);
        json_end_object(w);
    }
    docs_responses(w, r);
    json_key(w, "security");
    json_begin_array(w);
    json_begin_object(w);  // nothing: a server without a key
    json_end_object(w);
    if (!r->open) {
        json_begin_object(w);
        json_key(w, "key");
        json_begin_array(w);
        json_end_array(w);
        json_end_object(w);
    }
    json_end_array(w);
    json_end_object(w);
    json_end_object(w);
}

static const char docs_components[] =
    "{\"securitySchemes\":{\"key\":{\"type\":\"http\",\"scheme\":\"bearer\"}},"
    "\"schemas\":{\"Error\":{\"type\":\"object\",\"required\":[\"error\"],\"properties\":{\"error\":{\"type\":"
    "\"object\","
    "\"required\":[\"message\",\"type\"],\"properties\":{\"message\":{\"type\":\"string\"},\"type\":{\"type\":"
    "\"string\","
    "\"enum\":[\"invalid_request\",\"too_large\",\"busy\",\"timeout\",\"unauthorized\",\"unsupported\",\"internal\"]}"
    "}}}}}}";

/* The OpenAPI document, allocated. */
static inline char *docs_openapi(size_t *size) {
    JsonWriter w = {0};
    json_begin_object(&w);
    answer_string(&w, "openapi", "3.1.0");
    json_key(&w, "info");
    json_begin_object(&w);
    answer_string(&w, "title", "tikz.c");
    answer_string(&w, "version", "1");
    answer_string(&w, "description", "Turns images into TikZ and LaTeX programs.");
    json_end_object(&w);
    json_key(&w, "paths");
    json_begin_object(&w);
    for (int i = 0; i < ROUTES; i++) docs_route(&w, &routes[i]);
    json_end_object(&w);
    json_key(&w, "components");
    json_append(&w, docs_components, sizeof docs_components - 1);
    json_end_object(&w);
    *size = w.length;
    return w.text;
}

/* ---- for people ---- */

static inline void docs_field_row(FILE *f, const Field *field) {
    static const char *const types[] = {"text", "number", "whole number", "true or false",
                                        "list", "image",  "messages"};
    fprintf(f, "<tr><td><code>%s</code></td><td>%s%s", field->name, types[field->type],
            field->required ? ", needed" : "");
    if (field->type == VALUE_NUMBER || field->type == VALUE_INTEGER)
        fprintf(f, ", %.10g to %.10g", field->min, field->max);
    fprintf(f, "</td><td>");
    html_text(f, field->help);
    fprintf(f, "</td></tr>\n");
}

/* The page, allocated. */
static inline char *docs_page(size_t *size) {
    char *text = NULL;
    FILE *f = open_memstream(&text, size);
    if (!f) die("out of memory");
    fprintf(
        f,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>tikz.c: HTTP API</title>\n"
        "<meta name=\"viewport\" content=\"width=device-width\"><meta name=\"color-scheme\" content=\"light dark\">"
        "</head><body><main>\n<h1>tikz.c: HTTP API</h1>\n<p>The same for programs: "
        "<a href=\"openapi.json\">openapi.json</a>. Errors have a status and "
        "<code>{\"error\": {\"message\": ..., \"type\": ...}}</code>. A server that has a key asks for "
        "<code>Authorization: Bearer KEY</code> where it says so.</p>\n");
    for (int i = 0; i < ROUTES; i++) {
        const Route *r = &routes[i];
        fprintf(f, "<h2>%s %s</h2>\n<p>", r->method, r->path);
        html_text(f, r->summary);
        fprintf(f, " Answer: ");
        html_text(f, r->answer);
        fprintf(f, ".%s</p>\n", r->open ? "" : " Needs the key.");
        if (!r->request) continue;
        fprintf(f, "<table><thead><tr><th>field</th><th>type</th><th></th></tr></thead><tbody>\n");
        for (int k = 0; k < FIELD_COUNT; k++)
            if (fields_table[k].routes & r->request) docs_field_row(f, &fields_table[k]);
        fprintf(f, "</tbody></table>\n");
    }
    fprintf(f, "<h2>Errors</h2>\n<table><tbody>\n");
    for (size_t i = 0; i < sizeof docs_errors / sizeof *docs_errors; i++)
        fprintf(f, "<tr><td>%d</td><td>%s</td></tr>\n", docs_errors[i].status, docs_errors[i].what);
    fprintf(f, "</tbody></table>\n</main></body></html>\n");
    fclose(f);
    return text;
}

#endif
