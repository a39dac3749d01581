// Flat memory in segments: one launch goes over all of them, however many there are. A table on the device says where they lie.
#pragma once
#include "common.cuh"

// Arrays of one size that belong together. Its layout is that of SEGMENT in gpuprop/cuda/segments.py.
template <typename T> struct Segment {
  T* parameter;
  T* gradient;
  T* state[3];  // null: not kept
  T* average;   // null: not kept
  long long size;  // in elements
  int first;       // number of its first chunk
  int options;     // which row of the optimizer's options is its
  int packs;       // whether all arrays start at a multiple of 16 bytes
};

// A chunk is what a block takes at a time: four packs per thread and array. No chunk reaches over two segments.
template <typename T> struct Chunk { static const int length = 256 * 4 * Pack<T>::size; };

// What one access moves: a pack, or a single element. It stays in one piece until an element is asked for; as an array of elements the
// compiler would take accesses apart, and use twice the registers for 16-bit types.
template <int bytes> struct Piece;
template <> struct Piece<2> { typedef unsigned short type; };
template <> struct Piece<4> { typedef unsigned int type; };
template <> struct Piece<8> { typedef unsigned long long type; };
template <> struct Piece<16> { typedef uint4 type; };

template <typename T, int W> struct Few {
  typedef typename Piece<sizeof(T) * W>::type Whole;
  union {
    Whole whole;
    T at[W];
  };
  __device__ __forceinline__ Few() : whole() {}  // zero
  __device__ __forceinline__ explicit Few(const T* p) : whole(__ldcg(reinterpret_cast<const Whole*>(p))) {}
  __device__ __forceinline__ void store(T* p) const { __stcg(reinterpret_cast<Whole*>(p), whole); }
};

// Calls body.chunk(segment, its number, where in it the chunk begins) when the block turns to a chunk, then body.template few<W>(place in
// the chunk) for what each thread has of it.
template <typename T, typename Body>
__device__ __forceinline__ void over_segments(const Segment<T>* segments, int count, int chunks, Body& body) {
  const int width = Pack<T>::size, length = Chunk<T>::length;
  for (int c = blockIdx.x; c < chunks; c += gridDim.x) {
    int low = 0, high = count - 1;  // the last segment that begins at or before this chunk; empty ones begin where the next does
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (segments[middle].first <= c) low = middle;
      else high = middle - 1;
    }
    const Segment<T>& s = segments[low];
    const long long begin = (long long)(c - s.first) * length, rest = s.size - begin;
    const int n = rest < length ? int(rest) : length, packs = s.packs ? n / width : 0;
    body.chunk(s, low, begin);
#pragma unroll 1
    for (int i = threadIdx.x; i < packs; i += blockDim.x) body.template few<width>(i * width);
#pragma unroll 1
    for (int i = packs * width + threadIdx.x; i < n; i += blockDim.x) body.template few<1>(i);
  }
}

// What travels from the host as arguments of a launch: no copy, so nothing waits and nothing has to stay where it was on the host.
struct Words {
  unsigned int at[960];
};
__device__ __forceinline__ void receive(const Words& sent, unsigned int* to, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) to[i] = sent.at[i];
}
