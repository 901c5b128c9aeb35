/* checkpoint/checkpoint_test.c - what is read, and what is refused with which words.
 *
 * Method: files are made from text. Each malformed one is a row of a table: what is in it, and a
 * piece of the sentence that refuses it; every sentence must also name the file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/buf.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/testing.h"

static const char *folder; /* the test's own, set by setup */

static int setup(void **state)
{
    *state = ckpt_testing_folder();
    folder = *state;
    ckpt_testing_write_config(folder, "{\"model_type\": \"none\"}");
    return 0;
}

static int teardown(void **state)
{
    ckpt_testing_remove(*state);
    return 0;
}

/* FOLDER/NAME: the length, the header, and data_bytes zeros. */
static void write_header(const char *name, const char *header, size_t header_size,
                         size_t data_bytes)
{
    uint8_t *const bytes = calloc(1, 8 + header_size + data_bytes);

    assert_non_null(bytes);
    for (size_t i = 0; i < 8; i++)
        bytes[i] = (uint8_t)((uint64_t)header_size >> (8 * i));
    memcpy(bytes + 8, header, header_size);
    ckpt_testing_write_file(folder, name, bytes, 8 + header_size + data_bytes);
    free(bytes);
}

static struct ckpt *open_ok(void)
{
    struct ckpt *ckpt = NULL;
    struct err err;

    if (ckpt_open(folder, &ckpt, &err) != STATUS_OK)
        fail_msg("%s", err.message);
    return ckpt;
}

/* Opening must fail with bad input and a sentence that has `piece` and the name of `file`. */
static void expect_refusal(const char *piece, const char *file)
{
    struct ckpt *ckpt = NULL;
    struct err err = { .message = "" };

    if (ckpt_open(folder, &ckpt, &err) != STATUS_BAD_INPUT)
        fail_msg("not refused for '%s': %s", piece, err.message);
    if (strstr(err.message, piece) == NULL || strstr(err.message, file) == NULL)
        fail_msg("neither '%s' nor '%s' in: %s", piece, file, err.message);
    for (const char *at = err.message; *at != '\0'; at++)
        assert_true((unsigned char)*at >= 0x20);
}

/* One tensor `a` of F32[2] in 8 bytes, with `more` after it. */
#define A "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}"

