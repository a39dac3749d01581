"""One module per activation and per loss. Each is made from its function: its options, their order and their defaults are the op's."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from typing import Any

from .._op import Op
from .._tensor import asarray, full
from ..ops.fused import fusible
from . import functional as F
from .module import Module
from .parameter import Parameter

# Options and inputs whose names differ in PyTorch.
_NAMES = {"axis": "dim"}


class FunctionModule(Module):
    """A module that hands its inputs to a function, with the options that it was made with."""

    function: Any
    passed: tuple[str, ...] = ()  # the attributes that the function gets by name

    def forward(self, *inputs: Any) -> Any:
        if not self.passed:
            return self.function(*inputs)
        return self.function(*inputs, **{name: getattr(self, name) for name in self.passed})


class Activation(FunctionModule):
    """The base of the activations; their repr shows all options."""

    learns = ""  # the parameter that its function takes after x

    @property
    def learnt(self) -> Parameter | None:
        return getattr(self, self.learns) if self.learns else None

    def forward(self, input: Any) -> Any:
        return super().forward(input, self.learnt) if self.learns else super().forward(input)

    def extra_repr(self) -> str:
        shown = [*self.passed, "inplace"] if getattr(self, "inplace", False) else self.passed
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)


def fusion_with(module: Module) -> tuple[dict[str, Any], Parameter | None] | None:
    """For a Linear before this module, the options of `linear_activation` and what is learnt; None if the two are not one op."""
    kind: Any = type(module)
    try:
        fusion = _FUSIONS[kind]
    except KeyError:
        plain = issubclass(kind, Activation) and kind.forward is Activation.forward and isinstance(kind.function, Op)
        known = plain and fusible(kind.function.name) is not None
        fusion = _FUSIONS[kind] = {"activation": kind.function.name, "options": ()} if known else None
    if fusion is None:
        return None
    if kind.passed:
        fusion = {**fusion, "options": tuple([(name, getattr(module, name)) for name in kind.passed])}
    return fusion, module.learnt  # type: ignore[attr-defined]


_FUSIONS: dict[type, dict[str, Any] | None] = {}  # by class, without its options


class Loss(FunctionModule):
    """The base of the losses; their repr shows the options that are not as usual. Weights are buffers."""

    def __post_init__(self) -> None:
        for name in ("weight", "pos_weight"):
            if name in self.passed:
                value = getattr(self, name)
                self.register_buffer(name, None if value is None else asarray(value))

    def extra_repr(self) -> str:
        options = {name: getattr(self, name) for name in self.passed if name not in self._buffer_names()}
        changed = {name: value for name, value in options.items() if value != getattr(type(self), name)}
        return ", ".join(f"{name}={value!r}" for name, value in changed.items())


def _module(base: type, name: str, op: Op, first: tuple[str, ...] = (), inplace: bool = False) -> Any:
    """A subclass whose constructor takes the options of an op: `first` come first (optional inputs among them)."""
    optional = dict.fromkeys(op.inputs[op.required :])
    defaults = {_NAMES.get(option, option): default for option, default in {**optional, **op.defaults}.items()}
    order = [*first, *(option for option in defaults if option not in first)]
    kinds = {option: Any if default is None else type(default) for option, default in defaults.items()}
    options: list[Any] = [(option, kinds[option], field(default=defaults[option])) for option in order]
    if inplace:
        options.append(("inplace", bool, field(default=False)))
    made = make_dataclass(
        name,
        options,
        bases=(base,),
        namespace={"__module__": __name__, "function": op, "passed": tuple(order)},
        repr=False,
        eq=False,
    )
    kept = " `inplace` is understood and changes nothing: memory is reused where that is safe." if inplace else ""
    made.__doc__ = f"{(op.__doc__ or '').strip()}\n\n    A module of `gp.nn.functional.{op.name}`.{kept}"
    return made


# --- Activations ----------------------------------------------------------------------------------------------------

ReLU = _module(Activation, "ReLU", F.relu, inplace=True)
ReLU6 = _module(Activation, "ReLU6", F.relu6, inplace=True)
LeakyReLU = _module(Activation, "LeakyReLU", F.leaky_relu, inplace=True)
ELU = _module(Activation, "ELU", F.elu, inplace=True)
SELU = _module(Activation, "SELU", F.selu, inplace=True)
CELU = _module(Activation, "CELU", F.celu, inplace=True)
GELU = _module(Activation, "GELU", F.gelu)
SiLU = _module(Activation, "SiLU", F.silu, inplace=True)
Sigmoid = _module(Activation, "Sigmoid", F.sigmoid)
LogSigmoid = _module(Activation, "LogSigmoid", F.logsigmoid)
Tanh = _module(Activation, "Tanh", F.tanh)
Softplus = _module(Activation, "Softplus", F.softplus)
Softsign = _module(Activation, "Softsign", F.softsign)
Mish = _module(Activation, "Mish", F.mish, inplace=True)
Hardtanh = _module(Activation, "Hardtanh", F.hardtanh, inplace=True)
Hardsigmoid = _module(Activation, "Hardsigmoid", F.hardsigmoid, inplace=True)
Hardswish = _module(Activation, "Hardswish", F.hardswish, inplace=True)
Softmax = _module(Activation, "Softmax", F.softmax)
LogSoftmax = _module(Activation, "LogSoftmax", F.log_softmax)


class PReLU(Activation):
    """Parametric rectifier: y = max(x, 0) + weight * min(x, 0). At 0 the gradient of x is weight times dy.

    The weight is learnt: one number, or one per channel (axis 1).
    Source: He et al. 2015, arXiv:1502.01852, eq. 1.
    """

    function, learns = F.prelu, "weight"

    def __init__(self, num_parameters: int = 1, init: float = 0.25, device: Any = None, dtype: Any = None):
        self.num_parameters = num_parameters
        self.weight = Parameter(full((num_parameters,), float(init), device=device, dtype=dtype))

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


def activations() -> dict[str, Any]:
    """The activations by the names of their functions, for `MLP`."""
    found = [value for value in globals().values() if isinstance(value, type) and issubclass(value, Activation)]
    return {made.function.name: made for made in found if made is not Activation}


# --- Losses ---------------------------------------------------------------------------------------------------------

MSELoss = _module(Loss, "MSELoss", F.mse_loss)
L1Loss = _module(Loss, "L1Loss", F.l1_loss)
SmoothL1Loss = _module(Loss, "SmoothL1Loss", F.smooth_l1_loss)
HuberLoss = _module(Loss, "HuberLoss", F.huber_loss)
CrossEntropyLoss = _module(Loss, "CrossEntropyLoss", F.cross_entropy)
NLLLoss = _module(Loss, "NLLLoss", F.nll_loss)
BCELoss = _module(Loss, "BCELoss", F.binary_cross_entropy)
BCEWithLogitsLoss = _module(
    Loss, "BCEWithLogitsLoss", F.binary_cross_entropy_with_logits, first=("weight", "reduction")
)
KLDivLoss = _module(Loss, "KLDivLoss", F.kl_div)
PoissonNLLLoss = _module(Loss, "PoissonNLLLoss", F.poisson_nll_loss)
GaussianNLLLoss = _module(Loss, "GaussianNLLLoss", F.gaussian_nll_loss)
HingeEmbeddingLoss = _module(Loss, "HingeEmbeddingLoss", F.hinge_embedding_loss)
CosineSimilarity = _module(Loss, "CosineSimilarity", F.cosine_similarity)
