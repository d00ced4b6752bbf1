// SPDX-License-Identifier: Apache-2.0
// Shapes that several operators check; a dimension that only a call decides is -1.
#pragma once

#include "plugin.h"
#include "predict2/adaln_modulate.h"

namespace predict2 {

inline int64_t Last(const nvinfer1::Dims& dims) {
  return dims.d[dims.nbDims - 1];
}

// Elements of all but the last axis, or -1.
inline int64_t Rows(const nvinfer1::Dims& dims) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < dims.nbDims; ++i) {
    if (dims.d[i] < 0) return -1;
    rows *= dims.d[i];
  }
  return rows;
}

// x: [..., D].
inline const char* RefuseRows(const nvinfer1::Dims& x) {
  if (x.nbDims < 2) return "x must be [..., channels]";
  const int64_t width = Last(x);
  if (width <= 0 || width > kMaxWidth || width % 8 != 0) {
    return "the channels must be known, a multiple of 8 and at most 5120";
  }
  return nullptr;
}

// modulation: [..., parts * D], a row for each frame of x; at least `parts`, or exactly them.
inline const char* RefuseModulation(const nvinfer1::Dims& x, const nvinfer1::Dims& modulation,
                                    int64_t parts, bool exactly) {
  const int64_t width = Last(x), given = Last(modulation);
  if (modulation.nbDims < 2 || given % width != 0 || given < parts * width ||
      (exactly && given != parts * width)) {
    return "a modulation must be [..., parts * channels]";
  }
  const int64_t rows = Rows(x), frames = Rows(modulation);
  if (rows >= 0 && frames >= 0 && (frames == 0 ? rows != 0 : rows % frames != 0)) {
    return "the tokens don't divide among the frames of a modulation";
  }
  return nullptr;
}

inline int64_t TokensPerFrame(const nvinfer1::Dims& x, const nvinfer1::Dims& modulation) {
  const int64_t frames = Rows(modulation);
  return frames ? Rows(x) / frames : 0;
}

}  // namespace predict2
