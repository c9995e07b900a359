/* The emulated GPU. It runs the blocks of a kernel one after another on the CPU, with a fiber for each thread of the
 * block; the blocks of a cluster (thread block cluster, sm_90) run together, with their threads interleaved.
 *
 * It exists to test the CUDA sources of kernels/ without a GPU. They compile unchanged against the headers in this
 * folder, and run in an order that a GPU could have chosen too. Between two barriers the threads of a block run one
 * at a time, each until it waits or returns, and a seeded random choice decides which one is next. So a missing
 * barrier gives results that differ between seeds, and AddressSanitizer sees every access. Where a GPU would hang (at
 * a barrier or a warp intrinsic that some thread never reaches), the program ends with a sentence that names kernel,
 * block and thread.
 *
 * Existing libraries were considered. HIP-CPU (ROCm) implements HIP, not CUDA, has no bf16, no cuBLASLt and no choice
 * of order, and no sanitizer can follow its fibers; cuda4cpu could not be found on PyPI. */
#ifndef EMULATION_MACHINE_H
#define EMULATION_MACHINE_H

#include <stddef.h>
#include <stdint.h>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulation {

enum { WARP = 32, MAX_THREADS = 1024, MAX_CLUSTER = 8, MAX_COPIES = 64, MAX_SHARED = 227 * 1024 };
/* What a kernel may use without asking. On a GPU it is 48 KB with its static variables, whose size is not known
 * here. */
enum { PLAIN_SHARED = 40 * 1024 };

/* What the lanes of a warp do together once all have arrived. lane[i] points to the operand of lane i (NULL for lanes
 * that the mask does not name), and results are stored in the same place. */
typedef void (*Together)(void *const lane[WARP]);

/* Where a thread waits, for the error sentence when it waits in vain. */
struct Place {
    const char *what, *file;
    int line;
};

struct Fiber;
struct Block;

/* A copy of 16 bytes by cp.async that has not been done yet. */
struct Copy {
    void *to;
    const void *from;
    unsigned group;
};

struct Thread {
    uint3 index;
    unsigned number;  // in its block, x fastest; the warp is number / WARP
    Block *block;
    enum { READY, AT_BARRIER, AT_CLUSTER_BARRIER, IN_WARP, RETURNED } state;
    Fiber *fiber;  // NULL before the first step
    Place place;
    unsigned mask;  // lanes that meet; with AT_BARRIER unused
    void *brought;
    Together together;
    Copy copy[MAX_COPIES];
    int copies;
    unsigned group;  // the group that new copies belong to
    bool arrived;    // it has arrived at the cluster's barrier, and has not waited there yet
    bool waited;     // it has waited for the kernels before this one
    bool met;        // it has passed a barrier of the cluster, so all of the cluster's blocks have begun
};

struct Block {
    uint3 index;
    dim3 size, grid;
    char *shared;             // dynamic
    unsigned rank, blocks;    // in its cluster, and how many those are
    unsigned first, threads;  // its threads among the machine's
};

extern __thread Thread *current;
extern __thread Block *block;

/* A kernel launch. check_launch ends the program with a sentence when a GPU could not run it. */
struct Launch {
    const char *name;
    dim3 grid, size;
    size_t shared;
    const void *function;  // identifies the kernel for its shared-memory limit
    void (*run)(void *context);
    void *context;
    unsigned cluster = 1;  // blocks of a cluster, neighbours in x
    bool early = false;    // may begin before the kernel before it has ended
};
void launch(const Launch &l);
void check_launch(const Launch &l, bool stream_fits);

void barrier(Place place);
void meet(unsigned mask, void *brought, Together together, Place place);
unsigned live_lanes();  // of this thread's warp: those that have not returned

/* barrier.cluster: here a thread waits until all threads of the cluster wait, while on a GPU it is enough that they
 * have arrived. cluster_address: the same place of dynamic shared memory in the cluster's block `rank`. Static shared
 * memory exists once for all blocks of a cluster, so kernels for clusters use dynamic shared memory only. */
void cluster_arrive(Place place);
void cluster_wait(Place place);
void *cluster_address(void *mine, unsigned rank);

/* griddepcontrol.wait. Kernels run one after another here. But a thread of a kernel that may begin early ends the
 * program when it returns without having waited, because on a GPU the next kernel could then overlap the one
 * before. */
void wait_for_previous();

/* cp.async: a copy is done as late as possible, when its thread waits for the copy's group. So a wait that is
 * missing, or for the wrong group, gives wrong results. */
void copy_later(void *to, const void *from);
void copies_commit();
void copies_wait(unsigned left);

/* cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) on the selected device */
void allow_shared(const void *function, size_t bytes);
size_t shared_limit(const void *function);  // what it allows

/* Seeds the order in which threads and blocks run from now on; the environment variable EMULATION_SEED is the first
 * seed.
 */
void set_seed(uint64_t seed);
void streams_seed(uint64_t seed);  // its part in streams.cpp

/* Device memory, with every bit set, so that reading it before it is written gives NaN. NULL when more than
 * EMULATION_MEMORY bytes would be in use. */
void *device_memory(size_t bytes);
void device_memory_free(void *p);
size_t device_memory_in_use();
size_t device_memory_total();

/* Properties of the emulated GPU, from the environment: EMULATION_CAPABILITY (80 without it), and EMULATION_SHARED,
 * the bytes of shared memory that a block may ask for (MAX_SHARED without it). With little of it, the code for long
 * rows can be tested with short ones. */
int device_capability();
int device_shared();

}  // namespace emulation

#endif
