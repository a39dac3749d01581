// Random words, those of gpuprop/_philox.py, and dropout: which elements stay is drawn where it is asked for, and never stored.
#pragma once
#include "common.cuh"

typedef unsigned long long Word;
typedef unsigned int Lane;  // half a word, the lower half first

struct Block {
  Word at[4];
};

// Philox4x64-10 of one counter.
__device__ __forceinline__ Block philox(Word counter, Word key) {
  const Word first = 0xD2E7470EE14C6C93ull, second = 0xCA5A826395121157ull;
  Word a = counter, b = 0, c = 0, d = 0, other = 0;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const Word next_a = __umul64hi(c, second) ^ b ^ key, next_c = __umul64hi(a, first) ^ d ^ other;
    b = c * second;
    d = a * first;
    a = next_a;
    c = next_c;
    key += 0x9E3779B97F4A7C15ull;
    other += 0xBB67AE8584CAA73Bull;
  }
  return Block{{a, b, c, d}};
}

// No dropout: elements stay what they are.
struct Whole {
  static const int unroll = 4;  // rows of a loop
  template <int width> struct Steps {
    __device__ __forceinline__ Steps(const Whole&, Word) {}
    template <typename T, typename A> __device__ __forceinline__ void apply(A (&)[width], Word, bool) {}
  };
};

// x * scale where the element's lane of the stream is below the threshold, else x * 0: what `dropout` in random.cu computes, rounded
// as often. start: the block of the first element.
template <typename A> struct Dropout {
  static const int unroll = 1;  // drawing is long
  Word start, seed, threshold;
  A scale;

  // A bit for each of the 8 elements of a block: those around this one.
  __device__ __forceinline__ int draw(Word at) const {
    const Block block = philox(start + at / 8, seed);
    int bits = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) bits |= int(Lane(block.at[i / 2] >> (i % 2 * 32)) < threshold) << i;
    return bits;
  }

  // For a thread of a loop that takes `width` neighbours after another, `further` apart.
  //
  // A block is for 8 elements, and so for 8 / width lanes. In as many steps they meet as many blocks: each draws one, for all of them.
  template <int width> struct Steps {
    const Dropout& dropout;
    const Word further;
    int bits = 0, left = 0;  // drawn: for so many steps

    __device__ __forceinline__ Steps(const Dropout& dropout, Word further) : dropout(dropout), further(further) {}

    // value: the elements from `at` on, a multiple of `width`. shared: the 8 elements of a block are those of 8 / width lanes, from a
    // multiple of 8 / width on, which all are here; then `further` is a multiple of 8.
    template <typename T> __device__ __forceinline__ void apply(A (&value)[width], Word at, bool shared) {
      if (left == 0) draw(at, shared);
#pragma unroll
      for (int k = 0; k < width; ++k) value[k] = as_stored<T>(as_stored<T>(value[k]) * (bits >> k & 1 ? dropout.scale : A(0)));
      bits >>= width;
      --left;
    }

    __device__ __forceinline__ void draw(Word at, bool shared) {
      const int lanes = 8 / width, lane = threadIdx.x % lanes, place = at % 8 & (8 - width);
      const int drawn = dropout.draw(lanes > 1 && shared ? at + further * lane : at);
      bits = drawn >> place;
      left = 1;
      if (lanes == 1 || !shared) return;
      const unsigned int sharing = ((1u << lanes) - 1) << (threadIdx.x % 32 - lane);
      bits = 0;
      left = lanes;
#pragma unroll
      for (int step = 0; step < lanes; ++step)
        bits |= (__shfl_sync(sharing, drawn, step, lanes) >> place & ((1 << width) - 1)) << (step * width);
    }
  };
};
