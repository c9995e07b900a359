/* Tests of lib/, without the tokenizer. Also `test_lib --prepare SIZE OUT IMG...`: writes the prepared pixels of the
 * images one after another, for test/compare_images.py. */
#include "samples.h"

#include "../kernels/arena.h"
#include "../lib/json.h"
#include "../lib/memory.h"
#include "../lib/options.h"
#include "../lib/image.h"
#include "../lib/image_prepare.h"
#include "../lib/progress.h"
#include "../lib/random.h"
#include "../lib/threads.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* ---- files ---- */

static void test_map(void) {
    Error err;
    MappedFile f;
    write_bytes(sample_path("three"), "abc", 3);
    write_bytes(sample_path("empty"), "", 0);
    CHECK_OK(file_map(&f, sample_path("three"), &err), err);
    CHECK(f.size == 3 && !memcmp(f.data, "abc", 3) && !strcmp(f.path, sample_path("three")));
    file_unmap(&f);
    CHECK(f.data == NULL);
    CHECK_ERROR(file_map(&f, sample_path("empty"), &err), err, "the file is empty");
    CHECK_ERROR(file_map(&f, sample_path("none"), &err), err, "No such file");
    CHECK_ERROR(file_map(&f, samples_folder, &err), err, "it is a folder");
    CHECK_ERROR(file_map(&f, "/dev/null", &err), err, "not a regular file");
    CHECK(file_exists(sample_path("three")) && !file_exists(sample_path("none")));
    CHECK(mkfifo(sample_path("pipe"), 0600) == 0);
    CHECK_ERROR(file_map(&f, sample_path("pipe"), &err), err, "not a regular file");
    /* the file that an address lies in */
    MappedFile files[3];
    for (int i = 0; i < 3; i++) CHECK_OK(file_map(&files[i], sample_path("three"), &err), err);
    CHECK(mapped_path(files[1].data + 2) == files[1].path && mapped_path(&err) == NULL);
    const uint8_t *gone = files[1].data;
    file_unmap(&files[1]);
    CHECK(mapped_path(gone) == NULL && mapped_path(files[2].data) == files[2].path);
    CHECK_OK(file_map(&files[1], sample_path("three"), &err), err);
    CHECK(mapped_path(files[1].data) == files[1].path && mapped_path(files[0].data) == files[0].path);
    for (int i = 0; i < 3; i++) file_unmap(&files[i]);
}

/* ---- memory ---- */

static void group_file(const char *path, const char *text) {
    char full[512], *slash;
    snprintf(full, sizeof full, "%s", sample_path(path));
    for (slash = strchr(full + strlen(samples_folder) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        CHECK(mkdir(full, 0700) == 0 || errno == EEXIST);
        *slash = '/';
    }
    write_bytes(full, text, strlen(text));
}

static void test_memory(void) {
    const size_t machine = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    char folder[512], list[512];
    CHECK(memory_available() > 0 && memory_available() <= machine);
    snprintf(folder, sizeof folder, "%s", sample_path("groups"));
    snprintf(list, sizeof list, "%s", sample_path("groups/list"));
    group_file("groups/service/part/memory.max", "max\n");
    group_file("groups/service/memory.max", "5000000000\n");
    group_file("groups/memory/old/memory.limit_in_bytes", "4000000000\n");
    group_file("groups/memory/memory.limit_in_bytes", "9223372036854771712\n");  // none, in version 1
    group_file("groups/list", "0::/service/part\n");
    CHECK(memory_groups_limit(list, folder) == 5000000000);  // of the group above
    group_file("groups/list", "0::/not/seen\n");
    CHECK(memory_groups_limit(list, folder) == SIZE_MAX);
    group_file("groups/list", "3:cpu:/old\n4:memory:/old\n0::/service\n");
    CHECK(memory_groups_limit(list, folder) == 4000000000);
    group_file("groups/list", "4:memory:/\n0::/\n");
    CHECK(memory_groups_limit(list, folder) == 9223372036854771712u);
    group_file("groups/memory.max", "3000000000\n");  // of a container, which sees only its own group
    CHECK(memory_groups_limit(list, folder) == 3000000000);
    group_file("groups/list", "nonsense\n");
    CHECK(memory_groups_limit(list, folder) == SIZE_MAX);
    CHECK(memory_groups_limit(sample_path("none"), folder) == SIZE_MAX);
}

static void *read_first(void *byte) {
    volatile uint8_t first = *(const volatile uint8_t *)byte;
    (void)first;
    return NULL;
}

/* A process whose thread reads a file that was cut ends with status 1 and a sentence that names it, and removes the
 * file that it was writing. */
static void test_cut_map(void) {
    int pipes[2], status = 0;
    char said[1024] = "";
    char *path = xstrdup(sample_path("cut\nhere"));
    write_bytes(path, "abc", 3);
    CHECK(pipe(pipes) == 0);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        Error err;
        MappedFile f;
        AtomicFile a;
        pthread_t thread;
        dup2(pipes[1], STDERR_FILENO);
        if (file_map(&f, path, &err) || atomic_open(&a, sample_path("written"), &err) || truncate(path, 0)) _exit(9);
        thread_start(&thread, read_first, (void *)(uintptr_t)f.data);
        pthread_join(thread, NULL);
        _exit(8);
    }
    close(pipes[1]);
    size_t length = 0;
    for (ssize_t n; length + 1 < sizeof said && (n = read(pipes[0], said + length, sizeof said - 1 - length)) > 0;)
        length += (size_t)n;
    close(pipes[0]);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 1);
    CHECK(strstr(said, "error: cannot read ") && strstr(said, "/cut?here any more"));
    CHECK(!file_exists(sample_path("written")) && !file_exists(sample_path("written.partial")));
    free(path);
}

/* Files under names that the program makes itself do not follow a symbolic link, and leave it where it is. */
static void test_own_names(void) {
    Error err;
    AtomicFile a;
    struct stat s;
    char *target = xstrdup(sample_path("precious"));
    write_bytes(target, "precious", 8);
    CHECK(symlink(target, sample_path("atomic.partial")) == 0);
    CHECK_ERROR(atomic_open(&a, sample_path("atomic"), &err), err, "atomic.partial: it is a symbolic link");
    CHECK(unlink(sample_path("atomic.partial")) == 0 && mkfifo(sample_path("atomic.partial"), 0600) == 0);
    CHECK_ERROR(atomic_open(&a, sample_path("atomic"), &err), err, "atomic.partial: it is not a regular file");
    CHECK(unlink(sample_path("atomic.partial")) == 0);
    CHECK_OK(make_folder(sample_path("locked"), &err), err);
    CHECK(symlink(target, sample_path("locked/.lock")) == 0);
    CHECK(folder_lock(sample_path("locked"), &err) < 0 && strstr(err.text, "locked/.lock: it is a symbolic link"));
    CHECK(lstat(sample_path("locked/.lock"), &s) == 0 && S_ISLNK(s.st_mode));
    CHECK(stat(target, &s) == 0 && s.st_size == 8);
    free(target);
}

/* A process that ends leaves none of its partial files, however many it was writing. */
static void test_many_partial(void) {
    enum { MANY = 40 };
    int status = 0;
    fflush(stdout);
    const pid_t child = fork();
    for (int i = 0; i < MANY && child >= 0; i++) {
        char *path = format_string("%s-%d", sample_path("many"), i), *partial = format_string("%s.partial", path);
        static AtomicFile files[MANY];
        Error err;
        if (child == 0 && (atomic_open(&files[i], path, &err) || !file_exists(partial))) _exit(9);
        if (child == 0 && i == MANY - 1) files_abandon(), _exit(0);
        if (child > 0 && i == 0) CHECK(waitpid(child, &status, 0) == child && status == 0);
        if (child > 0) CHECK(!file_exists(partial) && !file_exists(path));
        free(path);
        free(partial);
    }
}

