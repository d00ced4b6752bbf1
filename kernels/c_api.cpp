// SPDX-License-Identifier: Apache-2.0
// The launchers under C names, for ctypes: callable without libtorch and without TensorRT.
#include "predict2/adaln_modulate.h"
#include "predict2/cfg_ab2_step.h"
#include "predict2/gated_residual_modulate.h"
#include "predict2/gelu_quantize.h"
#include "predict2/qk_norm_rope.h"
#include "predict2/qkv_prep.h"
#include "predict2/rms_silu.h"

#define PREDICT2_API extern "C" __attribute__((visibility("default")))

PREDICT2_API const char* predict2_error_name(int code) {
  return cudaGetErrorName(static_cast<cudaError_t>(code));
}

PREDICT2_API int predict2_cfg_ab2_step(int dtype, const float* latents, const void* flow_cond,
                                       const void* flow_uncond, const float* previous_x0,
                                       const float* condition, const double* step, float* out,
                                       float* x0, int64_t channels, int64_t frames, int64_t plane,
                                       int64_t num_condition, void* stream) {
  return predict2::CfgAb2Step(static_cast<predict2::DType>(dtype), latents, flow_cond, flow_uncond,
                              previous_x0, condition, step, out, x0, channels, frames, plane,
                              num_condition, static_cast<cudaStream_t>(stream));
}

PREDICT2_API int predict2_adaln_modulate(int dtype, const void* x, const void* modulation,
                                         void* out, int64_t frames, int64_t tokens, int64_t width,
                                         int64_t parts, void* stream) {
  return predict2::AdalnModulate(static_cast<predict2::DType>(dtype), x, modulation, out, frames,
                                 tokens, width, parts, static_cast<cudaStream_t>(stream));
}

PREDICT2_API int predict2_adaln_modulate_e4m3(int dtype, const void* x, const void* modulation,
                                              void* out, float* scales, int64_t frames,
                                              int64_t tokens, int64_t width, int64_t parts,
                                              void* stream) {
  return predict2::AdalnModulateE4m3(static_cast<predict2::DType>(dtype), x, modulation, out,
                                     scales, frames, tokens, width, parts,
                                     static_cast<cudaStream_t>(stream));
}

PREDICT2_API int predict2_gated_residual_modulate(int dtype, const void* x, const void* y,
                                                  const void* modulation,
                                                  const void* next_modulation, void* x_out,
                                                  void* out, int64_t frames, int64_t tokens,
                                                  int64_t width, int64_t next_parts, void* stream) {
  return predict2::GatedResidualModulate(static_cast<predict2::DType>(dtype), x, y, modulation,
                                         next_modulation, x_out, out, frames, tokens, width,
                                         next_parts, static_cast<cudaStream_t>(stream));
}

PREDICT2_API int predict2_gated_residual_modulate_e4m3(int dtype, const void* x, const void* y,
                                                       const void* modulation,
                                                       const void* next_modulation, void* x_out,
                                                       void* out, float* scales, int64_t frames,
                                                       int64_t tokens, int64_t width,
                                                       int64_t next_parts, void* stream) {
  return predict2::GatedResidualModulateE4m3(static_cast<predict2::DType>(dtype), x, y, modulation,
                                             next_modulation, x_out, out, scales, frames, tokens,
                                             width, next_parts, static_cast<cudaStream_t>(stream));
}

PREDICT2_API int predict2_gated_residual(int dtype, const void* x, const void* y,
                                         const void* modulation, void* x_out, int64_t frames,
                                         int64_t tokens, int64_t width, void* stream) {
  return predict2::GatedResidual(static_cast<predict2::DType>(dtype), x, y, modulation, x_out,
                                 frames, tokens, width, static_cast<cudaStream_t>(stream));
}

