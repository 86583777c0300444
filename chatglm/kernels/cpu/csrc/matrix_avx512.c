/* Many tokens at once with AVX-512 VNNI: products of tiles of 32 rows and up to 6 tokens.
 *
 * A step is 4 columns. Weights of a panel are unpacked once, transposed so that a vector holds one step of 16 rows, and
 * then meet every token; a step of a token is broadcast to all lanes:
 *
 *     panel   [tile of 32 rows][step][32 rows] of 4 bytes         w + 8 or w + 128, unsigned
 *     tokens  [tile of n tokens][step][n tokens] of 4 bytes       int8
 *     sums    24 vectors: 6 tokens x 32 rows, as integers of the group and as floats of all groups, in registers
 *
 * At 4 bits the steps of 8 columns are the even ones and then the odd ones, as the nibbles lie.
 */
#include "internal.h"
#if HAS_X86
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "target_avx512.h"

#include "groups_avx512.h"
#include "portable.h"

#define TILE_ROWS 32
#define TILE_TOKENS 6
#define PANEL_ROWS 128 /* four tiles of rows meet a tile of tokens while it is in the first-level cache */
#define BLOCK_STEPS 1024 /* measured best of 256 to 4096: a tile of rows is 128 KB, in the second-level cache */
#define AHEAD_STEPS 16 /* of a panel, asked for from the second-level cache */
#define AHEAD_GROUPS 4 /* of activations, asked for from memory: the processor does not guess so many short streams */
#define STEP_COLUMNS 4
#define GROUP_STEPS (GROUP / STEP_COLUMNS)

/* Activations of all tokens, in tiles. A tile of n tokens begins at `first token * steps` (or groups). */
typedef struct {
    int32_t *steps;
    int32_t *start;  /* [group][n]: what a sum begins with; groups of `group_steps` */
    float *scale;    /* [group][n] */
    float *constant; /* [token]: what the offsets of the weights add to an int4 row with one scale, times -1 */
    int64_t num_steps, num_groups, num_tokens, tile;
    int group_steps;
} Tokens;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* One group of one token, which is the t-th of its tile of n; returns what the offsets of the weights add, times -1. */
INLINE double prepare_group(const Tokens *tokens, int64_t first, int64_t n, int64_t t, int64_t group, const float *x,
                            int64_t count, int bits) {
    const __m512i even_then_odd = _mm512_set4_epi32(0x0f0d0b09, 0x0e0c0a08, 0x07050301, 0x06040200);
    int parts = GROUP_STEPS / tokens->group_steps, offset = bits == 4 ? 8 : 128;
    for (int i = 0; i < GROUP; i += LANES) _mm_prefetch((const char *)(x + AHEAD_GROUPS * GROUP + i), _MM_HINT_T0);
    float scale;
    int32_t ordered[GROUP_STEPS];
    __m512i integers = quantize_in_register(&scale, x, count);
    __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), integers);
    if (bits == 4) integers = _mm512_shuffle_epi8(integers, even_then_odd);
    _mm512_storeu_si512(ordered, integers);
    int32_t *steps = tokens->steps + first * tokens->num_steps + group * GROUP_STEPS * n + t;
    for (int s = 0; s < GROUP_STEPS; s++) steps[s * n] = ordered[s];
    double constant = 0.0;
    for (int part = 0; part < parts; part++) {
        __mmask16 lanes = (__mmask16)(((1u << tokens->group_steps) - 1) << (part * tokens->group_steps));
        int32_t excess = offset * _mm512_mask_reduce_add_epi32(lanes, sums);
        int64_t place = first * tokens->num_groups + (group * parts + part) * n + t;
        tokens->start[place] = -excess;
        tokens->scale[place] = scale;
        constant -= (double)excess * scale;
    }
    return constant;
}

/* Group by group rather than token by token, so that the lines of a step are written while they are in the cache. */
static void prepare_tile(const Tokens *tokens, int64_t first, const float *x, const Weight *weight) {
    int64_t n = smaller(tokens->tile, tokens->num_tokens - first);
    double constant[TILE_TOKENS] = {0.0};
    for (int64_t group = 0; group < tokens->num_steps / GROUP_STEPS; group++) {
        int64_t column = group * GROUP, count = smaller(GROUP, weight->columns - column);
        for (int64_t t = 0; t < n; t++)
            constant[t] += prepare_group(tokens, first, n, t, group, x + (first + t) * weight->columns + column, count,
                                         weight->bits);
    }
    for (int64_t t = 0; t < n; t++) tokens->constant[first + t] = (float)constant[t];
}

