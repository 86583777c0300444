/* What a head does with a new position, written once and compiled for each instruction set by including this file.
 *
 * The including file gives VECTOR, how many floats a register holds, and load_halves, store_halves and add_all for that
 * many. Softmax is taken in one pass over the cache, block by block: when a block has a larger score than all before
 * it, what was summed until then is scaled down (Milakov and Gimelshein 2018, arXiv 1805.02867).
 *
 * NaN and infinity among scores make the result NaN.
 */
#include <math.h>

#include "attention.h"

/* Vectors are only passed between functions that are inlined: how they would be passed does not matter. */
#pragma GCC diagnostic ignored "-Wpsabi"

#define BLOCK 1024          /* positions between two looks at the largest score */
#define ROWS_AT_ONCE 4      /* rows of the cache that a piece of query or result meets while it is in a register */
#define PREFETCH_AHEAD 4096 /* bytes; keys and values are each one long stream */

typedef float Floats __attribute__((vector_size(VECTOR * 4), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(VECTOR * 4), aligned(4), may_alias));

static Floats load_halves(const uint16_t *halves);
static void store_halves(uint16_t *halves, Floats values);
static float add_all(Floats values);

INLINE Floats load_floats(const float *values) { return *(const Floats *)values; }
INLINE void store_floats(float *target, Floats values) { *(Floats *)target = values; }

INLINE Floats load_some_halves(const uint16_t *halves, int64_t count) {
    uint16_t whole[VECTOR] = {0};
    memcpy(whole, halves, (size_t)count * sizeof(uint16_t));
    return load_halves(whole);
}

/* Called for every column d of the rows at `halves` that starts a vector; asks once for each line of 64 bytes. */
INLINE void prefetch(const uint16_t *halves, int64_t d, int64_t width, int rows) {
    if (d * sizeof(uint16_t) % LINE) return;
    for (int r = 0; r < rows; r++) __builtin_prefetch((const char *)(halves + r * width + d) + PREFETCH_AHEAD);
}

/* values: padded. */
INLINE void store_row(uint16_t *row, const float *values, int64_t width) {
    int64_t d = 0;
    for (; d + VECTOR <= width; d += VECTOR) store_halves(row + d, load_floats(values + d));
    if (d < width) {
        uint16_t rest[VECTOR];
        store_halves(rest, load_floats(values + d));
        memcpy(row + d, rest, (size_t)(width - d) * sizeof(uint16_t));
    }
}

/* e^x for x <= 0, to 2e-7 of itself; below -87 it stays e^-87, which is next to nothing.
 * x = n log 2 + r with |r| <= log(2) / 2; e^r by its Taylor series, 2^n by its bits. */
INLINE Floats exponential(Floats x) {
    Floats smallest = (Floats){0} - 87.0f;
    Ints is_small = (Ints)(x < smallest);
    x = (Floats)(((Ints)x & ~is_small) | ((Ints)smallest & is_small));
    Floats n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* to the nearest integer */
    Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;     /* log 2 in two parts, the first exact times n */
    Floats series = r * (1.0f / 5040) + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    return series * (Floats)((__builtin_convertvector(n, Ints) + 127) << 23);
}

/* scores[r] = query . keys[r] for `rows` neighbouring rows. */
INLINE void score_rows(float *scores, const float *query, const uint16_t *keys, int64_t width, int rows) {
    Floats sums[ROWS_AT_ONCE] = {0};
    int64_t d = 0;
    for (; d + VECTOR <= width; d += VECTOR) {
        prefetch(keys, d, width, rows);
        for (int r = 0; r < rows; r++) sums[r] += load_floats(query + d) * load_halves(keys + r * width + d);
    }
    if (d < width)
        for (int r = 0; r < rows; r++)
            sums[r] += load_floats(query + d) * load_some_halves(keys + r * width + d, width - d);
    for (int r = 0; r < rows; r++) scores[r] = add_all(sums[r]);
}

