/* base/memory_left.h - how much memory this machine can still give to this process. */
#ifndef LIGHTER_BASE_MEMORY_LEFT_H
#define LIGHTER_BASE_MEMORY_LEFT_H

#include <stdint.h>

/* What the kernel estimates can be taken without swapping, and without passing the limit of any
 * control group that this process is in; page cache that can be dropped counts as
 * free. UINT64_MAX when neither can be read. */
uint64_t memory_left_bytes(void);

#endif
