/* text/chat.h - a conversation becomes the text, and the token ids, that a model was trained on.
 *
 * The model's chat template says how (text/template/). It is found where Hugging Face's libraries
 * find it: chat_template.jinja and additional_chat_templates/NAME.jinja of a folder, else
 * "chat_template" of its tokenizer_config.json, a string or a list of {"name", "template"}; a GGUF
 * file has the same among its metadata. Of several, "tool_use" is taken when there are tools, else
 * "default".
 *
 * What reaches the template is what transformers' apply_chat_template passes on, and the text is
 * the same byte for byte. The ids are the same too as long as no message has anything that looks
 * like a control token. There they differ on purpose: a control token is recognised only where all
 * of it was written by the template. Control tokens are special tokens, and other added tokens that
 * the template's own text mentions (<think>, <tool_call>), but for those of white space alone. So
 * a user can't end a turn, nor begin a system message: what looks like it becomes plain letters.
 * Trusted besides the template's text are the tokenizer's own token strings (bos_token, ...), and
 * the usual names of roles.
 *
 * Threads: a chat does not change once it is open; any thread may use it. */
#ifndef LIGHTER_TEXT_CHAT_H
#define LIGHTER_TEXT_CHAT_H

#include <jansson.h>
#include <stdbool.h>

#include "base/buf.h"
#include "base/status.h"
#include "text/template/template.h"
#include "text/tokenizer/tokenizer.h"

struct chat;

/* From a model's folder. template_path, a file, goes before the folder's; NULL: none. tokenizer
 * is borrowed until chat_close. STATUS_UNAVAILABLE when there is no template. */
enum status chat_open(const struct tokenizer *tokenizer, const char *model_path,
                      const char *template_path, struct chat **chat_out, struct err *err);
/* The same from the text of a tokenizer_config.json; config_text may be NULL. */
enum status chat_open_json(const struct tokenizer *tokenizer, const char *config_text,
                           size_t config_size, const char *what, const char *template_path,
                           struct chat **chat_out, struct err *err);
void chat_close(struct chat *chat);

struct chat_request {
    const json_t *messages;     /* an array of objects, one or more */
    const json_t *tools;        /* an array of objects, or NULL */
    const json_t *documents;    /* an array of objects, or NULL */
    const json_t *extra;        /* an object of more variables for the template, or NULL */
    bool add_generation_prompt; /* the header of the assistant's next turn at the end */
    bool continue_final_message; /* the last message is open-ended: the model goes on in it */
    time_t now;                 /* for templates that say the date; 0: the clock */
};

enum status chat_render(const struct chat *chat, const struct chat_request *request,
                        struct template_output *output, struct err *err);
/* Renders, and appends the ids. */
enum status chat_encode(const struct chat *chat, const struct chat_request *request,
                        struct token_ids *ids_out, struct err *err);
/* Whether the template takes "content" as a list of {"type": "text", "text": ...}; else content is
 * a string. */
bool chat_takes_parts(const struct chat *chat);

#endif
