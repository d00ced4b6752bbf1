// SPDX-License-Identifier: Apache-2.0
// Predict2Modulate: x [..., D], modulation [..., parts * D] (shift, scale, ...) -> out like x.
#include "predict2/adaln_modulate.h"

#include "plugin/shapes.h"

namespace predict2 {
namespace {

using nvinfer1::Dims;
using nvinfer1::DimsExprs;

Signature Tensors(const Values&) {
  return {2, 0, 1};
}

const char* Refuse(const Values&, const Dims* in, int count) {
  const char* reason = RefuseRows(in[0]);
  return reason || count < 2 ? reason : RefuseModulation(in[0], in[1], 2, false);
}

void Shapes(const Values&, const DimsExprs* in, DimsExprs* out, nvinfer1::IExprBuilder&) {
  out[0] = in[0];
}

cudaError_t Run(const Values&, const Call& call) {
  const Dims &x = call.dims(0), &modulation = call.dims(1);
  return AdalnModulate(call.dtype, call.in[0], call.in[1], call.out[0], Rows(modulation),
                       TokensPerFrame(x, modulation), Last(x), Last(modulation) / Last(x),
                       call.stream);
}

}  // namespace

constexpr Operator kModulate = {"Predict2Modulate", 0, {}, Tensors, Refuse, Shapes, Run};

}  // namespace predict2
