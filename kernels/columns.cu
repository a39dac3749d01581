// What is normalised per column (the features of an MLP). Definitions and limits are those of gpuprop/ops.
#include "columns.cuh"

// --- Batch normalisation --------------------------------------------------------------------------------------------

// Of each column mean and variance, and for the gradient mean and 1/std in A.
//
// Numbers are taken relative to the column's first one: then a mean that is large beside the deviation costs no digits. Where that number
// happens to lie far out, Chan's formula keeps the variance right.
template <int W, typename T, typename I>
__device__ __forceinline__ void batch_statistics(const T* x, T* mean, T* variance, typename Arithmetic<T>::type* means,
                                                 typename Arithmetic<T>::type* scales, typename Arithmetic<T>::type* partials,
                                                 unsigned int* tickets, I rows, I columns, int height, int lanes, typename Arithmetic<T>::type eps) {
  typedef typename Arithmetic<T>::type A;
  const int ahead = W * sizeof(A) > 16 || sizeof(A) > 4 ? 2 : 4;  // rows that a thread reads at a time: as registers allow
  const Stripe<T, I, W> stripe(rows, columns, height, lanes);
  __shared__ A origin[32 * W];
  if (threadIdx.x < lanes) {
    A top[W];
    stripe.numbers(x, top);
#pragma unroll
    for (int k = 0; k < W; ++k) origin[threadIdx.x * W + k] = top[k] - top[k] == A(0) ? top[k] : A(0);  // infinities and NaN come by the sum
  }
  __syncthreads();
  const A* shift = origin + threadIdx.x % lanes * W;
  A own[2][W], count = A(0);
#pragma unroll
  for (int k = 0; k < W; ++k) own[0][k] = own[1][k] = A(0);
  if (stripe.works()) {
    for (int row = stripe.group; row < stripe.own; row += ahead * stripe.groups) {
      Part<T, W> some[ahead];
      int here = 0;
#pragma unroll
      for (int j = 0; j < ahead; ++j)
        if (row + j * stripe.groups < stripe.own) {
          some[j] = load_part<W>(x + stripe.at(row + j * stripe.groups));
          ++here;
        }
      // As Moments::add, but what the columns have in common is worked out once.
      const A share = A(1) / A(here), so_far = count > A(0) ? A(1) / count : A(0), weight = count * A(here) / (count + A(here));
#pragma unroll
      for (int k = 0; k < W; ++k) {
        A sum = A(0), square = A(0);
#pragma unroll
        for (int j = 0; j < ahead; ++j)
          if (j < here) sum += widen<A>(some[j].at[k]) - shift[k];
#pragma unroll
        for (int j = 0; j < ahead; ++j)
          if (j < here) {
            const A distance = widen<A>(some[j].at[k]) - shift[k] - sum * share;
            square += distance * distance;
          }
        const A apart = sum * share - own[0][k] * so_far;
        own[1][k] += square + apart * apart * weight;
        own[0][k] += sum;
      }
      count += A(here);
    }
  }
  stripe.template total<Moments<A>>(own, partials, tickets, height, [&](I column, const Moments<A>& m) {
    const A of_column = origin[column % (lanes * W)] + m.at[0] / A(rows), spread = m.at[1] / A(rows);
    mean[column] = narrow<T>(of_column);
    variance[column] = narrow<T>(spread);
    means[column] = of_column;
    scales[column] = A(1) / sqrt(spread + eps);
  });
}

// y = (x - mean) * scale * weight + bias. Weight and bias may be null. f makes the scale of what stands for it.
template <int W, typename T, typename I, typename S, typename F>
__device__ __forceinline__ void standardize(const T* x, const S* mean, const S* spread, const T* weight, const T* bias, T* y, I rows, I columns,
                                            int height, int lanes, F f) {
  typedef typename Arithmetic<T>::type A;
  const Stripe<T, I, W> stripe(rows, columns, height, lanes);
  A centre[W], factor[W], slope[W], level[W];
  stripe.numbers(mean, centre);
  stripe.numbers(spread, factor, A(1));
  stripe.numbers(weight, slope, A(1));
  stripe.numbers(bias, level);
#pragma unroll
  for (int k = 0; k < W; ++k) factor[k] = f(factor[k]) * slope[k];
  stripe.each([&](I at) {
    const Part<T, W> some = load_part<W>(x + at);
    A result[W];
#pragma unroll
    for (int k = 0; k < W; ++k) result[k] = (widen<A>(some.at[k]) - centre[k]) * factor[k] + level[k];
    store_part(y + at, result);
  });
}
struct Scale {  // is what was kept
  template <typename A> __device__ __forceinline__ A operator()(A scale) const { return scale; }
};
template <typename A> struct OfVariance {
  A eps;
  __device__ __forceinline__ A operator()(A variance) const { return A(1) / sqrt(variance + eps); }
};

