/* Checks that say in words what was compared, for the tests that compare numbers; samples.h has those that show the line of
 * code. */
#ifndef TEST_CHECKS_H
#define TEST_CHECKS_H

#if defined(SANITIZED) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#error "SANITIZE is set, but no sanitizer is among the compiler's options"
#endif

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

enum { CHECKS_SHOWN = 40 };  // failures that are printed

static int passed, failed;

/* Counts a check, and prints why it failed. */
__attribute__((format(printf, 2, 3))) static void check(bool ok, const char *format, ...) {
    if (ok) {
        passed++;
        return;
    }
    if (failed++ == CHECKS_SHOWN) printf("... and more\n");
    if (failed > CHECKS_SHOWN) return;
    va_list args;
    va_start(args, format);
    printf("FAILED ");
    vprintf(format, args);
    printf("\n");
    va_end(args);
}

/* Prints "N passed, M failed" and returns the exit status. */
static int checks_end(void) {
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}

/* |a - b| / |b| of two vectors; |a - b| where b is 0. */
static inline double relative_error(const float *a, const float *b, size_t n) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)a[i] - (double)b[i];
        difference += d * d;
        norm += (double)b[i] * (double)b[i];
    }
    return norm > 0 ? sqrt(difference / norm) : sqrt(difference);
}

#endif
