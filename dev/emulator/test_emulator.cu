/* Tests of the emulated GPU (dev/emulator) itself: that it computes what a GPU computes, and that it notices what it
 * is there to notice. Each planted mistake runs in a process of its own, and must end it with the right sentence.
 *
 *   test_emulator        ends with `N passed, M failed` */
#include "../../kernels/cuda/mma.cuh"

#include <sys/wait.h>
#include <unistd.h>

#ifndef __has_feature
#define __has_feature(name) 0  // clang's way to tell
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
static const bool with_asan = true;
#else
static const bool with_asan = false;
#endif

static int passed, failed;

static void check(bool ok, const char *what) {
    ok ? passed++ : failed++;
    if (!ok) printf("FAIL %s\n", what);
}

/* Device memory that holds `host`. */
template <typename T> static T *put(const T *host, size_t n) {
    T *p;
    CUDA_CHECK(cudaMalloc(&p, n * sizeof(T)));
    CUDA_CHECK(cudaMemcpy(p, host, n * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

template <typename T> static void take(T *host, T *device, size_t n) {
    CUDA_CHECK(cudaMemcpy(host, device, n * sizeof(T), cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaFree(device));
}

/* ---- the order of threads ---- */

enum { THREADS = 96, BLOCKS = 5 };

/* out = the block's numbers reversed, through shared memory, with or without the barrier between. */
template <bool BARRIER> static __global__ void reverse_kernel(int *out) {
    __shared__ int held[THREADS];
    int t = (int)threadIdx.x;
    held[t] = t + 1000 * (int)blockIdx.x;
    if (BARRIER) __syncthreads();
    out[(int)blockIdx.x * THREADS + t] = held[THREADS - 1 - t];
    __syncthreads();
    held[t] = -1;
}

/* Neighbours in a warp exchange through shared memory. */
template <bool BARRIER> static __global__ void neighbour_kernel(int *out) {
    __shared__ int held[THREADS];
    int t = (int)threadIdx.x;
    held[t] = t;
    if (BARRIER) __syncwarp();
    out[t] = held[t ^ 1];
    __syncthreads();
    held[t] = -1;
}

/* Two sums over the block, one after the other, through the same shared memory; without the barrier a warp may
 * already write for the second while another still reads the first. */
template <bool BARRIER> static __global__ void twice_kernel(int *out) {
    __shared__ int part[THREADS / 32];
    int t = (int)threadIdx.x, v = t;
    for (int round = 0; round < 2; round++) {
        for (int bits = 16; bits > 0; bits >>= 1) v += __shfl_xor_sync(ALL_LANES, v, bits);
        if (BARRIER) __syncthreads();
        if (t % 32 == 0) part[t / 32] = v;
        __syncthreads();
        v = part[0] + part[1] + part[2] + t;
    }
    out[t + THREADS * (int)blockIdx.x] = v;
}

template <typename Kernel> static bool same_for_all_seeds(Kernel kernel, unsigned blocks) {
    int first[THREADS * BLOCKS], other[THREADS * BLOCKS];
    size_t n = THREADS * blocks;
    bool same = true;
    for (uint64_t seed = 0; seed < 6; seed++) {
        emulation::set_seed(seed);
        int *out = put(first, n);
        LAUNCH(kernel, blocks, THREADS, 0, out);
        take(seed ? other : first, out, n);
        same = same && (!seed || memcmp(first, other, n * sizeof(int)) == 0);
    }
    return same;
}

static __global__ void block_order_kernel(int *counter, int *order) {
    if (threadIdx.x == 0) order[atomicAdd(counter, 1)] = (int)blockIdx.x;
}

static void test_order() {
    int zero = 0, order[64] = {0}, seen = 0;
    check(same_for_all_seeds(reverse_kernel<true>, BLOCKS), "with its barrier a kernel does not depend on the seed");
    check(!same_for_all_seeds(reverse_kernel<false>, BLOCKS), "a missing __syncthreads shows");
    check(same_for_all_seeds(neighbour_kernel<true>, 1), "with its __syncwarp a kernel does not depend on the seed");
    check(!same_for_all_seeds(neighbour_kernel<false>, 1), "a missing __syncwarp shows");
    check(same_for_all_seeds(twice_kernel<true>, BLOCKS),
          "with both of its barriers a sum does not depend on the seed");
    check(!same_for_all_seeds(twice_kernel<false>, BLOCKS),
          "a missing barrier before shared memory is used again shows");
    int *counter = put(&zero, 1), *list = put(order, 64);
    LAUNCH(block_order_kernel, 64, 32, 0, counter, list);
    take(order, list, 64);
    CUDA_CHECK(cudaFree(counter));
    bool in_order = true;
    for (int i = 0; i < 64; i++) in_order = in_order && order[i] == i, seen += order[i];
    check(seen == 64 * 63 / 2 && !in_order, "every block runs once, in an order of its own");
}

/* ---- mistakes ---- */

static __global__ void returns_before_barrier(int *) {
    if (threadIdx.x == 37) return;
    __syncthreads();
}

static __global__ void two_barriers(int *) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
}

static __global__ void lane_stays_away(int *out) {
    if (threadIdx.x % 32 != 3) out[threadIdx.x] = __shfl_xor_sync(ALL_LANES, 1, 1);
}

static __global__ void lane_not_in_mask(int *out) { out[threadIdx.x] = __shfl_sync(1, 1, 0); }

static __global__ void beyond_dynamic_shared(int *out) {
    DYNAMIC_SHARED(int, held);
    held[threadIdx.x + 1] = 1;
    out[threadIdx.x] = held[threadIdx.x];
}

static __global__ void beyond_static_shared(int *out) {
    __shared__ int held[THREADS];
    int *volatile p = held;
    p[threadIdx.x + 1] = 1;
    out[threadIdx.x] = p[threadIdx.x];
}

static __global__ void beyond_global(int *out) { out[threadIdx.x + 1] = 1; }

static __global__ void misaligned(int *out) {
    float4 v = *(const float4 *)(const void *)(out + 1);
    out[threadIdx.x] = (int)v.x;
}

static __global__ void nothing(int *) {}

static __global__ void begins_early(int *out) {
    if (threadIdx.x == 5) return;
    wait_for_previous();
    out[threadIdx.x] = 1;
}

static void launch_early(int *out) { EMULATION_LAUNCH_EARLY(begins_early, 1, 32, 0, NULL, out); }

/* On device 1, with the stream of device 0. */
static void launch_elsewhere(int *out) {
    cudaStream_t stream;
    setenv("EMULATION_DEVICES", "2", 1);
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaSetDevice(1));
    EMULATION_LAUNCH(nothing, 1, 32, 0, stream, out);
}

/* Shared memory that device 0 allows to the kernel is not allowed by device 1. */
static void launch_with_much_shared(int *out) {
    setenv("EMULATION_DEVICES", "2", 1);
    CUDA_CHECK(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10));
    EMULATION_LAUNCH(nothing, 1, 32, 64 << 10, NULL, out);
    CUDA_CHECK(cudaSetDevice(1));
    EMULATION_LAUNCH(nothing, 1, 32, 64 << 10, NULL, out);
}

/* Runs `launches` in a child; its stderr must have all the words, and its status not be 0. One block: OpenMP has no
 * threads after a fork. */
static void must_fail(const char *what, std::function<void(int *)> launches, const char *word, const char *word2,
                      const char *word3) {
    int pipe_ends[2], status = 0, zeros[THREADS] = {0};
    char text[1 << 15];
    size_t length = 0;
    fflush(stdout);
    if (pipe(pipe_ends)) exit(1);
    pid_t child = fork();
    if (child == 0) {
        dup2(pipe_ends[1], 2);
        launches(put(zeros, THREADS));
        emulation::device_wait();
        _exit(0);
    }
    close(pipe_ends[1]);
    for (ssize_t n; (n = read(pipe_ends[0], text + length, sizeof text - 1 - length)) > 0;) length += (size_t)n;
    text[length] = 0;
    close(pipe_ends[0]);
    waitpid(child, &status, 0);
    bool told = strstr(text, word) && strstr(text, word2) && strstr(text, word3);
    check(status != 0 && told, what);
    if (!told) printf("  it said: %.600s\n", text);
}

#define MUST_FAIL(what, kernel, threads, shared, ...) \
    must_fail(                                        \
        what, [](int *out) { EMULATION_LAUNCH(kernel, 1, threads, shared, NULL, out); }, __VA_ARGS__)

static void test_mistakes() {
    MUST_FAIL("a thread returns before a barrier", returns_before_barrier, THREADS, 0,
              "kernel returns_before_barrier", "__syncthreads", "waits for thread (37, 0, 0), which has returned");
    MUST_FAIL("threads in different barriers", two_barriers, THREADS, 0, "kernel two_barriers, block (",
              "waits for thread (", "which is in __syncthreads");
    MUST_FAIL("a lane that never comes", lane_stays_away, THREADS, 0, "__shfl_xor_sync", "waits for thread (",
              "which has returned");
    MUST_FAIL("a lane that its mask does not name", lane_not_in_mask, 32, 0, "lane_not_in_mask", "__shfl_sync",
              "without its own lane");
    MUST_FAIL("too much shared memory", nothing, 32, 64 << 10, "nothing", "65536 shared bytes",
              "than the kernel is allowed");
    must_fail("too much shared memory on another device", launch_with_much_shared, "nothing", "65536 shared bytes",
              "than the kernel is allowed");
    must_fail("a kernel that begins early and does not wait", launch_early, "begins_early", "thread (5, 0, 0)",
              "griddepcontrol.wait");
    must_fail("a stream of another device", launch_elsewhere, "nothing", "belongs to another device", "");
    MUST_FAIL("too many threads", nothing, 1025, 0, "nothing", "block (1025, 1, 1)", "1 to 1024 threads");
    if (!with_asan) return;
    const char *asan = "AddressSanitizer";
    MUST_FAIL("beyond dynamic shared memory", beyond_dynamic_shared, THREADS, THREADS * 4, asan,
              "heap-buffer-overflow", "beyond_dynamic_shared");
    MUST_FAIL("beyond static shared memory", beyond_static_shared, THREADS, 0, asan, "global-buffer-overflow",
              "beyond_static_shared");
    MUST_FAIL("beyond global memory", beyond_global, THREADS, 0, asan, "heap-buffer-overflow", "beyond_global");
    MUST_FAIL("a vector at an odd address", misaligned, 1, 0, "misaligned address", "runtime error", "16 byte");
}

/* ---- memory ---- */

static __global__ void read_shared(float *out) {
    DYNAMIC_SHARED(float, held);
    out[blockIdx.x] = held[3];
    held[3] = 1;
}

template <int N> static __global__ void read_static_shared(float *out) {
    __shared__ float held[N];
    out[blockIdx.x] = held[3];
    held[3] = 1;
}

static void test_memory() {
    float got[3] = {0, 0, 0}, *out = put(got, 3), *fresh;
    LAUNCH(read_shared, 3, 1, 16, out);
    take(got, out, 3);
    check(isnan(got[0]) && isnan(got[1]) && isnan(got[2]), "shared memory begins as NaN in every block");
    out = put(got, 3);
    LAUNCH(read_static_shared<8>, 3, 1, 0, out);
    take(got, out, 3);
    check(with_asan || (isnan(got[0]) && isnan(got[1]) && isnan(got[2])), "static shared memory begins as NaN too");
    CUDA_CHECK(cudaMalloc(&fresh, sizeof(float)));
    take(got, fresh, 1);
    check(isnan(got[0]), "fresh device memory is NaN");
    check(cudaMalloc(&fresh, (size_t)1 << 50) == cudaErrorMemoryAllocation, "too much memory is an error");
}

/* ---- streams ---- */

static __global__ void add_kernel(int *out, const int *a, int b) { out[threadIdx.x] = a[threadIdx.x] + b; }

/* b = a + 1 on one stream, c = b + 1 on another, with or without the event between. */
static int chained(bool ordered) {
    int host[32] = {0}, *a = put(host, 32), *b = put(host, 32), *c = put(host, 32);
    cudaStream_t first, second;
    cudaEvent_t made;
    CUDA_CHECK(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking));
    CUDA_CHECK(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&made, cudaEventDisableTiming));
    EMULATION_LAUNCH(add_kernel, 1, 32, 0, first, b, a, 1);
    CUDA_CHECK(cudaEventRecord(made, first));
    if (ordered) CUDA_CHECK(cudaStreamWaitEvent(second, made, 0));
    EMULATION_LAUNCH(add_kernel, 1, 32, 0, second, c, b, 1);
    CUDA_CHECK(cudaStreamSynchronize(second));
    take(host, c, 32);
    CUDA_CHECK(cudaFree(a)), CUDA_CHECK(cudaFree(b));
    CUDA_CHECK(cudaStreamDestroy(first)), CUDA_CHECK(cudaStreamDestroy(second)), CUDA_CHECK(cudaEventDestroy(made));
    return host[31];
}

