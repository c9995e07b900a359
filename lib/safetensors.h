/* safetensors: a header length in 8 bytes (little-endian), a JSON header, then the data of all tensors without gaps.
 * Format: https://github.com/huggingface/safetensors#format
 *
 * Opening a file maps it and checks its whole header; afterwards every tensor can be read without further checks. */
#ifndef LIB_SAFETENSORS_H
#define LIB_SAFETENSORS_H

#include "error.h"

#include "dtype.h"
#include "file.h"
#include "json.h"

#define SAFETENSORS_MAX_HEADER 100000000u  // bytes; as in the reference implementation

typedef struct {
    char name[128];
    Dtype dtype;
    int ndim;  // 0 to 4
    int64_t shape[4];
    const uint8_t *data;
    size_t bytes;
} SafeTensor;

typedef struct {
    MappedFile file;
    SafeTensor *tensors;  // in the order of their data in the file
    int count;
    char **keys, **values;  // __metadata__
    int metadata_count;
    int *by_name;  // indices of tensors, sorted by name
} SafeTensors;

/* ---- reading ---- */

static inline void safetensors_close(SafeTensors *st) {
    for (int i = 0; i < st->metadata_count; i++) {
        free(st->keys[i]);
        free(st->values[i]);
    }
    free(st->keys);
    free(st->values);
    free(st->tensors);
    free(st->by_name);
    file_unmap(&st->file);
    memset(st, 0, sizeof *st);
}

/* Sets *bytes to the size of a tensor, the product of its shape and the size of an element. Returns false on overflow
 * or a negative dimension. */
static inline bool safetensors_bytes(const int64_t *shape, int ndim, Dtype dtype, size_t *bytes) {
    size_t n = dtype_size(dtype);
    bool fits = true;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0) return false;
        if (shape[i] > 0 && n > (size_t)INT64_MAX / (size_t)shape[i])
            fits = false;  // a later dimension of 0 would make the tensor empty, but that is no sensible shape
        else
            n *= (size_t)shape[i];
    }
    *bytes = n;
    return fits;
}

/* Reads __metadata__: a JSON object of strings. */
static inline int safetensors_metadata_read(SafeTensors *st, const Json *j, int object, Error *err) {
    const JsonValue *m = &j->values[object];
    if (m->type != JSON_OBJECT)
        return error_set(err, "cannot read %s: __metadata__ is not a JSON object", st->file.path);
    st->keys = xcalloc(m->count, sizeof *st->keys);
    st->values = xcalloc(m->count, sizeof *st->values);
    for (int v = m->child; v >= 0; v = j->values[v].next) {
        if (j->values[v].type != JSON_STRING)
            return error_set(err, "cannot read %s: the value of '%.100s' in __metadata__ is not a string",
                             st->file.path, j->values[v].key);
        st->keys[st->metadata_count] = xstrdup(j->values[v].key);
        st->values[st->metadata_count++] = xstrdup(j->values[v].string);
    }
    return 0;
}

/* The element type that JSON value v names; -1 if it is none of those supported. */
static inline int safetensors_dtype(const Json *j, int v, Dtype *dtype) {
    if (v < 0 || j->values[v].type != JSON_STRING) return -1;
    for (int i = 0; i < DT_COUNT; i++) {
        if (strcmp(j->values[v].string, dtype_name((Dtype)i)) != 0) continue;
        *dtype = (Dtype)i;
        return 0;
    }
    return -1;
}

/* Reads one entry of the header into the next tensor. `data` is the beginning of the data section, data_bytes its
 * size. */
