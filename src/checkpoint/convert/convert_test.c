/* checkpoint/convert/convert_test.c - a GGUF file is made, however often that is interrupted.
 *
 * Method: a llama of random blocks and numbers is converted under the least memory, which takes
 * many steps. Children of the test convert it and die by SIGKILL after some of them, or are
 * refused more bytes; what comes of it in the end must be what an uninterrupted run makes, byte for
 * byte. What the file means is tested in model/gguf_test.c. */
#include <fcntl.h>
#include <glob.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/file.h"
#include "base/size.h"
#include "checkpoint/convert/convert.h"
#include "checkpoint/gguf/gguf.h"
#include "checkpoint/gguf/pre.h"
#include "checkpoint/testing.h"
#include "tensor/testing.h"

enum { ROWS = 600, COLS = 512, LAYERS = 3 };

/* A folder with a model in it, m.gguf, and room for what is made of it. */
struct source {
    char *folder;
    char model[256], out[256], part[256];
};

static void *random_data(enum dtype dtype, uint64_t count, uint64_t *random)
{
    void *const data = malloc(dtype_row_bytes(dtype, count));

    assert_non_null(data);
    if (dtype == DTYPE_F32)
        for (uint64_t i = 0; i < count; i++)
            ((float *)data)[i] = (float)((int32_t)testing_bits(random) * 0x1p-31);
    else
        testing_blocks(data, dtype, count, random);
    return data;
}

static struct source make_source(void)
{
    const struct ckpt_testing_pair pairs[] = { CKPT_TESTING_LLAMA_PAIRS,
                                               { "general.name", 8, "kept", 0 } };
    static const enum dtype dtypes[LAYERS] = { DTYPE_F32, DTYPE_Q8_0, DTYPE_Q4_K };
    struct ckpt_testing_tensor tensors[2 * LAYERS + 1];
    char names[LAYERS][2][32];
    struct source source = { .folder = ckpt_testing_folder() };
    uint64_t random = 7;

    tensors[0] = (struct ckpt_testing_tensor){ "token_embd.weight", DTYPE_F32, 2, { 64, COLS },
                                               random_data(DTYPE_F32, 64 * COLS, &random) };
    for (size_t i = 0; i < LAYERS; i++) {
        (void)snprintf(names[i][0], 32, "blk.%zu.ffn_up.weight", i);
        (void)snprintf(names[i][1], 32, "blk.%zu.attn_norm.weight", i);
        tensors[2 * i + 1] = (struct ckpt_testing_tensor){
            names[i][0], dtypes[i], 2, { ROWS, COLS },
            random_data(dtypes[i], (uint64_t)ROWS * COLS, &random)
        };
        tensors[2 * i + 2] = (struct ckpt_testing_tensor){
            names[i][1], DTYPE_F32, 1, { 17 }, random_data(DTYPE_F32, 17, &random)
        };
    }
    ckpt_testing_write_gguf(source.folder, "m.gguf", pairs, CKPT_TESTING_LLAMA_PAIR_COUNT + 1,
                            tensors, 2 * LAYERS + 1);
    for (size_t i = 0; i < 2 * LAYERS + 1; i++)
        free((void *)tensors[i].data);
    (void)snprintf(source.model, sizeof(source.model), "%s/m.gguf", source.folder);
    (void)snprintf(source.out, sizeof(source.out), "%s/o.gguf", source.folder);
    (void)snprintf(source.part, sizeof(source.part), "%s/o.part.gguf", source.folder);
    return source;
}

static struct convert_options options_of(const struct source *source)
{
    return (struct convert_options){ .out = source->out, .type = "Q4_K_S", .thread_count = 1,
                                     .memory_budget_bytes = 450 * KIB };
}

static struct ckpt *open_model(const struct source *source)
{
    struct ckpt *ckpt = NULL;
    struct err err;