static const struct {
    const char *header;
    size_t data_bytes;
    const char *piece;
} bad_headers[] = {
    /* JSON */
    { "", 0, "it ends at byte 0, '{' is wanted" },
    { " {}", 0, "' ' at byte 0, '{' is wanted" },
    { "[]", 0, "'[' at byte 0" },
    { "{" A, 8, "',' or '}' is wanted" },
    { "{" A "}x", 8, "nothing after the object" },
    { "{" A "}{}", 8, "nothing after the object" },
    { "{" A ",}", 8, "a name in quotes is wanted" },
    { "{" A " " A "}", 8, "'\"' at byte 54, ',' or '}' is wanted" },
    { "{a:1}", 0, "a name in quotes is wanted" },
    { "{\"a\" 1}", 0, "':' is wanted" },
    { "{\"a\":}", 0, "a value is wanted" },
    { "{\"a\":,}", 0, "a value is wanted" },
    { "{\"a", 0, "the end of a string is wanted" },
    { "{\"a\\", 0, "the end of a string is wanted" },
    { "{\"a\":{", 0, "the end of a value is wanted" },
    { "{\"a\":{]}}", 0, "not valid JSON" },
    { "{\"a\":{\"dtype\":}}", 0, "not valid JSON" },
    { "{\"\xFF\":{}}", 0, "not valid JSON" },
    { "{\"a\\ud800\":{}}", 0, "not valid JSON" },
    { "{\x01}", 0, "byte 0x01 at 1" },
    /* entries */
    { "{\"a\":5}", 0, "tensor 'a': its entry is not an object" },
    { "{\"a\":[0]}", 0, "its entry is not an object" },
    { "{\"a\":\"x\"}", 0, "its entry is not an object" },
    { "{\"a\":{}}", 0, "tensor 'a': \"dtype\" is missing" },
    { "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
      "duplicate" },
    { "{\"a\":{\"dtype\":\"F31\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "'F31' is unknown" },
    { "{\"a\":{\"dtype\":\"f32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "'f32' is unknown" },
    { "{\"a\":{\"dtype\":\"F\\n\\u001b2\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
      "'F?" "?2' is unknown" },
    { "{\"a\":{\"dtype\":4,\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "a string is wanted" },
    { "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "\"shape\" is missing" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":2,\"data_offsets\":[0,8]}}", 8, "an array is wanted" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8,
      "\"shape\"[0] is -2, below 0" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", 8,
      "\"shape\"[0] is a fraction" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[null],\"data_offsets\":[0,8]}}", 8, "[0] is null" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,8]}}", 8,
      "too big integer" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,2,1],\"data_offsets\":[0,8]}}", 8,
      "\"shape\" has 5 numbers, at most 4 are read" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,8]}}", 8,
      "the size of F32 [4294967296, 4294967296] overflows" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387905],\"data_offsets\":[0,8]}}", 8,
      "overflows" },
    { "{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2,
      "F4 [3] is 12 bits, not whole bytes" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "\"data_offsets\" is missing" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8]}}", 8,
      "\"data_offsets\" has 1 numbers, 2 are wanted" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4,8]}}", 8,
      "\"data_offsets\" has 3 numbers" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8,
      "bytes 8 to 0 are not inside" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", 8,
      "[0] is -8, below 0" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 7,
      "bytes 0 to 8 are not inside the file's 7 bytes of data" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[9223372036854775807,"
      "9223372036854775807]}}", 8, "are not inside the file's 8 bytes" },
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8,
      "has 8 bytes (0 to 8), F32 [3] takes 12" },
    { "{\"a\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, "F64 [] takes 8" },
    { "{\"a\\u0000b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
      "the control character 0x00 at byte 1" },
    { "{\"a\\nb\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
      "the control character 0x0A at byte 1" },
    /* the file as a whole */
    { "{" A "," A "}", 8, "tensor 'a' is there twice" },
    { "{" A ",\"\\u0061\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]}}", 16,
      "tensor 'a' is there twice" },
    { "{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", 12,
      "overlaps 'a', which ends at" },
    { "{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "overlaps" },
    { "{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[4,4]}}", 8, "overlaps" },
    { "{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[12,20]}}", 20,
      "no tensor covers the 4 bytes before tensor 'b'" },
    { "{\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", 12,
      "no tensor covers the 4 bytes before tensor 'b'" },
    { "{" A "}", 11, "the tensors end at byte 70, the file at 73" },
    { "{}", 1, "the tensors end at byte 10, the file at 11" },
    /* metadata */
    { "{\"__metadata__\":5," A "}", 8, "__metadata__: not valid JSON: '5' at byte 0" },
    { "{\"__metadata__\":{\"x\":5}," A "}", 8,
      "__metadata__: the value at byte 5 is not a string" },
    { "{\"__metadata__\":{\"x\":\"\xFF\"}," A "}", 8, "__metadata__: not valid JSON" },
    { "{\"__metadata__\":{},\"__metadata__\":{}," A "}", 8, "__metadata__ is there twice" },
};

static void malformed_headers_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(bad_headers) / sizeof(bad_headers[0]); i++) {
        write_header("model.safetensors", bad_headers[i].header, strlen(bad_headers[i].header),
                     bad_headers[i].data_bytes);
        expect_refusal(bad_headers[i].piece, "model.safetensors");
    }
}

