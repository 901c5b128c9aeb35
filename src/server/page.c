/* server/page.c - the page at /, page.html, as bytes of the program. */
#include "server/internal.h"

/* The assembler's own way to take in a file; C has none before C23. */
__asm__(".section .rodata\n"
        ".global server__page, server__page_end\n"
        "server__page: .incbin \"src/server/page.html\"\n"
        "server__page_end: .byte 0\n"
        ".previous\n");

extern const char server__page_end[];

size_t server__page_size(void)
{
    return (size_t)(server__page_end - server__page);
}
