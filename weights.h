/* The values of parameters in files: found and checked, used in place, converted or quantised while loading, and written.
 *
 * A quantised parameter NAME is two tensors: NAME, int8 [rows, 32 G] (q8) or uint8 [rows, 16 G] (q4), and NAME.scales,
 * bf16 [rows, G] or [rows, G, 2] as [rows, 2 G]; kernels/quantised.h says what they mean. So a file maps straight into
 * memory. */
#ifndef WEIGHTS_H
#define WEIGHTS_H

#include "kernels/quantise.h"
#include "params.h"
#include "lib/safetensors.h"

/* ---- formats ---- */

typedef enum { WEIGHTS_AS_STORED, WEIGHTS_Q8, WEIGHTS_Q4 } WeightFormat;

/* Reads the name of a format; NULL: as stored. -1: there is none of this name. */
static inline int weight_format(const char *name, WeightFormat *format) {
    *format = !name ? WEIGHTS_AS_STORED : !strcmp(name, "q8") ? WEIGHTS_Q8 : WEIGHTS_Q4;
    return !name || !strcmp(name, "q8") || !strcmp(name, "q4") ? 0 : -1;
}

/* The type of a parameter in a format: DT_I8, DT_U8, or DT_FLOATX where it is never quantised. */
static inline Dtype param_dtype(const Param *x, WeightFormat format) {
    int bits = format == WEIGHTS_Q4 ? 4 : format == WEIGHTS_Q8 ? 8 : 16;
    if (bits < x->least_bits) bits = x->least_bits;
    return bits == 4 ? DT_U8 : bits == 8 ? DT_I8 : DT_FLOATX;
}

/* ---- finding ---- */

/* Where a parameter lies in a file. */
typedef struct {
    const SafeTensor *values, *scales;  // scales: NULL unless it is quantised
} StoredParam;

static inline int shape_wrong(const SafeTensor *t, int rows, size_t cols, int ndim, const char *path, Error *err) {
    bool right = t->ndim == ndim && t->shape[0] == rows && (ndim == 1 || (size_t)t->shape[1] == cols);
    if (right) return 0;
    return error_set(err, "%s: tensor %s has shape [%lld, %lld]; the configuration asks for [%d, %zu]", path, t->name,
                     t->ndim > 0 ? (long long)t->shape[0] : 0, t->ndim > 1 ? (long long)t->shape[1] : 1, rows, cols);
}

static inline int find_quantised(StoredParam *s, const Param *x, const SafeTensors *st, Error *err) {
    const char *path = st->file.path;
    const SafeTensor *q = s->values;
    char name[sizeof x->name + 8];
    snprintf(name, sizeof name, "%s.scales", x->name);
    s->scales = safetensors_find(st, name);
    if (!s->scales)
        return error_set(err, "%s: tensor %s is missing, without which %s says nothing", path, name, x->name);
    if (s->scales->dtype != DT_BF16)
        return error_set(err, "%s: tensor %s is of type %s; scales must be BF16", path, name,
                         dtype_name(s->scales->dtype));
    if (shape_wrong(q, x->rows, quant_row_bytes(q->dtype, x->cols), 2, path, err)) return -1;
    const size_t scales = quant_row_scales(q->dtype, x->cols);
    if (s->scales->ndim == 2 && s->scales->shape[0] == x->rows && (size_t)s->scales->shape[1] != scales)
        return error_set(err, "%s: tensor %s has %lld numbers a row; groups of %d weights need %zu", path, name,
                         (long long)s->scales->shape[1], QUANT_GROUP, scales);
    return shape_wrong(s->scales, x->rows, scales, 2, path, err);
}

