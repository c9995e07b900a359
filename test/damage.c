/* damage: makes, damages and reads the files of test_programs.sh and test_runs.sh. Run without arguments it lists
 * what it can do.
 *
 * It writes only what it is told to; a mistake in its own use ends it with status 3. */
#include "../lib/error.h"

#include "../dataloader.h"
#include "../lib/program.h"
#include "../lib/safetensors.h"
#include "../lib/tokenizer.h"

#include <zlib.h>

typedef struct {
    uint8_t *data;
    size_t size;
} Bytes;

static Error err;

static long number(const char *text) {
    char *end;
    long x = strtol(text, &end, 10);
    if (end == text || *end) {
        fprintf(stderr, "damage: '%s' is not a number\n", text);
        exit(3);
    }
    return x;
}

static Bytes read_file(const char *path) {
    MappedFile f;
    Bytes b;
    if (file_map(&f, path, &err)) die("%s", err.text);
    b.data = (uint8_t *)xmalloc(f.size);
    b.size = f.size;
    memcpy(b.data, f.data, f.size);
    file_unmap(&f);
    return b;
}

static void write_file(const char *path, const void *data, size_t size) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f)) die("cannot write %s: %s", path, strerror(errno));
}

static void append(Bytes *b, const void *data, size_t size) {
    b->data = (uint8_t *)xrealloc(b->data, b->size + size);
    if (size) memcpy(b->data + b->size, data, size);
    b->size += size;
}

/* ---- bytes ---- */

/* flip FILE OUT BIT: one bit turned over; a negative BIT counts from the end. */
static void flip(char **a) {
    Bytes b = read_file(a[0]);
    long bit = number(a[2]);
    if (bit < 0) bit += (long)b.size * 8;
    b.data[(size_t)bit / 8] ^= (uint8_t)(1u << (bit % 8));
    write_file(a[1], b.data, b.size);
    free(b.data);
}

/* ---- images ---- */

static void append_u32(Bytes *b, uint32_t x) {
    uint8_t bytes[4] = {(uint8_t)(x >> 24), (uint8_t)(x >> 16), (uint8_t)(x >> 8), (uint8_t)x};
    append(b, bytes, 4);
}

static void append_chunk(Bytes *png, const char *type, const void *data, size_t size) {
    size_t at = png->size + 4;
    append_u32(png, (uint32_t)size);
    append(png, type, 4);
    append(png, data, size);
    append_u32(png, crc32_bytes(0, png->data + at, size + 4));
}

/* png OUT WIDTH HEIGHT DEPTH COLOUR VALUE: every byte of the pixels is VALUE, but a tenth in the middle is 255 -
 * VALUE when DEPTH is 8 or 16 and VALUE is not 255. COLOUR as in the PNG header: 0 grey, 2 RGB, 4 grey and alpha, 6
 * RGBA. More than 100 million pixels are only claimed: the data stop after the first row. */
static void png(char **a) {
    size_t width = (size_t)number(a[1]), height = (size_t)number(a[2]);
    int depth = (int)number(a[3]), colour = (int)number(a[4]), value = (int)number(a[5]);
    int channels = colour == 0 ? 1 : colour == 2 ? 3 : colour == 4 ? 2 : 4;
    size_t row = 1 + (width * (size_t)(depth * channels) + 7) / 8, rows = width * height > 100000000 ? 1 : height;
    uint8_t *pixels = (uint8_t *)xmalloc(row * rows), header[13] = {0};
    memset(pixels, value, row * rows);
    for (size_t y = 0; y < rows; y++) {
        pixels[y * row] = 0;  // no filter
        bool middle = depth >= 8 && value != 255 && y >= rows * 9 / 20 && y < rows * 11 / 20;
        if (middle) memset(pixels + y * row + 1 + row * 9 / 20, 255 - value, row / 10);
    }
    for (int i = 0; i < 4; i++) {
        header[i] = (uint8_t)(width >> (8 * (3 - i)));
        header[4 + i] = (uint8_t)(height >> (8 * (3 - i)));
    }
    header[8] = (uint8_t)depth;
    header[9] = (uint8_t)colour;
    Bytes b = {NULL, 0};
    append(&b, "\x89PNG\r\n\x1a\n", 8);
    append_chunk(&b, "IHDR", header, sizeof header);
    uLongf packed = compressBound(row * rows);
    uint8_t *data = (uint8_t *)xmalloc(packed);
    if (compress2(data, &packed, pixels, row * rows, 5) != Z_OK) die("cannot deflate %zu bytes", row * rows);
    append_chunk(&b, "IDAT", data, packed);
    append_chunk(&b, "IEND", NULL, 0);
    write_file(a[0], b.data, b.size);
    free(data);
    free(pixels);
    free(b.data);
}

