/* Tests of lib/sandbox.h: every limit, and every wall of the kernel, with programs that do nothing but run against it.
 * They are written in Perl and shell, which every Debian system has. */
#include "samples.h"

#include "../lib/sandbox.h"
#include "../lib/threads.h"

static char canary[512];  // a folder outside of every box, with a file in it

/* Runs `arguments` in a fresh folder. The job's other fields are as in `base`. */
static SandboxResult run_in(const char *folder, const char *const *arguments, const SandboxJob *base, Error *err) {
    SandboxJob job = *base;
    SandboxResult r;
    char *program = sandbox_find(arguments[0]);
    job.program = program ? program : arguments[0];
    job.arguments = arguments;
    job.folder = folder;
    if (job.limits.wall_seconds == 0) job.limits = sandbox_default_limits;
    err->text[0] = '\0';
    if (sandbox_run(&job, &r, err) != 0) memset(&r, 0, sizeof r);
    free(program);
    return r;
}

static SandboxResult run(const char *const *arguments, const SandboxJob *base) {
    Error err;
    char *folder = sandbox_folder_make(NULL, &err);
    SandboxResult r = run_in(folder, arguments, base, &err);
    check(r.output != NULL, __FILE__, __LINE__, "the program runs", err.text);
    if (!r.output) r.output = xstrdup("");
    sandbox_folder_remove(folder);
    return r;
}

static SandboxResult perl(const char *program, const SandboxJob *base) {
    return run((const char *const[]){"perl", "-e", program, NULL}, base);
}

/* ---- limits ---- */

static const struct {
    const char *what, *program, *reason;
} exceeders[] = {
    {"time", "sleep 60", "took more than 1 s"},
    {"time, deaf to SIGTERM", "$SIG{TERM} = $SIG{HUP} = $SIG{INT} = 'IGNORE'; sleep 60", "took more than 1 s"},
    {"processor time", "1 while 1", "took more than 1 s of processor time"},
    {"a file", "open F, '>f'; 1 while syswrite F, 'a' x 65536; sleep 9", "wrote a file of more than 4 MB"},
    {"a file with a hole",
     "open F, '>f'; truncate(F, 5 << 20) or seek(F, 4194303, 0); print F 'aa'; close F; sleep 9",
     "wrote a file of more than 4 MB"},
    {"all files", "for $i (1..99) { open F, '>', $i; print F 'a' x 3000000; close F } sleep 9",
     "wrote more than 16 MB in all"},
    {"many files", "for $i (1..999) { open F, '>', $i } sleep 9", "made more than 100 files"},
    {"output", "1 while syswrite STDERR, 'a' x 65536; sleep 9", "printed more than 4 MB"},
    {"memory", "my $x = 'a' x (1 << 30)", "needed more than 256 MB of memory"},
    {"memory, little by little", "my @a; push @a, 'a' x 100000 while 1", "needed more than 256 MB of memory"},
};

static const SandboxLimits small_limits = {1, 1, 256 << 20, 4 << 20, 16 << 20, 100, 64};

static void test_limits(void) {
    SandboxJob base = {.limits = small_limits};
    for (size_t i = 0; i < sizeof exceeders / sizeof *exceeders; i++) {
        base.limits.wall_seconds = strncmp(exceeders[i].what, "time", 4) ? 8 : 1;
        SandboxResult r = perl(exceeders[i].program, &base);
        check(r.stopped && r.status == -1 && !strcmp(r.reason, exceeders[i].reason), __FILE__, __LINE__,
              exceeders[i].what, r.reason);
        CHECK(r.wall_seconds < base.limits.wall_seconds + 3);
        sandbox_result_free(&r);
    }
    SandboxResult r = perl("for (1..99) { open $f[$_], '<', '/usr/bin/perl' or exit 3 }", &base);
    CHECK(!r.stopped && r.status == 3);  // open files
    sandbox_result_free(&r);
}

static bool always(void) { return true; }

