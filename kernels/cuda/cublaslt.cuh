/* cuBLASLt's matmul. The library is loaded when the first matmul runs on a GPU (platform_open_library in
 * platform.cuh), and its functions are called as cublaslt()->Matmul(...) for cublasLtMatmul(...).
 *
 * Everything here is row-major and cuBLASLt is column-major: a row-major [M, N] is to it the transposed matrix [N,
 * M]. So for C = A B it computes C^T = B^T A^T, with our B as its first operand and our A as its second. */
#ifndef KERNELS_CUDA_CUBLASLT_CUH
#define KERNELS_CUDA_CUBLASLT_CUH

#include "epilogue.cuh"
#include <cublasLt.h>

#define CUBLASLT_FUNCTIONS(USE)       \
    USE(Create)                       \
    USE(GetStatusString)              \
    USE(Matmul)                       \
    USE(MatmulAlgoGetHeuristic)       \
    USE(MatmulDescCreate)             \
    USE(MatmulDescDestroy)            \
    USE(MatmulDescSetAttribute)       \
    USE(MatmulPreferenceCreate)       \
    USE(MatmulPreferenceDestroy)      \
    USE(MatmulPreferenceSetAttribute) \
    USE(MatrixLayoutCreate)           \
    USE(MatrixLayoutDestroy)

typedef struct {
#define MEMBER(name) decltype(&cublasLt##name) name;
    CUBLASLT_FUNCTIONS(MEMBER)
#undef MEMBER
} CublasLt;

/* The version whose header this was compiled with. */
static inline CublasLt cublaslt_load(void) {
    char file[40];
    CublasLt lt;
    snprintf(file, sizeof file, "libcublasLt.so.%d", CUBLAS_VER_MAJOR);
    void *library = platform_open_library(file);
    if (!library)
        die("cannot load the matrix library of CUDA %d: %s; install it, or use --device cpu", CUBLAS_VER_MAJOR,
            platform_library_error());
#define FIND(name)                                                                                       \
    lt.name = PLATFORM_FUNCTION(library, cublasLt##name);                                                \
    if (!lt.name)                                                                                        \
        die("the matrix library cuBLASLt has no function cublasLt" #name "; install the one of CUDA %d", \
            CUBLAS_VER_MAJOR);
    CUBLASLT_FUNCTIONS(FIND)
#undef FIND
    return lt;
}

static inline const CublasLt *cublaslt(void) {
    static const CublasLt loaded = cublaslt_load();
    return &loaded;
}

/* ---- plans ---- which algorithm a matmul uses; asked of the library once and kept */

static inline void cublas_check(cublasStatus_t status, const char *file, int line) {
    if (status != CUBLAS_STATUS_SUCCESS)
        die("the matrix library cuBLASLt failed on device cuda:%d: %s (%s:%d); check that the driver fits the CUDA "
            "libraries, or use --device cpu",
            cuda_current->gpu, cublaslt()->GetStatusString(status), file, line);
}

#define CUBLAS_CHECK(call) cublas_check(call, __FILE__, __LINE__)

enum { LT_PLANS = 1024 };

/* What the library's choice of an algorithm depends on. */
typedef struct {
    int M, N, K, ld, a_transposed, b_transposed, fp32_out, epilogue;
    int align_a, align_b, align_out;  // bytes
} LtKey;

/* The choice, and the descriptors of the call: first describes our B, second our A, and out our C. */
typedef struct {
    LtKey key;
    bool created, usable;  // usable: the library has an algorithm for it
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t first, second, out;
    cublasLtMatmulAlgo_t algorithm;
} LtPlan;

/* One for each stream of a GPU. A new shape takes the place of the one in its slot: the number of rows of a batch
 * varies without end. */
typedef struct {
    cublasLtHandle_t handle;
    LtPlan plans[LT_PLANS];
} LtStream;

static LtStream lt_streams[CUDA_TABLES];

static int pointer_alignment(const void *p) { return p ? 1 << min(4, __builtin_ctzll((uintptr_t)p)) : 16; }

static cudaDataType_t lt_type(bool fp32) {
    return fp32 || sizeof(floatX) == sizeof(float) ? CUDA_R_32F : CUDA_R_16BF;
}

static LtKey lt_key(const Matmul *p) {
    LtKey key;
    memset(&key, 0, sizeof key);
    key.M = p->M, key.N = p->N, key.K = p->K, key.ld = p->ld;
    key.a_transposed = p->a_transposed, key.b_transposed = p->b_transposed;
    key.fp32_out = p->sum != NULL;
    key.epilogue = p->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    key.align_a = pointer_alignment(p->a);
    key.align_b = pointer_alignment(p->b);
    key.align_out = min(pointer_alignment(p->out), pointer_alignment(p->sum));
    return key;
}

static void lt_set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, const void *value,
                   size_t bytes) {
    CUBLAS_CHECK(cublaslt()->MatmulDescSetAttribute(operation, attribute, value, bytes));
}

