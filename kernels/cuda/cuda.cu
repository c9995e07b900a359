/* The tables of operations for NVIDIA GPUs, and how a GPU is opened. One kernel family per header, under the same
 * file names as the CPU's (kernels/cpu).
 *
 * An operation has no argument that says where it runs. So every stream of every GPU has a table of its own, whose
 * entries a template makes from the plain functions of the families: an entry selects its stream and calls the
 * function (On<TABLE, function>::call). Whoever holds a table can call it in any order with other tables, and nothing
 * has to be remembered between the calls. */
#include "attention.cuh"
#include "distill.cuh"
#include "distill_sparse.cuh"
#include "dropout.cuh"
#include "figures.cuh"
#include "graph.cuh"
#include "input.cuh"
#include "linear.cuh"
#include "memory.cuh"
#include "norm.cuh"
#include "objective.cuh"
#include "optimizer.cuh"
#include "pointwise.cuh"
#include "sample.cuh"

/* ---- tables ---- */

template <int TABLE, auto FUNCTION> struct On;
template <int TABLE, typename Result, typename... Arguments, Result (*FUNCTION)(Arguments...)>
struct On<TABLE, FUNCTION> {
    static Result call(Arguments... arguments) {
        cuda_select(TABLE);
        return FUNCTION(arguments...);
    }
};

template <int TABLE> static void table_fill(Ops *t) {
#define ENTRY(name) t->name = On<TABLE, cuda_##name>::call
    ENTRY(alloc), ENTRY(release), ENTRY(memory_free), ENTRY(zero), ENTRY(sync);
    ENTRY(upload), ENTRY(download), ENTRY(download_async), ENTRY(download_wait);
    ENTRY(copy), ENTRY(copy_rows), ENTRY(copy_from), ENTRY(wait_for);
    ENTRY(graph_launch), ENTRY(graph_end), ENTRY(graph_free);
    ENTRY(embedding_forward), ENTRY(embedding_backward), ENTRY(patchify), ENTRY(position_forward);
    ENTRY(position_backward), ENTRY(position_2d_forward), ENTRY(position_2d_backward);
    ENTRY(gather_rows), ENTRY(scatter_rows);
    ENTRY(layernorm_forward), ENTRY(residual_layernorm_forward), ENTRY(layernorm_backward);
    ENTRY(rmsnorm_forward), ENTRY(residual_rmsnorm_forward), ENTRY(rmsnorm_backward);
    ENTRY(linear_forward), ENTRY(linear_logits), ENTRY(linear_backward_input), ENTRY(linear_backward_weight);
    ENTRY(gelu_forward), ENTRY(gelu_backward), ENTRY(swiglu_forward), ENTRY(swiglu_backward);
    ENTRY(residual_forward), ENTRY(dropout), ENTRY(cast_to_x), ENTRY(cast_from_x);
    ENTRY(attention_forward), ENTRY(attention_backward), ENTRY(cache_store), ENTRY(attention_decode);
    ENTRY(sample), ENTRY(distill_rows), ENTRY(distill_rows_sparse), ENTRY(logits_figures), ENTRY(entropy_band);
    ENTRY(cosine), ENTRY(squared_norm), ENTRY(adamw);
#undef ENTRY
}

/* table_fill<table>, for a number that is known only at run time. */
template <int TABLE = 0> static void table_fill_for(Ops *t, int table) {
    if (table == TABLE) return table_fill<TABLE>(t);
    if constexpr (TABLE + 1 < CUDA_TABLES) table_fill_for<TABLE + 1>(t, table);
}

/* ---- opening ---- */

