/* Opening devices: the table of operations (ops.h) of the CPU or of a GPU, by the name that --device gives. */
#ifndef KERNELS_DEVICE_H
#define KERNELS_DEVICE_H

#include "../lib/error.h"
#include "ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The CPU's table: the best that this processor runs, or the one that the environment variable TIKZ_CPU names. NULL
 * with a sentence in *err when it names none, or one that this processor does not have. */
const Ops *cpu_ops_open(Error *err);

/* The same for programs that cannot go on without it. */
static inline const Ops *cpu_ops(void) {
    Error err;
    const Ops *op = cpu_ops_open(&err);
    if (!op) die("%s", err.text);
    return op;
}

/* The table of a stream (0 .. OPS_STREAMS-1) of GPU `device`, which the first call opens. Tables of different GPUs,
 * and of the streams of one, work side by side in one thread. NULL with a sentence in *err when there is no such GPU,
 * the driver is too old, ... */
#ifdef WITH_CUDA
int cuda_device_count(void);  // 0 where there is none or no driver
const Ops *cuda_ops_open(int device, int stream, Error *err);
#endif

/* The table that a --device option names: cpu; cuda:N, or cuda for the first GPU; auto for the first GPU if one
 * answers, else for the CPU. NULL with a sentence in *err when there is no such device. */
static inline const Ops *ops_open(const char *name, Error *err) {
    int number = 0, end = 0;
    bool any = !strcmp(name, "auto");
    if (!strcmp(name, "cpu")) return cpu_ops_open(err);
    if (!any && strcmp(name, "cuda") && (sscanf(name, "cuda:%4d%n", &number, &end) != 1 || name[end] || number < 0)) {
        error_set(err, "there is no device '%.40s'; expected auto, cpu, cuda or cuda:N", name);
        return NULL;
    }
#ifdef WITH_CUDA
    const Ops *op = cuda_ops_open(number, 0, err);
    return op || !any ? op : cpu_ops_open(err);
#else
    if (any) return cpu_ops_open(err);
    error_set(err,
              "device %.40s: this program was built without CUDA; build it again where nvcc is, or use --device cpu",
              name);
    return NULL;
#endif
}

/* A device's name for people, with the kernels that were chosen for it: "cpu (avx2)". */
typedef struct {
    char text[64];
} DeviceName;

static inline DeviceName ops_name(const Ops *op) {
    DeviceName n;
    const bool chosen = op->kernels != NULL;
    snprintf(n.text, sizeof n.text, "%s%s%s%s", op->name, chosen ? " (" : "", chosen ? op->kernels : "",
             chosen ? ")" : "");
    return n;
}

/* A usage text, and after it which kernels the CPU has. A wrong TIKZ_CPU ends the program with status 2, as a wrong option
 * does. The caller frees the text. */
static inline char *ops_usage(const char *usage) {
    Error err;
    const Ops *op = cpu_ops_open(&err);
    if (!op) {
        report_error("%s", err.text);
        exit(2);
    }
    return format_string(
        "%s\nOn the CPU it runs the kernels for %s (the environment variable TIKZ_CPU names others).", usage,
        op->kernels);
}

/* The table of stream 0 .. OPS_STREAMS-1 of the same device. Its calls run beside those of the other streams, and all
 * of them see the same memory; wait_for and copy_from say what must wait for what. The CPU does one thing after
 * another, so it has one table only. */
static inline const Ops *ops_stream(const Ops *op, int stream) {
#ifdef WITH_CUDA
    Error err;
    const Ops *table = op->host_memory ? op : cuda_ops_open(op->device, stream, &err);
    if (!table) die("%s", err.text);
    return table;
#else
    (void)stream;
    return op;
#endif
}

static inline const Ops *ops_second_stream(const Ops *op) { return ops_stream(op, 1); }

/* a and b are tables of one device, which share its memory. */
static inline bool ops_share_memory(const Ops *a, const Ops *b) {
    return a->host_memory == b->host_memory && a->device == b->device;
}

/* NVIDIA GPUs that this program can use. */
static inline int gpus_visible(void) {
#ifdef WITH_CUDA
    return cuda_device_count();
#else
    return 0;
#endif
}

#ifdef __cplusplus
}
#endif
#endif
