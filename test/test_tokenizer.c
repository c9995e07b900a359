/* Tests of the tokenizer. Also, for test/test_tokenizer.py:
 *
 *     test_tokenizer --cases FILE CASES OUT
 *
 * decodes and encodes many cases with the tokenizer of a file.
 * CASES: records of u32 kind, u32 n, then for kind 0 (decode) n ids as i32, for kind 1 (encode) n bytes of text.
 * OUT, one record each. Decode: u32 bytes and the text decoded at once; then u32 bytes and the text that came token
 * by token; then n + 1 u32, how much of it came with each token and with the end. Encode: i32 number of ids and the
 * ids, or -1, u32 bytes and the sentence that says why not. */
#include "samples.h"

#include "../lib/tokenizer_encode.h"

static void test_tokenizer(void) {
    Error err;
    SafeTensors a, b;
    Tokenizer t, u;
    CHECK_OK(write_tokenizer_file(sample_path("t40"), 40, 0, &err), err);
    CHECK_OK(safetensors_open(&a, sample_path("t40"), &err), err);
    CHECK_OK(tokenizer_load(&t, &a, &err), err);
    CHECK(t.count == 40 && t.end == 39 && !strcmp(t.kind, "byte_level_bpe") && t.json_bytes == 2);
    const uint8_t *piece;
    CHECK(tokenizer_piece(&t, 4, &piece) == 2 && !memcmp(piece, "ee", 2));
    CHECK(tokenizer_piece(&t, 39, &piece) == 0 && tokenizer_piece(&t, -1, &piece) == 0);
    CHECK(tokenizer_piece(&t, 40, &piece) == 0);
    const int ids[] = {0, 39, 2, 1000, 1};
    char *text;
    size_t bytes;
    tokenizer_decode(&t, ids, 5, &text, &bytes);
    CHECK(bytes == 6 && !strcmp(text, "acccbb"));
    free(text);
    CHECK_OK(write_tokenizer_file(sample_path("t40b"), 40, 1, &err), err);
    CHECK_OK(safetensors_open(&b, sample_path("t40b"), &err), err);
    CHECK_OK(tokenizer_load(&u, &b, &err), err);
    CHECK(t.fingerprint != u.fingerprint);
    CHECK_OK(tokenizer_same(&t, &t, &err), err);
    CHECK_ERROR(tokenizer_same(&t, &u, &err), err, "differ first at token 38");
    safetensors_close(&b);
    CHECK_OK(write_tokenizer_file(sample_path("t41"), 41, 0, &err), err);
    CHECK_OK(safetensors_open(&b, sample_path("t41"), &err), err);
    CHECK_OK(tokenizer_load(&u, &b, &err), err);
    CHECK_ERROR(tokenizer_same(&t, &u, &err), err, "differ first at token 39");  // special in one only
    u.count = 39;
    CHECK_ERROR(tokenizer_same(&t, &u, &err), err, "end a text with different tokens: 39 and 40");
    safetensors_close(&b);
    safetensors_close(&a);
}

/* What has come after each id and after the end, with | between. */
static const char *streamed(const Tokenizer *t, const int *ids, int n) {
    static char all[256];
    TokenDecoder d;
    const char *text;
    size_t used = 0, bytes;
    token_decoder_begin(&d, t);
    for (int i = 0; i <= n; i++) {
        bytes = i < n ? token_decoder_next(&d, ids[i], &text) : token_decoder_end(&d, &text);
        if (i) all[used++] = '|';
        memcpy(all + used, text, bytes);
        used += bytes;
    }
    all[used] = '\0';
    token_decoder_free(&d);
    return all;
}

