/* Preloaded formats: TeX's memory after a preamble, so that a document with the same preamble begins where its body
 * does. A cache folder keeps them from run to run:
 *
 *   FOLDER/HASH/a.fmt         the format, not compressed, because TeX would spend longer on that than on a figure
 *   FOLDER/HASH/preamble.tex  what it was made of: a format serves exactly this preamble
 *   FOLDER/HASH/check         its size and CRC-32, so that a damaged one is noticed
 *
 * HASH is that of the preamble and of the TeX system, so that a new version of TeX or of a package finds none. A folder
 * appears by one rename, complete. Formats are of pdfTeX: LuaTeX's cannot keep fonts loaded by Lua, XeTeX's no system
 * fonts. What does not survive is compiled in full: preambles with errors, or that write files. */
#ifndef LIB_TEX_FORMAT_H
#define LIB_TEX_FORMAT_H

#include "crc32.h"
#include "tex_document.h"
#include "tex_engine.h"

#include <zlib.h>

enum { TEX_FORMATS = 24, TEX_FORMAT_BYTES = 256 << 20, TEX_FORMAT_SLOTS = 1024 };

typedef enum { FORMAT_NEW, FORMAT_MAKING, FORMAT_READY, FORMAT_IMPOSSIBLE } TexFormatState;

/* What this process knows of one preamble. */
typedef struct {
    uint64_t hash;
    int seen;
    TexFormatState state;
} TexFormatSlot;

typedef struct {
    char *folder;  // NULL: formats are not used
    int after;     // a format is made when its preamble is seen for the `after`-th time
    pthread_mutex_t lock;
    TexFormatSlot slots[TEX_FORMAT_SLOTS];  // a hash has one place; the newest preamble takes it
} TexFormats;

/* The cache folder of this user: $XDG_CACHE_HOME or ~/.cache; allocated, or NULL. */
static inline char *tex_format_default_folder(void) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache && *cache == '/') return format_string("%s/tikz.c/formats", cache);
    return home && *home == '/' ? format_string("%s/.cache/tikz.c/formats", home) : NULL;
}

/* Removes what processes that were killed have left half made or half removed: entries older than an hour. */
static inline void tex_formats_sweep(const char *path) {
    DIR *folder = opendir(path);
    for (struct dirent *e; folder && (e = readdir(folder));) {
        struct stat s;
        const size_t n = strlen(e->d_name);
        const bool rest = !strncmp(e->d_name, "tikz.c-", 7) || (n > 4 && !strcmp(e->d_name + n - 4, ".old"));
        if (!rest || fstatat(dirfd(folder), e->d_name, &s, AT_SYMLINK_NOFOLLOW) != 0) continue;
        if (s.st_mtime < time(NULL) - 3600) sandbox_folder_remove(format_string("%s/%s", path, e->d_name));
    }
    if (folder) closedir(folder);
}

/* `folder` may be NULL for the user's own. A folder that cannot be made or belongs to somebody else is not used. */
static inline void tex_formats_open(TexFormats *f, const TexSystem *tex, const char *folder, int after) {
    Error ignored;
    struct stat s;
    memset(f, 0, sizeof *f);
    f->after = after;
    pthread_mutex_init(&f->lock, NULL);
    if (after <= 0 || !tex->engines[TEX_PDFLATEX]) return;
    char *name = folder ? xstrdup(folder) : tex_format_default_folder();
    const bool fresh = name && !file_exists(name);
    if (name && make_folder(name, &ignored) == 0) f->folder = realpath(name, NULL);
    if (f->folder && fresh) chmod(f->folder, 0700);  // whatever the umask is
    free(name);
    if (f->folder && (stat(f->folder, &s) != 0 || s.st_uid != geteuid() || s.st_mode & (S_IWGRP | S_IWOTH))) {
        free(f->folder);
        f->folder = NULL;
    }
    if (f->folder) tex_formats_sweep(f->folder);
}

static inline void tex_formats_close(TexFormats *f) {
    free(f->folder);
    pthread_mutex_destroy(&f->lock);
    memset(f, 0, sizeof *f);
}

static inline char *tex_format_path(const TexFormats *f, uint64_t hash) {
    return format_string("%s/%016llx", f->folder, (unsigned long long)hash);
}

/* ---- on disk ---- */

/* Whether a format was made of this preamble: the hash alone does not say so, because it is not cryptographic. */
static inline bool tex_format_serves(const char *path, const char *preamble, size_t n) {
    Error ignored;
    size_t size = 0;
    char *made_of = sandbox_read(path, "preamble.tex", n, &size, &ignored);
    const bool serves = made_of && size == n && !memcmp(made_of, preamble, n);
    free(made_of);
    return serves;
}

