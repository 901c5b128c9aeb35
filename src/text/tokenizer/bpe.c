/* text/tokenizer/bpe.c - byte pair encoding of one piece of text.
 *
 * A piece starts as its characters, each the token of that character (or its bytes' tokens, or the
 * unknown token, or nothing). Then, again and again, the pair of neighbours whose merge stands
 * earliest in the list of merges (the leftmost of equal ones) becomes one token, until no pair has
 * a merge (Sennrich et al. 2016, https://www.aclweb.org/anthology/P16-1162/). The symbols are a
 * linked list in an array; a heap of (rank, position) finds the next merge, with entries that no
 * longer hold dropped when they come up: O(n log n) for n characters, about 32 bytes for each.
 * Short pieces, which is most of them, are scanned instead, which is quicker. */
#include "text/tokenizer/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/utf8.h"

#define BPE_NONE UINT32_MAX
#define MERGE_EMPTY UINT64_MAX
#define CHARACTER_IDS 0x10000u
#define SYMBOL_COUNT_MAX ((size_t)128 << 20)
#define SCANNED_SYMBOLS_MAX 24 /* up to here a scan for the best pair beats the heap */

/* --- opening ---------------------------------------------------------------------------------- */

static uint64_t pair_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static struct merge *merge_slot(const struct bpe *bpe, uint64_t pair)
{
    uint64_t hash = pair * UINT64_C(0x9e3779b97f4a7c15);
    size_t i = (size_t)(hash >> 24) & bpe->merge_mask;

    while (bpe->merges[i].pair != MERGE_EMPTY && bpe->merges[i].pair != pair)
        i = (i + 1) & bpe->merge_mask;
    return &bpe->merges[i];
}

/* The two halves of merges[index]: "a b" or ["a", "b"]. */
static enum status merge_halves(const json_t *merge, size_t index, const char *what,
                                const char *halves[2], size_t sizes[2], struct err *err)
{
    if (json_is_array(merge) && json_array_size(merge) == 2 &&
        json_is_string(json_array_get(merge, 0)) && json_is_string(json_array_get(merge, 1))) {
        for (size_t i = 0; i < 2; i++) {
            halves[i] = json_string_value(json_array_get(merge, i));
            sizes[i] = json_string_length(json_array_get(merge, i));
        }
        return STATUS_OK;
    }
    if (json_is_string(merge)) {
        const char *text = json_string_value(merge);
        const size_t size = json_string_length(merge);
        const char *space = memchr(text, ' ', size);

        if (space != NULL && memchr(space + 1, ' ', size - (size_t)(space + 1 - text)) == NULL) {
            halves[0] = text;
            sizes[0] = (size_t)(space - text);
            halves[1] = space + 1;
            sizes[1] = size - sizes[0] - 1;
            return STATUS_OK;
        }
    }
    return err_set(err, STATUS_BAD_INPUT,
                   "%s: merge %zu is neither \"LEFT RIGHT\" nor [\"LEFT\", \"RIGHT\"]", what,
                   index);
}

static enum status add_merge(struct bpe *bpe, const json_t *json, size_t index, uint32_t rank,
                             struct buf *joined, const char *what, struct err *err)
{
    const char *halves[2] = { NULL, NULL };
    size_t sizes[2] = { 0, 0 };
    int32_t left;
    int32_t right;
    int32_t id;
    struct merge *slot;
    enum status st = merge_halves(json, index, what, halves, sizes, err);

    if (st != STATUS_OK)
        return st;
    left = vocab_find(&bpe->vocab, halves[0], sizes[0]);
    right = vocab_find(&bpe->vocab, halves[1], sizes[1]);
    if (left < 0 || right < 0 || sizes[1] < bpe->prefix.size)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: merge %zu is of \"%.64s\", which the vocab lacks", what, index,
                       left < 0 ? halves[0] : halves[1]);
    buf_clear(joined);
    st = buf_append(joined, halves[0], sizes[0], err);
    if (st == STATUS_OK)
        st = buf_append(joined, halves[1] + bpe->prefix.size, sizes[1] - bpe->prefix.size, err);
    if (st != STATUS_OK)
        return st;
    id = vocab_find(&bpe->vocab, joined->data, joined->size);
    if (id < 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: merge %zu makes \"%.64s\", which the vocab lacks", what, index,
                       joined->data);
    slot = merge_slot(bpe, pair_of(left, right)); /* of two merges of one pair the later counts */
    *slot = (struct merge){ pair_of(left, right), rank, id };
    return STATUS_OK;
}

