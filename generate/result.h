/* What became of one image, as one line of JSON (infer --json). */
#ifndef GENERATE_RESULT_H
#define GENERATE_RESULT_H

#include "../lib/json.h"
#include "../lib/tex_compile.h"

typedef enum { COMPILES_UNKNOWN, COMPILES_CLEAN, COMPILES_ERRORS, COMPILES_NO } Compiles;

typedef struct {
    const char *image;    // its path as it was given
    const char *task;     // tikz or formula: what the program is; NULL: not known
    const char *program;  // of any bytes; NULL: there is none
    size_t program_bytes;
    int tokens;                 // of the program, without the end token
    double log_probability;     // of the program, natural logarithm; NAN: not known
    double confidence;          // geometric mean of the probabilities of its tokens, 0 to 1; NAN: not known
    bool complete;              // the model ended it; false: it was cut
    Compiles compiles;          // COMPILES_UNKNOWN: it was not compiled
    const TexMessage *errors;   // [error_count] of TeX, the first first; lines count from 1, 0: of no line
    int error_count;            // 0 without errors
    double similarity;          // of image and drawing: 1 where they are equal; NAN: not known, or nothing is drawn
    const char *preprocessing;  // what was done to the image before the model saw it; NULL: nothing to say
    double prefill_seconds, generate_seconds, compile_seconds;  // NAN: not known, or not done
} Result;

/* A result of which nothing is known but the image. */
static inline Result result_begin(const char *image) {
    return (Result){.image = image,
                    .log_probability = NAN,
                    .confidence = NAN,
                    .similarity = NAN,
                    .prefill_seconds = NAN,
                    .generate_seconds = NAN,
                    .compile_seconds = NAN};
}

/* Takes over the verdict of TeX. The errors stay in c, which must live until the result is printed. */
static inline void result_set_compiled(Result *r, const Compiled *c) {
    r->compiles = c->clean ? COMPILES_CLEAN : c->pdf ? COMPILES_ERRORS : COMPILES_NO;
    r->errors = c->log.errors;
    r->error_count = c->clean ? 0 : c->log.count;
}

/* The errors as an array of {"line": 3 or null, "message": "..."}. */
static inline void result_write_errors(JsonWriter *w, const Result *r) {
    json_begin_array(w);
    for (int i = 0; i < r->error_count; i++) {
        json_begin_object(w);
        json_key(w, "line");
        if (r->errors[i].line > 0)
            json_integer(w, r->errors[i].line);
        else
            json_null(w);
        json_key(w, "message");
        json_string(w, r->errors[i].message);
        json_end_object(w);
    }
    json_end_array(w);
}

static inline void result_write_number(JsonWriter *w, const char *key, double x) {
    json_key(w, key);
    json_number(w, x);
}

/* Writes the result as one object without a line end. Text that is not valid UTF-8 is written with U+FFFD in place of
 * each wrong byte, and a number that is not finite as null. */
static inline void result_write(JsonWriter *w, const Result *r) {
    static const char *const compiles[] = {NULL, "clean", "errors", "no"};
    json_begin_object(w);
    json_key(w, "image");
    json_string(w, r->image);
    json_key(w, "task");
    json_string(w, r->task);
    json_key(w, "program");
    if (r->program)
        json_string_bytes(w, r->program, r->program_bytes);
    else
        json_null(w);
    json_key(w, "tokens");
    json_integer(w, r->tokens);
    result_write_number(w, "log_probability", r->log_probability);
    result_write_number(w, "confidence", r->confidence);
    json_key(w, "complete");
    json_bool(w, r->complete);
    json_key(w, "compiles");
    json_string(w, compiles[r->compiles]);
    json_key(w, "errors");
    result_write_errors(w, r);
    result_write_number(w, "similarity", r->similarity);
    json_key(w, "preprocessing");
    json_string(w, r->preprocessing);
    json_key(w, "seconds");
    json_begin_object(w);
    result_write_number(w, "prefill", r->prefill_seconds);
    result_write_number(w, "generate", r->generate_seconds);
    result_write_number(w, "compile", r->compile_seconds);
    json_end_object(w);
    json_end_object(w);
}

/* Prints the result as one line on f, and flushes it. `name` says in the error what f is ("stdout"). */
static inline int result_print_json(const Result *r, FILE *f, const char *name, Error *err) {
    JsonWriter w = {0};
    result_write(&w, r);
    const int bad = json_write_line(&w, f), why = errno;
    json_writer_free(&w);
    return bad ? error_set(err, "cannot write the result of %s to %s: %s", r->image, name, strerror(why)) : 0;
}

#endif
