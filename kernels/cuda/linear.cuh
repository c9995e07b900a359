/* Products with weights: y = x W^T with bias in its epilogue, dx = dy W, dW += dy^T x. cuBLASLt does them, in bf16 or
 * fp32 with fp32 sums (activations in a pass of their own, so that a model gives the same bits whether it keeps what
 * the activation was given or not, and one that computes the activation again the same too); a kernel of our own does
 * what cuBLASLt does not take (weights of another type, rows that are not aligned) and what is too small to matter;
 * another one does products of few rows (decoding), which are bound by the reading of the weight.
 *
 * Everything is row-major. cuBLASLt thinks in columns: a row-major [M, N] is to it the transposed matrix [N, M], so
 * it is asked for C^T = right^T left^T. */
#ifndef KERNELS_CUDA_PRODUCT_CUH
#define KERNELS_CUDA_PRODUCT_CUH

#include "cublaslt.cuh"
#include "small_m.cuh"

/* ---- activation ---- */

/* out = act(preact) for n elements; out may be preact. Reads and writes once. */
template <int WIDTH>
static __global__ void activation_kernel(floatX *out, const floatX *preact, size_t n, Activation act) {
    const size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * WIDTH;
    if (i >= n) return;
    Floats<WIDTH> v = load<WIDTH>(preact + i);
#pragma unroll
    for (int k = 0; k < WIDTH; k++)
        if (act != ACT_NONE) v.x[k] = gelu(v.x[k], act);
    store<WIDTH>(out + i, v);
}

static void cuda_gelu_forward(floatX *out, const floatX *preact, size_t n, Activation act) {
    const int threads = 256;
    if (n == 0 || (out == preact && act == ACT_NONE)) return;
    if (vectors_fit(n, VECTOR, out, preact))
        LAUNCH(activation_kernel<VECTOR>, cuda_blocks(n, threads * VECTOR), threads, 0, out, preact, n, act);
    else
        LAUNCH(activation_kernel<1>, cuda_blocks(n, threads), threads, 0, out, preact, n, act);
}

/* ---- cuBLASLt ---- */

static inline void cublas_check(cublasStatus_t status, const char *file, int line) {
    if (status != CUBLAS_STATUS_SUCCESS)
        die("the matrix library cuBLASLt failed on device cuda:%d: %s (%s:%d); check that the driver fits the CUDA "
            "libraries, or use --device cpu",
            cuda_device->number, cublaslt()->GetStatusString(status), file, line);
}

#define CUBLAS_CHECK(call) cublas_check(call, __FILE__, __LINE__)

enum { LT_PLANS = 1024 };
#ifdef CUDA_EMULATION
enum { LT_WORKSPACE = 4096 };
#else
enum { LT_WORKSPACE = 32 << 20 };  // what NVIDIA advises for Hopper
#endif

/* What cuBLASLt's choice of an algorithm depends on. */
typedef struct {
    int M, N, K, left_turned, right_turned, wide, epilogue;
    int align_left, align_right, align_out;  // bytes
} LtKey;

/* The choice, and the descriptors it is called with. A: right, B: left, D: C, all transposed. */
typedef struct {
    LtKey key;
    bool made, works;  // works: there is an algorithm
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algorithm;
} LtPlan;

/* One of each GPU. A new shape takes the place of the one in its slot: the number of rows of a batch varies without
 * end. */
typedef struct {
    cublasLtHandle_t handle;
    LtPlan plans[LT_PLANS];
} LtDevice;

static LtDevice lt_devices[CUDA_MAX_DEVICES];

static int pointer_alignment(const void *p) { return p ? 1 << min(4, __builtin_ctzll((uintptr_t)p)) : 16; }

static cudaDataType_t lt_type(bool wide) {
    return wide || sizeof(floatX) == sizeof(float) ? CUDA_R_32F : CUDA_R_16BF;
}

static LtKey lt_key(const Product *p) {
    LtKey key;
    memset(&key, 0, sizeof key);
    key.M = p->M, key.N = p->N, key.K = p->K;
    key.left_turned = p->left_turned, key.right_turned = p->right_turned;
    key.wide = p->sum != NULL;
    key.epilogue = p->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    key.align_left = pointer_alignment(p->left);
    key.align_right = pointer_alignment(p->right);
    key.align_out = min(pointer_alignment(p->out), pointer_alignment(p->sum));
    return key;
}

