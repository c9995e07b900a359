/* cuBLASLt's matmul as plain loops, for the emulated GPU. */
#include "cublasLt.h"
#include "cuda_bf16.h"

struct cublasLtMatmulDescOpaque_t {
    int32_t transpose_a, transpose_b, bias_type;
    uint32_t epilogue;
    const void *bias;
    void *aux;
    int64_t aux_ld;
};

struct cublasLtMatrixLayoutOpaque_t {
    cudaDataType_t type;
    uint64_t rows, cols;
    int64_t ld;
};

struct cublasLtMatmulPreferenceOpaque_t {
    uint32_t alignment[4];
    uint64_t workspace;
};

/* The matmul that an algorithm was chosen for. The real library does not allow it for any other. */
struct Chosen {
    uint64_t m, n;
    uint32_t alignment[4], epilogue, workspace;
};
static_assert(sizeof(Chosen) <= sizeof(cublasLtMatmulAlgo_t), "an algorithm holds what it was chosen for");

const char *cublasLtGetStatusString(cublasStatus_t status) {
    return status == CUBLAS_STATUS_SUCCESS ? "CUBLAS_STATUS_SUCCESS" : "an emulated cuBLASLt error";
}

struct cublasLtContext {
    int device;
};

template <typename T> static cublasStatus_t create(T **p) {
    *p = (T *)calloc(1, sizeof(T));
    return *p ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_ALLOC_FAILED;
}

template <typename T> static cublasStatus_t destroy(T *p) {
    free(p);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    if (create(handle) != CUBLAS_STATUS_SUCCESS) return CUBLAS_STATUS_ALLOC_FAILED;
    (*handle)->device = emulation::device_selected();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return destroy(handle); }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t, cudaDataType_t scale) {
    if (scale != CUDA_R_32F || create(desc) != CUBLAS_STATUS_SUCCESS) return CUBLAS_STATUS_NOT_SUPPORTED;
    (*desc)->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    (*desc)->bias_type = -1;  // D's
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) { return destroy(desc); }

