/* cli/tokenize.c - `lighter tokenize`: text from standard input to ids, or ids to text. */
#include <stdio.h>

#include "base/size.h"
#include "cli/command.h"
#include "cli/session.h"
#include "text/tokenizer/tokenizer.h"

#define TEXT_BYTES_MAX (64 * MIB)
#define DECODED_BYTES_MAX GIB

static enum status encode(const struct cli_options *options, const struct tokenizer *tokenizer,
                          struct err *err)
{
    struct token_ids ids = { 0 };
    struct buf text;
    enum status st;

    buf_init(&text, TEXT_BYTES_MAX + KIB * 64);
    st = cli_text_read("-", &text, err);
    if (st == STATUS_OK)
        st = tokenizer_encode(tokenizer, text.data, text.size, !options->no_special, &ids, err);
    if (st == STATUS_OK && options->json) {
        st = cli_print_json(json_pack("{s:o, s:I}", "ids", cli_ids_json(ids.ids, ids.count),
                                      "count", (json_int_t)ids.count),
                            err);
    } else if (st == STATUS_OK) {
        for (size_t i = 0; i < ids.count; i++)
            printf("%s%d", i > 0 ? "," : "", (int)ids.ids[i]);
        putchar('\n');
        st = cli_stdout_flush(err);
    }
    buf_deinit(&text);
    token_ids_deinit(&ids);
    return st;
}

static enum status decode(struct cli_context *context, const struct tokenizer *tokenizer,
                          struct err *err)
{
    const struct cli_options *options = context->options;
    struct buf text;
    enum status st;

    buf_init(&text, DECODED_BYTES_MAX);
    st = tokenizer_decode(tokenizer, options->decode.ids, options->decode.count,
                          options->skip_special, &text, err);
    context->bad_usage = st == STATUS_BAD_INPUT;
    if (st == STATUS_OK && options->json) {
        st = cli_print_json(json_pack("{s:o}", "text",
                                      cli_text_json(text.data != NULL ? text.data : "",
                                                    text.size)),
                            err);
    } else if (st == STATUS_OK) {
        if (text.size > 0)
            (void)fwrite(text.data, 1, text.size, stdout);
        putchar('\n');
        st = cli_stdout_flush(err);
    }
    buf_deinit(&text);
    return st;
}

enum status cli_tokenize(struct cli_context *context, struct err *err)
{
    const struct cli_options *options = context->options;
    const char *path = options->tokenizer_path != NULL ? options->tokenizer_path : options->model;
    struct tokenizer *tokenizer = NULL;
    enum status st = cli_open_tokenizer(path, &tokenizer, err);

    if (st != STATUS_OK)
        return st;
    if (options->decode.count > 0)
        st = decode(context, tokenizer, err);
    else
        st = encode(options, tokenizer, err);
    tokenizer_close(tokenizer);
    return st;
}
