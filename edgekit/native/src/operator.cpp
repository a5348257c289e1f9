// edgekit's operators for ONNX Runtime: the library's entry points.
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "kernels.h"
#include "operators.h"
#include "ort.h"

namespace edgekit {

OrtCustomOp plain_operator() {
  OrtCustomOp op = {};
  op.version = kApi;
  op.GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
  op.GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  return op;
}

namespace {

constexpr const char* kDomain = "edgekit";

// The domain with its operators, one for each ONNX Runtime in the process: a domain is an object of the one that made it,
// and each has an interface of its own. It keeps pointers into the domain as long as any session lives, and may be
// unloaded before this library: so domains are never released, nor is what holds them.
OrtCustomOpDomain* domain_of(const OrtApi& api) {
  static const OrtCustomOp ops[] = {matmul_operator(), sparse_matmul_operator(), gather_operator()};
  static std::mutex lock;
  static auto& domains = *new std::map<const OrtApi*, OrtCustomOpDomain*>();
  const std::lock_guard<std::mutex> held(lock);
  if (const auto found = domains.find(&api); found != domains.end()) {
    return found->second;
  }
  OrtCustomOpDomain* made = nullptr;
  check(api, api.CreateCustomOpDomain(kDomain, &made));
  const auto release = [&api](OrtCustomOpDomain* each) { api.ReleaseCustomOpDomain(each); };
  std::unique_ptr<OrtCustomOpDomain, decltype(release)> owned(made, release);
  for (const OrtCustomOp& op : ops) {
    check(api, api.CustomOpDomain_Add(made, &op));
  }
  domains.emplace(&api, made);
  return owned.release();
}

}  // namespace
}  // namespace edgekit

#define EDGEKIT_EXPORT __attribute__((visibility("default")))

extern "C" EDGEKIT_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(edgekit::kApi);
  if (api == nullptr) {
    return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, "edgekit's operators need ONNX Runtime 1.21 or newer");
  }
  return edgekit::guarded(
      *api, "operators", [&] { edgekit::check(*api, api->AddCustomOpDomain(options, edgekit::domain_of(*api))); });
}

// Names of the kernels that this processor runs, the fastest first, with commas between them.
extern "C" EDGEKIT_EXPORT const char* edgekit_ops_kernels() noexcept {
  try {
    static const std::string names = [] {
      std::string joined;
      for (const edgekit::Kernel* kernel : edgekit::kernels_here()) {
        joined += (joined.empty() ? "" : ",") + std::string(kernel->name);
      }
      return joined;
    }();
    return names.c_str();
  } catch (...) {
    return "";
  }
}
