// How loops get at functors: one for all elements, or one for each column with what is learnt there. For loops `S` is one of these:
//   of<W>(column)                  what has `F at(k)`, the functors of W neighbouring columns from this one on
//   learns                         whether functors have a member `learnt`, and `A to_learnt(A dy, A x)`: a summand of its gradient
//   finish(sums), (sums, stripe)   takes the sums of these summands, by element of a pack
#pragma once
#include "column_sums.cuh"

template <typename F> struct Fixed {
  static const bool learns = false;
  F f;
  __device__ __forceinline__ F at(int) const { return f; }
  template <int W, typename I> __device__ __forceinline__ Fixed of(I) const { return *this; }
};

// one: the same number for all columns, which f has already.
template <typename F, typename T, bool one> struct Learnt {
  typedef typename Arithmetic<T>::type A;
  static const bool learns = true;
  F f;
  const T* learnt;
  // For the gradient, null where nobody wants it; tickets: behind those that the loop itself uses.
  T* gradient;
  A* partials;
  unsigned int* tickets;
  int accumulate;

  template <int W> struct Some {
    F f;
    Part<T, one ? 1 : W> learnt;  // as narrow as they come: registers are few
    __device__ __forceinline__ F at(int k) const {
      F own = f;
      if constexpr (!one) own.learnt = widen<A>(learnt.at[k]);
      return own;
    }
  };
  template <int W, typename I> __device__ __forceinline__ Some<W> of(I column) const {
    Some<W> some;
    some.f = f;
    if constexpr (!one) some.learnt = load_part<W>(learnt + column);
    return some;
  }

  template <int W> __device__ __forceinline__ void finish(const A (&sums)[W]) const {
    static_assert(one, "a sum over everything");
    if (!gradient) return;
    __shared__ A room[32];
    A sum = A(0);
#pragma unroll
    for (int k = 0; k < W; ++k) sum += sums[k];
    if (grid_sum(sum, partials, tickets + gridDim.x, room) && threadIdx.x == 0) *gradient = narrow<T>(accumulate ? widen<A>(*gradient) + sum : sum);
  }
  template <int W, typename I> __device__ __forceinline__ void finish(const A (&sums)[W], const ColumnStripe<I, W>& stripe) const {
    if constexpr (one) {
      finish(sums);
    } else if (gradient) {
      __syncthreads();  // shared memory may still be read for other sums
      sum_columns(stripe, sums, partials, tickets + gridDim.x, gradient, accumulate);
    }
  }
};

// A functor whose gradient names y, for kernels that have x: dropout leaves no y.
template <typename F, typename T> struct FromX : F {
  template <typename A> __device__ __forceinline__ A backward(A dy, A x) const { return F::backward(dy, as_stored<T>(F::forward(x))); }
};
