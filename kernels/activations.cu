// Activations: what each computes from x, and its gradient from dy and what the op's rule keeps (x or y).
// Definitions, limits and subgradients are those of gpuprop/ops/activations.py. Members are the op's options. Literals are written
// A(...): a bare 0.5 would bring float64 arithmetic into a float32 kernel.
#include "elementwise.cuh"

#define MATHS template <typename A> __device__ __forceinline__ A
#define MEMBER __device__ __forceinline__ A

// Where saturating functions have reached their limit, to the last bit of a float64; keeps 0 * inf out.
#define EXP_VANISHES 1000
#define GAUSSIAN_VANISHES 40
#define SELU_SCALE 1.0507009873554805
#define SELU_LIMIT (1.0507009873554805 * 1.6732632423543772)
#define GELU_LINEAR 1.5957691216057308
#define GELU_CUBIC (1.5957691216057308 * 0.044715)

MATHS not_below(A x, A low) { return x < low ? low : x; }  // NaN stays NaN, as in NumPy's maximum
MATHS not_above(A x, A high) { return x > high ? high : x; }
MATHS between(A x, A low, A high) { return not_above(not_below(x, low), high); }

// What rounding a constant to A leaves out: a difference near 0 needs more digits than a float has.
#define REST(value) A((value) - double(A(value)))

// With u = |x|: low = exp(-u / 2), share = 1 / (1 + exp(-u)). Then logistic(-u) = low * low * share; a product that ends in
// `* low * low` is right where exp(-u) is too small for a normal number, and would be flushed to 0.
template <typename A> struct Logistic {
  A low, share;
  // rest: what must be added to u, and is lost in it. exp(u) is off by u times the rounding error of u.
  __device__ __forceinline__ explicit Logistic(A u, A rest = A(0)) {
    low = exp(u * A(-0.5));
    low -= low * (rest * A(0.5));
    share = A(1) / (A(1) + low * low);
  }
  __device__ __forceinline__ A below() const { return low * (low * share); }  // logistic(-u)
};
MATHS logistic(A x) {
  const Logistic<A> at(fabs(x));
  return x < A(0) ? at.below() : at.share;
}
MATHS log_one_plus_exp(A x) { return not_below(x, A(0)) + log1p(exp(-fabs(x))); }

// P(X <= -|x|) = half_tail * low * low and density(x) = 0.399 * low * low, for |x| <= GAUSSIAN_VANISHES.
template <typename A> struct Normal {
  A low, half_tail;
  __device__ __forceinline__ explicit Normal(A x) {
    const A square = x * x, rest = fma(x, x, -square);
    low = exp(square * A(-0.25));
    low -= low * (rest * A(0.25));
    half_tail = erfcx(fabs(x) * A(0.70710678118654752440)) * A(0.5);
  }
};

// --- Rectifiers: all but PRelu keep y -------------------------------------------------------------------------------

struct Relu {
  MATHS forward(A x) const { return not_below(x, A(0)); }
  MATHS backward(A dy, A y) const { return dy * A(y > A(0)); }
};

struct Relu6 {
  MATHS forward(A x) const { return between(x, A(0), A(6)); }
  MATHS backward(A dy, A y) const { return dy * A(y > A(0) && y < A(6)); }
};

template <typename A> struct LeakyRelu {
  A negative_slope;
  MEMBER forward(A x) const { return x > A(0) ? x : negative_slope * x; }
  MEMBER backward(A dy, A y) const { return y > A(0) ? dy : dy * negative_slope; }
};

template <typename A> struct PRelu {  // keeps x
  A learnt;
  MEMBER forward(A x) const { return not_below(x, A(0)) + learnt * not_above(x, A(0)); }
  MEMBER backward(A dy, A x) const { return x > A(0) ? dy : dy * learnt; }
  MEMBER to_learnt(A dy, A x) const { return dy * not_above(x, A(0)); }
};

template <typename A> struct Elu {
  A alpha;
  MEMBER forward(A x) const { return x > A(0) ? x : alpha * expm1(x); }
  MEMBER backward(A dy, A y) const { return dy * (y > A(0) ? A(1) : y + alpha); }
};

