/* The queues of the emulated GPU's streams (streams.h). */
#include "streams.h"

#include "../../lib/random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace emulation {

/* Becomes true when the stream reaches the record of an event. */
typedef std::shared_ptr<bool> Flag;

struct Task {
    std::function<void()> work;
    Flag after;                     // the task waits until this is true; NULL: it does not wait
    std::function<bool()> attempt;  // instead of work: tried until it returns true
};

struct Graph {
    std::vector<std::function<void()>> work;
};

struct Stream {
    int device;
    std::deque<Task> tasks;
    bool working;  // its first task is running
    Graph *graph;  // the graph that it captures, or NULL
};

struct Event {
    int device;
    Flag last;  // of the last record; NULL before the first
};

/* One lock for everything, because the threads of a program share the GPUs. Kernels run under it. */
static std::recursive_mutex lock;
typedef std::lock_guard<std::recursive_mutex> Locked;

static std::vector<Stream *> streams;
static Stream *own[MAX_DEVICES];
static std::map<const char *, size_t> pinned;
static thread_local int selected;

static uint64_t first_seed() {
    const char *text = getenv("EMULATION_SEED");
    return text ? strtoull(text, NULL, 10) : 1;
}

static uint64_t random_state = first_seed();
static unsigned pace,
    pace_left;  // pace 0: only what the host waits for is done, 1: everything at once, 2: a task at each call
static size_t queued, finished;  // pieces of work

static unsigned draw(unsigned below) { return (unsigned)(random_splitmix(&random_state) % below); }

/* ---- devices ---- */

int device_selected() { return selected; }

int device_count() {
    const char *text = getenv("EMULATION_DEVICES");
    int count = text ? atoi(text) : 1;
    return count < MAX_DEVICES ? count : (int)MAX_DEVICES;
}

bool device_select(int number) {
    if (number < 0 || number >= device_count()) return false;
    selected = number;
    return true;
}

int driver_version(int newest) {
    const char *text = getenv("EMULATION_DRIVER");
    return text ? atoi(text) : newest;
}

bool device_lost() {
    static const char *text = getenv("EMULATION_LOST");
    Locked locked(lock);
    return text && finished >= strtoull(text, NULL, 10);
}

/* ---- queues ---- */

static Stream *stream_new() {
    Stream *s = new Stream{selected, {}, false, NULL};
    streams.push_back(s);
    return s;
}

static Stream *stream_of(Stream *s) {
    if (s) return s;
    if (!own[selected]) own[selected] = stream_new();
    return own[selected];
}

static bool is_ready(const Stream *s) {
    return !s->tasks.empty() && !s->working && (!s->tasks.front().after || *s->tasks.front().after);
}

/* Runs the stream's first task; false when it waits for another process. */
static bool run_first(Stream *s) {
    s->working = true;
    std::function<void()> work = std::move(s->tasks.front().work);
    std::function<bool()> attempt = s->tasks.front().attempt;
    bool done = !attempt || attempt();
    if (work) work();
    if (done) s->tasks.pop_front(), queued--, finished++;
    s->working = false;
    return done;
}

/* Runs the first task of some stream; false when none can run. */
static bool run_any() {
    size_t n = streams.size(), first = n ? draw((unsigned)n) : 0;
    for (size_t i = 0; i < n; i++) {
        Stream *s = streams[(first + i) % n];
        if (is_ready(s) && run_first(s)) return true;
    }
    return false;
}

static void run_all() {
    while (run_any()) {
    }
}

/* The host waits, and no stream can run: sleeps if another process can help, else ends the program. */
static void wait_outside() {
    for (const Stream *s : streams)
        if (is_ready(s)) {
            usleep(50);
            return;
        }
    fprintf(stderr, "emulation: what the host waits for can never happen\n");
    _exit(1);
}

/* Runs a stream's tasks. In half of the cases the other streams do only what this one waits for. */
static void run_until_empty(Stream *s) {
    bool alone = draw(2);
    while (!s->tasks.empty()) {
        if (alone && is_ready(s) && run_first(s)) continue;
        if (!run_any()) wait_outside();
    }
}

static bool blocking() {
    static const char *text = getenv("CUDA_LAUNCH_BLOCKING");
    return text && atoi(text);
}

/* Called at every call of the runtime: the GPU gets some work done, or all of it, or none. */
static void progress() {
    if (pace_left-- == 0) pace = draw(4) % 3, pace_left = draw(40);
    if (blocking() || pace == 1 || queued > 5000)
        run_all();
    else if (pace == 2)
        run_any();
}

