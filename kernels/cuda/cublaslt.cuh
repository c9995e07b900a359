/* cuBLASLt, loaded when the first product runs on a GPU. It is a library of half a gigabyte: linked, it would cost
 * every start of a program an eighth of a second, also where there is no GPU. Its functions are called as
 * cublaslt()->Matmul(...) for cublasLtMatmul(...). */
#ifndef KERNELS_CUDA_CUBLASLT_CUH
#define KERNELS_CUDA_CUBLASLT_CUH

#include "../../lib/error.h"
#include <cublasLt.h>
#ifndef CUDA_EMULATION
#include <dlfcn.h>
#endif

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

#ifdef CUDA_EMULATION
#define FIND(name) cublasLt##name,
static inline CublasLt cublaslt_load(void) {
    CublasLt lt = {CUBLASLT_FUNCTIONS(FIND)};
    return lt;
}
#undef FIND
#else
static inline void *cublaslt_find(void *library, const char *name) {
    void *function = dlsym(library, name);
    if (!function)
        die("the matrix library cuBLASLt has no function %s; install the one of CUDA %d", name, CUBLAS_VER_MAJOR);
    return function;
}

/* The version whose header this was compiled with. */
static inline CublasLt cublaslt_load(void) {
    char name[40];
    CublasLt lt;
    snprintf(name, sizeof name, "libcublasLt.so.%d", CUBLAS_VER_MAJOR);
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        die("cannot load the matrix library of CUDA %d: %s; install it, or use --device cpu", CUBLAS_VER_MAJOR,
            dlerror());
#define FIND(name) lt.name = (decltype(lt.name))cublaslt_find(library, "cublasLt" #name);
    CUBLASLT_FUNCTIONS(FIND)
#undef FIND
    return lt;
}
#endif

static inline const CublasLt *cublaslt(void) {
    static const CublasLt loaded = cublaslt_load();
    return &loaded;
}

#endif
