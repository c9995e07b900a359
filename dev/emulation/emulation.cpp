/* The scheduler of the emulated GPU (machine.h): fibers, barriers, the meetings of a warp's lanes. */
#include "machine.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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

enum { STACK = 256 * 1024, PAGE = 4096 };

/* ---- fibers ----
 * A fiber runs threads of a block one after another; only a thread that waits keeps its fiber. ucontext's switch
 * saves the signal mask with a system call each time, so x86-64 has its own of a few instructions (but with
 * -DEMULATION_UCONTEXT). */

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
    Thread thread[MAX_THREADS];
    int count, returned;
    int ready[MAX_THREADS], ready_count;  // numbers of the threads that can go on, in no order
    uint64_t random;
    bool unfair;                               // how this block's threads are chosen
    unsigned char favour[MAX_THREADS / WARP];  // then: the warps' order, until the next barrier
    Fiber main, *idle, *running;
    Block block;
};

static __thread Machine *machine;
static uint64_t seed, launches;

#ifndef EMULATION_UCONTEXT
/* Pushes what a function must preserve, leaves the stack pointer in *save, and goes on where `load` was left. */
extern "C" void emulation_switch(void **save, void *load);
__asm__(".text\n.globl emulation_switch\n.type emulation_switch, @function\nemulation_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
        ".size emulation_switch, .-emulation_switch\n");
#endif

/* First thing on a fiber that was switched to. */
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

/* ---- what waits, in words ---- */

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