/* ---- datasets ---- */

static void put_u32(uint8_t *p, uint32_t x) { memcpy(p, &x, 4); }

static void open_data(Dataset *d, const char *path) {
    if (dataset_open(d, path, &err)) die("%s", err.text);
}

/* part DATA OUT FIRST COUNT: a dataset of some samples of another. */
static void part(char **a) {
    Dataset d;
    DatasetWriter w;
    Error err;
    open_data(&d, a[0]);
    const uint64_t first = (uint64_t)number(a[2]), count = (uint64_t)number(a[3]);
    die_if(dataset_writer_open(&w, a[1], d.fingerprint, &err), &err);
    for (uint64_t i = first; i < first + count; i++) {
        Sample s = dataset_sample(&d, i);
        die_if(dataset_writer_add(&w, s.image, s.image_bytes, s.tokens, s.token_count, &err), &err);
    }
    die_if(dataset_writer_commit(&w, "", &err), &err);
    dataset_close(&d);
}

/* longest DATA: the most tokens of a sample. */
static void longest(char **a) {
    Dataset d;
    open_data(&d, a[0]);
    printf("%u\n", d.longest);
    dataset_close(&d);
}

/* unused DATA: the least token that no sample has. */
static void unused(char **a) {
    Dataset d;
    open_data(&d, a[0]);
    uint32_t token = 0;
    for (bool used = true; used; token += used) {
        used = false;
        for (uint64_t i = 0; i < d.count; i++) {
            Sample s = dataset_sample(&d, i);
            for (uint32_t k = 0; k < s.token_count; k++) used = used || s.tokens[k] == token;
        }
    }
    printf("%u\n", token);
    dataset_close(&d);
}

/* image DATA OUT N: the image of sample N as it was. */
static void image(char **a) {
    Dataset d;
    open_data(&d, a[0]);
    Sample s = dataset_sample(&d, (uint64_t)number(a[2]));
    write_file(a[1], s.image, s.image_bytes);
    dataset_close(&d);
}

/* Writes a dataset whose bytes `b` differ from those of d in the record of sample s, with the checksums corrected. */
static void write_changed(const char *out, Dataset *d, Sample s, Bytes b) {
    uint8_t *record = b.data + (s.record - d->shards[0].file.data);
    uint8_t *index = b.data + (d->shards[0].index - d->shards[0].file.data);
    put_u32(index + s.number * DATASET_ENTRY + 16, crc32_bytes(0, record, s.record_bytes));
    if (dataset_u32(b.data + 8) > 1) put_u32(b.data + 64, dataset_crc(b.data));
    write_file(out, b.data, b.size);
    free(b.data);
    dataset_close(d);
}

/* token DATA OUT N ID: the first token of sample N becomes ID, the checksums are corrected. */
static void token(char **a) {
    Dataset d;
    open_data(&d, a[0]);
    Sample s = dataset_sample(&d, (uint64_t)number(a[2]));
    Bytes b = read_file(a[0]);
    uint8_t *record = b.data + (s.record - d.shards[0].file.data);
    put_u32(record + dataset_padded(s.image_bytes), (uint32_t)number(a[3]));
    write_changed(a[1], &d, s, b);
}

