/* serve: the models behind HTTP, with a web page.
 *
 *   load the models; then every request is a job that goes from its connection to a reader, the engine, a drawer, and back
 *   (server/job.h)
 *
 * main opens all and waits for signals: SIGTERM and Ctrl-C finish what runs and stop, SIGHUP loads the models again. */
#include "lib/program.h"
#include "server/options.h"
#include "server/http.h"
#include "server/watch.h"

static void open_models(House *h, const StringList *named, const StringList *files);
static void open_tex(House *h);
static void start_threads(House *h);
static void wait_for_signals(House *h, const sigset_t *signals);
static void stop(House *h, struct MHD_Daemon *http);

int main(int argc, char **argv) {
    static House house;
    House *h = &house;
    StringList files = {NULL, 0};
    sigset_t signals;
    Error err;

    program_begin(argv);
    threads_wait_politely(argv);
    serve_options_parse(argc, argv, &files, &h->o, &h->registry.format);
    signals_block(&signals);
    threads_use((int)opt.threads);
    h->registry.op = ops_open(opt.device, &err);
    if (!h->registry.op) options_die("--device: %s", err.text);
    h->registry.slots = opt.batch ? (int)opt.batch : h->registry.op->host_memory ? 16 : 64;
    int port = h->o.port;
    const int listener = http_listen(h->o.address, &port, &err);
    die_if(listener < 0, &err);
    open_models(h, &opt.models, &files);
    open_tex(h);
    start_threads(h);
    struct MHD_Daemon *http = http_start(h, listener, &err);
    die_if(!http, &err);
    fprintf(stderr, "%s: listening on http://%s%s%s:%d%s\n", program_name_text, strchr(h->o.address, ':') ? "[" : "",
            h->o.address, strchr(h->o.address, ':') ? "]" : "", port,
            h->o.web ? "" : " (no web page: there is no folder web)");
    wait_for_signals(h, &signals);
    stop(h, http);
    free((void *)files.items);
    return 0;
}

/* Opens the models that the command line names, or the default ones. */
static void open_models(House *h, const StringList *named, const StringList *files) {
    StringList defaults = {NULL, 0};
    Error err;
    Registry *r = &h->registry;
    pthread_mutex_init(&r->lock, NULL);
    for (int i = 0; i < files->count; i++) die_if(registry_add(r, files->items[i], &err), &err);
    for (int i = 0; i < named->count; i++) die_if(registry_add(r, named->items[i], &err), &err);
    if (!r->count) default_models(&defaults);
    for (int i = 0; i < defaults.count; i++) die_if(registry_add(r, defaults.items[i], &err), &err);
    for (int i = 0; i < r->count; i++) die_if(registry_load(r, &r->models[i], &err), &err);
}

/* Without TeX, programs are written but not checked. */
static void open_tex(House *h) {
    const RenderOptions o = {.limits = judge_limits, .cancelled = drawing_cancelled};
    h->renders = renderer_open(&h->renderer, &o, &h->no_tex) == 0;
    if (!h->renders) warn("programs are not compiled: %s", h->no_tex.text);
}

static void start_threads(House *h) {
    h->metrics.started = seconds_now();
    pthread_mutex_init(&h->lock, NULL);
    queue_open(&h->readers);
    queue_open(&h->outlet.drawers);
    queue_open(&h->outlet.writers);
    engine_open(&h->engine, &h->registry, &h->outlet, &h->metrics, (int)opt.threads);
    for (int i = 0; i < READERS; i++) thread_start(&h->reader_threads[i], request_thread, h);
    for (int i = 0; i < h->o.drawers; i++) thread_start(&h->drawer_threads[i], draw_thread, h);
    thread_start(&h->writer_thread, write_thread, h);
    h->watching = true;
    thread_start(&h->watch_thread, watch_thread, h);
}

/* Returns when the server is to stop. */
static void wait_for_signals(House *h, const sigset_t *signals) {
    for (int number; sigwait(signals, &number) == 0;) {
        if (number != SIGHUP) return;
        engine_ask_reload(&h->engine);
    }
}

static int jobs_left(House *h) {
    pthread_mutex_lock(&h->lock);
    const int n = h->job_count;
    pthread_mutex_unlock(&h->lock);
    return n;
}

/* Whether an answer is still being sent. */
static bool clients_left(House *h) {
    bool left = false;
    pthread_mutex_lock(&h->lock);
    for (const Visitor *v = h->visitors; v && !left; v = v->older) left = v->asking;
    pthread_mutex_unlock(&h->lock);
    return left;
}

/* Refuses new requests, finishes those that are there, and closes all. A second signal ends the program at once: the default
 * effect is back. */
static void stop(House *h, struct MHD_Daemon *http) {
    pthread_mutex_lock(&h->lock);  // after it, no job can enter
    __atomic_store_n(&h->stopping, true, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&h->lock);
    signals_default();
    const int left = jobs_left(h);
    fprintf(stderr, "%s: stopping; %d request%s to finish\n", program_name_text, left, left == 1 ? " is" : "s are");
    while (jobs_left(h)) usleep(20000);
    queue_close(&h->readers);
    for (int i = 0; i < READERS; i++) pthread_join(h->reader_threads[i], NULL);
    engine_close(&h->engine);
    queue_close(&h->outlet.drawers);
    queue_close(&h->outlet.writers);
    for (int i = 0; i < h->o.drawers; i++) pthread_join(h->drawer_threads[i], NULL);
    pthread_join(h->writer_thread, NULL);
    __atomic_store_n(&h->watching, false, __ATOMIC_RELEASE);
    pthread_join(h->watch_thread, NULL);
    for (double end = seconds_now() + h->o.patience; clients_left(h) && seconds_now() < end;) usleep(20000);
    MHD_stop_daemon(http);
    for (int i = 0; i < h->registry.count; i++) h->registry.models[i].current->references--;
    registry_sweep(&h->registry);
    if (h->renders) renderer_close(&h->renderer);
}
