// The Euclidean norm of all gradients as one vector, and what clips them to it.
#include "segments.cuh"

// What gradients of this norm are multiplied by so that it is at most max_norm; NaN stays NaN.
template <typename A> __device__ __forceinline__ A clipping_factor(A norm, A max_norm) {
  const A factor = max_norm / (norm + A(1e-6));
  return factor > A(1) ? A(1) : factor;
}

template <typename T> struct SumOfSquares {
  typedef typename Arithmetic<T>::type A;
  const Segments& segments;
  A sum;
  const T* gradient;
  __device__ void chunk(const Segment& s, int, long long begin) { gradient = segments.array<T>(s.gradient) + begin; }
  template <int W> __device__ __forceinline__ void few(int at) {
    Few<T, W> g;
    g.load(gradient + at);
#pragma unroll
    for (int k = 0; k < W; ++k) sum += widen<A>(g.at[k]) * widen<A>(g.at[k]);
  }
};

// norm = sqrt(sum of g^2). `partials` holds one value per block; the last block adds them up, in their order.
template <typename T, typename A>
__device__ __forceinline__ void norm_of(const Segments& segments, A* partials, A* norm, unsigned int* ticket) {
  __shared__ A room[32];
  SumOfSquares<T> squares = {segments, A(0), nullptr};
  over_segments<T>(segments, squares);
  if (grid_sum(squares.sum, partials, ticket, room) && threadIdx.x == 0) *norm = sqrt(squares.sum);
}

template <typename T> struct Clip {
  typedef typename Arithmetic<T>::type A;
  const Segments& segments;
  A factor;
  T* gradient;
  __device__ void chunk(const Segment& s, int, long long begin) { gradient = segments.array<T>(s.gradient) + begin; }
  template <int W> __device__ __forceinline__ void few(int at) {
    Few<T, W> g;
    g.load(gradient + at);
#pragma unroll
    for (int k = 0; k < W; ++k) g.at[k] = narrow<T>(widen<A>(g.at[k]) * factor);
    g.store(gradient + at);
  }
};

template <typename T, typename A>
__device__ __forceinline__ void clip_to(const Segments& segments, const A* norm, A max_norm) {
  Clip<T> clip = {segments, clipping_factor(*norm, max_norm), nullptr};
  over_segments<T>(segments, clip);
}
