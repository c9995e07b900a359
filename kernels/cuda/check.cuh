/* What happens when a call of the CUDA runtime fails: the program ends with a sentence that says what to do. */
#ifndef KERNELS_CUDA_CHECK_CUH
#define KERNELS_CUDA_CHECK_CUH

#include "../../lib/error.h"
#include <platform.cuh>

/* Ends the program when e is an error. A kernel's error is reported late, by whichever call comes next, so the
 * sentence can name a later call than the one to blame; CUDA_LAUNCH_BLOCKING=1 makes every call report its own. */
static inline void cuda_check(cudaError_t e, const char *file, int line) {
    if (e == cudaSuccess) return;
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (e == cudaErrorInsufficientDriver)
        die("the GPU's driver knows CUDA %d.%d but this program was built with CUDA %d.%d; update the driver, or use "
            "--device cpu",
            driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (e == cudaErrorNoDevice) die("no NVIDIA GPU answers; use --device cpu");
    if (e == cudaErrorNoKernelImageForDevice)
        die("this program was built for other GPUs than this one; build it here with make CUDA_ARCHITECTURES=native, "
            "or use --device cpu");
    if (e == cudaErrorMemoryAllocation)
        die("the GPU's memory is full (seen at %s:%d); a smaller --batch or model needs less, and in training also a "
            "smaller --chunk, or --recompute",
            file, line);
    die("the GPU stopped: %s (%s, seen at %s:%d); start again, with --resume when training; if it happens again, run "
        "with CUDA_LAUNCH_BLOCKING=1 to see where",
        cudaGetErrorString(e), cudaGetErrorName(e), file, line);
}

#define CUDA_CHECK(call) cuda_check(call, __FILE__, __LINE__)

#endif
