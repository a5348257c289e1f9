// The vectors that x86-64 kernels unpack a chunk into.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels.h"

#define EDGEKIT_INLINE EDGEKIT_TARGET __attribute__((always_inline)) inline

namespace edgekit {
namespace {

// Codes 0..7 of a chunk, a vector for each group of 4 columns.
struct Codes {
  __m256i group[kGroups];
};

}  // namespace
}  // namespace edgekit
