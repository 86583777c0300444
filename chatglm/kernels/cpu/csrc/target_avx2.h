/* Include at the top of a file: its functions are compiled for AVX2, FMA and F16C, whatever the rest is. */
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