/* Characters across tokens: bytes wait for the rest of their character; what cannot become one is U+FFFD at once. */
static void test_tokenizer_streams(void) {
    static const struct {
        bool fallback;
        int ids[8], n;
        const char *expected;
    } cases[] = {
        {false, {1, 6, 7, 5}, 4, "a||\xc3\xa9|ab|"},
        {false,
         {7, 6, 1},
         3,
         "\xef\xbf\xbd||\xef\xbf\xbd"
         "a|"},
        {false, {6, 0, 7}, 3, "||\xc3\xa9|"},  // a special token in between prints nothing
        {false, {6, 99, 6}, 3, "||\xef\xbf\xbd|\xef\xbf\xbd"},
        {true,
         {8, 3, 4, 6, 5},
         5,
         "a|||\xc3\xa9"
         "a| |"},  // one space at the beginning is dropped
        {true, {5, 5, 2, 7}, 4, "| ||\nb|"},
        {true, {6, 2, 3}, 3, "a|||\xef\xbf\xbd\xef\xbf\xbd"},
        {true, {2, 4, 2, 3, 6}, 5, "|\xef\xbf\xbd\xef\xbf\xbd|\xef\xbf\xbd|\xef\xbf\xbd|a|"},
        {true,
         {3, 0, 4, 9},
         4,
         "|||\xc3\xa9"
         "ab|"},
    };
    Error err;
    SafeTensors st[2];
    Tokenizer t[2];
    for (int i = 0; i < 2; i++) {
        CHECK_OK(write_bpe_file(sample_path("bpe"), i == 1, &err), err);
        CHECK_OK(safetensors_open(&st[i], sample_path("bpe"), &err), err);
        CHECK_OK(tokenizer_load(&t[i], &st[i], &err), err);
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *found = streamed(&t[cases[i].fallback], cases[i].ids, cases[i].n);
        check(!strcmp(found, cases[i].expected), __FILE__, __LINE__, cases[i].expected, found);
    }
    CHECK(t[1].begin == 1 && t[1].strip == 1 && t[0].begin == -1 && t[0].strip == 0);
    CHECK_ERROR(tokenizer_same(&t[0], &t[1], &err), err, "differ first at token 0");
    t[0] = t[1];
    t[0].begin = 3;
    CHECK_ERROR(tokenizer_same(&t[0], &t[1], &err), err, "begin a text with different tokens: 3 and 1");
    uint8_t flags[16] = {0};
    flags[8] = TOKEN_BYTE;
    t[0].flags = flags;
    CHECK_ERROR(tokenizer_check_fallback(&t[0], "x", &err), err, "token 3 in tokenizer.bytes is not valid UTF-8");
    flags[3] = flags[4] = TOKEN_BYTE;
    CHECK_ERROR(tokenizer_check_fallback(&t[0], "x", &err), err, "token 8 is marked as one byte");
    for (int i = 0; i < 2; i++) safetensors_close(&st[i]);
}

/* By hand; test_tokenizer.py compares thousands of texts with `tokenizers`. */
static void test_tokenizer_encodes(void) {
    static const struct {
        bool fallback;
        const char *text, *expected;  // ids, or a part of the sentence
    } cases[] = {
        {false, "ab", "5"},
        {false, "aba", "8"},
        {false, "a a", "1 3 1"},
        {false, "", ""},
        {false, "b</s>a", "2 0 1"},
        {false, "bc", "2"},
        {false, "\xc3\xa9", "only ASCII"},
        {true, "a", "8"},
        {true, "a ab", "8 8 7"},
        {true, "\n", "5 2"},
        {true, "cd b", "5 1 5 7"},
        {true, "", ""},
        {true, "a <p> b", "8 10 5 7"},
        {true, "<s>a", "0 6"},
        {true, "a\xc3\xa9", "only ASCII"},
    };
    Error err;
    for (int fallback = 0; fallback < 2; fallback++) {
        SafeTensors st;
        Tokenizer t;
        Encoder e;
        CHECK_OK(write_bpe_file(sample_path("bpe"), fallback, &err), err);
        CHECK_OK(safetensors_open(&st, sample_path("bpe"), &err), err);
        CHECK_OK(tokenizer_load(&t, &st, &err), err);
        CHECK_OK(encoder_open(&e, &t, "the sample", &err), err);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            if (cases[i].fallback != fallback) continue;
            TokenIds ids = {NULL, 0, 0};
            char found[sizeof err.text] = "";
            if (encoder_run(&e, cases[i].text, strlen(cases[i].text), &ids, &err) != 0)
                snprintf(found, sizeof found, "%s", err.text);
            else
                for (int k = 0; k < ids.count; k++) snprintf(found + strlen(found), 8, k ? " %d" : "%d", ids.ids[k]);
            bool same = strlen(cases[i].expected) > 9 ? strstr(found, cases[i].expected) != NULL
                                                      : !strcmp(found, cases[i].expected);
            check(same, __FILE__, __LINE__, cases[i].text, found);
            free(ids.ids);
        }
        encoder_close(&e);
        t.json = NULL;
        CHECK_ERROR(encoder_open(&e, &t, "the sample", &err), err, "the sample is missing");
        encoder_close(&e);
        safetensors_close(&st);
    }
}

