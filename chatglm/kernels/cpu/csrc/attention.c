/* Attention of one request: splits heads among threads; the rest is attention_head.h and attention_prompt.h.
 *
 * Turning the queries and keys of a new position is here because this file is compiled for the plainest processor, which has no multiply-and-add: its results
 * are those of the same formula in separate tensor operators, to the last bit. So are the keys that are stored, which
 * could otherwise fall to the other side when they are rounded to half.
 */
#include <math.h>
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "attention.h"

#define WORTH_A_THREAD 32768 /* bytes of cache below which waking another thread costs more than it saves */

static const Attention *attention_in_use(void) {
#if HAS_X86
    int32_t isa = chatglm_isa();
    if (isa == ISA_AVX512) return &avx512_attention;
    if (isa == ISA_AVX2) return &avx2_attention;
#endif
    return &scalar_attention;
}

static int thread_number(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

/* Each half of a part rotated by the other (nn/rotary.py): x cos + (-second, first) sin. */
static void rotate_into(float *result, const float *x, const float *cosine, const float *sine, int64_t width,
                        int rotary_dims) {
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif
    int64_t half = width / rotary_dims / 2;
    for (int64_t first = 0; first < width; first += 2 * half) {
        for (int64_t i = first; i < first + half; i++) {
            float a = x[i], b = x[i + half];
            result[i] = a * cosine[i] - b * sine[i];
            result[i + half] = b * cosine[i + half] + a * sine[i + half];
        }
    }
}

int32_t chatglm_attend_one(float *result, const float *qkv, const float *cosine, const float *sine, uint16_t *keys,
                           uint16_t *values, int64_t heads, int64_t width, int64_t capacity, int64_t length,
                           int32_t rotary_dims, int32_t threads) {
    HeadKernel attend_head = attention_in_use()->one;
    int64_t padded = padded_width(width);
    size_t row = (size_t)width * sizeof(float), space_size = (size_t)(4 * padded) * sizeof(float);
    float *spaces;
    if (posix_memalign((void **)&spaces, LINE, (size_t)threads * space_size)) return 1;
    memset(spaces, 0, (size_t)threads * space_size);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (4 * heads * width * length > WORTH_A_THREAD)
    for (int64_t h = 0; h < heads; h++) {
        float *query = spaces + thread_number() * 4 * padded, *key = query + padded, *value = key + padded;
        float *total = value + padded;
        const float *new = qkv + 3 * h * width;
        rotate_into(query, new, cosine, sine, width, rotary_dims);
        rotate_into(key, new + width, cosine, sine, width, rotary_dims);
        memcpy(value, new + 2 * width, row);
        for (int64_t d = 0; d < width; d++) query[d] *= 1.0f / sqrtf((float)width);
        int64_t first = h * capacity * width;
        Head head = {query, key, value, keys + first, values + first, width, length};
        attend_head(total, &head);
        memcpy(result + h * width, total, row);
    }
    free(spaces);
    return 0;
}

static PromptSpace split(float *floats, int64_t width, int64_t num_queries) {
    PromptSpace space = {floats};
    space.values = space.keys + PROMPT_BLOCK * width;
    space.queries = space.values + PROMPT_BLOCK * (width + MAX_TILE);
    space.scores = space.queries + MAX_QUERIES * PROMPT_BLOCK;
    space.largest = space.scores + MAX_QUERIES * PROMPT_BLOCK;
    space.sums = space.largest + num_queries;
    return space;
}

static int64_t floats_of_space(int64_t width, int64_t num_queries) {
    int64_t floats = PROMPT_BLOCK * (2 * width + MAX_TILE + 2 * MAX_QUERIES) + 2 * num_queries;
    return (floats + WIDTH_STEP - 1) / WIDTH_STEP * WIDTH_STEP;
}

int32_t chatglm_attend_prompt(float *result, const float *qkv, const uint16_t *keys, const uint16_t *values,
                              int64_t tokens, int64_t heads, int64_t width, int64_t capacity, int64_t length,
                              int32_t threads) {
    const Attention *attention = attention_in_use();
    int64_t size = floats_of_space(width, tokens);
    float *spaces;
    if (posix_memalign((void **)&spaces, LINE, (size_t)(threads * size) * sizeof(float))) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t h = 0; h < heads; h++) {
        PromptSpace space = split(spaces + thread_number() * size, width, tokens);
        int64_t first = h * capacity * width;
        Prompt prompt = {qkv + 3 * h * width, result + h * width, keys + first, values + first,
                         3 * heads * width,   heads * width,      tokens,       length,         width};
        attention->prompt(&prompt, &space);
    }
    free(spaces);
    return 0;
}
