/* Graphs save the launches of kernels, and a CPU has none: it makes the calls each time. */
#ifndef KERNELS_CPU_GRAPH_H
#define KERNELS_CPU_GRAPH_H

#include <stdbool.h>
#include <stdint.h>

static bool cpu_graph_launch(const void *owner, uint64_t variant) {
    (void)owner, (void)variant;
    return false;
}
static void cpu_graph_end(void) {}
static void cpu_graph_free(const void *owner) { (void)owner; }

#endif
