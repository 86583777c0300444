/* Parts written once, in plain C and the compiler's vector types, and compiled for each instruction set by including
 * this file there: preparing activations, float products, dequantizing, reading scales. */
#ifndef CHATGLM_PORTABLE_H
#define CHATGLM_PORTABLE_H

#include <math.h>

#include "internal.h"

/* Vectors are only passed between functions that are inlined: how they would be passed does not matter. */
#pragma GCC diagnostic ignored "-Wpsabi"

typedef float FloatLanes __attribute__((vector_size(LINE), aligned(4)));
typedef int32_t IntLanes __attribute__((vector_size(LINE), aligned(4)));

/* Nearest integer, ties to even, of |x| < 2^22; written so that compilers vectorize it. */
INLINE float round_even(float x) { return (x + 12582912.0f) - 12582912.0f; }

/* The scale of up to 64 activations, and their integers -127..127. NaN and infinity make the scale
 * NaN, so that they reach the result. */
INLINE float quantize_group(int8_t *integers, const float *x, int64_t count) {
    float largest = 0.0f;
    int finite = 1;
    for (int64_t i = 0; i < count; i++) {
        float size = fabsf(x[i]);
        largest = size > largest ? size : largest;
        finite &= size <= 3.402823466e38f;
    }
    float scale = largest / 127.0f;
    memset(integers, 0, GROUP);
    if (!finite) return NAN;
    if (scale == 0.0f) return 0.0f;
    for (int64_t i = 0; i < count; i++) {
        /* A denormal scale has lost bits; the quotient may then pass 127. */
        float quotient = round_even(x[i] / scale);
        quotient = quotient > 127.0f ? 127.0f : quotient < -127.0f ? -127.0f : quotient;
        integers[i] = (int8_t)quotient;
    }
    return scale;
}

typedef float (*QuantizeGroup)(int8_t *integers, const float *x, int64_t count);

INLINE void prepare_int8_with(QuantizeGroup quantize, uint8_t *prepared, const float *x, int64_t columns, int bits) {
    int64_t width = line_columns(bits), lines = (columns + width - 1) / width;
    Int8Layout layout = int8_layout(lines, bits);
    int lanes = (int)(LANES * GROUP / width), lane_columns = (int)(width / LANES);
    float *scale = (float *)(prepared + layout.scale);
    int32_t *start = (int32_t *)(prepared + layout.start);
    double constant = 0.0;
    for (int64_t group = 0; group < lines * width / GROUP; group++) {
        int8_t natural[GROUP] = {0}, *integers = (int8_t *)prepared + group * GROUP;
        int64_t left = columns - group * GROUP;
        scale[group] = left > 0 ? quantize(natural, x + group * GROUP, left < GROUP ? left : GROUP) : 0.0f;
        for (int lane = 0; lane < lanes; lane++) {
            int32_t sum = 0;
            for (int k = 0; k < lane_columns; k++) sum += natural[lane * lane_columns + k];
            start[group * lanes + lane] = -8 * sum;
            constant -= 8.0 * sum * scale[group];
        }
        if (bits == 8) {
            memcpy(integers, natural, GROUP);
        } else {
            int8_t *even = (int8_t *)prepared + group / 2 * width + group % 2 * (GROUP / 2);
            for (int i = 0; i < GROUP / 2; i++) {
                even[i] = natural[2 * i];
                even[LINE + i] = natural[2 * i + 1];
            }
        }
    }
    *(float *)(prepared + layout.constant) = (float)constant;
}

INLINE void prepare_float_portable(uint8_t *prepared, const float *x, int64_t columns, int bits) {
    int64_t width = line_columns(bits), lane_columns = width / LANES;
    float *out = (float *)prepared;
    for (int64_t first = 0; first < columns; first += width, out += width)
        for (int64_t lane = 0; lane < LANES; lane++)
            for (int64_t k = 0; k < lane_columns; k++) {
                int64_t column = first + lane * lane_columns + (bits == 4 ? k ^ 1 : k);
                out[k * LANES + lane] = column < columns ? x[column] : 0.0f;
            }
}

/* Line l of a row; one that the row does not fill is completed with zeros, so nothing behind the row is touched. */
INLINE IntLanes load_full_line(const Row *row, int64_t line) {
    IntLanes lanes;
    memcpy(&lanes, row->packed + line * LINE, LINE);
    return lanes;
}

INLINE IntLanes load_line(const Row *row, int64_t line) {
    int64_t left = row->bytes - line * LINE;
    IntLanes lanes = {0};
    if (left >= LINE) return load_full_line(row, line);
    memcpy(&lanes, row->packed + line * LINE, (size_t)left);
    return lanes;
}

/* The scale of every lane of a line. */
INLINE FloatLanes lane_scales(const Row *row, int64_t line) {
    FloatLanes lanes;
    for (int i = 0; i < LANES; i++) lanes[i] = row->scales[(4 * line + i / 4) >> row->scale_shift];
    return lanes;
}

