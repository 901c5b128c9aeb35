/* checkpoint/load.h - what of load.c only this room's tests use. */
#ifndef LIGHTER_CHECKPOINT_LOAD_H
#define LIGHTER_CHECKPOINT_LOAD_H

#include "checkpoint/loader.h"

/* A staging with buffers of another size, so that small tests cross their ends. A multiple of 64;
 * see chunk_walk_init. past_cache: for a checkpoint that is read past the page cache. */
enum status load__staging_create(uint64_t buffer_bytes, bool past_cache,
                                 struct loader_staging **staging_out, struct err *err);

#endif
