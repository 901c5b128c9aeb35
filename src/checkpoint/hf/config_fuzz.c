/* checkpoint/hf/config_fuzz.c - any bytes as config.json, and as model.safetensors.index.json, of a
 * folder whose other files are good. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/testing.h"

#define CONFIG "config.json"
#define INDEX "model.safetensors.index.json"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char *folder; /* made once; removed at exit */

static void remove_folder(void)
{
    ckpt_testing_remove(folder);
}

static void make_folder(void)
{
    const float numbers[] = { 1, 2, 3 };
    const struct ckpt_testing_tensor tensors[] = {
        { "a", DTYPE_F32, 1, { 3 }, numbers },
        { "b", DTYPE_F32, 0, { 0 }, numbers },
        { "c", DTYPE_BF16, 2, { 2, 2 }, numbers },
    };

    folder = ckpt_testing_folder();
    if (atexit(remove_folder) != 0)
        abort();
    ckpt_testing_write_tensors(folder, "m1.safetensors", tensors, 2);
    ckpt_testing_write_tensors(folder, "m2.safetensors", tensors + 2, 1);
}

static void open_folder(void)
{
    struct ckpt *ckpt = NULL;
    struct err err;

    if (ckpt_open(folder, &ckpt, &err) != STATUS_OK)
        return;
    if (!json_is_object(ckpt_config(ckpt)) || ckpt_tensor_count(ckpt) == 0 ||
        ckpt_find(ckpt, ckpt_tensor_at(ckpt, 0)->name) == NULL)
        abort();
    ckpt_close(ckpt);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char good_index[] = "{\"weight_map\":{\"a\":\"m1.safetensors\","
                                     "\"b\":\"m1.safetensors\",\"c\":\"m2.safetensors\"}}";

    if (folder == NULL)
        make_folder();
    ckpt_testing_write_file(folder, INDEX, good_index, sizeof(good_index) - 1);
    ckpt_testing_write_file(folder, CONFIG, data, size);
    open_folder();
    ckpt_testing_write_file(folder, INDEX, data, size);
    ckpt_testing_write_config(folder, "{}");
    open_folder();
    return 0;
}
