/* What the kernel does for the box of lib/sandbox.h: three walls, each where the kernel has it.
 *
 *   files        Landlock (Linux 5.13): the program reads only what it is allowed to, and writes only into its folder
 *   calls        seccomp: no socket, no other process, no signal, no change of a file's mode, owner or times
 *   namespaces   no network and no other process to be seen; what the program starts ends with it
 *
 * The calls are a list of what is forbidden, because what TeX, Poppler and their libraries need is longer and changes.
 * What the list leaves open the other two walls, the limits and the missing capabilities close. */
#ifndef LIB_SANDBOX_KERNEL_H
#define LIB_SANDBOX_KERNEL_H

#include "error.h"

#if !__has_include(<linux/landlock.h>)
#error "the headers of Linux 5.13 or newer are missing; Debian 12 and Ubuntu 22.04 have them (linux-libc-dev)"
#endif

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef enum { SANDBOX_FILES = 1, SANDBOX_CALLS = 2, SANDBOX_NAMESPACES = 4 } SandboxWall;

/* ---- files: Landlock ---- */

/* Newer than the header of some systems. */
#define SANDBOX_TRUNCATE (1ULL << 14)   // since version 3 of the interface
#define SANDBOX_IOCTL_DEV (1ULL << 15)  // since version 5

static const uint64_t sandbox_read_rights =
    LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR;
/* In its folder: regular files, which stay, because open files without a name would not be counted; no folders, links,
 * pipes or devices. */
static const uint64_t sandbox_write_rights = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR |
                                             LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_MAKE_REG |
                                             SANDBOX_TRUNCATE;

/* The version of the kernel's Landlock; 0 or less: it has none. */
static inline int landlock_version(void) {
    return (int)syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
}

/* All rights that this version can withhold: all of them are withheld where no rule grants them. */
static inline uint64_t landlock_rights(int version) {
    uint64_t rights = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1;
    if (version >= 2) rights |= LANDLOCK_ACCESS_FS_REFER;
    if (version >= 3) rights |= SANDBOX_TRUNCATE;
    if (version >= 5) rights |= SANDBOX_IOCTL_DEV;
    return rights;
}

/* Grants rights to a file, or to a folder and all in it. What does not exist is left out. */
static inline int landlock_allow(int ruleset, const char *path, uint64_t rights, Error *err) {
    struct stat s;
    const int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0) return 0;
    if (fstat(fd, &s) == 0 && !S_ISDIR(s.st_mode))
        rights &= LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE |
                  SANDBOX_TRUNCATE;
    struct landlock_path_beneath_attr rule = {.allowed_access = rights, .parent_fd = fd};
    const long status = syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
    const int reason = errno;
    close(fd);
    if (status == 0) return 0;
    return error_set(err, "cannot box a program in: the kernel refuses a rule for %s: %s", path, strerror(reason));
}

/* Where every system keeps programs, libraries, TeX and fonts; nothing in them is secret. */
// clang-format off
static const char *const sandbox_system_folders[] = {
    "/usr", "/bin", "/lib", "/lib64", "/nix/store", "/gnu/store", "/etc/ld.so.cache", "/etc/texmf", "/etc/fonts",
    "/var/lib/texmf", "/var/cache/fontconfig", "/dev/urandom"};
// clang-format on

/* Makes the rules for a program that may write into `folder` and read `readable` (ended by NULL; may be NULL) beside
 * the system's folders. Returns a descriptor, or -1. */
static inline int landlock_rules(const char *folder, const char *const *readable, Error *err) {
    const int version = landlock_version();
    const uint64_t rights = landlock_rights(version);
    struct landlock_ruleset_attr attributes = {.handled_access_fs = rights};
    const int made = (int)syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0);
    if (made < 0) return error_set(err, "cannot box a program in: Landlock fails: %s", strerror(errno));
    int status = landlock_allow(made, folder, sandbox_write_rights & rights, err);
    if (status == 0)
        status = landlock_allow(made, "/dev/null", LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE, err);
    for (size_t i = 0; status == 0 && i < sizeof sandbox_system_folders / sizeof *sandbox_system_folders; i++)
        status = landlock_allow(made, sandbox_system_folders[i], sandbox_read_rights, err);
    for (; status == 0 && readable && *readable; readable++)
        status = landlock_allow(made, *readable, sandbox_read_rights, err);
    if (status == 0) return made;
    close(made);
    return -1;
}

