/* Base64 (RFC 4648), for images inside text: commands to the terminal, pages, JSON. */
#ifndef LIB_BASE64_H
#define LIB_BASE64_H

#include "error.h"

/* Encodes n bytes. Returns the text, allocated, 4 characters for each 3 bytes or part of them. */
static inline char *base64_encode(const uint8_t *bytes, size_t n) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *text = (char *)xmalloc((n + 2) / 3 * 4 + 1), *to = text;
    for (size_t i = 0; i < n; i += 3) {
        const uint32_t b = i + 1 < n ? bytes[i + 1] : 0, c = i + 2 < n ? bytes[i + 2] : 0;
        const uint32_t word = (uint32_t)bytes[i] << 16 | b << 8 | c;
        *to++ = digits[word >> 18];
        *to++ = digits[word >> 12 & 63];
        *to++ = i + 1 < n ? digits[word >> 6 & 63] : '=';
        *to++ = i + 2 < n ? digits[word & 63] : '=';
    }
    *to = '\0';
    return text;
}

/* The value of a base64 digit, or -1. */
static inline int base64_digit(char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Decodes n characters; white space between them is skipped. The padding may be missing, as some clients leave it out, but
 * nothing may follow it. Returns the bytes, allocated, of *size bytes, or NULL with *err filled; `name` says there whose text
 * it is ("the field image"). */
static inline uint8_t *base64_decode(const char *text, size_t n, size_t *size, const char *name, Error *err) {
    uint8_t *bytes = (uint8_t *)xmalloc(n / 4 * 3 + 3);
    uint32_t word = 0;
    int digits = 0, padding = 0;
    size_t wrong = SIZE_MAX;
    *size = 0;
    for (size_t i = 0; i < n && wrong == SIZE_MAX; i++) {
        if (strchr(" \t\r\n", text[i]) && text[i]) continue;
        const int digit = base64_digit(text[i]);
        if (text[i] == '=' && digits >= 2 && digits + padding < 4) {
            padding++;
        } else if (digit < 0 || padding) {
            wrong = i;
        } else {
            word = word << 6 | (uint32_t)digit;
            if (++digits < 4) continue;
            for (int k = 2; k >= 0; k--) bytes[(*size)++] = (uint8_t)(word >> (8 * k));
            digits = 0;
        }
    }
    if (wrong == SIZE_MAX && digits != 1 && (padding == 0 || digits + padding == 4)) {
        word <<= digits == 2 ? 12 : 6;
        for (int k = 1; k < digits; k++) bytes[(*size)++] = (uint8_t)(word >> (8 * (3 - k)));
        return bytes;
    }
    if (wrong != SIZE_MAX)
        error_set(err, "%s is not base64: character %zu is none of its digits", name, wrong + 1);
    else
        error_set(err, "%s is not base64: it ends in the middle of a byte", name);
    free(bytes);
    return NULL;
}

#endif
