/* Streams, events and graphs of the emulated GPU. What a program asks of a stream is queued, with its arguments as
 * they are at the call, and done later. The seed decides the order between streams and how far they are behind the
 * program, within the rules that a GPU has too: the order within a stream, events, and what the host waits for. So a
 * missing event, pinned memory that is overwritten before it has been read, and memory that is released too early
 * give wrong results in a test. CUDA_LAUNCH_BLOCKING=1 does everything at once, for a debugger. */
#ifndef EMULATION_STREAMS_H
#define EMULATION_STREAMS_H

#include "machine.h"

#include <functional>
#include <tuple>

namespace emulation {

struct Stream;
struct Event;
struct Graph;

enum { MAX_DEVICES = 16 };

/* The calling thread's device (cudaSetDevice). */
int device_selected();
bool device_select(int number);  // false: there is no such device
int device_count();
int driver_version(int newest);  // EMULATION_DRIVER, for example 11040 for CUDA 11.4
bool device_lost();              // EMULATION_LOST=N: true after N pieces of work

Stream *stream_create();  // on the selected device
void stream_destroy(Stream *s);
Event *event_create();  // on the selected device
void event_destroy(Event *e);

/* Queues `work` on the stream (NULL: the selected device's default stream). A stream that captures adds it to its
 * graph instead. */
void stream_do(Stream *s, std::function<void()> work);

/* Queues `attempt`, which is tried again and again until it returns true. It is for work that needs another
 * process. */
void stream_attempt(Stream *s, std::function<bool()> attempt);
bool stream_here(const Stream *s);  // it belongs to the selected device

void stream_wait_for(Stream *s, Event *e);  // for what was queued before the event's last record
bool event_record(Event *e, Stream *s);     // false: they belong to different devices
void event_wait(Event *e);                  // the host
bool event_done(Event *e);
void stream_wait(Stream *s);  // the host
void device_wait();           // the host, for everything on every device

/* Capture. A graph's copies and kernels read memory when the graph runs. While a stream captures, nobody can wait for
 * it, it cannot record events or wait for them, and the host's pageable memory cannot be copied. */
bool capture_begin(Stream *s);  // false: it does already
Graph *capture_end(Stream *s);  // NULL: it does not
bool captures(const Stream *s);
bool any_captures();
void graph_launch(Graph *g, Stream *s);
Graph *graph_copy(const Graph *g);
void graph_destroy(Graph *g);

/* Queues a copy. Pageable host memory is read during this call, or has been written when it returns; pinned memory
 * and device memory are read and written when the copy runs. false: this copy cannot be captured. */
bool stream_copy(Stream *s, void *dst, const void *src, size_t bytes, bool from_host, bool to_host);

void *pinned_memory(size_t bytes);
void pinned_memory_free(void *p);
void pinned_register(void *p, size_t bytes);
void pinned_unregister(void *p);

/* kernel<<<grid, size, shared, stream>>>(arguments): launcher(...)(arguments). The arguments are converted to the
 * kernel's parameters, and copied, at the call. */
template <typename... Parameters> struct Launcher {
    const char *name;
    void (*kernel)(Parameters...);
    unsigned cluster;
    dim3 grid, size;
    size_t shared;
    Stream *stream;
    bool early;

    void operator()(Parameters... parameters) const {
        Launch l = {name, grid, size, shared, (const void *)kernel, NULL, NULL, cluster, early};
        check_launch(l, stream_here(stream));
        stream_do(stream, [kernel = kernel, values = std::tuple<Parameters...>(parameters...), l]() {
            struct Call {
                void (*kernel)(Parameters...);
                const std::tuple<Parameters...> &values;
            } call = {kernel, values};
            Launch now = l;
            now.context = (void *)&call;
            now.run = [](void *context) {
                const Call *c = (const Call *)context;
                std::apply(c->kernel, c->values);
            };
            launch(now);
        });
    }
};

template <typename... Parameters>
static inline Launcher<Parameters...> launcher(const char *name, void (*kernel)(Parameters...), unsigned cluster,
                                               dim3 grid, dim3 size, size_t shared, Stream *stream,
                                               bool early = false) {
    return {name, kernel, cluster, grid, size, shared, stream, early};
}

}  // namespace emulation

#endif
