// Random numbers: the words of gpuprop/_philox.py, and what gpuprop/ops/random.py makes of them, with the same bits. (Normals are nearer
// to the exact ones than the rule's: angles are multiples of pi here, never rounded.)
#include "dropout.cuh"

// Calls f(half, first word, second word) for the halves of the blocks of the stream, all that are below `halves` and a few beyond.
// The lanes of a warp get neighbouring halves, so that what f reads and writes is whole sectors, though a thread computes a whole block:
// an even lane computes block lane / 2 of the warp's 32, an odd one the block 16 after that of its neighbour, and they exchange.
template <typename I, typename F>
__device__ __forceinline__ void each_half(const Word* base, Word seed, Word offset, I halves, F f) {
  const Word start = *base + offset + 1;
  const int lane = threadIdx.x % 32;
  const bool odd = lane % 2;
  const I stride = I(gridDim.x) * blockDim.x * 2;
  for (I at = (I(blockIdx.x) * blockDim.x + threadIdx.x - lane) * 2; at < halves; at += stride) {
    const Block own = philox(start + Word(at / 2 + lane / 2 + (odd ? 16 : 0)), seed);
    const Word first = __shfl_xor_sync(0xffffffffu, odd ? own.at[0] : own.at[2], 1);
    const Word second = __shfl_xor_sync(0xffffffffu, odd ? own.at[1] : own.at[3], 1);
    f(at + lane, odd ? first : own.at[0], odd ? second : own.at[1]);
    f(at + lane + 32, odd ? own.at[2] : first, odd ? own.at[3] : second);
  }
}

// The numbers that are made of one half of a block.
template <typename T, int count> struct alignas(count * sizeof(T) < 16 ? count * sizeof(T) : 16) Chunk {
  static const int size = count;
  T at[count];
};

// --- Makers: a half of a block -> a chunk of numbers -----------------------------------------------------------------

struct Words {
  typedef Chunk<Word, 2> Result;
  __device__ __forceinline__ Result operator()(Word a, Word b) const { return Result{{a, b}}; }
};

template <typename T> struct Uniform {  // of as many bits as the significand has; of lanes
  typedef Chunk<T, 4> Result;
  static __device__ __forceinline__ T number(Lane x) {
    return sizeof(T) == 2 ? narrow<T>(float(x >> 21) * 0x1p-11f) : narrow<T>(float(x >> 8) * 0x1p-24f);
  }
  __device__ __forceinline__ Result operator()(Word a, Word b) const {
    return Result{{number(Lane(a)), number(Lane(a >> 32)), number(Lane(b)), number(Lane(b >> 32))}};
  }
};
template <> struct Uniform<double> {  // of words
  typedef Chunk<double, 2> Result;
  __device__ __forceinline__ Result operator()(Word a, Word b) const {
    return Result{{double(a >> 11) * 0x1p-53, double(b >> 11) * 0x1p-53}};
  }
};

template <typename T> struct Normal {  // a word makes a pair
  typedef Chunk<T, 4> Result;
  __device__ __forceinline__ Result operator()(Word a, Word b) const {
    Result y;
    pair(a, y.at);
    pair(b, y.at + 2);
    return y;
  }
  static __device__ __forceinline__ void pair(Word word, T* y) {
    const float u = (float(Lane(word)) + 1.f) * 0x1p-32f, radius = sqrtf(-2.f * logf(u));
    float sine, cosine;
    sincospif(float(Lane(word >> 32) >> 8) * 0x1p-23f, &sine, &cosine);
    y[0] = narrow<T>(radius * cosine);
    y[1] = narrow<T>(radius * sine);
  }
};
template <> struct Normal<double> {  // two words make a pair
  typedef Chunk<double, 2> Result;
  __device__ __forceinline__ Result operator()(Word a, Word b) const {
    const double u = double((a >> 11) + 1) * 0x1p-53, radius = sqrt(-2. * log(u));
    double sine, cosine;
    sincospi(double(b >> 11) * 0x1p-52, &sine, &cosine);
    return Result{{radius * cosine, radius * sine}};
  }
};

template <typename T> struct Integers {
  typedef Chunk<T, 2> Result;
  Word range, low;  // a range of 0 stands for 2^64
  __device__ __forceinline__ T number(Word x) const { return T((range ? __umul64hi(x, range) : x) + low); }
  __device__ __forceinline__ Result operator()(Word a, Word b) const { return Result{{number(a), number(b)}}; }
};

// y_i = the i-th number of the stream.
template <typename T, typename I, typename Maker>
__device__ __forceinline__ void fill(const Word* base, Word seed, Word offset, T* y, I n, Maker make) {
  typedef typename Maker::Result Numbers;
  const int size = Numbers::size;
  each_half(base, seed, offset, (n + size - 1) / size, [=](I half, Word a, Word b) {
    const Numbers made = make(a, b);
    const I first = half * size;
    if (first + size <= n) {
      *reinterpret_cast<Numbers*>(y + first) = made;
    } else {
#pragma unroll
      for (int k = 0; k < size; ++k)
        if (first + k < n) y[first + k] = made.at[k];
    }
  });
}

// --- Dropout --------------------------------------------------------------------------------------------------------

// y = x * scale where the lane is below the threshold, else x * 0, which is NaN where x is not finite, as in the rule. y may be x.
template <typename T, typename I, typename A>
__device__ __forceinline__ void dropout(const T* x, const Word* base, Word seed, Word offset, T* y, I n, Word threshold, A scale) {
  typedef Chunk<T, 4> Numbers;
  each_half(base, seed, offset, (n + 3) / 4, [=](I half, Word a, Word b) {
    const Lane lanes[4] = {Lane(a), Lane(a >> 32), Lane(b), Lane(b >> 32)};
    const I first = half * 4;
    if (first + 4 <= n) {
      Numbers v = *reinterpret_cast<const Numbers*>(x + first);
#pragma unroll
      for (int k = 0; k < 4; ++k) v.at[k] = narrow<T>(widen<A>(v.at[k]) * A(lanes[k] < threshold) * scale);
      *reinterpret_cast<Numbers*>(y + first) = v;
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (first + k < n) y[first + k] = narrow<T>(widen<A>(x[first + k]) * A(lanes[k] < threshold) * scale);
    }
  });
}

// --- Permutations ---------------------------------------------------------------------------------------------------

__device__ __forceinline__ Lane mixed(Lane x) {
  x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
  x = (x ^ (x >> 13)) * 0xC2B2AE35u;
  return x ^ (x >> 16);
}

// y_i = the first number below n that a keyed bijection of the numbers below 4^half_bits reaches from i: a walk of fewer than four steps on
// average, because 4^half_bits is less than 4 n (unless n is small).
__device__ __forceinline__ void permutation(const Word* base, Word seed, Word offset, long long* y, Lane n, int half_bits) {
  const Block block = philox(*base + offset + 1, seed);
  const Lane mask = (1u << half_bits) - 1;
  const Lane stride = gridDim.x * blockDim.x;
  for (Lane i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
    Lane x = i;
    do {
      Lane left = x >> half_bits, right = x & mask;
#pragma unroll
      for (int round = 0; round < 8; ++round) {
        const Lane key = Lane(block.at[round / 2] >> (round % 2 * 32)), next = left ^ (mixed(right + key) & mask);
        left = right;
        right = next;
      }
      x = (left << half_bits) | right;
    } while (x >= n);
    y[i] = x;
  }
}
