// The activations of gated FFNs with their slopes: all are x * sigmoid(z(x)).
#pragma once

#include "vectors.h"

namespace moe_lab {

enum Activation : int32_t { kSilu = 0, kGelu = 1 };

// exp(x) to about one unit in the last place: 2^n times a polynomial (Cephes) of what is left.
inline Vec exponential(Vec x) {
  x = x > 88.f ? Vec{} + 88.f : x;
  x = x < -87.f ? Vec{} - 87.f : x;
  const float round = 12582912.f;  // 1.5 * 2^23: adding it leaves no room for a fraction
  Vec n = (x * 1.44269504f + round) - round;
  Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec p = Vec{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  IntVec power = (__builtin_convertvector(n, IntVec) + 127) << 23;
  return p * reinterpret_cast<Vec>(power);
}

struct Activated {
  Vec value, slope;
};

inline Activated activate(Activation kind, Vec x) {
  Vec z = x, dz = Vec{} + 1.f;
  if (kind == kGelu) {  // the tanh form: (1 + tanh(z / 2)) / 2 is sigmoid(z)
    const float scale = 2 * 0.7978845608f, cubic = 0.044715f;
    z = scale * (x + cubic * x * x * x);
    dz = scale * (1.f + 3 * cubic * x * x);
  }
  Vec sigmoid = 1.f / (1.f + exponential(-z));
  Vec value = x * sigmoid;
  return {value, sigmoid + value * (1.f - sigmoid) * dz};
}

}  // namespace moe_lab
