/* What the kernels share: the line, prepared activations, and how a file is compiled for an instruction set.
 *
 * A line is 64 bytes of a packed row, seen as 16 lanes of 4 bytes. A lane holds LANE_COLUMNS neighbouring columns:
 *
 *     int4: byte b = column 2b in its high nibble, 2b + 1 in its low one      lane i = columns 8i .. 8i + 7
 *     int8: byte b = column b                                                lane i = columns 4i .. 4i + 3
 *
 * Every kernel sums per lane, multiplies the lane by its scale, and adds the lanes at the end of the row. Rows are read
 * where they lie: a row is one contiguous stream, so a copy in another order would be read no faster.
 */
#ifndef CHATGLM_INTERNAL_H
#define CHATGLM_INTERNAL_H

#include <stddef.h>
#include <string.h>

#include "kernels.h"

#define LINE 64
#define LANES 16
#define GROUP 64     /* columns of activations that share a scale */
#define MAX_TOKENS 4 /* rows of activations that a row of weights meets at once */
#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__)
#define HAS_X86 1
#else
#define HAS_X86 0
#endif

INLINE int64_t line_columns(int bits) { return 8 * LINE / bits; }
INLINE int64_t row_bytes(const Weight *weight) { return weight->columns * weight->bits / 8; }
INLINE int64_t row_lines(const Weight *weight) { return (row_bytes(weight) + LINE - 1) / LINE; }

/* Activations prepared for int8 products, per token:
 *     integers  [line][columns of a line]   int4: 64 even columns, then 64 odd ones; int8: 64 columns
 *     scale     [line][groups of a line]
 *     constant, start   for int4 alone: nibbles are multiplied as unsigned numbers w + 8, so a sum is too large by
 *               8 * (sum of the integers). `constant` takes that from a whole row with one scale; `start` [line][16]
 *               is what the sum of a lane begins with in rows with a scale per group.
 * The parts lie one after the other, because most rows read integers and scales alone, and these should stay in the
 * first-level cache. Columns past the end of the row are 0: whatever weights are paired with them add nothing. */
typedef struct {
    int64_t scale, constant, start, size; /* in bytes from the beginning */
} Int8Layout;

INLINE Int8Layout int8_layout(int64_t lines, int bits) {
    Int8Layout layout;
    layout.scale = lines * line_columns(bits);
    layout.constant = (layout.scale + lines * (line_columns(bits) / GROUP) * 4 + LINE - 1) / LINE * LINE;
    layout.start = layout.constant + LINE;
    layout.size = layout.start + lines * LANES * 4;
    return layout;
}

/* Activations prepared for float products, per token and line: float[columns of a lane][16 lanes], in the order in
 * which shifting a lane brings its columns down: 1, 0, 3, 2, ... for nibbles and 0, 1, 2, 3 for bytes. */
INLINE int64_t float_line_bytes(int bits) { return line_columns(bits) * 4; }

/* One row of weights as the row kernels take it. */
typedef struct {
    const uint8_t *packed;
    int64_t bytes;
    const float *scales; /* NULL: one scale, applied by the caller; else one per group, 4 readable past the end */
    int scale_shift;     /* a quarter line q of line l has the scale (4 l + q) >> scale_shift */
} Row;

/* The kernels of one instruction set. sums[n] = the row times n prepared tokens that lie `stride` bytes apart. */
typedef struct {
    void (*int8_row)(float *sums, const Row *row, int bits, const uint8_t *x, int64_t stride, int n);
    void (*float_row)(float *sums, const Row *row, int bits, const uint8_t *x, int64_t stride, int n);
    void (*prepare_int8)(uint8_t *prepared, const float *x, int64_t columns, int bits);
    void (*prepare_float)(uint8_t *prepared, const float *x, int64_t columns, int bits);
    void (*dequantize_row)(float *result, const Row *row, int bits, int64_t columns);
    void (*gelu)(float *x, int64_t count);
    void (*rotate)(float *x, const float *cosine, const float *sine, int64_t width, int rotary_dims);
    void (*read_scales)(float *result, const void *scale, int64_t first, int64_t count, int is_half);
    /* Many tokens at once, or NULL: rows first..last of `weight` for all of `num_tokens`. */
    int (*matrix_int8)(float *result, const float *x, int64_t num_tokens, const Weight *weight, int threads);
} Kernels;

const Kernels *kernels_in_use(void);
extern const Kernels scalar_kernels;
#if HAS_X86
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
int matrix_int8_avx512(float *result, const float *x, int64_t num_tokens, const Weight *weight, int threads);
#endif

float half_to_float(uint16_t half);

#endif
