/* What this processor can do at most: bytes read per second, and products of bytes per second (VNNI). */
#include <immintrin.h>
#include <stdint.h>
#include <time.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2")))

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Four sums at once over 32-byte words; a part is a multiple of 128 bytes. */
__attribute__((target("avx2"))) static uint64_t read_part(const uint8_t *bytes, int64_t size) {
    __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int64_t i = 0; i + 128 <= size; i += 128)
        for (int k = 0; k < 4; k++)
            sums[k] = _mm256_xor_si256(sums[k], _mm256_loadu_si256((const __m256i *)(bytes + i + 32 * k)));
    __m256i all = _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
    return (uint64_t)_mm256_extract_epi64(all, 0) ^ (uint64_t)_mm256_extract_epi64(all, 2);
}

/* Seconds to read `size` bytes once, each thread one contiguous part. */
double read_seconds(const uint8_t *bytes, int64_t size, int threads) {
    uint64_t sum = 0;
    int64_t part = size / threads;
    double start = now();
#pragma omp parallel for num_threads(threads) reduction(^ : sum)
    for (int i = 0; i < threads; i++) sum ^= read_part(bytes + i * part, part);
    double seconds = now() - start;
    return sum == 42 ? seconds + 1e-12 : seconds; /* the sum must be used, or nothing is read */
}

/* Twelve sums that do not wait for one another, in registers named here: a compiler may put an array on the stack. */
#define ADD_PRODUCTS(sum) "vpdpbusd %%zmm31, %%zmm30, %%zmm" #sum "\n\t"
#define SUMS "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11"

TARGET static void multiply_bytes(int64_t rounds) {
    for (int64_t round = 0; round < rounds; round++)
        __asm__ volatile(ADD_PRODUCTS(0) ADD_PRODUCTS(1) ADD_PRODUCTS(2) ADD_PRODUCTS(3) ADD_PRODUCTS(4) ADD_PRODUCTS(5)
                             ADD_PRODUCTS(6) ADD_PRODUCTS(7) ADD_PRODUCTS(8) ADD_PRODUCTS(9) ADD_PRODUCTS(10)
                                 ADD_PRODUCTS(11)::
                                     : SUMS);
}

/* Multiplications and additions per second, all threads together, or 0 without VNNI. */
double int8_operations_per_second(int64_t rounds, int threads) {
    if (!__builtin_cpu_supports("avx512vnni")) return 0;
    double start = now();
#pragma omp parallel for num_threads(threads)
    for (int i = 0; i < threads; i++) multiply_bytes(rounds);
    double seconds = now() - start;
    return (double)rounds * 12 * 128 * threads / seconds;
}
