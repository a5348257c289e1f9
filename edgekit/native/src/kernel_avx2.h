#pragma once

#include "kernels.h"

namespace edgekit {

extern const Kernel kAvx2;

}  // namespace edgekit
