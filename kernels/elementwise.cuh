// The loops of elementwise kernels. A functor F has
//   template <typename A> A forward(A x)
//   template <typename A> A backward(A dy, A kept)     kept: x or y, as the op's gradient rule names
// and its options as members; one that learns has its number before them (functors.cuh).
#pragma once
#include "bias.cuh"
#include "common.cuh"

// y = f(x); y may be x.
template <typename S, typename T, typename I> __device__ __forceinline__ void elementwise_forward(const T* x, T* y, I n, S functors) {
  typedef typename Arithmetic<T>::type A;
  const int width = Pack<T>::size;
  const I stride = I(gridDim.x) * blockDim.x, first = I(blockIdx.x) * blockDim.x + threadIdx.x, packs = n / width;
  const auto f = functors.template of<width>(I(0));
  for (I i = first; i < packs; i += stride) {
    const Pack<T> p = load_pack(x + i * width);
    Pack<T> result;
#pragma unroll
    for (int k = 0; k < width; ++k) result.at[k] = narrow<T>(f.at(k).forward(widen<A>(p.at[k])));
    store_pack(y + i * width, result);
  }
  for (I i = packs * width + first; i < n; i += stride) y[i] = narrow<T>(f.at(0).forward(widen<A>(x[i])));
}

// dx = dy f'; dx may be dy, and where functors learn null: nobody wants it.
template <typename S, typename T, typename I>
__device__ __forceinline__ void elementwise_backward(const T* dy, const T* kept, T* dx, I n, S functors) {
  typedef typename Arithmetic<T>::type A;
  const int width = Pack<T>::size;
  const I stride = I(gridDim.x) * blockDim.x, first = I(blockIdx.x) * blockDim.x + threadIdx.x, packs = n / width;
  const auto f = functors.template of<width>(I(0));
  A learnt[width] = {};
  const auto one = [&](A d, A q, int k) {
    if constexpr (S::learns) learnt[k] += f.at(k).to_learnt(d, q);
    return narrow<T>(f.at(k).backward(d, q));
  };
  for (I i = first; i < packs; i += stride) {
    const Pack<T> p = load_pack(dy + i * width), q = load_pack(kept + i * width);
    Pack<T> result;
#pragma unroll
    for (int k = 0; k < width; ++k) result.at[k] = one(widen<A>(p.at[k]), widen<A>(q.at[k]), k);
    if (!S::learns || dx) store_pack(dx + i * width, result);
  }
  for (I i = packs * width + first; i < n; i += stride) {
    const T result = one(widen<A>(dy[i]), widen<A>(kept[i]), 0);
    if (!S::learns || dx) dx[i] = result;
  }
  if constexpr (S::learns) functors.finish(learnt);
}
