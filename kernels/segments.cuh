// Flat memory in segments: one launch goes over all of them, however many there are. A table on the device says where they lie.
#pragma once
#include "common.cuh"

// Arrays of one size that belong together, by their addresses (0: not kept). Its layout is that of SEGMENT in gpuprop/cuda/segments.py.
struct Segment {
  unsigned long long parameter, gradient, state[3], average;
  long long size;  // in elements
  int first;       // number of its first chunk
  int options;     // which row of the optimizer's options is its
  int packs;       // whether all arrays start at a multiple of 16 bytes
};

// A table of segments. `origin` is a null pointer: what is reached from an argument of the kernel is in global memory, which the compiler
// cannot know of a pointer that it loads, and without which it takes slower accesses.
struct Segments {
  char* origin;
  const Segment* at;
  int count, chunks;

  template <typename T> __device__ __forceinline__ T* array(unsigned long long address) const {
    return reinterpret_cast<T*>(origin + address);
  }
};

// A chunk is what a block takes at a time: four packs per thread and array. No chunk reaches over two segments.
template <typename T> struct Chunk { static const int length = 256 * 4 * Pack<T>::size; };

// What one access moves: a pack, or a single element.
template <typename T, int W> struct Few {
  alignas(sizeof(T) * W) T at[W];
  __device__ __forceinline__ Few() : at() {}  // zeros
  __device__ __forceinline__ void load(const T* p) { *this = *reinterpret_cast<const Few*>(p); }
  __device__ __forceinline__ void store(T* p) const { *reinterpret_cast<Few*>(p) = *this; }
};

// Calls body.chunk(segment, its number, where in it the chunk begins) when the block turns to a chunk, then body.template few<W>(place in
// the chunk) for what each thread has of it. One thread looks where the chunk lies: if all did, that would be a tenth of the traffic.
template <typename T, typename Body> __device__ __forceinline__ void over_segments(const Segments& segments, Body& body) {
  const int width = Pack<T>::size, length = Chunk<T>::length;
  __shared__ int segment, n, packs;
  __shared__ long long begin;
  for (int c = blockIdx.x; c < segments.chunks; c += gridDim.x) {
    __syncthreads();  // until no thread is at the chunk before
    if (threadIdx.x == 0) {
      int low = 0, high = segments.count - 1;  // the last one that begins at or before this chunk; empty ones begin where the next does
      while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (segments.at[middle].first <= c) low = middle;
        else high = middle - 1;
      }
      const Segment& s = segments.at[low];
      segment = low;
      begin = (long long)(c - s.first) * length;
      n = s.size - begin < length ? int(s.size - begin) : length;
      packs = s.packs ? n / width : 0;
    }
    __syncthreads();
    body.chunk(segments.at[segment], segment, begin);
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
