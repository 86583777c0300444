/* Which instruction set this processor has, and which one is used. */
#include "internal.h"

static int32_t allowed = ISA_AVX512;

int32_t chatglm_best_isa(void) {
#if HAS_X86
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512vnni");
    return avx2 && avx512 ? ISA_AVX512 : avx2 ? ISA_AVX2 : ISA_SCALAR;
#else
    return ISA_SCALAR;
#endif
}

int32_t chatglm_isa(void) {
    static int32_t best = -1;
    if (best < 0) best = chatglm_best_isa();
    return best < allowed ? best : allowed;
}

void chatglm_use_isa(int32_t isa) { allowed = isa; }

int32_t chatglm_is_sanitized(void) {
#if defined(__SANITIZE_ADDRESS__)
    return 1;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
    return 1;
#endif
#endif
    return 0;
}

const Kernels *kernels_in_use(void) {
#if HAS_X86
    int32_t isa = chatglm_isa();
    if (isa == ISA_AVX512) return &avx512_kernels;
    if (isa == ISA_AVX2) return &avx2_kernels;
#endif
    return &scalar_kernels;
}