static void test_results(void) {
    const SandboxJob base = {.limits = {0}}, hurried = {.cancelled = always}, open = {.unsafe = true};
    SandboxResult r = perl("print 'out'; print STDERR 'err'; exit 7", &base);
    CHECK(!r.stopped && r.status == 7 && strstr(r.output, "out") && strstr(r.output, "err") && r.output_bytes == 6);
    sandbox_result_free(&r);
    r = perl("sleep 60", &hurried);
    CHECK(r.stopped && !strcmp(r.reason, "was interrupted") && r.wall_seconds < 5);
    sandbox_result_free(&r);
    r = perl("kill 'TERM', $$; print 'alive'", &open);
    CHECK(r.stopped && !strcmp(r.reason, "was ended by signal 15"));
    sandbox_result_free(&r);
    Error err;
    char *folder = sandbox_folder_make(NULL, &err);
    r = run_in(folder, (const char *const[]){"/nowhere/program", NULL}, &base, &err);
    CHECK(!r.output && strstr(err.text, "cannot start /nowhere/program: execve: No such file"));
    r = run_in("/nowhere", (const char *const[]){"true", NULL}, &base, &err);
    CHECK(!r.output && strstr(err.text, "chdir: No such file"));
    sandbox_folder_remove(folder);
}

/* ---- what the program is given ---- */

static void test_inheritance(void) {
    const SandboxJob base = {.environment = (const char *const[]){"A=b", NULL}};
    setenv("SECRET", "x", 1);
    int leaked = open("/dev/null", O_RDONLY), far = fcntl(leaked, F_DUPFD, 200);  // without O_CLOEXEC
    signal(SIGPIPE, SIG_IGN);
    SandboxResult r =
        perl("print join ' ', sort keys %ENV; print ' ', $ENV{HOME} eq $ENV{TMPDIR} && -w $ENV{HOME} ? 1 : 0;"
             "for (3..300) { print \" fd$_\" if open F, \"<&=$_\" } print \" $SIG{PIPE}.\"",
             &base);
    signal(SIGPIPE, SIG_DFL);
    check(!strcmp(r.output, "A HOME LC_ALL PATH TMPDIR 1 ."), __FILE__, __LINE__, "environment and descriptors",
          r.output);
    sandbox_result_free(&r);
    close(leaked);
    close(far);
    unsetenv("SECRET");
}

/* ---- walls ---- */