/* blank DATA OUT N: the image of sample N becomes white, in as many bytes. */
static void blank(char **a) {
    static const uint8_t header[13] = {0, 0, 0, 1, 0, 0, 0, 1, 8, 0, 0, 0, 0}, row[2] = {0, 255};
    Dataset d;
    open_data(&d, a[0]);
    Sample s = dataset_sample(&d, (uint64_t)number(a[2]));
    Bytes b = read_file(a[0]), white = {NULL, 0};
    uint8_t packed[32], *record = b.data + (s.record - d.shards[0].file.data);
    uLongf size = sizeof packed;
    if (compress2(packed, &size, row, sizeof row, 9) != Z_OK) die("cannot deflate two bytes");
    append(&white, "\x89PNG\r\n\x1a\n", 8);
    append_chunk(&white, "IHDR", header, sizeof header);
    append_chunk(&white, "IDAT", packed, size);
    append_chunk(&white, "IEND", NULL, 0);
    if (white.size > s.image_bytes) die("the image of sample %s has too few bytes", a[2]);
    memset(record, 0, s.image_bytes);
    memcpy(record, white.data, white.size);
    free(white.data);
    write_changed(a[1], &d, s, b);
}

/* ---- safetensors ---- */

static void open_tensors(SafeTensors *st, const char *path) {
    if (safetensors_open(st, path, &err)) die("%s", err.text);
}

/* nan FILE OUT TENSOR: every element becomes not-a-number (BF16, F16 and F32 alike: all bits set). */
static void nan_tensor(char **a) {
    SafeTensors st;
    open_tensors(&st, a[0]);
    const SafeTensor *t = safetensors_find(&st, a[2]);
    if (!t) die("%s has no tensor %s", a[0], a[2]);
    Bytes b = read_file(a[0]);
    memset(b.data + (t->data - st.file.data), 0xff, t->bytes);
    write_file(a[1], b.data, b.size);
    free(b.data);
    safetensors_close(&st);
}

/* set FILE OUT TENSOR INDEX VALUE: one element of a tensor of fp32 or bf16. */
static void set_element(char **a) {
    SafeTensors st;
    open_tensors(&st, a[0]);
    const SafeTensor *t = safetensors_find(&st, a[2]);
    size_t index = (size_t)number(a[3]);
    float value = strtof(a[4], NULL);
    if (!t || (t->dtype != DT_F32 && t->dtype != DT_BF16) || index >= t->bytes / dtype_size(t->dtype))
        die("%s has no element %zu of %s", a[0], index, a[2]);
    const size_t size = dtype_size(t->dtype);  // the upper half of an fp32 number is the bf16 one
    Bytes b = read_file(a[0]);
    memcpy(b.data + (t->data - st.file.data) + size * index, (const uint8_t *)&value + sizeof value - size, size);
    write_file(a[1], b.data, b.size);
    free(b.data);
    safetensors_close(&st);
}

/* finite FILE: status 1 when a tensor holds a NaN or an infinity. */
static void finite_tensors(char **a) {
    SafeTensors st;
    open_tensors(&st, a[0]);
    for (int i = 0; i < st.count; i++) {
        const SafeTensor *t = &st.tensors[i];
        bool numbers = t->dtype == DT_F32 || t->dtype == DT_BF16 || t->dtype == DT_F16;
        for (size_t k = 0; numbers && k < t->bytes / dtype_size(t->dtype); k++)
            if (!isfinite(safetensors_float(t, k))) die("%s: %s", a[0], t->name);
    }
    safetensors_close(&st);
}