PREDICT2_API int predict2_gelu_quantize(const void* x, void* out, float* scales, int64_t rows,
                                        int64_t width, void* stream) {
  return predict2::GeluQuantize(static_cast<const __nv_bfloat16*>(x), out, scales, rows, width,
                                static_cast<cudaStream_t>(stream));
}

// v may be null, and so may the three tables, together: then nothing is rotated. `order` is that of
// all tokens, or null.
PREDICT2_API int predict2_qk_norm_rope(
    int dtype, const void* q, const void* k, const void* v, const void* q_weight,
    const void* k_weight, const float* frames, const float* rows, const float* columns,
    const int32_t* order, void* q_out, void* k_out, void* v_out, int64_t batch, int64_t q_tokens,
    int64_t k_tokens, int64_t heads, int64_t head_dim, int64_t q_stride, int64_t k_stride,
    int64_t num_frames, int64_t num_rows, int64_t num_columns, int64_t frame_channels,
    int64_t row_channels, int64_t column_channels, float q_scale, int heads_first, void* stream) {
  const predict2::Rotary rotary{{frames, num_frames, frame_channels},
                                {rows, num_rows, row_channels},
                                {columns, num_columns, column_channels}};
  return predict2::QkNormRope(static_cast<predict2::DType>(dtype),
                              {q, q_weight, q_out, q_tokens, q_stride, order},
                              {k, k_weight, k_out, k_tokens, k_stride, order},
                              {v, nullptr, v_out, v ? k_tokens : 0, k_stride, order},
                              frames || rows || columns ? &rotary : nullptr, batch, heads, head_dim,
                              q_scale, heads_first != 0, static_cast<cudaStream_t>(stream));
}

// Queries and keys of one packed QKV. `order`, `k_shift` and the three tables may be null.
PREDICT2_API int predict2_qk_prep(int codes, const void* q, const void* k, const void* q_weight,
                                  const void* k_weight, const float* k_shift, const float* frames,
                                  const float* rows, const float* columns, const int32_t* order,
                                  void* q_out, float* q_scales, void* k_out, float* k_scales,
                                  int64_t batch, int64_t tokens, int64_t heads, int64_t q_stride,
                                  int64_t k_stride, int64_t num_frames, int64_t num_rows,
                                  int64_t num_columns, int64_t frame_channels, int64_t row_channels,
                                  int64_t column_channels, float q_scale, void* stream) {
  const predict2::Rotary rotary{{frames, num_frames, frame_channels},
                                {rows, num_rows, row_channels},
                                {columns, num_columns, column_channels}};
  return predict2::QkPrep(static_cast<predict2::Codes>(codes),
                          {{q, q_weight, q_out, tokens, q_stride, order}, q_scales, nullptr},
                          {{k, k_weight, k_out, tokens, k_stride, order}, k_scales, k_shift},
                          frames || rows || columns ? &rotary : nullptr, batch, heads, q_scale,
                          static_cast<cudaStream_t>(stream));
}

PREDICT2_API int predict2_v_scales(const void* v, float* scales, int64_t batch, int64_t tokens,
                                   int64_t heads, int64_t stride, void* stream) {
  return predict2::VScales({v, scales, batch, tokens, heads, stride},
                           static_cast<cudaStream_t>(stream));
}

PREDICT2_API int predict2_v_prep(const void* v, float* scales, const int32_t* order, void* out,
                                 int64_t batch, int64_t tokens, int64_t heads, int64_t stride,
                                 void* stream) {
  return predict2::VPrep({v, scales, batch, tokens, heads, stride}, order, out,
                         static_cast<cudaStream_t>(stream));
}

PREDICT2_API int predict2_rms_silu(int dtype, const void* x, const void* gamma, void* out,
                                   int64_t batch, int64_t pixels, int64_t channels,
                                   int64_t out_stride, int silu, void* stream) {
  return predict2::RmsSilu(static_cast<predict2::DType>(dtype), x, gamma, out, batch, pixels,
                           channels, out_stride, silu != 0, static_cast<cudaStream_t>(stream));
}