static enum status read_merges(struct bpe *bpe, const json_t *array, const char *what,
                               struct err *err)
{
    struct buf joined;
    size_t slot_count = 16;
    size_t i;
    json_t *merge;
    uint32_t rank = 0;
    enum status st = STATUS_OK;

    if (!json_is_array(array))
        return err_set(err, STATUS_BAD_INPUT, "%s: \"merges\" is %s, an array is wanted", what,
                       json_kind(array));
    if (json_array_size(array) > MERGE_COUNT_MAX)
        return err_set(err, STATUS_BAD_INPUT, "%s: %zu merges, at most %zu are taken", what,
                       json_array_size(array), MERGE_COUNT_MAX);
    while (slot_count < 2 * json_array_size(array))
        slot_count *= 2;
    bpe->merge_mask = slot_count - 1;
    bpe->merges = malloc(slot_count * sizeof(*bpe->merges));
    if (bpe->merges == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for %zu merges", what,
                       json_array_size(array));
    for (i = 0; i < slot_count; i++)
        bpe->merges[i] = (struct merge){ MERGE_EMPTY, 0, 0 };
    buf_init(&joined, 2 * TOKEN_BYTES_MAX);
    json_array_foreach((json_t *)array, i, merge) {
        if (json_is_string(merge) && strncmp(json_string_value(merge), "#version", 8) == 0)
            continue; /* the first line of a merges.txt */
        st = add_merge(bpe, merge, i, rank++, &joined, what, err);
        if (st != STATUS_OK)
            break;
    }
    buf_deinit(&joined);
    return st;
}

static enum status fill_character_ids(struct bpe *bpe, const char *what, struct err *err)
{
    bpe->character_ids = malloc(CHARACTER_IDS * sizeof(*bpe->character_ids));
    if (bpe->character_ids == NULL)
        return err_set(err, STATUS_NO_MEMORY, "%s: no memory for a table of characters", what);
    for (uint32_t i = 0; i < CHARACTER_IDS; i++)
        bpe->character_ids[i] = -1;
    for (uint32_t i = 0; i < bpe->vocab.entry_count; i++) {
        const struct vocab_entry *entry = &bpe->vocab.entries[i];
        uint32_t code_point;

        if (entry->size > 0 && entry->size <= 3 &&
            utf8_decode(bpe->vocab.bytes + entry->offset, entry->size, &code_point, NULL) ==
                entry->size)
            bpe->character_ids[code_point] = entry->id;
    }
    for (int i = 0; i < 256; i++) {
        static const char digits[] = "0123456789ABCDEF";
        const char name[] = { '<', '0', 'x', digits[i >> 4], digits[i & 15], '>' };
        bpe->byte_ids[i] = vocab_find(&bpe->vocab, name, sizeof(name));
    }
    return STATUS_OK;
}

static enum status read_optional_string(const json_t *json, const char *key, const char *what,
                                        struct text_string *out, struct err *err)
{
    const json_t *value = json_object_get(json, key);

    if (value == NULL || json_is_null(value))
        return STATUS_OK;
    return string_read(json, key, what, CONTENT_BYTES_MAX, out, err);
}

static enum status read_options(struct bpe *bpe, const json_t *json, const char *what,
                                struct err *err)
{
    double dropout = 0;
    const char *type = "BPE";
    enum status st = json_get_string(json, "type", what, &type, err);

    if (st == STATUS_OK && strcmp(type, "BPE") != 0)
        return component_unsupported(what, type, err);
    if (st == STATUS_OK)
        st = json_get_double(json, "dropout", what, 0, 1, &dropout, err);
    if (st == STATUS_OK && dropout != 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "%s: \"dropout\" is %g, only null and 0 are supported", what, dropout);
    if (st == STATUS_OK)
        st = read_optional_string(json, "unk_token", what, &bpe->unk_token, err);
    if (st == STATUS_OK)
        st = read_optional_string(json, "continuing_subword_prefix", what, &bpe->prefix, err);
    if (st == STATUS_OK)
        st = read_optional_string(json, "end_of_word_suffix", what, &bpe->suffix, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "fuse_unk", what, &bpe->fuse_unk, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "byte_fallback", what, &bpe->byte_fallback, err);
    if (st == STATUS_OK)
        st = json_get_bool(json, "ignore_merges", what, &bpe->ignore_merges, err);
    return st;
}

