/* How every program begins. */
#ifndef LIB_PROGRAM_H
#define LIB_PROGRAM_H

#include "file.h"

#include <signal.h>

/* Opens descriptors 0 to 2 where the caller has closed them: otherwise the next file that is opened would get their
 * numbers, and what is meant for the terminal would be written into it. They are opened the wrong way round, so that
 * reading and writing still fail: a program whose stdout is closed does not lose its output without a word. */
static inline void program_open_descriptors(void) {
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) != fd) _exit(1);
}

/* The handler of SIGBUS, which a thread receives when it touches a page of a mapped file that is no longer there.
 * Such a thread was reading the file, so it holds none of our locks. It may hold one of the C library's (a file that
 * fwrite copies from), so the sentence is put together and written without stdio. Any other SIGBUS ends the program as
 * usual. */
static inline void program_on_bus_error(int number, siginfo_t *info, void *context) {
    static bool taken;
    (void)context;
    const char *path = info->si_code > 0 ? mapped_path(info->si_addr) : NULL;
    if (!path) {
        signal(number, SIG_DFL);  // the faulting instruction runs again when the handler returns
        if (info->si_code <= 0) raise(number);
        return;
    }
    while (__atomic_exchange_n(&taken, true, __ATOMIC_ACQ_REL)) pause();  // another thread is saying it
    const char *parts[] = {stderr_line_open ? "\r\033[K" : "", program_name_text, ": error: cannot read ", path,
                           " any more: it became shorter while it was in use, or its disk failed\n"};
    char text[8192];
    size_t length = 0;
    for (int i = 0; i < 5; i++)
        for (const char *c = parts[i]; *c && length < sizeof text; c++)
            text[length++] = i == 3 && ((unsigned char)*c < ' ' || *c == 127) ? '?' : *c;  // as printable
    ssize_t written = write(STDERR_FILENO, text, length);
    (void)written;
    files_abandon();
    _exit(1);
}

/* To be called first in main: the name in error messages, the descriptors 0 to 2, SIGBUS, and partial files, which
 * are removed when the program ends. */
static inline void program_begin(char **argv) {
    struct sigaction action = {.sa_sigaction = program_on_bus_error, .sa_flags = SA_SIGINFO};
    program_open_descriptors();
    program_name_set(argv[0]);
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
    atexit(files_abandon);
}

#endif