static void test_atomic(void) {
    Error err;
    AtomicFile a, b;
    size_t size;
    const char *path = sample_path("atomic");
    CHECK_OK(atomic_open(&a, path, &err), err);
    CHECK_OK(atomic_write(&a, "first", 5, &err), err);
    CHECK(!file_exists(path));
    CHECK_ERROR(atomic_open(&b, path, &err), err, "another process is writing it");
    CHECK_OK(atomic_commit(&a, &err), err);
    CHECK(file_exists(path) && !file_exists(sample_path("atomic.partial")));
    CHECK_OK(atomic_open(&a, path, &err), err);
    CHECK_OK(atomic_write(&a, "second", 6, &err), err);
    atomic_abandon(&a);
    uint8_t *bytes = read_bytes(path, &size);
    CHECK(size == 5 && !memcmp(bytes, "first", 5) && !file_exists(sample_path("atomic.partial")));
    free(bytes);
    CHECK_ERROR(atomic_open(&a, samples_folder, &err), err, "it is a folder");
    CHECK_ERROR(atomic_open(&a, sample_path("no/such/folder"), &err), err, "No such file");
    CHECK_OK(atomic_open(&a, "/dev/full", &err), err);
    CHECK_OK(atomic_write(&a, "x", 1, &err), err);
    CHECK_ERROR(atomic_commit(&a, &err), err, "cannot write /dev/full: No space left on device");
    CHECK_ERROR(atomic_write(&a, "x", 1, &err), err, "after an earlier error");
    char *link_path = xstrdup(sample_path("link"));
    CHECK(symlink(path, link_path) == 0);
    CHECK_OK(atomic_open(&a, link_path, &err), err);
    CHECK_OK(atomic_write(&a, "third!", 6, &err), err);
    CHECK_OK(atomic_commit(&a, &err), err);
    struct stat s;
    CHECK(lstat(link_path, &s) == 0 && S_ISLNK(s.st_mode) && stat(path, &s) == 0 && s.st_size == 6);
    free(link_path);
}

/* A disk that fills up: the limit on file sizes stands in for it. */
static void test_atomic_full(void) {
    Error err;
    AtomicFile a;
    struct rlimit before, small;
    const char *path = sample_path("atomic");
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    small = before;
    small.rlim_cur = 4096;
    setrlimit(RLIMIT_FSIZE, &small);
    char block[65536] = {0};
    CHECK_OK(atomic_open(&a, path, &err), err);
    CHECK_ERROR(atomic_write(&a, block, sizeof block, &err), err, "the previous ");
    CHECK(strstr(err.text, "is unchanged") != NULL && !file_exists(sample_path("atomic.partial")));
    CHECK_OK(atomic_open(&a, path, &err), err);
    CHECK(fwrite(block, 1, sizeof block, a.f) < sizeof block);  // as a caller's fprintf that is not checked
    setrlimit(RLIMIT_FSIZE, &before);
    CHECK_ERROR(atomic_commit(&a, &err), err, "is unchanged");
    CHECK(!file_exists(sample_path("atomic.partial")));
    size_t size;
    free(read_bytes(path, &size));
    CHECK(size == 6);
}

static void test_folders(void) {
    Error err;
    struct stat s;
    CHECK_OK(make_folder(sample_path("a/b/c"), &err), err);
    CHECK(stat(sample_path("a/b/c"), &s) == 0 && S_ISDIR(s.st_mode));
    CHECK_OK(make_folder(sample_path("a/b/c/"), &err), err);
    CHECK_ERROR(make_folder(sample_path("three/x"), &err), err, "a file of that name is in the way");
    CHECK_ERROR(make_folder("", &err), err, "its name is empty");
    int lock = folder_lock(sample_path("a"), &err);
    CHECK(lock >= 0);
    char part[64];
    snprintf(part, sizeof part, "another run (process %ld)", (long)getpid());
    int second = folder_lock(sample_path("a"), &err);
    CHECK(second < 0 && strstr(err.text, part));
    close(lock);
    lock = folder_lock(sample_path("a"), &err);
    CHECK(lock >= 0);
    close(lock);
    CHECK(folder_lock(sample_path("none"), &err) < 0);
}

/* ---- JSON ---- */

static const char *const good_json[] = {"null",
                                        " [ ] ",
                                        "{}",
                                        "[1,-2.5e3,0,\"a\\u00e9\\n\\ud83d\\ude00\",true,false,null]",
                                        "{\"a\":{\"b\":[{}]}}",
                                        "-0.0",
                                        "1e-300",
                                        "\"\xc3\xa9\"",
                                        "9223372036854775807"};
static const char *const bad_json[] = {"",
                                       " ",
                                       "nul",
                                       "[1,]",
                                       "{,}",
                                       "{\"a\"}",
                                       "{\"a\":1,\"a\":2}",
                                       "01",
                                       "1.",
                                       ".5",
                                       "+1",
                                       "1e",
                                       "1e999",
                                       "[1 2]",
                                       "\"\\x\"",
                                       "\"\\ud800\"",
                                       "\"\\udc00\"",
                                       "\"\\ud800\\u0041\"",
                                       "\"\\u0000\"",
                                       "\"\n\"",
                                       "\"\xff\"",
                                       "\"\xc0\x80\"",
                                       "\"\xed\xa0\x80\"",
                                       "\"abc",
                                       "{}x",
                                       "[",
                                       "{\"a\":",
                                       "'a'",
                                       "NaN",
                                       "\"\\u12\"",
                                       "-",
                                       "[1}"};

static void test_json_read(void) {
    Error err;
    Json j;
    for (size_t i = 0; i < sizeof good_json / sizeof *good_json; i++) {
        CHECK_OK(json_parse(&j, good_json[i], strlen(good_json[i]), "a test", &err), err);
        json_free(&j);
    }
    for (size_t i = 0; i < sizeof bad_json / sizeof *bad_json; i++)
        CHECK_ERROR(json_parse(&j, bad_json[i], strlen(bad_json[i]), "a test", &err), err, "cannot read a test: ");
    char deep[200];
    memset(deep, '[', 100);
    memset(deep + 100, ']', 100);
    CHECK_ERROR(json_parse(&j, deep, 200, "a test", &err), err, "nested");
    CHECK_OK(json_parse(&j, deep + 40, 120, "a test", &err), err);
    json_free(&j);
    CHECK_OK(json_parse(&j, good_json[3], strlen(good_json[3]), "a test", &err), err);
    const JsonValue *v = j.values;
    CHECK(v[0].type == JSON_ARRAY && v[0].count == 7 && v[1].is_integer && v[1].integer == 1);
    CHECK(!v[2].is_integer && v[2].number == -2500 && !strcmp(v[4].string, "a\xc3\xa9\n\xf0\x9f\x98\x80"));
    CHECK(v[5].type == JSON_BOOL && v[5].boolean && !v[6].boolean && v[7].type == JSON_NULL && v[7].next == -1);
    json_free(&j);
    CHECK_OK(json_parse(&j, "{\"x\":1,\"y\":{\"z\":9223372036854775808}}", 37, "a test", &err), err);
    CHECK(json_find(&j, 0, "x") == 1 && json_find(&j, 0, "z") == -1);
    CHECK(!j.values[json_find(&j, json_find(&j, 0, "y"), "z")].is_integer);
    json_free(&j);
}

