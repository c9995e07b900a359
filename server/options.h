/* The command line of serve. */
#ifndef SERVER_OPTIONS_H
#define SERVER_OPTIONS_H

#include "../generate/default_model.h"
#include "../lib/options.h"
#include "server.h"

#include <sys/resource.h>

static struct {
    const char *address, *web, *device, *weights, *api_key, *cors;
    StringList models;
    int64_t port, batch, threads, queue, jobs, max_body, max_pixels, connections;
    double timeout, header_timeout;
    bool quiet;
} opt = {.address = "127.0.0.1",
         .device = "auto",
         .port = 8080,
         .queue = 256,
         .max_body = 16,
         .max_pixels = 25,
         .connections = 2000,
         .timeout = 120,
         .header_timeout = 30};

static const Option table[] = {
    {"model", 'm', OPT_LIST, &opt.models, "NAME=FILE",
     "a model and its name for requests; without NAME= it is the file's (default: as for infer)", 0, 0},
    {"address", 'a', OPT_STRING, &opt.address, "ADDRESS",
     "IP address to listen on; 0.0.0.0 or :: lets other machines in", 0, 0},
    {"port", 'p', OPT_INT, &opt.port, "N", "port to listen on; 0: a free one", 0, 65535},
    {"web", 0, OPT_STRING, &opt.web, "DIR", "folder of the web page (default: the one that ships)", 0, 0},
    {"api-key", 0, OPT_STRING, &opt.api_key, "KEY",
     "ask for the header Authorization: Bearer KEY; better put it into the variable TIKZ_API_KEY, which other users "
     "of the "
     "machine do not see",
     0, 0},
    {"cors", 0, OPT_STRING, &opt.cors, "ORIGIN",
     "let pages of this origin, or of any (*), use the server from a browser", 0, 0},
    {"batch", 'b', OPT_INT, &opt.batch, "N", "programs that are written together; 0: 16, on a GPU 64", 0, 1024},
    {"queue", 0, OPT_INT, &opt.queue, "N",
     "requests that may wait or be worked on; more are answered with status 429", 1, 1e6},
    {"timeout", 0, OPT_FLOAT, &opt.timeout, "SECONDS", "time that a request may take, with status 504 afterwards",
     0.1, 86400},
    {"header-timeout", 0, OPT_FLOAT, &opt.header_timeout, "SECONDS",
     "time that a connection may be silent, and that the headers of a request may take", 1, 3600},
    {"jobs", 0, OPT_INT, &opt.jobs, "N",
     "programs that TeX compiles at a time; 0: one for every second processor, 2 to 8", 0, DRAWERS_MOST},
    {"max-body", 0, OPT_INT, &opt.max_body, "MB", "largest body of a request", 1, 1024},
    {"max-pixels", 0, OPT_INT, &opt.max_pixels, "N", "largest image, in millions of pixels", 1, 100},
    {"connections", 0, OPT_INT, &opt.connections, "N", "connections at a time; more are closed", 1, 100000},
    {"weights", 'w', OPT_STRING, &opt.weights, "q8|q4",
     "use weights of 8 or 4 bits, rounded while the model is loaded", 0, 0},
    {"device", 0, OPT_STRING, &opt.device, "NAME", "cpu, cuda (the first GPU), cuda:N, or auto: a GPU if one answers",
     0, 0},
    {"threads", 0, OPT_INT, &opt.threads, "N", "processor threads of the model; 0: all", 0, 4096},
    {"quiet", 'q', OPT_FLAG, &opt.quiet, NULL, "no line on stderr for each request", 0, 0},
};
enum { OPTIONS = sizeof table / sizeof table[0] };

// The shipped models are not called after their files.
static const char *const shipped_names[] = {[RENDER_TIKZ] = "starter", [RENDER_FORMULA] = "reader"};

/* Without --model: infer's default model of figures, and that of formulas, as far as they are there. */
static void default_models(StringList *models) {
    for (int task = RENDER_TIKZ; task <= RENDER_FORMULA; task++) {
        const char *path = default_model((RenderTask)task), *shipped = shipped_file(shipped_models[task]);
        if (path)
            string_list_add(models, strcmp(path, shipped) ? path : options_keep(format_string("%s=%s", shipped_names[task], path)));
    }
    if (!models->count)
        die("there is no model here: neither out/best.safetensors nor out/student.safetensors nor %s; name one with --model",
            shipped_models[RENDER_TIKZ]);
}

/* Lets the program have as many descriptors as its connections need, where the system allows it: each its socket, and the file
 * that it is sent. */
static void raise_descriptors(rlim_t wanted) {
    struct rlimit now;
    if (getrlimit(RLIMIT_NOFILE, &now) || now.rlim_cur >= wanted) return;
    now.rlim_cur = now.rlim_max < wanted ? now.rlim_max : wanted;
    setrlimit(RLIMIT_NOFILE, &now);
}

/* The folder of the web page: --web, or the one that ships; NULL: none. */
static const char *find_web(void) {
    struct stat s;
    const char *web = opt.web ? opt.web : shipped_file("web");
    const bool there = stat(web, &s) == 0 && S_ISDIR(s.st_mode);
    if (opt.web && !there) options_die("--web: there is no folder %s", opt.web);
    return there ? web : NULL;
}

/* Parses the options into opt, and what is left, files of models, into `files`. Ends the program where they are wrong. */
static void serve_options_parse(int argc, char **argv, StringList *files, ServeLimits *o, WeightFormat *format) {
    options_parse(
        table, OPTIONS, argc, argv,
        "[options] [MODEL...]\n\nAnswers HTTP requests that turn images into programs, and shows a web page for it. "
        "/docs describes the requests.",
        files);
    if (weight_format(opt.weights, format)) options_die("--weights must be q8 or q4, not '%.40s'", opt.weights);
    const char *key = opt.api_key ? opt.api_key : getenv("TIKZ_API_KEY");
    if (opt.api_key && !*opt.api_key) options_die("--api-key must not be empty");
    int drawers = opt.jobs ? (int)opt.jobs : omp_get_num_procs() / 2;
    if (!opt.jobs && drawers < 2) drawers = 2;
    if (!opt.jobs && drawers > 8) drawers = 8;
    raise_descriptors(2 * (rlim_t)opt.connections + 256);
    *o = (ServeLimits){.address = opt.address,
                       .web = find_web(),
                       .api_key = key && *key ? key : NULL,
                       .cors = opt.cors,
                       .port = (int)opt.port,
                       .queue = (int)opt.queue,
                       .drawers = drawers,
                       .connections = (int)opt.connections,
                       .timeout = opt.timeout,
                       .header_timeout = opt.header_timeout,
                       .max_body = (size_t)opt.max_body << 20,
                       .max_pixels = (size_t)opt.max_pixels * 1000000,
                       .quiet = opt.quiet};
}

/* ---- signals ---- */

static const int signal_numbers[] = {SIGINT, SIGTERM, SIGHUP};

/* Blocks the signals that the main thread waits for, before any other thread exists. */
static void signals_block(sigset_t *set) {
    sigemptyset(set);
    for (int i = 0; i < 3; i++) sigaddset(set, signal_numbers[i]);
    signal(SIGPIPE, SIG_IGN);
    pthread_sigmask(SIG_BLOCK, set, NULL);
}

/* From now on SIGINT and SIGTERM end the program. */
static void signals_default(void) {
    sigset_t set;
    sigemptyset(&set);
    for (int i = 0; i < 2; i++) sigaddset(&set, signal_numbers[i]);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

#endif