/* word FILE OUT: another tokenizer: the last letter of its longest token is changed. */
static void word(char **a) {
    SafeTensors st;
    Tokenizer t;
    int longest = 0;
    open_tensors(&st, a[0]);
    if (tokenizer_load(&t, &st, &err)) die("%s", err.text);
    for (int i = 0; i < t.count; i++)
        if (t.offsets[i + 1] - t.offsets[i] > t.offsets[longest + 1] - t.offsets[longest]) longest = i;
    Bytes b = read_file(a[0]);
    b.data[(t.bytes - st.file.data) + t.offsets[longest + 1] - 1] ^= 1;
    write_file(a[1], b.data, b.size);
    free(b.data);
    safetensors_close(&st);
}

/* Writes the tensors and the metadata again; of `cut` (NULL: none) only the first half of each row. */
static void write_again(const SafeTensors *in, const char *path, const SafeTensor *cut) {
    const SafeTensors st = *in;
    SafeTensorsWriter w;
    SafeTensorSpec *specs = xcalloc((size_t)st.count, sizeof *specs);
    for (int i = 0; i < st.count; i++) {
        const SafeTensor *t = &st.tensors[i];
        SafeTensorSpec *s = &specs[i];
        snprintf(s->name, sizeof s->name, "%s", t->name);
        s->dtype = t->dtype;
        s->ndim = t->ndim;
        memcpy(s->shape, t->shape, sizeof s->shape);
        if (t == cut) s->shape[1] /= 2;
    }
    bool bad = safetensors_write_begin(&w, path, specs, st.count, (const char *const *)st.keys,
                                       (const char *const *)st.values, st.metadata_count, &err);
    for (int i = 0; i < st.count && !bad; i++) {
        const SafeTensor *t = &st.tensors[i];
        const size_t rows = t == cut ? (size_t)t->shape[0] : 1, row = rows ? t->bytes / rows : 0;
        for (size_t r = 0; r < rows && !bad; r++)
            bad = safetensors_write_data(&w, t->data + r * row, t == cut ? row / 2 : row, &err);
    }
    if (bad || safetensors_write_end(&w, &err)) die("%s", err.text);
    free(specs);
}

/* halve FILE OUT TENSOR: a matrix loses the second half of each row; all else stays. */
static void halve(char **a) {
    SafeTensors st;
    open_tensors(&st, a[0]);
    const SafeTensor *cut = safetensors_find(&st, a[2]);
    if (!cut || cut->ndim != 2) die("%s has no matrix %s", a[0], a[2]);
    write_again(&st, a[1], cut);
    safetensors_close(&st);
}

/* say FILE OUT KEY VALUE: the metadata say this, too. */
static void say(char **a) {
    SafeTensors st;
    open_tensors(&st, a[0]);
    const int n = st.metadata_count++;
    st.keys = xrealloc(st.keys, (size_t)(n + 1) * sizeof *st.keys);
    st.values = xrealloc(st.values, (size_t)(n + 1) * sizeof *st.values);
    st.keys[n] = xstrdup(a[2]);
    st.values[n] = xstrdup(a[3]);
    write_again(&st, a[1], NULL);
    safetensors_close(&st);
}

/* tensor FILE NAME: "DTYPE d0 d1 ... [first data byte] CRC-32 of the data". */
static void tensor(char **a) {
    SafeTensors st;
    open_tensors(&st, a[0]);
    const SafeTensor *t = safetensors_find(&st, a[1]);
    if (!t) die("%s has no tensor %s", a[0], a[1]);
    printf("%s", dtype_name(t->dtype));
    for (int i = 0; i < t->ndim; i++) printf(" %lld", (long long)t->shape[i]);
    printf(" [%zu] %08x\n", (size_t)(t->data - st.file.data), crc32_bytes(0, t->data, t->bytes));
    safetensors_close(&st);
}

