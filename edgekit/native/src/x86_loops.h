// What both x86-64 kernels have in common. Who includes this has defined EDGEKIT_TARGET, the instructions that functions
// may use, and, in the unnamed namespace of edgekit, dots() and offset_of(). It stands on functions instead of on the
// file because nothing else may be compiled with instructions that a processor lacks. Each lane of 32 bits is a row of
// the tile, so nothing is summed across lanes.

#include <cstring>

#include "kernel_portable.h"

namespace edgekit {
namespace {

EDGEKIT_INLINE __m256i plane(const uint8_t* chunk, size_t index) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(chunk + index * kPlaneBytes));
}

using Sums = __m256;
using Chunk = Codes;

EDGEKIT_INLINE Sums no_sums() { return _mm256_setzero_ps(); }

EDGEKIT_INLINE Chunk unpack(const uint8_t* chunk) {
  const __m256i seven = _mm256_set1_epi8(7);
  const __m256i four = _mm256_set1_epi8(4);
  const __m256i three = _mm256_set1_epi8(3);
  const __m256i a = plane(chunk, 0);
  const __m256i b = plane(chunk, 1);
  const __m256i c = plane(chunk, 2);
  // Shifts are of 16 bits, as there are none of 8: what comes over from the neighbour is masked away.
  return {{
      _mm256_and_si256(a, seven),
      _mm256_and_si256(_mm256_srli_epi16(a, 5), seven),
      _mm256_and_si256(b, seven),
      _mm256_and_si256(_mm256_srli_epi16(b, 5), seven),
      _mm256_and_si256(c, seven),
      _mm256_and_si256(_mm256_srli_epi16(c, 5), seven),
      _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(a, 3), three),
                      _mm256_and_si256(_mm256_srli_epi16(c, 1), four)),
      _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(b, 3), three),
                      _mm256_and_si256(_mm256_srli_epi16(c, 2), four)),
  }};
}

EDGEKIT_INLINE Sums scales_of(const uint16_t* scales) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
}

EDGEKIT_INLINE Sums added(Sums sums, const Chunk& codes, const int8_t* x, const Step* step, Sums scale) {
  const __m256 dot = dots(codes, x, step->offset);
  return _mm256_fmadd_ps(dot, _mm256_mul_ps(scale, _mm256_set1_ps(step->scale)), sums);
}

EDGEKIT_INLINE void store(const Weights& weights, Sums sums, size_t tile, float* y) {
  const size_t first = tile * kTileRows;
  if (weights.rows - first < kTileRows) {
    float values[kTileRows];
    _mm256_storeu_ps(values, sums);
    store_rows(weights, values, first, weights.rows - first, y);
    return;
  }
  if (weights.bias != nullptr) {
    sums = _mm256_add_ps(sums, _mm256_loadu_ps(weights.bias + first));
  }
  _mm256_storeu_ps(y + first, sums);
}

EDGEKIT_INLINE uint32_t most_of(const __m256i* magnitudes) {
  const __m256i eight = _mm256_max_epu32(_mm256_max_epu32(magnitudes[0], magnitudes[1]),
                                         _mm256_max_epu32(magnitudes[2], magnitudes[3]));
  __m128i four = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(four));
}

EDGEKIT_INLINE int32_t sum_of(__m256i codes) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
  const __m256i eight = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  return _mm_cvtsi128_si32(four);
}

EDGEKIT_TARGET void quantize(const float* x, size_t chunks, int8_t* codes, Step* steps) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  for (size_t chunk = 0; chunk < chunks; ++chunk, x += kChunkColumns, codes += kChunkColumns) {
    __m256 values[4];
    __m256i whole[4];
    for (size_t i = 0; i < 4; ++i) {
      values[i] = _mm256_loadu_ps(x + 8 * i);
      whole[i] = _mm256_and_si256(_mm256_castps_si256(values[i]), magnitude);
    }
    const Scaling scaling = scaling_of(most_of(whole));
    if (scaling.inverse == 0.0F) {
      std::memset(codes, 0, kChunkColumns);
      steps[chunk] = {scaling.scale, 0};
      continue;
    }
    const __m256 inverse = _mm256_set1_ps(scaling.inverse);
    for (size_t i = 0; i < 4; ++i) {
      whole[i] = _mm256_cvtps_epi32(_mm256_mul_ps(values[i], inverse));
    }
    const __m256i low = _mm256_packs_epi32(whole[0], whole[1]);
    const __m256i high = _mm256_packs_epi32(whole[2], whole[3]);
    // Packing works on each half of a register: put the groups of 4 back in order.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i packed = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), packed);
    steps[chunk] = {scaling.scale, offset_of(sum_of(packed))};
  }
}

}  // namespace
}  // namespace edgekit

#include "tile_loops.h"