/* Each prints "done" where it reaches out of the box; %s is the canary's folder. */
static const struct {
    const char *what, *program;
    int walls;  // any one of these stops it
} escapes[] = {
    {"reading /etc/passwd", "print 'done' if open F, '/etc/passwd'", SANDBOX_FILES},
    {"reading a file outside", "print 'done' if open F, '%s/file'", SANDBOX_FILES},
    {"reading it by another way", "print 'done' if open F, \"/usr/../%s/file\"", SANDBOX_FILES},
    {"reading a folder outside", "print 'done' if opendir D, '%s'", SANDBOX_FILES},
    {"reading /proc", "print 'done' if open F, '/proc/self/environ'", SANDBOX_FILES},
    {"reading /dev/zero", "print 'done' if open F, '/dev/zero'", SANDBOX_FILES},
    {"a link to a file outside", "symlink '%s/file', 'l'; print 'done' if open F, 'l'", SANDBOX_FILES},
    {"writing to a file outside", "print 'done' if open F, '>>%s/file'", SANDBOX_FILES},
    {"making a file outside", "print 'done' if open F, '>%s/new'", SANDBOX_FILES},
    {"removing a file outside", "print 'done' if unlink '%s/file'", SANDBOX_FILES},
    {"renaming a file outside", "print 'done' if rename '%s/file', '%s/other'", SANDBOX_FILES},
    {"moving a file out", "open F, '>f'; close F; print 'done' if rename 'f', '%s/f'", SANDBOX_FILES},
    {"emptying a file outside", "print 'done' if truncate '%s/file', 0", SANDBOX_FILES | SANDBOX_CALLS},
    {"a symbolic link", "print 'done' if symlink '/etc/passwd', 'l'", SANDBOX_FILES | SANDBOX_CALLS},
    {"a hard link", "print 'done' if link '%s/file', 'l'", SANDBOX_FILES | SANDBOX_CALLS},
    {"a named pipe", "use POSIX; print 'done' if POSIX::mkfifo('p', 0600)", SANDBOX_FILES | SANDBOX_CALLS},
    {"a folder", "print 'done' if mkdir 'd'", SANDBOX_FILES | SANDBOX_CALLS},
    {"the mode of a file outside", "print 'done' if chmod 0777, '%s/file'", SANDBOX_CALLS},
    {"the time of a file outside", "print 'done' if utime 1, 1, '%s/file'", SANDBOX_CALLS},
    {"another process", "print 'done' if defined fork", SANDBOX_CALLS},
    {"a shell", "print 'done' if system('true') == 0", SANDBOX_CALLS},
    {"a session of its own",
     "use POSIX; $p = fork; if (defined $p) { if (!$p) { print 'done' if POSIX::setsid() > 0; exit } wait }",
     SANDBOX_CALLS},
    {"a socket", "use Socket; print 'done' if socket S, PF_INET, SOCK_STREAM, 0", SANDBOX_CALLS},
    {"a local socket", "use Socket; print 'done' if socketpair A, B, AF_UNIX, SOCK_STREAM, 0", SANDBOX_CALLS},
    {"a signal by a pipe", "pipe(R, W); print 'done' if fcntl(R, 8, PARENT)", SANDBOX_CALLS},
    {"a file without a name", "open F, '>f'; print 'done' if unlink 'f'", SANDBOX_FILES},
    {"memory of others", "print 'done' if defined shmctl(0, 2, $b) || $!{EINVAL} || $!{EACCES}", SANDBOX_CALLS},
    {"a signal to the parent", "print 'done' if kill 0, getppid() || PARENT", SANDBOX_CALLS | SANDBOX_NAMESPACES},
};

/* Replaces %s by the canary's folder and PARENT by this process. */
static char *escape_program(const char *text) {
    char *self = format_string("%d", (int)getpid());
    char *program = replace_all(replace_all(xstrdup(text), "%s", canary), "PARENT", self);
    free(self);
    return program;
}

static void make_canary(void) {
    char *file = format_string("%s/file", canary);
    write_bytes(file, "precious", 8);
    chmod(file, 0600);
    free(file);
}

/* The canary's folder as one number: names, modes, times and contents. */
static uint64_t canary_state(void) {
    uint64_t hash = HASH_BEGIN;
    DIR *folder = opendir(canary);
    for (struct dirent *e; folder && (e = readdir(folder));) {
        struct stat s;
        char *path = format_string("%s/%s", canary, e->d_name);
        if (strcmp(e->d_name, "..") && lstat(path, &s) == 0) {
            uint64_t one = hash_bytes(HASH_BEGIN, e->d_name, strlen(e->d_name));
            one = hash_bytes(one, &s.st_mode, sizeof s.st_mode);
            one = hash_bytes(one, &s.st_size, sizeof s.st_size);
            hash += hash_bytes(one, &s.st_mtim, sizeof s.st_mtim);  // in any order
        }
        free(path);
    }
    if (folder) closedir(folder);
    return hash;
}

/* What the machine's kernel has; tests of a wall that it lacks would only say so. */
static int walls_here(void) {
    const bool namespaces = sandbox_namespace_choices[sandbox_namespace_choice] != 0;
    return (landlock_version() > 0 ? SANDBOX_FILES : 0) | (sandbox_calls() ? SANDBOX_CALLS : 0) |
           (namespaces ? SANDBOX_NAMESPACES : 0);
}

/* Without the box each program reaches out, so each shows something; with it, none does. And each wall alone holds
 * against what it is for. */