/* The other end tokens survive being copied into another file. */
static void test_tokenizer_more_ends(void) {
    Error err;
    SafeTensors st, copy;
    Tokenizer t, u;
    CHECK_OK(write_tokenizer_file(sample_path("t40"), 40, 0, &err), err);
    CHECK_OK(safetensors_open(&st, sample_path("t40"), &err), err);
    CHECK_OK(tokenizer_load(&t, &st, &err), err);
    CHECK(tokenizer_ends(&t, 39) && !tokenizer_ends(&t, 7) && t.more_end_count == 0);
    snprintf(t.more_ends_text, sizeof t.more_ends_text, "7,12");
    CHECK_OK(write_tokenizer(sample_path("t40c"), &t, &err), err);
    CHECK_OK(safetensors_open(&copy, sample_path("t40c"), &err), err);
    CHECK_OK(tokenizer_load(&u, &copy, &err), err);
    CHECK(u.more_end_count == 2 && tokenizer_ends(&u, 39) && tokenizer_ends(&u, 7) && tokenizer_ends(&u, 12));
    CHECK(!tokenizer_ends(&u, 0) && !strcmp(u.more_ends_text, "7,12") && u.fingerprint == t.fingerprint);
    CHECK_OK(tokenizer_same(&t, &u, &err), err);
    safetensors_close(&copy);
    safetensors_close(&st);
}

/* FNV-1a by hand for two tokens "a" and "" (special): guards the format, which Python computes too. */
static void test_tokenizer_fingerprint(void) {
    const int32_t offsets[] = {0, 1, 1};
    const uint8_t flags[] = {0, 1}, stream[] = {1, 0, 0, 0, 'a', 0, 0, 0, 0, 0, 1};
    Tokenizer t;
    memset(&t, 0, sizeof t);
    t.count = 2;
    t.bytes = (const uint8_t *)"a";
    t.offsets = offsets;
    t.flags = flags;
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < sizeof stream; i++) h = (h ^ stream[i]) * 1099511628211u;
    CHECK(tokenizer_hash(&t) == h);
}