static void malformed_files_are_refused(void **state)
{
    static const struct {
        const char *bytes;
        size_t size;
        const char *piece;
    } cases[] = {
        { "", 0, "0 bytes, at least 8 are needed" },
        { "\2\0\0\0\0\0\0", 7, "7 bytes, at least 8 are needed" },
        { "\3\0\0\0\0\0\0\0{}", 10, "a header of 3 bytes is announced, 2 bytes follow" },
        { "\0\xE1\xF5\5\0\0\0\0{}", 10, "a header of 100000000 bytes is announced" },
        { "\1\xE1\xF5\5\0\0\0\0{}", 10, "announce a header of 100000001 bytes" },
        { "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF{}", 10, "announce a header of 18446744073709551615" },
        { "PK\3\4\0\0\0\0rest", 12, "67324752 bytes is announced, 4 bytes follow" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        ckpt_testing_write_file(folder, "model.safetensors", cases[i].bytes, cases[i].size);
        expect_refusal(cases[i].piece, "model.safetensors");
    }
}

/* Over what stands there, without a NUL. */
static void put(char *at, const char *text)
{
    while (*text != '\0')
        *at++ = *text++;
}

static void large_members_are_refused_by_their_size(void **state)
{
    enum { SIZE = 1 << 22 };
    char *const text = malloc(SIZE + 64);

    (void)state;
    assert_non_null(text);
    memset(text, '0', SIZE + 64); /* an entry that would make two million JSON values */
    for (size_t i = 0; i < SIZE; i += 2)
        text[i] = ',';
    put(text, "{\"a\":{\"b\":[0");
    put(text + SIZE, "]}}");
    write_header("model.safetensors", text, SIZE + 3, 0);
    expect_refusal("tensor 'a': its entry has", "model.safetensors");
    memset(text, '[', SIZE); /* and one that is nested deeply */
    put(text, "{\"a\":");
    write_header("model.safetensors", text, SIZE, 0);
    expect_refusal("not valid JSON", "model.safetensors");
    memset(text, 'n', SIZE);
    put(text, "{\"");
    put(text + 300, "\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}");
    write_header("model.safetensors", text, 350, 4);
    expect_refusal("has 298 bytes, at most 256 are read", "model.safetensors");
    free(text);
}

static void every_kind_of_tensor_is_listed(void **state)
{
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\",\"\":\"\\u00e9\"},"
        "\"i64\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[6,14]},"
        "\"\\u00fc/x\":{\"dtype\":\"BF16\",\"shape\":[1,3],\"data_offsets\":[0,6],\"more\":[1]},"
        "\"none\":{\"dtype\":\"F16\",\"shape\":[4611686018427387904,4,0],\"data_offsets\":[14,14]},"
        "\"f8\":{\"dtype\":\"F8_E4M3\",\"shape\":[5],\"data_offsets\":[14,19]},"
        "\"f4\":{\"dtype\":\"F4\",\"shape\":[2,3],\"data_offsets\":[19,22]},"
        "\"last\":{\"dtype\":\"I32\",\"shape\":[0],\"data_offsets\":[22,22]}}  \n\t ";
    static const struct {
        const char *name, *dtype_name;
        enum dtype dtype;
        uint32_t rank;
        uint64_t at, size_bytes;
    } wanted[] = {
        { "\xC3\xBC/x", "BF16", DTYPE_BF16, 2, 0, 6 }, { "i64", "I64", DTYPE_COUNT, 0, 6, 8 },
        { "none", "F16", DTYPE_F16, 3, 14, 0 },        { "f8", "F8_E4M3", DTYPE_COUNT, 1, 14, 5 },
        { "f4", "F4", DTYPE_COUNT, 2, 19, 3 },         { "last", "I32", DTYPE_I32, 1, 22, 0 },
    };
    struct ckpt *ckpt;

    (void)state;
    write_header("model.safetensors", header, sizeof(header) - 1, 22);
    ckpt = open_ok();
    assert_int_equal(ckpt_tensor_count(ckpt), 6);
    for (size_t i = 0; i < 6; i++) {
        const struct ckpt_tensor *const tensor = ckpt_tensor_at(ckpt, i);
        assert_string_equal(tensor->name, wanted[i].name);
        assert_string_equal(tensor->dtype_name, wanted[i].dtype_name);
        assert_int_equal(tensor->dtype, wanted[i].dtype);
        assert_int_equal(tensor->rank, wanted[i].rank);
        assert_int_equal(tensor->offset_bytes, 8 + sizeof(header) - 1 + wanted[i].at);
        assert_int_equal(tensor->size_bytes, wanted[i].size_bytes);
        assert_ptr_equal(ckpt_find(ckpt, wanted[i].name), tensor);
    }
    assert_null(ckpt_find(ckpt, "__metadata__"));
    assert_null(ckpt_find(ckpt, ""));
    assert_string_equal(ckpt_path(ckpt), folder);
    assert_string_equal(ckpt_format_name(ckpt), "safetensors");
    assert_string_equal(json_string_value(json_object_get(ckpt_config(ckpt), "model_type")),
                        "none");
    ckpt_close(ckpt);
}

static void reads_give_the_files_bytes(void **state)
{
    const uint16_t numbers[] = { 0x1111, 0x2222, 0x3333, 0x4444 };
    const struct ckpt_testing_tensor tensors[] = {
        { "x", DTYPE_BF16, 1, { 1 }, numbers },
        { "y", DTYPE_F16, 2, { 2, 2 }, numbers },
    };
    struct ckpt *ckpt;
    uint16_t got[4] = { 0 };
    struct err err;
    char path[512];

    (void)state;
    ckpt_testing_write_tensors(folder, "model.safetensors", tensors, 2);
    ckpt = open_ok();
    ckpt_read_ahead(ckpt, ckpt_find(ckpt, "y"));
    assert_int_equal(ckpt_read(ckpt, ckpt_find(ckpt, "y"), 2, got, 6, &err), STATUS_OK);
    assert_memory_equal(got, numbers + 1, 6);
    assert_int_equal(ckpt_read(ckpt, ckpt_find(ckpt, "y"), 8, got, 0, &err), STATUS_OK);
    (void)snprintf(path, sizeof(path), "%s/model.safetensors", folder);
    assert_int_equal(truncate(path, (off_t)ckpt_find(ckpt, "y")->offset_bytes + 5), 0);
    assert_int_equal(ckpt_read(ckpt, ckpt_find(ckpt, "y"), 2, got, 6, &err), STATUS_IO);
    assert_non_null(strstr(err.message, "tensor 'y'"));
    assert_non_null(strstr(err.message, "truncated"));
    ckpt_close(ckpt);
}

/* Were checking quadratic, this would take minutes. The entries come in an order that is neither
 * that of the names nor of the offsets. */
static void many_tensors_are_read(void **state)
{
    enum { COUNT = 100000 };
    struct buf header;
    struct ckpt *ckpt;

    (void)state;
    buf_init(&header, SIZE_MAX / 2);
    for (uint64_t i = 0; i < COUNT; i++) {
        const uint64_t n = i * 70001 % COUNT;
        assert_int_equal(buf_printf(&header, NULL,
                                    "%c\"t%d\":{\"dtype\":\"U8\",\"shape\":[1],"
                                    "\"data_offsets\":[%d,%d]}",
                                    i == 0 ? '{' : ',', (int)n, (int)n, (int)n + 1),
                         STATUS_OK);
    }
    assert_int_equal(buf_append(&header, "}", 1, NULL), STATUS_OK);
    write_header("model.safetensors", header.data, header.size, COUNT);
    ckpt = open_ok();
    assert_int_equal(ckpt_tensor_count(ckpt), COUNT);
    assert_string_equal(ckpt_tensor_at(ckpt, 777)->name, "t777");
    assert_ptr_equal(ckpt_find(ckpt, "t99999"), ckpt_tensor_at(ckpt, 99999));
    ckpt_close(ckpt);
    buf_deinit(&header);
}

/* --- folders -------------------------------------------------------------------------------- */

static void folders_say_what_they_lack(void **state)
{
    char *const big = calloc(1, CKPT_CONFIG_BYTES_MAX + 1);
    struct ckpt *ckpt = NULL;
    struct err err;
    char path[512];

    (void)state;
    assert_non_null(big);
    expect_refusal("has no weights: neither model.safetensors nor", folder);
    ckpt_testing_write_file(folder, "pytorch_model.bin", "x", 1);
    expect_refusal("(pytorch_model.bin) and no *.safetensors; only *.safetensors are read", folder);
    write_header("a.safetensors", "{\"__metadata__\":null}", 21, 0);
    ckpt_close(open_ok());
    write_header("b.safetensors", "{}", 2, 0);
    expect_refusal("has 2 *.safetensors files and no model.safetensors.index.json", folder);
    ckpt_testing_write_config(folder, "[1]");
    expect_refusal("is an array, an object is wanted", "config.json");
    ckpt_testing_write_config(folder, "{\"a\": 1,\n}");
    expect_refusal("not valid JSON: line 2", "config.json");
    ckpt_testing_write_config(folder, "{\"a\": 1, \"a\": 2}");
    expect_refusal("duplicate", "config.json");
    ckpt_testing_write_file(folder, "config.json", big, CKPT_CONFIG_BYTES_MAX + 1);
    expect_refusal("16777217 bytes, at most 16777216 are read", "config.json");
    free(big);
    (void)snprintf(path, sizeof(path), "%s/config.json", folder);
    assert_int_equal(unlink(path), 0);
    expect_refusal("has no config.json", folder);
    (void)snprintf(path, sizeof(path), "%s/missing", folder);
    assert_int_equal(ckpt_open(path, &ckpt, &err), STATUS_UNAVAILABLE);
    assert_non_null(strstr(err.message, "no such file"));
}

static void other_files_are_refused_with_what_is_read(void **state)
{
    static const struct {
        const char *name, *piece;
    } cases[] = {
        { "m.gguf", "m.gguf: truncated: the header at byte 0 takes 4 bytes" },
        { "m.onnx", "this kind of file is not supported; a model is a Hugging Face folder" },
        { "m.safetensors", "give the folder that also holds its config.json" },
    };
    char path[512];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct ckpt *ckpt = NULL;
        struct err err;
        ckpt_testing_write_file(folder, cases[i].name, "x", 1);
        (void)snprintf(path, sizeof(path), "%s/%s", folder, cases[i].name);
        assert_int_equal(ckpt_open(path, &ckpt, &err), STATUS_BAD_INPUT);
        assert_non_null(strstr(err.message, cases[i].piece));
    }
}

