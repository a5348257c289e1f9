// x86-64 with the dot product instructions of AVX-512 (VNNI), on vectors of 32 bytes: Ice Lake, Zen 4 and later.
#include "kernel_x86.h"

#if defined(__x86_64__)

#define EDGEKIT_TARGET __attribute__((target("avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512vnni")))

#include "x86_codes.h"

namespace edgekit {
namespace {

EDGEKIT_INLINE __m256i added(__m256i sums, __m256i codes, const int8_t* x) {
  int32_t four = 0;
  std::memcpy(&four, x, sizeof four);
  return _mm256_dpbusd_epi32(sums, codes, _mm256_set1_epi32(four));
}

// Sums of a chunk for 8 rows. Two chains: a sum is handed on to the next dot product after four cycles.
EDGEKIT_INLINE __m256 dots(const Codes& codes, const int8_t* x, int32_t offset) {
  __m256i even = _mm256_set1_epi32(offset);
  __m256i odd = _mm256_setzero_si256();
  for (size_t group = 0; group < kGroups; group += 2) {
    even = added(even, codes.group[group], x + 4 * group);
    odd = added(odd, codes.group[group + 1], x + 4 * group + 4);
  }
  return _mm256_cvtepi32_ps(_mm256_add_epi32(even, odd));
}

int32_t offset_of(int32_t sum) { return -kZeroPoint * sum; }

}  // namespace
}  // namespace edgekit

#include "x86_loops.h"

#include "x86_columns.h"

namespace edgekit {
namespace {

// What the operating system does not save is not reported.
bool supported() {
  return kAvx2.supported() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni");
}

}  // namespace

const Kernel kAvx512Vnni = {"avx512-vnni", supported, quantize, multiply, multiply_columns};

}  // namespace edgekit

#endif
