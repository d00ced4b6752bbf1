// SPDX-License-Identifier: Apache-2.0
// Predict2QkNormRope: queries and keys -> normalised, rotated, in the layout that attention wants.
// Predict2QkNorm: the same without rotation, for attention to the text.
// Inputs, with D = num_heads * E:
//   packed = 1: qkv [B, N, 3 * D]; else q [B, N, D], k [B, M, D]
//   q_weight [E], k_weight [E]
//   where they rotate: float tables of cosines and sines [2, positions, channels] by frame, row and
//   column, cut to the grid of the tokens
// Outputs q, k and, when packed, v: [B, num_heads, N, E] when heads_first, else [B, N, num_heads,
// E].
#include "predict2/qk_norm_rope.h"

#include "plugin/shapes.h"

namespace predict2 {
namespace {

using nvinfer1::Dims;
using nvinfer1::DimsExprs;

struct Attributes {
  int32_t heads;
  bool packed, heads_first;
  float q_scale;

  explicit Attributes(const Values& values)
      : heads(values[0].integer),
        packed(values[1].integer != 0),
        heads_first(values[2].integer != 0),
        q_scale(values[3].real) {}

  int activations() const { return packed ? 1 : 2; }
  int tables() const { return activations() + 2; }  // the first table's input
};

template <bool kRotate>
Signature Tensors(const Values& values) {
  const Attributes a(values);
  if (a.heads < 1) return {0, 0, 0};
  return {a.tables(), kRotate ? 3 : 0, a.packed ? 3 : 2};
}

template <bool kRotate>
const char* Refuse(const Values& values, const Dims* in, int count) {
  const Attributes a(values);
  const int64_t width = Last(in[0]), parts = a.packed ? 3 : 1, head = width / parts / a.heads;
  if (in[0].nbDims != 3 || head * parts * a.heads != width ||
      (head != 32 && head != 64 && head != 128)) {
    return "queries must be [batch, tokens, heads * (32, 64 or 128)], or three of it when packed";
  }
  for (int i = 1; i < a.activations() && i < count; ++i) {
    if (in[i].nbDims != 3 || Last(in[i]) != width) return "keys are not as wide as queries";
    const int64_t batch = in[0].d[0], other = in[i].d[0];
    if (batch >= 0 && other >= 0 && batch != other) return "queries and keys differ in batch";
  }
  for (int i = a.activations(); i < a.tables() && i < count; ++i) {
    if (in[i].nbDims != 1 || in[i].d[0] != head) return "a weight must be [head_dim]";
  }
  int64_t channels = 0, positions = 1;
  for (int i = a.tables(); i < count; ++i) {
    if (in[i].nbDims != 3 || in[i].d[0] != 2 || in[i].d[2] < 0) {
      return "a table must be [2, positions, channels]";
    }
    channels += in[i].d[2];
    positions = positions < 0 || in[i].d[1] < 0 ? -1 : positions * in[i].d[1];
  }
  if (count < a.tables() + 3 || !kRotate) return nullptr;
  if (channels != head / 2) return "the tables' channels are not half a head";
  for (int i = 0; i < a.activations(); ++i) {
    if (positions >= 0 && in[i].d[1] >= 0 && in[i].d[1] != positions) {
      return "the tables' grid is not that of the tokens";
    }
  }
  return nullptr;
}

void Shapes(const Values& values, const DimsExprs* in, DimsExprs* out,
            nvinfer1::IExprBuilder& builder) {
  const Attributes a(values);
  for (int i = 0; i < (a.packed ? 3 : 2); ++i) {
    const DimsExprs& from = in[a.packed ? 0 : i];
    out[i] = {4, {from.d[0], from.d[1], from.d[1], in[a.activations()].d[0]}};
    out[i].d[a.heads_first ? 1 : 2] = builder.constant(a.heads);
  }
}

template <bool kRotate>
cudaError_t Run(const Values& values, const Call& call) {
  const Attributes a(values);
  const int64_t head = call.dims(a.activations()).d[0], width = a.heads * head;
  const auto heads = [&](int part) {  // of queries, keys, values
    const int input = a.packed ? 0 : part;
    const auto* in = static_cast<const char*>(call.in[input]);
    const void* weight = part < 2 ? call.in[a.activations() + part] : nullptr;
    const int64_t offset = a.packed ? part * width * SizeOf(call.dtype) : 0;
    return Heads{in + offset, weight, call.out[part], call.dims(input).d[1],
                 a.packed ? 3 * width : width};
  };
  const auto axis = [&](int i) {
    const Dims& dims = call.dims(a.tables() + i);
    return Axis{static_cast<const float*>(call.in[a.tables() + i]), dims.d[1], dims.d[2]};
  };
  const Rotary rotary = kRotate ? Rotary{axis(0), axis(1), axis(2)} : Rotary{};
  return QkNormRope(call.dtype, heads(0), heads(1), a.packed ? heads(2) : Heads{},
                    kRotate ? &rotary : nullptr, call.dims(0).d[0], a.heads, head, a.q_scale,
                    a.heads_first, call.stream);
}

template <bool kRotate>
constexpr Operator Named(const char* name) {
  return {name,
          4,
          {{"num_heads", false, 0},  // has to be given
           {"packed", false, 0},
           {"heads_first", false, 0},
           {"q_scale", true, 1.0f}},
          Tensors<kRotate>,
          Refuse<kRotate>,
          Shapes,
          Run<kRotate>};
}

}  // namespace

constexpr Operator kQkNormRope = Named<true>("Predict2QkNormRope");
constexpr Operator kQkNorm = Named<false>("Predict2QkNorm");

}  // namespace predict2
