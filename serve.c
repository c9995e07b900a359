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

static void open_models(Server *server, const StringList *named, const StringList *files);
static void open_tex(Server *server);
static void start_threads(Server *server);
static void wait_for_signals(Server *server, const sigset_t *signals);
static void stop(Server *server, struct MHD_Daemon *http);

int main(int argc, char **argv) {
    Server *server = xcalloc(1, sizeof *server);
    StringList files = {NULL, 0};
    sigset_t signals;
    Error err;

    program_begin(argv);
    threads_wait_politely(argv);
    serve_options_parse(argc, argv, &files, &server->o, &server->registry.format);
    signals_block(&signals);
    threads_use((int)opt.threads);
    server->registry.op = ops_open(opt.device, &err);
    if (!server->registry.op) options_die("--device: %s", err.text);
    server->registry.slots = opt.batch ? (int)opt.batch : server->registry.op->host_memory ? 16 : 64;
    int port = server->o.port;
    const int listener = http_listen(server->o.address, &port, &err);
    die_if(listener < 0, &err);
    open_models(server, &opt.models, &files);
    open_tex(server);
    start_threads(server);
    struct MHD_Daemon *http = http_start(server, listener, &err);
    die_if(!http, &err);
    fprintf(stderr, "%s: listening on http://%s%s%s:%d%s\n", program_name_text,
            strchr(server->o.address, ':') ? "[" : "", server->o.address, strchr(server->o.address, ':') ? "]" : "",
            port, server->o.web ? "" : " (no web page: there is no folder web)");
    wait_for_signals(server, &signals);
    stop(server, http);
    free(server);
    free((void *)files.items);
    return 0;
}

/* Opens the models that the command line names, or the default ones. */
static void open_models(Server *server, const StringList *named, const StringList *files) {
    StringList defaults = {NULL, 0};
    Error err;
    Registry *r = &server->registry;
    pthread_mutex_init(&r->lock, NULL);
    for (int i = 0; i < files->count; i++) die_if(registry_add(r, files->items[i], &err), &err);
    for (int i = 0; i < named->count; i++) die_if(registry_add(r, named->items[i], &err), &err);
    if (!r->count) default_models(&defaults);
    for (int i = 0; i < defaults.count; i++) die_if(registry_add(r, defaults.items[i], &err), &err);
    for (int i = 0; i < r->count; i++) die_if(registry_load(r, &r->models[i], &err), &err);
}

/* Without TeX, programs are written but not checked. */
static void open_tex(Server *server) {
    const RenderOptions o = {.limits = judge_limits, .cancelled = drawing_cancelled};
    server->renders = renderer_open(&server->renderer, &o, &server->no_tex) == 0;
    if (!server->renders) warn("programs are not compiled: %s", server->no_tex.text);
}

static void start_threads(Server *server) {
    server->metrics.started = seconds_now();
    pthread_mutex_init(&server->lock, NULL);
    queue_open(&server->readers);
    queue_open(&server->outlet.drawers);
    queue_open(&server->outlet.writers);
    engine_open(&server->engine, &server->registry, &server->outlet, &server->metrics, (int)opt.threads);
    for (int i = 0; i < READERS; i++) thread_start(&server->reader_threads[i], request_thread, server);
    for (int i = 0; i < server->o.drawers; i++) thread_start(&server->drawer_threads[i], draw_thread, server);
    thread_start(&server->writer_thread, write_thread, server);
    server->watching = true;
    thread_start(&server->watch_thread, watch_thread, server);
}

/* Returns when the server is to stop. */
static void wait_for_signals(Server *server, const sigset_t *signals) {
    for (int number; sigwait(signals, &number) == 0;) {
        if (number != SIGHUP) return;
        engine_ask_reload(&server->engine);
    }
}

static int jobs_left(Server *server) {
    pthread_mutex_lock(&server->lock);
    const int n = server->job_count;
    pthread_mutex_unlock(&server->lock);
    return n;
}

/* Whether an answer is still being sent. */
static bool clients_left(Server *server) {
    bool left = false;
    pthread_mutex_lock(&server->lock);
    for (const Connection *v = server->connections_open; v && !left; v = v->older) left = v->asking;
    pthread_mutex_unlock(&server->lock);
    return left;
}

/* Refuses new requests, finishes those that are there, and closes all. A second signal ends the program at once: the default
 * effect is back. */
static void stop(Server *server, struct MHD_Daemon *http) {
    pthread_mutex_lock(&server->lock);  // after it, no job can enter
    __atomic_store_n(&server->stopping, true, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&server->lock);
    signals_default();
    const int left = jobs_left(server);
    fprintf(stderr, "%s: stopping; %d request%s to finish\n", program_name_text, left, left == 1 ? " is" : "s are");
    while (jobs_left(server)) usleep(20000);
    queue_close(&server->readers);
    for (int i = 0; i < READERS; i++) pthread_join(server->reader_threads[i], NULL);
    engine_close(&server->engine);
    queue_close(&server->outlet.drawers);
    queue_close(&server->outlet.writers);
    for (int i = 0; i < server->o.drawers; i++) pthread_join(server->drawer_threads[i], NULL);
    pthread_join(server->writer_thread, NULL);
    __atomic_store_n(&server->watching, false, __ATOMIC_RELEASE);
    pthread_join(server->watch_thread, NULL);
    for (double end = seconds_now() + server->o.header_timeout; clients_left(server) && seconds_now() < end;)
        usleep(20000);
    MHD_stop_daemon(http);
    for (int i = 0; i < server->registry.count; i++) server->registry.models[i].current->references--;
    registry_sweep(&server->registry);
    if (server->renders) renderer_close(&server->renderer);
}
