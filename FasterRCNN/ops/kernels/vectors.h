// Vectors of channels in float32, read from and written to maps of float32, bfloat16 and float16.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernel.h"

constexpr int kLanes = 16;
constexpr int kPair = 2 * kLanes;
typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));

// kPair channels, in any order that Load and Store agree on.
struct Pair {
  Floats first, second;

  INLINE void Add(float weight, const Pair& other) {
    first += weight * other.first;
    second += weight * other.second;
  }

  INLINE void Max(const Pair& other) {
    first = other.first > first ? other.first : first;
    second = other.second > second ? other.second : second;
  }
};

template <typename To, typename From>
INLINE To SameBits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename T>
INLINE Pair Load(const T* from) {
  Pair to;
  for (int i = 0; i < kLanes; ++i) {
    to.first[i] = static_cast<float>(from[i]);
    to.second[i] = static_cast<float>(from[kLanes + i]);
  }
  return to;
}

template <>
INLINE Pair Load(const float* from) {
  Pair to;  // its halves one by one: GCC copies the whole through memory
  std::memcpy(&to.first, from, sizeof(to.first));
  std::memcpy(&to.second, from + kLanes, sizeof(to.second));
  return to;
}

// Of two neighbours in a word, the bits of one are those of its float32 once the other is cleared or shifted out.
template <>
INLINE Pair Load(const tensorflow::bfloat16* from) {
  Words words;
  std::memcpy(&words, from, sizeof(words));
  return {SameBits<Floats>(words << 16), SameBits<Floats>(words & 0xffff0000)};
}

template <typename T>
INLINE void Store(const Pair& from, T* to) {
  for (int i = 0; i < kLanes; ++i) {
    to[i] = static_cast<T>(from.first[i]);
    to[kLanes + i] = static_cast<T>(from.second[i]);
  }
}

template <>
INLINE void Store(const Pair& from, float* to) {
  std::memcpy(to, &from.first, sizeof(from.first));
  std::memcpy(to + kLanes, &from.second, sizeof(from.second));
}

// To the nearest bfloat16, of two the even one: the upper half of each word.
INLINE Words Rounded(const Floats& from) {
  const Words words = SameBits<Words>(from), is_nan = SameBits<Words>(from != from);
  return (is_nan & 0x7fc00000) | (~is_nan & (words + 0x7fff + ((words >> 16) & 1)));
}

template <>
INLINE void Store(const Pair& from, tensorflow::bfloat16* to) {
  const Words words = (Rounded(from.first) >> 16) | (Rounded(from.second) & 0xffff0000);
  std::memcpy(static_cast<void*>(to), &words, sizeof(words));
}
