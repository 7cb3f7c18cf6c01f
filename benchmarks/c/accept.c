#include "accept.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

static const char GUID[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

enum { KEY_LIMIT = 64, DIGEST = 20, BLOCK = 64 };

static uint32_t rotated(uint32_t word, int by) { return word << by | word >> (32 - by); }

/* One block of SHA-1, RFC 3174 section 6.1. */
static void sha1_block(uint32_t state[5], const uint8_t block[BLOCK]) {
    uint32_t w[80];
    for (int t = 0; t < 16; t++)
        w[t] = (uint32_t)block[4 * t] << 24 | (uint32_t)block[4 * t + 1] << 16 | (uint32_t)block[4 * t + 2] << 8 | block[4 * t + 3];
    for (int t = 16; t < 80; t++) w[t] = rotated(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
    for (int t = 0; t < 80; t++) {
        uint32_t f, k;
        if (t < 20) f = (b & c) | (~b & d), k = 0x5A827999;
        else if (t < 40) f = b ^ c ^ d, k = 0x6ED9EBA1;
        else if (t < 60) f = (b & c) | (b & d) | (c & d), k = 0x8F1BBCDC;
        else f = b ^ c ^ d, k = 0xCA62C1D6;
        uint32_t next = rotated(a, 5) + f + e + w[t] + k;
        e = d, d = c, c = rotated(b, 30), b = a, a = next;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
}

/* SHA-1 of at most two blocks, enough for a handshake. */
static void sha1(const uint8_t *bytes, size_t size, uint8_t digest[DIGEST]) {
    uint32_t state[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    uint8_t padded[2 * BLOCK] = {0};
    size_t whole = size + 9 <= BLOCK ? BLOCK : 2 * BLOCK;
    memcpy(padded, bytes, size);
    padded[size] = 0x80;
    for (size_t n = 0; n < 8; n++) padded[whole - 1 - n] = (uint8_t)((uint64_t)size * 8 >> (8 * n));
    for (size_t at = 0; at < whole; at += BLOCK) sha1_block(state, padded + at);
    for (size_t n = 0; n < DIGEST; n++) digest[n] = (uint8_t)(state[n / 4] >> (24 - 8 * (n % 4)));
}

static void base64(const uint8_t *bytes, size_t size, char *out) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t at = 0; at < size; at += 3) {
        size_t left = size - at;
        uint32_t three = (uint32_t)bytes[at] << 16 | (left > 1 ? (uint32_t)bytes[at + 1] << 8 : 0) | (left > 2 ? bytes[at + 2] : 0);
        *out++ = digits[three >> 18];
        *out++ = digits[three >> 12 & 63];
        *out++ = left > 1 ? digits[three >> 6 & 63] : '=';
        *out++ = left > 2 ? digits[three & 63] : '=';
    }
    *out = 0;
}

void accept_of_key(const char *key, size_t size, char accept[ACCEPT_SIZE + 1]) {
    uint8_t joined[KEY_LIMIT + sizeof GUID - 1], digest[DIGEST];
    if (size > KEY_LIMIT) size = KEY_LIMIT;
    memcpy(joined, key, size);
    memcpy(joined + size, GUID, sizeof GUID - 1);
    sha1(joined, size + sizeof GUID - 1, digest);
    base64(digest, DIGEST, accept);
}

void accept_new_key(char key[KEY_SIZE + 1]) {
    uint8_t bytes[16];
    if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes) abort(); /* short reads do not happen for so few bytes */
    base64(bytes, sizeof bytes, key);
}