/* total += weights[r] * values[r] for `rows` neighbouring rows; total: padded. */
INLINE void add_rows(float *total, const float *weights, const uint16_t *values, int64_t width, int rows) {
    int64_t d = 0;
    for (; d + VECTOR <= width; d += VECTOR) {
        prefetch(values, d, width, rows);
        Floats sum = load_floats(total + d);
        for (int r = 0; r < rows; r++) sum += weights[r] * load_halves(values + r * width + d);
        store_floats(total + d, sum);
    }
    if (d < width) {
        Floats sum = load_floats(total + d);
        for (int r = 0; r < rows; r++) sum += weights[r] * load_some_halves(values + r * width + d, width - d);
        store_floats(total + d, sum);
    }
}

static void score_block(float *scores, const float *query, const uint16_t *keys, int64_t width, int64_t count) {
    int64_t s = 0;
    for (; s + ROWS_AT_ONCE <= count; s += ROWS_AT_ONCE)
        score_rows(scores + s, query, keys + s * width, width, ROWS_AT_ONCE);
    for (; s < count; s++) score_rows(scores + s, query, keys + s * width, width, 1);
}

static void add_block(float *total, const float *weights, const uint16_t *values, int64_t width, int64_t count) {
    int64_t s = 0;
    for (; s + ROWS_AT_ONCE <= count; s += ROWS_AT_ONCE)
        add_rows(total, weights + s, values + s * width, width, ROWS_AT_ONCE);
    for (; s < count; s++) add_rows(total, weights + s, values + s * width, width, 1);
}

static float largest_of(const float *scores, int64_t count, float largest) {
    for (int64_t s = 0; s < count; s++) largest = scores[s] > largest ? scores[s] : largest;
    return largest;
}

/* scores become e^(score - largest); returns their sum. Room for a whole vector past `count` is needed. */
static float weigh_block(float *scores, int64_t count, float largest) {
    Floats sums = {0};
    for (int64_t s = count; s % VECTOR; s++) scores[s] = -INFINITY;
    for (int64_t s = 0; s < count; s += VECTOR) {
        Floats weights = exponential(load_floats(scores + s) - largest);
        store_floats(scores + s, weights);
        sums += weights;
    }
    return add_all(sums);
}

static float exponential_of(float x) {
    Floats result = exponential((Floats){0} + x);
    return result[0];
}

static void scale_row(float *row, float factor, int64_t width) {
    for (int64_t d = 0; d < width; d++) row[d] *= factor;
}

/* The beginning of a stream, which no prefetch of the rows before reaches. */
INLINE void prefetch_first(const uint16_t *halves, int64_t positions, int64_t width) {
    int64_t bytes = positions * width * (int64_t)sizeof(uint16_t);
    if (bytes > PREFETCH_AHEAD) bytes = PREFETCH_AHEAD;
    for (int64_t b = 0; b < bytes; b += LINE) __builtin_prefetch((const char *)halves + b);
}

static void attend_head(float *total, const Head *head) {
    int64_t width = head->width, positions = head->length + 1;
    prefetch_first(head->keys, positions, width);
    prefetch_first(head->values, positions, width);
    store_row(head->keys + head->length * width, head->key, width);
    store_row(head->values + head->length * width, head->value, width);

    float scores[BLOCK] __attribute__((aligned(LINE)));
    float largest = -INFINITY, sum = 0.0f;
    memset(total, 0, (size_t)width * sizeof(float));
    for (int64_t first = 0; first < positions; first += BLOCK) {
        int64_t count = positions - first < BLOCK ? positions - first : BLOCK;
        score_block(scores, head->query, head->keys + first * width, width, count);
        float before = largest;
        largest = largest_of(scores, count, largest);
        if (largest > before) {
            float factor = exponential_of(before - largest);
            scale_row(total, factor, width);
            sum *= factor;
        }
        sum += weigh_block(scores, count, largest);
        add_block(total, scores, head->values + first * width, width, count);
    }
    scale_row(total, 1.0f / sum, width);
}
