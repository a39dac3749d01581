// Activations: what each computes from x, and its gradient from dy and what the op's rule keeps (x or y).
// Definitions, limits and subgradients are those of gpuprop/ops/activations.py. Members are the op's options. Literals are written
// A(...): a bare 0.5 would bring float64 arithmetic into a float32 kernel.
#include "bias.cuh"
#include "elementwise.cuh"

#define MATHS template <typename A> __device__ __forceinline__ A
#define MEMBER __device__ __forceinline__ A

// Where saturating functions have reached their limit, to the last bit of a float64; keeps 0 * inf out.
#define EXP_VANISHES 1000
#define GAUSSIAN_VANISHES 40

MATHS not_below(A x, A low) { return x < low ? low : x; }  // NaN stays NaN, as in NumPy's maximum
MATHS not_above(A x, A high) { return x > high ? high : x; }
MATHS between(A x, A low, A high) { return not_above(not_below(x, low), high); }

MATHS logistic(A x) {  // exponentiates negative numbers only
  const A e = exp(-fabs(x)), s = A(1) / (A(1) + e);
  return x < A(0) ? e * s : s;
}
MATHS log_one_plus_exp(A x) { return not_below(x, A(0)) + log1p(exp(-fabs(x))); }
MATHS normal_below(A x) { return erfc(x * A(-0.70710678118654752440)) * A(0.5); }
MATHS normal_density(A x) { return exp(x * x * A(-0.5)) * A(0.39894228040143267794); }

// --- Rectifiers: all keep y -----------------------------------------------------------------------------------------

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

template <typename A> struct Elu {
  A alpha;
  MEMBER forward(A x) const { return x > A(0) ? x : alpha * expm1(x); }
  MEMBER backward(A dy, A y) const { return dy * (y > A(0) ? A(1) : y + alpha); }
};

struct Selu {
  MATHS forward(A x) const { return A(1.0507009873554805) * (x > A(0) ? x : A(1.6732632423543772) * expm1(x)); }
  MATHS backward(A dy, A y) const {
    return dy * (y > A(0) ? A(1.0507009873554805) : y + A(1.0507009873554805 * 1.6732632423543772));
  }
};

template <typename A> struct Celu {
  A alpha;
  MEMBER forward(A x) const { return x > A(0) ? x : alpha * expm1(x / alpha); }
  MEMBER backward(A dy, A y) const { return dy * (y > A(0) ? A(1) : A(1) + y / alpha); }
};

// --- Sigmoids -------------------------------------------------------------------------------------------------------

struct Sigmoid {  // keeps y
  MATHS forward(A x) const { return logistic(x); }
  MATHS backward(A dy, A y) const { return dy * (y * (A(1) - y)); }
};

struct Tanh {  // keeps y
  MATHS forward(A x) const { return tanh(x); }
  MATHS backward(A dy, A y) const { return dy * (A(1) - y * y); }
};

struct LogSigmoid {  // keeps x
  MATHS forward(A x) const { return -log_one_plus_exp(-x); }
  MATHS backward(A dy, A x) const { return dy * logistic(-x); }
};

template <typename A> struct Softplus {  // keeps x
  A beta, threshold;
  MEMBER forward(A x) const {
    const A z = x * beta;
    return z > threshold ? x : log_one_plus_exp(z) / beta;
  }
  MEMBER backward(A dy, A x) const {
    const A z = x * beta;
    return dy * (z > threshold ? A(1) : logistic(z));
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
  MATHS forward(A x) const { return not_below(x, A(-GAUSSIAN_VANISHES)) * normal_below(x); }
  MATHS backward(A dy, A x) const {
    x = between(x, A(-GAUSSIAN_VANISHES), A(GAUSSIAN_VANISHES));
    return dy * (normal_below(x) + x * normal_density(x));
  }
};

struct GeluTanh {  // (1 + tanh(u / 2)) / 2 = logistic(u), exact in the tail
  MATHS forward(A x) const {
    x = not_below(x, A(-GAUSSIAN_VANISHES));
    const A z = not_above(x, A(GAUSSIAN_VANISHES));
    return x * logistic(A(1.5957691216057308) * z * (A(1) + A(0.044715) * (z * z)));
  }
  MATHS backward(A dy, A x) const {
    x = between(x, A(-GAUSSIAN_VANISHES), A(GAUSSIAN_VANISHES));
    const A square = x * x, s = logistic(A(1.5957691216057308) * x * (A(1) + A(0.044715) * square));
    return dy * (s + x * (s * (A(1) - s)) * (A(1.5957691216057308) * (A(1) + A(3 * 0.044715) * square)));
  }
};

struct Silu {
  MATHS forward(A x) const { return not_below(x, A(-EXP_VANISHES)) * logistic(x); }
  MATHS backward(A dy, A x) const {
    x = between(x, A(-EXP_VANISHES), A(EXP_VANISHES));
    const A s = logistic(x);
    return dy * (s * (A(1) + x * (A(1) - s)));
  }
};

struct Mish {
  MATHS forward(A x) const { return not_below(x, A(-EXP_VANISHES)) * tanh(log_one_plus_exp(x)); }
  MATHS backward(A dy, A x) const {
    x = between(x, A(-EXP_VANISHES), A(EXP_VANISHES));
    const A t = tanh(log_one_plus_exp(x));
    return dy * (t + x * (A(1) - t * t) * logistic(x));
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