enum status bpe_init(struct bpe *bpe, const json_t *json, const char *what, struct err *err)
{
    enum status st;

    if (!json_is_object(json))
        return err_set(err, STATUS_BAD_INPUT, "%s: %s, an object is wanted", what,
                       json_kind(json));
    st = read_options(bpe, json, what, err);
    if (st == STATUS_OK)
        st = vocab_init(&bpe->vocab, json_object_get(json, "vocab"), what, err);
    if (st == STATUS_OK)
        st = read_merges(bpe, json_object_get(json, "merges"), what, err);
    if (st == STATUS_OK)
        st = fill_character_ids(bpe, what, err);
    if (st != STATUS_OK)
        return st;
    bpe->unk_id = -1;
    if (bpe->unk_token.bytes != NULL)
        bpe->unk_id = vocab_find(&bpe->vocab, bpe->unk_token.bytes, bpe->unk_token.size);
    return STATUS_OK;
}

void bpe_deinit(struct bpe *bpe)
{
    vocab_deinit(&bpe->vocab);
    free(bpe->merges);
    free(bpe->character_ids);
    string_deinit(&bpe->unk_token);
    string_deinit(&bpe->prefix);
    string_deinit(&bpe->suffix);
    *bpe = (struct bpe){ 0 };
}

/* --- the symbols a piece starts as ------------------------------------------------------------ */

static enum status add_symbol(struct bpe_scratch *scratch, int32_t id, struct err *err)
{
    const size_t index = scratch->symbol_count;

    if (index == scratch->symbol_capacity) {
        const size_t capacity = index == 0 ? 64 : 2 * index;
        struct bpe_symbol *symbols;

        if (capacity > SYMBOL_COUNT_MAX)
            return err_set(err, STATUS_BAD_INPUT, "a stretch of text of %zu tokens is too long",
                           index);
        symbols = realloc(scratch->symbols, capacity * sizeof(*symbols));
        if (symbols == NULL)
            return err_set(err, STATUS_NO_MEMORY, "no memory to merge %zu tokens", capacity);
        scratch->symbols = symbols;
        scratch->symbol_capacity = capacity;
    }
    scratch->symbols[index] = (struct bpe_symbol){
        .id = id,
        .previous = index == 0 ? BPE_NONE : (uint32_t)(index - 1),
        .next = (uint32_t)(index + 1), /* the last one's is mended by the caller */
    };
    scratch->symbol_count++;
    return STATUS_OK;
}

/* A character with the prefix of all but the first and the suffix of the last. */
static enum status decorate(const struct bpe *bpe, struct bpe_scratch *scratch, const char *bytes,
                            size_t size, bool is_first, bool is_last, struct err *err)
{
    enum status st = STATUS_OK;

    buf_clear(&scratch->decorated);
    if (!is_first)
        st = buf_append(&scratch->decorated, bpe->prefix.bytes, bpe->prefix.size, err);
    if (st == STATUS_OK)
        st = buf_append(&scratch->decorated, bytes, size, err);
    if (st == STATUS_OK && is_last)
        st = buf_append(&scratch->decorated, bpe->suffix.bytes, bpe->suffix.size, err);
    return st;
}

/* Adds the tokens of the bytes; *done_out false when one byte has none. */
static enum status add_bytes(const struct bpe *bpe, struct bpe_scratch *scratch, const char *bytes,
                             size_t size, bool *done_out, struct err *err)
{
    *done_out = false;
    for (size_t i = 0; i < size; i++)
        if (bpe->byte_ids[(unsigned char)bytes[i]] < 0)
            return STATUS_OK;
    for (size_t i = 0; i < size; i++) {
        enum status st = add_symbol(scratch, bpe->byte_ids[(unsigned char)bytes[i]], err);
        if (st != STATUS_OK)
            return st;
    }
    *done_out = true;
    return STATUS_OK;
}

/* An unknown token is held back until the next known character, so that fuse_unk can join several;
 * tokens of bytes pass it by, as they do in the library. */
static enum status add_character(const struct bpe *bpe, struct bpe_scratch *scratch,
                                 const char *bytes, size_t size, int32_t id, bool *unk_pending,
                                 struct err *err)
{
    enum status st = STATUS_OK;
    bool done = false;

