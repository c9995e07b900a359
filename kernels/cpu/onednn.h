/* oneDNN's matmul, as one task of ours calls it. It is single-threaded: the tasks are the parallelism, so that the
 * result does not depend on the number of threads. Each thread keeps the primitives and their memory objects for the
 * shapes it has seen, so that a training step creates nothing. Versions 2 and 3 of oneDNN's C API differ in how
 * memory and operations are described; only the functions of the first section know of it. */
#ifndef KERNELS_CPU_ONEDNN_H
#define KERNELS_CPU_ONEDNN_H

#include "microkernel.h"
#include <oneapi/dnnl/dnnl.h>
#include <omp.h>

/* ---- the two versions of the API ---- */

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t OnednnDesc;
typedef const_dnnl_memory_desc_t OnednnDescRead;
static inline OnednnDescRead onednn_read(const OnednnDesc *d) { return *d; }
static inline void onednn_desc_free(OnednnDesc *d) { dnnl_memory_desc_destroy(*d); }

static bool onednn_desc(OnednnDesc *d, dnnl_dims_t dims, dnnl_data_type_t type, dnnl_dims_t strides) {
    return dnnl_memory_desc_create_with_strides(d, 2, dims, type, strides) == dnnl_success;
}

static bool onednn_matmul_desc(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, const OnednnDesc d[3],
                               const_dnnl_primitive_attr_t attr) {
    return dnnl_matmul_primitive_desc_create(pd, engine, d[0], d[1], NULL, d[2], attr) == dnnl_success;
}
#else
typedef dnnl_memory_desc_t OnednnDesc;
typedef const dnnl_memory_desc_t *OnednnDescRead;
static inline OnednnDescRead onednn_read(const OnednnDesc *d) { return d; }
static inline void onednn_desc_free(OnednnDesc *d) { (void)d; }

static bool onednn_desc(OnednnDesc *d, dnnl_dims_t dims, dnnl_data_type_t type, dnnl_dims_t strides) {
    return dnnl_memory_desc_init_by_strides(d, 2, dims, type, strides) == dnnl_success;
}

static bool onednn_matmul_desc(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, const OnednnDesc d[3],
                               const_dnnl_primitive_attr_t attr) {
    dnnl_matmul_desc_t op;
    return dnnl_matmul_desc_init(&op, &d[0], &d[1], NULL, &d[2]) == dnnl_success &&
           dnnl_primitive_desc_create(pd, &op, attr, engine, NULL) == dnnl_success;
}
#endif

/* ---- one matmul ---- */

typedef struct {
    size_t M, N, K, lda, ldb, ldc;
    size_t a_transposed, b_transposed,
        dtype;  // size_t, so that the struct has no padding and memcmp sees values only
} OnednnShape;

enum { ONEDNN_A, ONEDNN_B, ONEDNN_C, ONEDNN_SCRATCH, ONEDNN_MEMORIES };

typedef struct {
    OnednnShape shape;
    bool usable;  // false: oneDNN refused this shape
    dnnl_primitive_t primitive;
    dnnl_memory_t memory[ONEDNN_MEMORIES];
    size_t scratch_bytes;
} OnednnPrimitive;

enum { ONEDNN_SHAPES = 512 };  // of one thread; all are dropped when they are full

typedef struct {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    int count;
    OnednnPrimitive primitives[ONEDNN_SHAPES];
} OnednnThread;

static pthread_key_t onednn_key;
static pthread_once_t onednn_once = PTHREAD_ONCE_INIT;

static void onednn_drop(OnednnThread *t) {
    for (int i = 0; i < t->count; i++) {
        OnednnPrimitive *p = &t->primitives[i];
        for (int m = 0; m < ONEDNN_MEMORIES; m++)
            if (p->memory[m]) dnnl_memory_destroy(p->memory[m]);
        if (p->primitive) dnnl_primitive_destroy(p->primitive);
    }
    t->count = 0;
}

static void onednn_thread_end(void *thread) {
    OnednnThread *t = (OnednnThread *)thread;
    onednn_drop(t);
    dnnl_stream_destroy(t->stream);
    dnnl_engine_destroy(t->engine);
    free(t);
}

static void onednn_key_create(void) {
    if (pthread_key_create(&onednn_key, onednn_thread_end) != 0) abort();
}

static OnednnThread *onednn_thread(void) {
    pthread_once(&onednn_once, onednn_key_create);
    OnednnThread *t = (OnednnThread *)pthread_getspecific(onednn_key);
    if (t) return t;
    t = (OnednnThread *)calloc(1, sizeof *t);
    if (!t || dnnl_engine_create(&t->engine, dnnl_cpu, 0) != dnnl_success ||
        dnnl_stream_create(&t->stream, t->engine, dnnl_stream_default_flags) != dnnl_success) {
        fprintf(stderr, "error: oneDNN does not start on this processor; rebuild with make clean && make ONEDNN=0\n");
        exit(1);
    }
    pthread_setspecific(onednn_key, t);
    return t;
}