// dweight = the column sums of dy * s, s = (x - mean) * scale, and dbias those of dy (null: nobody wants them); and dx as a linear function
// of dy and x - mean, `slopes` (3, columns): dx = slopes[0] * dy + slopes[1] * (x - mean) + slopes[2], which is
// scale * (d - mean(d) - s * mean(d * s)) + (dmean + 2 * (x - mean) * dvariance) / rows, d = dy * weight.
template <int W, typename T, typename I>
__device__ __forceinline__ void batch_gradient_sums(const T* dy, const T* dmean, const T* dvariance, const T* x, const T* weight,
                                                    const typename Arithmetic<T>::type* means, const typename Arithmetic<T>::type* scales,
                                                    typename Arithmetic<T>::type* slopes, T* dweight, T* dbias,
                                                    typename Arithmetic<T>::type* partials, unsigned int* tickets, I rows, I columns, int height, int lanes,
                                                    int add_to_dweight, int add_to_dbias) {
  typedef typename Arithmetic<T>::type A;
  const Stripe<T, I, W> stripe(rows, columns, height, lanes);
  A centre[W], own[2][W];
  stripe.numbers(means, centre);
#pragma unroll
  for (int k = 0; k < W; ++k) own[0][k] = own[1][k] = A(0);
  stripe.each([&](I at) {
    const Part<T, W> d = load_part<W>(dy + at), some = load_part<W>(x + at);
#pragma unroll
    for (int k = 0; k < W; ++k) {
      own[0][k] += widen<A>(d.at[k]) * (widen<A>(some.at[k]) - centre[k]);
      own[1][k] += widen<A>(d.at[k]);
    }
  });
  stripe.template total<Sums<A, 2>>(own, partials, tickets, height, [&](I c, const Sums<A, 2>& sum) {
    const A along = sum.at[0] * scales[c], factor = weight ? scales[c] * widen<A>(weight[c]) : scales[c];
    slopes[c] = factor;
    slopes[columns + c] = (A(2) * widen<A>(dvariance[c]) - factor * along * scales[c]) / A(rows);
    slopes[2 * columns + c] = (widen<A>(dmean[c]) - factor * sum.at[1]) / A(rows);
    if (dweight) dweight[c] = narrow<T>(add_to_dweight ? widen<A>(dweight[c]) + along : along);
    if (dbias) dbias[c] = narrow<T>(add_to_dbias ? widen<A>(dbias[c]) + sum.at[1] : sum.at[1]);
  });
}

template <int W, typename T, typename I>
__device__ __forceinline__ void batch_gradient(const T* dy, const T* x, const typename Arithmetic<T>::type* means,
                                               const typename Arithmetic<T>::type* slopes, T* dx, I rows, I columns, int height, int lanes) {
  typedef typename Arithmetic<T>::type A;
  const Stripe<T, I, W> stripe(rows, columns, height, lanes);
  A centre[W], of_dy[W], of_x[W], level[W];
  stripe.numbers(means, centre);
  stripe.numbers(slopes, of_dy);
  stripe.numbers(slopes + columns, of_x);
  stripe.numbers(slopes + 2 * columns, level);
  stripe.each([&](I at) {
    const Part<T, W> d = load_part<W>(dy + at), some = load_part<W>(x + at);
    A result[W];
#pragma unroll
    for (int k = 0; k < W; ++k) result[k] = widen<A>(d.at[k]) * of_dy[k] + (widen<A>(some.at[k]) - centre[k]) * of_x[k] + level[k];
    store_part(dx + at, result);
  });
}

// Running averages: x = a * x + b * y.
template <typename T, typename I>
__device__ __forceinline__ void blend(T* x, const T* y, I n, typename Arithmetic<T>::type a, typename Arithmetic<T>::type b) {
  typedef typename Arithmetic<T>::type A;
  for (I i = I(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += I(gridDim.x) * blockDim.x)
    x[i] = narrow<T>(a * widen<A>(x[i]) + b * widen<A>(y[i]));
}
