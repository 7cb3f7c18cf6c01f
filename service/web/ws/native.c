/* The service's code in C: sends one frame to many sockets, and parses the heads of upgrades. The contracts are in native.py, the
 * reasons in docs/adr/0019-native-send.md and docs/adr/0040-the-way-in.md. The code uses no Python API, so one build serves every Python
 * version. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>
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

/* --- the head of an upgrade --------------------------------------------------------------------------------------------------- */

enum {
    MAX_HEAD = 8000,  /* MAX_PLAIN_BYTES of plain_request.py */
    MAX_FIELDS = 64,  /* MAX_PLAIN_FIELDS of plain_request.py */
    KEY_SIZE = 24,
    ACCEPT_SIZE = 28,
    MAX_OUT = 8400,   /* of native.py: a head, with a line feed more for each field; names do not become longer */
};

struct text {
    const char *at;
    size_t size;
};
#define TEXT(literal) {literal, sizeof(literal) - 1}

/* The fields that the service reads, as aiohttp's `hdrs` spells them. */
static const struct text NAMES[] = {
    TEXT("Host"), TEXT("Upgrade"), TEXT("Connection"), TEXT("Sec-WebSocket-Key"), TEXT("Sec-WebSocket-Version"),
    TEXT("Sec-WebSocket-Protocol"), TEXT("Sec-WebSocket-Extensions"), TEXT("Authorization"), TEXT("Origin"),
    TEXT("X-Forwarded-For"), TEXT("Sec-Fetch-Site"),
};
enum { NAME_COUNT = sizeof NAMES / sizeof NAMES[0], HOST = 0, UPGRADE = 1, CONNECTION = 2, KEY = 3, VERSION = 4 };

/* _UNUSUAL of plain_request.py. */
static const struct text UNUSUAL[] = {
    TEXT("Content-Length"), TEXT("Cookie"), TEXT("Expect"), TEXT("Sec-WebSocket-Key1"), TEXT("Transfer-Encoding"),
};
enum { UNUSUAL_COUNT = sizeof UNUSUAL / sizeof UNUSUAL[0] };

enum { OF_NAME = 1, OF_TARGET = 2, OF_VALUE = 4, OF_KEY = 8 };

/* In which texts each character may be. */
static unsigned char classes[256];

/* Runs when the library is loaded. */
__attribute__((constructor)) static void fill_classes(void)
{
    static const char others[] = "._~!$&'()*,;:@/?=-";
    for (int c = ' '; c <= '~'; c++) {
        classes[c] = OF_VALUE;
        if ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z')) {
            classes[c] |= OF_NAME | OF_TARGET | OF_KEY;
        }
    }
    classes['-'] |= OF_NAME;
    classes['+'] |= OF_KEY;
    classes['/'] |= OF_KEY;
    for (size_t i = 0; i < sizeof others - 1; i++) {
        classes[(unsigned char)others[i]] |= OF_TARGET;
    }
}

/* The first of `head` from `at` on that is not of the class, or `size`. */
static size_t end_of(int class, const char *head, size_t at, size_t size)
{
    while (at < size && classes[(unsigned char)head[at]] & class) {
        at++;
    }
    return at;
}

static char lowered(char character)
{
    return character >= 'A' && character <= 'Z' ? (char)(character + ('a' - 'A')) : character;
}

static int is_same(struct text one, struct text other)
{
    if (one.size != other.size) {
        return 0;
    }
    for (size_t i = 0; i < one.size; i++) {
        if (lowered(one.at[i]) != lowered(other.at[i])) {
            return 0;
        }
    }
    return 1;
}

static char *append(char *out, struct text text)
{
    memcpy(out, text.at, text.size);
    out[text.size] = '\n';
    return out + text.size + 1;
}

static uint32_t rotated(uint32_t word, int by)
{
    return word << by | word >> (32 - by);
}

