/* The images of the command line: files, folders, and "-" for standard input. */
#ifndef GENERATE_INPUTS_H
#define GENERATE_INPUTS_H

#include "../lib/image.h"
#include "../lib/options.h"

#include <dirent.h>
#include <strings.h>

enum { INPUT_STDIN_BYTES = 256 << 20 };

typedef struct {
    char *path;  // of the image file; "stdin" for standard input
    bool is_stdin;
    const uint8_t *bytes;  // of an image in a data set, which path names, or of standard input once it is read; else NULL
    size_t size;
} Input;

typedef struct {
    Input *items;
    int count;
} Inputs;

static inline void inputs_close(Inputs *in) {
    for (int i = 0; i < in->count; i++) {
        free(in->items[i].path);
        if (in->items[i].is_stdin) free((void *)in->items[i].bytes);
    }
    free(in->items);
    memset(in, 0, sizeof *in);
}

static inline void inputs_add(Inputs *in, char *path, bool is_stdin) {
    in->items = (Input *)xrealloc(in->items, (size_t)(in->count + 1) * sizeof *in->items);
    in->items[in->count++] = (Input){.path = path, .is_stdin = is_stdin};
}

static inline bool input_has_suffix(const char *name) {
    static const char *const suffixes[] = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp",
                                           ".gif", ".bmp", ".dib",  ".tif", ".tiff"};
    const size_t n = strlen(name);
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++)
        if (n > strlen(suffixes[i]) && !strcasecmp(name + n - strlen(suffixes[i]), suffixes[i])) return true;
    return false;
}

/* Whether a file of a folder is an image: by its name, or by its first bytes. BMP's are two letters, with which a text
 * may begin too; four bytes that are zero in every BMP file tell them apart. */
static inline bool input_is_image(const char *path) {
    uint8_t head[16];
    size_t size;
    const char *problem;
    const int fd = file_open(path, &size, &problem);
    if (fd < 0) return false;
    const ssize_t n = pread(fd, head, sizeof head, 0);
    close(fd);
    if (input_has_suffix(path)) return true;
    ImageDecoder decode = n > 0 ? image_decoder(head, (size_t)n) : NULL;
    return decode && (decode != image_decode_bmp || (n >= 10 && !memcmp(head + 6, "\0\0\0\0", 4)));
}

static inline int inputs_compare(const void *a, const void *b) {
    return strcmp(((const Input *)a)->path, ((const Input *)b)->path);
}

/* Adds the images of a folder in the order of their names, byte by byte. Folders in it and hidden files are left out. */
static inline int inputs_add_folder(Inputs *in, const char *folder, Error *err) {
    const int first = in->count;
    DIR *d = opendir(folder);
    if (!d) return error_set(err, "cannot read the folder %s: %s", folder, strerror(errno));
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.') continue;
        char *path = format_string("%s%s%s", folder, folder[strlen(folder) - 1] == '/' ? "" : "/", e->d_name);
        if (input_is_image(path))
            inputs_add(in, path, false);
        else
            free(path);
    }
    closedir(d);
    if (in->count == first)
        return error_set(err, "there is no image in the folder %s; folders inside it are not searched", folder);
    qsort(in->items + first, (size_t)(in->count - first), sizeof *in->items, inputs_compare);
    return 0;
}

/* Lists the images of the command line in its order. A file that does not exist or is no image is refused later, by
 * input_load. Refuses an unreadable folder, one without images, and "-" where it stands twice or standard input is a
 * terminal. Free with inputs_close, after an error too. */
static inline int inputs_open(Inputs *in, const StringList *arguments, Error *err) {
    bool from_stdin = false;
    memset(in, 0, sizeof *in);
    for (int i = 0; i < arguments->count; i++) {
        struct stat s;
        const char *path = arguments->items[i];
        if (!strcmp(path, "-")) {
            if (from_stdin) return error_set(err, "standard input (-) can be read only once");
            if (isatty(STDIN_FILENO))
                return error_set(err, "cannot read an image from standard input (-): it is a terminal");
            from_stdin = true;
            inputs_add(in, xstrdup("stdin"), true);
        } else if (!stat(path, &s) && S_ISDIR(s.st_mode)) {
            if (inputs_add_folder(in, path, err)) return -1;
        } else {
            inputs_add(in, xstrdup(path), false);
        }
    }
    return 0;
}

/* Reads standard input to its end. Returns the bytes, allocated, or NULL. */
static inline uint8_t *input_read_stdin(size_t *size, Error *err) {
    size_t capacity = 1 << 16;
    uint8_t *bytes = (uint8_t *)xmalloc(capacity);
    *size = 0;
    for (;;) {
        const ssize_t n = read(STDIN_FILENO, bytes + *size, capacity - *size);
        if (n == 0 && *size > 0) return bytes;
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) error_set(err, "cannot read an image from stdin: it is empty");
        if (n < 0) error_set(err, "cannot read an image from stdin: %s", strerror(errno));
        if (n <= 0) break;
        *size += (size_t)n;
        if (*size > INPUT_STDIN_BYTES) {
            error_set(err, "cannot read an image from stdin: it has more than %d MB", INPUT_STDIN_BYTES >> 20);
            break;
        }
        if (*size == capacity) bytes = (uint8_t *)xrealloc(bytes, capacity *= 2);
    }
    free(bytes);
    return NULL;
}

/* Reads and decodes an image; standard input is read by the first call. Free with image_free. */
static inline int input_load(Input *input, Image *image, Error *err) {
    memset(image, 0, sizeof *image);
    if (input->is_stdin && !input->bytes) input->bytes = input_read_stdin(&input->size, err);
    if (!input->bytes) return input->is_stdin ? -1 : image_load(image, input->path, err);
    char *name = format_string(input->is_stdin ? "from %s" : "of %s", input->path);
    const int damaged = image_decode(image, input->bytes, input->size, name, err);
    free(name);
    return damaged;
}

/* FOLDER/NAME.EXTENSION, allocated, for an image any/path/NAME.png, or FOLDER/stdin.EXTENSION. */
static inline char *input_output_path(const char *folder, const Input *input, const char *extension) {
    const char *slash = strrchr(input->path, '/'), *name = slash ? slash + 1 : input->path, *dot = strrchr(name, '.');
    const int length = dot && dot != name ? (int)(dot - name) : (int)strlen(name);
    return format_string("%s/%.*s.%s", folder, length, name, extension);
}

/* Refuses images whose outputs in `folder` would have the same name, such as a/x.png and b/x.jpg. */
static inline int inputs_check_names(const Inputs *in, const char *folder, const char *extension, Error *err) {
    Inputs names = {0};
    int bad = 0;
    for (int i = 0; i < in->count; i++)
        inputs_add(&names, input_output_path(folder, &in->items[i], extension), false);
    if (names.count) qsort(names.items, (size_t)names.count, sizeof *names.items, inputs_compare);
    for (int i = 1; !bad && i < names.count; i++)
        if (!strcmp(names.items[i - 1].path, names.items[i].path))
            bad = error_set(err, "two of the images would both be written to %s", names.items[i].path);
    inputs_close(&names);
    return bad;
}

#endif