/* Sets the bias pointer, which changes from call to call. */
static void lt_set_bias(cublasLtMatmulDesc_t operation, const Matmul *p) {
    if (p->bias) lt_set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias, sizeof p->bias);
}

static void lt_describe(LtPlan *plan, const Matmul *p) {
    int32_t op_first = p->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
            op_second = p->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    uint32_t epilogue = (uint32_t)plan->key.epilogue;
    int32_t type = lt_type(false);
    uint64_t M = (uint64_t)p->M, N = (uint64_t)p->N, K = (uint64_t)p->K;
    CUBLAS_CHECK(cublaslt()->MatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    lt_set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, &op_first, sizeof op_first);
    lt_set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, &op_second, sizeof op_second);
    lt_set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (p->bias) lt_set(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type);
    lt_set_bias(plan->operation, p);
    CUBLAS_CHECK(cublaslt()->MatrixLayoutCreate(&plan->first, lt_type(false), p->b_transposed ? K : N,
                                                p->b_transposed ? N : K, p->b_transposed ? p->K : p->N));
    CUBLAS_CHECK(cublaslt()->MatrixLayoutCreate(&plan->second, lt_type(false), p->a_transposed ? M : K,
                                                p->a_transposed ? K : M, p->a_transposed ? p->M : p->K));
    CUBLAS_CHECK(cublaslt()->MatrixLayoutCreate(&plan->out, lt_type(p->sum != NULL), N, M, p->ld));
}

/* Asks for an algorithm. Of those that split K, only ones that add the parts in a fixed order and in fp32 are
 * allowed. */
static void lt_choose(LtPlan *plan, cublasLtHandle_t handle) {
    const uint64_t workspace = CUBLASLT_WORKSPACE;
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const uint32_t a = (uint32_t)plan->key.align_b, b = (uint32_t)plan->key.align_a;
    const uint32_t d = (uint32_t)plan->key.align_out;
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        const void *value;
        size_t bytes;
    } preferences[] = {{CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
                       {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction},
                       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &a, sizeof a},
                       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &b, sizeof b},
                       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &d, sizeof d},
                       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &d, sizeof d}};
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t result;
    int count = 0;
    CUBLAS_CHECK(cublaslt()->MatmulPreferenceCreate(&preference));
    for (size_t i = 0; i < sizeof preferences / sizeof *preferences; i++)
        CUBLAS_CHECK(cublaslt()->MatmulPreferenceSetAttribute(preference, preferences[i].attribute,
                                                              preferences[i].value, preferences[i].bytes));
    cublasStatus_t status = cublaslt()->MatmulAlgoGetHeuristic(handle, plan->operation, plan->first, plan->second,
                                                               plan->out, plan->out, preference, 1, &result, &count);
    plan->usable = status == CUBLAS_STATUS_SUCCESS && count > 0 && result.state == CUBLAS_STATUS_SUCCESS;
    if (plan->usable) plan->algorithm = result.algo;
    CUBLAS_CHECK(cublaslt()->MatmulPreferenceDestroy(preference));
}

/* The plan for a matmul, created at its first call. */
static LtPlan *lt_plan(LtStream *lt, const Matmul *p) {
    LtKey key = lt_key(p);
    uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
    for (size_t i = 0; i < sizeof key; i++) hash = (hash ^ ((const unsigned char *)&key)[i]) * 0x100000001b3u;
    LtPlan *plan = &lt->plans[(hash ^ hash >> 32) % LT_PLANS];
    if (plan->created && memcmp(&plan->key, &key, sizeof key) == 0) return plan;
    if (plan->created) {
        CUBLAS_CHECK(cublaslt()->MatmulDescDestroy(plan->operation));
        CUBLAS_CHECK(cublaslt()->MatrixLayoutDestroy(plan->first));
        CUBLAS_CHECK(cublaslt()->MatrixLayoutDestroy(plan->second));
        CUBLAS_CHECK(cublaslt()->MatrixLayoutDestroy(plan->out));
    }
    plan->key = key;
    plan->created = true;
    lt_describe(plan, p);
    lt_choose(plan, lt->handle);
    return plan;
}

/* Returns false, having done nothing, where cuBLASLt has no algorithm. */
static bool lt_matmul(const Matmul *p) {
    LtStream *lt = &lt_streams[cuda_current - cuda_streams];
    if (!lt->handle) CUBLAS_CHECK(cublaslt()->Create(&lt->handle));
    LtPlan *plan = lt_plan(lt, p);
    if (!plan->usable) return false;
    const float alpha = 1.0f, beta = p->accumulate ? 1.0f : 0.0f;
    void *c = p->sum ? (void *)p->sum : (void *)p->out;
    lt_set_bias(plan->operation, p);
    CUBLAS_CHECK(cublaslt()->Matmul(lt->handle, plan->operation, &alpha, p->b, plan->first, p->a, plan->second, &beta,
                                    c, plan->out, c, plan->out, &plan->algorithm, cuda_scratch(CUBLASLT_WORKSPACE),
                                    CUBLASLT_WORKSPACE, cuda_stream()));
    return true;
}

#endif
