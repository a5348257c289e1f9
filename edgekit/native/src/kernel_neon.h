#pragma once

#include "kernels.h"

namespace edgekit {

extern const Kernel kNeon;
extern const Kernel kDotprod;

}  // namespace edgekit
