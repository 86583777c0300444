/* The products of a packed weight: splits rows among threads, prepares activations, applies row scale and bias. */
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "internal.h"

#define ROWS_AT_ONCE 64       /* int4 rows of 4096 columns: 128 KB, which stay in the second-level cache */
#define CHUNKS_PER_THREAD 8   /* so that a thread that lost its core for a moment is not waited for */
#define WORTH_A_THREAD 100000 /* bytes of weights below which waking another thread costs more than it saves */
#define MATRIX_FROM (MAX_TOKENS + 1) /* tokens from which unpacking weights into panels pays */

typedef void (*RowKernel)(float *sums, const Row *row, int bits, const uint8_t *x, int64_t stride, int n);

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static int log2_of(int64_t n) {
    int power = 0;
    while (n > 1) n >>= 1, power++;
    return power;
}

/* Scales of a row's groups in `buffer`, or its one scale there with scales NULL. */
static Row row_at(const Weight *weight, int64_t index, const Kernels *kernels, float *buffer) {
    Row row = {weight->packed + index * row_bytes(weight), row_bytes(weight), NULL, 0};
    int64_t groups = weight->group_size ? weight->columns / weight->group_size : 1;
    kernels->read_scales(buffer, weight->scale, index * groups, groups, weight->scale_is_half);
    memset(buffer + groups, 0, 4 * sizeof(float)); /* lanes past the end of the row: 0 times anything finite */
    if (weight->group_size) {
        row.scales = buffer;
        row.scale_shift = log2_of(4 * weight->group_size / line_columns(weight->bits));
    }
    return row;
}

/* Rows first..last times all tokens. Tokens in blocks outside, rows inside: a block's activations stay in the
 * first-level cache while the rows of a chunk come from the second. */
static void multiply_rows(float *result, const uint8_t *prepared, int64_t stride, int64_t num_tokens,
                          const Weight *weight, int64_t first, int64_t last, RowKernel kernel, const Kernels *kernels,
                          float *scales) {
    for (int64_t token = 0; token < num_tokens; token += MAX_TOKENS) {
        int n = (int)smaller(MAX_TOKENS, num_tokens - token);
        for (int64_t index = first; index < last; index++) {
            float sums[MAX_TOKENS];
            Row row = row_at(weight, index, kernels, scales);
            kernel(sums, &row, weight->bits, prepared + token * stride, stride, n);
            float scale = row.scales ? 1.0f : scales[0], bias = weight->bias ? weight->bias[index] : 0.0f;
            for (int t = 0; t < n; t++) result[(token + t) * weight->rows + index] = sums[t] * scale + bias;
        }
    }
}

/* Memory of one call: activations of every token, then a buffer for the scales of one row per thread. */
typedef struct {
    uint8_t *activations;
    uint8_t *scales;
    int64_t stride, scales_stride;
} Workspace;

static int make_workspace(Workspace *space, const Weight *weight, int64_t num_tokens, int64_t stride, int threads) {
    int64_t groups = weight->group_size ? weight->columns / weight->group_size : 1;
    space->stride = stride;
    space->scales_stride = (4 * (groups + LANES) + LINE - 1) / LINE * LINE;
    size_t size = (size_t)(num_tokens * space->stride + threads * space->scales_stride);
    if (posix_memalign((void **)&space->activations, LINE, size)) return 1;
    space->scales = space->activations + num_tokens * space->stride;
    return 0;
}

static float *scales_of_thread(const Workspace *space) {
#ifdef _OPENMP
    return (float *)(space->scales + omp_get_thread_num() * space->scales_stride);
#else
    return (float *)space->scales;
#endif
}

static int is_worth_threads(const Weight *weight, int64_t num_tokens) {
    return num_tokens * weight->rows * row_bytes(weight) > WORTH_A_THREAD;
}

static int32_t linear(float *result, const float *x, int64_t num_tokens, const Weight *weight, int32_t threads,
                      int as_int8) {
    const Kernels *kernels = kernels_in_use();
    if (as_int8 && kernels->matrix_int8 && num_tokens >= MATRIX_FROM)
        return kernels->matrix_int8(result, x, num_tokens, weight, threads);
    int bits = weight->bits;
    Workspace space;
    int64_t lines = row_lines(weight);
    int64_t stride = as_int8 ? int8_layout(lines, bits).size : lines * float_line_bytes(bits);
    if (make_workspace(&space, weight, num_tokens, stride, threads)) return 1;
    RowKernel kernel = as_int8 ? kernels->int8_row : kernels->float_row;
    void (*prepare)(uint8_t *, const float *, int64_t, int) =
        as_int8 ? kernels->prepare_int8 : kernels->prepare_float;
    int64_t chunk = weight->rows / (threads * CHUNKS_PER_THREAD) + 1;
    if (num_tokens > MAX_TOKENS) chunk = smaller(ROWS_AT_ONCE, chunk);
    int64_t chunks = (weight->rows + chunk - 1) / chunk;
#pragma omp parallel num_threads(threads) if (is_worth_threads(weight, num_tokens))
    {
#pragma omp for schedule(static)
        for (int64_t token = 0; token < num_tokens; token++)
            prepare(space.activations + token * space.stride, x + token * weight->columns, weight->columns, bits);
#pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < chunks; index++)
            multiply_rows(result, space.activations, space.stride, num_tokens, weight, index * chunk,
                          smaller(weight->rows, (index + 1) * chunk), kernel, kernels, scales_of_thread(&space));
    }
    free(space.activations);
    return 0;
}

int32_t chatglm_linear_int8(float *result, const float *x, int64_t num_rows, const Weight *weight, int32_t threads) {
    return linear(result, x, num_rows, weight, threads, 1);
}

int32_t chatglm_linear_float(float *result, const float *x, int64_t num_rows, const Weight *weight, int32_t threads) {
    return linear(result, x, num_rows, weight, threads, 0);
}

int32_t chatglm_dequantize(float *result, const Weight *weight, int32_t threads) {
    const Kernels *kernels = kernels_in_use();
    Workspace space;
    if (make_workspace(&space, weight, 0, 0, threads)) return 1;
#pragma omp parallel for num_threads(threads) if (is_worth_threads(weight, 1))
    for (int64_t index = 0; index < weight->rows; index++) {
        float *scales = scales_of_thread(&space);
        Row row = row_at(weight, index, kernels, scales);
        if (!row.scales) { /* one scale is one group that never ends */
            row.scales = scales;
            row.scale_shift = 62;
        }
        kernels->dequantize_row(result + index * weight->columns, &row, weight->bits, weight->columns);
    }
    free(space.activations);
    return 0;
}