/* ---- calls: seccomp ---- */

#if defined __x86_64__
#define SANDBOX_ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined __aarch64__
#define SANDBOX_ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

/* All fail with EPERM. */
// clang-format off
static const int sandbox_forbidden_calls[] = {
    /* the network, and other ways to other processes; io_uring would make sockets past this list */
    SYS_socket, SYS_socketpair, SYS_io_uring_setup, SYS_shmget, SYS_shmat, SYS_shmctl, SYS_msgget, SYS_msgsnd,
    SYS_msgrcv, SYS_msgctl, SYS_semget, SYS_semop, SYS_semtimedop, SYS_semctl, SYS_mq_open, SYS_mq_unlink,
    /* processes: the program is one and stays in its group; no one else's is touched */
    SYS_clone, SYS_clone3, SYS_setsid, SYS_setpgid, SYS_kill, SYS_tkill, SYS_tgkill, SYS_rt_sigqueueinfo,
    SYS_rt_tgsigqueueinfo, SYS_pidfd_send_signal, SYS_pidfd_getfd, SYS_ptrace, SYS_process_vm_readv,
    SYS_process_vm_writev, SYS_process_madvise, SYS_kcmp, SYS_setpriority, SYS_ioprio_set, SYS_sched_setaffinity,
    SYS_sched_setscheduler, SYS_sched_setparam, SYS_sched_setattr,
    /* memory that no limit counts */
    SYS_memfd_create, 447 /* memfd_secret */,
    /* what Landlock does not see: modes, owners, times and attributes, also of files outside */
    SYS_fchmod, SYS_fchmodat, 452 /* fchmodat2 */, SYS_fchown, SYS_fchownat, SYS_utimensat, SYS_setxattr,
    SYS_lsetxattr, SYS_fsetxattr, SYS_removexattr, SYS_lremovexattr, SYS_fremovexattr, SYS_truncate,
    463 /* setxattrat */, 466 /* removexattrat */, 469 /* file_setattr */, SYS_inotify_init1, SYS_fanotify_init,
    /* names other than of regular files */
    SYS_mkdirat, SYS_mknodat, SYS_symlinkat, SYS_linkat,
    /* the machine */
    SYS_mount, SYS_umount2, SYS_pivot_root, SYS_chroot, SYS_setns, SYS_unshare, SYS_fsopen, SYS_fsconfig, SYS_fsmount,
    SYS_fspick, SYS_move_mount, SYS_open_tree, SYS_bpf, SYS_perf_event_open, SYS_userfaultfd, SYS_keyctl, SYS_add_key,
    SYS_request_key, SYS_swapon, SYS_swapoff, SYS_reboot, SYS_kexec_load, SYS_init_module, SYS_finit_module,
    SYS_delete_module, SYS_open_by_handle_at, SYS_name_to_handle_at, SYS_acct, SYS_quotactl, SYS_settimeofday,
    SYS_clock_settime, SYS_adjtimex, SYS_clock_adjtime, SYS_sethostname, SYS_setdomainname, SYS_syslog,
    SYS_personality, SYS_vhangup, SYS_sync, SYS_syncfs,
#ifdef __x86_64__
    SYS_fork, SYS_vfork, SYS_chmod, SYS_chown, SYS_lchown, SYS_utime, SYS_utimes, SYS_futimesat, SYS_mkdir, SYS_mknod,
    SYS_symlink, SYS_link, SYS_iopl, SYS_ioperm, SYS_modify_ldt, SYS_inotify_init,
#endif
};
// clang-format on

enum { SANDBOX_FILTER_MAX = 2 * sizeof sandbox_forbidden_calls / sizeof *sandbox_forbidden_calls + 16 };
static struct sock_filter sandbox_filter[SANDBOX_FILTER_MAX];
static struct sock_fprog sandbox_filter_program;  // its length stays 0 where the kernel has no filters
static pthread_once_t sandbox_filter_once = PTHREAD_ONCE_INIT;

static inline void sandbox_filter_add(struct sock_filter instruction) {
    sandbox_filter[sandbox_filter_program.len++] = instruction;
}

