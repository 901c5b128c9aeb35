/* text/tokenizer/added.c - added and special tokens: finding them in text.
 *
 * At each place the longest token counts, and the search goes on behind it (leftmost-longest, as in
 * Aho-Corasick automata). The tokens are few and short, so a trie walked from each place does; most
 * places fail at its root, which is a table.
 *
 * Tokens with "normalized" are looked for in the normalised text and in their normalised form, the
 * others in the text as it came. Ids follow the library: a token that the model knows has the
 * model's id, the others are numbered from the size of the model's vocabulary; the id in the file
 * is not asked. */
#include "text/tokenizer/internal.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/utf8.h"

#define ADDED_COUNT_MAX 200000u
#define NODE_COUNT_MAX (8u << 20)

/* --- the trie --------------------------------------------------------------------------------- */

static enum status node_add(struct added_trie *trie, unsigned char byte, uint32_t *index_out,
                            struct err *err)
{
    if (trie->node_count == trie->node_capacity) {
        const uint32_t capacity = trie->node_capacity == 0 ? 64 : 2 * trie->node_capacity;
        struct added_node *nodes;

        if (capacity > NODE_COUNT_MAX)
            return err_set(err, STATUS_BAD_INPUT, "added_tokens: more than %u different beginnings",
                           NODE_COUNT_MAX);
        nodes = realloc(trie->nodes, capacity * sizeof(*nodes));
        if (nodes == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory for %u nodes of added tokens",
                           capacity);
        trie->nodes = nodes;
        trie->node_capacity = capacity;
    }
    trie->nodes[trie->node_count] = (struct added_node){ .byte = byte };
    *index_out = trie->node_count++;
    return STATUS_OK;
}

static uint32_t child_of(const struct added_trie *trie, uint32_t node, unsigned char byte)
{
    uint32_t child = node == 0 ? trie->roots[byte] : trie->nodes[node].child;

    while (child != 0 && trie->nodes[child].byte != byte)
        child = trie->nodes[child].sibling;
    return child;
}

static enum status trie_add(struct added_trie *trie, const struct text_string *string,
                            uint32_t token_index, struct err *err)
{
    uint32_t node = 0;
    enum status st = STATUS_OK;

    if (trie->node_count == 0)
        st = node_add(trie, 0, &node, err);
    for (size_t i = 0; i < string->size && st == STATUS_OK; i++) {
        const unsigned char byte = (unsigned char)string->bytes[i];
        uint32_t child = child_of(trie, node, byte);

        if (child == 0) {
            st = node_add(trie, byte, &child, err);
            if (st != STATUS_OK)
                return st;
            if (node == 0) {
                trie->roots[byte] = child;
            } else {
                trie->nodes[child].sibling = trie->nodes[node].child;
                trie->nodes[node].child = child;
            }
        }
        node = child;
    }
    if (st == STATUS_OK && node != 0 && trie->nodes[node].token == 0)
        trie->nodes[node].token = token_index + 1;
    return st;
}

static bool is_marked(const struct added_scan *scan, const struct added_token *token,
                      size_t start, size_t end)
{
    return scan->marks != NULL && scan->controls[token->id] &&
           memchr(scan->marks + start, 1, end - start) != NULL;
}

/* The longest token at `position` that may be one; NULL: none. */
static const struct added_token *longest_at(const struct added_scan *scan, size_t position,
                                            size_t *end_out)
{
    const struct added_token *found = NULL;
    uint32_t node = 0;

    for (size_t i = position; i < scan->size; i++) {
        node = child_of(scan->trie, node, (unsigned char)scan->text[i]);
        if (node == 0)
            break;
        if (scan->trie->nodes[node].token != 0) {
            const struct added_token *token =
                &scan->added->tokens[scan->trie->nodes[node].token - 1];

            if (!is_marked(scan, token, position, i + 1)) {
                found = token;
                *end_out = i + 1;
            }
        }
    }
    return found;
}

/* --- matching --------------------------------------------------------------------------------- */

static bool is_single_word(const struct added_scan *scan, size_t start, size_t end)
{
    uint32_t code_point;
    size_t length;

    if (start > 0 && class_is_word(utf8_last(scan->text, start, &length)))
        return false;
    if (end == scan->size)
        return true;
    (void)utf8_decode(scan->text + end, scan->size - end, &code_point, NULL);
    return !class_is_word(code_point);
}