/* 16 vectors of 16 numbers, columns for rows. */
INLINE void transpose(__m512i v[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            v[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
            v[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
        }
    for (int j = 0; j < 4; j++) {
        t[j] = _mm512_shuffle_i32x4(v[j], v[4 + j], 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(v[j], v[4 + j], 0xdd);
        t[8 + j] = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0x88);
        t[12 + j] = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0xdd);
    }
    for (int j = 0; j < 4; j++) {
        v[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88);
        v[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd);
        v[4 + j] = _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0x88);
        v[12 + j] = _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0xdd);
    }
}

/* 16 rows of a block, unpacked: panel[step * TILE_ROWS + row]. Rows past the last are copies of it. */
static void unpack_rows(int32_t *panel, const Weight *weight, int64_t first_row, int64_t first_line, int64_t lines) {
    const __m512i mask = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8), top = _mm512_set1_epi8((char)128);
    int64_t bytes = row_bytes(weight);
    for (int64_t line = first_line; line < first_line + lines; line++) {
        __m512i v[16];
        int64_t left = bytes - line * LINE;
        __mmask64 present = left >= LINE ? ~0ull : (1ull << left) - 1;
        for (int row = 0; row < 16; row++) {
            const uint8_t *start = weight->packed + smaller(first_row + row, weight->rows - 1) * bytes + line * LINE;
            _mm_prefetch((const char *)start + 8 * LINE, _MM_HINT_T0);
            v[row] = _mm512_maskz_loadu_epi8(present, start);
        }
        transpose(v);
        for (int lane = 0; lane < 16; lane++) {
            if (weight->bits == 8) {
                _mm512_storeu_si512(panel, _mm512_xor_si512(v[lane], top));
            } else {
                __m512i high = _mm512_and_si512(_mm512_srli_epi16(v[lane], 4), mask);
                _mm512_storeu_si512(panel, _mm512_xor_si512(high, eight));
                panel += TILE_ROWS;
                _mm512_storeu_si512(panel, _mm512_xor_si512(_mm512_and_si512(v[lane], mask), eight));
            }
            panel += TILE_ROWS;
        }
    }
}

/* Group scales of a tile of rows: scales[group * TILE_ROWS + row], groups as those of the tokens. */
static void unpack_scales(float *scales, const Weight *weight, int64_t first_row, int64_t first_column, int64_t groups,
                          int64_t group_columns) {
    int64_t per_row = weight->columns / weight->group_size;
    for (int row = 0; row < TILE_ROWS; row++) {
        int64_t start = smaller(first_row + row, weight->rows - 1) * per_row;
        for (int64_t group = 0; group < groups; group++) {
            int64_t index = smaller((first_column + group * group_columns) / weight->group_size, per_row - 1);
            avx512_kernels.read_scales(scales + group * TILE_ROWS + row, weight->scale, start + index, 1,
                                       weight->scale_is_half);
        }
    }
}

/* sum += four products of bytes per lane. The instruction is written out, because gcc 12 copies and spills the sums of
 * the intrinsic, which halves the speed. */
INLINE void add_products(__m512i *sum, __m512i weights, __m512i activations) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(weights), "v"(activations));
}

/* sums[n tokens] = a tile of rows times a tile of n tokens over some groups; start and scales may be NULL. Floats in
 * memory instead of registers would allow 12 tokens, and were a fifth slower. */