    if (ckpt_open(source->model, &ckpt, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return ckpt;
}

/* Converts; the sentence of a failure into err. */
static enum status run(const struct source *source, const struct convert_options *options,
                       const struct progress *progress, struct convert_summary *summary_out,
                       struct err *err)
{
    struct ckpt *const ckpt = open_model(source);
    struct convert *convert = NULL;
    enum status st = convert_open(ckpt, options, &convert, err);

    if (st == STATUS_OK) {
        *summary_out = *convert_summary(convert);
        st = convert_run(convert, progress, err);
    }
    convert_close(convert);
    ckpt_close(ckpt);
    return st;
}

static struct convert_summary run_well(const struct source *source,
                                       const struct convert_options *options)
{
    struct convert_summary summary;
    struct err err;

    if (run(source, options, NULL, &summary, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    assert_false(file_exists(source->part));
    return summary;
}

static struct buf read_out(const struct source *source)
{
    struct buf bytes;
    struct err err;

    buf_init(&bytes, 64 * MIB);
    if (file_read_all(source->out, &bytes, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return bytes;
}

/* Whether the file is what `wanted` holds; removes it. */
static void check_out(const struct source *source, const struct buf *wanted)
{
    struct buf found = read_out(source);

    assert_int_equal(found.size, wanted->size);
    assert_memory_equal(found.data, wanted->data, wanted->size);
    buf_deinit(&found);
    assert_int_equal(unlink(source->out), 0);
}

static struct buf reference(const struct source *source)
{
    const struct convert_options options = options_of(source);
    struct buf bytes;

    (void)run_well(source, &options);
    bytes = read_out(source);
    assert_int_equal(unlink(source->out), 0);
    return bytes;
}

/* --- interruptions ---------------------------------------------------------------------------- */

static void die_at_zero(void *user, const char *what, uint64_t done_bytes, uint64_t total_bytes)
{
    int *const left = user;

    (void)what;
    (void)done_bytes;
    (void)total_bytes;
    if ((*left)-- == 0)
        (void)raise(SIGKILL);
}

/* A child converts and is killed when it tells of its progress for the steps-th time. */
static void run_and_die(const struct source *source, const struct convert_options *options,
                        int steps)
{
    const struct progress progress = { die_at_zero, &steps };
    const pid_t child = fork();
    int status = 0;

    assert_true(child >= 0);
    if (child == 0) {
        struct convert_summary summary;
        struct err err;
        (void)run(source, options, &progress, &summary, &err);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_true(file_exists(source->part));
    assert_false(file_exists(source->out));
}

static void what_was_killed_goes_on(void **state)
{
    const struct source source = make_source();
    const struct convert_options options = options_of(&source);
    struct buf wanted = reference(&source);
    uint64_t before = 0;

    (void)state;
    for (int steps = 0; steps < 24; steps += 5) {
        struct convert_summary summary;
        run_and_die(&source, &options, steps);
        summary = run_well(&source, &options);
        assert_true(steps == 0 ? summary.resumed_bytes == 0 : summary.resumed_bytes > before);
        before = summary.resumed_bytes;
        check_out(&source, &wanted);
    }
    for (int round = 0; round < 5; round++) /* again and again, each a little further */
        run_and_die(&source, &options, 3);
    assert_true(run_well(&source, &options).resumed_bytes > 0);
    check_out(&source, &wanted);
    buf_deinit(&wanted);
    ckpt_testing_remove(source.folder);
}

/* Flips a byte behind where the file will end. */
static void spoil_slot(const struct source *source, uint64_t out_bytes, int slot)
{
    const int fd = open(source->part, O_RDWR);
    const off_t at = (off_t)(out_bytes + (uint64_t)slot * 64 + 20);
    uint8_t byte = 0;

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    (void)close(fd);
}

static void a_broken_note_counts_for_nothing(void **state)
{
    const struct source source = make_source();
    const struct convert_options options = options_of(&source);
    struct buf wanted = reference(&source);
    uint64_t resumed[2];

    (void)state;
    for (int slot = 0; slot < 2; slot++) { /* the one before it counts */
        run_and_die(&source, &options, 9);
        spoil_slot(&source, wanted.size, slot);
        resumed[slot] = run_well(&source, &options).resumed_bytes;
        assert_true(resumed[slot] > 0);
        check_out(&source, &wanted);
    }
    assert_int_not_equal(resumed[0], resumed[1]);
    run_and_die(&source, &options, 9);
    spoil_slot(&source, wanted.size, 0);
    spoil_slot(&source, wanted.size, 1);
    assert_int_equal(run_well(&source, &options).resumed_bytes, 0);
    check_out(&source, &wanted);
    buf_deinit(&wanted);
    ckpt_testing_remove(source.folder);
}

static void another_model_begins_anew(void **state)
{
    const struct timespec times[2] = { { 1000000000, 0 }, { 1000000000, 5 } };
    const struct source source = make_source();
    const struct convert_options options = options_of(&source);
    struct convert_options other = options;
    struct buf wanted = reference(&source);

    (void)state;
    run_and_die(&source, &options, 9);
    assert_int_equal(utimensat(AT_FDCWD, source.model, times, 0), 0);
    assert_int_equal(run_well(&source, &options).resumed_bytes, 0);
    check_out(&source, &wanted);
    other.type = "Q6_K"; /* another file, and so are types by rules */
    run_and_die(&source, &other, 9);
    assert_int_equal(run_well(&source, &options).resumed_bytes, 0);
    check_out(&source, &wanted);
    buf_deinit(&wanted);
    ckpt_testing_remove(source.folder);
}

static void threads_and_memory_change_nothing(void **state)
{
    const struct source source = make_source();
    struct convert_options options = options_of(&source);
    struct buf wanted = reference(&source);
    struct convert_summary summary;

    (void)state;
    options.thread_count = 3;
    options.memory_budget_bytes = 0;
    summary = run_well(&source, &options);
    assert_int_equal(summary.thread_count, 3);
    check_out(&source, &wanted);
    run_and_die(&source, &options, 0);
    options.memory_budget_bytes = 900 * KIB; /* not enough for three */
    summary = run_well(&source, &options);
    assert_int_equal(summary.thread_count, 2);
    assert_true(summary.memory_bytes <= 900 * KIB);
    check_out(&source, &wanted);
    buf_deinit(&wanted);
    ckpt_testing_remove(source.folder);
}

/* --- refusals --------------------------------------------------------------------------------- */

static void refuse(const struct source *source, const struct convert_options *options,
                   const char *words)
{
    struct convert_summary summary;
    struct err err;

    assert_int_not_equal(run(source, options, NULL, &summary, &err), STATUS_OK);
    if (strstr(err.message, words) == NULL)
        fail_msg("'%s' does not say '%s'", err.message, words);
}

static void what_cannot_be_is_refused(void **state)
{
    const struct source source = make_source();
    const struct convert_options options = options_of(&source);
    struct convert_options other = options;
    int fd;

    (void)state;
    other.memory_budget_bytes = 100 * KIB;
    refuse(&source, &other, "--memory-budget 100 KiB is too small");
    other = options;
    other.out = source.model;
    refuse(&source, &other, "is a file of the model itself");
    other.out = "o.bin";
    refuse(&source, &other, "does not end in .gguf");
    other.out = "/no/such/folder/o.gguf";
    refuse(&source, &other, "/no/such/folder/o.part.gguf: No such file");
    fd = open(source.part, O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0 && flock(fd, LOCK_EX) == 0);
    refuse(&source, &options, "another process is writing it");
    (void)close(fd);
    (void)run_well(&source, &options);
    ckpt_testing_remove(source.folder);
}

/* Nothing is left where there is no room from the beginning. */
static void no_room_leaves_nothing(void **state)
{
    const struct source source = make_source();
    const struct convert_options options = options_of(&source);
    const pid_t child = fork();
    int status = 0;

    (void)state;
    assert_true(child >= 0);
    if (child == 0) {
        const struct rlimit limit = { 100000, 100000 };
        struct convert_summary summary;
        struct err err;
        (void)signal(SIGXFSZ, SIG_IGN);
        if (setrlimit(RLIMIT_FSIZE, &limit) != 0 ||
            run(&source, &options, NULL, &summary, &err) != STATUS_IO)
            _exit(1);
        _exit(strstr(err.message, "there is no room for") != NULL ? 0 : 2);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_false(file_exists(source.part));
    assert_false(file_exists(source.out));
    ckpt_testing_remove(source.folder);
}

/* The model's file is cut while it is read: at once, then when something is done already. */
static void a_source_that_breaks_is_told(void **state)
{
    const struct source source = make_source();
    const struct convert_options options = options_of(&source);

    (void)state;
    for (int share = 0; share < 2; share++) {
        struct ckpt *ckpt;
        struct convert *convert = NULL;
        struct stat info;
        struct err err;
        struct buf whole;

        buf_init(&whole, 64 * MIB);
        assert_int_equal(file_read_all(source.model, &whole, &err), STATUS_OK);
        ckpt = open_model(&source);
        assert_int_equal(stat(source.model, &info), 0);
        assert_int_equal(convert_open(ckpt, &options, &convert, &err), STATUS_OK);
        assert_int_equal(truncate(source.model, share == 0 ? 1024 : info.st_size / 2), 0);
        assert_int_equal(convert_run(convert, NULL, &err), STATUS_IO);
        assert_non_null(strstr(err.message, "m.gguf: truncated"));
        convert_close(convert);
        ckpt_close(ckpt);
        assert_int_equal(file_exists(source.part), share == 1);
        ckpt_testing_write_file(source.folder, "m.gguf", whole.data, whole.size);
        buf_deinit(&whole);
    }
    (void)run_well(&source, &options);
    ckpt_testing_remove(source.folder);
}

/* --- what is written -------------------------------------------------------------------------- */

static void rules_go_before_the_type(void **state)
{
    const struct source source = make_source();
    struct convert_options options = options_of(&source);
    struct ckpt *ckpt = NULL;
    struct err err;

    (void)state;
    options.rules[0] = (struct convert_rule){ "blk.1.*", DTYPE_Q3_K };
    options.rules[1] = (struct convert_rule){ "*.ffn_up.*", DTYPE_Q8_0 };
    options.rules[2] = (struct convert_rule){ "token*", DTYPE_F16 };
    options.rule_count = 3;
    (void)run_well(&source, &options);
    assert_int_equal(ckpt_open(source.out, &ckpt, &err), STATUS_OK);
    assert_int_equal(ckpt_find(ckpt, "model.layers.0.mlp.up_proj.weight")->dtype, DTYPE_Q8_0);
    assert_int_equal(ckpt_find(ckpt, "model.layers.1.mlp.up_proj.weight")->dtype, DTYPE_Q3_K);
    assert_int_equal(ckpt_find(ckpt, "model.embed_tokens.weight")->dtype, DTYPE_F16);
    assert_int_equal(ckpt_find(ckpt, "model.layers.1.input_layernorm.weight")->dtype, DTYPE_F32);
    assert_int_equal(ckpt_tensor_count(ckpt), 2 * LAYERS + 1);
    ckpt_close(ckpt);
    ckpt_testing_remove(source.folder);
}

/* Blocks that have the type already are copied, and the values of others are what dtype_convert
 * makes of them. */
static void values_are_those_of_dtype_convert(void **state)
{
    const struct source source = make_source();
    struct convert_options options = options_of(&source);
    struct ckpt *const from = open_model(&source);
    struct ckpt *to = NULL;
    struct err err;

    (void)state;
    options.type = "Q8_0";
    (void)run_well(&source, &options);
    assert_int_equal(ckpt_open(source.out, &to, &err), STATUS_OK);
    for (size_t i = 0; i < ckpt_tensor_count(from); i++) {
        const struct ckpt_tensor *const tensor = ckpt_tensor_at(from, i);
        const struct ckpt_tensor *const made = ckpt_find(to, tensor->name);
        void *const source_bytes = malloc(tensor->size_bytes), *wanted, *found;
        uint64_t count = 0;

        assert_non_null(made);
        assert_int_equal(made->dtype, tensor->rank == 1 ? DTYPE_F32 : DTYPE_Q8_0);
        wanted = malloc(made->size_bytes);
        found = malloc(made->size_bytes);
        assert_true(tensor_element_count(tensor->rank, tensor->shape, &count));
        assert_int_equal(ckpt_read(from, tensor, 0, source_bytes, tensor->size_bytes, &err),
                         STATUS_OK);
        assert_int_equal(ckpt_read(to, made, 0, found, made->size_bytes, &err), STATUS_OK);
        dtype_convert(wanted, made->dtype, source_bytes, tensor->dtype, (size_t)count);
        assert_memory_equal(found, wanted, made->size_bytes);
        free(source_bytes);
        free(wanted);
        free(found);
    }
    ckpt_close(from);
    ckpt_close(to);
    ckpt_testing_remove(source.folder);
}

/* Every name of the files in tests/golden/gguf goes there and back. */
static void names_have_inverses(void **state)
{
    struct gguf_reader *const reader = malloc(sizeof(*reader));
    glob_t found;

    (void)state;
    assert_int_equal(glob("tests/golden/gguf/*.gguf", 0, NULL, &found), 0);
    assert_true(found.gl_pathc > 5);
    for (size_t f = 0; f < found.gl_pathc; f++) {
        struct ckpt *ckpt = NULL;
        struct err err;
        struct gguf_meta meta;
        struct file file;
        const char *arch = NULL;
        uint64_t layers;

        if (strstr(found.gl_pathv[f], "-00002-of-") != NULL)
            continue; /* whose metadata is in the first */
        assert_int_equal(file_open(found.gl_pathv[f], &file, &err), STATUS_OK);
        assert_int_equal(gguf__open_meta(&file, reader, &meta, &err), STATUS_OK);
        assert_int_equal(gguf__get_string(&meta, file.path, "general.architecture", &arch, &err),
                         STATUS_OK);
        assert_int_equal(ckpt_open(found.gl_pathv[f], &ckpt, &err), STATUS_OK);
        layers = (uint64_t)json_integer_value(
            json_object_get(ckpt_config(ckpt), "num_hidden_layers"));
        for (size_t i = 0; i < ckpt_tensor_count(ckpt); i++) {
            const char *const name = ckpt_tensor_at(ckpt, i)->name;
            char origin[CKPT_NAME_BYTES_MAX + 1], back[CKPT_NAME_BYTES_MAX + 1];
            int64_t expert = 0;
            gguf__tensor_origin(arch, layers, name, origin, sizeof(origin), &expert);
            gguf__tensor_name(arch, layers, origin, back, sizeof(back));
            assert_true(strncmp(origin, "model.", 6) != 0);
            if (expert < 0)
                assert_string_equal(back, name);
            else
                assert_non_null(strstr(origin, "_exps.weight"));
        }
        ckpt_close(ckpt);
        gguf__meta_deinit(&meta);
        file_close(&file);
    }
    globfree(&found);
    free(reader);
}

static void ways_to_cut_text_are_recognised(void **state)
{
    static const char *const wanted[][2] = {
        { "gpt2", "gpt-2" },       { "llama3", "llama-bpe" },    { "qwen2", "qwen2" },
        { "deepseek_v2", "deepseek-llm" }, { "deepseek_v3", "deepseek-v3" },
        { "roberta", NULL },       { "tekken", "tekken" },       { "words", NULL },
        { "metaspace", NULL },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++) {
        char path[128];
        json_t *json;
        const char *found;

        (void)snprintf(path, sizeof(path), "tests/golden/text/%s.tokenizer.json", wanted[i][0]);
        json = json_load_file(path, 0, NULL);
        assert_non_null(json);
        found = gguf__pre_of(json);
        if (wanted[i][1] == NULL)
            assert_null(found);
        else if (found == NULL || strcmp(found, wanted[i][1]) != 0)
            fail_msg("%s is taken for %s", wanted[i][0], found != NULL ? found : "nothing");
        json_decref(json);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_killed_goes_on),
        cmocka_unit_test(a_broken_note_counts_for_nothing),
        cmocka_unit_test(another_model_begins_anew),
        cmocka_unit_test(threads_and_memory_change_nothing),
        cmocka_unit_test(what_cannot_be_is_refused),
        cmocka_unit_test(no_room_leaves_nothing),
        cmocka_unit_test(a_source_that_breaks_is_told),
        cmocka_unit_test(rules_go_before_the_type),
        cmocka_unit_test(values_are_those_of_dtype_convert),
        cmocka_unit_test(names_have_inverses),
        cmocka_unit_test(ways_to_cut_text_are_recognised),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