static void test_json_write(void) {
    JsonWriter w;
    Error err;
    Json j;
    memset(&w, 0, sizeof w);
    Random random;
    random_seed(&random, 1);
    double numbers[64];
    for (int i = 0; i < 64; i++) {
        uint64_t bits = random_u64(&random);
        memcpy(&numbers[i], &bits, 8);
        if (!isfinite(numbers[i])) numbers[i] = 0.1;
    }
    json_begin_object(&w);
    json_key(&w, "text\"\n");
    json_string(&w, "tab\t \x01 \xff \xc3\xa9 \\");
    json_key(&w, "nan");
    json_number(&w, NAN);
    json_key(&w, "empty");
    json_begin_array(&w);
    json_end_array(&w);
    json_key(&w, "float");
    json_float(&w, 0.1f);
    json_key(&w, "n");
    json_begin_array(&w);
    for (int i = 0; i < 64; i++) json_number(&w, numbers[i]);
    json_integer(&w, INT64_MIN);
    json_bool(&w, true);
    json_null(&w);
    json_end_array(&w);
    json_end_object(&w);
    CHECK_OK(json_parse(&j, w.text, w.length, "a test", &err), err);
    int text = json_find(&j, 0, "text\"\n"), n = json_find(&j, 0, "n");
    CHECK(text > 0 && !strcmp(j.values[text].string, "tab\t \x01 \xef\xbf\xbd \xc3\xa9 \\"));
    CHECK(j.values[json_find(&j, 0, "nan")].type == JSON_NULL && strstr(w.text, "\"float\":0.1,"));
    int v = j.values[n].child, exact = 0;
    for (int i = 0; i < 64; i++, v = j.values[v].next) exact += j.values[v].number == numbers[i];
    CHECK(exact == 64 && j.values[v].integer == INT64_MIN && j.values[n].count == 67);
    json_free(&j);
    json_writer_free(&w);
}

/* ---- safetensors ---- */

/* Writes a file with this header and `bytes` bytes of data, and opens it. */
static int open_header(const char *header, size_t bytes, SafeTensors *st, Error *err) {
    Bytes b = {NULL, 0};
    uint8_t length[8], data[256] = {0};
    put_u64(length, strlen(header));
    bytes_add(&b, length, 8);
    bytes_add(&b, header, strlen(header));
    bytes_add(&b, data, bytes);
    write_bytes(sample_path("header.safetensors"), b.data, b.size);
    free(b.data);
    return safetensors_open(st, sample_path("header.safetensors"), err);
}