/* Two uploads through the same pinned memory, which the host fills again after it waited, or at once. */
static int pinned_twice(bool waits) {
    int sums[2] = {0, 0}, *held, *device = put(sums, 2);
    cudaStream_t stream;
    CUDA_CHECK(cudaMallocHost(&held, sizeof(int)));
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    for (int i = 0; i < 2; i++) {
        *held = 1 + i;
        CUDA_CHECK(cudaMemcpyAsync(device + i, held, sizeof(int), cudaMemcpyHostToDevice, stream));
        if (waits) CUDA_CHECK(cudaStreamSynchronize(stream));
    }
    CUDA_CHECK(cudaStreamSynchronize(stream));
    take(sums, device, 2);
    CUDA_CHECK(cudaFreeHost(held)), CUDA_CHECK(cudaStreamDestroy(stream));
    return 10 * sums[0] + sums[1];
}

/* What a stream captures is done when the graph is launched, with what is in memory then. */
static void test_graph() {
    int host[32] = {0}, *a = put(host, 32);
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    EMULATION_LAUNCH(add_kernel, 1, 32, 0, stream, a, a, 3);
    check(cudaStreamSynchronize(stream) == cudaErrorStreamCaptureUnsupported,
          "a stream that captures is not waited for");
    check(cudaMemcpyAsync(a, host, 4, cudaMemcpyHostToDevice, stream) == cudaErrorStreamCaptureUnsupported,
          "a graph holds no pageable memory");
    CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
    CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
    for (int i = 0; i < 4; i++) CUDA_CHECK(cudaGraphLaunch(exec, stream));
    CUDA_CHECK(cudaStreamSynchronize(stream));
    take(host, a, 32);
    check(host[5] == 12, "a graph that is launched four times adds four times");
    CUDA_CHECK(cudaGraphExecDestroy(exec)), CUDA_CHECK(cudaStreamDestroy(stream));
}