template <typename T> static cublasStatus_t set(T *to, const void *value, size_t bytes) {
    if (bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy((void *)to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t what,
                                              const void *value, size_t bytes) {
    switch (what) {
    case CUBLASLT_MATMUL_DESC_TRANSA: return set(&d->transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB: return set(&d->transpose_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return set(&d->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return set(&d->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return set(&d->bias_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: return set(&d->aux, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: return set(&d->aux_ld, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t type, uint64_t rows,
                                          uint64_t cols, int64_t ld) {
    if (ld < (int64_t)rows || create(layout) != CUBLAS_STATUS_SUCCESS) return CUBLAS_STATUS_INVALID_VALUE;
    **layout = {type, rows, cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return destroy(layout); }

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    cublasStatus_t status = create(preference);
    for (int i = 0; i < 4 && status == CUBLAS_STATUS_SUCCESS; i++) (*preference)->alignment[i] = 256;
    return status;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) { return destroy(preference); }

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t what, const void *value,
                                                    size_t bytes) {
    int matrix = (int)what - (int)CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
    if (what == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) return set(&preference->workspace, value, bytes);
    return matrix < 0 ? CUBLAS_STATUS_SUCCESS : set(&preference->alignment[matrix], value, bytes);
}

/* This supports less than the real library, only matrices whose columns begin on 16-byte boundaries, so that our own
 * matmul for what the library refuses is tested too. */
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t A,
                                              cublasLtMatrixLayout_t B, cublasLtMatrixLayout_t C,
                                              cublasLtMatrixLayout_t D, cublasLtMatmulPreference_t preference,
                                              int asked, cublasLtMatmulHeuristicResult_t *results, int *found) {
    const cublasLtMatrixLayout_t all[] = {A, B, C, D};
    *found = 0;
    for (int i = 0; i < 4; i++) {
        int64_t step = all[i]->type == CUDA_R_16BF ? 8 : 4;
        if (all[i]->ld % step || preference->alignment[i] % 16) return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    bool aux = desc->epilogue & (CUBLASLT_EPILOGUE_GELU_AUX & ~CUBLASLT_EPILOGUE_GELU);
    if (A->type != B->type || C->type != D->type || (aux && desc->aux_ld % 8)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (asked < 1) return CUBLAS_STATUS_INVALID_VALUE;
    memset(results, 0, sizeof *results);
    Chosen chosen = {D->rows, D->cols, {}, desc->epilogue, (uint32_t)preference->workspace};
    memcpy(chosen.alignment, preference->alignment, sizeof chosen.alignment);
    memcpy(&results->algo, &chosen, sizeof chosen);
    results->workspaceSize = preference->workspace;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

static float element(const void *data, cudaDataType_t type, size_t i) {
    return type == CUDA_R_32F ? ((const float *)data)[i] : (float)((const __nv_bfloat16 *)data)[i];
}

static void set_element(void *data, cudaDataType_t type, size_t i, float v) {
    if (type == CUDA_R_32F)
        ((float *)data)[i] = v;
    else
        ((__nv_bfloat16 *)data)[i] = __float2bfloat16(v);
}

/* The columns of op(X), or its rows if by_rows, as floats [count, k]. */
static float *unpack(const void *data, const cublasLtMatrixLayoutOpaque_t *x, bool transposed, bool by_rows,
                     size_t count, size_t k) {
    float *f = (float *)malloc((count * k + 1) * sizeof(float));
    bool along = transposed == by_rows;  // k runs along the stored columns
    for (size_t i = 0; i < count; i++)
        for (size_t j = 0; j < k; j++)
            f[i * k + j] = element(data, x->type, along ? i * (size_t)x->ld + j : j * (size_t)x->ld + i);
    return f;
}

/* Eight partial sums, so that the compiler can use vectors. Not sanitized, because it reads only memory of this
 * file. */
__attribute__((no_sanitize("address", "undefined"))) static float dot(const float *a, const float *b, size_t k) {
    float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0}, total = 0;
    size_t i = 0;
    for (; i + 8 <= k; i += 8)
        for (int j = 0; j < 8; j++) sum[j] += a[i + j] * b[i + j];
    for (; i < k; i++) total += a[i] * b[i];
    for (int j = 0; j < 8; j++) total += sum[j];
    return total;
}

static float gelu(float x) { return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x))); }

/* A queued matmul, with the descriptors as they were at the call. */
struct Work {
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t a, b, c, d;
    const void *A, *B, *C;
    void *D, *workspace;
    size_t k, workspace_bytes;
    float scale, keep;
};

static void multiply(const Work &w) {
    const uint32_t epilogue = w.desc.epilogue;
    bool with_bias = epilogue & CUBLASLT_EPILOGUE_BIAS, with_gelu = epilogue & CUBLASLT_EPILOGUE_GELU;
    bool with_aux = epilogue & (CUBLASLT_EPILOGUE_GELU_AUX & ~CUBLASLT_EPILOGUE_GELU);
    cudaDataType_t bias_type = w.desc.bias_type < 0 ? w.d.type : (cudaDataType_t)w.desc.bias_type;
    size_t m = w.d.rows, n = w.d.cols, k = w.k;
    float *left = unpack(w.A, &w.a, w.desc.transpose_a != 0, true, m, k);
    float *right = unpack(w.B, &w.b, w.desc.transpose_b != 0, false, n, k);
    memset(w.workspace, 0xff, w.workspace_bytes);
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < m; i++) {
            float v = w.scale * dot(left + i * k, right + j * k, k);
            if (w.keep != 0.0f) v += w.keep * element(w.C, w.c.type, i + j * (size_t)w.c.ld);
            if (with_bias) v += element(w.desc.bias, bias_type, i);
            if (with_aux) set_element(w.desc.aux, w.d.type, i + j * (size_t)w.desc.aux_ld, v);
            set_element(w.D, w.d.type, i + j * (size_t)w.d.ld, with_gelu ? gelu(v) : v);
        }
    free(left);
    free(right);
}

/* The algorithm was chosen for this matmul, and the addresses are as aligned as it was promised. */
static bool keeps_promise(const cublasLtMatmulAlgo_t *algo, const Work &w) {
    Chosen chosen;
    memcpy(&chosen, algo, sizeof chosen);
    const void *addresses[] = {w.A, w.B, w.C, w.D};
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)addresses[i] % chosen.alignment[i]) return false;
    bool with_aux = w.desc.epilogue & (CUBLASLT_EPILOGUE_GELU_AUX & ~CUBLASLT_EPILOGUE_GELU);
    return chosen.m == w.d.rows && chosen.n == w.d.cols && chosen.epilogue == w.desc.epilogue &&
           chosen.workspace <= w.workspace_bytes && (uintptr_t)w.workspace % 256 == 0 &&
           (!with_aux || (uintptr_t)w.desc.aux % 16 == 0);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *A,
                              cublasLtMatrixLayout_t a, const void *B, cublasLtMatrixLayout_t b, const void *beta,
                              const void *C, cublasLtMatrixLayout_t c, void *D, cublasLtMatrixLayout_t d,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes,
                              cudaStream_t stream) {
    size_t m = d->rows, n = d->cols, k = desc->transpose_a ? a->rows : a->cols;
    bool fits = (desc->transpose_a ? a->cols : a->rows) == m && (desc->transpose_b ? b->cols : b->rows) == k &&
                (desc->transpose_b ? b->rows : b->cols) == n && c->rows == m && c->cols == n;
    Work w = {*desc,
              *a,
              *b,
              *c,
              *d,
              A,
              B,
              C,
              D,
              workspace,
              k,
              workspace_bytes,
              *(const float *)alpha,
              *(const float *)beta};
    if (!fits || !keeps_promise(algo, w) || handle->device != emulation::device_selected() ||
        !emulation::stream_here(stream))
        return CUBLAS_STATUS_INVALID_VALUE;
    emulation::stream_do(stream, [w]() { multiply(w); });
    return CUBLAS_STATUS_SUCCESS;
}