#define F_1 "m-00001-of-00002.safetensors"
#define F_2 "m-00002-of-00002.safetensors"
#define T_B "\"b\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,2]}"
#define INDEX "model.safetensors.index.json"

static void write_text(const char *name, const char *text)
{
    ckpt_testing_write_file(folder, name, text, strlen(text));
}

static void an_index_joins_files(void **state)
{
    struct ckpt *ckpt;

    (void)state;
    write_header(F_2, "{" A "}", strlen("{" A "}"), 8);
    write_header(F_1, "{" T_B "}", strlen("{" T_B "}"), 2);
    write_header("other.safetensors", "broken", 6, 0); /* the index does not name it */
    write_text(INDEX, " ");
    expect_refusal("'{' is wanted", INDEX);
    write_text(INDEX, "{\"metadata\":{\"total_size\":10.5},\"weight_map\":"
                      "{\"a\":\"" F_2 "\",\"b\":\"" F_1 "\"}}\n");
    ckpt = open_ok();
    assert_int_equal(ckpt_tensor_count(ckpt), 2);
    assert_string_equal(ckpt_tensor_at(ckpt, 0)->name, "b"); /* files by name */
    assert_int_equal(ckpt_tensor_at(ckpt, 0)->file_index, 0);
    assert_non_null(strstr(ckpt_file_path(ckpt, 0), F_1));
    assert_non_null(strstr(ckpt_file_path(ckpt, ckpt_find(ckpt, "a")->file_index), F_2));
    ckpt_close(ckpt);
    write_header("model.safetensors", "{}", 2, 0); /* comes first, as in transformers */
    ckpt = open_ok();
    assert_int_equal(ckpt_tensor_count(ckpt), 0);
    ckpt_close(ckpt);
}

