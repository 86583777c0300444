/* The C interface of the native kernels: plain pointers and sizes, checked by the caller (library.py).
 *
 * Knows: packed weights exactly as published checkpoints store them (quantization/packing.py); nothing is repacked.
 * Does not know torch, models or files.
 * Shapes: M rows of activations, O rows of weights, I columns; all arrays are contiguous, row after row.
 * Functions that take memory answer 0, or 1 when there is none; the others cannot fail.
 */
#ifndef CHATGLM_KERNELS_H
#define CHATGLM_KERNELS_H

#include <stdint.h>

#define API __attribute__((visibility("default")))

/* One packed weight. */
typedef struct {
    const uint8_t *packed; /* [O, I] or [O, I/2] */
    const void *scale;     /* [O], or [O, I / group_size]; float32, or IEEE half with scale_is_half */
    const float *bias;     /* [O], or NULL */
    int64_t rows;          /* O */
    int64_t columns;       /* I; even with 4 bits */
    int32_t bits;          /* 4 or 8 */
    int32_t group_size;    /* columns that share a scale: 0 for the whole row, or 32, 64, 128 dividing I */
    int32_t scale_is_half;
} Weight;

enum { ISA_SCALAR = 0, ISA_AVX2 = 1, ISA_AVX512 = 2 };

/* The best instruction set of this processor, and the one in use: the smaller of it and what was last asked for. */
API int32_t chatglm_best_isa(void);
API int32_t chatglm_isa(void);
API void chatglm_use_isa(int32_t isa);

/* result[M, O] = x[M, I] W^T + bias, x rounded to int8 in groups of 64 columns, integers multiplied exactly. */
API int32_t chatglm_linear_int8(float *result, const float *x, int64_t num_rows, const Weight *weight,
                                int32_t threads);

/* The same with x as it is. */
API int32_t chatglm_linear_float(float *result, const float *x, int64_t num_rows, const Weight *weight,
                                 int32_t threads);

/* result[O, I]: the weight as float32. */
API int32_t chatglm_dequantize(float *result, const Weight *weight, int32_t threads);

/* x[i] = gelu(x[i]), tanh form. */
API void chatglm_gelu(float *x, int64_t count, int32_t threads);

/* Turn queries and keys of `tokens` positions where they lie; qkv[tokens, H, 3 D], cosine and sine [tokens, D]. */
API void chatglm_rotate(float *qkv, const float *cosine, const float *sine, int64_t tokens, int64_t heads,
                        int64_t width, int32_t rotary_dims, int32_t threads);

/* One new position of one request: turn query and key, append key and value to the cache, attend to all of it.
 *
 * result[H, D]; qkv[H, 3 D], per head query | key | value; cosine and sine [D];
 * keys and values [H, capacity, D] in IEEE half, of which `length` positions are filled before the call.
 * rotary_dims: the head is rotated in so many parts (nn/rotary.py).
 */
API int32_t chatglm_attend_one(float *result, const float *qkv, const float *cosine, const float *sine, uint16_t *keys,
                               uint16_t *values, int64_t heads, int64_t width, int64_t capacity, int64_t length,
                               int32_t rotary_dims, int32_t threads);

/* Queries of `tokens` positions attend to all of `length` positions of a cache.
 *
 * result[tokens, H, D]; qkv[tokens, H, 3 D] with queries rotated; keys and values [H, capacity, D] in IEEE half.
 * D is at most 512.
 */
API int32_t chatglm_attend_prompt(float *result, const float *qkv, const uint16_t *keys, const uint16_t *values,
                                  int64_t tokens, int64_t heads, int64_t width, int64_t capacity, int64_t length,
                                  int32_t threads);

/* 0 if AddressSanitizer or UBSan were not compiled in; only the tests ask. */
API int32_t chatglm_is_sanitized(void);

#endif