INLINE void multiply_tile(__m512 sums[TILE_TOKENS][2], const int32_t *panel, const float *scales, const int32_t *steps,
                          const int32_t *start, const float *token_scale, int64_t groups, int group_steps, int n) {
#pragma GCC unroll 6
    for (int t = 0; t < n; t++) sums[t][0] = sums[t][1] = _mm512_setzero_ps();
    for (int64_t group = 0; group < groups; group++) {
        __m512i products[TILE_TOKENS][2];
#pragma GCC unroll 6
        for (int t = 0; t < n; t++)
            products[t][0] = products[t][1] = start ? _mm512_set1_epi32(start[group * n + t]) : _mm512_setzero_si512();
        for (int s = 0; s < group_steps; s++) {
            _mm_prefetch((const char *)(panel + AHEAD_STEPS * TILE_ROWS), _MM_HINT_T0);
            _mm_prefetch((const char *)(panel + AHEAD_STEPS * TILE_ROWS + 16), _MM_HINT_T0);
            __m512i first = _mm512_loadu_si512(panel), second = _mm512_loadu_si512(panel + 16);
#pragma GCC unroll 6
            for (int t = 0; t < n; t++) {
                __m512i activation = _mm512_set1_epi32(steps[t]);
                add_products(&products[t][0], first, activation);
                add_products(&products[t][1], second, activation);
            }
            panel += TILE_ROWS;
            steps += n;
        }
        if (scales) {
            __m512 low = _mm512_loadu_ps(scales + group * TILE_ROWS);
            __m512 high = _mm512_loadu_ps(scales + group * TILE_ROWS + 16);
#pragma GCC unroll 6
            for (int t = 0; t < n; t++) {
                __m512 scale = _mm512_set1_ps(token_scale[group * n + t]);
                sums[t][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[t][0]), _mm512_mul_ps(scale, low), sums[t][0]);
                sums[t][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[t][1]), _mm512_mul_ps(scale, high), sums[t][1]);
            }
        } else {
#pragma GCC unroll 6
            for (int t = 0; t < n; t++) {
                __m512 scale = _mm512_set1_ps(token_scale[group * n + t]);
                sums[t][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[t][0]), scale, sums[t][0]);
                sums[t][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[t][1]), scale, sums[t][1]);
            }
        }
    }
}

typedef struct {
    const int32_t *panel;
    const float *scales; /* of groups, or NULL */
    int64_t first_row, first_step, steps;
} Block;

INLINE void add_tile(float *result, const Weight *weight, const Block *block, const Tokens *tokens, int64_t first,
                     int n) {
    __m512 sums[TILE_TOKENS][2];
    /* Results of neighbouring tokens lie a whole row apart; asked for here, they are there when the sums are. */
    for (int t = 0; t < n; t++)
        for (int half = 0; half < 2; half++)
            __builtin_prefetch(result + (first + t) * weight->rows + block->first_row + 16 * half, 1);
    int64_t first_group = block->first_step / tokens->group_steps;
    int64_t offset = first * tokens->num_groups + first_group * n;
    /* Offsets of 128 would drown small weights in float32, so they are taken off while sums are integers. */
    int uses_start = weight->bits == 8 || block->scales;
    const int32_t *steps = tokens->steps + first * tokens->num_steps + block->first_step * n;
    multiply_tile(sums, block->panel, block->scales, steps, uses_start ? tokens->start + offset : NULL,
                  tokens->scale + offset, block->steps / tokens->group_steps, tokens->group_steps, n);
    for (int half = 0; half < 2; half++) {
        int64_t row = block->first_row + 16 * half, left = weight->rows - row;
        if (left <= 0) break;
        __mmask16 present = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
        __m512 scale = _mm512_set1_ps(1.0f), bias = _mm512_setzero_ps();
        float scales[16];
        if (!block->scales) {
            avx512_kernels.read_scales(scales, weight->scale, row, smaller(16, left), weight->scale_is_half);
            scale = _mm512_maskz_loadu_ps(present, scales);
        }
        if (weight->bias) bias = _mm512_maskz_loadu_ps(present, weight->bias + row);
        for (int t = 0; t < n; t++) {
            float *place = result + (first + t) * weight->rows + row;
            __m512 before = block->first_step ? _mm512_maskz_loadu_ps(present, place) : bias;
            __m512 sum = sums[t][half];
            float constant = uses_start || block->first_step ? 0.0f : tokens->constant[first + t];
            sum = _mm512_add_ps(sum, _mm512_set1_ps(constant));
            _mm512_mask_storeu_ps(place, present, _mm512_fmadd_ps(sum, scale, before));
        }
    }
}

