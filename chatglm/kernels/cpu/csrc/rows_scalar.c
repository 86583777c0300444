/* Row kernels for any processor. */
#include "internal.h"
#include "portable.h"

float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = (half >> 10) & 31, fraction = half & 0x3ff;
    uint32_t bits;
    float value;
    if (exponent == 0) { /* zero or denormal: fraction * 2^-24 is exact */
        value = (float)fraction * 0x1p-24f;
        return sign ? -value : value;
    }
    bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    memcpy(&value, &bits, 4);
    return value;
}

static void read_scales(float *result, const void *scale, int64_t first, int64_t count, int is_half) {
    for (int64_t i = 0; i < count; i++)
        result[i] = is_half ? half_to_float(((const uint16_t *)scale)[first + i]) : ((const float *)scale)[first + i];
}

/* Sums of the lanes of a line. Products fit in 16 bits, and loops of this form are vectorized by compilers. */
static void lane_products(int32_t *sums, const uint8_t *bytes, const int8_t *integers, int bits) {
    int16_t products[LINE];
    if (bits == 8)
        for (int b = 0; b < LINE; b++) products[b] = (int16_t)((int8_t)bytes[b] * integers[b]);
    else /* high nibble, even column; low nibble, odd column; w + 8 as start expects it */
        for (int b = 0; b < LINE; b++)
            products[b] = (int16_t)(((bytes[b] >> 4) ^ 8) * integers[b] + ((bytes[b] & 15) ^ 8) * integers[LINE + b]);
    for (int lane = 0; lane < LANES; lane++) {
        const int16_t *four = products + 4 * lane;
        sums[lane] += four[0] + four[1] + four[2] + four[3];
    }
}

static void int8_row(float *sums, const Row *row, int bits, const uint8_t *x, int64_t stride, int n) {
    FloatLanes total[MAX_TOKENS] = {0};
    int64_t width = line_columns(bits), lines = (row->bytes + LINE - 1) / LINE, groups = width / GROUP;
    const Int8Layout layout = int8_layout(lines, bits);
    for (int64_t line = 0; line < lines; line++) {
        IntLanes bytes = load_line(row, line);
        for (int t = 0; t < n; t++) {
            const uint8_t *token = x + t * stride;
            const float *group_scale = (const float *)(token + layout.scale) + line * groups;
            FloatLanes scale;
            for (int lane = 0; lane < LANES; lane++) scale[lane] = group_scale[lane * groups / LANES];
            IntLanes products = {0};
            if (bits == 4 && row->scales) products = ((const IntLanes *)(token + layout.start))[line];
            lane_products((int32_t *)&products, (const uint8_t *)&bytes, (const int8_t *)token + line * width, bits);
            if (row->scales) scale *= lane_scales(row, line);
            total[t] += __builtin_convertvector(products, FloatLanes) * scale;
        }
    }
    for (int t = 0; t < n; t++) {
        sums[t] = add_lanes(total[t]);
        if (bits == 4 && !row->scales) sums[t] += *(const float *)(x + t * stride + layout.constant);
    }
}

static void float_row(float *sums, const Row *row, int bits, const uint8_t *x, int64_t stride, int n) {
    FOR_EACH_WIDTH_AND_COUNT(float_row_of, sums, row, bits, x, stride, n)
}

static void prepare_int8(uint8_t *prepared, const float *x, int64_t columns, int bits) {
    prepare_int8_with(quantize_group, prepared, x, columns, bits);
}

static void prepare_float(uint8_t *prepared, const float *x, int64_t columns, int bits) {
    prepare_float_portable(prepared, x, columns, bits);
}

static void dequantize_row(float *result, const Row *row, int bits, int64_t columns) {
    dequantize_row_portable(result, row, bits, columns);
}

static void gelu(float *x, int64_t count) { gelu_portable(x, count); }

static void rotate(float *x, const float *cosine, const float *sine, int64_t width, int rotary_dims) {
    rotate_portable(x, cosine, sine, width, rotary_dims);
}

const Kernels scalar_kernels = {
    .int8_row = int8_row,
    .float_row = float_row,
    .prepare_int8 = prepare_int8,
    .prepare_float = prepare_float,
    .dequantize_row = dequantize_row,
    .gelu = gelu,
    .rotate = rotate,
    .read_scales = read_scales,
    .matrix_int8 = NULL,
};
