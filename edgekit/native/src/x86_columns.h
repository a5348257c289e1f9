// Adding up columns on x86-64, for columns_loops.h; included as x86_loops.h is.

#include "columns.h"

namespace edgekit {
namespace {

// Interleaving bytes works on each half of a register: rows 0-7 and 16-23 of a group come before 8-15 and 24-31.
constexpr size_t kSlots[] = {0, 2, 1, 3};

EDGEKIT_INLINE __m256i pair_of(const int8_t* codes) {
  int16_t both = 0;
  std::memcpy(&both, codes, sizeof both);
  return _mm256_set1_epi16(both);
}

// Adds one group of four columns to sums of 32 rows. A sum has at most 32 products of at most 7 * 127: 28,448 in all.
template <bool kOneRow>
EDGEKIT_INLINE void add_group(const __m256i* columns, const int8_t (*x)[kBatch], size_t rows, int16_t* sums) {
  const __m256i low[] = {_mm256_unpacklo_epi8(columns[0], columns[1]), _mm256_unpacklo_epi8(columns[2], columns[3])};
  const __m256i high[] = {_mm256_unpackhi_epi8(columns[0], columns[1]), _mm256_unpackhi_epi8(columns[2], columns[3])};
  for (size_t m = 0; m < (kOneRow ? 1 : rows); ++m) {
    const __m256i a = pair_of(x[m]);
    const __m256i b = pair_of(x[m] + 2);
    auto* to = reinterpret_cast<__m256i*>(sums + m * kUnitRows);
    const __m256i first = _mm256_add_epi16(_mm256_maddubs_epi16(low[0], a), _mm256_maddubs_epi16(low[1], b));
    const __m256i second = _mm256_add_epi16(_mm256_maddubs_epi16(high[0], a), _mm256_maddubs_epi16(high[1], b));
    _mm256_store_si256(to, _mm256_add_epi16(_mm256_load_si256(to), first));
    _mm256_store_si256(to + 1, _mm256_add_epi16(_mm256_load_si256(to + 1), second));
  }
}

template <bool kOneRow>
EDGEKIT_INLINE void add_columns(const uint8_t* const* columns, const int8_t (*x)[kBatch], size_t rows, int16_t* sums) {
  const __m256i seven = _mm256_set1_epi8(7);
  const __m256i four = _mm256_set1_epi8(4);
  const __m256i three = _mm256_set1_epi8(3);
  for (size_t index = 0; index < 3; ++index) {  // whole fields of 3 bits
    __m256i lower[kBatch];
    __m256i upper[kBatch];
    for (size_t i = 0; i < kBatch; ++i) {
      const __m256i bytes = plane(columns[i], index);
      lower[i] = _mm256_and_si256(bytes, seven);
      upper[i] = _mm256_and_si256(_mm256_srli_epi16(bytes, 5), seven);
    }
    add_group<kOneRow>(lower, x, rows, sums + 2 * index * kPlaneBytes);
    add_group<kOneRow>(upper, x, rows, sums + (2 * index + 1) * kPlaneBytes);
  }
  __m256i sixth[kBatch];
  __m256i seventh[kBatch];
  for (size_t i = 0; i < kBatch; ++i) {
    const __m256i bits = plane(columns[i], 2);
    sixth[i] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(plane(columns[i], 0), 3), three),
                               _mm256_and_si256(_mm256_srli_epi16(bits, 1), four));
    seventh[i] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(plane(columns[i], 1), 3), three),
                                 _mm256_and_si256(_mm256_srli_epi16(bits, 2), four));
  }
  add_group<kOneRow>(sixth, x, rows, sums + 6 * kPlaneBytes);
  add_group<kOneRow>(seventh, x, rows, sums + 7 * kPlaneBytes);
}

EDGEKIT_INLINE void add_scaled(const int16_t* sums, Step step, const uint16_t* scales, float* values) {
  const __m256i whole = _mm256_cvtepi16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(sums)));
  const __m256 dots = _mm256_cvtepi32_ps(_mm256_add_epi32(whole, _mm256_set1_epi32(step.offset)));
  const __m256 scale = _mm256_mul_ps(scales_of(scales), _mm256_set1_ps(step.scale));
  _mm256_store_ps(values, _mm256_fmadd_ps(dots, scale, _mm256_load_ps(values)));
}

}  // namespace
}  // namespace edgekit

#include "columns_loops.h"