/* Ends with EPERM where the accumulator is `value`. */
static inline void sandbox_filter_forbid(uint32_t value) {
    sandbox_filter_add((struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1));
    sandbox_filter_add((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM));
}

static inline void sandbox_filter_build(void) {
#ifdef SANDBOX_ARCHITECTURE
    uint32_t action = SECCOMP_RET_ERRNO;
    sandbox_filter_program.filter = sandbox_filter;
    if (syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) != 0) return;
    const struct sock_filter head[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SANDBOX_ARCHITECTURE, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),  // the calls of 32-bit programs have other numbers
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1),  // and so have those of x32
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)};
    /* prlimit64 of another process (its first argument is 0 for the process's own limits); and fcntl with F_SETOWN or
     * F_SETOWN_EX, after which the kernel sends signals to any process */
    const struct sock_filter tail[] = {BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prlimit64, 0, 2),
                                       BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
                                       BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 5, 4),
                                       BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_fcntl, 0, 4),
                                       BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
                                       BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, F_SETOWN, 1, 0),
                                       BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, F_SETOWN_EX, 0, 1),
                                       BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
                                       BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    for (size_t i = 0; i < sizeof head / sizeof *head; i++) sandbox_filter_add(head[i]);
    for (size_t i = 0; i < sizeof sandbox_forbidden_calls / sizeof *sandbox_forbidden_calls; i++)
        sandbox_filter_forbid((uint32_t)sandbox_forbidden_calls[i]);
    for (size_t i = 0; i < sizeof tail / sizeof *tail; i++) sandbox_filter_add(tail[i]);
#endif
}

/* The filter, or NULL where the kernel or the processor has none. Thread-safe. */
static inline const struct sock_fprog *sandbox_calls(void) {
    pthread_once(&sandbox_filter_once, sandbox_filter_build);
    return sandbox_filter_program.len ? &sandbox_filter_program : NULL;
}

/* ---- namespaces ---- */

/* What to try, the best first: an ordinary user needs a user namespace for the others, root does not. */
static const int sandbox_namespace_choices[] = {CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC,
                                                CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC, 0};
static int sandbox_namespace_choice;  // the first that the kernel has not refused

/* Calls clone for a child that shares the memory until it calls execve, as vfork; from a choice of namespaces on.
 * Returns the process, or -1; *choice is the one taken. */
static inline pid_t sandbox_clone(int (*run)(void *), void *stack, void *argument, int *choice) {
    for (;; ++*choice) {
        const int namespaces = sandbox_namespace_choices[*choice];
        const pid_t process = clone(run, stack, CLONE_VM | CLONE_VFORK | SIGCHLD | namespaces, argument);
        if (process >= 0 || namespaces == 0) return process;
        if (errno == EAGAIN || errno == ENOMEM) return -1;
        const bool never = errno == EPERM || errno == EINVAL || errno == ENOSYS;  // not: too many just now
        if (never && *choice == __atomic_load_n(&sandbox_namespace_choice, __ATOMIC_RELAXED))
            __atomic_store_n(&sandbox_namespace_choice, *choice + 1, __ATOMIC_RELAXED);
    }
}

/* ---- what is missing ---- */

/* Says once, in one sentence, which walls this machine lacks. `choice` is that of sandbox_clone. */
static inline void sandbox_say_missing(const char *program, bool files, bool calls, int choice) {
    static bool said;
    const bool namespaces = sandbox_namespace_choices[choice] != 0;
    if ((files && calls && namespaces) || __atomic_exchange_n(&said, true, __ATOMIC_ACQ_REL)) return;
    const char *first = files ? "" : "Landlock, so that only TeX's own rules keep other files from a program; ",
               *second = calls ? "" : "seccomp, so that a program may start others while it runs; ",
               *third = namespaces ? "" : "namespaces, so that only seccomp keeps the network from a program; ";
    if (!calls && !namespaces)
        third = "namespaces, so that a program may reach the network and leave processes behind; ";
    char text[512];
    const int length = snprintf(text, sizeof text, "%s%s%s", first, second, third);
    warn("%s runs in an incomplete box, because this system lacks: %.*s", program, length - 2, text);
}

#endif
