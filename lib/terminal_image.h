/* Shows images in the terminal: by the graphics protocols of kitty and iTerm2, as sixel graphics, or in coloured half
 * blocks.
 *
 *   const char *why;
 *   TerminalGraphics g = terminal_graphics(stderr, NULL, &why);   // once, before other output
 *   if (g == TERMINAL_NONE) ... why says in one sentence why nothing is shown
 *   else terminal_show(stderr, g, &image, &drawing);              // or NULL for one image alone
 *
 * Which is taken is found out from the environment and, where that does not say, by asking the terminal.
 * TIKZ_GRAPHICS=kitty|iterm2|sixel|blocks|none decides instead. */
#ifndef LIB_TERMINAL_IMAGE_H
#define LIB_TERMINAL_IMAGE_H

#include "base64.h"
#include "clock.h"
#include "png_write.h"
#include "sixel.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

typedef enum { TERMINAL_NONE, TERMINAL_KITTY, TERMINAL_ITERM2, TERMINAL_SIXEL, TERMINAL_BLOCKS } TerminalGraphics;

static const char *const terminal_graphics_names[] = {"none", "kitty", "iterm2", "sixel", "blocks"};

/* ---- which graphics ---- */

static inline bool terminal_variable(const char *name, const char *begin) {
    const char *value = getenv(name);
    return value && *value && !strncmp(value, begin, strlen(begin));
}

/* What the environment says; TERMINAL_NONE: nothing. Inside tmux and screen, only sixel graphics may get through, and
 * the variables are those of another terminal. */
static inline TerminalGraphics terminal_from_environment(void) {
    if (terminal_variable("TMUX", "") || terminal_variable("TERM", "tmux") || terminal_variable("TERM", "screen"))
        return TERMINAL_NONE;
    if (terminal_variable("KITTY_WINDOW_ID", "") || terminal_variable("TERM", "xterm-kitty") ||
        terminal_variable("TERM", "xterm-ghostty") || terminal_variable("TERM_PROGRAM", "ghostty"))
        return TERMINAL_KITTY;
    if (terminal_variable("TERM_PROGRAM", "iTerm.app") || terminal_variable("TERM_PROGRAM", "WezTerm") ||
        terminal_variable("LC_TERMINAL", "iTerm2"))
        return TERMINAL_ITERM2;
    if (terminal_variable("TERM", "mlterm") || terminal_variable("TERM", "foot")) return TERMINAL_SIXEL;
    return TERMINAL_NONE;
}

/* Whether an answer to "primary device attributes", ESC [ ? 62 ; 4 ; ... c, names sixel graphics: the number 4. */
static inline bool terminal_answer_has_sixel(const char *answer) {
    const char *at = strstr(answer, "\033[?");
    for (at = at ? at + 3 : ""; *at && *at != 'c'; at += *at == ';') {
        const size_t digits = strspn(at, "0123456789");
        if (digits == 1 && *at == '4' && (at[1] == ';' || at[1] == 'c')) return true;
        if (digits == 0 && *at != ';') return false;
        at += digits;
    }
    return false;
}

/* Asks the terminal, whose two descriptors are `in` and `out`, whether it has sixel graphics, and waits `timeout` seconds
 * at most. What the user types in that time may be lost. Does not ask from the background, where that would stop the
 * process. */
static inline bool terminal_asks_sixel(int in, int out, double timeout) {
    struct termios before, raw;
    char answer[256];
    size_t n = 0;
    const pid_t group = tcgetpgrp(in);
    if (!isatty(out) || tcgetattr(in, &before) != 0 || (group > 0 && group != getpgrp())) return false;
    raw = before;
    raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    raw.c_cc[VMIN] = 0;
    raw.c_cc[VTIME] = 0;
    if (tcsetattr(in, TCSANOW, &raw) != 0) return false;
    const double end = seconds_now() + timeout;
    bool done = write(out, "\033[c", 3) != 3;
    for (double left; !done && n + 1 < sizeof answer && (left = end - seconds_now()) > 0;) {
        struct pollfd p = {in, POLLIN, 0};
        if (poll(&p, 1, (int)(1e3 * left) + 1) < 0 && errno != EINTR) break;
        const ssize_t got = p.revents ? read(in, answer + n, sizeof answer - 1 - n) : 0;
        if (p.revents && got <= 0) break;
        n += (size_t)got;
        done = n > 0 && memchr(answer, 'c', n) != NULL;
    }
    answer[n] = '\0';
    tcsetattr(in, TCSANOW, &before);
    return terminal_answer_has_sixel(answer);
}

