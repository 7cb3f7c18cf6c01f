/* Sends one frame to many sockets, with one send() each. The contract is in native.py, the reason for C in
 * docs/adr/0019-native-send.md. The code uses no Python API, so one build serves every Python version. */

#include <sys/socket.h>
#include <sys/types.h>

/* `fds` holds `count` descriptors. Each is replaced by its result: -1 if the kernel took all `size` bytes, else the number
 * of bytes that it took, 0 after any error; the owner of the descriptor then retries and gets the error itself.
 * Returns how many sends are incomplete. Never blocks and never raises SIGPIPE. A descriptor that is not a socket gets no
 * bytes (ENOTSOCK). */
int tidewire_send_each(int *fds, int count, const char *frame, size_t size)
{
    int incomplete = 0;
    for (int i = 0; i < count; i++) {
        ssize_t sent = send(fds[i], frame, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent >= 0 && (size_t)sent == size) {
            fds[i] = -1;
        } else {
            fds[i] = sent > 0 ? (int)sent : 0; /* fits an int: Linux sends less than 2 GiB per call (send(2), write(2)) */
            incomplete++;
        }
    }
    return incomplete;
}
