/* How much memory this process may use. */
#ifndef LIB_MEMORY_H
#define LIB_MEMORY_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The limit in bytes that a control group or one above it sets, in the files FOLDER/GROUP/FILE, FOLDER/PARENT/FILE, ... and
 * FOLDER/FILE; SIZE_MAX: none does. A group that cannot be seen from inside a container has no file. */
static inline size_t memory_group_limit(const char *folder, const char *group, const char *file) {
    char above[4096], path[16384], line[32];
    size_t least = SIZE_MAX;
    for (snprintf(above, sizeof above, "%s", group);;) {
        snprintf(path, sizeof path, "%s%s/%s", folder, above, file);
        FILE *f = fopen(path, "re");
        if (f && fgets(line, sizeof line, f)) {
            const unsigned long long limit = strtoull(line, NULL, 10);  // "max" is no number
            if (limit && limit < least) least = (size_t)limit;
        }
        if (f) fclose(f);
        char *last = strrchr(above, '/');
        if (!last) return least;
        *last = 0;
    }
}

/* The least limit of the groups that a file such as /proc/self/cgroup lists: "0::GROUP" of version 2, which is mounted at
 * `folder`, or "N:memory:GROUP" of version 1 at folder/memory (man 7 cgroups). */
static inline size_t memory_groups_limit(const char *list, const char *folder) {
    char line[4096], folder1[4352];
    size_t least = SIZE_MAX;
    snprintf(folder1, sizeof folder1, "%s/memory", folder);
    FILE *f = fopen(list, "re");
    while (f && fgets(line, sizeof line, f)) {
        line[strcspn(line, "\n")] = 0;
        const char *kind = strchr(line, ':'), *group = kind ? strchr(kind + 1, ':') : NULL;
        if (!group) continue;
        const bool version2 = group == kind + 1, version1 = !strncmp(kind, ":memory:", 8);
        const size_t limit = version2   ? memory_group_limit(folder, group + 1, "memory.max")
                             : version1 ? memory_group_limit(folder1, group + 1, "memory.limit_in_bytes")
                                        : SIZE_MAX;
        if (limit < least) least = limit;
    }
    if (f) fclose(f);
    return least;
}

/* The RAM of this machine in bytes, or less where the container or service that this process runs in has less. */
static inline size_t memory_available(void) {
    const size_t machine = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    const size_t limit = memory_groups_limit("/proc/self/cgroup", "/sys/fs/cgroup");
    return limit < machine ? limit : machine;
}

#endif
