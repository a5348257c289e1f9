// x86-64 with AVX2, FMA and F16C.
#include "kernel_x86.h"

#if defined(__x86_64__)

#include <cpuid.h>

#define EDGEKIT_TARGET __attribute__((target("avx2,fma,f16c")))

#include "x86_codes.h"

namespace edgekit {
namespace {

EDGEKIT_INLINE __m256i product(__m256i codes, const int8_t* x) {
  int32_t four = 0;
  std::memcpy(&four, x, sizeof four);
  return _mm256_maddubs_epi16(codes, _mm256_set1_epi32(four));
}

// Sums of a chunk for 8 rows. A lane of 16 bits holds 16 products of at most 7 * 127 and half of the offset, which is
// at most 2 * 32 * 127: 22,352 in all.
EDGEKIT_INLINE __m256 dots(const Codes& codes, const int8_t* x, int32_t offset) {
  __m256i even = _mm256_set1_epi32(offset);
  __m256i odd = product(codes.group[1], x + 4);
  even = _mm256_add_epi16(even, product(codes.group[0], x));
  for (size_t group = 2; group < kGroups; group += 2) {
    even = _mm256_add_epi16(even, product(codes.group[group], x + 4 * group));
    odd = _mm256_add_epi16(odd, product(codes.group[group + 1], x + 4 * group + 4));
  }
  const __m256i pairs = _mm256_add_epi16(even, odd);
  return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// -kZeroPoint * sum is spread over the two lanes of 16 bits that a row has.
int32_t offset_of(int32_t sum) {
  const auto half = static_cast<uint16_t>(-kZeroPoint / 2 * sum);
  return static_cast<int32_t>(half * 0x10001U);
}

}  // namespace
}  // namespace edgekit

#include "x86_loops.h"

#include "x86_columns.h"

namespace edgekit {
namespace {

bool supported() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & (1U << 29)) != 0;
  return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

}  // namespace

const Kernel kAvx2 = {"avx2", supported, quantize, multiply, multiply_columns};

}  // namespace edgekit

#endif