static void lt_set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute, const void *value,
                   size_t bytes) {
    CUBLAS_CHECK(cublaslt()->MatmulDescSetAttribute(operation, attribute, value, bytes));
}

/* The epilogue's pointer, which changes from call to call. */
static void lt_set_bias(cublasLtMatmulDesc_t operation, const Product *p) {
    if (p->bias) lt_set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias, sizeof p->bias);
}

static void lt_describe(LtPlan *plan, const Product *p) {
    int32_t turn_a = p->right_turned ? CUBLAS_OP_T : CUBLAS_OP_N, turn_b = p->left_turned ? CUBLAS_OP_T : CUBLAS_OP_N;
    uint32_t epilogue = (uint32_t)plan->key.epilogue;
    int32_t type = lt_type(false);
    uint64_t M = (uint64_t)p->M, N = (uint64_t)p->N, K = (uint64_t)p->K;
    CUBLAS_CHECK(cublaslt()->MatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    lt_set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, &turn_a, sizeof turn_a);
    lt_set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, &turn_b, sizeof turn_b);
    lt_set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (p->bias) lt_set(plan->operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &type, sizeof type);
    lt_set_bias(plan->operation, p);
    CUBLAS_CHECK(cublaslt()->MatrixLayoutCreate(&plan->a, lt_type(false), p->right_turned ? K : N,
                                                p->right_turned ? N : K, p->right_turned ? p->K : p->N));
    CUBLAS_CHECK(cublaslt()->MatrixLayoutCreate(&plan->b, lt_type(false), p->left_turned ? M : K,
                                                p->left_turned ? K : M, p->left_turned ? p->M : p->K));
    CUBLAS_CHECK(cublaslt()->MatrixLayoutCreate(&plan->d, lt_type(p->sum != NULL), N, M, p->N));
}

/* Asks for an algorithm. Of those that split K only the ones that add the parts in a fixed order and in fp32. */
static void lt_choose(LtPlan *plan, cublasLtHandle_t handle) {
    const uint64_t workspace = LT_WORKSPACE;
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const uint32_t a = (uint32_t)plan->key.align_right, b = (uint32_t)plan->key.align_left;
    const uint32_t d = (uint32_t)plan->key.align_out;
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        const void *value;
        size_t bytes;
    } wishes[] = {{CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
                  {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &a, sizeof a},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &b, sizeof b},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &d, sizeof d},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &d, sizeof d}};
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t result;
    int count = 0;
    CUBLAS_CHECK(cublaslt()->MatmulPreferenceCreate(&preference));
    for (size_t i = 0; i < sizeof wishes / sizeof *wishes; i++)
        CUBLAS_CHECK(cublaslt()->MatmulPreferenceSetAttribute(preference, wishes[i].attribute, wishes[i].value,
                                                              wishes[i].bytes));
    cublasStatus_t status = cublaslt()->MatmulAlgoGetHeuristic(handle, plan->operation, plan->a, plan->b, plan->d,
                                                               plan->d, preference, 1, &result, &count);
    plan->works = status == CUBLAS_STATUS_SUCCESS && count > 0 && result.state == CUBLAS_STATUS_SUCCESS;
    if (plan->works) plan->algorithm = result.algo;
    CUBLAS_CHECK(cublaslt()->MatmulPreferenceDestroy(preference));
}

/* The plan for a product, made at its first call. */
static LtPlan *lt_plan(LtDevice *device, const Product *p) {
    LtKey key = lt_key(p);
    uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
    for (size_t i = 0; i < sizeof key; i++) hash = (hash ^ ((const unsigned char *)&key)[i]) * 0x100000001b3u;
    LtPlan *plan = &device->plans[(hash ^ hash >> 32) % LT_PLANS];
    if (plan->made && memcmp(&plan->key, &key, sizeof key) == 0) return plan;
    if (plan->made) {
        CUBLAS_CHECK(cublaslt()->MatmulDescDestroy(plan->operation));
        CUBLAS_CHECK(cublaslt()->MatrixLayoutDestroy(plan->a));
        CUBLAS_CHECK(cublaslt()->MatrixLayoutDestroy(plan->b));
        CUBLAS_CHECK(cublaslt()->MatrixLayoutDestroy(plan->d));
    }
    plan->key = key;
    plan->made = true;
    lt_describe(plan, p);
    lt_choose(plan, device->handle);
    return plan;
}