static void test_walls(void) {
    const SandboxJob boxed = {.limits = {0}}, open = {.unsafe = true};
    const int here = walls_here();
    for (size_t i = 0; i < sizeof escapes / sizeof *escapes; i++) {
        make_canary();
        char *program = escape_program(escapes[i].program);
        const uint64_t before = canary_state();
        for (int wall = 0; wall <= SANDBOX_NAMESPACES; wall = wall ? 2 * wall : 1) {
            SandboxJob job = boxed;
            if (wall) job.without = (SANDBOX_FILES | SANDBOX_CALLS | SANDBOX_NAMESPACES) & ~wall;
            if (wall ? !(escapes[i].walls & wall & here) : !(escapes[i].walls & here)) continue;
            SandboxResult r = perl(program, &job);
            check(!r.stopped && !strstr(r.output, "done"), __FILE__, __LINE__, escapes[i].what, r.output);
            check(canary_state() == before, __FILE__, __LINE__, "nothing outside has changed", escapes[i].what);
            sandbox_result_free(&r);
        }
        SandboxResult r = perl(program, &open);
        check(strstr(r.output, "done") != NULL, __FILE__, __LINE__, "it succeeds without the box", escapes[i].what);
        sandbox_result_free(&r);
        free(program);
    }
    make_canary();
    if (~here & 7)
        printf("not tested here: a wall that this kernel lacks (%d of Landlock 1, seccomp 2, namespaces 4)\n",
               ~here & 7);
}

/* Root without user namespaces, as in many containers, and no namespaces at all: root's powers are gone, too. */
static void test_fewer_namespaces(void) {
    const SandboxJob boxed = {.limits = {0}}, powers = {.without = SANDBOX_CALLS | SANDBOX_FILES};
    const int last = sizeof sandbox_namespace_choices / sizeof *sandbox_namespace_choices - 1;
    const int best = sandbox_namespace_choice;
    make_canary();
    for (int choice = best; choice <= last; choice++) {
        sandbox_namespace_choice = choice;
        SandboxResult r = perl("print 'done' if defined fork or open F, '/etc/passwd'; print 'ran'", &boxed);
        CHECK(!strcmp(r.output, "ran"));
        sandbox_result_free(&r);
        r = perl("print 'done' if chown(1, 1, '.') or chroot '/'; print 'ran'", &powers);
        CHECK(!strcmp(r.output, "ran"));
        sandbox_result_free(&r);
    }
    sandbox_namespace_choice = best;
}

/* What is missing is said in one sentence, and once. */
static void test_sentence(void) {
    char said[2000] = "";
    char *path = xstrdup(sample_path("said"));
    const int errors = dup(2), file = open(path, O_RDWR | O_CREAT, 0600);
    dup2(file, 2);
    sandbox_say_missing("pdflatex", true, true, 0);  // nothing is
    sandbox_say_missing("pdflatex", false, false, sizeof sandbox_namespace_choices / sizeof(int) - 1);
    sandbox_say_missing("pdflatex", false, true, 0);  // was said
    dup2(errors, 2);
    CHECK(pread(file, said, sizeof said - 1, 0) > 0);
    check(strstr(said, "warning: pdflatex runs in an incomplete box, because this system lacks: Landlock, so that") &&
              strstr(said, "; seccomp, so that") && strstr(said, "leave processes behind\n") &&
              strchr(said, '\n') == said + strlen(said) - 1,
          __FILE__, __LINE__, "one sentence", said);
    close(errors);
    close(file);
    free(path);
}

/* ---- nothing is left behind ---- */

/* Whether a process is there, other than as a zombie that init has not noticed yet. */
static bool is_running(long process) {
    char path[64], state = 'Z';
    snprintf(path, sizeof path, "/proc/%ld/stat", process);
    FILE *f = fopen(path, "r");
    if (f && fscanf(f, "%*d (%*[^)]) %c", &state) != 1) state = 'Z';
    if (f) fclose(f);
    return state != 'Z';
}

static bool ends_soon(long process) {
    for (int i = 0; i < 500; i++, poll(NULL, 0, 10))
        if (!is_running(process)) return true;
    return false;
}

/* A child that the program leaves, deaf to SIGTERM: in the group it is killed with the group; with a session of its
 * own only the namespace ends it. */
