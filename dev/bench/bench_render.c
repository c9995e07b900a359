/* How fast TeX and Poppler render: bench_render THREADS FILE.tex...
 *
 * Compiles all files, then draws them with 420 pixels, with THREADS at a time: in full, and beginning with a preloaded
 * format, which a cache folder of this run keeps. Prints figures per second. */
#include "../../lib/error.h"

#include "../../lib/program.h"
#include "../../lib/render.h"
#include "../../lib/threads.h"

typedef struct {
    Renderer *renderer;
    MappedFile *files;
    int count, next, failed;
    bool draw;
} Work;

static void *work(void *argument) {
    Work *w = (Work *)argument;
    for (int i; (i = __atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED)) < w->count;) {
        Error err;
        Compiled c;
        Image image = {0};
        const MappedFile *f = &w->files[i];
        die_if(render_compile(w->renderer, RENDER_TIKZ, (const char *)f->data, f->size, &c, &err), &err);
        if (!c.pdf || (w->draw && render_image(w->renderer, &c, 420, 0, &image, &err) != 0))
            __atomic_add_fetch(&w->failed, 1, __ATOMIC_RELAXED);
        image_free(&image);
        compiled_free(&c);
    }
    return NULL;
}

static void measure(const char *what, Work w, int threads) {
    pthread_t *running = (pthread_t *)xcalloc((size_t)threads, sizeof *running);
    const double begin = seconds_now();
    for (int i = 0; i < threads; i++) thread_start(&running[i], work, &w);
    for (int i = 0; i < threads; i++) pthread_join(running[i], NULL);
    printf("%-40s %5.1f figures/s (%d figures, %d at a time, %d not drawn)\n", what,
           w.count / (seconds_now() - begin), w.count, threads, w.failed);
    free(running);
}

int main(int argc, char **argv) {
    Error err;
    program_begin(argv);
    const int threads = argc > 2 ? atoi(argv[1]) : 0;
    if (threads < 1 || threads > 64) {
        report_error("expected THREADS, 1 to 64, and files: bench_render 2 figures/*.tex");
        return 2;
    }
    char *cache = sandbox_folder_make(NULL, &err);
    if (!cache) die("%s", err.text);
    Work w = {.count = argc - 2, .files = (MappedFile *)xcalloc((size_t)argc, sizeof(MappedFile))};
    for (int i = 0; i < w.count; i++) die_if(file_map(&w.files[i], argv[2 + i], &err), &err);
    for (int preloaded = 0; preloaded < 2; preloaded++) {
        Renderer r;
        die_if(renderer_open(&r, &(RenderOptions){.cache = cache, .format_after = preloaded ? 1 : -1}, &err), &err);
        w.renderer = &r;
        if (preloaded) {  // all formats are made before the clock starts
            const double begin = seconds_now();
            Work first = w;
            first.draw = false;
            work(&first);
            printf("all figures once, one at a time, with making the formats: %.2f s\n", seconds_now() - begin);
        }
        for (int draw = 0; draw < 2; draw++) {
            w.draw = draw;
            measure(preloaded ? draw ? "preloaded format, compiled and drawn" : "preloaded format, compiled"
                    : draw    ? "in full, compiled and drawn"
                              : "in full, compiled",
                    w, threads);
        }
        renderer_close(&r);
    }
    for (int i = 0; i < w.count; i++) file_unmap(&w.files[i]);
    free(w.files);
    sandbox_folder_remove(cache);
    return 0;
}
