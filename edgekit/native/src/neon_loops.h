// What both ARM kernels have in common. Who includes this has defined EDGEKIT_TARGET, the instructions that functions may
// use, and, in the unnamed namespace of edgekit, kOffset and dots(). It stands on functions instead of on the file
// because nothing else may be compiled with instructions that a processor lacks.

#include <algorithm>
#include <cstring>

#include "kernel_portable.h"

namespace edgekit {
namespace {

EDGEKIT_INLINE Codes unpack_half(const uint8_t* half) {
  const uint8x16_t seven = vdupq_n_u8(7);
  const uint8x16_t a = vld1q_u8(half);
  const uint8x16_t b = vld1q_u8(half + kPlaneBytes);
  const uint8x16_t c = vld1q_u8(half + 2 * kPlaneBytes);
  // SLI keeps the two low bits and puts the third above them.
  const uint8x16_t sixth = vsliq_n_u8(vshrq_n_u8(a, 3), vshrq_n_u8(c, 3), 2);
  const uint8x16_t seventh = vsliq_n_u8(vshrq_n_u8(b, 3), vshrq_n_u8(c, 4), 2);
  return {{
      vreinterpretq_s8_u8(vandq_u8(a, seven)), vreinterpretq_s8_u8(vshrq_n_u8(a, 5)),
      vreinterpretq_s8_u8(vandq_u8(b, seven)), vreinterpretq_s8_u8(vshrq_n_u8(b, 5)),
      vreinterpretq_s8_u8(vandq_u8(c, seven)), vreinterpretq_s8_u8(vshrq_n_u8(c, 5)),
      vreinterpretq_s8_u8(vandq_u8(sixth, seven)), vreinterpretq_s8_u8(vandq_u8(seventh, seven)),
  }};
}

// Sums of 8 rows, as float32.
struct Sums {
  float32x4_t low;
  float32x4_t high;
};

EDGEKIT_INLINE Sums scales_of(const uint16_t* scales) {
  const float16x8_t halves = vreinterpretq_f16_u16(vld1q_u16(scales));
  return {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
}

EDGEKIT_INLINE Sums no_sums() { return {vdupq_n_f32(0), vdupq_n_f32(0)}; }

// A chunk, 4 of its rows in each.
struct Chunk {
  Codes low;
  Codes high;
};

EDGEKIT_INLINE Chunk unpack(const uint8_t* codes) {
  return {unpack_half(codes), unpack_half(codes + kPlaneBytes / 2)};
}

EDGEKIT_TARGET EDGEKIT_INLINE Sums added(Sums sums, const Chunk& codes, const int8_t* x, const Step* step,
                                         Sums scales) {
  const StepVector both = step_at(step);
  const int32x4x2_t dot = dots(codes.low, codes.high, {{vld1q_s8(x), vld1q_s8(x + 16)}}, both);
  const float32x2_t scale = vreinterpret_f32_s32(both);
  return {vfmaq_f32(sums.low, vcvtq_f32_s32(dot.val[0]), vmulq_lane_f32(scales.low, scale, 0)),
          vfmaq_f32(sums.high, vcvtq_f32_s32(dot.val[1]), vmulq_lane_f32(scales.high, scale, 0))};
}

EDGEKIT_INLINE void store(const Weights& weights, Sums sums, size_t tile, float* y) {
  const size_t first = tile * kTileRows;
  if (weights.rows - first < kTileRows) {
    float values[kTileRows];
    vst1q_f32(values, sums.low);
    vst1q_f32(values + 4, sums.high);
    store_rows(weights, values, first, weights.rows - first, y);
    return;
  }
  if (weights.bias != nullptr) {
    sums.low = vaddq_f32(sums.low, vld1q_f32(weights.bias + first));
    sums.high = vaddq_f32(sums.high, vld1q_f32(weights.bias + first + 4));
  }
  vst1q_f32(y + first, sums.low);
  vst1q_f32(y + first + 4, sums.high);
}

void quantize(const float* x, size_t chunks, int8_t* codes, Step* steps) {
  constexpr size_t kVectors = kChunkColumns / 4;
  const uint32x4_t magnitude = vdupq_n_u32(0x7fffffffU);
  for (size_t chunk = 0; chunk < chunks; ++chunk, x += kChunkColumns, codes += kChunkColumns) {
    float32x4_t values[kVectors];
    uint32x4_t most = vdupq_n_u32(0);
    for (size_t i = 0; i < kVectors; ++i) {
      values[i] = vld1q_f32(x + 4 * i);
      most = vmaxq_u32(most, vandq_u32(vreinterpretq_u32_f32(values[i]), magnitude));
    }
    const Scaling scaling = scaling_of(vmaxvq_u32(most));
    if (scaling.inverse == 0.0F) {
      std::memset(codes, 0, kChunkColumns);
      steps[chunk] = {scaling.scale, 0};
      continue;
    }
    int16x8_t sum = vdupq_n_s16(0);
    for (size_t i = 0; i < kVectors; i += 2) {
      const int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(values[i], scaling.inverse));
      const int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(values[i + 1], scaling.inverse));
      const int16x8_t eight = vcombine_s16(vmovn_s32(low), vmovn_s32(high));
      sum = vaddq_s16(sum, eight);
      vst1_s8(codes + 4 * i, vmovn_s16(eight));
    }
    steps[chunk] = {scaling.scale, kOffset * static_cast<int32_t>(vaddlvq_s16(sum))};
  }
}

}  // namespace
}  // namespace edgekit

#include "tile_loops.h"