static void test_tokenizer_refused(void) {
    static const struct {
        const char *metadata, *part;
        int32_t offsets[3];
        int flags;
    } cases[] = {
        {"\"tokenizer.kind\":\"byte_level_bpe\",\"tokenizer.end\":\"1\"", "falls from 4 to 3", {0, 4, 3}, 2},
        {"\"tokenizer.kind\":\"byte_level_bpe\",\"tokenizer.end\":\"1\"", "runs from 1", {1, 2, 3}, 2},
        {"\"tokenizer.kind\":\"byte_level_bpe\",\"tokenizer.end\":\"1\"", "0 to 3 was expected", {0, 2, 4}, 2},
        {"\"tokenizer.kind\":\"byte_level_bpe\",\"tokenizer.end\":\"1\"", "one more was expected", {0, 2, 3}, 3},
        {"\"tokenizer.kind\":\"byte_level_bpe\",\"tokenizer.end\":\"2\"", "tokenizer.end is '2'", {0, 2, 3}, 2},
        {"\"tokenizer.kind\":\"byte_level_bpe\",\"tokenizer.end\":\"x\"", "tokenizer.end is 'x'", {0, 2, 3}, 2},
        {"\"tokenizer.kind\":\"byte_level_bpe\"", "(missing)", {0, 2, 3}, 2},
        {"\"tokenizer.end\":\"1\"", "tokenizer.kind is '(missing)'", {0, 2, 3}, 2},
        {"\"tokenizer.kind\":\"unigram\",\"tokenizer.end\":\"1\"", "tokenizer.kind is 'unigram'", {0, 2, 3}, 2},
        {"\"tokenizer.kind\":\"byte_level_bpe\",\"tokenizer.end\":\"1\",\"tokenizer.begin\":\"2\"",
         "tokenizer.begin is '2'",
         {0, 2, 3},
         2},
        {"\"tokenizer.kind\":\"byte_level_bpe\",\"tokenizer.end\":\"1\",\"tokenizer.strip\":\"-1\"",
         "tokenizer.strip is '-1'",
         {0, 2, 3},
         2},
        {"\"tokenizer.kind\":\"byte_level_bpe\",\"tokenizer.end\":\"1\",\"tokenizer.more_ends\":\"0,2\"",
         "tokenizer.more_ends is '0,2'",
         {0, 2, 3},
         2},
        {"\"tokenizer.kind\":\"byte_level_bpe\",\"tokenizer.end\":\"1\",\"tokenizer.more_ends\":\"0,\"",
         "tokenizer.more_ends is '0,'",
         {0, 2, 3},
         2},
        {"\"tokenizer.kind\":\"byte_level_bpe\",\"tokenizer.end\":\"1\",\"tokenizer.more_ends\":\"\"",
         "tokenizer.more_ends is ''",
         {0, 2, 3},
         2},
    };
    Error err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *header =
            format_string("{\"__metadata__\":{%s},"
                          "\"tokenizer.offsets\":{\"dtype\":\"I32\",\"shape\":[3],\"data_offsets\":[0,12]},"
                          "\"tokenizer.bytes\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[12,15]},"
                          "\"tokenizer.flags\":{\"dtype\":\"U8\",\"shape\":[%d],\"data_offsets\":[15,%d]}}",
                          cases[i].metadata, cases[i].flags, 15 + cases[i].flags);
        Bytes b = {NULL, 0};
        uint8_t length[8], spaces[8];
        size_t padding = (8 - strlen(header) % 8) % 8;
        memset(spaces, ' ', 8);
        put_u64(length, strlen(header) + padding);
        bytes_add(&b, length, 8);
        bytes_add(&b, header, strlen(header));
        bytes_add(&b, spaces, padding);
        bytes_add(&b, cases[i].offsets, 12);
        bytes_add(&b, "abc\0\0\0", 3 + (size_t)cases[i].flags);
        write_bytes(sample_path("bad.tokenizer"), b.data, b.size);
        SafeTensors st;
        Tokenizer t;
        CHECK_OK(safetensors_open(&st, sample_path("bad.tokenizer"), &err), err);
        err.text[0] = '\0';
        check(tokenizer_load(&t, &st, &err) != 0 && strstr(err.text, cases[i].part), __FILE__, __LINE__,
              cases[i].part, err.text);
        safetensors_close(&st);
        free(b.data);
        free(header);
    }
    SafeTensors st;
    Tokenizer t;
    write_bytes(sample_path("none"), "\x08\0\0\0\0\0\0\0{}      ", 16);
    CHECK_OK(safetensors_open(&st, sample_path("none"), &err), err);
    CHECK_ERROR(tokenizer_load(&t, &st, &err), err, "carries no tokenizer");
    safetensors_close(&st);
}