static void add_tile_of(float *result, const Weight *weight, const Block *block, const Tokens *tokens, int64_t first) {
    switch (smaller(tokens->tile, tokens->num_tokens - first)) {
#define CASE(n) \
    case n: add_tile(result, weight, block, tokens, first, n); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#undef CASE
    }
}

/* Memory of one thread: a panel, and the group scales of its tiles. */
static int64_t panel_bytes(void) { return PANEL_ROWS * BLOCK_STEPS * 4 + PANEL_ROWS * (BLOCK_STEPS / 8) * 4; }

static void multiply_panel(float *result, const Weight *weight, const Tokens *tokens, int64_t first_row,
                           uint8_t *memory) {
    int32_t *panel = (int32_t *)memory;
    float *scales = (float *)(panel + PANEL_ROWS * BLOCK_STEPS);
    int64_t line_steps = line_columns(weight->bits) / STEP_COLUMNS;
    int64_t tiles = (smaller(PANEL_ROWS, weight->rows - first_row) + TILE_ROWS - 1) / TILE_ROWS;
    for (int64_t step = 0; step < tokens->num_steps; step += BLOCK_STEPS) {
        Block block = {NULL, NULL, 0, step, smaller(BLOCK_STEPS, tokens->num_steps - step)};
        int64_t groups = block.steps / tokens->group_steps;
        for (int64_t tile = 0; tile < tiles; tile++) {
            int64_t row = first_row + tile * TILE_ROWS;
            for (int half = 0; half < 2; half++)
                unpack_rows(panel + tile * TILE_ROWS * block.steps + 16 * half, weight, row + 16 * half,
                            step / line_steps, block.steps / line_steps);
            if (weight->group_size)
                unpack_scales(scales + tile * TILE_ROWS * groups, weight, row, step * STEP_COLUMNS, groups,
                              tokens->group_steps * STEP_COLUMNS);
        }
        for (int64_t first = 0; first < tokens->num_tokens; first += tokens->tile)
            for (int64_t tile = 0; tile < tiles; tile++) {
                block.panel = panel + tile * TILE_ROWS * block.steps;
                block.scales = weight->group_size ? scales + tile * TILE_ROWS * groups : NULL;
                block.first_row = first_row + tile * TILE_ROWS;
                add_tile_of(result, weight, &block, tokens, first);
            }
    }
}

int matrix_int8_avx512(float *result, const float *x, int64_t num_tokens, const Weight *weight, int threads) {
    int64_t num_steps = row_lines(weight) * line_columns(weight->bits) / STEP_COLUMNS;
    int group_steps = weight->group_size == 32 ? GROUP_STEPS / 2 : GROUP_STEPS;
    int64_t num_groups = num_steps / group_steps;
    /* Tiles of nearly equal size: 8 tokens are 4 and 4 rather than 6 and 2. */
    int64_t num_tiles = (num_tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    uint8_t *memory = NULL;
    int64_t size = num_tokens * (num_steps * 4 + num_groups * 8 + 4), panel = panel_bytes();
    int64_t aligned = (size + LINE - 1) / LINE * LINE;
    if (posix_memalign((void **)&memory, LINE, (size_t)(aligned + threads * panel))) return 1;
    Tokens tokens = {(int32_t *)memory, NULL, NULL, NULL, num_steps, num_groups, num_tokens,
                     (num_tokens + num_tiles - 1) / num_tiles, group_steps};
    tokens.start = tokens.steps + num_tokens * num_steps;
    tokens.scale = (float *)(tokens.start + num_tokens * num_groups);
    tokens.constant = tokens.scale + num_tokens * num_groups;
#pragma omp parallel num_threads(threads)
    {
        uint8_t *own = memory + aligned;
#ifdef _OPENMP
        own += omp_get_thread_num() * panel;
#endif
#pragma omp for schedule(static)
        for (int64_t first = 0; first < num_tokens; first += tokens.tile)
            prepare_tile(&tokens, first, x, weight);
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < weight->rows; row += PANEL_ROWS) multiply_panel(result, weight, &tokens, row, own);
    }
    free(memory);
    return 0;
}

#include "target_end.h"
#endif