static void wrong_indices_are_refused(void **state)
{
    static const struct {
        const char *index, *piece;
    } cases[] = {
        { "{}", "\"weight_map\" is missing" },
        { "{\"weight_map\":[]}", "\"weight_map\" is not an object" },
        { "{\"weight_map\":{}}", "\"weight_map\" is empty" },
        { "{\"weight_map\":{},\"weight_map\":{}}", "\"weight_map\" is there twice" },
        { "{\"metadata\":{x},\"weight_map\":{}}", "not valid JSON: \"metadata\"" },
        { "{\"weight_map\":{\"a\":5}}", "the value at byte 5 is not a string" },
        { "{\"weight_map\":{\"a\":\"../x.safetensors\"}}", "not the plain name of a file" },
        { "{\"weight_map\":{\"a\":\"/etc/x.safetensors\"}}", "not the plain name of a file" },
        { "{\"weight_map\":{\"a\":\"..\"}}", "not the plain name of a file" },
        { "{\"weight_map\":{\"a\":\"\"}}", "'' is not a *.safetensors file" },
        { "{\"weight_map\":{\"a\":\"x.bin\"}}", "'x.bin' is not a *.safetensors file" },
        { "{\"weight_map\":{\"a\":\"x\\u0000.safetensors\"}}", "the control character 0x00" },
        { "{\"weight_map\":{\"a\":\"x.safetensors\"}}", "names x.safetensors, which is not there" },
        { "{\"weight_map\":{\"a\":\"" F_2 "\",\"b\":\"" F_1 "\",\"c\":\"" F_1 "\"}}",
          "tensor 'c' is said to be in " F_1 ", which lacks it" },
        { "{\"weight_map\":{\"a\":\"" F_1 "\",\"b\":\"" F_2 "\"}}",
          "tensor 'a' is said to be in " F_1 ", but is in" },
        { "{\"weight_map\":{\"a\":\"" F_2 "\",\"\\u0061\":\"" F_2 "\",\"b\":\"" F_1 "\"}}",
          "tensor 'a' is in the weight map twice" },
        { "{\"weight_map\":{\"a\\u0000\":\"" F_2 "\"}}", "which lacks it" },
        { "{\"weight_map\":{\"c\":\"" F_2 "\"}}", "tensor 'c' is said to be in " F_2 },
    };

    (void)state;
    write_header(F_1, "{" T_B "}", strlen("{" T_B "}"), 2);
    write_header(F_2, "{" A "}", strlen("{" A "}"), 8);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        write_text(INDEX, cases[i].index);
        expect_refusal(cases[i].piece, INDEX);
    }
    write_header(F_2, "{" T_B "}", strlen("{" T_B "}"), 2);
    write_text(INDEX, "{\"weight_map\":{\"a\":\"" F_2 "\",\"b\":\"" F_1 "\"}}");
    expect_refusal("tensor 'b' is there twice, also in ", F_2);
    write_header(F_2, "{}", 2, 0);
    write_header(F_1, "{" A "," "\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[8,8]}}",
                 strlen("{" A "," "\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[8,8]}}"),
                 8);
    write_text(INDEX, "{\"weight_map\":{\"a\":\"" F_1 "\"}}");
    expect_refusal("lacks tensor 'b', which is in ", INDEX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(malformed_headers_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(malformed_files_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(large_members_are_refused_by_their_size, setup, teardown),
        cmocka_unit_test_setup_teardown(every_kind_of_tensor_is_listed, setup, teardown),
        cmocka_unit_test_setup_teardown(reads_give_the_files_bytes, setup, teardown),
        cmocka_unit_test_setup_teardown(many_tensors_are_read, setup, teardown),
        cmocka_unit_test_setup_teardown(folders_say_what_they_lack, setup, teardown),
        cmocka_unit_test_setup_teardown(other_files_are_refused_with_what_is_read, setup, teardown),
        cmocka_unit_test_setup_teardown(an_index_joins_files, setup, teardown),
        cmocka_unit_test_setup_teardown(wrong_indices_are_refused, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