/* Decides how images are shown on `out`. `forced`: a name of terminal_graphics_names, which decides, or NULL: then
 * TIKZ_GRAPHICS does, where it is set. Returns TERMINAL_NONE and why, one sentence. */
static inline TerminalGraphics terminal_graphics(FILE *out, const char *forced, const char **why) {
    const char *term = getenv("TERM"), *name = forced ? forced : getenv("TIKZ_GRAPHICS");
    *why = "images are not shown: that was asked for";
    for (int i = 0; name && *name && i <= TERMINAL_BLOCKS; i++)
        if (!strcmp(name, terminal_graphics_names[i])) return (TerminalGraphics)i;
    *why = "images are not shown: the kinds of graphics are kitty, iterm2, sixel, blocks and none";
    if (name && *name) return TERMINAL_NONE;
    *why = "images are not shown: the output is not a terminal";
    if (!isatty(fileno(out))) return TERMINAL_NONE;
    *why = "images are not shown: NO_COLOR is set";
    if (terminal_variable("NO_COLOR", "")) return TERMINAL_NONE;
    *why = "images are not shown: the terminal (TERM) has no colours";
    if (!term || !*term || !strcmp(term, "dumb")) return TERMINAL_NONE;
    *why = NULL;
    const TerminalGraphics known = terminal_from_environment();
    if (known != TERMINAL_NONE) return known;
    fflush(out);
    return terminal_asks_sixel(STDIN_FILENO, fileno(out), 0.2) ? TERMINAL_SIXEL : TERMINAL_BLOCKS;
}

/* ---- scaling ---- */

/* Scales an image: each new pixel is the mean of those that it covers. The size is at least 1 x 1. */
static inline Image terminal_scale(const Image *p, int width, int height) {
    Image to = {width, height, (uint8_t *)xmalloc((size_t)width * height * 3)};
    for (int y = 0; y < height; y++) {
        const int top = (int)((int64_t)y * p->height / height), end = (int)((int64_t)(y + 1) * p->height / height),
                  bottom = end > top ? end : top + 1;
        for (int x = 0; x < width; x++) {
            const int left = (int)((int64_t)x * p->width / width), stop = (int)((int64_t)(x + 1) * p->width / width),
                      right = stop > left ? stop : left + 1;
            uint64_t sums[3] = {0, 0, 0}, n = (uint64_t)(bottom - top) * (uint64_t)(right - left);
            for (int v = top; v < bottom; v++)
                for (int u = left; u < right; u++)
                    for (int k = 0; k < 3; k++) sums[k] += p->rgb[3 * ((size_t)v * p->width + u) + k];
            for (int k = 0; k < 3; k++) to.rgb[3 * ((size_t)y * width + x) + k] = (uint8_t)((sums[k] + n / 2) / n);
        }
    }
    return to;
}

/* Scales an image so that it just fits into width x height pixels. */
static inline Image terminal_fit(const Image *p, int width, int height) {
    const double x = (double)width / p->width, y = (double)height / p->height, scale = x < y ? x : y;
    const int w = (int)(p->width * scale + 0.5), h = (int)(p->height * scale + 0.5);
    return terminal_scale(p, w < 1 ? 1 : w > width ? width : w, h < 1 ? 1 : h > height ? height : h);
}

/* The images side by side on white, `gap` pixels apart, in the middle of their heights. */
static inline Image terminal_beside(const Image *a, const Image *b, int gap) {
    const Image *both[] = {a, b};
    Image to = {a->width + gap + b->width, a->height > b->height ? a->height : b->height, NULL};
    to.rgb = (uint8_t *)xmalloc((size_t)to.width * to.height * 3);
    memset(to.rgb, 255, (size_t)to.width * to.height * 3);
    for (int i = 0; i < 2; i++)
        for (int y = 0; y < both[i]->height; y++)
            memcpy(to.rgb +
                       3 * ((size_t)(y + (to.height - both[i]->height) / 2) * to.width + (i ? a->width + gap : 0)),
                   both[i]->rgb + 3 * (size_t)y * both[i]->width, 3 * (size_t)both[i]->width);
    return to;
}

