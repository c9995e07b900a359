/* The files of the web page. */
#ifndef SERVER_FILES_H
#define SERVER_FILES_H

#include "../lib/file.h"

#include <strings.h>

/* Where KaTeX is, by which the page draws formulas itself: a folder katex, as Debian's libjs-katex installs it. */
#define FILES_KATEX "/usr/share/javascript"

/* What the page may load: nothing from elsewhere, no inline scripts and styles. */
#define FILES_POLICY                                                                                            \
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' data: blob:; object-src 'none'; " \
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

static inline const char *file_type(const char *path) {
    static const char *const types[][2] = {{".html", "text/html; charset=utf-8"},
                                           {".css", "text/css; charset=utf-8"},
                                           {".js", "text/javascript; charset=utf-8"},
                                           {".mjs", "text/javascript; charset=utf-8"},
                                           {".json", "application/json"},
                                           {".webmanifest", "application/manifest+json"},
                                           {".wasm", "application/wasm"},
                                           {".svg", "image/svg+xml"},
                                           {".png", "image/png"},
                                           {".jpg", "image/jpeg"},
                                           {".ico", "image/x-icon"},
                                           {".woff2", "font/woff2"},
                                           {".woff", "font/woff"},
                                           {".ttf", "font/ttf"},
                                           {".txt", "text/plain; charset=utf-8"}};
    const char *dot = strrchr(path, '.');
    for (size_t i = 0; dot && i < sizeof types / sizeof *types; i++)
        if (!strcasecmp(dot, types[i][0])) return types[i][1];
    return "application/octet-stream";
}

/* Whether a decoded path of a URL stays in the folder: no segment is empty or begins with a dot, and there is nothing that a
 * file system reads otherwise. */
static inline bool file_path_is_safe(const char *path) {
    if (*path != '/') return false;
    for (const char *at = path; *at; at++) {
        const unsigned char c = (unsigned char)*at;
        if (c < ' ' || c == 127 || c == '\\') return false;
        if (c == '/' && (at[1] == '.' || at[1] == '/')) return false;
    }
    return true;
}

/* The folder that a URL's path is looked for in. */
static inline const char *file_folder(const char *web, const char *path) {
    return strncmp(path, "/katex/", 7) ? web : FILES_KATEX;
}

/* Opens the file that a URL's path names in the folder; a path that ends in / names its index.html. Returns its descriptor,
 * its name for file_type in *name (allocated) and its stat; -1: there is none. */
static inline int file_of_path(const char *folder, const char *path, char **name, struct stat *s) {
    if (!folder || !file_path_is_safe(path)) return -1;
    *name = format_string("%s%s%s", folder, path, path[strlen(path) - 1] == '/' ? "index.html" : "");
    const int fd = open(*name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0 && !fstat(fd, s) && S_ISREG(s->st_mode)) return fd;
    if (fd >= 0) close(fd);
    free(*name);
    return -1;
}

#endif
