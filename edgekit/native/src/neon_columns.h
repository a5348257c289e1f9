// Adding up columns on 64-bit ARM, for columns_loops.h; included as neon_loops.h is.

#include "columns.h"

namespace edgekit {
namespace {

constexpr size_t kSlots[] = {0, 1, 2, 3};

// Adds 16 rows of a group of four columns. A sum has at most 32 products of at most 7 * 127: 28,448 in all.
template <bool kOneRow>
EDGEKIT_INLINE void add_half(const int8x16_t* columns, const int8_t (*x)[kBatch], size_t rows, int16_t* sums) {
  for (size_t m = 0; m < (kOneRow ? 1 : rows); ++m, sums += kUnitRows) {
    int16x8_t low = vld1q_s16(sums);
    int16x8_t high = vld1q_s16(sums + 8);
    for (size_t i = 0; i < kBatch; ++i) {
      const int8x16_t value = vdupq_n_s8(x[m][i]);
      low = vmlal_s8(low, vget_low_s8(columns[i]), vget_low_s8(value));
      high = vmlal_high_s8(high, columns[i], value);
    }
    vst1q_s16(sums, low);
    vst1q_s16(sums + 8, high);
  }
}

template <bool kOneRow>
EDGEKIT_TARGET void add_columns(const uint8_t* const* columns, const int8_t (*x)[kBatch], size_t rows, int16_t* sums) {
  for (size_t half = 0; half < kPlaneBytes; half += kPlaneBytes / 2) {
    Codes codes[kBatch];
    for (size_t i = 0; i < kBatch; ++i) {
      codes[i] = unpack_half(columns[i] + half);
    }
    for (size_t group = 0; group < kGroups; ++group) {
      const int8x16_t four[] = {codes[0].group[group], codes[1].group[group], codes[2].group[group],
                                codes[3].group[group]};
      add_half<kOneRow>(four, x, rows, sums + group * kPlaneBytes + half);
    }
  }
}

EDGEKIT_INLINE void add_scaled(const int16_t* sums, Step step, const uint16_t* scales, float* values) {
  const int16x8_t eight = vld1q_s16(sums);
  const int32x4_t offset = vdupq_n_s32(step.offset);
  const Sums scale = scales_of(scales);
  const float32x4_t low = vcvtq_f32_s32(vaddw_s16(offset, vget_low_s16(eight)));
  const float32x4_t high = vcvtq_f32_s32(vaddw_high_s16(offset, eight));
  vst1q_f32(values, vfmaq_f32(vld1q_f32(values), low, vmulq_n_f32(scale.low, step.scale)));
  vst1q_f32(values + 4, vfmaq_f32(vld1q_f32(values + 4), high, vmulq_n_f32(scale.high, step.scale)));
}

}  // namespace
}  // namespace edgekit

#include "columns_loops.h"
