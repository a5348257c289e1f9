// edgekit's operators as ONNX Runtime wants them: tables of functions.
#pragma once

#include "ort.h"

namespace edgekit {

OrtCustomOp matmul_operator();
OrtCustomOp sparse_matmul_operator();
OrtCustomOp gather_operator();

// What all tables have in common: one output, version 1, on the CPU.
OrtCustomOp plain_operator();

// The table of an operator whose nodes are `Node`s, which has a kName; the inputs are for the caller to add.
template <typename Node>
OrtCustomOp operator_of() {
  OrtCustomOp op = plain_operator();
  op.GetName = [](const OrtCustomOp*) { return Node::kName; };
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return guarded(*api, Node::kName, [&] { *kernel = new Node(*api, *info); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const auto& node = *static_cast<const Node*>(kernel);
    return guarded(node.api(), Node::kName, [&] { node.compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
  return op;
}

}  // namespace edgekit
