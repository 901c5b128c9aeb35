/* base/heap.h - what this process has taken of the C library's heap. */
#ifndef LIGHTER_BASE_HEAP_H
#define LIGHTER_BASE_HEAP_H

#include <stdint.h>

/* Bytes that are in use, with what the allocator keeps of each; 0 where it does not tell. Looks at
 * all of the heap: not for where speed matters. */
uint64_t heap_used_bytes(void);
/* Gives back to the system what was freed and is kept. */
void heap_trim(void);

#endif
