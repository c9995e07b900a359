/* Which kernels this processor runs. kernels/cpu/cpu.c is compiled once for every set of instructions (the Makefile's
 * CPU_SETS); this file, which any processor can run, takes the best set that this one has, or the one that the
 * environment variable TIKZ_CPU names. */
#include "../../lib/error.h"
#include "../device.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#define MAYBE_UNUSED __attribute__((unused))  // of a set that this build was made without

typedef struct {
    const char *name;
    const Ops *table;
    bool (*supported)(void);
} CpuSet;

static MAYBE_UNUSED bool has_portable(void) { return true; }

#if defined(__x86_64__)
static MAYBE_UNUSED bool has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

static MAYBE_UNUSED bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

/* Bits of CPUID's leaf 7 (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2A). */
static MAYBE_UNUSED bool has_avxvnni(void) {
    unsigned a = 0, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

static MAYBE_UNUSED bool has_avx512vnni(void) {
    unsigned a, b, c = 0, d;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 11 & 1);
}

static MAYBE_UNUSED bool has_avx512bf16(void) {
    unsigned a = 0, b, c, d;
    return has_avx512vnni() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

/* Linux gives the tile registers to a process that asks (the kernel's Documentation/arch/x86/xstate.rst). */
static MAYBE_UNUSED bool has_amx(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    unsigned a, b, c, d = 0;
    const bool tiles = has_avx512bf16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1);
    return tiles && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#elif defined(__aarch64__)
static MAYBE_UNUSED bool has_neon(void) { return true; }

static MAYBE_UNUSED bool has_dotprod(void) {
    const unsigned long asimddp = 1ul << 20;  // HWCAP_ASIMDDP (the kernel's Documentation/arch/arm64/elf_hwcaps.rst)
    return getauxval(AT_HWCAP) & asimddp;
}
#elif defined(__wasm__)
static MAYBE_UNUSED bool has_simd128(void) { return true; }  // a browser without it has not loaded this module
#endif

#define DECLARE(set) extern const Ops cpu_ops_##set;
CPU_SETS(DECLARE)
#define ENTRY(set) {#set, &cpu_ops_##set, has_##set},
static const CpuSet sets[] = {CPU_SETS(ENTRY)};  // the best one last
enum { SETS = sizeof sets / sizeof *sets };

/* The names of the sets that this processor has, from the best one on. */
static const char *names_supported(void) {
    static char names[128];
    size_t n = 0;
    for (int i = SETS - 1; i >= 0; i--)
        if (sets[i].supported())
            n += (size_t)snprintf(names + n, sizeof names - n, "%s%s", n ? i ? ", " : " and " : "", sets[i].name);
    return names;
}

const Ops *cpu_ops_open(Error *err) {
    const char *wanted = getenv("TIKZ_CPU");
    bool known = false;
    for (int i = SETS - 1; i >= 0; i--) {
        if (wanted && *wanted && strcmp(wanted, sets[i].name)) continue;
        known = true;
        if (sets[i].supported()) return sets[i].table;
    }
    if (!wanted || !*wanted)
        error_set(err, "this processor has none of the instructions that this program was built for; build it again "
                       "with CPU_SETS=portable");
    else
        error_set(err, "TIKZ_CPU is '%.40s', %s; it can be %s, or unset for the best", wanted,
                  known ? "which this processor does not have" : "which is no set of processor instructions",
                  names_supported());
    return NULL;
}