/* Whether the folder holds a whole format of this preamble. */
static inline bool tex_format_is_whole(const char *path, const char *preamble, size_t n) {
    Error ignored;
    size_t size = 0, format_size = 0;
    unsigned long long bytes = 0, crc = 0;
    char *check = sandbox_read(path, "check", 64, &size, &ignored);
    char *format = sandbox_read(path, "a.fmt", TEX_FORMAT_BYTES, &format_size, &ignored);
    const bool whole = check && format && tex_format_serves(path, preamble, n) &&
                       sscanf(check, "%llu %llx", &bytes, &crc) == 2 && bytes == format_size &&
                       crc == crc32_bytes(0, format, format_size);
    free(check);
    free(format);
    return whole;
}

/* Writes the format that TeX made, inflated, into the folder `to`, with its size and checksum. */
static inline int tex_format_inflate(const char *from, const char *to, Error *err) {
    char *path = format_string("%s/a.fmt", from), check[64];
    const int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    gzFile in = fd >= 0 ? gzdopen(fd, "rb") : NULL;
    size_t size = 0;
    uint8_t *bytes = NULL;
    int n = in ? 1 : -1;
    while (n > 0 && size < TEX_FORMAT_BYTES) {
        bytes = (uint8_t *)xrealloc(bytes, size + (4 << 20));
        n = gzread(in, bytes + size, 4 << 20);
        if (n > 0) size += (size_t)n;
    }
    if (in)
        gzclose(in);
    else if (fd >= 0)
        close(fd);
    int status = n == 0 && size > 0 ? 0 : error_set(err, "cannot read %s", path);
    snprintf(check, sizeof check, "%zu %08x\n", size, (unsigned)crc32_bytes(0, bytes, size));
    if (status == 0) status = sandbox_write(to, "a.fmt", bytes, size, err);
    if (status == 0) status = sandbox_write(to, "check", check, strlen(check), err);
    free(bytes);
    free(path);
    return status;
}

/* Makes room: removes the formats that were not used for the longest time. */
static inline void tex_formats_evict(const TexFormats *f) {
    for (;;) {
        struct stat s;
        char oldest[32] = "";
        struct timespec least = {0, 0};
        int count = 0;
        DIR *folder = opendir(f->folder);
        for (struct dirent *e; folder && (e = readdir(folder));) {
            if (strspn(e->d_name, "0123456789abcdef") != 16 || e->d_name[16]) continue;
            if (fstatat(dirfd(folder), e->d_name, &s, AT_SYMLINK_NOFOLLOW) != 0) continue;
            const bool older = s.st_mtim.tv_sec < least.tv_sec ||
                               (s.st_mtim.tv_sec == least.tv_sec && s.st_mtim.tv_nsec < least.tv_nsec);
            if (count++ > 0 && !older) continue;
            snprintf(oldest, sizeof oldest, "%.16s", e->d_name);
            least = s.st_mtim;
        }
        if (folder) closedir(folder);
        if (count <= TEX_FORMATS) return;
        char *path = format_string("%s/%s", f->folder, oldest), *away = format_string("%s.old", path);
        const bool moved = rename(path, away) == 0;
        sandbox_folder_remove(away);
        free(path);
        if (!moved) return;
    }
}

/* Moves a finished format to its place, unless another process was quicker. */
static inline int tex_format_publish(const TexFormats *f, char *made, const char *path, const char *preamble,
                                     size_t n) {
    if (rename(made, path) == 0) {
        free(made);
        tex_formats_evict(f);
        return 0;
    }
    sandbox_folder_remove(made);
    return tex_format_is_whole(path, preamble, n) ? 0 : -1;
}

/* Makes a format in the box: runs the preamble, then \dump. Returns FORMAT_READY, FORMAT_IMPOSSIBLE where the preamble
 * cannot be dumped, or FORMAT_NEW where nobody knows yet: the run was cancelled or could not begin, or a disk is full. */
