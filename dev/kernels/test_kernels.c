/* Every entry of a device's table of operations against a plain reference (dev/kernels/reference.h).
 *
 *   test_kernels [--quick | --smoke] [DEVICE [TEST...]]     DEVICE: cpu, cuda or all, which is what there is
 *
 * --quick runs a quarter of the cases, --smoke two of each operation; the names of tests (the table below) run only
 * those.
 *
 * A case draws a shape and its data from a seed, runs the operation into outputs that were poisoned with NaN and sit
 * between guard zones, and compares. The backward references are themselves compared with central finite differences.
 * Each case runs three times, with 1, 2 and 3 threads and on an emulated GPU with its threads in three orders, and
 * every output must be the same bit for bit. Under AddressSanitizer nothing outside of a buffer may even be read. One
 * line per failing check, then `N passed, M failed`; the exit status is 1 if any failed. */
#include "test_kernels_attention.h"
#include "test_kernels_device.h"
#include "test_kernels_figures.h"
#include "test_kernels_input.h"
#include "test_kernels_layers.h"
#include "test_kernels_objective.h"
#include "test_kernels_optimizer.h"
#include "test_kernels_quantised.h"
#include "test_kernels_sample.h"
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef CUDA_EMULATION
extern void emulation_set_seed(uint64_t seed);
#endif

static const struct {
    const char *name;
    void (*run)(void);
    int repeats;
} tests[] = {
    {"graph", test_graph, 6},
    {"memory", test_memory, 6},
    {"large_copies", test_large_copies, 8},
    {"devices", test_devices, 8},
    {"embedding", test_embedding, 20},
    {"patchify", test_patchify, 20},
    {"position", test_position, 20},
    {"position_2d", test_position_2d, 20},
    {"rows", test_rows, 20},
    {"norm", test_norm, 60},
    {"linear_forward", test_linear_forward, 120},
    {"linear_backward", test_linear_backward, 80},
    {"quantise", test_quantise, 40},
    {"quantised_linear", test_quantised_linear, 120},
    {"quantised_embedding", test_quantised_embedding, 20},
    {"gelu", test_gelu, 20},
    {"swiglu", test_swiglu, 20},
    {"dropout", test_dropout, 20},
    {"residual_and_casts", test_residual_and_casts, 20},
    {"attention", test_attention, 60},
    {"decode", test_decode, 30},
    {"sample", test_sample, 60},
    {"sample_often", test_sample_often, 1},
    {"graphs", test_graphs, 1},
    {"second_stream", test_second_stream, 12},
    {"streams", test_streams, 6},
    {"downloads", test_downloads, 4},
    {"objective", test_objective, 150},
    {"policy", test_policy, 60},
    {"objective_wide", test_objective_wide, 12},
    {"objective_near", test_objective_near, 60},
    {"objective_extremes", test_objective_extremes, 20},
    {"objective_sparse", test_objective_sparse, 80},
    {"objective_sparse_whole", test_objective_sparse_whole, 30},
    {"figures", test_figures, 32},
    {"entropy_band", test_entropy_band, 20},
    {"cosine", test_cosine, 30},
    {"squared_norm", test_squared_norm, 10},
    {"adamw", test_adamw, 30},
};

static void set_threads(int n) {
#ifdef _OPENMP
    omp_set_num_threads(n);
#endif
#ifdef CUDA_EMULATION
    emulation_set_seed((uint64_t)n);
#endif
    (void)n;
}

static void run_case(const char *name, void (*run)(void), int seed) {
    uint64_t first = 0;
    snprintf(case_name, sizeof case_name, "%s %s seed %d", op->name, name, seed);
    for (int threads = 1; threads <= 3; threads++) {
        random_state = (uint64_t)seed * 1000003u;
        case_hash = 0xcbf29ce484222325u;
        comparing = threads == 1;
        set_threads(threads);
        run();
        end_buffers();
        if (threads == 1)
            first = case_hash;
        else
            report(case_hash == first, "bits differ between the runs 1 and %d", threads);
    }
}

/* names: of the tests to run; all of them if there is none */
static void run_device(const Ops *device, bool quick, bool smoke, char **names) {
    op = device;
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        int repeats = smoke ? 2 : quick ? (tests[i].repeats + 3) / 4 : tests[i].repeats;
        bool wanted = !*names;
        for (char **name = names; *name; name++) wanted = wanted || strcmp(*name, tests[i].name) == 0;
        for (int seed = 0; wanted && seed < repeats; seed++) run_case(tests[i].name, tests[i].run, seed);
    }
}

int main(int argc, char **argv) {
    bool quick = argc > 1 && strcmp(argv[1], "--quick") == 0;
    bool smoke = argc > 1 && strcmp(argv[1], "--smoke") == 0;
    char **rest = argv + 1 + (quick || smoke);
    const char *only = argc > 1 + (quick || smoke) && strcmp(*rest, "all") ? *rest : NULL;
    if (argc > 1 + (quick || smoke)) rest++;
    static const char *const names[] = {"cpu", "cuda"};
#ifdef CUDA_EMULATION
    setenv("EMULATION_DEVICES", "2", 0);
#endif
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        Error err;
        if (only && strcmp(only, names[i])) continue;
        const Ops *device = ops_open(names[i], &err);
        if (device)
            run_device(device, quick, smoke, rest);
        else if (only || strcmp(names[i], "cuda"))
            report(false, "%s", err.text);
        else
            printf("not tested: %s\n", err.text);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0 || passed == 0;
}