struct Selu {
  MATHS forward(A x) const { return x > A(0) ? A(SELU_SCALE) * x : A(SELU_LIMIT) * expm1(x); }
  MATHS backward(A dy, A y) const { return dy * (y > A(0) ? A(SELU_SCALE) : y + A(SELU_LIMIT) + REST(SELU_LIMIT)); }
};

template <typename A> struct Celu {
  A alpha;
  MEMBER forward(A x) const { return x > A(0) ? x : alpha * expm1(x / alpha); }
  MEMBER backward(A dy, A y) const { return dy * (y > A(0) ? A(1) : (y + alpha) / alpha); }
};

// --- Sigmoids -------------------------------------------------------------------------------------------------------

struct Sigmoid {  // keeps y
  MATHS forward(A x) const { return logistic(x); }
  MATHS backward(A dy, A y) const { return dy * (y * (A(1) - y)); }
};

struct Tanh {  // keeps y
  MATHS forward(A x) const { return tanh(x); }
  MATHS backward(A dy, A y) const { return dy * ((A(1) - y) * (A(1) + y)); }
};

struct LogSigmoid {  // keeps x
  MATHS forward(A x) const { return -log_one_plus_exp(-x); }
  MATHS backward(A dy, A x) const { return dy * logistic(-x); }
};

template <typename A> struct Softplus {  // keeps x
  A beta, threshold;
  MEMBER forward(A x) const {
    const A z = x * beta;
    if (z > threshold) return x;
    const Logistic<A> at(fabs(z), rest(x, z));
    return (not_below(z, A(0)) + log1p(at.low * at.low)) / beta;
  }
  MEMBER backward(A dy, A x) const {
    const A z = x * beta;
    if (z > threshold) return dy;
    const Logistic<A> at(fabs(z), rest(x, z));
    return z < A(0) ? dy * at.share * at.low * at.low : dy * at.share;
  }
  MEMBER rest(A x, A z) const {  // of |z|
    const A lost = fma(x, beta, -z);
    return fabs(z) < A(EXP_VANISHES) ? z < A(0) ? -lost : lost : A(0);
  }
};

struct Softsign {  // keeps x
  MATHS forward(A x) const {
    const A size = fabs(x);  // for sizes above 1, x / (1 + |x|) is divided through by |x|: no inf / inf
    return between(x, A(-1), A(1)) / (A(1) + not_above(size, A(1) / not_below(size, A(1))));
  }
  MATHS backward(A dy, A x) const {
    const A share = A(1) / (A(1) + fabs(x));
    return dy * share * share;
  }
};

// --- Smooth rectifiers: x times something between 0 and 1; all keep x -----------------------------------------------

struct Gelu {
  MATHS forward(A x) const {
    const A z = between(x, A(-GAUSSIAN_VANISHES), A(GAUSSIAN_VANISHES));
    const Normal<A> at(z);
    return z < A(0) ? z * at.half_tail * at.low * at.low : x * (A(1) - at.half_tail * at.low * at.low);
  }
  MATHS backward(A dy, A x) const {
    x = between(x, A(-GAUSSIAN_VANISHES), A(GAUSSIAN_VANISHES));
    const Normal<A> at(x);
    const A slope = x * A(0.39894228040143267794);
    if (x < A(0)) return dy * (at.half_tail + slope) * at.low * at.low;
    return dy * (A(1) + (slope - at.half_tail) * at.low * at.low);
  }
};

