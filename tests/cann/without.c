/* tests/cann/without.c - leaves symbols out of a library, as older releases do.
 *
 * CANN_STANDIN_WITHOUT=name,name: before dlopen returns, the constructor spoils these names in the
 * library's own table of strings, so that dlsym finds them no more. CANN_STANDIN_RELEASE=8.1.RC1
 * leaves out what cann.h lists as newer. Part of each of the libraries. */
#include <dlfcn.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "abi.h"

#define NEWER(need, since, type, name, parameters) \
    if (strcmp(since, CANN_8_1) != 0)              \
        leave_out(#name);
#define NEWER_OPERATOR(need, since, name, ...)          \
    if (strcmp(since, CANN_8_1) != 0) {                 \
        leave_out("aclnn" #name);                       \
        leave_out("aclnn" #name "GetWorkspaceSize");    \
    }

static char *strings;
static size_t strings_size;

static void leave_out(const char *name)
{
    const size_t length = strlen(name);

    for (size_t i = 1; i + length < strings_size; i++) {
        if (strings[i - 1] == '\0' && memcmp(strings + i, name, length + 1) == 0)
            strings[i] = '-';
    }
}

static void strings_find(void)
{
    struct link_map *map = NULL;
    Dl_info info;

    if (dladdr1(&strings, &info, (void **)&map, RTLD_DL_LINKMAP) == 0)
        return;
    for (const ElfW(Dyn) *d = map->l_ld; d->d_tag != DT_NULL; d++) {
        if (d->d_tag == DT_STRTAB)
            memcpy(&strings, &d->d_un.d_ptr, sizeof(strings));
        else if (d->d_tag == DT_STRSZ)
            strings_size = d->d_un.d_val;
    }
    if (strings != NULL && (uintptr_t)strings < map->l_addr)
        strings += map->l_addr;
}

__attribute__((constructor)) static void without(void)
{
    const char *list = getenv("CANN_STANDIN_WITHOUT");
    const char *release = getenv("CANN_STANDIN_RELEASE");
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    char *copy, *rest, *name;
    char *base;

    if ((list == NULL || *list == '\0') && release == NULL)
        return;
    strings_find();
    if (strings == NULL)
        return;
    base = strings - (uintptr_t)strings % page;
    if (mprotect(base, (size_t)(strings - base) + strings_size,
                 PROT_READ | PROT_WRITE | PROT_EXEC) != 0)
        return;
    if (release != NULL && strcmp(release, CANN_8_1) == 0) {
        CANN_ASCENDCL(NEWER)
        CANN_OPAPI_FUNCTIONS(NEWER)
        CANN_OPERATORS(NEWER_OPERATOR)
    }
    rest = copy = strdup(list != NULL ? list : "");
    while (copy != NULL && (name = strsep(&rest, ",")) != NULL)
        leave_out(name);
    free(copy);
}
