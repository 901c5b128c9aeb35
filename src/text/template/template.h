/* text/template/template.h - Jinja templates as chat templates use them.
 *
 * The language is that of Python's jinja2 3.1 with the settings of Hugging Face's transformers:
 * trim_blocks, lstrip_blocks, the immutable sandbox, loop controls, {% generation %}, tojson
 * without HTML escapes, raise_exception and strftime_now. Output is the same byte for byte; what
 * raises there fails here. Sources: the Jinja documentation
 * (https://jinja.palletsprojects.com/en/stable/templates/), Python's data model and library
 * reference, and jinja2's behaviour, compared in tests.
 *
 * What differs: integers have 64 bits, and one that needs more is an error; there are no lone
 * surrogates; objects whose print would be an address can't be printed; templates read no others
 * (include, import, extends), and of the filters random, pprint, urlize, xmlattr, wordwrap,
 * striptags and filesizeformat are not there.
 *
 * Templates come from strangers. A rendering has no access to anything but its input; steps,
 * memory, depth and output are bounded, and each limit is an error. An error is one sentence with
 * the template's line.
 *
 * Every byte of output knows where it came from: written by the template, or taken from the
 * input. Marks follow characters through slices, joins, replacements, JSON and letter case, so
 * that whoever makes tokens of the output can tell a control token that the template wrote from
 * one that a user typed.
 *
 * Threads: a template does not change once it is there; any thread may render it. */
#ifndef LIGHTER_TEXT_TEMPLATE_TEMPLATE_H
#define LIGHTER_TEXT_TEMPLATE_TEMPLATE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "base/buf.h"
#include "base/status.h"

#define TEMPLATE_BYTES_MAX ((size_t)1 << 20)         /* of a template */
#define TEMPLATE_PARSED_BYTES_MAX ((size_t)64 << 20) /* of what parsing makes of it */
#define TEMPLATE_OUTPUT_BYTES_MAX ((size_t)32 << 20)
#define TEMPLATE_MEMORY_BYTES_MAX ((size_t)256 << 20) /* of one rendering, input included */
#define TEMPLATE_STEPS_MAX UINT64_C(10000000)        /* nodes evaluated, and bytes worked on / 64 */
#define TEMPLATE_NESTING_MAX 160                     /* of a template's blocks and expressions */
#define TEMPLATE_DEPTH_MAX 800                       /* of what is evaluated: calls, nested lists */

struct template;

/* Parses text[size], which must be UTF-8. `what` names it in messages. */
enum status template_create(const char *text, size_t size, const char *what,
                            struct template **template_out, struct err *err);
void template_destroy(struct template *template);

struct template_input {
    const json_t *variables; /* an object; its strings count as input, except as "role" one of the
                                usual names of roles */
    const json_t *trusted;   /* an object or NULL: variables whose strings count as the template's;
                                `variables` go before these */
    time_t now;              /* for strftime_now; 0: the clock */
};

/* What a rendering wrote. */
struct template_output {
    struct buf text;
    struct buf marks; /* a byte for each of text: 1 when it came from the input, else 0 */
};
void template_output_init(struct template_output *output);
void template_output_deinit(struct template_output *output);

/* Appends to *output; after a failure nothing is there. */
enum status template_render(const struct template *template, const struct template_input *input,
                            struct template_output *output, struct err *err);

/* Whether string[size] occurs in the text or in a string literal of the template. */
bool template_mentions(const struct template *template, const char *string, size_t size);

#endif
