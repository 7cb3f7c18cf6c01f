#include "frame.h"

#include <string.h>

size_t frame_read(const uint8_t *bytes, size_t size, struct head *head) {
    if (size < 2) return 0;
    size_t length_bytes = (bytes[1] & 0x7f) == 126 ? 2 : (bytes[1] & 0x7f) == 127 ? 8 : 0;
    head->fin = bytes[0] & 0x80;
    head->compressed = bytes[0] & 0x40;
    head->opcode = bytes[0] & 0x0f;
    head->masked = bytes[1] & 0x80;
    size_t whole = 2 + length_bytes + (head->masked ? 4 : 0);
    if (size < whole) return 0;
    head->size = length_bytes ? 0 : bytes[1] & 0x7f;
    for (size_t n = 0; n < length_bytes; n++) head->size = head->size << 8 | bytes[2 + n];
    if (head->masked) memcpy(head->mask, bytes + 2 + length_bytes, 4);
    return whole;
}

size_t frame_write(uint8_t bytes[HEAD_LIMIT], uint8_t opcode, uint64_t size, const uint8_t mask[4]) {
    size_t length_bytes = size < 126 ? 0 : size < 65536 ? 2 : 8;
    bytes[0] = 0x80 | opcode;
    bytes[1] = (uint8_t)((mask ? 0x80 : 0) | (length_bytes == 0 ? size : length_bytes == 2 ? 126 : 127));
    for (size_t n = 0; n < length_bytes; n++) bytes[2 + n] = (uint8_t)(size >> (8 * (length_bytes - 1 - n)));
    if (mask) memcpy(bytes + 2 + length_bytes, mask, 4);
    return 2 + length_bytes + (mask ? 4 : 0);
}

void frame_mask(uint8_t *payload, size_t size, const uint8_t mask[4]) {
    uint64_t twice, word;
    memcpy(&twice, mask, 4);
    memcpy((uint8_t *)&twice + 4, mask, 4);
    size_t at = 0;
    for (; at + 8 <= size; at += 8) {
        memcpy(&word, payload + at, 8);
        word ^= twice;
        memcpy(payload + at, &word, 8);
    }
    for (; at < size; at++) payload[at] ^= mask[at % 4];
}