/* Nothing can go on: says for the first waiting thread whom it waits for. */
[[noreturn]] static void fail_stuck() {
    char who[64], text[256];
    for (int i = 0; i < machine->count; i++) {
        const Thread *t = &machine->thread[i];
        if (t->state == Thread::RETURNED) continue;
        int warp = i / WARP * WARP;
        for (int j = 0; j < machine->count; j++) {
            const Thread *other = &machine->thread[j];
            bool awaited = t->state == Thread::AT_BARRIER || (j / WARP * WARP == warp && t->mask >> (j % WARP) & 1);
            bool there = other->state == t->state && same_place(other->place, t->place) &&
                         (t->state == Thread::AT_BARRIER || other->mask == t->mask);
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

static uint64_t next_random(uint64_t *state) {  // splitmix64
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void make_ready(Thread *t) {
    t->state = Thread::READY;
    machine->ready[machine->ready_count++] = (int)t->number;
}

/* All threads that are left stand at the same __syncthreads. */
static bool barrier_complete() {
    if (machine->returned > 0) return false;  // a thread that has returned never arrives
    for (int i = 0; i < machine->count; i++) {
        const Thread *t = &machine->thread[i];
        if (t->state != Thread::AT_BARRIER || !same_place(t->place, machine->thread[0].place)) return false;
    }
    return true;
}

/* A new order of the warps. */
static void shuffle_warps() {
    for (int i = 0; i < MAX_THREADS / WARP; i++) {
        int j = (int)(next_random(&machine->random) % (uint64_t)(i + 1));
        machine->favour[i] = machine->favour[j];
        machine->favour[j] = (unsigned char)i;
    }
}

/* The thread to go on with; NULL when all have returned. In half of the blocks any thread that can; in the others one
 * of the warp that comes first, which so runs as far ahead of the others as it can: that is what finds a barrier
 * missing between the end of one use of shared memory and the beginning of the next. */
static Thread *choose() {
    Machine *m = machine;
    if (m->ready_count == 0) {
        if (m->returned == m->count) return NULL;
        if (!barrier_complete()) fail_stuck();
        for (int i = 0; i < m->count; i++) make_ready(&m->thread[i]);
        if (m->unfair) shuffle_warps();
    }
    int at = (int)(next_random(&m->random) % (uint64_t)m->ready_count);
    for (int i = 0; m->unfair && i < m->ready_count; i++)
        if (m->favour[m->ready[i] / WARP] < m->favour[m->ready[at] / WARP]) at = i;
    int number = m->ready[at];
    m->ready[at] = m->ready[--m->ready_count];
    return &m->thread[number];
}

/* The current thread waits; returns when it has been chosen again. */
static void wait() {
    Thread *me = current, *next = choose();
    current = next;
    if (next == me) return;
    me->fiber = machine->running;
    Fiber *to = next->fiber ? next->fiber : fiber_take();
    switch_to(to);
}

/* Runs threads that have not begun, one after another; returns the fiber to go on with when one that waited is chosen
 * or none is left. */
__attribute__((noinline)) static Fiber *run_threads(Fiber *self) {
    for (;;) {
        machine->launch->run(machine->launch->context);
        current->state = Thread::RETURNED;
        machine->returned++;
        Thread *next = choose();
        current = next;
        if (next && !next->fiber) continue;
        self->next = machine->idle;
        machine->idle = self;
        return next ? next->fiber : &machine->main;
    }
}

/* An idle fiber may wake up on another thread of the processor, so nothing thread-local is touched here, where a
 * compiler could have kept its address. */
static void fiber_main() {
    Fiber *self = fiber_here();
    arrived();
    for (;;) switch_to(run_threads(self));
}

void barrier(Place place) {
    current->place = place;
    current->state = Thread::AT_BARRIER;
    wait();
}

unsigned live_lanes() {
    unsigned lanes = 0, warp = current->number / WARP * WARP;
    for (unsigned i = 0; i < WARP && warp + i < (unsigned)machine->count; i++)
        if (machine->thread[warp + i].state != Thread::RETURNED) lanes |= 1u << i;
    return lanes;
}

static bool in_meeting(const Thread *t, const Thread *with) {
    return t->state == Thread::IN_WARP && t->mask == with->mask && t->together == with->together &&
           same_place(t->place, with->place);
}

/* The last lane to arrive does the work for all. */
void meet(unsigned mask, void *brought, Together together, Place place) {
    Thread *me = current, *warp = me - me->number % WARP;
    unsigned lanes = (unsigned)machine->count - (unsigned)(warp - machine->thread);
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

/* ---- launches ---- */

static void run_block(Machine *m, const Launch &l, uint64_t number) {
    uint64_t start = seed ^ (launches * 0x632be59bd9b4e019u) ^ (number * 0x9e6c63d0876a9a47u);
    m->launch = &l;
    m->random = start;
    m->unfair = next_random(&m->random) % 2;
    shuffle_warps();
    m->count = (int)(l.size.x * l.size.y * l.size.z);
    m->returned = m->ready_count = 0;
    m->running = &m->main;
    m->block.index = {(unsigned)(number % l.grid.x), (unsigned)(number / l.grid.x % l.grid.y),
                      (unsigned)(number / l.grid.x / l.grid.y)};
    m->block.size = l.size;
    m->block.grid = l.grid;
    void *shared = NULL;
    if (posix_memalign(&shared, 128, l.shared ? l.shared : 1)) _exit(1);
    memset(shared, 0xff, l.shared);
    m->block.shared = (char *)shared;
    block = &m->block;
    for (int i = 0; i < m->count; i++) {
        Thread *t = &m->thread[i];
        t->number = (unsigned)i;
        t->index = {(unsigned)i % l.size.x, (unsigned)i / l.size.x % l.size.y, (unsigned)i / l.size.x / l.size.y};
        t->fiber = NULL;
        t->copies = 0;
        t->group = 0;
        make_ready(t);
    }
    current = choose();
    switch_to(fiber_take());
    current = NULL;
    block = NULL;
    free(shared);
}

/* OpenMP ends and begins threads as their number changes; what belongs to one goes to the next with its number. */
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
    size_t bytes;
} allowed[MAX_ALLOWED];
static int allowed_count;

void allow_shared(const void *function, size_t bytes) {
    int i = 0;
    while (i < allowed_count && allowed[i].function != function) i++;
    if (i == MAX_ALLOWED) return;
    if (i == allowed_count) allowed[allowed_count++].function = function;
    allowed[i].bytes = bytes;
}

static size_t shared_limit(const void *function) {
    for (int i = 0; i < allowed_count; i++)
        if (allowed[i].function == function) return allowed[i].bytes;
    return PLAIN_SHARED;
}

static void check_launch(const Launch &l) {
    size_t threads = (size_t)l.size.x * l.size.y * l.size.z, limit = shared_limit(l.function);
    const char *wrong = NULL;
    if (threads == 0 || threads > MAX_THREADS) wrong = "a block has 1 to 1024 threads";
    if (l.size.z > 64) wrong = "a block is at most 64 threads deep";
    if ((size_t)l.grid.x * l.grid.y * l.grid.z == 0) wrong = "a grid has at least one block";
    if (l.grid.x > 0x7fffffffu || l.grid.y > 65535 || l.grid.z > 65535) wrong = "the grid is too large";
    if (l.shared > limit) wrong = "more dynamic shared memory than the kernel is allowed";
    if (!wrong) return;
    fprintf(stderr,
            "emulation: kernel %s cannot start with grid (%u, %u, %u), block (%u, %u, %u), %zu shared bytes: %s\n",
            l.name, l.grid.x, l.grid.y, l.grid.z, l.size.x, l.size.y, l.size.z, l.shared, wrong);
    _exit(1);
}

static uint64_t common_divisor(uint64_t a, uint64_t b) { return b ? common_divisor(b, a % b) : a; }

/* Blocks in an order of the seed's too. Static shared memory is a static variable: one for all threads of the process
 * where AddressSanitizer is to put guards around it, one for each thread elsewhere, and only there may blocks run
 * side by side. */
void launch(const Launch &l) {
    check_launch(l);
    launches++;
    uint64_t blocks = (uint64_t)l.grid.x * l.grid.y * l.grid.z, random = seed + launches;
    uint64_t first = next_random(&random) % blocks, step = next_random(&random) % blocks;
    while (common_divisor(step, blocks) != 1) step = (step + 1) % blocks;
#if defined(_OPENMP) && !defined(WITH_ASAN)
#pragma omp parallel for schedule(dynamic) if (blocks > 1)
#endif
    for (uint64_t i = 0; i < blocks; i++) run_block(machine_here(), l, (first + i * step) % blocks);
}

void set_seed(uint64_t value) {
    seed = value;
    launches = 0;
}

extern "C" void emulation_set_seed(uint64_t value) { set_seed(value); }

/* ---- device memory ---- */

static size_t in_use;

static struct Settings {
    size_t total;
    Settings() {
        const char *start = getenv("EMULATION_SEED"), *memory = getenv("EMULATION_MEMORY");
        if (start) set_seed(strtoull(start, NULL, 10));
        total = memory ? strtoull(memory, NULL, 10) : (size_t)1 << 40;
    }
} settings;

size_t device_memory_in_use() { return in_use; }
size_t device_memory_total() { return settings.total; }

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