static inline int safetensors_tensor_read(SafeTensors *st, const Json *j, int v, const uint8_t *data,
                                          size_t data_bytes, Error *err) {
    const char *path = st->file.path, *name = j->values[v].key;
    SafeTensor *t = &st->tensors[st->count];
    if (strlen(name) >= sizeof t->name || !*name)
        return error_set(err, "cannot read %s: the tensor name '%.40s...' has %zu bytes, 1 to 127 are supported",
                         path, name, strlen(name));
    strcpy(t->name, name);
    if (j->values[v].type != JSON_OBJECT)
        return error_set(err, "cannot read %s: the header entry of tensor %s is not a JSON object", path, name);
    int dtype = json_find(j, v, "dtype"), shape = json_find(j, v, "shape"), offsets = json_find(j, v, "data_offsets");
    if (safetensors_dtype(j, dtype, &t->dtype) != 0)
        return error_set(err,
                         "cannot read %s: tensor %s has dtype %.20s; F32, BF16, F16, I8, U8, I32 and I64 are supported",
                         path, name, dtype >= 0 && j->values[dtype].string ? j->values[dtype].string : "(none)");
    if (shape < 0 || j->values[shape].type != JSON_ARRAY || j->values[shape].count > 4)
        return error_set(err, "cannot read %s: the shape of tensor %s is not an array of 0 to 4 numbers", path, name);
    for (int d = j->values[shape].child; d >= 0; d = j->values[d].next) {
        if (!j->values[d].is_integer || j->values[d].integer < 0)
            return error_set(err, "cannot read %s: a dimension of tensor %s is not a whole number of 0 or more", path,
                             name);
        t->shape[t->ndim++] = j->values[d].integer;
    }
    if (!safetensors_bytes(t->shape, t->ndim, t->dtype, &t->bytes))
        return error_set(err, "cannot read %s: the shape of tensor %s is too large", path, name);
    if (offsets < 0 || j->values[offsets].type != JSON_ARRAY || j->values[offsets].count != 2)
        return error_set(err, "cannot read %s: tensor %s has no data_offsets [begin, end]", path, name);
    const JsonValue *begin = &j->values[j->values[offsets].child], *end = &j->values[begin->next];
    if (!begin->is_integer || !end->is_integer || begin->integer < 0 || begin->integer > end->integer ||
        (uint64_t)end->integer > data_bytes)
        return error_set(err,
                         "cannot read %s: data_offsets of tensor %s are outside the %zu bytes of data; the file "
                         "is cut off or damaged",
                         path, name, data_bytes);
    if ((uint64_t)(end->integer - begin->integer) != t->bytes)
        return error_set(err, "cannot read %s: tensor %s needs %zu bytes by its shape, its data_offsets give %lld",
                         path, name, t->bytes, (long long)(end->integer - begin->integer));
    t->data = data + begin->integer;
    if ((uintptr_t)t->data % dtype_size(t->dtype) != 0)
        return error_set(err,
                         "cannot read %s: tensor %s begins at byte %zu of the file, not at a multiple of %zu; "
                         "save it anew with a current safetensors",
                         path, name, (size_t)(t->data - st->file.data), dtype_size(t->dtype));
    st->count++;
    return 0;
}

static inline int safetensors_compare_data(const void *a, const void *b) {
    const SafeTensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;  // empty tensors come before what follows them
    return strcmp(x->name, y->name);
}

typedef struct {
    const char *name;
    int index;
} SafeTensorName;

static inline int safetensors_compare_name(const void *a, const void *b) {
    return strcmp(((const SafeTensorName *)a)->name, ((const SafeTensorName *)b)->name);
}

/* Sorts the tensors by position, checks that they cover the data section without overlap or hole, fills by_name. */
static inline int safetensors_layout(SafeTensors *st, const uint8_t *data, size_t data_bytes, Error *err) {
    qsort(st->tensors, st->count, sizeof *st->tensors, safetensors_compare_data);
    const uint8_t *at = data;
    for (int i = 0; i < st->count; i++) {
        const SafeTensor *t = &st->tensors[i];
        if (t->data != at)
            return error_set(err, "cannot read %s: the data of tensor %s %s", st->file.path, t->name,
                             t->data < at ? "overlap those of another tensor"
                                          : "follow a hole that belongs to no tensor");
        at += t->bytes;
    }
    if (at != data + data_bytes)
        return error_set(err, "cannot read %s: the last %zu bytes belong to no tensor", st->file.path,
                         (size_t)(data + data_bytes - at));
    SafeTensorName *names = xcalloc(st->count, sizeof *names);
    for (int i = 0; i < st->count; i++) names[i] = (SafeTensorName){st->tensors[i].name, i};
    qsort(names, st->count, sizeof *names, safetensors_compare_name);
    st->by_name = xcalloc(st->count, sizeof *st->by_name);
    for (int i = 0; i < st->count; i++) st->by_name[i] = names[i].index;
    free(names);
    return 0;
}

/* Reads the parsed JSON header, which has header_bytes bytes in the file. */
static inline int safetensors_header_read(SafeTensors *st, const Json *j, size_t header_bytes, Error *err) {
    const uint8_t *data = st->file.data + 8 + header_bytes;
    size_t data_bytes = st->file.size - 8 - header_bytes;
    if (j->values[0].type != JSON_OBJECT)
        return error_set(err, "cannot read %s: its header is not a JSON object", st->file.path);
    st->tensors = xcalloc(j->values[0].count, sizeof *st->tensors);
    for (int v = j->values[0].child; v >= 0; v = j->values[v].next) {
        int status = strcmp(j->values[v].key, "__metadata__")
                         ? safetensors_tensor_read(st, j, v, data, data_bytes, err)
                         : safetensors_metadata_read(st, j, v, err);
        if (status != 0) return -1;
    }
    return safetensors_layout(st, data, data_bytes, err);
}

