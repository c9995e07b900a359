/* Tests of lib/, without the tokenizer. Also `test_lib --prepare SIZE OUT IMG...`: writes the prepared pixels of the
 * images one after another, for test/compare_images.py. */
#include "images.h"

#include "../kernels/arena.h"
#include "../lib/json.h"
#include "../lib/memory.h"
#include "../lib/options.h"
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

/* ---- checksums ---- */

static void test_crc(void) {
    CHECK(crc32_bytes(0, "123456789", 9) == 0xcbf43926u && crc32_bytes(0, "", 0) == 0);
    CHECK(crc32_bytes(crc32_bytes(0, "1234", 4), "56789", 5) == 0xcbf43926u);
}

/* ---- --prepare ---- */

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
    test_images();
    test_arena();
    test_misc();
    samples_end();
    return checks_report();
}
