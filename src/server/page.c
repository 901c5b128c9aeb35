/* server/page.c - the page at /, page.html, as bytes of the program: the assembler takes in a file,
 * which C does not before C23. */
#include "server/internal.h"

__asm__(".section .rodata\n"
        ".global server__page, server__page_size\n"
        "server__page: .incbin \"src/server/page.html\"\n"
        "server__page_end: .byte 0\n"
        ".balign 8\n"
        "server__page_size: .quad server__page_end - server__page\n"
        ".previous\n");