/* Maps a file and checks its header. After a failure nothing is left open. */
static inline int safetensors_open(SafeTensors *st, const char *path, Error *err) {
    memset(st, 0, sizeof *st);
    if (file_map(&st->file, path, err) != 0) return -1;
#if defined(MADV_HUGEPAGE)
    // A hint that all of the file will be read: newer kernels then use pages of 2 MiB; others ignore it.
    madvise((void *)st->file.data, st->file.size, MADV_HUGEPAGE);
#endif
    uint64_t header_bytes = 0;
    for (size_t i = 0; i < 8 && i < st->file.size; i++) header_bytes |= (uint64_t)st->file.data[i] << (8 * i);
    Json j = {0};
    char *name = format_string("the header of %s", path);
    int status;
    if (st->file.size < 10)
        status = error_set(err, "cannot read %s: %zu bytes are too few for a safetensors file", path, st->file.size);
    else if (header_bytes > SAFETENSORS_MAX_HEADER || header_bytes > st->file.size - 8)
        status =
            error_set(err,
                      "cannot read %s: it is not a safetensors file, or it is cut off (its first 8 bytes announce a "
                      "header of %llu bytes; the file has %zu, and 100 MB is the limit)",
                      path, (unsigned long long)header_bytes, st->file.size);
    else
        status = json_parse(&j, (const char *)st->file.data + 8, header_bytes, name, err);
    if (status == 0) status = safetensors_header_read(st, &j, header_bytes, err);
    free(name);
    json_free(&j);
    if (status != 0) safetensors_close(st);
    return status;
}