/* One block of SHA-1 (RFC 3174 section 6.1). */
static void add_block(uint32_t state[5], const uint8_t block[64])
{
    uint32_t w[80];
    for (int t = 0; t < 16; t++) {
        w[t] = (uint32_t)block[4 * t] << 24 | (uint32_t)block[4 * t + 1] << 16 | (uint32_t)block[4 * t + 2] << 8 | block[4 * t + 3];
    }
    for (int t = 16; t < 80; t++) {
        w[t] = rotated(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
#define ROUNDS(from, to, f, k)                                      \
    for (int t = from; t < to; t++) {                               \
        uint32_t next = rotated(a, 5) + (f) + e + w[t] + (k);       \
        e = d, d = c, c = rotated(b, 30), b = a, a = next;          \
    }
    ROUNDS(0, 20, (b & c) | (~b & d), 0x5A827999)
    ROUNDS(20, 40, b ^ c ^ d, 0x6ED9EBA1)
    ROUNDS(40, 60, (b & c) | (b & d) | (c & d), 0x8F1BBCDC)
    ROUNDS(60, 80, b ^ c ^ d, 0xCA62C1D6)
#undef ROUNDS
    state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
}

/* If the key is 16 bytes as base64: 22 digits, of which the last has four bits that are 0, and two characters of padding. */
static int is_key(struct text key)
{
    if (key.size != KEY_SIZE || memcmp(key.at + KEY_SIZE - 2, "==", 2) != 0) {
        return 0;
    }
    for (int i = 0; i < KEY_SIZE - 2; i++) {
        if (!(classes[(unsigned char)key.at[i]] & OF_KEY)) {
            return 0;
        }
    }
    return strchr("AQgw", key.at[KEY_SIZE - 3]) != NULL;
}

/* Sec-WebSocket-Accept of a key (RFC 6455 section 4.2.2): the SHA-1 of 60 bytes, which need two blocks, as base64. */
static void write_accept(const char key[KEY_SIZE], char accept[ACCEPT_SIZE])
{
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    enum { SIZE = KEY_SIZE + sizeof guid - 1 };
    uint32_t state[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    uint8_t padded[128] = {0}, digest[21] = {0};
    memcpy(padded, key, KEY_SIZE);
    memcpy(padded + KEY_SIZE, guid, sizeof guid - 1);
    padded[SIZE] = 0x80;
    padded[126] = (uint8_t)(SIZE * 8 >> 8);
    padded[127] = (uint8_t)(SIZE * 8 & 0xFF);
    add_block(state, padded);
    add_block(state, padded + 64);
    for (int i = 0; i < 20; i++) {
        digest[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
    }
    for (int i = 0; i < 7; i++) {
        uint32_t three = (uint32_t)digest[3 * i] << 16 | (uint32_t)digest[3 * i + 1] << 8 | digest[3 * i + 2];
        for (int j = 0; j < 4; j++) {
            accept[4 * i + j] = digits[three >> (18 - 6 * j) & 63];
        }
    }
    accept[ACCEPT_SIZE - 1] = '=';
}

/* `head` holds `size` bytes. If parse_plain_upgrade of plain_request.py accepts them (but for the syntax of Host), writes lines to `out`,
 * each with a line feed at its end, and returns how many bytes they have; else returns 0. The lines: Sec-WebSocket-Accept, which is
 * empty unless key and version are valid, too (RFC 6455 section 4.2.1); the target; and a name and a value for each of NAMES that
 * the head has. `out` has room for MAX_OUT bytes. */
size_t tidewire_parse_handshake(const char *head, size_t size, char *out)
{
    static const struct text method = TEXT("GET "), version = TEXT(" HTTP/1.1\r\n");
    static const struct text websocket = TEXT("websocket"), upgrade = TEXT("upgrade"), kept = TEXT("keep-alive, upgrade"), thirteen = TEXT("13");
    struct text names[MAX_FIELDS], values[NAME_COUNT] = {{NULL, 0}};
    if (size > MAX_HEAD || size < method.size || memcmp(head, method.at, method.size) != 0) {
        return 0;
    }
    size_t at = end_of(OF_TARGET, head, method.size, size);
    struct text target = {head + method.size, at - method.size};
    if (target.size == 0 || target.at[0] != '/' || size - at < version.size
        || memcmp(head + at, version.at, version.size) != 0) {
        return 0;
    }
    at += version.size;
    int count = 0;
    for (; at < size && head[at] != '\r'; count++) {
        size_t end = end_of(OF_NAME, head, at, size);
        struct text name = {head + at, end - at};
        if (count == MAX_FIELDS || name.size == 0 || size - end < 2 || head[end] != ':' || head[end + 1] != ' ') {
            return 0;
        }
        at = end + 2;
        end = end_of(OF_VALUE, head, at, size);
        struct text value = {head + at, end - at};
        if (size - end < 2 || head[end] != '\r' || head[end + 1] != '\n') {
            return 0;
        }
        if (value.size > 0 && (value.at[0] == ' ' || value.at[value.size - 1] == ' ')) {
            return 0;
        }
        at = end + 2;
        for (int i = 0; i < count; i++) {
            if (is_same(names[i], name)) {
                return 0;
            }
        }
        for (int i = 0; i < UNUSUAL_COUNT; i++) {
            if (is_same(UNUSUAL[i], name)) {
                return 0;
            }
        }
        for (int i = 0; i < NAME_COUNT; i++) {
            if (is_same(NAMES[i], name)) {
                values[i] = value;
                break;
            }
        }
        names[count] = name;
    }
    if (count == 0 || size - at != 2 || head[at] != '\r' || head[at + 1] != '\n') {
        return 0;
    }
    if (values[HOST].size == 0 || !is_same(values[UPGRADE], websocket)
        || !(is_same(values[CONNECTION], upgrade) || is_same(values[CONNECTION], kept))) {
        return 0;
    }
    char accept[ACCEPT_SIZE], *end = out;
    struct text accepted = {accept, 0};
    if (is_key(values[KEY]) && is_same(values[VERSION], thirteen)) {
        write_accept(values[KEY].at, accept);
        accepted.size = ACCEPT_SIZE;
    }
    end = append(append(end, accepted), target);
    for (int i = 0; i < NAME_COUNT; i++) {
        if (values[i].at != NULL) {
            end = append(append(end, NAMES[i]), values[i]);
        }
    }
    return (size_t)(end - out);
}