/* False where cuBLASLt has no algorithm for it. */
static bool lt_product(const Product *p) {
    LtDevice *device = &lt_devices[cuda_device - cuda_devices];
    if (!device->handle) CUBLAS_CHECK(cublaslt()->Create(&device->handle));
    LtPlan *plan = lt_plan(device, p);
    if (!plan->works) return false;
    const float alpha = 1.0f, beta = p->accumulate ? 1.0f : 0.0f;
    void *c = p->sum ? (void *)p->sum : (void *)p->out;
    lt_set_bias(plan->operation, p);
    CUBLAS_CHECK(cublaslt()->Matmul(device->handle, plan->operation, &alpha, p->right, plan->a, p->left, plan->b,
                                    &beta, c, plan->d, c, plan->d, &plan->algorithm, cuda_scratch(LT_WORKSPACE),
                                    LT_WORKSPACE, cuda_stream()));
    return true;
}

/* ---- our own product ----
 * A block of 256 threads makes a tile of 64 x 64 from slices of 16 deep in shared memory; a thread makes 4 x 4. */

enum { TILE = 64, TILE_K = 16, TILE_THREADS = 256, TILE_LD = TILE + 4 };

/* tile [TILE_K, TILE] = rows k0.. and columns n0.. of a matrix [K, N], or of the transposed of one stored as [N, K];
 * zero outside. Threads read neighbouring elements of memory. */
template <bool TURNED, typename T>
static __device__ __forceinline__ void load_slice(float (*tile)[TILE_LD], const T *x, int K, int N, int k0, int n0) {
    for (int i = (int)threadIdx.x; i < TILE * TILE_K; i += TILE_THREADS) {
        const int k = TURNED ? i % TILE_K : i / TILE, n = TURNED ? i / TILE_K : i % TILE;
        const bool inside = k0 + k < K && n0 + n < N;
        const size_t at = TURNED ? (size_t)(n0 + n) * K + (k0 + k) : (size_t)(k0 + k) * N + (n0 + n);
        tile[k][n] = inside ? to_float(x[at]) : 0.0f;
    }
}