/* Where the spaces before `end` start, but no earlier than what has been handed out. */
static size_t before_spaces(const struct added_scan *scan, size_t end)
{
    while (end > scan->done) {
        size_t length;
        if (!class_is_space(utf8_last(scan->text, end, &length)))
            return end;
        end -= length;
    }
    return scan->done;
}

/* Where the spaces from `start` on end. The last run is remembered: many tokens may lie in it. */
static size_t after_spaces(struct added_scan *scan, size_t start)
{
    size_t end = start;

    if (start >= scan->spaces_start && start < scan->spaces_end)
        return scan->spaces_end;
    while (end < scan->size) {
        uint32_t code_point;
        const size_t length = utf8_decode(scan->text + end, scan->size - end, &code_point, NULL);
        if (!class_is_space(code_point))
            break;
        end += length;
    }
    scan->spaces_start = start;
    scan->spaces_end = end;
    return end;
}

bool added_scan_next(struct added_scan *scan, const struct added_token **token_out,
                     size_t *start_out, size_t *end_out)
{
    if (scan->trie->node_count == 0)
        return false;
    while (scan->position < scan->size) {
        size_t start = scan->position;
        size_t end = 0;
        const struct added_token *token;

        if (scan->trie->roots[(unsigned char)scan->text[start]] == 0) {
            scan->position++;
            continue;
        }
        token = longest_at(scan, start, &end);
        if (token == NULL) {
            scan->position++;
            continue;
        }
        scan->position = end;
        if (token->single_word && !is_single_word(scan, start, end))
            continue;
        if (token->lstrip)
            start = before_spaces(scan, start);
        if (token->rstrip)
            end = after_spaces(scan, end);
        if (start >= end) {
            /* Spaces that rstrip gave to the token before: nothing is left of this one. */
            scan->done = end;
            continue;
        }
        *token_out = token;
        *start_out = start;
        *end_out = end;
        return true;
    }
    return false;
}

/* --- opening ---------------------------------------------------------------------------------- */

const struct added_token *added_find(const struct added *added, const char *bytes, size_t size)
{
    uint64_t index;

    if (added->by_content == NULL || !map_get(added->by_content, bytes, size, &index))
        return NULL;
    return &added->tokens[index];
}

const struct added_token *added_by_id(const struct added *added, int32_t id)
{
    if (id < 0 || (uint32_t)id >= added->id_limit || added->by_id[id] == 0)
        return NULL;
    return &added->tokens[added->by_id[id] - 1];
}

/* The flags and the content of one entry; its id is not asked. */
static enum status read_token(const json_t *json, const char *what, struct added_token *token,
                              struct err *err)
{
    enum status st;

    if (!json_is_object(json))
        return err_set(err, STATUS_BAD_INPUT, "%s: a token is %s, an object is wanted", what,
                       json_kind(json));
    st = json_get_bool(json, "special", what, &token->special, err);
    token->is_normalized = !token->special;
    if (st == STATUS_OK)
        st = json_get_bool(json, "single_word", what, &token->single_word, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "lstrip", what, &token->lstrip, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "rstrip", what, &token->rstrip, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "normalized", what, &token->is_normalized, err);
    if (st == STATUS_OK)
        st = string_read(json, "content", what, ADDED_BYTES_MAX, &token->content, err);
    return st;
}

static enum status normalize_content(struct added_token *token,
                                     const struct normalizers *normalizers, struct err *err)
{
    struct buf text;
    struct buf scratch;
    size_t lead = 0;
    enum status st;

    buf_init(&text, TEXT_GROWTH_BASE);
    buf_init(&scratch, TEXT_GROWTH_BASE);
    st = buf_append(&text, token->content.bytes, token->content.size, err);
    if (st == STATUS_OK)
        st = normalizers_run(normalizers, &text, &lead, &scratch, err);
    if (st == STATUS_OK && (text.size != token->content.size ||
                            memcmp(text.data, token->content.bytes, text.size) != 0))
        st = string_copy(text.data, text.size, &token->normalized, err);
    buf_deinit(&text);
    buf_deinit(&scratch);
    return st;
}

