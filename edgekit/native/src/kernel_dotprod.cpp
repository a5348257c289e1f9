// 64-bit ARM with the dot product instructions of Armv8.2: Cortex-A55, A76 (Raspberry Pi 5), A78AE (Jetson Orin).
#include "kernel_neon.h"

#if defined(__aarch64__) && !defined(EDGEKIT_NO_DOTPROD)

#include <sys/auxv.h>

#include "neon_codes.h"

// A function is only inlined into one that may use at least the same instructions, so nothing may be taken away from
// what the whole file is compiled for.
#if defined(__ARM_FEATURE_DOTPROD)
#define EDGEKIT_TARGET
#elif defined(__ARM_FEATURE_FP16_SCALAR_ARITHMETIC)
#define EDGEKIT_TARGET __attribute__((target("+dotprod")))
#elif defined(__ARM_FEATURE_AES)
#define EDGEKIT_TARGET __attribute__((target("arch=armv8.2-a+crypto+dotprod")))
#else
#define EDGEKIT_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

namespace edgekit {
namespace {

constexpr unsigned long kHasDotprod = 1UL << 20;  // HWCAP_ASIMDDP of Linux
constexpr int32_t kOffset = -kZeroPoint;

// Sums of a chunk for 4 rows; x: its 32 activations.
EDGEKIT_TARGET EDGEKIT_INLINE int32x4_t four_dots(const Codes& codes, int8x16x2_t x, StepVector step) {
  // One chain: these processors hand a sum on to the next dot product within a cycle.
  int32x4_t sum = vdupq_lane_s32(step, 1);
  sum = vdotq_laneq_s32(sum, codes.group[0], x.val[0], 0);
  sum = vdotq_laneq_s32(sum, codes.group[1], x.val[0], 1);
  sum = vdotq_laneq_s32(sum, codes.group[2], x.val[0], 2);
  sum = vdotq_laneq_s32(sum, codes.group[3], x.val[0], 3);
  sum = vdotq_laneq_s32(sum, codes.group[4], x.val[1], 0);
  sum = vdotq_laneq_s32(sum, codes.group[5], x.val[1], 1);
  sum = vdotq_laneq_s32(sum, codes.group[6], x.val[1], 2);
  sum = vdotq_laneq_s32(sum, codes.group[7], x.val[1], 3);
  return sum;
}

EDGEKIT_TARGET EDGEKIT_INLINE int32x4x2_t dots(const Codes& low, const Codes& high, int8x16x2_t x, StepVector step) {
  return {{four_dots(low, x, step), four_dots(high, x, step)}};
}

}  // namespace
}  // namespace edgekit

#include "neon_loops.h"

#include "neon_columns.h"

namespace edgekit {
namespace {

bool supported() { return (getauxval(AT_HWCAP) & kHasDotprod) != 0; }

}  // namespace

const Kernel kDotprod = {"dotprod", supported, quantize, multiply, multiply_columns};

}  // namespace edgekit

#endif