/* ce LOGITS: mean cross entropy of the ids in a file that eval --logits wrote, in double precision. */
static void cross_entropy(char **a) {
    SafeTensors st;
    open_tensors(&st, a[0]);
    const SafeTensor *l = safetensors_find(&st, "logits"), *ids = safetensors_find(&st, "ids");
    if (!l || !ids || l->ndim != 3 || ids->ndim != 2) die("%s: logits [N,T,V] and ids [N,T] were expected", a[0]);
    size_t rows = (size_t)(l->shape[0] * l->shape[1]), V = (size_t)l->shape[2];
    double sum = 0, count = 0;
    for (size_t i = 0; i < rows; i++) {
        const float *x = (const float *)(const void *)l->data + i * V;
        int id = ((const int *)(const void *)ids->data)[i];
        double total = 0;
        if (id < 0) continue;
        for (size_t k = 0; k < V; k++) total += exp((double)x[k]);
        sum += log(total) - (double)x[id];
        count++;
    }
    printf("%.6f\n", sum / count);
    safetensors_close(&st);
}

/* ---- JSON ---- */

/* json FILE KEY...: the values of the keys, one line of text for each line of the file, which must be an object, or
 * an array of objects. A key that an object lacks gives -, except the first: lines without it are left out. */
static void print_json(char **a) {
    FILE *f = fopen(a[0], "r");
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    if (!f) die("cannot read %s: %s", a[0], strerror(errno));
    while ((length = getline(&line, &capacity, f)) > 0) {
        Json j;
        if (line[length - 1] != '\n') die("%s: the last line does not end", a[0]);
        if (json_parse(&j, line, (size_t)length, a[0], &err)) die("%s", err.text);
        bool array = j.values[0].type == JSON_ARRAY;
        if (!array && j.values[0].type != JSON_OBJECT) die("%s: a line is neither an object nor an array", a[0]);
        for (int v = array ? j.values[0].child : 0; v >= 0; v = array ? j.values[v].next : -1) {
            for (char **key = a + 1; *key; key++) {
                int k = json_find(&j, v, *key);
                if (k < 0 && key == a + 1) break;
                if (k < 0)
                    printf("- ");
                else if (j.values[k].type == JSON_STRING)
                    printf("%s ", j.values[k].string);
                else if (j.values[k].type == JSON_NUMBER)
                    printf("%.9g ", j.values[k].number);
                else
                    printf("(%d) ", (int)j.values[k].type);
                if (!key[1]) printf("\n");
            }
        }
        json_free(&j);
    }
    free(line);
    fclose(f);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name, *arguments;
        int count;  // least number of arguments
        void (*run)(char **a);
    } commands[] = {
        {"flip", "FILE OUT BIT", 3, flip},
        {"png", "OUT WIDTH HEIGHT DEPTH COLOUR VALUE", 6, png},
        {"part", "DATA OUT FIRST COUNT", 4, part},
        {"longest", "DATA", 1, longest},
        {"unused", "DATA", 1, unused},
        {"image", "DATA OUT N", 3, image},
        {"blank", "DATA OUT N", 3, blank},
        {"token", "DATA OUT N ID", 4, token},
        {"nan", "FILE OUT TENSOR", 3, nan_tensor},
        {"set", "FILE OUT TENSOR INDEX VALUE", 5, set_element},
        {"finite", "FILE", 1, finite_tensors},
        {"word", "FILE OUT", 2, word},
        {"halve", "FILE OUT TENSOR", 3, halve},
        {"say", "FILE OUT KEY VALUE", 4, say},
        {"tensor", "FILE NAME", 2, tensor},
        {"ce", "LOGITS", 1, cross_entropy},
        {"json", "FILE KEY...", 2, print_json},
    };
    program_begin(argv);
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (argc < 2 || strcmp(argv[1], commands[i].name) || argc - 2 < commands[i].count) continue;
        commands[i].run(argv + 2);
        return 0;
    }
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        fprintf(stderr, "damage %s %s\n", commands[i].name, commands[i].arguments);
    return 3;
}
