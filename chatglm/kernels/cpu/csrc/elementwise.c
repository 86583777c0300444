/* What a prompt needs between its products, in one pass over memory each. */
#include "internal.h"

#define GELU_CHUNK 8192   /* numbers; more are worth a second thread */
#define ROTATE_TOKENS 8   /* likewise */

void chatglm_gelu(float *x, int64_t count, int32_t threads) {
    const Kernels *kernels = kernels_in_use();
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(static) if (count > GELU_CHUNK)
    for (int64_t first = 0; first < count; first += GELU_CHUNK) {
        int64_t left = count - first;
        kernels->gelu(x + first, left < GELU_CHUNK ? left : GELU_CHUNK);
    }
}

void chatglm_rotate(float *qkv, const float *cosine, const float *sine, int64_t tokens, int64_t heads, int64_t width,
                    int32_t rotary_dims, int32_t threads) {
    const Kernels *kernels = kernels_in_use();
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(static) if (tokens > ROTATE_TOKENS)
    for (int64_t token = 0; token < tokens; token++)
        for (int64_t head = 0; head < heads; head++)
            for (int64_t part = 0; part < 2; part++) /* query, key; the value stays */
                kernels->rotate(qkv + ((token * heads + head) * 3 + part) * width, cosine + token * width,
                                sine + token * width, width, rotary_dims);
}