/* Finds a parameter's tensors and checks their shapes and types; -1 with *err filled on a mismatch. */
static inline int param_find(StoredParam *s, const Param *x, const SafeTensors *st, Error *err) {
    const char *path = st->file.path;
    s->scales = NULL;
    s->values = safetensors_find(st, x->name);
    if (!s->values)
        return error_set(err, "%s: tensor %s is missing; the file is not a complete tikz.c model", path, x->name);
    const Dtype dtype = s->values->dtype;
    if (dtype_is_quantised(dtype) && x->least_bits < 16) return find_quantised(s, x, st, err);
    if (shape_wrong(s->values, x->rows, x->cols, x->ndim, path, err)) return -1;
    if (dtype != DT_BF16 && dtype != DT_F32 && dtype != DT_F16)
        return error_set(err, "%s: tensor %s is of type %s; weights must be BF16, F16 or F32%s", path, x->name,
                         dtype_name(dtype), x->least_bits < 16 ? ", or I8 or U8 with scales" : "");
    return 0;
}

/* ---- loading ---- */

/* Copies a stored tensor that is not quantised into a parameter, converted to floatX. */
static inline void param_copy_from(const Param *x, const SafeTensor *t, const Ops *op) {
    if (t->dtype == DT_FLOATX) {
        op->upload(x->value, t->data, t->bytes);
        return;
    }
    floatX *host = xmalloc(x->n * sizeof(floatX));
    for (size_t i = 0; i < x->n; i++) host[i] = to_x(safetensors_float(t, i));
    op->upload(x->value, host, x->n * sizeof(floatX));
    free(host);
}

/* Quantises a stored tensor into q and scales on the host. */
static inline void quantise_tensor(uint8_t *q, bf16 *scales, const Param *x, const SafeTensor *t) {
    const size_t bytes = quant_row_bytes(x->dtype, x->cols), row_scales = quant_row_scales(x->dtype, x->cols);
#pragma omp parallel
    {
        float *row = xmalloc(x->cols * sizeof(float));
#pragma omp for schedule(static)
        for (int r = 0; r < x->rows; r++) {
            const size_t from = (size_t)r * x->cols;
            const bf16 *halves = (const bf16 *)(const void *)t->data + from;
            if (t->dtype == DT_BF16)
                for (int i = 0; i < x->cols; i++) row[i] = bf16_to_f32(halves[i]);
            else
                for (int i = 0; i < x->cols; i++) row[i] = safetensors_float(t, from + i);
            quantise_row(x->dtype, q + r * bytes, scales + r * row_scales, row, x->cols);
        }
        free(row);
    }
}

/* Quantises a stored tensor into a parameter. */
static inline void param_quantise_from(const Param *x, const SafeTensor *t, const Ops *op) {
    const size_t q_bytes = param_value_bytes(x), scale_bytes = param_scale_bytes(x);
    if (op->host_memory) {
        quantise_tensor(x->quants, x->scales, x, t);
        return;
    }
    void *q = xmalloc(q_bytes), *scales = xmalloc(scale_bytes);
    quantise_tensor(q, scales, x, t);
    op->upload(x->quants, q, q_bytes);
    op->upload(x->scales, scales, scale_bytes);
    free(q);
    free(scales);
}

/* The type that a parameter will have; -1 with *err filled where it is stored in another format than is asked for. */
static inline int param_choose_dtype(Param *x, const StoredParam *s, WeightFormat format, const char *path,
                                     Error *err) {
    x->dtype = s->scales ? s->values->dtype : param_dtype(x, format);
    if (!s->scales || format == WEIGHTS_AS_STORED || x->dtype == param_dtype(x, format)) return 0;
    return error_set(
        err, "%s is quantised in another way than is asked for (tensor %s is %s); quantise the original model", path,
        x->name, x->dtype == DT_I8 ? "q8" : "q4");
}

/* Points a parameter to its tensors in the file. */
static inline void param_use_in_place(Param *x, const StoredParam *s) {
    x->in_file = true;
    x->value = s->scales ? NULL : (floatX *)(uintptr_t)s->values->data;
    x->quants = s->scales ? (void *)(uintptr_t)s->values->data : NULL;
    x->scales = s->scales ? (bf16 *)(uintptr_t)s->scales->data : NULL;
}