/* ---- cases for test/test_tokenizer.py ---- */

static FILE *out;

static void put(const void *data, size_t bytes) {
    if (bytes && fwrite(data, 1, bytes, out) != bytes) die("cannot write the results: %s", strerror(errno));
}

static void put_number(size_t number) {
    uint32_t n = (uint32_t)number;
    put(&n, sizeof n);
}

static void put_text(const char *text, size_t bytes) {
    put_number(bytes);
    put(text, bytes);
}

static void decode(const Tokenizer *t, const int *ids, uint32_t n) {
    char *whole;
    const char *piece;
    size_t bytes, *came = (size_t *)xcalloc((size_t)n + 1, sizeof *came);
    TokenDecoder d;
    TokenText text = {NULL, 0, 0};
    tokenizer_decode(t, ids, (int)n, &whole, &bytes);
    put_text(whole, bytes);
    token_decoder_begin(&d, t);
    for (uint32_t i = 0; i <= n; i++) {
        came[i] = i < n ? token_decoder_next(&d, ids[i], &piece) : token_decoder_end(&d, &piece);
        token_text_add(&text, piece, came[i]);
    }
    put_text(text.data, text.count);
    for (uint32_t i = 0; i <= n; i++) put_number(came[i]);
    token_decoder_free(&d);
    free(text.data);
    free(whole);
    free(came);
}

static void encode(const Encoder *e, int unusable, const char *text, size_t bytes, Error *err) {
    TokenIds ids = {NULL, 0, 0};
    if (unusable || encoder_run(e, text, bytes, &ids, err) != 0) {
        put_number(UINT32_MAX);
        put_text(err->text, strlen(err->text));
    } else {
        put_number((size_t)ids.count);
        put(ids.ids, (size_t)ids.count * sizeof(int));
    }
    free(ids.ids);
}

/* argv: FILE CASES OUT */
static int run_cases(char **argv) {
    SafeTensors st;
    Tokenizer t;
    Encoder e;
    MappedFile cases;
    Error err;
    if (safetensors_open(&st, argv[0], &err) || tokenizer_load(&t, &st, &err)) die("%s", err.text);
    if (file_map(&cases, argv[1], &err)) die("%s", err.text);
    if (!(out = fopen(argv[2], "wb"))) die("cannot write %s: %s", argv[2], strerror(errno));
    int opened = 0, unusable = 0;
    for (size_t at = 0; at + 8 <= cases.size;) {
        uint32_t head[2];
        memcpy(head, cases.data + at, sizeof head);
        size_t bytes = head[0] == 0 ? (size_t)head[1] * sizeof(int) : head[1];
        at += sizeof head;
        if (bytes > cases.size - at) die("%s ends inside a case", argv[1]);
        char *exact = (char *)memcpy(xmalloc(bytes), cases.data + at, bytes);
        if (head[0] == 1 && !opened++) unusable = encoder_open(&e, &t, argv[0], &err);
        if (head[0] == 1)
            encode(&e, unusable, exact, bytes, &err);
        else
            decode(&t, (const int *)(const void *)exact, head[1]);
        free(exact);
        at += bytes;
    }
    if (opened) encoder_close(&e);
    if (fclose(out)) die("cannot write %s: %s", argv[2], strerror(errno));
    file_unmap(&cases);
    safetensors_close(&st);
    return 0;
}

int main(int argc, char **argv) {
    program_begin(argv);
    if (argc == 5 && !strcmp(argv[1], "--cases")) return run_cases(argv + 2);
    samples_begin();
    test_tokenizer();
    test_tokenizer_streams();
    test_tokenizer_encodes();
    test_tokenizer_more_ends();
    test_tokenizer_fingerprint();
    test_tokenizer_refused();
    samples_end();
    return checks_report();
}
