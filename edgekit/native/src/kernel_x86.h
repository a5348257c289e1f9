#pragma once

#include "kernels.h"

namespace edgekit {

extern const Kernel kAvx2;
extern const Kernel kAvx512Vnni;

}  // namespace edgekit
