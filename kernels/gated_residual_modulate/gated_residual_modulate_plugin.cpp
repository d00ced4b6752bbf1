// SPDX-License-Identifier: Apache-2.0
// Predict2GatedModulate: x [..., D], y of as many tokens [..., D], modulation [..., 3 * D] (shift,
// scale, gate) of y's sub-layer, next_modulation [..., parts * D] -> x + gate * y, its modulation.
// Predict2GatedAdd: the same without next_modulation and the second output.
#include "predict2/gated_residual_modulate.h"

#include "plugin/shapes.h"

namespace predict2 {
namespace {

using nvinfer1::Dims;
using nvinfer1::DimsExprs;

Signature WithNorm(const Values&) {
  return {4, 0, 2};
}
Signature WithoutNorm(const Values&) {
  return {3, 0, 1};
}

const char* Refuse(const Values&, const Dims* in, int count) {
  if (const char* reason = RefuseRows(in[0])) return reason;
  if (count > 1) {
    const int64_t rows = Rows(in[0]), others = Rows(in[1]);
    if (in[1].nbDims < 2 || Last(in[1]) != Last(in[0]) ||
        (rows >= 0 && others >= 0 && rows != others)) {
      return "x and y must have the same tokens and channels";
    }
  }
  if (count > 2) {
    if (const char* reason = RefuseModulation(in[0], in[2], 3, true)) return reason;
  }
  if (count > 3) {
    if (const char* reason = RefuseModulation(in[0], in[3], 2, false)) return reason;
    const int64_t frames = Rows(in[2]), next = Rows(in[3]);
    if (frames >= 0 && next >= 0 && frames != next) return "the modulations differ in frames";
  }
  return nullptr;
}

void Shapes(const Values&, const DimsExprs* in, DimsExprs* out, nvinfer1::IExprBuilder&) {
  out[0] = in[0];
}

void TwoShapes(const Values&, const DimsExprs* in, DimsExprs* out, nvinfer1::IExprBuilder&) {
  out[0] = out[1] = in[0];
}

cudaError_t RunWithNorm(const Values&, const Call& call) {
  const Dims &x = call.dims(0), &modulation = call.dims(2);
  return GatedResidualModulate(call.dtype, call.in[0], call.in[1], call.in[2], call.in[3],
                               call.out[0], call.out[1], Rows(modulation),
                               TokensPerFrame(x, modulation), Last(x), Last(call.dims(3)) / Last(x),
                               call.stream);
}

cudaError_t RunWithoutNorm(const Values&, const Call& call) {
  const Dims &x = call.dims(0), &modulation = call.dims(2);
  return GatedResidual(call.dtype, call.in[0], call.in[1], call.in[2], call.out[0],
                       Rows(modulation), TokensPerFrame(x, modulation), Last(x), call.stream);
}

}  // namespace

constexpr Operator kGatedModulate = {
    "Predict2GatedModulate", 0, {}, WithNorm, Refuse, TwoShapes, RunWithNorm};
constexpr Operator kGatedAdd = {"Predict2GatedAdd", 0, {}, WithoutNorm, Refuse, Shapes,
                                RunWithoutNorm};

}  // namespace predict2