    if (id >= 0) {
        if (*unk_pending)
            st = add_symbol(scratch, bpe->unk_id, err);
        *unk_pending = false;
        return st == STATUS_OK ? add_symbol(scratch, id, err) : st;
    }
    if (bpe->byte_fallback) {
        st = add_bytes(bpe, scratch, bytes, size, &done, err);
        if (st != STATUS_OK || done)
            return st;
    }
    if (bpe->unk_token.bytes == NULL)
        return STATUS_OK;
    if (bpe->unk_id < 0)
        return err_set(err, STATUS_BAD_INPUT,
                       "the tokenizer's unk_token \"%.64s\" is not in its vocab",
                       bpe->unk_token.bytes);
    if (*unk_pending && !bpe->fuse_unk)
        st = add_symbol(scratch, bpe->unk_id, err);
    *unk_pending = true;
    return st;
}

static enum status split_into_symbols(const struct bpe *bpe, struct bpe_scratch *scratch,
                                      const char *text, size_t size, struct err *err)
{
    const bool decorated = bpe->prefix.size > 0 || bpe->suffix.size > 0;
    bool unk_pending = false;
    enum status st = STATUS_OK;

    scratch->symbol_count = 0;
    for (size_t i = 0; i < size && st == STATUS_OK;) {
        uint32_t code_point;
        const char *bytes = text + i;
        const size_t length = utf8_decode(bytes, size - i, &code_point, NULL);
        size_t byte_count = length;
        int32_t id;

        if (decorated) {
            st = decorate(bpe, scratch, bytes, length, i == 0, i + length == size, err);
            if (st != STATUS_OK)
                return st;
            bytes = scratch->decorated.data;
            byte_count = scratch->decorated.size;
            id = vocab_find(&bpe->vocab, bytes, byte_count);
        } else {
            id = code_point < CHARACTER_IDS ? bpe->character_ids[code_point]
                                            : vocab_find(&bpe->vocab, bytes, length);
        }
        st = add_character(bpe, scratch, bytes, byte_count, id, &unk_pending, err);
        i += length;
    }
    if (st == STATUS_OK && unk_pending)
        st = add_symbol(scratch, bpe->unk_id, err);
    if (scratch->symbol_count > 0)
        scratch->symbols[scratch->symbol_count - 1].next = BPE_NONE;
    return st;
}

/* --- merging ---------------------------------------------------------------------------------- */

/* The merge of the symbol at `index` with the one after it; NULL: none. */
static const struct merge *merge_at(const struct bpe *bpe, const struct bpe_symbol *symbols,
                                    uint32_t index)
{
    const uint32_t next = symbols[index].next;
    const struct merge *merge;

    if (next == BPE_NONE)
        return NULL;
    merge = merge_slot(bpe, pair_of(symbols[index].id, symbols[next].id));
    return merge->pair == MERGE_EMPTY ? NULL : merge;
}

/* Makes the symbol at `index` and the next one the token `id`; the next one is dead afterwards. */
static void apply_merge(struct bpe_symbol *symbols, uint32_t index, int32_t id)
{
    const uint32_t right = symbols[index].next;
    const uint32_t after = symbols[right].next;

    symbols[index].id = id;
    symbols[index].next = after;
    symbols[right].id = -1;
    if (after != BPE_NONE)
        symbols[after].previous = index;
}

static void merge_by_scanning(const struct bpe *bpe, struct bpe_scratch *scratch)
{
    struct bpe_symbol *symbols = scratch->symbols;
    uint32_t ranks[SCANNED_SYMBOLS_MAX]; /* of the merge with the next symbol */
    int32_t ids[SCANNED_SYMBOLS_MAX];

    assert(scratch->symbol_count > 0 && scratch->symbol_count <= SCANNED_SYMBOLS_MAX);
    for (uint32_t i = 0; i < scratch->symbol_count; i++) {
        const struct merge *merge = merge_at(bpe, symbols, i);
        ranks[i] = merge == NULL ? UINT32_MAX : merge->rank;
        ids[i] = merge == NULL ? -1 : merge->id;
    }
    for (;;) {
        uint32_t best = 0;
        uint32_t touched[2];

        for (uint32_t i = symbols[0].next; i != BPE_NONE; i = symbols[i].next)
            if (ranks[i] < ranks[best])
                best = i;
        if (ranks[best] == UINT32_MAX)
            return;
        apply_merge(symbols, best, ids[best]);
        touched[0] = best;
        touched[1] = symbols[best].previous;
        for (int i = 0; i < 2 && touched[i] != BPE_NONE; i++) {
            const struct merge *merge = merge_at(bpe, symbols, touched[i]);
            ranks[touched[i]] = merge == NULL ? UINT32_MAX : merge->rank;
            ids[touched[i]] = merge == NULL ? -1 : merge->id;
        }
    }
}