static void test_streams() {
    int good[2] = {0, 0}, bad[2] = {0, 0};
    enum { TIMES = 40 };
    for (int i = 0; i < TIMES; i++) {
        emulation::set_seed((uint64_t)i);
        good[0] += chained(true) == 2, good[1] += pinned_twice(true) == 12;
        bad[0] += chained(false) != 2, bad[1] += pinned_twice(false) != 12;
    }
    check(good[0] == TIMES, "a stream waits for another's event");
    check(bad[0] > 0, "a missing event shows");
    check(good[1] == TIMES, "pinned memory that has been read can be filled again");
    check(bad[1] > 0, "pinned memory that is filled too early shows");
    test_graph();
    setenv("EMULATION_DEVICES", "2", 1);
    cudaEvent_t event;
    cudaStream_t stream;
    CUDA_CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    CUDA_CHECK(cudaSetDevice(1));
    CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    check(cudaEventRecord(event, stream) != cudaSuccess, "an event of another device");
    CUDA_CHECK(cudaSetDevice(0));
    CUDA_CHECK(cudaStreamDestroy(stream)), CUDA_CHECK(cudaEventDestroy(event));
    check(cudaSetDevice(2) == cudaErrorInvalidDevice, "a device that is not there");
}

/* ---- intrinsics ---- */

