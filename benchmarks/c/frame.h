/* The head of a WebSocket frame, RFC 6455 section 5.2. */
#ifndef FRAME_H
#define FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CONTINUATION = 0, TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };
enum { HEAD_LIMIT = 14 }; /* two bytes, a length of eight, a mask */

struct head {
    bool fin, compressed, masked; /* compressed: RSV1, RFC 7692 */
    uint8_t opcode;
    uint8_t mask[4];
    uint64_t size; /* of the payload */
};

/* Reads a head; returns its length, or 0 if it is incomplete. */
size_t frame_read(const uint8_t *bytes, size_t size, struct head *head);

/* Writes the head of a final frame; `mask` may be NULL. Returns its length. */
size_t frame_write(uint8_t bytes[HEAD_LIMIT], uint8_t opcode, uint64_t size, const uint8_t mask[4]);

/* Masks or unmasks in place, section 5.3. */
void frame_mask(uint8_t *payload, size_t size, const uint8_t mask[4]);

#endif
