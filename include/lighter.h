/* lighter.h - liblighter: language models whose weights are too big for the accelerator, from C.
 *
 *     struct lighter_option options[] = { { "model", "models/demo" },
 *                                         { "device", "sim:memory=64MiB,link=4GB/s" },
 *                                         { "offload-group-size", "2" } };
 *     struct lighter *lighter = NULL;
 *     char error[LIGHTER_ERROR_SIZE];
 *     if (lighter_open(options, 3, &lighter, error) != LIGHTER_OK)
 *         ...                                         error says what was wrong, in one sentence
 *     lighter_generate(lighter, &request, &answer, error);
 *     lighter_answer_deinit(&answer);
 *     lighter_close(lighter);
 *
 * Options are those of `lighter serve --help` and, for sampling, `lighter generate --help`: names
 * without the dashes, values as they would be typed, "true" and "false" for flags.
 *
 * Threads: any thread may call lighter_generate, lighter_tokenize and lighter_report_json on an open
 * handle, several at once: requests are batched together. lighter_open and lighter_close are for one
 * thread, with no other call on that handle under way. Two handles know nothing of each other.
 *
 * Link with liblighter.a -ljansson -lmicrohttpd -lonig -lutf8proc -lm -ldl -pthread. */
#ifndef LIGHTER_H
#define LIGHTER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LIGHTER_VERSION "0.1.0"
#define LIGHTER_ERROR_SIZE 768

enum lighter_status {
    LIGHTER_OK = 0,
    LIGHTER_BAD_INPUT,   /* an option, a file or a request says something that cannot be */
    LIGHTER_NO_MEMORY,   /* a budget or the machine has too little memory */
    LIGHTER_UNAVAILABLE, /* a device, file or feature is not here */
    LIGHTER_BUSY,        /* the queue of requests is full; try again later */
    LIGHTER_FAILED       /* reading, the device or something else failed */
};

struct lighter;

struct lighter_option {
    const char *name;  /* "offload-mode" */
    const char *value; /* "cpu" */
};

/* Opens the model that the option "model" names, and starts to serve. Options are copied. `error` has
 * LIGHTER_ERROR_SIZE bytes, or is NULL; it is written on failure only. The caller owns *lighter_out. */
enum lighter_status lighter_open(const struct lighter_option *options, size_t option_count,
                                 struct lighter **lighter_out, char *error);
/* Cancels what runs and frees everything. NULL is fine. */
void lighter_close(struct lighter *lighter);

struct lighter_request {
    const char *prompt;               /* text, ended by a NUL; or NULL, and */
    const int32_t *prompt_ids;        /* the prompt's token ids */
    size_t prompt_id_count;
    const struct lighter_option *sampling; /* "temperature", "max-new-tokens", ... */
    size_t sampling_count;
    /* New text (never a part of a character) and ids, as they come, on the thread that called
     * lighter_generate. Not 0 ends the answer here. Borrowed during the call; NULL: not wanted. */
    int (*on_piece)(void *user, const char *text, size_t text_size, const int32_t *ids,
                    size_t id_count);
    void *user;
};

struct lighter_answer {
    char *text;                 /* UTF-8, ended by a NUL; "" without a tokenizer */
    size_t text_size;
    int32_t *ids;
    size_t id_count;
    uint64_t prompt_token_count;
    const char *finish_reason;  /* "stop", "length" or "abort"; static */
    int garbage;                /* 1: the weights have no contents (offload-mode meta) */
};

/* Answers one prompt; blocks until it is done. lighter_answer_deinit is due after LIGHTER_OK. */
enum lighter_status lighter_generate(struct lighter *lighter,
                                     const struct lighter_request *request,
                                     struct lighter_answer *answer_out, char *error);
void lighter_answer_deinit(struct lighter_answer *answer);

/* The ids of a text, special tokens such as BOS included; to be freed with free(). */
enum lighter_status lighter_tokenize(struct lighter *lighter, const char *text, size_t text_size,
                                     int32_t **ids_out, size_t *count_out, char *error);

/* What runs, what moved, how fast and what was waited for, as a JSON text; to be freed with free().
 * NULL: no memory. */
char *lighter_report_json(struct lighter *lighter);

#ifdef __cplusplus
}
#endif

#endif