static void test_background(void) {
    static const char *const programs[] = {
        "$SIG{TERM} = 'IGNORE'; exit 0 if fork; for (1..6000) { open F, '>>beat'; print F 'x'; close F; "
        "select undef, undef, undef, 0.01 }",
        "use POSIX; $SIG{TERM} = 'IGNORE'; exit 0 if fork; POSIX::setsid(); for (1..6000) { open F, '>>beat'; print "
        "F 'x';"
        " close F; select undef, undef, undef, 0.01 }"};
    for (int i = 0; i < 2; i++) {
        Error err;
        const SandboxJob job = {.without = i ? SANDBOX_CALLS : SANDBOX_CALLS | SANDBOX_NAMESPACES};
        if (i && !(walls_here() & SANDBOX_NAMESPACES)) continue;
        if (geteuid() != 0) continue;  // RLIMIT_NPROC refuses the child
        char *folder = sandbox_folder_make(NULL, &err);
        SandboxResult r = run_in(folder, (const char *const[]){"perl", "-e", programs[i], NULL}, &job, &err);
        const size_t first = sandbox_folder_size(folder).bytes;
        poll(NULL, 0, 200);
        CHECK(r.output && !r.stopped && r.status == 0 && sandbox_folder_size(folder).bytes == first);
        sandbox_result_free(&r);
        sandbox_folder_remove(folder);
    }
}

/* The program ends when the process that watches it is killed. */
static void test_orphan(void) {
    Error err;
    char *folder = sandbox_folder_make(NULL, &err), *file = format_string("%s/pid", folder);
    fflush(stdout);
    const pid_t watcher = fork();
    if (watcher == 0) {
        const SandboxJob job = {.without = SANDBOX_NAMESPACES};
        run_in(folder,
               (const char *const[]){"perl", "-e", "open F, '>pid'; print F \"$$\\n\"; close F; sleep 100", NULL},
               &job, &err);
        _exit(0);
    }
    long process = 0;
    for (int i = 0; i < 1000 && process == 0; i++, poll(NULL, 0, 10)) {
        FILE *f = fopen(file, "r");
        if (f && fscanf(f, "%ld\n", &process) != 1) process = 0;
        if (f) fclose(f);
    }
    CHECK(process > 0 && is_running(process));
    kill(watcher, SIGKILL);
    waitpid(watcher, NULL, 0);
    CHECK(process > 0 && ends_soon(process));
    free(file);
    sandbox_folder_remove(folder);
}

/* ---- folders ---- */

static void test_folders(void) {
    Error err;
    size_t size = 0;
    char *folder = sandbox_folder_make(NULL, &err), *link = format_string("%s/link", folder),
         *pipe = format_string("%s/pipe", folder), *target = format_string("%s/file", canary);
    make_canary();
    CHECK_OK(sandbox_write(folder, "a", "abc", 3, &err), err);
    CHECK_ERROR(sandbox_write(folder, "a", "abc", 3, &err), err, "File exists");
    char *read = sandbox_read(folder, "a", 3, &size, &err);
    CHECK(read && size == 3 && !strcmp(read, "abc"));
    free(read);
    CHECK(!sandbox_read(folder, "a", 2, &size, &err) && strstr(err.text, "it is too large"));
    CHECK(symlink(target, link) == 0 && mkfifo(pipe, 0600) == 0);
    CHECK(!sandbox_read(folder, "link", 99, &size, &err) && strstr(err.text, "symbolic links"));
    CHECK(!sandbox_read(folder, "pipe", 99, &size, &err) && strstr(err.text, "not a regular file"));
    CHECK(sandbox_write(folder, "link", "x", 1, &err) != 0);
    const FolderSize sum = sandbox_folder_size(folder);
    CHECK(sum.bytes == 3 && sum.largest == 3 && sum.files == 3);
    char *copy = xstrdup(folder);
    sandbox_folder_remove(folder);
    CHECK(!file_exists(copy) && file_exists(target));
    char *old = sandbox_folder_make(NULL, &err), *young = sandbox_folder_make(NULL, &err),
         *other = format_string("%s/tikz.c-file", samples_folder);
    const struct timespec times[2] = {{time(NULL) - 4000, 0}, {time(NULL) - 4000, 0}};
    CHECK_OK(sandbox_write(old, "a", "abc", 3, &err), err);
    CHECK(mkdir(other, 0700) == 0 && utimensat(AT_FDCWD, old, times, 0) == 0 &&
          utimensat(AT_FDCWD, other, times, 0) == 0);
    sandbox_folders_sweep(samples_folder);
    CHECK(!file_exists(old) && file_exists(young) && file_exists(other));
    sandbox_folder_remove(young);
    rmdir(other);
    free(old);
    free(other);
    setenv("TMPDIR", "/nowhere", 1);
    CHECK(!sandbox_folder_make(NULL, &err) && strstr(err.text, "cannot make a folder in /nowhere: No such file"));
    setenv("TMPDIR", samples_folder, 1);
    free(copy);
    free(link);
    free(pipe);
    free(target);
}

