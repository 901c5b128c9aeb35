/* fleet/dial.h - how a rank and the front end find each other: addresses, tokens, machines.
 *
 * The front end's whereabouts are one line of text, handed to the ranks when they are started:
 *
 *     TOKEN ADDRESS[ ADDRESS...]      64 hexadecimal digits; "10.0.0.1:40001"
 *
 * The first half of the token is what a rank shows, the second what the front end answers. It keeps
 * strangers out who can reach the port; what is said is not encrypted, as MPI's own traffic is
 * not. */
#ifndef LIGHTER_FLEET_DIAL_H
#define LIGHTER_FLEET_DIAL_H

#include <stdbool.h>
#include <stdint.h>

#include "fleet/message.h"

#define FLEET__FRONT_BYTES_MAX 2048

struct fleet__tokens {
    char of_rank[FLEET__TOKEN_HEX + 1], of_front[FLEET__TOKEN_HEX + 1];
};
enum status fleet__tokens_make(struct fleet__tokens *tokens_out, struct err *err);
/* Compares in a time that does not depend on where they differ. */
bool fleet__token_equal(const char *a, const char *b);

/* A socket that listens: on this machine's loopback, or on every address. The caller closes it. */
enum status fleet__listen(bool every_address, int *fd_out, struct err *err);
/* The line for the ranks, into front_out. */
enum status fleet__front_write(const struct fleet__tokens *tokens, int listen_fd,
                               bool every_address, char front_out[FLEET__FRONT_BYTES_MAX],
                               struct err *err);

/* Takes the tokens from the line; *addresses_out: the rest of it, borrowed. */
enum status fleet__front_read(const char *front, struct fleet__tokens *tokens_out,
                              const char **addresses_out, struct err *err);
/* Connects to the first address at *at, within timeout_ms, and moves *at past it. *fd_out is -1
 * when it can't be reached. STATUS_UNAVAILABLE: no address is left. */
enum status fleet__dial(const char **at, int timeout_ms, int *fd_out, struct err *err);

/* Which machine (and which table of process numbers) this is, into out. */
void fleet__machine(char out[FLEET__HOST_BYTES_MAX]);

#endif