/* Grid (tiles of M, tiles of N). */
template <typename R, bool LEFT_TURNED, bool RIGHT_TURNED>
static __global__ void __launch_bounds__(TILE_THREADS) tile_product_kernel(Product p) {
    __shared__ __align__(16) float left[TILE_K][TILE_LD], right[TILE_K][TILE_LD];
    const int m0 = (int)blockIdx.x * TILE, n0 = (int)blockIdx.y * TILE;
    const int y = (int)threadIdx.x / 16 * 4, x = (int)threadIdx.x % 16 * 4;
    float c[4][4] = {};
    for (int k0 = 0; k0 < p.K; k0 += TILE_K) {
        load_slice<!LEFT_TURNED>(left, p.left, p.K, p.M, k0, m0);
        load_slice<RIGHT_TURNED>(right, (const R *)p.right, p.K, p.N, k0, n0);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < TILE_K; k++) {
            const Floats<4> a = load<4>(&left[k][y]), b = load<4>(&right[k][x]);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) c[i][j] = fmaf(a.x[i], b.x[j], c[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (m0 + y + i < p.M && n0 + x + j < p.N) store_element(p, m0 + y + i, n0 + x + j, c[i][j]);
}

template <typename R> static void tile_product(const Product &p) {
    dim3 grid(cuda_blocks((size_t)p.M, TILE), cuda_blocks((size_t)p.N, TILE));
    if (p.left_turned)
        LAUNCH((tile_product_kernel<R, true, false>), grid, TILE_THREADS, 0, p);
    else if (p.right_turned)
        LAUNCH((tile_product_kernel<R, false, true>), grid, TILE_THREADS, 0, p);
    else
        LAUNCH((tile_product_kernel<R, false, false>), grid, TILE_THREADS, 0, p);
}

/* Rows that are not a multiple of 16 bytes: cuBLASLt is slow at them where it takes them. */
static bool product_ragged(const Product &p) {
    return !vectors_fit((size_t)(p.left_turned ? p.M : p.K), VECTOR, p.left) ||
           !vectors_fit((size_t)(p.right_turned ? p.K : p.N), VECTOR, (const floatX *)p.right) ||
           !vectors_fit((size_t)p.N, VECTOR, p.out, p.preact);
}

static void cuda_product(Product p) {
    if (p.M == 0 || p.N == 0) return;
    const bool small = (double)p.M * p.N * p.K < 1 << 20;
    if (p.right_type == DT_FLOATX && p.K > 0 && !(small && product_ragged(p))) {
        Product linear = p;
        linear.out = p.preact ? p.preact : p.out;
        linear.preact = NULL;
        linear.act = ACT_NONE;
        if (lt_product(&linear)) {
            if (p.out) cuda_gelu_forward(p.out, linear.out, (size_t)p.M * p.N, p.act);
            return;
        }
    }
    if (p.right_type == DT_BF16)
        tile_product<bf16>(p);
    else
        tile_product<float>(p);
}

/* ---- few rows ----
 * Each weight is read once, 16 bytes at a time, and used for all rows: 2 O I bytes in bf16. The rows themselves come
 * from the first-level cache, which every warp of a multiprocessor shares. `warps` warps make an output channel: one,
 * or all four of a block where channels are few, so that the GPU has enough loads under way. */

enum { GEMV = 4, FEW_THREADS = 128, FEW_WARPS = FEW_THREADS / 32, FEW_LOADS = 4 };

template <typename W, int ROWS, int WIDTH>
static __global__ void __launch_bounds__(FEW_THREADS) gemv_kernel(Product p, int warps) {
    __shared__ float parts[FEW_WARPS][ROWS];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, part = warp % warps;
    const int channel = (int)blockIdx.x * (FEW_WARPS / warps) + warp / warps, step = 32 * warps * WIDTH;
    const W *weight = (const W *)p.right + (size_t)min(channel, p.N - 1) * p.K;
    float sum[ROWS] = {};
    let_next_begin();
    for (int k0 = (part * 32 + lane) * WIDTH; k0 < p.K; k0 += FEW_LOADS * step) {
        Floats<WIDTH> w[FEW_LOADS];
#pragma unroll
        for (int u = 0; u < FEW_LOADS; u++) {
            w[u] = {};
            if (k0 + u * step < p.K) w[u] = load<WIDTH>(weight + k0 + u * step);
        }
        wait_for_previous();
#pragma unroll
        for (int u = 0; u < FEW_LOADS; u++)
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (k0 + u * step >= p.K) continue;
                const Floats<WIDTH> x = load<WIDTH>(p.left + (size_t)r * p.K + k0 + u * step);
#pragma unroll
                for (int i = 0; i < WIDTH; i++) sum[r] = fmaf(x.x[i], w[u].x[i], sum[r]);
            }
    }
    wait_for_previous();  // all, also those that had nothing to read
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        sum[r] = warp_sum(sum[r]);
        if (lane == 0) parts[warp][r] = sum[r];
    }
    __syncthreads();
    if (part == 0 && lane < ROWS && channel < p.N) {
        float total = 0.0f;
        for (int w = 0; w < warps; w++) total += parts[warp + w][lane];
        store_element(p, lane, channel, total);
    }
}

template <typename W, int WIDTH> static void gemv(const Product &p) {
    const int warps = p.N <= 8192 ? FEW_WARPS : 1;
    const unsigned grid = cuda_blocks((size_t)p.N, (size_t)(FEW_WARPS / warps));
    if (p.M == 1) LAUNCH_EARLY((gemv_kernel<W, 1, WIDTH>), grid, FEW_THREADS, 0, p, warps);
    if (p.M == 2) LAUNCH_EARLY((gemv_kernel<W, 2, WIDTH>), grid, FEW_THREADS, 0, p, warps);
    if (p.M == 3) LAUNCH_EARLY((gemv_kernel<W, 3, WIDTH>), grid, FEW_THREADS, 0, p, warps);
    if (p.M == 4) LAUNCH_EARLY((gemv_kernel<W, 4, WIDTH>), grid, FEW_THREADS, 0, p, warps);
}

static void product_gemv(const Product &p) {
    if (p.right_type == DT_FLOATX && vectors_fit((size_t)p.K, VECTOR, p.left, (const floatX *)p.right))
        gemv<floatX, VECTOR>(p);
    else if (p.right_type == DT_BF16)
        gemv<bf16, 1>(p);
    else
        gemv<float, 1>(p);
}

/* Few rows on the vector units, some on the tensor cores, more through the library. The first two read the weight
 * while the kernel before them still runs (LAUNCH_EARLY): that one makes their input; weights are written by AdamW
 * and by uploads, after which other kernels come first. */
static void forward_run(const Product &p) {
    if (p.M <= GEMV)
        product_gemv(p);
    else if (!product_small_m(p))
        cuda_product(p);
}

/* ---- column sums ---- */

enum { SUM_THREADS = 256, SUM_ROWS = SUM_THREADS / 32, SUM_PART = 256 };

