/* Publishing by HTTP. */
#ifndef HTTP_H
#define HTTP_H

#include "shared.h"

void http_begin(void);
void http_submit(const struct filling *filling, const char *body, size_t size);
const char *http_first_refusal(void); /* "" if there was none */

#endif
