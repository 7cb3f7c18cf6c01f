/* WebSocket connections: open, send, receive. */
#ifndef CONNECTION_H
#define CONNECTION_H

#include "shared.h"

/* Called with a message of a joined connection. */
typedef void text_taker(struct connection *connection, const char *text, size_t size);

/* Called when the server ended a connection that is not slow. */
typedef void end_taker(struct connection *connection);

void connections_begin(text_taker *on_text, end_taker *on_end);
void connections_open_more(void); /* up to the job's `concurrency` */
void connections_check_deadline(void);
void connection_cut(struct connection *connection);
void connection_send_text(struct connection *connection, const char *text, size_t size);
void connection_update(struct connection *connection); /* slow connections stop reading, and resume after the phase */
void connections_flush(void); /* sends all queued data */

#endif