/* Takes *token over. A second token of one content replaces the first. */
static enum status keep_token(struct added *added, struct added_token *token,
                              const struct bpe *bpe, int32_t *next_id, struct err *err)
{
    struct added_token *same =
        (struct added_token *)added_find(added, token->content.bytes, token->content.size);

    if (same != NULL) {
        token->id = same->id;
        token->is_skipped = token->special || same->is_skipped;
        string_deinit(&same->content);
        string_deinit(&same->normalized);
        *same = *token;
        *token = (struct added_token){ .id = -1 };
        return STATUS_OK;
    }
    token->id = vocab_find(&bpe->vocab, token->content.bytes, token->content.size);
    if (token->id < 0)
        token->id = (*next_id)++;
    token->is_skipped = token->special;
    added->tokens[added->count] = *token;
    *token = (struct added_token){ .id = -1 };
    added->count++;
    return map_set(added->by_content, added->tokens[added->count - 1].content.bytes,
                   added->tokens[added->count - 1].content.size, added->count - 1, err);
}

static enum status index_tokens(struct added *added, const char *what, struct err *err)
{
    enum status st = STATUS_OK;

    for (uint32_t i = 0; i < added->count; i++)
        if ((uint32_t)added->tokens[i].id >= added->id_limit)
            added->id_limit = (uint32_t)added->tokens[i].id + 1;
    added->by_id = calloc((size_t)added->id_limit + 1, sizeof(*added->by_id));
    if (added->by_id == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for %u ids", what, added->id_limit);
    for (uint32_t i = 0; i < added->count && st == STATUS_OK; i++) {
        struct added_token *token = &added->tokens[i];

        added->by_id[token->id] = i + 1;
        if (token->normalized.bytes != NULL) {
            const struct added_token *as_decoded =
                added_find(added, token->normalized.bytes, token->normalized.size);
            token->is_skipped = as_decoded != NULL && as_decoded->special;
        }
        if (!token->is_normalized)
            st = trie_add(&added->plain, &token->content, i, err);
        else if (token->normalized.bytes != NULL)
            st = trie_add(&added->normalized, &token->normalized, i, err);
        else
            st = trie_add(&added->normalized, &token->content, i, err);
    }
    return st;
}

enum status added_init(struct added *added, const json_t *json, const struct bpe *bpe,
                       const struct normalizers *normalizers, const char *what, struct err *err)
{
    int32_t next_id = (int32_t)bpe->vocab.entry_count;
    size_t i;
    json_t *entry;
    enum status st = map_create(0, &added->by_content, err);

    if (st != STATUS_OK || json == NULL || json_is_null(json))
        return st;
    if (!json_is_array(json))
        return err_set(err, STATUS_BAD_INPUT, "%s: %s, an array is wanted", what,
                       json_kind(json));
    if (json_array_size(json) > ADDED_COUNT_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: %zu tokens, at most %u are taken", what,
                       json_array_size(json), ADDED_COUNT_MAX);
    added->tokens = calloc(json_array_size(json) + 1, sizeof(*added->tokens));
    if (added->tokens == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for %zu tokens", what,
                       json_array_size(json));
    json_array_foreach((json_t *)json, i, entry) {
        struct added_token token = { .id = -1 };

        st = read_token(entry, what, &token, err);
        if (st == STATUS_OK && token.is_normalized)
            st = normalize_content(&token, normalizers, err);
        if (st == STATUS_OK && token.content.size > 0)
            st = keep_token(added, &token, bpe, &next_id, err);
        string_deinit(&token.content);
        string_deinit(&token.normalized);
        if (st != STATUS_OK)
            return st;
    }
    return index_tokens(added, what, err);
}

void added_deinit(struct added *added)
{
    for (uint32_t i = 0; i < added->count; i++) {
        string_deinit(&added->tokens[i].content);
        string_deinit(&added->tokens[i].normalized);
    }
    free(added->tokens);
    free(added->by_id);
    free(added->plain.nodes);
    free(added->normalized.nodes);
    map_destroy(added->by_content);
    *added = (struct added){ 0 };
}
