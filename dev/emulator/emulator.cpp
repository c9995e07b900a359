/* The scheduler of the emulated GPU (machine.h): fibers, barriers, and what the lanes of a warp do together. */
#include "../../lib/random.h"
#include "streams.h"

#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN
#endif
#endif
#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__) && !defined(EMULATION_UCONTEXT)
#define EMULATION_UCONTEXT
#endif
#ifdef EMULATION_UCONTEXT
#include <ucontext.h>
#endif

namespace emulation {

__thread Thread *current;
__thread Block *block;

enum { STACK = 256 * 1024, PAGE = 4096, MAX_WARPS = MAX_THREADS * MAX_CLUSTER / WARP };

/* ---- fibers ----
 * A fiber runs threads of a block one after another, and only a thread that waits occupies its fiber. ucontext saves
 * the signal mask with a system call at each switch, so x86-64 has a switch of its own, of a few instructions (unless
 * EMULATION_UCONTEXT is defined). */

struct Fiber {
    char *stack;  // lowest address; NULL for the fiber that called launch()
    size_t size;
    Fiber *next;       // in the list of idle ones
    void *fake_stack;  // AddressSanitizer's
#ifndef EMULATION_UCONTEXT
    void *top;  // saved stack pointer
#else
    ucontext_t context;
#endif
};

struct Machine {
    const Launch *launch;
    Thread thread[MAX_THREADS * MAX_CLUSTER];  // of a block after those of another
    int count, returned;
    unsigned ready[MAX_WARPS];  // a bit for each thread that can go on, warp by warp
    int ready_count;
    uint64_t random;
    bool unfair;                      // how this block's threads are chosen
    unsigned char favour[MAX_WARPS];  // then: the warps in their order, until the next barrier
    Fiber main, *idle, *running;
    Block block[MAX_CLUSTER];
};

static __thread Machine *machine;
static uint64_t seed, launches;

#ifndef EMULATION_UCONTEXT
/* Pushes the registers that a function must preserve, stores the stack pointer in *save, and continues at the stack
 * `load`. */
extern "C" void emulation_switch(void **save, void *load);
__asm__(".text\n.globl emulation_switch\n.type emulation_switch, @function\nemulation_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
        ".size emulation_switch, .-emulation_switch\n");
#endif

/* Called first on a fiber that has been switched to. */
static void arrived() {
#ifdef WITH_ASAN
    const void *from;
    size_t size;
    __sanitizer_finish_switch_fiber(machine->running->fake_stack, &from, &size);
    if (machine->main.stack) return;
    machine->main.stack = (char *)from;  // the first switch away from launch() tells where its stack lies
    machine->main.size = size;
#endif
}

__attribute__((noinline)) static void switch_to(Fiber *to) {
    Fiber *from = machine->running;
    machine->running = to;
#ifdef WITH_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->size);
#endif
#ifndef EMULATION_UCONTEXT
    emulation_switch(&from->top, to->top);
#else
    swapcontext(&from->context, &to->context);
#endif
    arrived();
}

__attribute__((noinline)) static Fiber *fiber_here() { return machine->running; }

static void fiber_main();

static Fiber *fiber_create() {
    Fiber *f = (Fiber *)calloc(1, sizeof *f);
    char *memory = (char *)mmap(NULL, STACK + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!f || memory == MAP_FAILED || mprotect(memory, PAGE, PROT_NONE)) {
        fprintf(stderr, "emulation: no memory for another fiber\n");
        _exit(1);
    }
    f->stack = memory + PAGE;
    f->size = STACK;
#ifndef EMULATION_UCONTEXT
    void **top = (void **)(f->stack + f->size);
    *--top = NULL;                 // a return address that is never used, and the alignment of a called function
    *--top = (void *)&fiber_main;  // where the first switch returns to
    for (int i = 0; i < 6; i++) *--top = NULL;
    f->top = top;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = f->size;
    makecontext(&f->context, fiber_main, 0);
#endif
    return f;
}

static Fiber *fiber_take() {
    Fiber *f = machine->idle;
    if (!f) return fiber_create();
    machine->idle = f->next;
    return f;
}

/* ---- error sentences ---- */

static void describe(char *text, size_t size, const Thread *t) {
    snprintf(text, size, "thread (%u, %u, %u)", t->index.x, t->index.y, t->index.z);
}

[[noreturn]] static void fail(const Thread *t, const char *sentence) {
    char who[64];
    describe(who, sizeof who, t);
    fprintf(stderr, "emulation: kernel %s, block (%u, %u, %u), %s: %s at %s:%d %s\n", machine->launch->name,
            block->index.x, block->index.y, block->index.z, who, t->place.what, t->place.file, t->place.line,
            sentence);
    _exit(1);
}

static bool same_place(const Place &a, const Place &b) { return a.line == b.line && !strcmp(a.file, b.file); }

/* No thread can run: names a waiting thread and the thread it waits for. */
[[noreturn]] static void fail_stuck() {
    char who[64], text[256];
    for (int i = 0; i < machine->count; i++) {
        const Thread *t = &machine->thread[i];
        if (t->state == Thread::RETURNED) continue;
        for (int j = 0; j < machine->count; j++) {
            const Thread *other = &machine->thread[j];
            bool in_warp = t->state == Thread::IN_WARP, same_block = t->block == other->block;
            bool named = other->number / WARP == t->number / WARP && t->mask >> (other->number % WARP) & 1;
            bool awaited = t->state == Thread::AT_CLUSTER_BARRIER || (same_block && (!in_warp || named));
            bool there = other->state == t->state && same_place(other->place, t->place) &&
                         (!in_warp || other->mask == t->mask);
            if (!awaited || there) continue;
            describe(who, sizeof who, other);
            if (other->state == Thread::RETURNED)
                snprintf(text, sizeof text, "waits for %s, which has returned", who);
            else
                snprintf(text, sizeof text, "waits for %s, which is in %s at %s:%d", who, other->place.what,
                         other->place.file, other->place.line);
            fail(t, text);
        }
    }
    fail(&machine->thread[0], "waits for lanes that the block does not have");
}

/* ---- the scheduler ---- */

static void make_ready(Thread *t) {
    t->state = Thread::READY;
    unsigned number = (unsigned)(t - machine->thread);
    machine->ready[number / WARP] |= 1u << number % WARP;
    machine->ready_count++;
}

static void go_on_with(Thread *t) {
    current = t;
    block = t ? t->block : NULL;
}

/* Makes these threads ready if all of them wait at the same barrier of this kind. A thread that has returned never
 * arrives. */
static bool barrier_complete(Thread *first, unsigned count, int state) {
    for (unsigned i = 0; i < count; i++)
        if ((int)first[i].state != state || !same_place(first[i].place, first->place)) return false;
    for (unsigned i = 0; i < count; i++) make_ready(&first[i]);
    return true;
}

/* Opens the barriers of blocks and of the cluster that are complete; true if there was one. */
static bool barriers_open(Machine *m) {
    bool any = barrier_complete(m->thread, (unsigned)m->count, Thread::AT_CLUSTER_BARRIER);
    for (unsigned b = 0; b < m->launch->cluster; b++)
        any |= barrier_complete(m->thread + m->block[b].first, m->block[b].threads, Thread::AT_BARRIER);
    return any;
}

static int warp_count() { return (machine->count + WARP - 1) / WARP; }

/* A new order of the warps. */
static void shuffle_warps() {
    for (int i = 0; i < warp_count(); i++) {
        int j = (int)(random_splitmix(&machine->random) % (uint64_t)(i + 1));
        machine->favour[i] = machine->favour[j];
        machine->favour[j] = (unsigned char)i;
    }
}

/* The thread that runs next; NULL when all have returned. In half of the blocks it is any thread that can run. In the
 * others it belongs to the first warp of a random order, which therefore runs as far ahead of the others as it can.
 * That finds a missing barrier between one use of shared memory and the next. */
static Thread *choose() {
    Machine *m = machine;
    if (m->ready_count == 0) {
        if (m->returned == m->count) return NULL;
        if (!barriers_open(m)) fail_stuck();
        if (m->unfair) shuffle_warps();
    }
    int at = m->unfair ? 0 : (int)(random_splitmix(&m->random) % (uint64_t)warp_count());
    while (!m->ready[m->unfair ? m->favour[at] : at]) at = (at + 1) % warp_count();
    int warp = m->unfair ? m->favour[at] : at;
    unsigned lanes = m->ready[warp];
    for (uint64_t skip = random_splitmix(&m->random) % (uint64_t)__builtin_popcount(lanes); skip > 0; skip--)
        lanes &= lanes - 1;
    lanes &= -lanes;  // the thread's bit
    m->ready[warp] ^= lanes;
    m->ready_count--;
    return &m->thread[warp * WARP + __builtin_ctz(lanes)];
}

/* Lets the current thread wait; returns when it has been chosen again. */
static void wait() {
    Thread *me = current, *next = choose();
    go_on_with(next);
    if (next == me) return;
    me->fiber = machine->running;
    Fiber *to = next->fiber ? next->fiber : fiber_take();
    switch_to(to);
}

/* Runs threads that have not begun, one after another. Returns the fiber to switch to when a thread that had waited
 * is chosen, or when none is left. */
__attribute__((noinline)) static Fiber *run_threads(Fiber *self) {
    for (;;) {
        machine->launch->run(machine->launch->context);
        if (machine->launch->early && !current->waited) {
            current->place = {"griddepcontrol.wait", "nowhere", 0};
            fail(current, "has not been called when the thread returns");
        }
        current->state = Thread::RETURNED;
        machine->returned++;
        Thread *next = choose();
        go_on_with(next);
        if (next && !next->fiber) continue;
        self->next = machine->idle;
        machine->idle = self;
        return next ? next->fiber : &machine->main;
    }
}

/* An idle fiber may continue on another thread of the CPU. So this function uses no thread-local variable, whose
 * address the compiler could have kept. */
static void fiber_main() {
    Fiber *self = fiber_here();
    arrived();
    for (;;) switch_to(run_threads(self));
}

/* EMULATION_SKIP=FILE:LINE disables the barriers of that line, so that dev/kernels/mutate_barriers.sh can tell
 * whether a test notices. */
static bool skipped(const Place &place) {
    static const char *wanted = getenv("EMULATION_SKIP"), *colon = wanted ? strrchr(wanted, ':') : NULL;
    if (!colon || place.line != atoi(colon + 1)) return false;
    size_t length = (size_t)(colon - wanted), all = strlen(place.file);
    return all >= length && !strncmp(place.file + all - length, wanted, length);
}

void wait_for_previous() { current->waited = true; }

void barrier(Place place) {
    if (skipped(place)) return;
    current->place = place;
    current->state = Thread::AT_BARRIER;
    wait();
}

void cluster_arrive(Place place) {
    current->place = place;
    if (current->arrived) fail(current, "arrives twice without waiting");
    current->arrived = true;
}

void cluster_wait(Place place) {
    current->place = place;
    if (!current->arrived) fail(current, "waits without having arrived");
    current->arrived = false;
    if (skipped(place)) return;
    current->state = Thread::AT_CLUSTER_BARRIER;
    current->met = true;
    wait();
}

void *cluster_address(void *mine, unsigned rank) {
    const Block *me = current->block;
    size_t at = (size_t)((char *)mine - me->shared);
    current->place = {"mapa", "", 0};
    if (rank >= me->blocks || at >= machine->launch->shared)
        fail(current, "names no dynamic shared memory of a block of the cluster");
    if (rank != me->rank && !current->met) fail(current, "reaches into a block that may not have begun");
    return machine->block[rank].shared + at;
}

unsigned live_lanes() {
    unsigned lanes = 0, warp = current->number / WARP * WARP;
    for (unsigned i = 0; i < WARP && warp + i < current->block->threads; i++)
        if (machine->thread[current->block->first + warp + i].state != Thread::RETURNED) lanes |= 1u << i;
    return lanes;
}

static bool in_meeting(const Thread *t, const Thread *with) {
    return t->state == Thread::IN_WARP && t->mask == with->mask && t->together == with->together &&
           same_place(t->place, with->place);
}

/* The last lane to arrive does the work for all lanes. */
void meet(unsigned mask, void *brought, Together together, Place place) {
    if (!strcmp(place.what, "__syncwarp") && skipped(place)) return;
    Thread *me = current, *warp = me - me->number % WARP;
    unsigned lanes = me->block->threads - me->number / WARP * WARP;
    void *lane[WARP] = {};
    me->place = place;
    me->mask = mask;
    me->brought = brought;
    me->together = together;
    me->state = Thread::IN_WARP;
    if (!(mask >> (me->number % WARP) & 1)) fail(me, "has a mask without its own lane");
    for (unsigned i = 0; i < WARP; i++) {
        if (!(mask >> i & 1)) continue;
        if (i >= lanes || !in_meeting(&warp[i], me)) return wait();
        lane[i] = warp[i].brought;
    }
    together(lane);
    for (unsigned i = 0; i < WARP; i++)
        if (lane[i]) make_ready(&warp[i]);
    wait();
}

/* ---- asynchronous copies ---- */

void copy_later(void *to, const void *from) {
    Thread *t = current;
    t->place = {"cp.async", "", 0};
    if (((uintptr_t)to | (uintptr_t)from) % 16) fail(t, "at an address that is not a multiple of 16");
    if (t->copies == MAX_COPIES) fail(t, "has more copies under way than are emulated");
    t->copy[t->copies++] = {to, from, t->group};
}

void copies_commit() { current->group++; }

void copies_wait(unsigned left) {
    Thread *t = current;
    int kept = 0;
    for (int i = 0; i < t->copies; i++)
        if (t->group - t->copy[i].group > left)
            memcpy(t->copy[i].to, t->copy[i].from, 16);
        else
            t->copy[kept++] = t->copy[i];
    t->copies = kept;
}

/* ---- static shared memory ----
 * A kernel's __shared__ variables are static variables, which exist once for each thread of the CPU (under
 * AddressSanitizer once, and then they keep the last block's values). They are found in the program's own symbol
 * table, as thread-local variables of functions, so that every block can begin with all of their bits set. */

enum { MAX_STATIC = 4096 };
static struct {
    size_t at, bytes;  // from the beginning of the program's thread-local storage
} static_shared[MAX_STATIC];
static int static_count;

#ifndef WITH_ASAN
static void static_shared_find() {
    int file = open("/proc/self/exe", O_RDONLY);
    struct stat about;
    if (file < 0 || fstat(file, &about)) return;
    const char *base = (const char *)mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (base == MAP_FAILED) return;
    const ElfW(Ehdr) *head = (const ElfW(Ehdr) *)base;
    const ElfW(Shdr) *section = (const ElfW(Shdr) *)(base + head->e_shoff);
    for (int i = 0; i < head->e_shnum; i++) {
        if (section[i].sh_type != SHT_SYMTAB) continue;
        const char *names = base + section[section[i].sh_link].sh_offset;
        const ElfW(Sym) *symbol = (const ElfW(Sym) *)(base + section[i].sh_offset);
        for (size_t k = 0; k < section[i].sh_size / sizeof *symbol && static_count < MAX_STATIC; k++)
            if (ELF64_ST_TYPE(symbol[k].st_info) == STT_TLS && !strncmp(names + symbol[k].st_name, "_ZZ", 3))
                static_shared[static_count++] = {symbol[k].st_value, symbol[k].st_size};
    }
    munmap((void *)base, (size_t)about.st_size);
}
#endif

static int static_shared_poison(struct dl_phdr_info *program, size_t, void *) {
    for (int i = 0; i < static_count; i++)
        memset((char *)program->dlpi_tls_data + static_shared[i].at, 0xff, static_shared[i].bytes);
    return 1;  // the first one is the program; libraries have no kernels
}

/* ---- launches ---- */

/* Begins block `number` of the grid, as block `rank` of the cluster that runs. */
static void begin_block(Machine *m, const Launch &l, uint64_t number, unsigned rank) {
    Block *b = &m->block[rank];
    void *shared = NULL;
    b->index = {(unsigned)(number % l.grid.x), (unsigned)(number / l.grid.x % l.grid.y),
                (unsigned)(number / l.grid.x / l.grid.y)};
    b->size = l.size;
    b->grid = l.grid;
    b->rank = rank;
    b->blocks = l.cluster;
    b->threads = l.size.x * l.size.y * l.size.z;
    b->first = rank * b->threads;
    if (posix_memalign(&shared, 128, l.shared ? l.shared : 1)) _exit(1);
    memset(shared, 0xff, l.shared);
    b->shared = (char *)shared;
    for (unsigned i = 0; i < b->threads; i++) {
        Thread *t = &m->thread[b->first + i];
        t->number = i;
        t->index = {i % l.size.x, i / l.size.x % l.size.y, i / l.size.x / l.size.y};
        t->block = b;
        t->fiber = NULL;
        t->copies = 0;
        t->group = 0;
        t->arrived = t->waited = t->met = false;
        make_ready(t);
    }
}

static void run_cluster(Machine *m, const Launch &l, uint64_t number) {
    uint64_t start = seed ^ (launches * 0x632be59bd9b4e019u) ^ (number * 0x9e6c63d0876a9a47u);
    m->launch = &l;
    m->random = start;
    m->unfair = random_splitmix(&m->random) % 2;
    m->count = (int)(l.size.x * l.size.y * l.size.z * l.cluster);
    shuffle_warps();
    m->returned = m->ready_count = 0;
    m->running = &m->main;
    for (unsigned rank = 0; rank < l.cluster; rank++) begin_block(m, l, number * l.cluster + rank, rank);
    if (static_count) dl_iterate_phdr(static_shared_poison, NULL);
    go_on_with(choose());
    switch_to(fiber_take());
    go_on_with(NULL);
    for (unsigned rank = 0; rank < l.cluster; rank++) free(m->block[rank].shared);
}

/* OpenMP ends and begins threads as their number changes; a new thread takes over the machine of the last one with
 * its number. */
static Machine *machine_here() {
    static Machine *machines[1024];
#ifdef _OPENMP
    int number = omp_get_thread_num();
#else
    int number = 0;
#endif
    if (number < 0 || number >= 1024) _exit(1);
    if (!machines[number]) machines[number] = (Machine *)calloc(1, sizeof *machine);
    machine = machines[number];
    if (!machine) _exit(1);
    return machine;
}

enum { MAX_ALLOWED = 256 };
static struct {
    const void *function;
    int device;
    size_t bytes;
} allowed[MAX_ALLOWED];
static int allowed_count;

void allow_shared(const void *function, size_t bytes) {
    int i = 0, device = device_selected();
    while (i < allowed_count && (allowed[i].function != function || allowed[i].device != device)) i++;
    if (i == MAX_ALLOWED) return;
    if (i == allowed_count) allowed[allowed_count++] = {function, device, 0};
    allowed[i].bytes = bytes;
}

size_t shared_limit(const void *function) {
    for (int i = 0; i < allowed_count; i++)
        if (allowed[i].function == function && allowed[i].device == device_selected()) return allowed[i].bytes;
    return PLAIN_SHARED;
}

void check_launch(const Launch &l, bool stream_fits) {
    size_t threads = (size_t)l.size.x * l.size.y * l.size.z, limit = shared_limit(l.function);
    const char *wrong = NULL;
    if (threads == 0 || threads > MAX_THREADS) wrong = "a block has 1 to 1024 threads";
    if (l.size.z > 64) wrong = "a block is at most 64 threads deep";
    if ((size_t)l.grid.x * l.grid.y * l.grid.z == 0) wrong = "a grid has at least one block";
    if (l.grid.x > 0x7fffffffu || l.grid.y > 65535 || l.grid.z > 65535) wrong = "the grid is too large";
    if (l.cluster < 1 || l.cluster > MAX_CLUSTER || l.grid.x % l.cluster)
        wrong = "a cluster has 1 to 8 blocks, and the grid whole clusters";
    if (l.cluster > 1 && device_capability() < 90) wrong = "clusters need compute capability 9.0";
    if (l.shared > limit) wrong = "more dynamic shared memory than the kernel is allowed";
    if (!stream_fits) wrong = "the stream belongs to another device";
    if (!wrong) return;
    fprintf(stderr,
            "emulation: kernel %s cannot start with grid (%u, %u, %u), block (%u, %u, %u), %zu shared bytes: %s\n",
            l.name, l.grid.x, l.grid.y, l.grid.z, l.size.x, l.size.y, l.size.z, l.shared, wrong);
    _exit(1);
}

static uint64_t common_divisor(uint64_t a, uint64_t b) { return b ? common_divisor(b, a % b) : a; }

/* The seed decides the order of the blocks too. Static shared memory is a static variable. Under AddressSanitizer,
 * which must put guards around it, all threads of the process have the same one; elsewhere each thread has its own,
 * and only there may blocks run in parallel. */
void launch(const Launch &l) {
    launches++;
    uint64_t clusters = (uint64_t)l.grid.x * l.grid.y * l.grid.z / l.cluster, random = seed + launches;
    uint64_t first = random_splitmix(&random) % clusters, step = random_splitmix(&random) % clusters;
    while (common_divisor(step, clusters) != 1) step = (step + 1) % clusters;
#if defined(_OPENMP) && !defined(WITH_ASAN)
#pragma omp parallel for schedule(dynamic) if (clusters > 1)
#endif
    for (uint64_t i = 0; i < clusters; i++) run_cluster(machine_here(), l, (first + i * step) % clusters);
}

void set_seed(uint64_t value) {
    streams_seed(value);
    seed = value;
    launches = 0;
}

extern "C" void emulation_set_seed(uint64_t value) { set_seed(value); }

/* ---- device memory ---- */

static size_t in_use;

static struct Settings {
    size_t total;
    int capability, shared;
    Settings() {
        const char *start = getenv("EMULATION_SEED"), *memory = getenv("EMULATION_MEMORY");
        const char *version = getenv("EMULATION_CAPABILITY"), *near = getenv("EMULATION_SHARED");
        if (start) seed = strtoull(start, NULL, 10);
#ifndef WITH_ASAN
        static_shared_find();
#endif
        total = memory ? strtoull(memory, NULL, 10) : (size_t)1 << 40;
        capability = version ? atoi(version) : 80;
        shared = near && atoi(near) < MAX_SHARED ? atoi(near) : MAX_SHARED;
    }
} settings;

size_t device_memory_in_use() { return in_use; }
size_t device_memory_total() { return settings.total; }
int device_capability() { return settings.capability; }
int device_shared() { return settings.shared; }

void *device_memory(size_t bytes) {
    void *p = NULL;
    size_t size = bytes ? bytes : 1;
    if (size > settings.total || in_use > settings.total - size || posix_memalign(&p, 256, size)) return NULL;
    memset(p, 0xff, size);
    in_use += malloc_usable_size(p);
    return p;
}

void device_memory_free(void *p) {
    if (p) in_use -= malloc_usable_size(p);
    free(p);
}

}  // namespace emulation