static __global__ void shuffle_kernel(int *out) {
    int t = (int)threadIdx.x, v = 100 + t, *o = out + t * 8;
    o[0] = __shfl_sync(ALL_LANES, v, 5);
    o[1] = __shfl_sync(ALL_LANES, v, 1, 8);
    o[2] = __shfl_up_sync(ALL_LANES, v, 3);
    o[3] = __shfl_down_sync(ALL_LANES, v, 4, 16);
    o[4] = __shfl_xor_sync(ALL_LANES, v, 9);
    o[5] = (int)__ballot_sync(ALL_LANES, t % 3 == 0);
    o[6] = __any_sync(ALL_LANES, t == 7) * 2 + __all_sync(ALL_LANES, t < 32);
    if (t % 2)
        o[7] = __shfl_xor_sync(0xaaaaaaaau, v, 2);
    else
        o[7] = (int)__ballot_sync(0x55555555u, t > 15);
}

static void test_warp() {
    int got[32 * 8] = {0}, *out = put(got, 32 * 8);
    LAUNCH(shuffle_kernel, 1, 32, 0, out);
    take(got, out, 32 * 8);
    bool ok[8] = {true, true, true, true, true, true, true, true};
    for (int t = 0; t < 32; t++) {
        int down = t % 16 + 4 < 16 ? t + 4 : t;
        int want[8] = {105,
                       100 + t / 8 * 8 + 1,
                       100 + (t >= 3 ? t - 3 : t),
                       100 + down,
                       100 + (t ^ 9),
                       0x49249249,
                       3,
                       t % 2 ? 100 + (t ^ 2) : 0x55550000};
        for (int i = 0; i < 8; i++) ok[i] = ok[i] && got[t * 8 + i] == want[i];
    }
    static const char *const names[8] = {
        "__shfl_sync",     "__shfl_sync in groups", "__shfl_up_sync", "__shfl_down_sync",
        "__shfl_xor_sync", "__ballot_sync",         "votes",          "half warps"};
    for (int i = 0; i < 8; i++) check(ok[i], names[i]);
}

