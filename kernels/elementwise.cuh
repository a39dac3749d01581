// The loops of elementwise kernels. A functor F has
//   template <typename A> A forward(A x)
//   template <typename A> A backward(A dy, A kept)     kept: x or y, as the op's gradient rule names
// and its options as members. Rows: x is (rows, columns), bias (columns).
#pragma once
#include "bias.cuh"
#include "common.cuh"

// y = f(x); y may be x.
template <typename F, typename T, typename I> __device__ __forceinline__ void elementwise_forward(const T* x, T* y, I n, F f) {
  typedef typename Arithmetic<T>::type A;
  const int width = Pack<T>::size;
  const I stride = I(gridDim.x) * blockDim.x, first = I(blockIdx.x) * blockDim.x + threadIdx.x, packs = n / width;
  for (I i = first; i < packs; i += stride) {
    const Pack<T> p = load_pack(x + i * width);
    Pack<T> result;
#pragma unroll
    for (int k = 0; k < width; ++k) result.at[k] = narrow<T>(f.forward(widen<A>(p.at[k])));
    store_pack(y + i * width, result);
  }
  for (I i = packs * width + first; i < n; i += stride) y[i] = narrow<T>(f.forward(widen<A>(x[i])));
}

// dx = dy f'; dx may be dy.
template <typename F, typename T, typename I>
__device__ __forceinline__ void elementwise_backward(const T* dy, const T* kept, T* dx, I n, F f) {
  typedef typename Arithmetic<T>::type A;
  const int width = Pack<T>::size;
  const I stride = I(gridDim.x) * blockDim.x, first = I(blockIdx.x) * blockDim.x + threadIdx.x, packs = n / width;
  for (I i = first; i < packs; i += stride) {
    const Pack<T> p = load_pack(dy + i * width), q = load_pack(kept + i * width);
    Pack<T> result;
#pragma unroll
    for (int k = 0; k < width; ++k) result.at[k] = narrow<T>(f.backward(widen<A>(p.at[k]), widen<A>(q.at[k])));
    store_pack(dx + i * width, result);
  }
  for (I i = packs * width + first; i < n; i += stride) dx[i] = narrow<T>(f.backward(widen<A>(dy[i]), widen<A>(kept[i])));
}