static void test_safetensors_refused(void) {
    static const struct {
        const char *header, *part;
        size_t bytes;
    } cases[] = {
        {"[]             ", "not a JSON object", 0},
        {"{\"a\":1}      ", "not a JSON object", 0},
        {"{\"a\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]}}", "dtype F64", 8},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,8]}}", "dtype (none)", 8},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1],\"data_offsets\":[0,1]}}", "0 to 4 numbers", 1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}", "whole number", 1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1.5],\"data_offsets\":[0,1]}}", "whole number", 1},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,1]}}", "too large", 1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2]}}", "no data_offsets", 2},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", "outside", 1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[2,0]}}", "outside", 4},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,2]}}", "needs 3 bytes", 2},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],"
         "\"data_offsets\":[1,3]}}",
         "overlap", 3},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[1],"
         "\"data_offsets\":[3,4]}}",
         "hole", 4},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", "last 1 bytes", 3},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],"
         "\"data_offsets\":[1,2]}}",
         "twice", 2},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", "not at a multiple of 4", 4},
        {"{\"__metadata__\":{\"a\":1}}", "is not a string", 0},
        {"{\"__metadata__\":[]}", "not a JSON object", 0},
        {"{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", "tensor name", 1},
    };
    Error err;
    SafeTensors st;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        err.text[0] = '\0';
        bool refused = open_header(cases[i].header, cases[i].bytes, &st, &err) != 0;
        check(refused && strstr(err.text, cases[i].part), __FILE__, __LINE__, cases[i].part, err.text);
    }
    write_bytes(sample_path("short"), "\5\0\0", 3);
    CHECK_ERROR(safetensors_open(&st, sample_path("short"), &err), err, "too few");
    write_bytes(sample_path("long"), "\377\377\377\377\0\0\0\0{}  ", 12);
    CHECK_ERROR(safetensors_open(&st, sample_path("long"), &err), err, "header of 4294967295 bytes");
    CHECK_OK(open_header("{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, &st, &err), err);
    CHECK(st.count == 1 && st.tensors[0].bytes == 0);
    safetensors_close(&st);
}

static void test_safetensors_many(void) {
    enum { N = 3000 };
    SafeTensorSpec *specs = (SafeTensorSpec *)xcalloc(N, sizeof *specs);
    const char *keys[] = {"format", "odd \" \xc3\xa9"}, *values[] = {"tikz.c/1", "line\nbreak"};
    Error err;
    SafeTensorsWriter w;
    SafeTensors st;
    const char *path = sample_path("many.safetensors");
    size_t total = 0;
    for (int i = 0; i < N; i++) {  // all types and odd sizes mixed: the writer must align every tensor
        snprintf(specs[i].name, sizeof specs[i].name, "layers.%d.weight", i);
        specs[i].dtype = (Dtype)(i % DT_COUNT);
        specs[i].ndim = i % 5;
        for (int d = 0; d < specs[i].ndim; d++) specs[i].shape[d] = d == 0 ? i % 7 : 1 + d % 3;
        size_t bytes = 0;
        safetensors_bytes(specs[i].shape, specs[i].ndim, specs[i].dtype, &bytes);
        total += bytes;
    }
    uint8_t *data = (uint8_t *)xmalloc(total);
    for (size_t i = 0; i < total; i++) data[i] = (uint8_t)(i * 37 >> 3);
    CHECK_OK(safetensors_write_begin(&w, path, specs, N, keys, values, 2, &err), err);
    for (size_t at = 0; at < total; at += 1000)
        if (safetensors_write_data(&w, data + at, total - at < 1000 ? total - at : 1000, &err) != 0) CHECK(false);
    CHECK_OK(safetensors_write_end(&w, &err), err);
    CHECK_OK(safetensors_open(&st, path, &err), err);
    CHECK(st.count == N && st.metadata_count == 2 && !strcmp(safetensors_metadata(&st, keys[1]), values[1]));
    CHECK(safetensors_metadata(&st, "none") == NULL && safetensors_find(&st, "none") == NULL);
    size_t at = 0;
    int same = 0;
    for (int i = 0; i < N; i++) {
        const SafeTensor *t = safetensors_find(&st, specs[i].name);
        if (!t) continue;
        same += t->dtype == specs[i].dtype && t->ndim == specs[i].ndim &&
                !memcmp(t->shape, specs[i].shape, sizeof t->shape) && !memcmp(t->data, data + at, t->bytes);
        at += t->bytes;
    }
    CHECK(same == N && at == total);
    uint64_t header = dtype_size(DT_U8) ? 0 : 1;
    memcpy(&header, st.file.data, 8);
    CHECK((8 + header) % 64 == 0);
    safetensors_close(&st);
    CHECK_OK(safetensors_write_begin(&w, path, specs, N, NULL, NULL, 0, &err), err);
    CHECK_OK(safetensors_write_data(&w, data, total - 1, &err), err);
    CHECK_ERROR(safetensors_write_end(&w, &err), err, "of its");
    CHECK_OK(safetensors_open(&st, path, &err), err);  // the old file is still there
    safetensors_close(&st);
    CHECK_OK(safetensors_write_begin(&w, path, specs, N, NULL, NULL, 0, &err), err);
    CHECK_OK(safetensors_write_data(&w, data, total, &err), err);
    CHECK_ERROR(safetensors_write_data(&w, data, 1, &err), err, "more than its tensors need");
    safetensors_write_abandon(&w);
    free(data);
    free(specs);
}

/* ---- random ---- */

static void test_random(void) {
    Random r = {{1, 2, 3, 4}};
    const uint64_t expected[] = {11520, 0, 1509978240, 1215971899390074240};  // of the authors' C code for this state
    for (int i = 0; i < 4; i++) CHECK(random_u64(&r) == expected[i]);
    uint64_t x = 1234567;
    CHECK(random_splitmix(&x) == 6457827717110365317u && random_splitmix(&x) == 3203168211198807973u);
    random_seed(&r, 7);
    double sum = 0, square = 0, low = 1, high = 0;
    for (int i = 0; i < 100000; i++) {
        float z = random_normal(&r);
        double u = random_uniform(&r);
        sum += z;
        square += (double)z * z;
        low = u < low ? u : low;
        high = u > high ? u : high;
    }
    CHECK(fabs(sum / 1e5) < 0.015 && fabs(square / 1e5 - 1) < 0.02 && low >= 0 && low < 1e-3 && high < 1 &&
          high > 0.999);
    int counts[6] = {0};
    for (int i = 0; i < 60000; i++) counts[random_below(&r, 6)]++;
    for (int i = 0; i < 6; i++) CHECK(abs(counts[i] - 10000) < 500);
    CHECK(random_below(&r, 1) == 0 && random_below(&r, 0) == 0);
    uint32_t a[100], seen = 0;
    for (uint32_t i = 0; i < 100; i++) a[i] = i;
    random_shuffle(&r, a, 100);
    for (int i = 0; i < 100; i++) seen += a[i];
    CHECK(seen == 4950 && !(a[0] == 0 && a[1] == 1 && a[2] == 2));
}

/* ---- options ---- */

static struct {
    int64_t steps;
    double rate;
    bool shuffle, verbose;
    const char *out;
    StringList models;
} opt;

static const Option table[] = {
    {NULL, 0, OPT_FLAG, NULL, NULL, "Training", 0, 0},
    {"steps", 's', OPT_INT, &opt.steps, "N", "optimizer steps", 1, 1000000},
    {"lr", 0, OPT_FLOAT, &opt.rate, "X", "learning rate", 0, 10},
    {"shuffle", 0, OPT_FLAG, &opt.shuffle, NULL, "shuffle the data", 0, 0},
    {"verbose", 'v', OPT_FLAG, &opt.verbose, NULL, "say more", 0, 0},
    {"out", 'o', OPT_STRING, &opt.out, "DIR", "where to write", 0, 0},
    {"model", 'm', OPT_LIST, &opt.models, "FILE", "a model", 0, 0},
};
enum { TABLE = sizeof table / sizeof *table };

/* Parses in a child process: returns its exit status, -1 when it died; its output is left in `output`. The child adds
 * what options_write prints and the positional arguments. */
static int parse(const char *arguments, char *output, size_t size) {
    char copy[1024], *argv[32] = {(char *)"test"};
    int argc = 1;
    snprintf(copy, sizeof copy, "%s", arguments);
    for (char *word = strtok(copy, " "); word && argc < 31; word = strtok(NULL, " ")) argv[argc++] = word;
    int ends[2], status = 0;
    fflush(stdout);
    if (pipe(ends) != 0) die("no pipe");
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        close(ends[0]);
        close(ends[1]);
        StringList positional = {NULL, 0};
        options_parse(table, TABLE, argc, argv, "[options] FILE...", &positional);
        options_write(table, TABLE, stdout, NULL, 0);
        for (int i = 0; i < positional.count; i++) printf("positional %s\n", positional.items[i]);
        printf("given%s%s%s\n", options_given(&opt.steps) ? " steps" : "", options_given(&table[2]) ? " lr" : "",
               options_given(&opt.models) ? " model" : "");
        free(positional.items);
        fflush(stdout);
        _exit(0);
    }
    close(ends[1]);
    size_t at = 0;
    ssize_t n;
    while ((n = read(ends[0], output + at, size - 1 - at)) > 0) at += (size_t)n;
    output[at] = '\0';
    close(ends[0]);
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void expect(const char *arguments, int status, const char *part) {
    char output[8192];
    int got = parse(arguments, output, sizeof output);
    char *what = format_string("'%s' gives status %d and '%s' (status was %d)", arguments, status, part, got);
    check(got == status && strstr(output, part), __FILE__, __LINE__, what, output);
    free(what);
}

static void test_options(void) {
    opt.steps = 100;
    opt.rate = 0.001;
    opt.shuffle = true;
    opt.out = "runs";
    expect("", 0, "steps = 100\nlr = 0.001\nshuffle = true\nverbose = false\nout = runs\n# model =\ngiven\n");
    expect(
        "--steps 5 --lr=2e-3 --no-shuffle -v -o x y", 0,
        "steps = 5\nlr = 0.002\nshuffle = false\nverbose = true\nout = x\n# model =\npositional y\ngiven steps lr\n");
    expect("-vs7 --model a -m b -- --lr -x", 0, "model = a\nmodel = b\npositional --lr\npositional -x\n");
    expect("--shuffle=no -oz - --out=", 0, "shuffle = false\nverbose = false\nout = \"\"\n# model =\npositional -\n");
    expect("--lr -1", 2, "--lr must be a number from 0 to 10, not -1 (try --help)");
    expect("--steps", 2, "--steps needs a value");
    expect("--steps --lr 1", 2, "--steps needs a value, but --lr follows");
    expect("--steps 5x", 2, "--steps needs a whole number, not '5x'");
    expect("--steps 1.5", 2, "--steps needs a whole number");
    expect("--steps=", 2, "--steps needs a whole number, not ''");
    expect("--steps 99999999999999999999", 2, "too large");
    expect("--steps 0", 2, "--steps must be a number from 1 to 1000000, not 0");
    expect("--lr nan", 2, "--lr needs a number, not 'nan'");
    expect("--lr inf", 2, "--lr needs a number");
    expect("--stpes 5", 2, "test: error: there is no option --stpes; did you mean --steps? (try --help)");
    expect("--verb", 2, "did you mean --verbose?");
    expect("--xyzzy 5", 2, "there is no option --xyzzy (try --help)");
    expect("-q", 2, "there is no option -q");
    expect("--no-steps", 2, "--steps is not a flag");
    expect("--no-shuffle=1", 2, "takes no value");
    expect("--shuffle=maybe", 2, "--shuffle needs true or false, not 'maybe'");
    expect("--help", 0, "usage: test [options] FILE...\n\nTraining:\n  -s, --steps N");
    expect("-h", 0, "(default: 0.001)");
}

static void test_options_config(void) {
    char arguments[600];
    const char *text =
        "# a comment\n\nsteps = 7 # seven\n  lr=0.5\r\nmodel = c\nmodel = \"d # \\\"e\\\"\"\nshuffle=off\n";
    write_bytes(sample_path("good.cfg"), text, strlen(text));
    snprintf(arguments, sizeof arguments, "--config %s", sample_path("good.cfg"));
    expect(arguments, 0,
           "steps = 7\nlr = 0.5\nshuffle = false\nverbose = false\nout = runs\nmodel = c\n"
           "model = \"d # \\\"e\\\"\"\ngiven steps lr model\n");
    snprintf(arguments, sizeof arguments, "--steps 9 --model z --config=%s", sample_path("good.cfg"));
    expect(arguments, 0, "steps = 9\nlr = 0.5\nshuffle = false\nverbose = false\nout = runs\nmodel = z\n");
    static const struct {
        const char *text, *part;
    } bad[] = {{"steps = 1\nstesp = 2\n", "bad.cfg, line 2: there is no option 'stesp'; did you mean --steps?"},
               {"steps\n", "line 1: 'key = value' was expected, not 'steps'"},
               {"steps = x\n", "line 1: steps needs a whole number, not 'x'"},
               {"\nsteps = 0", "line 2: steps must be a number from 1"},
               {"out = \"x\n", "the quoted value of out does not end"},
               {"= 5\n", "there is no option ''"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_bytes(sample_path("bad.cfg"), bad[i].text, strlen(bad[i].text));
        snprintf(arguments, sizeof arguments, "--config %s", sample_path("bad.cfg"));
        expect(arguments, 2, bad[i].part);
    }
    snprintf(arguments, sizeof arguments, "--config %s", sample_path("none.cfg"));
    expect(arguments, 2, "cannot read the config file");
    CHECK(mkfifo(sample_path("pipe.cfg"), 0600) == 0);
    snprintf(arguments, sizeof arguments, "--config %s", sample_path("pipe.cfg"));
    expect(arguments, 2, "pipe.cfg: it is not a regular file");
    expect("--config /dev/zero", 2, "/dev/zero: it is not a regular file");
    write_bytes(sample_path("mark.cfg"), "\xef\xbb\xbfsteps = 7\n", 13);
    snprintf(arguments, sizeof arguments, "--config %s", sample_path("mark.cfg"));
    expect(arguments, 0, "steps = 7\n");
    expect("--config", 2, "--config needs a value");
}

/* What options_write writes gives the same values when it is read. */
static void test_options_write(void) {
    static const char *const strings[] = {"plain",     "",      " space ", "quote\"", "back\\slash",
                                          "new\nline", "a # b", "\"",      "#"};
    Error err;
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++) {
        opt.out = strings[i];
        opt.rate = 0.1 + (double)i / 3;
        FILE *f = fopen(sample_path("written.cfg"), "wb");
        options_write(table, TABLE, f, NULL, 0);
        fclose(f);
        double rate = opt.rate;
        opt.out = NULL;
        opt.rate = 0;
        CHECK_OK(options_config(table, TABLE, sample_path("written.cfg"), &err), err);
        CHECK(opt.out && !strcmp(opt.out, strings[i]) && opt.rate == rate);
    }
}

/* ---- images ---- */

static void test_crc(void) {
    CHECK(crc32_bytes(0, "123456789", 9) == 0xcbf43926u && crc32_bytes(0, "", 0) == 0);
    CHECK(crc32_bytes(crc32_bytes(0, "1234", 4), "56789", 5) == 0xcbf43926u);
}

static void test_image_refused(void) {
    Error err;
    Image p;
    Bytes png = make_png(20, 10, 3, 1), jpeg = from_hex(jpeg_turned), grey = from_hex(jpeg_progressive);
    CHECK_OK(image_decode(&p, png.data, png.size, "a.png", &err), err);
    CHECK(p.width == 20 && p.height == 10);
    image_free(&p);
    CHECK_OK(image_decode(&p, jpeg.data, jpeg.size, "a.jpg", &err), err);
    CHECK(p.width == 14 && p.height == 20);  // turned by its EXIF orientation
    image_free(&p);
    CHECK_OK(image_decode(&p, grey.data, grey.size, "b.jpg", &err), err);
    CHECK(p.width == 20 && p.height == 14 && p.rgb[0] == p.rgb[1] && p.rgb[0] < 60 && p.rgb[19 * 3] > 220);
    image_free(&p);
    CHECK_ERROR(image_decode(&p, (const uint8_t *)"a text..", 8, "a.txt", &err), err,
                "neither PNG, JPEG, WebP, GIF, BMP nor TIFF");
    CHECK_ERROR(image_decode(&p, png.data, 0, "a.png", &err), err, "neither PNG, JPEG, WebP, GIF, BMP nor TIFF");
    CHECK_ERROR(image_decode(&p, png.data, 20, "a.png", &err), err, "a.png");
    CHECK_ERROR(image_decode(&p, png.data, png.size - 5, "a.png", &err), err, "cut off");
    CHECK_ERROR(image_decode(&p, jpeg.data, jpeg.size - 2, "a.jpg", &err), err, "cut off");
    png.data[png.size - 20] ^= 1;
    CHECK_ERROR(image_decode(&p, png.data, png.size, "a.png", &err), err, "wrong CRC");
    CHECK_ERROR(image_load(&p, sample_path("none.png"), &err), err, "No such file");
    static const uint32_t huge[][2] = {{20001, 1}, {20000, 20000}, {1, 30000}, {10001, 10000}};
    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < 4; k++) {
            png.data[16 + k] = (uint8_t)(huge[i][0] >> (24 - 8 * k));
            png.data[20 + k] = (uint8_t)(huge[i][1] >> (24 - 8 * k));
        }
        CHECK_ERROR(image_decode(&p, png.data, png.size, "huge.png", &err), err, "make it smaller");
    }
    free(png.data);
    free(jpeg.data);
    free(grey.data);
}

