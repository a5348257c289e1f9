// The vectors that ARM kernels unpack a chunk into.
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "kernels.h"

#define EDGEKIT_INLINE __attribute__((always_inline)) inline

namespace edgekit {
namespace {

// Codes 0..7 of 4 rows of a chunk, a vector for each group of 4 columns.
struct Codes {
  int8x16_t group[kGroups];
};

// A Step: bits of the scale in lane 0, the offset in lane 1.
using StepVector = int32x2_t;

EDGEKIT_INLINE StepVector step_at(const Step* step) {
  static_assert(sizeof(Step) == sizeof(StepVector));
  StepVector vector;
  std::memcpy(&vector, step, sizeof vector);
  return vector;
}

}  // namespace
}  // namespace edgekit
