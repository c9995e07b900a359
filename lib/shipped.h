/* Files that come with the programs, such as the starter student, wherever the programs were put. */
#ifndef LIB_SHIPPED_H
#define LIB_SHIPPED_H

#include "file.h"

#define TIKZC_VERSION "0.9"

/* Finds a file or folder that ships under the name NAME (dev/... or web), relative to the repository's root: in the current folder, beside the
 * program, or, where `make install` put PREFIX/lib/tikzc/PROGRAM, in PREFIX/share/tikzc. Returns its path, or NAME itself
 * where it is in none of them, so that messages can name it. What is returned is never freed. */
static inline const char *shipped_file(const char *name) {
    static const char *const places[] = {"", "../../share/tikzc/"};
    char program[4096];
    if ((strncmp(name, "dev/", 4) && strcmp(name, "web")) || file_exists(name)) return name;
    const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length <= 0) return name;
    program[length] = 0;
    *(strrchr(program, '/') + 1) = 0;
    for (int i = 0; i < 2; i++) {
        char *path = format_string("%s%s%s", program, places[i], name);
        if (file_exists(path)) return path;
        free(path);
    }
    return name;
}

#endif