/* The place of the last segment with this marker. */
static size_t jpeg_segment(const Bytes *jpeg, uint8_t marker) {
    size_t at = jpeg->size - 2;
    while (at > 0 && (jpeg->data[at] != 0xff || jpeg->data[at + 1] != marker)) at--;
    CHECK(at > 0);
    return at;
}

/* Kinds of files that no decoder reads are named, with what to do. */
static void test_image_unread(void) {
    static const struct {
        const char *bytes, *part;
    } cases[] = {{"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
                  "a Git LFS pointer, not the image; run git lfs pull"},
                 {"%PDF-1.5\n", "pdftoppm -r 150 -png -singlefile"},
                 {"<svg xmlns='http://www.w3.org/2000/svg'/>", "rsvg-convert -w 800"},
                 {"<?xml version='1.0'?>\n<!-- -->\n<svg/>", "rsvg-convert -w 800"},
                 {"....ftypheic....", "heif-convert IN.heic OUT.png"},
                 {"....ftypmif1....", "heif-convert IN.heic OUT.png"},
                 {"....ftypavif....", "heif-convert IN.avif OUT.png"},
                 {"%!PS-Adobe-3.0 EPSF-3.0", "gs -q -dSAFER"},
                 {"RIFF....WAVEfmt ", "neither PNG, JPEG, WebP, GIF, BMP nor TIFF"}};
    Error err;
    Image p;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const uint8_t *bytes = (const uint8_t *)cases[i].bytes;
        const bool refused = image_decode(&p, bytes, strlen(cases[i].bytes), "a", &err) != 0;
        check(refused && strstr(err.text, cases[i].part), __FILE__, __LINE__, cases[i].part, err.text);
    }
    CHECK(mkfifo(sample_path("pipe.png"), 0600) == 0);
    CHECK_ERROR(image_load(&p, sample_path("pipe.png"), &err), err, "not a regular file");
    CHECK_ERROR(image_load(&p, "/dev/zero", &err), err, "not a regular file");
    CHECK_ERROR(image_load(&p, "-", &err), err, "No such file");
}

/* A PNG whose data inflate to far more than its pixels costs neither time nor memory. */
static void test_png_bomb(void) {
    Error err;
    Image p;
    Bytes png = make_png(10, 10, 3, 1), bomb = {NULL, 0};
    const size_t more = 200 << 20;
    uLongf packed = compressBound(more);
    uint8_t *zeros = (uint8_t *)xcalloc(more, 1), *data = (uint8_t *)xmalloc(packed), word[4];
    CHECK(compress2(data, &packed, zeros, more, 1) == Z_OK);
    const uint8_t *header_end = memmem(png.data, png.size, "IDAT", 4);
    bytes_add(&bomb, png.data, (size_t)(header_end - png.data) - 4);
    for (int i = 0; i < 4; i++) word[i] = (uint8_t)(packed >> (24 - 8 * i));
    bytes_add(&bomb, word, 4);
    bytes_add(&bomb, "IDAT", 4);
    bytes_add(&bomb, data, packed);
    const uint32_t crc = crc32_bytes(crc32_bytes(0, "IDAT", 4), data, packed);
    for (int i = 0; i < 4; i++) word[i] = (uint8_t)(crc >> (24 - 8 * i));
    bytes_add(&bomb, word, 4);
    bytes_add(&bomb, png.data + png.size - 12, 12);  // IEND
    free(zeros);
    free(data);
    struct rlimit before;
    getrlimit(RLIMIT_DATA, &before);
#ifndef __SANITIZE_ADDRESS__
    struct rlimit small = before;
    small.rlim_cur = 100 << 20;
    setrlimit(RLIMIT_DATA, &small);
#endif
    CHECK_OK(image_decode(&p, bomb.data, bomb.size, "bomb.png", &err), err);
    setrlimit(RLIMIT_DATA, &before);
    CHECK(p.width == 10 && p.height == 10 && p.rgb[0] == 0);
    image_free(&p);
    free(png.data);
    free(bomb.data);
}

