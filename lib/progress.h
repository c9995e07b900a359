/* A progress bar on stderr: on a terminal one line that is redrawn, elsewhere a plain line every few seconds.
 *
 *     Progress p;
 *     progress_begin(&p, "train", first_step, steps);
 *     ... progress_update(&p, step, "loss %.3f", loss); ...
 *     progress_end(&p); */
#ifndef LIB_PROGRESS_H
#define LIB_PROGRESS_H

#include "clock.h"
#include "error.h"

#include <sys/ioctl.h>
#include <unistd.h>

typedef struct {
    const char *title;
    int64_t first, total, done;  // first: items done before this run, which do not count for the rate
    int64_t drawn;               // value of `done` when the bar was last drawn
    double start, last, every;   // seconds; every: least time between two plain lines (10; may be changed)
    bool terminal, quiet;        // quiet: print nothing
    char text[256];
} Progress;

/* Begins a bar of `total` items, of which `first` were done before this run. */
static inline void progress_begin(Progress *p, const char *title, int64_t first, int64_t total) {
    const double now = seconds_now();
    const bool terminal = isatty(STDERR_FILENO) && (!getenv("TERM") || strcmp(getenv("TERM"), "dumb") != 0);
    *p = (Progress){.title = title,
                    .first = first,
                    .total = total,
                    .done = first,
                    .drawn = -1,
                    .start = now,
                    .last = now - 1e9,
                    .every = 10,
                    .terminal = terminal};
}

/* Formats a duration: "42 s", "3:07", "1:02:33" or "2 d 03 h". */
static inline const char *progress_duration(double seconds, char *out, size_t size) {
    long long s = seconds < 1e9 ? (long long)(seconds + 0.5) : 1000000000;
    if (s < 60)
        snprintf(out, size, "%lld s", s);
    else if (s < 3600)
        snprintf(out, size, "%lld:%02lld", s / 60, s % 60);
    else if (s < 86400)
        snprintf(out, size, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(out, size, "%lld d %02lld h", s / 86400, s / 3600 % 24);
    return out;
}

static inline void progress_draw(Progress *p, double now) {
    char eta[32] = "", line[512];
    p->drawn = p->done;
    double fraction = p->total > 0 ? (double)p->done / (double)p->total : 0;
    if (fraction > 1) fraction = 1;
    double spent = now - p->start;
    if (p->done >= p->total)
        progress_duration(spent, eta, sizeof eta);
    else if (p->done > p->first)
        progress_duration(spent * (double)(p->total - p->done) / (double)(p->done - p->first), eta, sizeof eta);
    else
        snprintf(eta, sizeof eta, "?");
    const char *when = p->done >= p->total ? "in" : "ETA";
    if (!p->terminal) {
        fprintf(stderr, "%s %lld/%lld (%.0f %%), %s %s%s%s\n", p->title, (long long)p->done, (long long)p->total,
                100 * fraction, when, eta, p->text[0] ? ", " : "", p->text);
        return;
    }
    char bar[25];
    int full = (int)(fraction * 24);
    for (int i = 0; i < 24; i++) bar[i] = i < full ? '#' : '.';
    bar[24] = '\0';
    snprintf(line, sizeof line, "%s [%s] %3.0f %% %lld/%lld %s %s  %s", p->title, bar, 100 * fraction,
             (long long)p->done, (long long)p->total, when, eta, p->text);
    struct winsize window;
    int columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 20 ? window.ws_col : 80;
    fprintf(stderr, "\r%.*s\033[K", columns - 1, line);
    fflush(stderr);
    stderr_line_open = true;
}

/* Sets how many items are done. format (may be NULL) gives a short note beside the bar, such as the loss. Draws at
 * most ten times a second. */
__attribute__((format(printf, 3, 4))) static inline void progress_update(Progress *p, int64_t done,
                                                                         const char *format, ...) {
    p->done = done;
    if (format) {
        va_list args;
        va_start(args, format);
        vsnprintf(p->text, sizeof p->text, format, args);
        va_end(args);
    }
    double now = seconds_now();
    if (p->quiet || now - p->last < (p->terminal ? 0.1 : p->every)) return;
    progress_draw(p, now);
    p->last = now;
}

/* Prints a line on stderr, above the bar. */
__attribute__((format(printf, 1, 2))) static inline void progress_note(const char *format, ...) {
    va_list args;
    flockfile(stderr);
    if (stderr_line_open) fputs("\r\033[K", stderr);
    stderr_line_open = false;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    funlockfile(stderr);
}

/* Draws the final state and ends the line. */
static inline void progress_end(Progress *p) {
    if (p->quiet) return;
    if (p->terminal || p->drawn != p->done) progress_draw(p, seconds_now());
    if (p->terminal) fputc('\n', stderr);
    stderr_line_open = false;
}

#endif
