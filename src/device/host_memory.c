/* device/host_memory.c - see host_memory.h. */
#include "device/host_memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "base/size.h"

enum status host_memory_map(const char *device_name, uint64_t size_bytes, void **memory_out,
                            struct err *err)
{
    char text[24];
    void *memory = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                        0);

    if (memory == MAP_FAILED)
        return err_set(err, STATUS_NO_MEMORY, "%s: this machine refuses %s more memory: %s",
                       device_name, size_format(size_bytes, text, sizeof(text)), strerror(errno));
    (void)madvise(memory, size_bytes, MADV_HUGEPAGE); /* an ordinary page does too */
    *memory_out = memory;
    return STATUS_OK;
}

void host_memory_unmap(void *memory, uint64_t size_bytes)
{
    if (memory != NULL)
        (void)munmap(memory, size_bytes);
}
