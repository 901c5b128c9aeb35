/* base/heap.c - see heap.h. mallinfo2(3) and malloc_trim(3) are glibc's. */
#include "base/heap.h"

#include <malloc.h>

uint64_t heap_used_bytes(void)
{
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
    const struct mallinfo2 info = mallinfo2();

    return info.uordblks + info.hblkhd;
#else
    return 0;
#endif
}

void heap_trim(void)
{
#ifdef __GLIBC__
    (void)malloc_trim(0);
#endif
}