static inline TexFormatState tex_format_make(const TexFormats *f, const TexSystem *tex, const char *path,
                                             const char *preamble, size_t n) {
    Error err;
    SandboxResult r = {0};
    const char *arguments[] = {tex->engines[TEX_PDFLATEX],
                               "-ini",
                               "-no-shell-escape",
                               "-interaction=nonstopmode",
                               "-jobname=a",
                               "&pdflatex",
                               "a.tex",
                               NULL};
    char *folder = sandbox_folder_make(NULL, &err), *source = format_string("%.*s\n\\dump\n", (int)n, preamble);
    char *made = folder ? sandbox_folder_make(f->folder, &err) : NULL;
    int status = made ? sandbox_write(folder, "a.tex", source, strlen(source), &err) : -1;
    if (status == 0) status = tex_run(tex, arguments, folder, NULL, &r, &err);
    const bool ran = status == 0 && !(r.stopped && tex->cancelled && tex->cancelled());
    /* A preamble that writes files (filecontents) would not write them again: a.tex, a.fmt and a.log are all. */
    if (status == 0 && (r.stopped || r.status != 0 || sandbox_folder_size(folder).files > 3)) status = -1;
    if (status == 0) status = tex_format_inflate(folder, made, &err);
    if (status == 0) status = sandbox_write(made, "preamble.tex", preamble, n, &err);
    const bool full = status != 0 && made && sandbox_disk_full(made);
    if (status == 0)
        status = tex_format_publish(f, made, path, preamble, n);
    else
        sandbox_folder_remove(made);
    sandbox_result_free(&r);
    sandbox_folder_remove(folder);
    free(source);
    return status == 0 ? FORMAT_READY : ran && !full ? FORMAT_IMPOSSIBLE : FORMAT_NEW;
}

/* ---- in this process ---- */

static inline uint64_t tex_format_hash(const TexSystem *tex, const char *preamble, size_t n) {
    return hash_bytes(tex->fingerprint, preamble, n);
}

/* Notes a preamble. Returns its state; FORMAT_NEW: it is too early for a format; FORMAT_MAKING with *mine: the caller
 * is to look for one on disk and to make it otherwise. */
static inline TexFormatState tex_format_note(TexFormats *f, uint64_t hash, const char *path, bool *mine) {
    TexFormatSlot *slot = &f->slots[hash_slot(hash, TEX_FORMAT_SLOTS)];
    pthread_mutex_lock(&f->lock);
    if (slot->hash != hash) *slot = (TexFormatSlot){hash, 0, FORMAT_NEW};
    slot->seen++;
    *mine = slot->state == FORMAT_NEW && (slot->seen >= f->after || file_exists(path));
    if (*mine) slot->state = FORMAT_MAKING;
    const TexFormatState state = slot->state;
    pthread_mutex_unlock(&f->lock);
    return state;
}

static inline void tex_format_set(TexFormats *f, uint64_t hash, TexFormatState state) {
    TexFormatSlot *slot = &f->slots[hash_slot(hash, TEX_FORMAT_SLOTS)];
    pthread_mutex_lock(&f->lock);
    if (slot->hash == hash) *slot = (TexFormatSlot){hash, slot->seen, state};
    pthread_mutex_unlock(&f->lock);
}

/* The folder of the format of a preamble, allocated; NULL: compile in full. Makes the format when it is time; other
 * threads with the same preamble do not wait for that. Thread-safe. */
static inline char *tex_format_get(TexFormats *f, const TexSystem *tex, const char *preamble, size_t n) {
    if (!f->folder || n == 0) return NULL;
    const uint64_t hash = tex_format_hash(tex, preamble, n);
    char *path = tex_format_path(f, hash);
    bool mine;
    TexFormatState state = tex_format_note(f, hash, path, &mine);
    if (mine) {
        const bool ready = tex_format_is_whole(path, preamble, n);
        if (!ready && file_exists(path)) sandbox_folder_remove(xstrdup(path));  // damaged
        if (ready) utimensat(AT_FDCWD, path, NULL, 0);                          // used now: the last to be evicted
        state = ready ? FORMAT_READY : tex_format_make(f, tex, path, preamble, n);
        tex_format_set(f, hash, state);
    }
    if (state == FORMAT_READY && (mine || tex_format_serves(path, preamble, n))) return path;
    if (state == FORMAT_READY) tex_format_set(f, hash, FORMAT_NEW);
    free(path);
    return NULL;
}

/* Forgets a format that TeX refused, on disk too, so that the next document makes it again. */
static inline void tex_format_discard(TexFormats *f, const TexSystem *tex, const char *preamble, size_t n) {
    const uint64_t hash = tex_format_hash(tex, preamble, n);
    sandbox_folder_remove(tex_format_path(f, hash));
    tex_format_set(f, hash, FORMAT_NEW);
}

/* The document for a format: the lines of the preamble are empty comments, so that line numbers stay. */
static inline char *tex_format_body(const char *document, size_t preamble) {
    size_t lines = 0;
    for (size_t i = 0; i < preamble; i++) lines += document[i] == '\n';
    const char *rest = document + preamble;
    char *body = (char *)xmalloc(2 * lines + strlen(rest) + 1);
    for (size_t i = 0; i < lines; i++) memcpy(body + 2 * i, "%\n", 2);
    strcpy(body + 2 * lines, rest);
    return body;
}

#endif