static __global__ void sum_kernel(float *out, double *wide) {
    float v = block_sum((float)threadIdx.x), top = block_max(-(float)((threadIdx.x + 5) % blockDim.x));
    float largest = block_max((float)threadIdx.x);  // at once, in the same shared memory
    double d = block_sum((double)threadIdx.x * 0x1p-40);
    size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    out[at] = v + top + largest;
    wide[at] = d;
}

static __global__ void atomics_kernel(unsigned *counter, float *sum, int *largest, unsigned long long *swapped) {
    atomicAdd(counter, 2u);
    atomicAdd(sum, 0.5f);
    atomicMax(largest, (int)(threadIdx.x * 7 % 96));
    atomicCAS(swapped, 0ull, (unsigned long long)threadIdx.x + 1);
}

static void test_sums() {
    enum { ALL = 8 * THREADS };
    float got[ALL] = {0}, *out = put(got, ALL);
    double wide[ALL] = {0}, *wide_out = put(wide, ALL);
    LAUNCH(sum_kernel, 8, THREADS, 0, out, wide_out);
    take(got, out, ALL);
    take(wide, wide_out, ALL);
    bool ok = true;
    for (int i = 0; i < ALL; i++) ok = ok && got[i] == 95 * 48 + 95 && wide[i] == 95 * 48 * 0x1p-40;
    check(ok, "block_sum and block_max");
    unsigned counter = 0, *c = put(&counter, 1);
    float sum = 0, *s = put(&sum, 1);
    int largest = 0, *l = put(&largest, 1);
    unsigned long long swapped = 0, *x = put(&swapped, 1);
    LAUNCH(atomics_kernel, BLOCKS, THREADS, 0, c, s, l, x);
    take(&counter, c, 1), take(&sum, s, 1), take(&largest, l, 1), take(&swapped, x, 1);
    check(counter == 2 * BLOCKS * THREADS && sum == 0.5f * BLOCKS * THREADS && largest == 95,
          "atomic additions, maximum");
    check(swapped >= 1 && swapped <= THREADS, "atomicCAS");
}