/* Every other format: the samples are read, cut ones are refused, and a size beyond the limits is refused before
 * anything is allocated. Without its library a format is refused with the name of the package. */
static void test_formats(void) {
    static const struct {
        const char *hex, *package;
        bool turned;
    } samples[] = {{png_texts, NULL, true},       {bmp_rle4, NULL, false},   {bmp_fields, NULL, false},
#ifdef WITH_GIF
                   {gif_interlaced, NULL, false}, {gif_part, NULL, false},
#else
                   {gif_part, "libgif-dev", false},
#endif
#ifdef WITH_WEBP
                   {webp_lossless, NULL, false},  {webp_turned, NULL, true}, {webp_alpha, NULL, false},
#else
                   {webp_alpha, "libwebp-dev", false},
#endif
#ifdef WITH_TIFF
                   {tiff_turned, NULL, true},     {tiff_tiles, NULL, false}, {tiff_fax, NULL, false},
                   {tiff_jpeg, NULL, false}};
#else
                   {tiff_fax, "libtiff-dev", false}};
#endif
    Error err;
    Image p;
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        Bytes b = from_hex(samples[i].hex);
        if (samples[i].package) {
            const bool refused = image_decode(&p, b.data, b.size, "a.x", &err) != 0;
            check(refused && strstr(err.text, samples[i].package), __FILE__, __LINE__, samples[i].package, err.text);
            free(b.data);
            continue;
        }
        CHECK_OK(image_decode(&p, b.data, b.size, "a.x", &err), err);
        CHECK(p.width == (samples[i].turned ? 14 : 20) && p.height == (samples[i].turned ? 20 : 14));
        CHECK(image_darkest(p.rgb, 3 * 20 * 14) < 255);
        image_free(&p);
        for (size_t n = 16; n < b.size; n += 1 + n / 8) {
            uint8_t *exact = (uint8_t *)xmalloc(n);  // no slack behind it: a read beyond the end is noticed
            memcpy(exact, b.data, n);
            err.text[0] = '\0';
            const bool read = image_decode(&p, exact, n, "a.x", &err) == 0;
            CHECK(read ? n > b.size * 2 / 3 : strstr(err.text, "cannot read the image a.x: ") != NULL);
            image_free(&p);
            free(exact);
        }
        free(b.data);
    }
}

/* Sizes beyond the limits are refused before anything of that size is allocated. */
static void test_formats_huge(void) {
    static const struct {
        const char *hex;
        int at, n;  // where the size is, and the bytes to put there
        const char *bytes;
    } sizes[] = {
        {bmp_rle4, 18, 4, "\x21\x4e\0\0"},
        {bmp_rle4, 22, 4, "\0\0\0\x80"},
#ifdef WITH_GIF
        {gif_part, 6, 4, "\x10\x27\x11\x27"},
#endif
#ifdef WITH_WEBP
        {webp_lossless, 21, 4, "\xff\xff\xff\x0f"},
#endif
    };
    Error err;
    Image p;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        Bytes b = from_hex(sizes[i].hex);
        memcpy(b.data + sizes[i].at, sizes[i].bytes, (size_t)sizes[i].n);
        CHECK_ERROR(image_decode(&p, b.data, b.size, "huge.x", &err), err, "make it smaller");
        free(b.data);
    }
}

/* A limit of the caller's counts for the size that the decoder finds, not only for what a header says. */
static void test_image_limited(void) {
    static const char *const samples[] = {
        png_texts,     jpeg_turned, bmp_rle4,
#ifdef WITH_GIF
        gif_part,
#endif
#ifdef WITH_WEBP
        webp_lossless,
#endif
#ifdef WITH_TIFF
        tiff_tiles,
#endif
    };
    Error err;
    Image p;
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        Bytes b = from_hex(samples[i]);
        CHECK(image_decode_limited(&p, b.data, b.size, 20 * 14 - 1, "a.x", &err) == IMAGE_TOO_LARGE && !p.rgb);
        CHECK(strstr(err.text, "at most 20000 a side and 0.000279 million in all"));
        CHECK_OK(image_decode_limited(&p, b.data, b.size, 20 * 14, "a.x", &err), err);
        image_free(&p);
        free(b.data);
    }
#ifdef WITH_GIF
    static const uint8_t grows[] = "GIF89a\1\0\1\0\0\0\0,\0\0\0\0\x10\x27\x10\x27\0\2";  // a frame beyond the screen
    CHECK(image_decode_limited(&p, grows, sizeof grows, 25000000, "a.gif", &err) == IMAGE_TOO_LARGE);
    CHECK(strstr(err.text, "it has 10000 x 10000 pixels; at most 20000 a side and 25 million in all"));
#endif
}

/* Many jumps to the right in one row: the column stays a number. */
static void test_bmp_jumps(void) {
    Error err;
    Image p;
    const size_t jumps = (size_t)INT32_MAX / 255 + 2;
    Bytes b = from_hex(bmp_rle4), many = {NULL, 0};
    const size_t begin = image_integer(b.data + 10, 4, false);
    many.size = begin + 4 * jumps;
    many.data = (uint8_t *)xmalloc(many.size);
    memcpy(many.data, b.data, begin);
    for (size_t i = 0; i < jumps; i++) memcpy(many.data + begin + 4 * i, "\0\2\xff\0", 4);
    CHECK_ERROR(image_decode(&p, many.data, many.size, "a.bmp", &err), err, "end before the image does");
    free(many.data);
    free(b.data);
}

static void test_jpeg_scans(void) {
    struct jpeg_decompress_struct d = {.image_width = 10000, .image_height = 10000};
    CHECK(jpeg_max_scans(&d) == 20);
    d.arith_code = TRUE;  // each scan may cost several times as much
    CHECK(jpeg_max_scans(&d) == 2);
    d.image_width = d.image_height = 1000;
    CHECK(jpeg_max_scans(&d) == 250);
    d.arith_code = FALSE;
    CHECK(jpeg_max_scans(&d) == 500);
}

/* What image_remark says of images that a model cannot make much of, and that the remedies it names help. */
static void test_image_remark(void) {
    enum { W = 1000, H = 600, SIZE = 32 };
    static const struct {
        int ground, margin, line, width;  // grey values; the line is a rectangle `width` pixels thick
        const char *part;
    } cases[] = {{255, 255, 0, 40, ""},
                 {255, 255, 255, 40, "is blank"},
                 {255, 255, 0, 1, "little is left of its lines"},
                 {20, 20, 255, 40, "try --invert"},
                 {255, 254, 0, 40, "try --trim-near-white"},
                 {255, 230, 0, 40, ""}};
    uint8_t *rgb = (uint8_t *)xmalloc(3 * W * H), out[3 * SIZE * SIZE];
    Image p = {W, H, rgb};
    char text[256];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int y = 0; y < H; y++)
            for (int x = 0; x < W; x++) {
                const int edge_x = x < W - 1 - x ? x : W - 1 - x, edge_y = y < H - 1 - y ? y : H - 1 - y;
                const int edge = edge_x < edge_y ? edge_x : edge_y;
                const int value = edge < 100                    ? cases[i].margin
                                  : edge < 100 + cases[i].width ? cases[i].line
                                                                : cases[i].ground;
                memset(rgb + 3 * (y * W + x), value, 3);
            }
        ImageBox box = image_trim(&p, IMAGE_WHITE);
        image_prepare_box(out, &p, box, image_square(SIZE));
        const bool remark = image_remark(text, sizeof text, &p, box, out, image_square(SIZE), 0);
        check(*cases[i].part ? remark && strstr(text, cases[i].part) : !remark, __FILE__, __LINE__, cases[i].part,
              text);
        if (!strstr(text, "try")) continue;
        if (strstr(text, "invert"))
            image_invert(&p);
        else
            box = image_trim(&p, IMAGE_NEAR_WHITE);
        image_prepare_box(out, &p, box, image_square(SIZE));
        check(!image_remark(text, sizeof text, &p, box, out, image_square(SIZE), 0), __FILE__, __LINE__,
              "the remedy helps", text);
    }
    free(rgb);
}