static void add(Stream *s, Task task) {
    s->tasks.push_back(std::move(task));
    queued++;
    progress();
}

void streams_seed(uint64_t seed) {
    Locked locked(lock);
    run_all();
    random_state ^= seed * 0x632be59bd9b4e019u;  // the same seed twice need not give the same order
}

Stream *stream_create() {
    Locked locked(lock);
    return stream_new();
}

void stream_destroy(Stream *s) {
    Locked locked(lock);
    run_until_empty(s);
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == s) streams.erase(streams.begin() + (ptrdiff_t)i--);
    delete s;
}

bool stream_here(const Stream *s) { return !s || s->device == selected; }

void stream_do(Stream *s, std::function<void()> work) {
    Locked locked(lock);
    s = stream_of(s);
    if (s->graph)
        s->graph->work.push_back(std::move(work));
    else
        add(s, {std::move(work), NULL, NULL});
}

void stream_attempt(Stream *s, std::function<bool()> attempt) {
    Locked locked(lock);
    add(stream_of(s), {NULL, NULL, std::move(attempt)});
}

void stream_wait(Stream *s) {
    Locked locked(lock);
    run_until_empty(stream_of(s));
}

void device_wait() {
    Locked locked(lock);
    while (queued)
        if (!run_any()) wait_outside();
}

/* ---- events ---- */

Event *event_create() { return new Event{selected, NULL}; }
void event_destroy(Event *e) { delete e; }

bool event_record(Event *e, Stream *s) {
    Locked locked(lock);
    s = stream_of(s);
    if (s->device != e->device) return false;
    Flag flag = std::make_shared<bool>(false);
    e->last = flag;
    add(s, {[flag]() { *flag = true; }, NULL, NULL});
    return true;
}

void stream_wait_for(Stream *s, Event *e) {
    Locked locked(lock);
    if (e->last) add(stream_of(s), {NULL, e->last, NULL});
}

bool event_done(Event *e) {
    Locked locked(lock);
    progress();
    return !e->last || *e->last;
}

void event_wait(Event *e) {
    Locked locked(lock);
    Flag flag = e->last;
    while (flag && !*flag)
        if (!run_any()) wait_outside();
}

/* ---- graphs ---- */

bool capture_begin(Stream *s) {
    Locked locked(lock);
    s = stream_of(s);
    if (s->graph) return false;
    s->graph = new Graph;
    return true;
}

Graph *capture_end(Stream *s) {
    Locked locked(lock);
    s = stream_of(s);
    Graph *g = s->graph;
    s->graph = NULL;
    return g;
}

bool captures(const Stream *s) {
    Locked locked(lock);
    if (!s) s = own[selected];
    return s && s->graph;
}

bool any_captures() {
    Locked locked(lock);
    for (const Stream *s : streams)
        if (s->graph) return true;
    return false;
}

void graph_launch(Graph *g, Stream *s) {
    stream_do(s, [work = g->work]() {
        for (const std::function<void()> &w : work) w();
    });
}

Graph *graph_copy(const Graph *g) { return new Graph(*g); }
void graph_destroy(Graph *g) { delete g; }

/* ---- copies ---- */

static bool is_pinned(const void *p) {
    auto next = pinned.upper_bound((const char *)p);
    if (next == pinned.begin()) return false;
    --next;
    return (const char *)p < next->first + next->second;
}

bool stream_copy(Stream *s, void *dst, const void *src, size_t bytes, bool from_host, bool to_host) {
    Locked locked(lock);
    if (bytes == 0) return true;
    if (captures(s) && ((from_host && !is_pinned(src)) || (to_host && !is_pinned(dst)))) return false;
    if (from_host && !is_pinned(src)) {
        const char *p = (const char *)src;
        std::vector<char> held(p, p + bytes);
        stream_do(s, [dst, held = std::move(held)]() { memcpy(dst, held.data(), held.size()); });
    } else {
        stream_do(s, [dst, src, bytes]() { memmove(dst, src, bytes); });
    }
    if (to_host && !is_pinned(dst)) stream_wait(s);
    return true;
}

void pinned_register(void *p, size_t bytes) {
    Locked locked(lock);
    pinned[(const char *)p] = bytes;
}

void pinned_unregister(void *p) {
    Locked locked(lock);
    device_wait();
    pinned.erase((const char *)p);
}

void *pinned_memory(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    if (p) memset(p, 0xff, bytes), pinned_register(p, bytes);
    return p;
}

void pinned_memory_free(void *p) {
    if (!p) return;
    pinned_unregister(p);
    free(p);
}

}  // namespace emulation
