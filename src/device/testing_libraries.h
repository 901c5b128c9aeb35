/* device/testing_libraries.h - where tests find the stand-ins of what devices open at run time.
 *
 * BUILD/tests/ROOM/NAME_test runs; CANN's libraries are in BUILD/tests/cann/lib64, CUDA's module in
 * BUILD/tests/cuda. Only *_test.c files include this, and headers for them. A failure asserts
 * through cmocka. */
#ifndef LIGHTER_DEVICE_TESTING_LIBRARIES_H
#define LIGHTER_DEVICE_TESTING_LIBRARIES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

/* BUILD. */
static inline const char *testing_build_folder(void)
{
    static char self[4096];
    const ssize_t size = readlink("/proc/self/exe", self, sizeof(self) - 1);
    char *tests;

    assert_true(size > 0);
    self[size] = '\0';
    tests = strstr(self, "/tests/");
    assert_non_null(tests);
    for (char *next = tests; next != NULL; next = strstr(next + 1, "/tests/"))
        tests = next;
    *tests = '\0';
    return self;
}

/* For device_options. */
static inline const char *testing_library_path(void)
{
    static char folders[8192 + 64];
    const char *build = testing_build_folder();

    (void)snprintf(folders, sizeof(folders), "%s/tests/cann/lib64:%s/tests/cuda", build, build);
    return folders;
}

#endif