/* Strips of black and white, which a rectangular input holds as large as fits; below a certain height the image is too small. */
static void test_remark_of_strips(void) {
    const ImageSize frame = image_size(64, 384);
    static const struct {
        int width, height;
        ImageSize frame;
        const char *part;
    } cases[] = {{10000, 100, {64, 384, 0}, "its 10000 x 100 pixels become only 384 x 4 in the model's 384 x 64"},
                 {1500, 100, {64, 384, 0}, ""},
                 {300, 8, {64, 384, 0}, ""},  // enlarged
                 {8, 60, {64, 384, 0}, ""},
                 {100, 3000, {64, 384, 0}, "become only 3 x 64"},
                 {10000, 100, {384, 384, 0}, ""},
                 {1500, 10, {64, 384, 5}, "its letters become 2.6 pixels high in the model's 64 x 384, where 5 are right"},
                 {700, 10, {64, 384, 5}, ""}};
    uint8_t *out = (uint8_t *)xmalloc(3 * 384 * 384);
    char text[256];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const ImageSize s = image_size(cases[i].height, cases[i].width);
        Image p = {s.width, s.height, (uint8_t *)xcalloc(image_size_bytes(s), 1)};
        for (size_t k = 0; k < image_size_bytes(s); k++) p.rgb[k] = k / 3 % 8 < 4 ? 0 : 255;
        const ImageBox box = image_trim(&p, IMAGE_WHITE);
        const double scale = image_prepare_box(out, &p, box, cases[i].frame).scale;
        const bool remark =
            image_remark(text, sizeof text, &p, (ImageBox){0, 0, s.width, s.height}, out, cases[i].frame, scale);
        check(*cases[i].part ? remark && strstr(text, cases[i].part) : !remark, __FILE__, __LINE__, cases[i].part,
              text);
        image_free(&p);
    }
    free(out);
    const ImageSize high = image_padded((ImageBox){0, 0, 100, 50}, frame),
                    wide = image_padded((ImageBox){0, 0, 900, 50}, frame);
    CHECK(high.width == 300 && high.height == 50 && wide.width == 900 && wide.height == 150);
}

/* Draws a stroke: n blocks of 2 x 2 pixels, `zoom` times as large. */
static void draw_blocks(Image *p, const int (*at)[2], int n, int zoom) {
    for (int i = 0; i < n; i++)
        for (int y = 0; y < 2 * zoom; y++)
            for (int x = 0; x < 2 * zoom; x++)
                memset(p->rgb + 3 * ((size_t)(zoom * at[i][1] + y) * p->width + zoom * at[i][0] + x), 0, 3);
}

/* Two letters 8 high, a bar, a dot and two delimiters 14 high, in several sizes: the letters' height is found, on grey paper,
 * too, and becomes that of the input's letters. */
static void test_letters(void) {
    static const int blocks[][2] = {{4, 6}, {4, 8}, {4, 10}, {4, 12}, {10, 6}, {12, 8}, {10, 10}, {12, 12}, {16, 12},
                                    {2, 18}, {4, 18}, {6, 18}, {8, 18}, {10, 18}, {12, 18}, {14, 18},
                                    {22, 6}, {22, 8}, {22, 10}, {22, 12}, {22, 14}, {22, 16}, {22, 18},
                                    {26, 6}, {26, 8}, {26, 10}, {26, 12}, {26, 14}, {26, 16}, {26, 18}};
    const int n = sizeof blocks / sizeof *blocks;
    uint8_t out[3 * 32 * 64], first[3 * 32 * 64], like[3 * 32 * 64];
    ImageExtent input = {0, 0};
    for (int zoom = 1; zoom <= 5; zoom += 2) {
        Image p = {40 * zoom, 30 * zoom, (uint8_t *)xmalloc(3 * 1200 * (size_t)(zoom * zoom))};
        memset(p.rgb, 255, 3 * 1200 * (size_t)(zoom * zoom));
        draw_blocks(&p, blocks, n, zoom);
        const ImageBox box = image_trim(&p, IMAGE_WHITE);
        CHECK(image_letter_height(&p, box) == 8 * zoom);
        const ImageExtent extent = image_prepare_box(out, &p, box, (ImageSize){32, 64, 8});
        if (zoom == 1) input = extent;
        image_prepare_like(like, &p, (ImageSize){32, 64, 8}, input);  // the same drawing, larger
        CHECK(!memcmp(like, out, sizeof out));
        image_prepare_like(like, &p, (ImageSize){32, 64, 8}, (ImageExtent){input.longest, 2 * input.scale});
        CHECK(like[3 * (64 * 14 + 1)] < 128 && like[3 * (64 * 14 + 2)] > 191 && memcmp(like, out, sizeof out) != 0);  // half as large, whatever its letters are
        CHECK(out[3 * (64 * 9 + 2)] < 64 && out[3 * (64 * 9 + 1)] > 191);  // at the left edge, 14 of 32 rows
        if (zoom == 1) memcpy(first, out, sizeof out);
        int most = 0;
        for (size_t i = 0; i < sizeof out; i++) most = abs(out[i] - first[i]) > most ? abs(out[i] - first[i]) : most;
        CHECK(most < 64);  // the bicubic filter blurs the edges a little
        const ImageSize least = image_area(box, (ImageSize){8, 64, 8}, zoom);  // 14 rows do not fit into 8
        CHECK(least.height == 14 * zoom && least.width == 14 * zoom * 8);
        for (size_t i = 0; i < 3600 * (size_t)(zoom * zoom); i++) p.rgb[i] = p.rgb[i] ? 150 : 0;
        CHECK(image_letter_height(&p, (ImageBox){0, 0, p.width, p.height}) == 8 * zoom);
        image_free(&p);
    }
    uint8_t pixels[3 * 30 * 4];
    Image bar = {30, 4, pixels};
    memset(pixels, 0, sizeof pixels);
    CHECK(image_letter_height(&bar, (ImageBox){0, 0, 30, 4}) == 20);
    memset(pixels, 255, sizeof pixels);
    CHECK(image_letter_height(&bar, (ImageBox){0, 0, 30, 4}) == 20);  // all of one colour, whichever it is, is a bar
}

static void test_jpeg_refused(void) {
    Error err;
    Image p;
    Bytes colour = from_hex(jpeg_turned), grey = from_hex(jpeg_progressive), scans = {NULL, 0};
    uint8_t *frame = colour.data + jpeg_segment(&colour, 0xc0);
    const uint8_t size[] = {frame[5], frame[6], frame[7], frame[8]};
    static const uint8_t huge[][4] = {{0x4e, 0x21, 0, 1}, {0, 1, 0xff, 0x00}, {0x27, 0x11, 0x27, 0x10}};
    for (int i = 0; i < 3; i++) {  // 1 x 20001, 65280 x 1, 10000 x 10001
        memcpy(frame + 5, huge[i], 4);
        CHECK_ERROR(image_decode(&p, colour.data, colour.size, "huge.jpg", &err), err, "make it smaller");
    }
    memcpy(frame + 5, size, 4);
    frame[1] = 0xc3;
    CHECK_ERROR(image_decode(&p, colour.data, colour.size, "a.jpg", &err), err, "kind that libjpeg does not read");
    frame[1] = 0xc0;
    for (size_t n = 4; n + 2 < colour.size; n += 7)
        CHECK_ERROR(image_decode(&p, colour.data, n, "a.jpg", &err), err, "cut off");
    for (size_t n = 4; n + 2 < grey.size; n += 7)
        CHECK_ERROR(image_decode(&p, grey.data, n, "b.jpg", &err), err, "cut off");
    const size_t last = jpeg_segment(&grey, 0xda);
    bytes_add(&scans, grey.data, last);
    for (int i = 0; i <= JPEG_MAX_SCANS; i++) bytes_add(&scans, grey.data + last, grey.size - 2 - last);
    bytes_add(&scans, "\xff\xd9", 2);
    CHECK_ERROR(image_decode(&p, scans.data, scans.size, "b.jpg", &err), err,
                "more than 500 scans of 20 x 14 pixels");
    uint8_t *scan = colour.data + jpeg_segment(&colour, 0xda), *end = colour.data + colour.size;
    scan[3] = 10;  // two components: shorter headers of the scan and the frame
    scan[4] = 2;
    memmove(scan + 9, scan + 11, (size_t)(end - scan) - 11);
    frame[3] = 14;
    frame[9] = 2;
    memmove(frame + 16, frame + 19, (size_t)(end - frame) - 19);
    CHECK_ERROR(image_decode(&p, colour.data, colour.size - 5, "a.jpg", &err), err, "have 2 components");
    free(colour.data);
    free(grey.data);
    free(scans.data);
}

