/* Gives one frame to many sockets: one send() each, nothing between them. What it promises: native.py; why it is here:
 * docs/adr/0019-native-send.md. Nothing of Python's is used, so one build serves every Python. */

#include <sys/socket.h>
#include <sys/types.h>

/* places: in, `count` descriptors. Out, for each: -1 if the kernel took all `size` bytes, else how many it took (0 after any
 * error: whoever owns the descriptor tries again and meets it). Returns how many did not get all. Never waits, never raises
 * SIGPIPE. What is no socket gets nothing (ENOTSOCK). */
int tidewire_send_each(int *places, int count, const char *frame, size_t size)
{
    int shorts = 0;
    for (int i = 0; i < count; i++) {
        ssize_t taken = send(places[i], frame, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (taken >= 0 && (size_t)taken == size) {
            places[i] = -1;
        } else {
            places[i] = taken > 0 ? (int)taken : 0; /* Linux sends less than 2 GiB at once: send(2), write(2) */
            shorts++;
        }
    }
    return shorts;
}
