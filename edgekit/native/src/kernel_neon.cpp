// 64-bit ARM without the dot product instructions: Cortex-A53, A72 (Raspberry Pi 4).
#include "kernel_neon.h"

#if defined(__aarch64__)

#include "neon_codes.h"

#define EDGEKIT_TARGET

namespace edgekit {
namespace {

// A row has four lanes of 16 bits; -4 times the sum of the activations' codes is spread over them.
constexpr int32_t kOffset = -kZeroPoint / 4;

// Sums of a chunk for 8 rows; x: its 32 activations. A lane of 16 bits holds 8 products of at most 7 * 127 and a part
// of the offset, at most 32 * 127: 11,176 in all.
EDGEKIT_INLINE int32x4x2_t dots(const Codes& low, const Codes& high, int8x16x2_t x, StepVector step) {
  const int16x8_t begin = vdupq_lane_s16(vreinterpret_s16_s32(step), 2);
  int16x8_t sums[4] = {begin, begin, begin, begin};
  const int32x4_t halves[2] = {vreinterpretq_s32_s8(x.val[0]), vreinterpretq_s32_s8(x.val[1])};
  const int32x4_t fours[kGroups] = {
      vdupq_laneq_s32(halves[0], 0), vdupq_laneq_s32(halves[0], 1), vdupq_laneq_s32(halves[0], 2),
      vdupq_laneq_s32(halves[0], 3), vdupq_laneq_s32(halves[1], 0), vdupq_laneq_s32(halves[1], 1),
      vdupq_laneq_s32(halves[1], 2), vdupq_laneq_s32(halves[1], 3),
  };
  for (size_t group = 0; group < kGroups; ++group) {
    const int8x16_t four = vreinterpretq_s8_s32(fours[group]);
    sums[0] = vmlal_s8(sums[0], vget_low_s8(low.group[group]), vget_low_s8(four));
    sums[1] = vmlal_high_s8(sums[1], low.group[group], four);
    sums[2] = vmlal_s8(sums[2], vget_low_s8(high.group[group]), vget_low_s8(four));
    sums[3] = vmlal_high_s8(sums[3], high.group[group], four);
  }
  return {{vpaddq_s32(vpaddlq_s16(sums[0]), vpaddlq_s16(sums[1])),
           vpaddq_s32(vpaddlq_s16(sums[2]), vpaddlq_s16(sums[3]))}};
}

}  // namespace
}  // namespace edgekit

#include "neon_loops.h"

#include "neon_columns.h"

namespace edgekit {
namespace {

bool supported() { return true; }  // Advanced SIMD belongs to 64-bit ARM Linux

}  // namespace

const Kernel kNeon = {"neon", supported, quantize, multiply, multiply_columns};

}  // namespace edgekit

#endif
