/* generate: makes random TikZ figures of the kinds that people draw in papers and lectures, each a complete document.
 *
 *   generate [--seed S] [--skip K] [--count N] [--out FOLDER] [--level N or --levels N,N,...] [--part NAME] [--kind NAME]
 *
 * The seed S, the levels, the part and the kind determine an endless sequence of figures. Figures K .. K+N-1 of it are written as
 * FOLDER/000000.tex and so on, or, if FOLDER is "-", to stdout, each followed by a NUL byte. No figure occurs twice in a
 * sequence. Every figure belongs to one part, train, val or test, by a hash of its text: so what is trained on and what is
 * tested with share no figure, whatever their seeds, levels and ranges are. README.md says what the levels hold, and how
 * figures are spelled. */
#include "../starter/sequence.h"

#include "../starter/scenes.h"
#include "automaton.h"
#include "blocks.h"
#include "circuit.h"
#include "commute.h"
#include "euclid.h"
#include "flow.h"
#include "graph.h"
#include "grid.h"
#include "network.h"
#include "plot.h"
#include "shapes.h"
#include "timeline.h"
#include "tree.h"
#include "venn.h"

enum {
    LEVELS = 5,
    LEVELS_MAX = 32,
    PART_OF = 32
};  // one figure of PART_OF is a validation figure, one a test figure

static const struct {
    const char *name;
    bool (*figure)(Text *, int level);
    int weight;
} kinds[] = {{"shapes", shapes_figure, 12},    {"blocks", block_figure, 14},       {"flow", flow_figure, 8},
             {"tree", tree_figure, 9},         {"automaton", automaton_figure, 9}, {"graph", graph_figure, 9},
             {"network", network_figure, 6},   {"commute", commute_figure, 8},     {"plot", plot_figure, 12},
             {"euclid", euclid_figure, 9},     {"venn", venn_figure, 5},           {"grid", grid_figure, 9},
             {"timeline", timeline_figure, 7}, {"circuit", circuit_figure, 7}};

static const char *const part_names[] = {"test", "val", "train"};
static int levels[LEVELS_MAX] = {1, 2, 3, 4, 5}, level_count = LEVELS, kind = -1, part = -1;  // -1: all

/* The part that a figure belongs to, an index of part_names. */
static int part_of(const Text *t) {
    uint64_t hash = hash_bytes(HASH_BEGIN, t->s, t->n), number = random_splitmix(&hash) % PART_OF;
    return number < 2 ? (int)number : 2;
}

static bool figure(Text *t) {
    int level = levels[choose(level_count)], weights[COUNT_OF(kinds)];
    for (int i = 0; i < COUNT_OF(kinds); i++) weights[i] = kinds[i].weight;
    bool found = false;
    if (level == 1) {
        found = starter_figure(t);
    } else {  // a kind is tried until it succeeds: otherwise those that succeed easily would be frequent
        int k = kind >= 0 ? kind : choose_weighted(weights, COUNT_OF(kinds));
        for (int tries = 0; !found && tries < 1000; tries++) t->n = 0, found = kinds[k].figure(t, level);
    }
    return found && (part < 0 || part_of(t) == part);
}

static _Noreturn void refuse(const char *option, const char *expected, const char *found) {
    fprintf(stderr, "generate: error: %s needs %s, got '%s'\n", option, expected, found ? found : "");
    exit(2);
}

/* Reads levels with commas between them. False if the text is something else. */
static bool read_levels(const char *s) {
    level_count = 0;
    do {
        if (*s < '1' || *s > '0' + LEVELS || level_count == LEVELS_MAX) return false;
        levels[level_count++] = *s++ - '0';
    } while (*s == ',' && *s++);
    return !*s;
}

static int part_option(const char *value) {
    for (int i = 0; value && i < COUNT_OF(part_names); i++)
        if (!strcmp(value, part_names[i])) return i;
    refuse("--part", "train, val or test", value);
}

static int kind_option(const char *value) {
    char names[256];
    int n = 0;
    for (int i = 0; i < COUNT_OF(kinds); i++) {
        if (value && !strcmp(value, kinds[i].name)) return i;
        n += snprintf(names + n, sizeof names - (size_t)n, "%s%s", i ? i + 1 < COUNT_OF(kinds) ? ", " : " or " : "",
                      kinds[i].name);
    }
    refuse("--kind", names, value);
}

int main(int argc, char **argv) {
    SequenceOptions options = SEQUENCE_DEFAULTS;
    program_begin(argv);
    for (int i = 1; i < argc; i += 2) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (!strcmp(name, "--level") || !strcmp(name, "--levels")) {
            if (!value || !read_levels(value)) refuse(name, "levels from 1 to 5, such as 3 or 1,2,2", value);
        } else if (!strcmp(name, "--part"))
            part = part_option(value);
        else if (!strcmp(name, "--kind"))
            kind = kind_option(value);
        else if (!sequence_option(&options, name, value)) {
            fprintf(stderr, "usage: generate " SEQUENCE_USAGE " [--levels N,N,...] [--part NAME] [--kind NAME]\n");
            return strcmp(name, "--help") ? 2 : 0;
        }
    }
    sequence_write(&options, figure);
    return 0;
}
