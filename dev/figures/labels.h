/* What is written in figures: letters, numbers, words and formulas, from short lists, so that a small model can learn to
 * read them. */
#ifndef FIGURES_LABELS_H
#define FIGURES_LABELS_H

#include <string.h>

#include "style.h"

#define LABEL_SIZE 24  // bytes of a label with its end
typedef char Label[LABEL_SIZE];

/* Words that fit into a block of 1.5 cm. */
static const char *const short_words[] = {
    "Input", "Output", "Data",  "Model", "Loss",   "Read",  "Write", "Test", "Train", "Filter", "Plant", "Sensor",
    "Query", "Cache",  "Queue", "User",  "Server", "Disk",  "CPU",   "GPU",  "Layer", "Pool",   "Conv",  "Dense",
    "Norm",  "Sum",    "Sort",  "Merge", "Split",  "Parse", "Scan",  "Code", "Image", "Text",   "Label", "Noise",
    "Clock", "Event",  "Task",  "Plan",  "Check",  "Save",  "Load",  "Send", "State", "Agent"};

/* Words for blocks of 2 cm. */
static const char *const long_words[] = {"Encoder",  "Decoder",  "Softmax",  "Attention", "Classifier", "Controller",
                                         "Sampling", "Database", "Compiler", "Optimizer", "Scheduler",  "Embedding",
                                         "Features", "Training", "Evaluate", "Receiver",  "Network",    "Process"};

static const char *const formulas[] = {
    "$x$",        "$y$",        "$z$",       "$f$",       "$g$",        "$h$",    "$u$",    "$w$",
    "$x_1$",      "$x_2$",      "$y_1$",     "$y_2$",     "$x_n$",      "$h_t$",  "$f(x)$", "$g(x)$",
    "$\\alpha$",  "$\\beta$",   "$\\gamma$", "$\\theta$", "$\\lambda$", "$\\mu$", "$\\pi$", "$\\sigma$",
    "$\\phi$",    "$\\omega$",  "$\\Delta$", "$\\Sigma$", "$\\Omega$",  "$x^2$",  "$a+b$",  "$x+1$",
    "$\\hat{y}$", "$\\bar{x}$", "$e^x$",     "$n!$",      "$K_p$",      "$G(s)$", "$H(s)$", "$\\frac{1}{s}$",
    "$p(x)$",     "$\\times$",  "$\\infty$", "$\\sum$",   "$\\int$"};

static const char *const conditions[] = {"$x>0$", "$i<n$", "$a=b$", "$x<y$",  "$n=0$",
                                         "$k>1$", "Ok?",   "Done?", "Valid?", "Empty?"};

typedef enum { LETTERS, DIGITS, SUBSCRIPTS, SHORT_WORDS, LONG_WORDS, FORMULAS } LabelKind;

/* Writes n different labels of a kind. Letters and numbered ones follow each other more often than not, as people like
 * them. */
static inline void random_labels(Label *out, int n, LabelKind kind) {
    int order[32];
    bool in_order = chance(60);
    if (kind >= SHORT_WORDS) {
        const char *const *list = kind == SHORT_WORDS ? short_words : kind == LONG_WORDS ? long_words : formulas;
        choose_some(order, n,
                    kind == SHORT_WORDS  ? COUNT_OF(short_words)
                    : kind == LONG_WORDS ? COUNT_OF(long_words)
                                         : COUNT_OF(formulas));
        for (int i = 0; i < n; i++) snprintf(out[i], sizeof out[i], "%s", list[order[i]]);
        return;
    }
    int all = kind == LETTERS  ? 26
              : kind == DIGITS ? 30
                               : 10,
        first = kind == DIGITS ? choose(2)
                : chance(70)   ? 0
                               : 1;
    choose_some(order, n, all);
    char letter = "abehpqsuvxyz"[choose(12)];
    if (kind == LETTERS && in_order) first = chance(60) ? 0 : choose(26 - n);
    for (int i = 0; i < n; i++) {
        int k = in_order ? first + i : order[i];
        if (kind == LETTERS)
            snprintf(out[i], sizeof out[i], "%c", 'A' + k % 26);
        else if (kind == DIGITS)
            snprintf(out[i], sizeof out[i], "%d", k);
        else
            snprintf(out[i], sizeof out[i], "$%c_%d$", letter, k % 10);
    }
}

#endif
