/* The WebSocket connections: how they are opened, and what comes and goes on them. */
#ifndef CONNECTION_H
#define CONNECTION_H

#include "shared.h"

/* What is done with a message of one that has joined. */
typedef void text_taker(struct connection *connection, const char *text, size_t size);

/* What is done when one that is not slow has been ended by the server. */
typedef void end_taker(struct connection *connection);

void connections_begin(text_taker *on_text, end_taker *on_end);
void connections_open_more(void); /* as many at a time as the job allows */
void connections_check_deadline(void);
void connection_cut(struct connection *connection);
void connection_send_text(struct connection *connection, const char *text, size_t size);
void connection_update(struct connection *connection); /* slow ones stop reading, and read again when all is over */
void connections_flush(void); /* sends what has been queued since the last time */

#endif
