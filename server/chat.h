/* Answers as OpenAI's clients expect them (POST /v1/chat/completions), and the events of a stream. */
#ifndef SERVER_CHAT_H
#define SERVER_CHAT_H

#include "models.h"

static inline void answer_string(JsonWriter *w, const char *key, const char *text) {
    json_key(w, key);
    json_string(w, text);
}

static inline void answer_number(JsonWriter *w, const char *key, double x) {
    json_key(w, key);
    json_number(w, x);
}

/* The data of the event `begin`, allocated: who writes what. */
static inline char *begin_event(const Instance *i) {
    JsonWriter w = {0};
    json_begin_object(&w);
    answer_string(&w, "model", i->name);
    answer_string(&w, "task", render_task_names[i->task]);
    json_end_object(&w);
    return w.text;
}

/* The data of the event `token`, allocated. */
static inline char *token_event(const char *bytes, size_t n) {
    JsonWriter w = {0};
    json_begin_object(&w);
    json_key(&w, "text");
    json_string_bytes(&w, bytes, n);
    json_end_object(&w);
    return w.text;
}

/* What every object of a completion begins with. */
static inline void chat_head(JsonWriter *w, const Job *j, const char *object) {
    char id[40];
    snprintf(id, sizeof id, "chatcmpl-%lld", (long long)j->number);
    json_begin_object(w);
    answer_string(w, "id", id);
    answer_string(w, "object", object);
    json_key(w, "created");
    json_integer(w, (int64_t)time(NULL));
    answer_string(w, "model", j->instance->name);
    json_key(w, "choices");
    json_begin_array(w);
    json_begin_object(w);
    json_key(w, "index");
    json_integer(w, 0);
}

/* Ends the only choice, with why it ended (NULL: it has not). */
static inline void chat_tail(JsonWriter *w, const char *finish) {
    answer_string(w, "finish_reason", finish);
    json_end_object(w);
    json_end_array(w);
}

static inline const char *chat_finish_reason(const Job *j) {
    return j->program.ended || j->program.looped ? "stop" : "length";
}

/* A chunk of a stream, allocated: a piece of the text, or without one the end. */
static inline char *chat_chunk(const Job *j, const char *bytes, size_t n, const char *finish) {
    JsonWriter w = {0};
    chat_head(&w, j, "chat.completion.chunk");
    json_key(&w, "delta");
    json_begin_object(&w);
    if (!finish) {
        json_key(&w, "content");
        json_string_bytes(&w, bytes, n);
    }
    json_end_object(&w);
    chat_tail(&w, finish);
    json_end_object(&w);
    return w.text;
}

static inline char *chat_answer(const Job *j, size_t *size) {
    JsonWriter w = {0};
    const Program *p = &j->program;
    const int prompt_tokens = model_prompt(&j->instance->model);
    chat_head(&w, j, "chat.completion");
    json_key(&w, "message");
    json_begin_object(&w);
    answer_string(&w, "role", "assistant");
    json_key(&w, "content");
    json_string_bytes(&w, p->text, p->bytes);
    json_end_object(&w);
    json_key(&w, "logprobs");
    json_null(&w);
    chat_tail(&w, chat_finish_reason(j));
    json_key(&w, "usage");
    json_begin_object(&w);
    json_key(&w, "prompt_tokens");
    json_integer(&w, prompt_tokens);
    json_key(&w, "completion_tokens");
    json_integer(&w, p->tokens);
    json_key(&w, "total_tokens");
    json_integer(&w, prompt_tokens + p->tokens);
    json_end_object(&w);
    json_end_object(&w);
    *size = w.length;
    return w.text;
}

#endif
