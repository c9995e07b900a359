/* Text and images inside HTML pages. */
#ifndef LIB_HTML_H
#define LIB_HTML_H

#include "base64.h"
#include "png_write.h"
#include "utf8.h"

/* Writes n bytes of text as HTML. Spaces, tabs and line ends are shown as symbols if `visible`, and stay as they are
 * otherwise; other control characters and bytes that are not UTF-8 become U+FFFD. */
static inline void html_bytes(FILE *f, const uint8_t *s, size_t n, bool visible) {
    for (size_t i = 0, length; i < n; i += length) {
        const Utf8State state = utf8_scan(s + i, n - i, &length);
        const bool space = s[i] == ' ' || s[i] == '\n' || s[i] == '\t';
        if (space && visible)
            fputs(s[i] == ' ' ? "&#x2423;" : s[i] == '\n' ? "&#x21b5;" : "&#x21e5;", f);
        else if (state != UTF8_COMPLETE || s[i] == 127 || (s[i] < 32 && !space))
            fputs("&#xfffd;", f);
        else if (strchr("&<>\"'", s[i]))
            fprintf(f, "&#%d;", s[i]);
        else
            fwrite(s + i, 1, length, f);
    }
}

static inline void html_text(FILE *f, const char *text) { html_bytes(f, (const uint8_t *)text, strlen(text), false); }

/* Writes an image that the page itself holds, as <img>. `alt`: what it shows, for those who do not see it. */
static inline void html_image(FILE *f, const Image *p, const char *alt) {
    size_t size;
    uint8_t *png = png_encode(p, &size);
    char *text = base64_encode(png, size);
    fprintf(f, "<img width=\"%d\" height=\"%d\" alt=\"", p->width, p->height);
    html_text(f, alt);
    fprintf(f, "\" src=\"data:image/png;base64,%s\">", text);
    free(text);
    free(png);
}

#endif
