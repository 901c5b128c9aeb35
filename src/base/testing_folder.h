/* base/testing_folder.h - a folder that a test fills and removes.
 *
 * Only *_test.c files include this, and headers for them. A failure asserts through cmocka. */
#ifndef LIGHTER_BASE_TESTING_FOLDER_H
#define LIGHTER_BASE_TESTING_FOLDER_H

#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#define TESTING_FOLDER_BYTES 64

/* Makes "/tmp/lighter_NAME_..." and says how it is called. */
static inline void testing_folder_make(char path[TESTING_FOLDER_BYTES], const char *name)
{
    (void)snprintf(path, TESTING_FOLDER_BYTES, "/tmp/lighter_%s_XXXXXX", name);
    assert_non_null(mkdtemp(path));
}

static inline int testing_folder_remove_one(const char *path, const struct stat *status, int type,
                                            struct FTW *place)
{
    (void)status;
    (void)type;
    (void)place;
    return remove(path);
}

/* With all that is in it. */
static inline void testing_folder_remove(const char *path)
{
    assert_int_equal(nftw(path, testing_folder_remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

#endif
