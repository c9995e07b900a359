/* generate: makes random TikZ figures for the starter data, each a complete document.
 *
 *   generate [--seed S] [--skip K] [--count N] [--out FOLDER]
 *
 * The seed S determines an endless sequence of figures. Figures K .. K+N-1 of it are written as FOLDER/000000.tex and
 * so on, or, if FOLDER is "-", to stdout, each followed by a NUL byte. No figure occurs twice in a sequence, so
 * ranges that do not overlap (training, validation, test) share no figure. */
#include "sequence.h"

#include "scenes.h"

int main(int argc, char **argv) {
    SequenceOptions options = SEQUENCE_DEFAULTS;
    program_begin(argv);
    for (int i = 1; i < argc; i += 2)
        if (!sequence_option(&options, argv[i], i + 1 < argc ? argv[i + 1] : NULL)) {
            fprintf(stderr, "usage: generate " SEQUENCE_USAGE "\n");
            return strcmp(argv[i], "--help") ? 2 : 0;
        }
    sequence_write(&options, starter_figure);
    return 0;
}