/* How many GPUs answer; -1 with a sentence in *err when none does. */
static int gpu_count(Error *err) {
    int count = 0, driver = 0, runtime = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (e == cudaErrorInsufficientDriver && driver > 0)
        return error_set(err,
                         "the NVIDIA driver knows CUDA %d.%d but this program was built with CUDA %d.%d; update the "
                         "driver, build with an older CUDA, or use --device cpu",
                         driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (e == cudaErrorInsufficientDriver || e == cudaErrorNoDevice || (e == cudaSuccess && count == 0))
        return error_set(err, "no NVIDIA GPU with its driver was found on this machine; use --device cpu");
    if (e != cudaSuccess)
        return error_set(err, "the NVIDIA driver does not answer: %s; use --device cpu", cudaGetErrorString(e));
    return count;
}

/* Kernels can be launched early: they were compiled for a GPU that can do it (9.0), so that they wait for each other,
 * and runtime and driver can put such launches into a graph (from 12.3 on). An error: they were compiled for other GPUs. */
static cudaError_t can_launch_early(int major, bool *early) {
    int driver = 0;
    cudaFuncAttributes code;
    cudaError_t e = cudaDriverGetVersion(&driver);
    if (e == cudaSuccess) e = cudaFuncGetAttributes(&code, gemv_kernel<floatX, 1, VECTOR>);
    *early = e == cudaSuccess && CUDART_VERSION >= 12030 && major >= 9 && driver >= 12030 && code.ptxVersion >= 90;
    return e;
}

/* Creates a stream of GPU `gpu`, in *s; -1 with a sentence in *err. */
static int stream_open(CudaStream *s, int gpu, Error *err) {
    cudaDeviceProp p;
    int count = gpu_count(err);
    if (count < 0) return -1;
    if (gpu < 0 || gpu >= count)
        return error_set(err, "there is no device cuda:%d; this machine has %d GPU%s, counted from cuda:0", gpu,
                         count, count == 1 ? "" : "s");
    if (gpu >= CUDA_GPUS)
        return error_set(err, "device cuda:%d is not used: only the first %d GPUs of a machine are", gpu, CUDA_GPUS);
    cudaError_t e = cudaGetDeviceProperties(&p, gpu);
    if (e == cudaSuccess && p.major < 8)
        return error_set(err,
                         "device cuda:%d (%s) has compute capability %d.%d; 8.0 or newer is needed (A100 and later), "
                         "or --device cpu",
                         gpu, p.name, p.major, p.minor);
    if (e == cudaSuccess) e = cudaSetDevice(gpu);
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&s->copies, cudaStreamNonBlocking);
    if (e == cudaSuccess) e = cudaEventCreateWithFlags(&s->ready, cudaEventDisableTiming);
    if (e == cudaSuccess) e = can_launch_early(p.major, &s->early);
    if (e != cudaSuccess) {
        (void)cudaGetLastError();
        return error_set(err, "device cuda:%d does not start: %s; see what else uses it, or use --device cpu", gpu,
                         cudaGetErrorString(e));
    }
    s->gpu = gpu;
    return 0;
}

extern "C" int cuda_device_count(void) {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count < CUDA_GPUS ? count : CUDA_GPUS;
    (void)cudaGetLastError();
    return 0;
}

extern "C" const Ops *cuda_ops_open(int device, int stream, Error *err) {
    static Ops tables[CUDA_TABLES];
    static char names[CUDA_TABLES][16];
    if (stream < 0 || stream >= CUDA_STREAMS) die("internal error: a GPU has no stream %d", stream);
    const int table = stream * CUDA_GPUS + device;
    const bool possible = device >= 0 && device < CUDA_GPUS;
    if (possible && cuda_streams[table].open) return &tables[table];
    program_name_set(program_invocation_name);  // for the sentences of this file and its headers
    cuda_current = NULL;                        // stream_open changes the runtime's device
    CudaStream opened;
    memset(&opened, 0, sizeof opened);
    if (stream_open(&opened, device, err)) return NULL;
    opened.open = true;
    cuda_streams[table] = opened;
    snprintf(names[table], sizeof names[table], "cuda:%d", device);
    Ops *t = &tables[table];
    t->name = names[table];
    t->device = device;
    t->stream = stream;
    t->native_stream = (void *)opened.stream;
    table_fill_for(t, table);
    return t;
}