/* parts [gridDim.y, C]: the sums of x [rows, C] over SUM_PART rows each. A warp takes every eighth row, a lane WIDTH
 * columns; the warps' sums are added in order. Reads x once. */
template <int WIDTH> static __global__ void column_sum_kernel(float *parts, const floatX *x, size_t rows, int C) {
    __shared__ __align__(16) float sums[SUM_ROWS][32 * WIDTH];
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, c0 = (int)blockIdx.x * 32 * WIDTH;
    const int c = c0 + lane * WIDTH;
    const size_t end = min(rows, (size_t)(blockIdx.y + 1) * SUM_PART);
    Floats<WIDTH> sum = {};
    if (c < C) {
#pragma unroll 4
        for (size_t r = (size_t)blockIdx.y * SUM_PART + warp; r < end; r += SUM_ROWS) {
            const Floats<WIDTH> v = load<WIDTH>(x + r * C + c);
#pragma unroll
            for (int i = 0; i < WIDTH; i++) sum.x[i] += v.x[i];
        }
    }
    store<WIDTH>(&sums[warp][lane * WIDTH], sum);
    __syncthreads();
    for (int i = (int)threadIdx.x; i < 32 * WIDTH && c0 + i < C; i += SUM_THREADS) {
        float total = 0.0f;
        for (int w = 0; w < SUM_ROWS; w++) total += sums[w][i];
        parts[(size_t)blockIdx.y * C + c0 + i] = total;
    }
}

/* sums [C] += the parts [n, C] in order */
static __global__ void add_parts_kernel(float *sums, const float *parts, int n, int C) {
    const int c = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (c >= C) return;
    float total = 0.0f;
    for (int i = 0; i < n; i++) total += parts[(size_t)i * C + c];
    sums[c] += total;
}

static void cuda_column_sums(float *sums, const floatX *x, size_t rows, int C) {
    const unsigned n = cuda_blocks(rows, SUM_PART);
    float *parts = (float *)cuda_scratch((size_t)n * C * sizeof(float));
    if (vectors_fit((size_t)C, VECTOR, x))
        LAUNCH(column_sum_kernel<VECTOR>, dim3(cuda_blocks((size_t)C, 32 * VECTOR), n), SUM_THREADS, 0, parts, x,
               rows, C);
    else
        LAUNCH(column_sum_kernel<1>, dim3(cuda_blocks((size_t)C, 32), n), SUM_THREADS, 0, parts, x, rows, C);
    LAUNCH(add_parts_kernel, cuda_blocks((size_t)C, SUM_THREADS), SUM_THREADS, 0, sums, parts, (int)n, C);
}

/* ---- the operations ---- */

static Product forward_product(const floatX *inp, Weight w, size_t rows) {
    Product p;
    memset(&p, 0, sizeof p);
    p.left = inp;
    p.right = w.data;
    p.right_type = w.dtype;
    p.right_turned = true;
    p.M = (int)rows, p.N = w.rows, p.K = w.cols;
    return p;
}

static void cuda_linear_forward(floatX *out, const floatX *inp, Weight w, const floatX *bias, Activation act,
                                floatX *preact, size_t rows) {
    Product p = forward_product(inp, w, rows);
    p.out = out, p.bias = bias, p.act = act, p.preact = preact;
    forward_run(p);
}

static void cuda_linear_logits(float *out, const floatX *inp, Weight w, size_t rows) {
    Product p = forward_product(inp, w, rows);
    p.sum = out;
    forward_run(p);
}

static void cuda_linear_backward_input(floatX *dinp, const floatX *dout, Weight w, size_t rows, bool accumulate) {
    Product p = forward_product(dout, w, rows);
    p.right_turned = false;
    p.N = w.cols, p.K = w.rows;
    p.out = dinp, p.accumulate = accumulate;
    cuda_product(p);
}

static void cuda_linear_backward_weight(float *dweight, float *dbias, const floatX *dout, const floatX *inp,
                                        size_t rows, int O, int I) {
    Weight w = {inp, DT_FLOATX, (int)rows, I, NULL};
    Product p = forward_product(dout, w, (size_t)O);
    p.left_turned = true, p.right_turned = false;
    p.N = I, p.K = (int)rows;
    p.sum = dweight, p.accumulate = true;
    if (rows == 0) return;
    cuda_product(p);
    if (dbias) cuda_column_sums(dbias, dout, rows, O);
}

#endif