/* ---- output ---- */

/* kitty: a PNG file in base64, in pieces of 4096 characters; q=2: the terminal shall not answer. */
static inline void terminal_write_kitty(FILE *out, const char *base64) {
    const size_t n = strlen(base64);
    for (size_t at = 0; at < n; at += 4096) {
        const size_t part = n - at < 4096 ? n - at : 4096;
        fprintf(out, "\033_G%sm=%d;%.*s\033\\", at ? "" : "a=T,f=100,q=2,", at + part < n, (int)part, base64 + at);
    }
}

static inline void terminal_write_png(FILE *out, TerminalGraphics g, const Image *p) {
    size_t size;
    uint8_t *png = png_encode(p, &size);
    char *base64 = base64_encode(png, size);
    if (g == TERMINAL_KITTY)
        terminal_write_kitty(out, base64);
    else
        fprintf(out, "\033]1337;File=inline=1;size=%zu;width=%dpx;height=%dpx:%s\a", size, p->width, p->height,
                base64);
    free(base64);
    free(png);
}

/* Two pixels in each character: the upper half block in the colour of one, on the colour of the other. A lower pixel
 * that is not there is left to the terminal. */
static inline void terminal_write_blocks(FILE *out, const Image *p) {
    for (int y = 0; y < p->height; y += 2) {
        for (int x = 0; x < p->width; x++) {
            const uint8_t *upper = p->rgb + 3 * ((size_t)y * p->width + x), *lower = upper + 3 * (size_t)p->width;
            fprintf(out, "\033[38;2;%d;%d;%dm", upper[0], upper[1], upper[2]);
            if (y + 1 < p->height) fprintf(out, "\033[48;2;%d;%d;%dm", lower[0], lower[1], lower[2]);
            fputs("\xe2\x96\x80", out);
        }
        fputs(y + 2 < p->height ? "\033[0m\n" : "\033[0m", out);
    }
}

/* The size of the terminal: columns, and pixels of a column's width (8 where it does not say). */
static inline void terminal_size(FILE *out, int *columns, int *cell) {
    struct winsize w = {0};
    const char *set = getenv("COLUMNS");
    *columns = ioctl(fileno(out), TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : set ? atoi(set) : 80;
    if (*columns < 10 || *columns > 2000) *columns = 80;
    *cell = w.ws_col > 0 && w.ws_xpixel / w.ws_col >= 4 ? w.ws_xpixel / w.ws_col : 8;
}

/* Shows an image, or two side by side in boxes of the same size, as large as the terminal is wide but, with real pixels,
 * no larger than 640 pixels each or the image itself. A line end follows. Errors are those of `out`. */
static inline void terminal_show(FILE *out, TerminalGraphics g, const Image *a, const Image *b) {
    int columns, cell;
    if (g == TERMINAL_NONE || !a->rgb) return;
    if (b && !b->rgb) b = NULL;
    terminal_size(out, &columns, &cell);
    const int gap = g == TERMINAL_BLOCKS ? 2 : 16, wide = g == TERMINAL_BLOCKS ? columns : columns * cell;
    int side = b ? (wide - gap) / 2 : wide;
    if (g != TERMINAL_BLOCKS) {
        const int largest_a = a->width > a->height ? a->width : a->height,
                  largest_b = b ? b->width > b->height ? b->width : b->height : 0,
                  largest = largest_a > largest_b ? largest_a : largest_b, most = largest < 640 ? largest : 640;
        if (side > most) side = most;
    }
    Image all = terminal_fit(a, side, side);
    if (b) {
        Image left = all, right = terminal_fit(b, side, side);
        all = terminal_beside(&left, &right, gap);
        image_free(&left);
        image_free(&right);
    }
    if (g == TERMINAL_SIXEL)
        sixel_write(out, &all);
    else if (g == TERMINAL_BLOCKS)
        terminal_write_blocks(out, &all);
    else
        terminal_write_png(out, g, &all);
    putc('\n', out);
    fflush(out);
    image_free(&all);
}

#endif