/* ---- threads, and other users ---- */

static void *run_several(void *failures) {
    const SandboxJob base = {.limits = {0}};
    for (int i = 0; i < 10; i++) {
        Error err;
        char *folder = sandbox_folder_make(NULL, &err);
        SandboxResult r =
            run_in(folder, (const char *const[]){"perl", "-e", "open F, '>f'; print 'yes' x 3", NULL}, &base, &err);
        if (!r.output || strcmp(r.output, "yesyesyes") || sandbox_folder_size(folder).files != 1)
            __atomic_add_fetch((int *)failures, 1, __ATOMIC_RELAXED);
        sandbox_result_free(&r);
        sandbox_folder_remove(folder);
    }
    return NULL;
}

static void test_threads(void) {
    pthread_t threads[4];
    int failures = 0;
    for (int i = 0; i < 4; i++) thread_start(&threads[i], run_several, &failures);
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    CHECK(failures == 0);
}

/* The same as an ordinary user: this process is root's. */
static void test_ordinary_user(void) {
    if (geteuid() != 0) {
        printf("not tested here: background processes and another user (not root)\n");
        return;
    }
    char *folder = format_string("%s/user", samples_folder);
    CHECK(mkdir(folder, 0700) == 0 && chown(folder, 65534, 65534) == 0 && chmod(samples_folder, 0711) == 0);
    fflush(stdout);
    const pid_t user = fork();
    if (user == 0) {
        setenv("TMPDIR", folder, 1);
        checks_passed = checks_failed = 0;
        if (setgid(65534) != 0 || setuid(65534) != 0) _exit(1);
        test_threads();
        const SandboxJob boxed = {.limits = {0}}, limits = {.without = 7};
        SandboxResult r = perl("print 'done' if defined fork or open F, '/etc/passwd'", &boxed);
        CHECK(!strstr(r.output, "done"));
        sandbox_result_free(&r);
        r = perl("print 'done' if defined fork", &limits);  // RLIMIT_NPROC alone
        CHECK(!strstr(r.output, "done"));
        sandbox_result_free(&r);
        fflush(stdout);
        _exit(checks_failed ? 1 : 0);
    }
    int status = -1;
    waitpid(user, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    free(folder);
}

int main(int argc, char **argv) {
    (void)argc;
    program_begin(argv);
    samples_begin();
    setenv("TMPDIR", samples_folder, 1);
    snprintf(canary, sizeof canary, "%s/canary", samples_folder);
    if (mkdir(canary, 0700) != 0) die("cannot make %s", canary);
    test_folders();
    char *found = sandbox_find("perl");
    if (found) {
        test_sentence();  // first, because the sentence is said once
        test_limits();
        test_results();
        test_inheritance();
        test_walls();
        test_fewer_namespaces();
        test_background();
        test_orphan();
        test_threads();
        test_ordinary_user();
    } else {
        printf("not tested here: hostile programs (no perl)\n");
    }
    free(found);
    samples_end();
    return checks_report();
}