/* Creates the primitive and the memory objects for p->shape; p->usable tells whether that worked. */
static void onednn_create(OnednnThread *t, OnednnPrimitive *p) {
    const OnednnShape *s = &p->shape;
    dnnl_data_type_t type = s->dtype == DT_F32 ? dnnl_f32 : dnnl_bf16;
    dnnl_dims_t dims[3] = {{(dnnl_dim_t)s->M, (dnnl_dim_t)s->K},
                           {(dnnl_dim_t)s->K, (dnnl_dim_t)s->N},
                           {(dnnl_dim_t)s->M, (dnnl_dim_t)s->N}};
    dnnl_dims_t strides[3] = {{(dnnl_dim_t)s->lda, 1}, {(dnnl_dim_t)s->ldb, 1}, {(dnnl_dim_t)s->ldc, 1}};
    if (s->a_transposed) strides[0][0] = 1, strides[0][1] = (dnnl_dim_t)s->lda;
    if (s->b_transposed) strides[1][0] = 1, strides[1][1] = (dnnl_dim_t)s->ldb;
    OnednnDesc d[3];
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    int created = 0;
    while (created < 3 && onednn_desc(&d[created], dims[created], created == 2 ? dnnl_f32 : type, strides[created]))
        created++;
    if (created == 3 && dnnl_primitive_attr_create(&attr) == dnnl_success &&
        dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user) == dnnl_success &&
        onednn_matmul_desc(&pd, t->engine, d, attr) && dnnl_primitive_create(&p->primitive, pd) == dnnl_success) {
        OnednnDescRead scratchpad = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
        p->scratch_bytes = dnnl_memory_desc_get_size(scratchpad);
        p->usable = dnnl_memory_create(&p->memory[ONEDNN_SCRATCH], scratchpad, t->engine, NULL) == dnnl_success;
        for (int i = 0; i < 3 && p->usable; i++)
            p->usable = dnnl_memory_create(&p->memory[i], onednn_read(&d[i]), t->engine, NULL) == dnnl_success;
    }
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (attr) dnnl_primitive_attr_destroy(attr);
    while (created > 0) onednn_desc_free(&d[--created]);
}

/* The primitive for a shape, created at its first call. */
static OnednnPrimitive *onednn_find(OnednnThread *t, const OnednnShape *s) {
    for (int i = 0; i < t->count; i++)
        if (memcmp(&t->primitives[i].shape, s, sizeof *s) == 0) return &t->primitives[i];
    if (t->count == ONEDNN_SHAPES) onednn_drop(t);
    OnednnPrimitive *p = &t->primitives[t->count++];
    memset(p, 0, sizeof *p);
    p->shape = *s;
    onednn_create(t, p);
    return p;
}

/* C [M, N] fp32 (rows ldc apart) = A B, where A(m, k) is the stored element (m, k) of a, or (k, m) when a_transposed,
 * counted from row a_row and column a_col; B likewise. Returns false, having done nothing, when oneDNN refuses the
 * shape or the types. */
static bool onednn_matmul(float *c, size_t ldc, const Matrix *a, bool a_transposed, size_t a_row, size_t a_col,
                          const Matrix *b, bool b_transposed, size_t b_row, size_t b_col, size_t M, size_t N,
                          size_t K) {
    if (a->dtype != b->dtype) return false;
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);  // for this task only; oneDNN plans with this number
    OnednnShape shape;
    shape.M = M, shape.N = N, shape.K = K, shape.lda = a->ld, shape.ldb = b->ld, shape.ldc = ldc;
    shape.a_transposed = a_transposed, shape.b_transposed = b_transposed, shape.dtype = (size_t)a->dtype;
    OnednnThread *t = onednn_thread();
    OnednnPrimitive *p = onednn_find(t, &shape);
    bool done = false;
    if (p->usable) {
        size_t size = dtype_size(a->dtype);
        void *data[ONEDNN_MEMORIES] = {(char *)a->data + (a_row * a->ld + a_col) * size,
                                       (char *)b->data + (b_row * b->ld + b_col) * size, c,
                                       scratch(SCRATCH_A, p->scratch_bytes)};
        dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p->memory[ONEDNN_A]},
                                  {DNNL_ARG_WEIGHTS, p->memory[ONEDNN_B]},
                                  {DNNL_ARG_DST, p->memory[ONEDNN_C]},
                                  {DNNL_ARG_SCRATCHPAD, p->memory[ONEDNN_SCRATCH]}};
        for (int i = 0; i < ONEDNN_MEMORIES; i++) dnnl_memory_set_data_handle(p->memory[i], data[i]);
        done = dnnl_primitive_execute(p->primitive, t->stream, ONEDNN_MEMORIES, args) == dnnl_success &&
               dnnl_stream_wait(t->stream) == dnnl_success;
    }
    omp_set_num_threads(threads);
    return done;
}

#endif
