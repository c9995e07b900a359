/* The emulated GPU: runs a kernel's blocks one after another on the processor, the threads of a block as fibers; the
 * blocks of a cluster (thread block cluster, sm_90) run together, their threads mixed.
 *
 * It exists to prove the CUDA sources of kernels/ without a GPU: they compile unchanged against the headers in this
 * folder, and run in an order that a GPU could have chosen too. Between two barriers the threads of a block run one
 * at a time, the next one drawn at random from a seed, each until it waits or returns; so a missing barrier gives
 * results that differ between seeds, and AddressSanitizer sees every access. What a GPU would hang on (a barrier or a
 * warp intrinsic that some thread never reaches) ends the program with a sentence that names kernel, block and
 * thread.
 *
 * Kept libraries were considered: HIP-CPU (ROCm) speaks HIP, not CUDA, has no bf16, no cuBLASLt and no order to
 * choose, and no sanitizer can follow its fibers; cuda4cpu could not be found on PyPI. */
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
/* Of the 48 KB that a kernel need not ask for: how much its static variables take of them is not known here. */
enum { PLAIN_SHARED = 40 * 1024 };

/* What the lanes of a warp do together once all have arrived: lane[i] points to what lane i brought (NULL for lanes
 * that the mask does not name); results go to the same place. */
typedef void (*Together)(void *const lane[WARP]);

/* Where a thread waits, for the sentence when it waits in vain. */
struct Place {
    const char *what, *file;
    int line;
};

struct Fiber;
struct Block;

/* 16 bytes that cp.async has been asked for. */
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
    unsigned group;  // the one that copies belong to now
    bool arrived;    // at the cluster's barrier, and has not waited there yet
    bool waited;     // for the kernels before this one
    bool met;        // has passed a barrier of the cluster: all of its blocks have begun
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

/* What a launch asks for. Ends the program with a sentence when a GPU could not run it. */
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
void check_launch(const Launch &l, bool stream_fits);  // without running it

void barrier(Place place);
void meet(unsigned mask, void *brought, Together together, Place place);
unsigned live_lanes();  // of this thread's warp: those that have not returned

/* barrier.cluster: here a thread waits until all of the cluster wait, while on a GPU it is enough that they arrived.
 * cluster_address: the same place of dynamic shared memory in the cluster's block `rank`. Static shared memory is one
 * for all blocks of a cluster, so kernels for clusters have only dynamic. */
void cluster_arrive(Place place);
void cluster_wait(Place place);
void *cluster_address(void *mine, unsigned rank);

/* griddepcontrol.wait. Kernels run one after another here; but a thread of one that may begin early and returns
 * without having waited ends the program: on a GPU the next kernel could then run beside the one before. */
void wait_for_previous();

/* cp.async: a copy happens as late as its thread allows, when it waits for the copy's group, so a wait that is
 * missing or too short shows. */
void copy_later(void *to, const void *from);
void copies_commit();
void copies_wait(unsigned left);

/* cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) on the selected device */
void allow_shared(const void *function, size_t bytes);

/* Chooses the order in which threads and blocks run from now on; the environment variable EMULATION_SEED sets the
 * first one. */
void set_seed(uint64_t seed);
void streams_seed(uint64_t seed);  // the part of it in streams.cpp

/* malloc with every bit one, so that what is read before it is written shows; NULL above `EMULATION_MEMORY` bytes. */
void *device_memory(size_t bytes);
void device_memory_free(void *p);
size_t device_memory_in_use();
size_t device_memory_total();

/* What the emulated GPU says of itself: EMULATION_CAPABILITY (80 without it) and EMULATION_SHARED, the bytes of
 * shared memory a block may ask for (MAX_SHARED): with little of it, short rows take the ways of long ones. */
int device_capability();
int device_shared();

}  // namespace emulation

#endif
