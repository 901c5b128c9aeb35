/* base/fuzz_main.c - runs a fuzz target over files, where libFuzzer is not linked in.
 *
 * Every argument is a file, or a folder whose files are taken; each is handed to the target once.
 * So the corpus that fuzzing has gathered is run by every build, with every compiler. */
#include <dirent.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/buf.h"
#include "base/file.h"
#include "base/size.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int run_path(const char *path)
{
    struct dirent **entries = NULL;
    struct buf bytes;
    struct err err;
    int count;
    int run = 0;

    if (file_is_directory(path)) {
        count = scandir(path, &entries, NULL, alphasort);
        for (int i = 0; i < count; i++) {
            char child[4096];
            (void)snprintf(child, sizeof(child), "%s/%s", path, entries[i]->d_name);
            if (entries[i]->d_name[0] != '.')
                run += run_path(child);
            free(entries[i]);
        }
        free(entries);
        return run;
    }
    buf_init(&bytes, 64 * MIB);
    if (file_read_all(path, &bytes, &err) != STATUS_OK) {
        fprintf(stderr, "%s\n", err.message);
        exit(1);
    }
    (void)LLVMFuzzerTestOneInput((const uint8_t *)(bytes.data != NULL ? bytes.data : ""),
                                 bytes.size);
    buf_deinit(&bytes);
    return 1;
}

int main(int argc, char **argv)
{
    int run = 0;

    for (int i = 1; i < argc; i++)
        run += run_path(argv[i]);
    printf("%d inputs\n", run);
    return run > 0 ? 0 : 1;
}