static void test_bf16() {
    bool ok = true;
    for (uint64_t u = 0; u < 1ull << 32; u += 9973) {
        float f = __uint_as_float((unsigned)u);
        unsigned short got = __bfloat16_as_ushort(__float2bfloat16_rn(f));
        ok = ok && (isnan(f) ? (got & 0x7fff) > 0x7f80 : got == f32_to_bf16(f).bits);
        ok = ok && (isnan(f) || __bfloat162float(__ushort_as_bfloat16(got)) == bf16_to_f32(f32_to_bf16(f)));
    }
    check(ok, "bf16 rounds as lib/dtype.h does");
}

/* ---- tensor cores ---- */

/* d [16, 8] = a [16, 16] b [16, 8] + c with fragments loaded by ldmatrix from shared memory, to which cp.async brings
 * them; b comes as its transpose [8, 16], or as it is when TRANSPOSE. */
template <bool TRANSPOSE, bool WAIT>
static __global__ void mma_kernel(float *d, const bf16 *a, const bf16 *b, const float *c) {
    __shared__ __align__(16) bf16 as[16 * 16], bs[16 * 8];
    int lane = (int)threadIdx.x;
    copy_async_16(&as[lane * 8], a + lane * 8);
    if (lane < 16) copy_async_16(&bs[lane * 8], b + lane * 8);
    copy_async_commit();
    copy_async_wait<WAIT ? 0 : 1>();
    __syncwarp();
    unsigned fa[4], fb[2];
    float acc[4];
    load_matrix_x4(fa, &as[lane % 16 * 16 + lane / 16 * 8]);
    if (TRANSPOSE)
        load_matrix_x2_transposed(fb, &bs[lane % 16 * 8]);
    else
        load_matrix_x2(fb, &bs[lane % 8 * 16 + lane / 8 % 2 * 8]);
    for (int i = 0; i < 4; i++) acc[i] = c[mma_row(lane, i) * 8 + mma_column(lane, i)];
    mma_16x8x16(acc, fa, fb, acc);
    for (int i = 0; i < 4; i++) d[mma_row(lane, i) * 8 + mma_column(lane, i)] = acc[i];
}

static void mma_launch(int kind, float *d, const bf16 *a, const bf16 *b, const float *c) {
    if (kind == 0) LAUNCH((mma_kernel<false, true>), 1, 32, 0, d, a, b, c);
    if (kind == 1) LAUNCH((mma_kernel<true, true>), 1, 32, 0, d, a, b, c);
    if (kind == 2) LAUNCH((mma_kernel<true, false>), 1, 32, 0, d, a, b, c);
}

static void test_mma() {
    bf16 a[16 * 16], b[16 * 8], bt[8 * 16];
    float c[16 * 8], got[16 * 8];
    bool ok[3] = {true, true, true};
    for (int i = 0; i < 16 * 16; i++) a[i] = f32_to_bf16((float)((i * 37 + 11) % 29 - 14));
    for (int k = 0; k < 16; k++)
        for (int n = 0; n < 8; n++) bt[n * 16 + k] = b[k * 8 + n] = f32_to_bf16((float)((k * 8 + n) * 53 % 31 - 15));
    for (int i = 0; i < 16 * 8; i++) c[i] = (float)(i % 13);
    for (int kind = 0; kind < 3; kind++) {
        float *d = put(c, 16 * 8), *dc = put(c, 16 * 8);
        bf16 *da = put(a, 16 * 16), *db = put(kind ? b : bt, 16 * 8);
        mma_launch(kind, d, da, db, dc);
        take(got, d, 16 * 8);
        CUDA_CHECK(cudaFree(dc)), CUDA_CHECK(cudaFree(da)), CUDA_CHECK(cudaFree(db));
        for (int m = 0; m < 16; m++)
            for (int n = 0; n < 8; n++) {
                float want = c[m * 8 + n];
                for (int k = 0; k < 16; k++) want += bf16_to_f32(a[m * 16 + k]) * bf16_to_f32(b[k * 8 + n]);
                ok[kind] = ok[kind] && got[m * 8 + n] == want;
            }
    }
    check(ok[0], "mma with ldmatrix");
    check(ok[1], "mma with ldmatrix.trans");
    check(!ok[2], "a cp.async that is not waited for shows");
}

int main() {
    cuda_current = &cuda_streams[0];
    test_order();
    test_streams();
    test_mistakes();
    test_memory();
    test_warp();
    test_sums();
    test_bf16();
    test_mma();
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