/* The tensor of that name, or NULL; a binary search. */
static inline const SafeTensor *safetensors_find(const SafeTensors *st, const char *name) {
    int low = 0, high = st->count;
    while (low < high) {
        int middle = low + (high - low) / 2, order = strcmp(name, st->tensors[st->by_name[middle]].name);
        if (order == 0) return &st->tensors[st->by_name[middle]];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

/* Element i of a tensor of type F32, BF16 or F16. */
static inline float safetensors_float(const SafeTensor *t, size_t i) {
    if (t->dtype == DT_F32) return ((const float *)(const void *)t->data)[i];
    if (t->dtype == DT_BF16) return bf16_to_f32(((const bf16 *)(const void *)t->data)[i]);
    return f16_to_f32(((const uint16_t *)(const void *)t->data)[i]);
}

/* The first tensor with a NaN or an infinity, or NULL. A value that floatX cannot hold counts as infinite. Slow: for
 * error messages. */
static inline const SafeTensor *safetensors_not_finite(const SafeTensors *st) {
    for (int i = 0; i < st->count; i++) {
        const SafeTensor *t = &st->tensors[i];
        if (t->dtype != DT_F32 && t->dtype != DT_BF16 && t->dtype != DT_F16) continue;
        for (size_t k = 0; k < t->bytes / dtype_size(t->dtype); k++)
            if (!isfinite(from_x(to_x(safetensors_float(t, k))))) return t;
    }
    return NULL;
}

/* The value of a key of __metadata__, or NULL. */
static inline const char *safetensors_metadata(const SafeTensors *st, const char *key) {
    for (int i = 0; i < st->metadata_count; i++)
        if (!strcmp(st->keys[i], key)) return st->values[i];
    return NULL;
}

/* ---- writing ---- */

typedef struct {
    char name[128];
    Dtype dtype;
    int ndim;
    int64_t shape[4];
} SafeTensorSpec;

typedef struct {
    AtomicFile file;
    size_t *offset, *bytes;  // [count] position in the file and size of each tensor, in the order of the specs
    int count, current;      // current: the tensor that is being written
    size_t written;          // bytes of it written so far
} SafeTensorsWriter;

static inline void safetensors_write_abandon(SafeTensorsWriter *w) {
    atomic_abandon(&w->file);
    free(w->offset);
    free(w->bytes);
    memset(w, 0, sizeof *w);
}

/* Assigns the offsets of the tensors in the data section. Data are passed to the writer in the order of the specs,
 * but lie in the file by descending element size, which aligns every tensor; equal sizes keep their order. */
static inline int safetensors_assign_offsets(SafeTensorsWriter *w, const SafeTensorSpec *specs, const char *path,
                                             Error *err) {
    size_t at = 0;
    for (size_t size = 8; size > 0; size /= 2) {
        for (int i = 0; i < w->count; i++) {
            const SafeTensorSpec *s = &specs[i];
            if ((unsigned)s->dtype >= DT_COUNT || dtype_size(s->dtype) != size) continue;
            if (s->ndim < 0 || s->ndim > 4 || !safetensors_bytes(s->shape, s->ndim, s->dtype, &w->bytes[i]) ||
                at > (size_t)INT64_MAX - w->bytes[i])
                return error_set(err, "cannot write %s: tensor %s has an impossible shape", path, s->name);
            w->offset[i] = at;
            at += w->bytes[i];
        }
    }
    return 0;
}

static inline void safetensors_header_write(JsonWriter *j, const SafeTensorsWriter *w, const SafeTensorSpec *specs,
                                            const char *const *keys, const char *const *values, int metadata_count) {
    json_begin_object(j);
    if (metadata_count > 0) {
        json_key(j, "__metadata__");
        json_begin_object(j);
        for (int i = 0; i < metadata_count; i++) {
            json_key(j, keys[i]);
            json_string(j, values[i] ? values[i] : "");
        }
        json_end_object(j);
    }
    for (int i = 0; i < w->count; i++) {
        json_key(j, specs[i].name);
        json_begin_object(j);
        json_key(j, "dtype");
        json_string(j, dtype_name(specs[i].dtype));
        json_key(j, "shape");
        json_begin_array(j);
        for (int d = 0; d < specs[i].ndim; d++) json_integer(j, specs[i].shape[d]);
        json_end_array(j);
        json_key(j, "data_offsets");
        json_begin_array(j);
        json_integer(j, (int64_t)w->offset[i]);
        json_integer(j, (int64_t)(w->offset[i] + w->bytes[i]));
        json_end_array(j);
        json_end_object(j);
    }
    json_end_object(j);
    while ((8 + j->length) % 64 != 0) json_append(j, " ", 1);  // the data section begins at a multiple of 64 bytes
}

/* Begins a file with `count` tensors and metadata_count pairs of metadata. It appears under its name only after
 * safetensors_write_end (see atomic_open). */
static inline int safetensors_write_begin(SafeTensorsWriter *w, const char *path, const SafeTensorSpec *specs,
                                          int count, const char *const *keys, const char *const *values,
                                          int metadata_count, Error *err) {
    *w = (SafeTensorsWriter){
        .count = count, .offset = xcalloc(count, sizeof *w->offset), .bytes = xcalloc(count, sizeof *w->bytes)};
    JsonWriter j = {0};
    int status = safetensors_assign_offsets(w, specs, path, err);
    if (status == 0) safetensors_header_write(&j, w, specs, keys, values, metadata_count);
    if (status == 0 && j.length > SAFETENSORS_MAX_HEADER)
        status =
            error_set(err, "cannot write %s: its header would have %zu bytes, 100 MB is the limit", path, j.length);
    if (status == 0) status = atomic_open(&w->file, path, err);
    uint8_t length[8];
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)((uint64_t)j.length >> (8 * i));
    if (status == 0) status = atomic_write(&w->file, length, sizeof length, err);
    if (status == 0) status = atomic_write(&w->file, j.text, j.length, err);
    for (int i = 0; i < count; i++) w->offset[i] += 8 + j.length;
    json_writer_free(&j);
    if (status != 0) safetensors_write_abandon(w);
    return status;
}

/* Writes the next bytes, in the order of the specs. A call may write a part of a tensor or several tensors. */
static inline int safetensors_write_data(SafeTensorsWriter *w, const void *data, size_t bytes, Error *err) {
    const uint8_t *from = data;
    while (bytes > 0) {
        while (w->current < w->count && w->written == w->bytes[w->current]) {
            w->current++;
            w->written = 0;
        }
        if (!w->file.f) return error_set(err, "cannot write: the file was closed after an earlier error");
        if (w->current >= w->count)
            return error_set(err, "cannot write %s: %zu bytes more than its tensors need", w->file.path, bytes);
        if (w->written == 0 && ftello(w->file.f) != (off_t)w->offset[w->current] &&
            fseeko(w->file.f, (off_t)w->offset[w->current], SEEK_SET) != 0)
            return atomic_fail(&w->file, errno, err);
        size_t n = w->bytes[w->current] - w->written;
        if (n > bytes) n = bytes;
        if (atomic_write(&w->file, from, n, err) != 0) return -1;
        w->written += n;
        from += n;
        bytes -= n;
    }
    return 0;
}

/* Checks that every tensor was written, and commits the file. The writer is freed, also after a failure. */
static inline int safetensors_write_end(SafeTensorsWriter *w, Error *err) {
    while (w->current < w->count && w->written == w->bytes[w->current]) {
        w->current++;
        w->written = 0;
    }
    int status;
    if (w->file.f && w->current < w->count)
        status = error_set(err, "cannot write %s: tensor number %d got %zu of its %zu bytes", w->file.path,
                           w->current, w->written, w->bytes[w->current]);
    else
        status = atomic_commit(&w->file, err);
    safetensors_write_abandon(w);
    return status;
}

#endif
