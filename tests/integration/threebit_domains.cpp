// Registers edgekit's operators in stand-ins for two ONNX Runtimes, twice each; returns 0 when each made one domain and
// got that one back.
#include <cstdint>
#include <cstdio>

#include "onnxruntime_c_api.h"

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

namespace {

// Each stand-in hands out addresses of its own array as domains.
char domains[2][8];
int made[2];
const OrtCustomOpDomain* added[2];

template <int kWhich>
OrtApi stand_in() {
  OrtApi api = {};
  api.CreateCustomOpDomain = [](const char*, OrtCustomOpDomain** domain) noexcept -> OrtStatus* {
    *domain = reinterpret_cast<OrtCustomOpDomain*>(&domains[kWhich][made[kWhich]++]);
    return nullptr;
  };
  api.CustomOpDomain_Add = [](OrtCustomOpDomain*, const OrtCustomOp*) noexcept -> OrtStatus* { return nullptr; };
  api.AddCustomOpDomain = [](OrtSessionOptions*, OrtCustomOpDomain* domain) noexcept -> OrtStatus* {
    added[kWhich] = domain;
    return nullptr;
  };
  return api;
}

const OrtApi apis[2] = {stand_in<0>(), stand_in<1>()};

template <int kWhich>
int registered() {
  const OrtApiBase base = {[](uint32_t) noexcept -> const OrtApi* { return &apis[kWhich]; },
                           []() noexcept -> const char* { return "1.21.0"; }};
  char options = 0;
  return RegisterCustomOps(reinterpret_cast<OrtSessionOptions*>(&options), &base) == nullptr ? 0 : 1;
}

}  // namespace

int main() {
  int failures = registered<0>() + registered<1>() + registered<0>() + registered<1>();
  for (int which = 0; which < 2; ++which) {
    const void* expected = &domains[which][0];
    if (made[which] != 1 || added[which] != expected) {
      std::printf("runtime %d made %d domains\n", which, made[which]);
      ++failures;
    }
  }
  return failures;
}