/* All-white and one-pixel images, and a box off the centre, checked by hand. */
static void test_image_prepare(void) {
    uint8_t white[5 * 3 * 3], out[16 * 16 * 3], one[3] = {10, 20, 30};
    memset(white, 255, sizeof white);
    Image p = {5, 3, white};
    memset(out, 0, sizeof out);
    image_prepare(out, &p, image_square(16));
    int same = 0;
    for (size_t i = 0; i < sizeof out; i++) same += out[i] == 255;
    CHECK(same == 16 * 16 * 3);
    Image dot = {1, 1, one};
    image_prepare(out, &dot, image_square(16));
    CHECK(out[0] == 10 && out[16 * 16 * 3 - 1] == 30);
    white[(1 * 5 + 2) * 3] = 0;  // one pixel, then a second one below: the box is 1 x 2, padded to 2 x 2 on the right
    white[(2 * 5 + 2) * 3] = 0;
    ImageBox box = image_trim(&p, IMAGE_WHITE);
    CHECK(box.x == 2 && box.y == 1 && box.width == 1 && box.height == 2);
    image_prepare(out, &p, image_square(2));
    CHECK(out[0] == 0 && out[1] == 255 && out[3] == 255 && out[6] == 0 && out[9] == 255);
}

static void test_image_turn(void) {
    for (int orientation = 0; orientation <= 9; orientation++) {
        Image p;
        ImageCanvas canvas = image_canvas(&p, 3, 2, orientation);
        uint8_t rows[18];
        for (int i = 0; i < 18; i++) rows[i] = (uint8_t)(i / 3);  // 0 1 2 / 3 4 5
        for (int y = 0; y < 2; y++) image_put(&canvas, 0, y, 1, rows + 9 * y, 3, 3);
        static const char *const expected[] = {"012345", "012345", "210543", "543210", "345012",
                                               "031425", "304152", "524130", "251403", "012345"};
        char got[7] = "";
        for (int i = 0; i < 6; i++) got[i] = (char)('0' + p.rgb[3 * i]);
        CHECK(!strcmp(got, expected[orientation]) && p.width == (orientation >= 5 && orientation <= 8 ? 2 : 3));
        image_free(&p);
    }
}

/* The enlargement for DeTikZify of a speck in a large image is refused, and the image stays as it was. */
static void test_enlarge_refused(void) {
    Image p = {.width = 15000, .height = 3};
    Error err;
    p.rgb = (uint8_t *)xmalloc(3 * (size_t)p.width * (size_t)p.height);
    memset(p.rgb, 255, 3 * (size_t)p.width * (size_t)p.height);
    memset(p.rgb + 3 * 20000, 0, 3);
    CHECK_ERROR(image_enlarge(&p, "speck.png", &err), err, "cannot prepare speck.png as DeTikZify does");
    CHECK(strstr(err.text, "15000 x 15000 pixels") && p.width == 15000 && p.height == 3);
    image_free(&p);
}

static int prepare_images(int count, char **arguments, bool enlarge) {
    ImageSize size = {0};
    if (count > 2 && sscanf(arguments[0], "%dx%dx%d", &size.width, &size.height, &size.letter) == 1) size.height = size.width;
    if (size.width < 1 || size.width > 4096 || size.height < 1 || size.height > 4096)
        die("usage: --prepare|--prepare-detikzify SIZE|WIDTHxHEIGHT[xLETTER] OUT IMG...");
    FILE *f = fopen(arguments[1], "wb");
    if (!f) die("cannot write %s: %s", arguments[1], strerror(errno));
    size_t bytes = image_size_bytes(size);
    uint8_t *out = (uint8_t *)xmalloc(bytes);
    for (int i = 2; i < count; i++) {
        Image p;
        Error err;
        if (image_load(&p, arguments[i], &err) != 0) die("%s", err.text);
        if (enlarge) die_if(image_enlarge(&p, arguments[i], &err), &err);
        image_prepare_box(out, &p, enlarge ? (ImageBox){0, 0, p.width, p.height} : image_trim(&p, IMAGE_WHITE), size);
        image_free(&p);
        if (fwrite(out, 1, bytes, f) != bytes) die("cannot write %s", arguments[1]);
    }
    free(out);
    return fclose(f) == 0 ? 0 : 1;
}

/* ---- the rest ---- */

/* Sizes beyond size_t are not taken modulo it. */
static void test_arena(void) {
    Arena a = {NULL, 0};
    arena_take(&a, 3, 5);
    arena_take(&a, 65, 1);
    CHECK(a.used == 64 + 128);
    const size_t counts[] = {SIZE_MAX / 2, SIZE_MAX / 4 - 1, (size_t)1 << 62, SIZE_MAX};
    for (int i = 0; i < 4; i++) {
        a.used = 192;
        arena_take(&a, counts[i], 4);
        CHECK(a.used > SIZE_MAX - 4096);
        arena_take(&a, 100, 1);
        CHECK(a.used > SIZE_MAX - 4096 && cpu_ops()->alloc(a.used) == NULL);
    }
}

static void test_misc(void) {
    Error err;
    CHECK(error_set(&err, "%s %d", "a", 1) == -1 && !strcmp(err.text, "a 1") && error_set(NULL, "x") == -1);
    char *s = format_string("%s-%05d", "x", 42), buffer[32];
    CHECK(!strcmp(s, "x-00042"));
    free(s);
    CHECK(!strcmp(progress_duration(42, buffer, 32), "42 s") && !strcmp(progress_duration(187, buffer, 32), "3:07"));
    CHECK(!strcmp(progress_duration(3753, buffer, 32), "1:02:33") &&
          !strcmp(progress_duration(183600, buffer, 32), "2 d 03 h"));
    double before = seconds_now();
    CHECK(seconds_now() >= before);
}

int main(int argc, char **argv) {
    program_begin(argv);
    if (argc > 1 && !strcmp(argv[1], "--prepare")) return prepare_images(argc - 2, argv + 2, false);
    if (argc > 1 && !strcmp(argv[1], "--prepare-detikzify")) return prepare_images(argc - 2, argv + 2, true);
    samples_begin();
    test_map();
    test_memory();
    test_cut_map();
    test_own_names();
    test_many_partial();
    test_atomic();
    test_atomic_full();
    test_folders();
    test_json_read();
    test_json_write();
    test_safetensors_refused();
    test_safetensors_many();
    test_random();
    test_options();
    test_options_config();
    test_options_write();
    test_crc();
    test_image_refused();
    test_image_unread();
    test_png_bomb();
    test_formats();
    test_formats_huge();
    test_image_limited();
    test_bmp_jumps();
    test_jpeg_refused();
    test_jpeg_scans();
    test_image_remark();
    test_letters();
    test_remark_of_strips();
    test_image_prepare();
    test_image_turn();
    test_enlarge_refused();
    test_arena();
    test_misc();
    samples_end();
    return checks_report();
}