/* Integers of position k of every lane, as floats. */
INLINE FloatLanes lane_values(IntLanes lanes, int k, int bits) {
    return __builtin_convertvector((lanes << (32 - bits - bits * k)) >> (32 - bits), FloatLanes);
}

INLINE float add_lanes(FloatLanes lanes) {
    float sum = 0.0f;
    for (int i = 0; i < LANES; i++) sum += lanes[i];
    return sum;
}

INLINE void add_float_line(FloatLanes *total, const Row *row, int64_t line, IntLanes lanes, int bits, const uint8_t *x,
                           int64_t stride, int n) {
    FloatLanes part[MAX_TOKENS];
    for (int t = 0; t < n; t++) part[t] = row->scales ? (FloatLanes){0} : total[t];
    for (int k = 0; k < 32 / bits; k++) {
        FloatLanes weights = lane_values(lanes, k, bits);
        for (int t = 0; t < n; t++) {
            const uint8_t *values = x + t * stride + line * float_line_bytes(bits) + k * LINE;
            part[t] += weights * *(const FloatLanes *)values;
        }
    }
    for (int t = 0; t < n; t++) total[t] = row->scales ? total[t] + part[t] * lane_scales(row, line) : part[t];
}

INLINE void float_row_of(float *sums, const Row *row, int bits, const uint8_t *x, int64_t stride, int n) {
    FloatLanes total[MAX_TOKENS] = {0};
    int64_t full = row->bytes / LINE;
    for (int64_t line = 0; line < full; line++)
        add_float_line(total, row, line, load_full_line(row, line), bits, x, stride, n);
    if (row->bytes % LINE) add_float_line(total, row, full, load_line(row, full), bits, x, stride, n);
    for (int t = 0; t < n; t++) sums[t] = add_lanes(total[t]);
}

/* Constant widths and counts let the compiler unroll: one copy of `kernel` for each. */
#define FOR_EACH_WIDTH_AND_COUNT(kernel, sums, row, bits, x, stride, n) \
    switch ((bits) * 8 + (n)) { \
    case 33: kernel(sums, row, 4, x, stride, 1); break; \
    case 34: kernel(sums, row, 4, x, stride, 2); break; \
    case 35: kernel(sums, row, 4, x, stride, 3); break; \
    case 36: kernel(sums, row, 4, x, stride, 4); break; \
    case 65: kernel(sums, row, 8, x, stride, 1); break; \
    case 66: kernel(sums, row, 8, x, stride, 2); break; \
    case 67: kernel(sums, row, 8, x, stride, 3); break; \
    default: kernel(sums, row, 8, x, stride, 4); break; \
    }

/* e^x of -87 <= x <= 88, to two units in the last place: 2^n e^r, |r| <= ln(2) / 2, and the Taylor series of e^r. */
INLINE float exponential(float x) {
    float n = round_even(x * 1.44269504f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float e = 1.0f / 5040;
    e = e * r + 1.0f / 720;
    e = e * r + 1.0f / 120;
    e = e * r + 1.0f / 24;
    e = e * r + 1.0f / 6;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    int32_t power = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &power, 4);
    return e * scale;
}

/* x[i] = gelu(x[i]) in the tanh form, x / (1 + e^(-2u)) with u = sqrt(2 / pi) (x + 0.044715 x^3). */
INLINE void gelu_portable(float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        float y = -1.59576912f * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
        y = y > 87.0f ? 87.0f : y;
        y = y > -87.0f ? y : -87.0f; /* NaN too: it has no integer part, and x brings it back */
        x[i] = x[i] / (1.0f + exponential(y));
    }
}

/* One query or key rotated in place: in each part of width R, element i is paired with i + R/2 (nn/rotary.py). */
INLINE void rotate_portable(float *x, const float *cosine, const float *sine, int64_t width, int rotary_dims) {
    int64_t half = width / rotary_dims / 2;
    for (int part = 0; part < rotary_dims; part++, x += 2 * half, cosine += 2 * half, sine += 2 * half)
        for (int64_t i = 0; i < half; i++) {
            float first = x[i], second = x[half + i];
            x[i] = first * cosine[i] - second * sine[i];
            x[half + i] = second * cosine[half + i] + first * sine[half + i];
        }
}

INLINE void dequantize_row_portable(float *result, const Row *row, int bits, int64_t columns) {
    int64_t width = line_columns(bits), lane_columns = width / LANES;
    int64_t lines = (row->bytes + LINE - 1) / LINE;
    for (int64_t line = 0; line < lines; line++) {
        IntLanes lanes = load_line(row, line);
        FloatLanes scale = lane_scales(row, line);
        for (int k = 0; k < lane_columns; k++) {
            FloatLanes values = lane_values(lanes, k, bits) * scale;
            for (int lane = 0; lane < LANES; lane++) {
                int64_t column = line * width + lane * lane_columns + (bits == 4 ? k ^ 1 : k);
                if (column < columns) result[column] = values[lane];
            }
        }
    }
}

#endif
