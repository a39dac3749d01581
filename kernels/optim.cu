// Optimizers: one launch makes a step of all segments. A rule R has
//   states, always                       how many it keeps; how many of them, the first ones, whatever the options
//   Options o                            what the user sets, in the order in which the optimizer's `scalars` gives it
//   void begin(A t)                      works out what follows from the options for step t, which counts from 1
//   A step(A p, A g, A* state)           the new parameter; changes the state
// Formulas are those of gpuprop/optim. What changes from step to step is in device memory (step counts, options), so that a recorded
// launch can be replayed.
#include "norm.cu"

// 1 - beta^t. Computed as such it would lose most digits in float32: beta^t is near 1.
template <typename A> __device__ __forceinline__ A correction(A log_beta, A t) { return -expm1(t * log_beta); }

template <typename A> __device__ __forceinline__ A at_least(A x, A low) { return x < low ? low : x; }

template <typename A> struct Sgd {  // state: momentum
  static const int states = 1, always = 0;
  struct Options {
    A lr, momentum, keep, nesterov;
  } o;
  bool first;
  __device__ void begin(A t) { first = t == A(1); }
  __device__ __forceinline__ A step(A p, A g, A* state) const volatile {
    if (o.momentum != A(0)) {
      const A b = state[0] = first ? g : state[0] * o.momentum + g * o.keep;
      g = o.nesterov != A(0) ? g + b * o.momentum : b;
    }
    return p - g * o.lr;
  }
};

template <typename A> struct Adam {  // state: first moment, second moment, largest second moment (where it is not kept: 0 on entry)
  static const int states = 3, always = 2;
  struct Options {
    A lr, beta1, rest1, log1, beta2, rest2, log2, eps, least;
  } o;
  A rate, eps;
  // lr m' / (sqrt(v') + eps) = rate m / (sqrt(v) + eps root): one division per element, not three.
  __device__ void begin(A t) {
    const A root = sqrt(correction(o.log2, t));
    rate = o.lr / correction(o.log1, t) * root;
    eps = at_least(o.eps * root, o.least);
  }
  __device__ __forceinline__ A step(A p, A g, A* state) const volatile {
    const A m = state[0] = state[0] * o.beta1 + g * o.rest1;
    const A v = state[1] = state[1] * o.beta2 + g * g * o.rest2;
    const A largest = state[2] = Max()(v, state[2]);
    return p - m / (sqrt(largest) + eps) * rate;
  }
};

template <typename A> struct RmsProp {  // state: mean of squares, mean, momentum
  static const int states = 3, always = 1;
  struct Options {
    A lr, alpha, rest, eps, momentum, centered;
  } o;
  __device__ void begin(A) {}
  __device__ __forceinline__ A step(A p, A g, A* state) const volatile {
    A v = state[0] = state[0] * o.alpha + g * g * o.rest;
    if (o.centered != A(0)) {
      const A a = state[1] = state[1] * o.alpha + g * o.rest;
      v = at_least(v - a * a, A(0));  // a variance; rounding may take it below 0, whose root is no number
    }
    g = g / (sqrt(v) + o.eps);
    if (o.momentum != A(0)) g = state[2] = state[2] * o.momentum + g;
    return p - g * o.lr;
  }
};

template <typename A> struct Adagrad {  // state: sum of squares
  static const int states = 1, always = 1;
  struct Options {
    A lr, lr_decay, eps;
  } o;
  A rate;
  __device__ void begin(A t) { rate = o.lr / (A(1) + (t - A(1)) * o.lr_decay); }
  __device__ __forceinline__ A step(A p, A g, A* state) const volatile {
    const A sum = state[0] = state[0] + g * g;
    return p - g / (sqrt(sum) + o.eps) * rate;
  }
};

// The options of a group of parameters: the rule's, then those of every optimizer.
template <typename R, typename A> struct Row {
  typename R::Options rule;
  A sign;                   // -1 to maximize
  A weight_decay;           // into the gradient
  A shrink;                 // of the parameter itself
  A average_keep, average_rest;
  A max_norm;
};

// What holds for all elements of a chunk. In shared memory, because in registers it would leave too few for the arrays.
template <typename R, typename A> struct Current {
  Segment segment;  // its arrays, from the chunk on
  alignas(16) Row<R, A> row;
  alignas(16) R rule;
  A factor;  // of the gradient
};

