/* UTF-8: checking, scanning and writing single characters (Unicode 15, table 3-7: no overlong forms, no surrogates,
 * nothing above U+10FFFF). */
#ifndef LIB_UTF8_H
#define LIB_UTF8_H

#include <stddef.h>
#include <stdint.h>

typedef enum { UTF8_COMPLETE, UTF8_INCOMPLETE, UTF8_INVALID } Utf8State;

/* Scans the character that begins at s, of which n > 0 bytes are known. *length is set to the number of its bytes,
 * or, if it is incomplete or invalid, to that of the longest valid beginning of a character there (at least 1). */
static inline Utf8State utf8_scan(const uint8_t *s, size_t n, size_t *length) {
    uint8_t c = s[0], low = 0x80, high = 0xbf;  // the range of the second byte
    if (c == 0xe0) low = 0xa0;
    if (c == 0xf0) low = 0x90;
    if (c == 0xed) high = 0x9f;
    if (c == 0xf4) high = 0x8f;
    size_t needed = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;
    *length = 1;
    if (needed == 0) return UTF8_INVALID;
    for (; *length < needed; ++*length, low = 0x80, high = 0xbf) {
        if (*length >= n) return UTF8_INCOMPLETE;
        if (s[*length] < low || s[*length] > high) return UTF8_INVALID;
    }
    return UTF8_COMPLETE;
}

/* The number of bytes, 1 to 4, of the character at s (n bytes left), or 0 when it is not valid. */
static inline int utf8_sequence(const uint8_t *s, size_t n) {
    size_t length;
    return n > 0 && utf8_scan(s, n, &length) == UTF8_COMPLETE ? (int)length : 0;
}

/* Writes a code point as UTF-8 and returns the number of bytes, 1 to 4. */
static inline int utf8_write(char *out, uint32_t c) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    int length = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = length - 1; i > 0; i--, c >>= 6) out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)((length == 2 ? 0xc0u : length == 3 ? 0xe0u : 0xf0u) | c);
    return length;
}

#endif