static inline void param_load(const Param *x, const StoredParam *s, const Ops *op) {
    if (s->scales) {
        op->upload(x->quants, s->values->data, s->values->bytes);
        op->upload(x->scales, s->scales->data, s->scales->bytes);
    } else if (x->dtype == DT_FLOATX) {
        param_copy_from(x, s->values, op);
    } else {
        param_quantise_from(x, s->values, op);
    }
}

/* Takes the values from a file. Where the device shares the host's memory, every tensor that is stored as it is needed is
 * used in place: no copy, no memory; its pages load when they are first read, and the file must stay open. The others get
 * memory and are converted, or quantised to `format`. */
static inline int params_load(Params *p, const SafeTensors *st, const Ops *op, WeightFormat format, Error *err) {
    StoredParam *stored = xcalloc(p->count, sizeof *stored);
    int bad = 0;
    for (int i = 0; i < p->count && !bad; i++) {
        Param *x = &p->list[i];
        const StoredParam *s = &stored[i];
        bad = param_find(&stored[i], x, st, err) || param_choose_dtype(x, s, format, st->file.path, err);
        if (!bad && op->host_memory && s->values->dtype == x->dtype) param_use_in_place(x, s);
    }
    if (!bad) bad = params_try_allocate(p, op, err);
    for (int i = 0; i < p->count && !bad; i++)
        if (!p->list[i].in_file) param_load(&p->list[i], &stored[i], op);
    free(stored);
    return bad ? -1 : 0;
}

/* Refuses a model for training whose weights are quantised: rounded weights take no small steps. */
static inline int params_refuse_quantised(const Params *p, const char *path, Error *err) {
    for (int i = 0; i < p->count; i++)
        if (p->list[i].dtype != DT_FLOATX)
            return error_set(err,
                             "%s has weights of %d bits, which cannot be trained; name the model that it was made of",
                             path, p->list[i].dtype == DT_I8 ? 8 : 4);
    return 0;
}

/* ---- writing ---- */

/* The tensors of all parameters, in the order in which params_write writes them: at most 2 * count. Returns how many. */
static inline int params_specs(const Params *p, SafeTensorSpec *specs) {
    int n = 0;
    for (int i = 0; i < p->count; i++) {
        const Param *x = &p->list[i];
        const bool quantised = x->dtype != DT_FLOATX;
        SafeTensorSpec *s = &specs[n++];
        snprintf(s->name, sizeof s->name, "%s", x->name);
        s->dtype = x->dtype;
        s->ndim = x->ndim;
        s->shape[0] = x->rows;
        s->shape[1] = quantised ? (int64_t)quant_row_bytes(x->dtype, x->cols) : x->cols;
        if (!quantised) continue;
        s = &specs[n++];
        snprintf(s->name, sizeof s->name, "%s.scales", x->name);
        s->dtype = DT_BF16;
        s->ndim = 2;
        s->shape[0] = x->rows;
        s->shape[1] = (int64_t)quant_row_scales(x->dtype, x->cols);
    }
    return n;
}

static inline int write_from_device(const void *from, size_t bytes, const Ops *op, SafeTensorsWriter *w, Error *err) {
    if (op->host_memory) return safetensors_write_data(w, from, bytes, err);
    void *host = xmalloc(bytes);
    op->download(host, from, bytes);
    int bad = safetensors_write_data(w, host, bytes, err);
    free(host);
    return bad;
}

static inline int params_write(const Params *p, const Ops *op, SafeTensorsWriter *w, Error *err) {
    int bad = 0;
    for (int i = 0; !bad && i < p->count; i++) {
        const Param *x = &p->list[i];
        bad = write_from_device(x->dtype == DT_FLOATX ? x->value : x->quants, param_value_bytes(x), op, w, err);
        if (!bad && x->dtype != DT_FLOATX) bad = write_from_device(x->scales, param_scale_bytes(x), op, w, err);
    }
    return bad;
}

#endif