// Copies to shared memory, a word per thread: one thread alone would need all its registers.
template <typename S> __device__ __forceinline__ void together(S& to, const S& from) {
  for (int i = threadIdx.x; i < sizeof(S) / 4; i += blockDim.x)
    reinterpret_cast<unsigned int*>(&to)[i] = reinterpret_cast<const unsigned int*>(&from)[i];
}

template <typename R, typename T> struct Update {
  typedef typename Arithmetic<T>::type A;
  const Segments& segments;
  const Row<R, A>* rows;
  const unsigned int* steps;
  const A *norm, *scale;
  Current<R, A>* current;

  __device__ __forceinline__ void chunk(const Segment& s, int number, long long begin) {
    Current<R, A>& now = *current;
    together(now.segment, s);
    together(now.row, rows[s.options]);
    __syncthreads();
    if (threadIdx.x == 0) {
      const unsigned long long bytes = begin * sizeof(T);
      now.segment.parameter += bytes;
      now.segment.gradient += bytes;
      for (int i = 0; i < R::states; ++i)
        if (now.segment.state[i]) now.segment.state[i] += bytes;
      if (now.segment.average) now.segment.average += bytes;
      now.rule.o = now.row.rule;
      now.rule.begin(A(steps[number] + 1));
      const A given = scale ? *scale : A(1);
      now.factor = (norm ? clipping_factor(*norm * fabs(given), now.row.max_norm) : A(1)) * given * now.row.sign;
    }
    __syncthreads();
  }

  template <int W> __device__ __forceinline__ void few(int at) {
    const volatile Current<R, A>& now = *current;  // volatile: read again where it is needed, rather than kept in registers
    const volatile Segment& s = now.segment;
    const volatile Row<R, A>& row = now.row;
    const volatile R& rule = now.rule;
    Few<T, W> p, g, state[R::states];
    p.load(segments.array<T>(s.parameter) + at);
    g.load(segments.array<T>(s.gradient) + at);
#pragma unroll
    for (int i = 0; i < R::states; ++i)
      if (i < R::always || s.state[i]) state[i].load(segments.array<T>(s.state[i]) + at);
#pragma unroll
    for (int k = 0; k < W; ++k) {
      A x = widen<A>(p.at[k]), d = widen<A>(g.at[k]) * now.factor, kept[R::states];
#pragma unroll
      for (int i = 0; i < R::states; ++i) kept[i] = widen<A>(state[i].at[k]);
      if (row.weight_decay != A(0)) d += x * row.weight_decay;  // 0 times an infinite parameter would be no number
      p.at[k] = narrow<T>(rule.step(x * row.shrink, d, kept));
#pragma unroll
      for (int i = 0; i < R::states; ++i) state[i].at[k] = narrow<T>(kept[i]);
    }
    p.store(segments.array<T>(s.parameter) + at);
#pragma unroll
    for (int i = 0; i < R::states; ++i)
      if (i < R::always || s.state[i]) state[i].store(segments.array<T>(s.state[i]) + at);
    if (!s.average) return;
    Few<T, W> average;
    average.load(segments.array<T>(s.average) + at);
#pragma unroll
    for (int k = 0; k < W; ++k)
      average.at[k] = narrow<T>(widen<A>(average.at[k]) * row.average_keep + widen<A>(p.at[k]) * row.average_rest);
    average.store(segments.array<T>(s.average) + at);
  }
};

// counts: the ticket, then the steps that each segment has made, which the last block advances. norm: of all gradients, to clip them;
// scale: what gradients are multiplied by; skip: not 0 where no step is to be made. Each of the three may be null.
template <typename R, typename T, typename A>
__device__ __forceinline__ void optimizer_step(const Segments& segments, const Row<R, A>* rows, unsigned int* counts, const A* norm,
                                               const A* scale, const A* skip) {
  if (skip && *skip != A(0)) return;
  __shared__ Current<R, A> current;
  Update<R, T> update = {segments, rows, counts + 1, norm, scale, &current};
  over_segments<T>(segments, update);
  if (last_block(counts, gridDim.x))
    for (int i = threadIdx.x; i < segments.count; i += blockDim.x) counts[1 + i] += 1;
}
