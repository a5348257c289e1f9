#include <stdexcept>

#include "kernel_x86.h"
#include "kernel_neon.h"
#include "kernel_portable.h"

namespace edgekit {

std::vector<const Kernel*> kernels_here() {
  const Kernel* const known[] = {
#if defined(__x86_64__)
      &kAvx512Vnni,
      &kAvx2,
#endif
#if defined(__aarch64__)
#if !defined(EDGEKIT_NO_DOTPROD)
      &kDotprod,
#endif
      &kNeon,
#endif
      &kPortable,
  };
  std::vector<const Kernel*> found;
  for (const Kernel* kernel : known) {
    if (kernel->supported()) {
      found.push_back(kernel);
    }
  }
  return found;
}

const Kernel& kernel_named(const std::string& name) {
  std::string names;
  for (const Kernel* kernel : kernels_here()) {
    if (name.empty() || name == kernel->name) {
      return *kernel;
    }
    names += (names.empty() ? "" : ", ") + std::string(kernel->name);
  }
  throw std::invalid_argument("no kernel '" + name + "' runs on this processor; there are " + names);
}

}  // namespace edgekit
