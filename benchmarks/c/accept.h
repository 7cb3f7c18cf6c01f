/* The response to a WebSocket upgrade, RFC 6455 section 4.2.2. */
#ifndef ACCEPT_H
#define ACCEPT_H

#include <stddef.h>

enum { ACCEPT_SIZE = 28, KEY_SIZE = 24 };

/* Writes the Sec-WebSocket-Accept for a Sec-WebSocket-Key of `size` bytes, and a NUL. Longer keys are cut at 64 bytes. */
void accept_of_key(const char *key, size_t size, char accept[ACCEPT_SIZE + 1]);

/* Writes a random Sec-WebSocket-Key of 16 bytes, and a NUL. */
void accept_new_key(char key[KEY_SIZE + 1]);

#endif
