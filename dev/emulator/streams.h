/* Streams and events of the emulated GPU. What a program asks of a stream is queued, with its arguments as they are
 * at the call, and done later: the order between streams, and how far they are behind the program, is drawn from the
 * seed and bound by nothing but what binds a GPU: the order within a stream, events, and what the host waits for. So
 * an event that is missing, pinned memory that is filled again before it has been read, and memory that is given back
 * too early show in a test's results. CUDA_LAUNCH_BLOCKING=1 does everything at once, for a debugger. */
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
bool device_select(int number);  // false: there is none of this number
int device_count();
int driver_version(int newest);  // EMULATION_DRIVER, for example 11040 for CUDA 11.4
bool device_lost();              // EMULATION_LOST=N: after N pieces of work

Stream *stream_create();  // on the selected device
void stream_destroy(Stream *s);
Event *event_create();  // on the selected device
void event_destroy(Event *e);

/* Does `work` in the stream's turn; NULL: the selected device's own stream. A stream that captures puts it into its
 * graph instead. */
void stream_do(Stream *s, std::function<void()> work);

/* Tries `attempt` in the stream's turn, again and again until it says true: what another process has a part in. */
void stream_attempt(Stream *s, std::function<bool()> attempt);
bool stream_here(const Stream *s);  // it belongs to the selected device

void stream_wait_for(Stream *s, Event *e);  // for what the event has last been recorded after
bool event_record(Event *e, Stream *s);     // false: they belong to different devices
void event_wait(Event *e);                  // the host
bool event_done(Event *e);
void stream_wait(Stream *s);  // the host
void device_wait();           // the host, for everything on every device

/* Capture. What a graph's copies and kernels point to is read when it runs. While a stream captures it can neither be
 * waited for nor take part in events, and the host's pageable memory cannot be copied. */
bool capture_begin(Stream *s);  // false: it does already
Graph *capture_end(Stream *s);  // NULL: it does not
bool captures(const Stream *s);
bool any_captures();
void graph_launch(Graph *g, Stream *s);
Graph *graph_copy(const Graph *g);
void graph_destroy(Graph *g);

/* Copies `bytes` in the stream's turn. Pageable host memory is read when this is called, and has been written when it
 * returns; pinned memory, and a device's, is read and written in the stream's turn. false: not while it captures. */
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
