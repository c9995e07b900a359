/* The tokens that a program begins with. */
#ifndef GENERATE_PREFIX_H
#define GENERATE_PREFIX_H

#include "../lib/tokenizer_encode.h"

/* The tokens that precede the generated ones: the begin token, if the model has one, and the encoded --prefix `wanted` (NULL:
 * none).
 * Rejects a prefix that contains special tokens or does not decode to the same text. */
static inline int prefix_read(TokenIds *prefix, const char *wanted, const Tokenizer *t, const char *model,
                              Error *err) {
    if (t->begin >= 0) token_ids_add(prefix, t->begin);
    if (!wanted) return 0;
    Encoder encoder;
    Error why;
    char *name = format_string("the tokenizer.json inside %s", model), *text = NULL;
    int special = -1, before = prefix->count;
    int bad = encoder_open(&encoder, t, name, &why) || encoder_run(&encoder, wanted, strlen(wanted), prefix, &why);
    if (bad) error_set(err, "cannot use the --prefix: %s", why.text);
    for (int i = before; !bad && special < 0 && i < prefix->count; i++)
        if ((t->flags[prefix->ids[i]] & TOKEN_SPECIAL) || tokenizer_ends(t, prefix->ids[i])) special = prefix->ids[i];
    if (!bad) tokenizer_decode(t, prefix->ids, prefix->count, &text, NULL);
    if (special >= 0)
        bad = error_set(err, "cannot use the --prefix: it contains '%.*s', which is a special token of the model",
                        (int)(t->offsets[special + 1] - t->offsets[special]), t->bytes + t->offsets[special]);
    else if (!bad && strcmp(text, wanted) != 0)
        bad =
            error_set(err, "cannot use the --prefix: the tokenizer does not keep it; it would become '%.200s'", text);
    free(text);
    free(name);
    encoder_close(&encoder);
    return bad;
}

#endif