struct GeluTanh {  // (1 + tanh(u / 2)) / 2 = logistic(u), exact in the tail; u = x * (1.596 + 0.0714 x^2)
  MATHS forward(A x) const {
    const A z = between(x, A(-GAUSSIAN_VANISHES), A(GAUSSIAN_VANISHES));
    const Logistic<A> at = logistic_of_u(z);
    return z < A(0) ? z * at.share * at.low * at.low : x * at.share;
  }
  MATHS backward(A dy, A x) const {
    x = between(x, A(-GAUSSIAN_VANISHES), A(GAUSSIAN_VANISHES));
    const Logistic<A> at = logistic_of_u(x);
    const A slope = x * (A(GELU_LINEAR) + A(3 * GELU_CUBIC) * (x * x));
    if (x < A(0)) return dy * (at.share * (A(1) + slope * at.share)) * at.low * at.low;
    return dy * (at.share * (A(1) + slope * at.below()));
  }
  template <typename A> static __device__ __forceinline__ Logistic<A> logistic_of_u(A x) {
    const A square = x * x, cubic = A(GELU_CUBIC) * square, linear = A(GELU_LINEAR), sum = linear + cubic;
    A rest = fma(A(GELU_CUBIC), square, -cubic) + A(GELU_CUBIC) * fma(x, x, -square) + REST(GELU_CUBIC) * square;
    const A part = sum - linear;  // of two numbers' sum, what is lost: Knuth, The Art of Computer Programming, 4.2.2, theorem B
    rest += (linear - (sum - part)) + (cubic - part) + REST(GELU_LINEAR);
    const A size = fabs(x), u = size * sum;
    return Logistic<A>(u, fma(size, sum, -u) + size * rest);
  }
};

struct Silu {
  MATHS forward(A x) const {
    const A z = not_below(x, A(-EXP_VANISHES));
    const Logistic<A> at(fabs(z));
    return z < A(0) ? z * at.share * at.low * at.low : z * at.share;
  }
  MATHS backward(A dy, A x) const {
    x = between(x, A(-EXP_VANISHES), A(EXP_VANISHES));
    const Logistic<A> at(fabs(x));
    if (x < A(0)) return dy * (at.share * (A(1) + x * at.share)) * at.low * at.low;
    return dy * (at.share * (A(1) + x * at.below()));
  }
};

// tanh(log(1 + w)) = (w^2 + 2 w) / (w^2 + 2 w + 2), w = exp(x); for positive x with both divided by w^2.
struct Mish {
  MATHS forward(A x) const {
    const A z = not_below(x, A(-EXP_VANISHES)), low = exp(fabs(z) * A(-0.5)), w = low * low;
    if (z < A(0)) return z * ((w + A(2)) / (w * (w + A(2)) + A(2))) * low * low;
    return z * ((A(1) + A(2) * w) / (A(1) + A(2) * w * (A(1) + w)));
  }
  MATHS backward(A dy, A x) const {
    x = between(x, A(-EXP_VANISHES), A(EXP_VANISHES));
    const A low = exp(fabs(x) * A(-0.5)), w = low * low;
    if (x < A(0)) {
      const A share = A(1) / (w * (w + A(2)) + A(2));
      return dy * (share * ((w + A(2)) + x * (A(4) * (A(1) + w) * share))) * low * low;
    }
    const A share = A(1) / (A(1) + A(2) * w * (A(1) + w));
    return dy * (share * ((A(1) + A(2) * w) + x * (A(4) * w * w * (A(1) + w) * share)));
  }
};

// --- Piecewise linear approximations --------------------------------------------------------------------------------

template <typename A> struct Hardtanh {  // keeps y
  A min_val, max_val;
  MEMBER forward(A x) const { return between(x, min_val, max_val); }
  MEMBER backward(A dy, A y) const { return dy * A(y > min_val && y < max_val); }
};

struct Hardsigmoid {  // keeps y
  MATHS forward(A x) const { return between(x + A(3), A(0), A(6)) / A(6); }
  MATHS backward(A dy, A y) const { return dy * A(y > A(0) && y < A(1)) / A(6); }
};

struct Hardswish {  // keeps x
  MATHS forward(A x) const { return not_below(x, A(-3)) * (between(x + A(3), A(0), A(6)) / A(6)); }
  MATHS backward(A dy, A x) const { return dy * (x <= A(-3) ? A(0) : x < A(3) ? x / A(3) + A(0.5) : A(1)); }
};

#undef MATHS
#undef MEMBER
#undef EXP_VANISHES
#undef GAUSSIAN_VANISHES
#undef GELU_LINEAR
#undef GELU_CUBIC
#undef REST
#undef SELU_SCALE
#undef SELU_LIMIT