static void sift_down(uint64_t *heap, size_t count, size_t at)
{
    const uint64_t value = heap[at];

    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= count)
            break;
        if (child + 1 < count && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= value)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = value;
}

static void heap_push(struct bpe_scratch *scratch, uint64_t value)
{
    uint64_t *heap = scratch->heap;
    size_t at = scratch->heap_count++;

    assert(at < scratch->heap_capacity);
    while (at > 0 && heap[(at - 1) / 2] > value) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = value;
}

static uint64_t heap_pop(struct bpe_scratch *scratch)
{
    const uint64_t top = scratch->heap[0];

    scratch->heap[0] = scratch->heap[--scratch->heap_count];
    if (scratch->heap_count > 0)
        sift_down(scratch->heap, scratch->heap_count, 0);
    return top;
}

/* Every merge takes one entry out and puts at most two in, so 2 * symbols entries are enough. */
static enum status reserve_heap(struct bpe_scratch *scratch, struct err *err)
{
    const size_t wanted = 2 * scratch->symbol_count;
    uint64_t *heap;

    if (wanted <= scratch->heap_capacity)
        return STATUS_OK;
    heap = realloc(scratch->heap, wanted * sizeof(*heap));
    if (heap == NULL)
        return err_set(err, STATUS_NO_MEMORY, "no memory to merge %zu tokens",
                       scratch->symbol_count);
    scratch->heap = heap;
    scratch->heap_capacity = wanted;
    return STATUS_OK;
}

static enum status merge_by_heap(const struct bpe *bpe, struct bpe_scratch *scratch,
                                 struct err *err)
{
    struct bpe_symbol *symbols = scratch->symbols;
    enum status st = reserve_heap(scratch, err);

    if (st != STATUS_OK)
        return st;
    scratch->heap_count = 0;
    for (uint32_t i = 0; i < scratch->symbol_count; i++) {
        const struct merge *merge = merge_at(bpe, symbols, i);
        if (merge != NULL)
            scratch->heap[scratch->heap_count++] = (uint64_t)merge->rank << 32 | i;
    }
    for (size_t i = scratch->heap_count / 2; i-- > 0;)
        sift_down(scratch->heap, scratch->heap_count, i);
    while (scratch->heap_count > 0) {
        const uint64_t top = heap_pop(scratch);
        const uint32_t index = (uint32_t)top;
        const struct merge *merge;

        if (symbols[index].id < 0)
            continue; /* merged into its left neighbour meanwhile */
        merge = merge_at(bpe, symbols, index);
        if (merge == NULL || merge->rank != (uint32_t)(top >> 32))
            continue; /* one of the two has grown meanwhile */
        apply_merge(symbols, index, merge->id);
        merge = merge_at(bpe, symbols, index);
        if (merge != NULL)
            heap_push(scratch, (uint64_t)merge->rank << 32 | index);
        if (symbols[index].previous != BPE_NONE) {
            merge = merge_at(bpe, symbols, symbols[index].previous);
            if (merge != NULL)
                heap_push(scratch, (uint64_t)merge->rank << 32 | symbols[index].previous);
        }
    }
    return STATUS_OK;
}

enum status bpe_encode(const struct bpe *bpe, struct bpe_scratch *scratch, const char *text,
                       size_t size, struct token_ids *out, struct err *err)
{
    enum status st;

    if (size == 0)
        return STATUS_OK;
    if (bpe->ignore_merges) {
        const int32_t id = vocab_find(&bpe->vocab, text, size);
        if (id >= 0)
            return token_ids_push(out, id, err);
    }
    st = split_into_symbols(bpe, scratch, text, size, err);
    if (st != STATUS_OK || scratch->symbol_count == 0)
        return st;
    if (scratch->symbol_count <= SCANNED_SYMBOLS_MAX)
        merge_by_scanning(bpe, scratch);
    else
        st = merge_by_heap(bpe, scratch, err);
    for (uint32_t i = 0; st == STATUS_OK && i != BPE_NONE; i = scratch->symbols[i].next)
        st = token_ids_push(out, scratch->symbols[i].id, err);
    return st;
}

void bpe_scratch_deinit(struct bpe_scratch *scratch)
{
    free(scratch->symbols);
    free(scratch->heap);
    buf_deinit(&scratch->decorated);
    *scratch = (struct bpe_scratch){ 0 };
}
