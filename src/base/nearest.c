/* base/nearest.c - see nearest.h. */
#include "base/nearest.h"

#include <assert.h>
#include <ctype.h>
#include <string.h>

#define LETTERS_MAX 64

static int fold(char c)
{
    return c == '_' ? '-' : tolower((unsigned char)c);
}

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

uint32_t nearest_distance(const char *a, const char *b)
{
    /* Three rows of the table: what a[0..i) becomes b[0..j) for. */
    uint32_t rows[3][LETTERS_MAX + 1];
    const size_t a_size = strnlen(a, LETTERS_MAX), b_size = strnlen(b, LETTERS_MAX);

    for (size_t j = 0; j <= b_size; j++)
        rows[0][j] = (uint32_t)j;
    for (size_t i = 1; i <= a_size; i++) {
        uint32_t *row = rows[i % 3];
        const uint32_t *above = rows[(i + 2) % 3], *above_two = rows[(i + 1) % 3];
        row[0] = (uint32_t)i;
        for (size_t j = 1; j <= b_size; j++) {
            const int x = fold(a[i - 1]), y = fold(b[j - 1]);
            row[j] = min_u32(above[j - 1] + (x != y), min_u32(above[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && x == fold(b[j - 2]) && fold(a[i - 2]) == y)
                row[j] = min_u32(row[j], above_two[j - 2] + 1);
        }
    }
    return rows[a_size % 3][b_size];
}

static uint32_t cost(const char *name, const char *known)
{
    const size_t size = strlen(name);
    uint32_t distance = nearest_distance(name, known);
    size_t i = 0;

    while (i < size && known[i] != '\0' && fold(name[i]) == fold(known[i]))
        i++;
    if (size >= 2 && i == size)
        distance = min_u32(distance, 1);
    return distance;
}

const char *nearest_name(const char *name, const char *const *names, size_t count)
{
    const char *best = NULL;
    uint32_t best_cost = 0;

    assert(name != NULL);
    for (size_t i = 0; i < count; i++) {
        const uint32_t this_cost = cost(name, names[i]);
        if (best == NULL || this_cost < best_cost) {
            best = names[i];
            best_cost = this_cost;
        }
    }
    return best;
}
