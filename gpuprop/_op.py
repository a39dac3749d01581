"""Ops: a rule, its gradient rules, samples to test it with, and optional implementations for a backend.

`@op` declares one and checks the declaration; the registry is the table that the tests, the benchmarks, `gpuprop.numpy`
and the Tensor's operators are made from. What a gradient rule names after `xp, dy` is what the tape keeps for it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ._tensor import Unfinished, install
from .device import BACKENDS
from .errors import ArgumentError, DeclarationError, Error, UndefinedGradientError
from .tape import call

REGISTRY: dict[str, Op] = {}

# Names that PyTorch and NumPy give to the same arguments, understood wherever the argument exists.
ALIASES = {"dim": "axis", "keepdim": "keepdims", "correction": "ddof", "a": "x", "a_min": "min", "a_max": "max"}
# What NumPy's functions add where they call a method: `np.sum(t)` is `t.sum(axis=None, dtype=None, out=None)`.
UNASKED = {"out": (None,), "order": (None, "C")}


@dataclass(frozen=True)
class GradientRule:
    """dy (and what it names) -> the gradient of one input, or a tuple of them for several inputs."""

    function: Callable
    targets: tuple[str, ...]  # the inputs whose gradients it returns, in order
    keeps: tuple[str, ...]  # inputs, "y", "<input>_shape" or residuals; the tape keeps these
    options: tuple[str, ...]  # the options that it takes, by keyword
    accumulates: bool = False  # takes `out=` and `accumulate=`: a parameter's gradient is written where it lives
    overwrites_dy: str = ""  # takes `out=` alone, or `scratch=`: under this name it may get dy, to write over it
    takes_unit_seed: bool = False  # its result for dy = 1 is at hand: it may get `tape.ONE` for dy
    takes_wanted: bool = False  # takes `wanted=`, a bool for each of its results: the others may be None
    replaces_dy: bool = (
        False  # comes before the others, which get the first of its results for dy; the rest go to its targets
    )
    defers: bool = (
        False  # it is dy @ the one array that it names, and may be left to the record that gets it, if that joins
    )
    joins: bool = False  # may get a `tape.Deferred` for dy, to compute it together with its own results


@dataclass
class Implementation:
    """A faster twin of an op's rules for one backend: same arguments without `xp`, plus `out=`.

    `forward` may return NotImplemented for arrays it does not take (a dtype, a layout): then the generic rules serve that call.
    With residuals it also takes `keep=`: whether anyone will differentiate; if so it returns (y, *residuals), else (y,).
    """

    forward: Callable
    residuals: tuple[str, ...] = ()  # what `forward` returns beside y, for its own gradient rules alone
    gradients: list[GradientRule] = field(default_factory=list)
    binder: Any = None  # what made it, where another op's kernel can make use of that


class Slot:
    """`op.cpu` or `op.cuda`: a decorator for an implementation, and the place where it is kept."""

    def __init__(self, op: Op, backend: str):
        self.op, self.backend = op, backend
        self.implementation: Implementation | None = None

    def __call__(self, forward: Callable | None = None, *, residuals: Iterable[str] = ()) -> Any:
        """Binds a forward implementation: `@silu.cpu`, `silu.cpu(f)`, or `@loss.cpu(residuals=["dx"])`."""
        if forward is None:
            return lambda function: self(function, residuals=residuals)
        self.implementation = Implementation(forward, tuple(residuals))
        self.op._forget_plans()
        return forward

    def grad(
        self,
        *targets: str,
        unit_seed: bool = False,
        replaces_dy: bool = False,
        defers: bool = False,
        joins: bool = False,
    ) -> Callable[[Callable], Callable]:
        """Binds a gradient implementation: `@silu.cpu.grad("x")`; after `dy` it names what it needs, then `out=`, options.

        replaces_dy: what the others of this implementation have in common. It returns (what they get for dy, *gradients of its
        targets), and what only it needs is let go before they allocate.
        defers, joins: as in `GradientRule`; what defers is declared last, because nothing else may come before it is computed.
        """

        def declare(function: Callable) -> Callable:
            if self.implementation is None:  # forward by the generic rule
                self.implementation = Implementation(lambda *arrays, **options: NotImplemented)
            names = self.implementation.residuals
            rule = self.op._gradient_rule(function, targets, leading=1, also=names, unit_seed=unit_seed)
            made = dataclasses.replace(rule, replaces_dy=replaces_dy, defers=defers, joins=joins)
            self.implementation.gradients.append(made)
            self.op._forget_plans()
            return function

        return declare


# One call of the backward walk, in the order in which the walk unpacks it (a plain tuple: a named one unpacks at half the speed):
# - the gradient rule, bound to its namespace, or the implementation;
# - which of the record's edges its results go to (-1: nobody wants it);
# - the places in the record's `kept` of what it needs; None: all of them in order;
# - the names of the options that it takes;
# - None for a generic rule, whose result may be dy itself or a view; for an implementation what the walk may do with it.
Step = tuple[Callable, tuple[int, ...], "tuple[int, ...] | None", tuple[str, ...], "Native | None"]


class Native(NamedTuple):
    """What the walk may do with a gradient implementation; its result is always a new array."""

    accumulates: bool
    overwrites_dy: str
    takes_unit_seed: bool
    replaces_dy: bool
    defers: bool
    spends: tuple[int, ...]  # the places in the record's `kept` that no later step reads


@dataclass(frozen=True, slots=True)
class Plan:
    """What a record of this op keeps and what the walk does with it, for one backend and one set of wanted inputs."""

    op: Op
    wanted: tuple[int, ...]  # inputs that need a gradient, in order: the record's edges
    kept_inputs: tuple[int, ...]
    kept_shapes: tuple[int, ...]
    keeps_output: bool
    kept_residuals: tuple[int, ...]
    steps: tuple[Step, ...]
    generic: tuple[Step, ...]  # the same by generic rules: gradients that are differentiated again
    missing: tuple[str, ...]  # wanted inputs without a gradient rule
    only: int  # the wanted input where there is one, else -1
    keep: Callable[[Sequence], Sequence] | None  # inputs -> the kept ones
    keeps_others: bool  # anything but inputs
    output_place: int  # in the record's `kept`
    joins: bool  # the first step may get a `Deferred` for dy

    def sources(self, inputs: Sequence) -> tuple:
        """The nodes of the wanted inputs."""
        return tuple([inputs[i]._node for i in self.wanted])


def _chooser(places: tuple[int, ...], count: int) -> Callable[[Sequence], Sequence] | None:
    """A function that takes the items at these places, as cheap as Python has one; None where there are none."""
    if not places:
        return None
    if places == tuple(range(count)):
        return tuple
    if len(places) == 1:
        (i,) = places
        return lambda items: (items[i],)
    return operator.itemgetter(*places)


def _only_result_of(function: Callable) -> Callable:
    """A rule for any number of inputs returns a tuple, also for one."""
    return lambda *args, **options: function(*args, **options)[0]


class Op:
    """A differentiable operation. Called as `op(x, ...)` by users, as `op(xp, x, ...)` inside other rules."""

    def __init__(
        self,
        rule: Callable,
        *,
        samples: Callable,
        errors: Callable | None,
        name: str,
        view: bool,
        smooth: bool,
        spelling: Callable | None = None,
        capturable: Any = True,
    ):
        self.capturable = capturable
        self.rule = rule
        self.name = name
        self.samples = samples
        self.errors = errors
        self.view = view  # the result may share the first input's memory, and then shares its version
        self.smooth = smooth  # finite differences apply at the samples
        self.spelling = spelling  # the user's arguments -> arrays first, options by name
        self.gradients: list[GradientRule] = []
        self.biased: Op | None = None  # for a loss, what computes it of its first input plus a bias: `bias_loss`
        self.__doc__ = rule.__doc__
        self.__name__ = self.__qualname__ = name
        self.__module__ = rule.__module__
        self._read_signature()
        self._slots = {"cpu": Slot(self, "cpu"), "cuda": Slot(self, "cuda")}
        self._forget_plans()

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def __reduce__(self) -> tuple:
        return _registered, (self.name,)

    # --- declaration --------------------------------------------------------------------------------------------

    def _read_signature(self) -> None:
        parameters = list(inspect.signature(self.rule).parameters.values())
        if not parameters or parameters[0].name != "xp":
            raise DeclarationError(
                f"{self.name}: expected a rule whose first argument is `xp`, got {inspect.signature(self.rule)}"
            )
        inputs, optional, self.variadic = [], 0, False
        self.defaults: dict[str, Any] = {}
        for p in parameters[1:]:
            if p.kind is p.VAR_POSITIONAL:
                self.variadic = True
                inputs.append(p.name)
            elif p.kind is p.KEYWORD_ONLY:
                self.defaults[p.name] = p.default
            elif p.kind is p.VAR_KEYWORD:
                raise DeclarationError(f"{self.name}: expected options by name, got **{p.name}")
            else:
                if p.default is not p.empty and p.default is not None:
                    raise DeclarationError(
                        f"{self.name}: input {p.name!r} may only default to None; make it keyword-only to be an option"
                    )
                optional += p.default is None
                inputs.append(p.name)
        if not inputs:
            raise DeclarationError(f"{self.name}: expected at least one array after `xp`")
        if self.variadic and len(inputs) > 1:
            self.leading = len(inputs) - 1
        else:
            self.leading = 0
        self.inputs = tuple(inputs)
        self.required = len(inputs) - optional - self.variadic
        self._required_options = tuple(k for k, v in self.defaults.items() if v is inspect.Parameter.empty)

    def grad(self, *targets: str) -> Callable[[Callable], Callable]:
        """Declares a gradient rule for one input, or one for several that returns a tuple: `@f.grad("x")`.

        The rule's arguments are `xp, dy`, then what it needs: inputs by name, `y`, or `<input>_shape`; then options, keyword-only.
        A rule for several may take `wanted` as well, a bool for each of its results: the others may be None.
        Raises: DeclarationError where the rule names anything else, at once.
        """

        def declare(function: Callable) -> Callable:
            self.gradients.append(self._gradient_rule(function, targets, leading=2))
            self._forget_plans()
            return function

        return declare

    def _gradient_rule(
        self,
        function: Callable,
        targets: tuple[str, ...],
        leading: int,
        also: Iterable[str] = (),
        unit_seed: bool = False,
    ) -> GradientRule:
        for target in targets:
            if target not in self.inputs:
                raise DeclarationError(
                    f"{self.name}.grad: expected one of the inputs {', '.join(self.inputs)}, got {target!r}"
                )
        if leading == 2:
            if not targets:
                raise DeclarationError(f"{self.name}.grad: expected the names of inputs, got none")
            taken = [t for rule in self.gradients for t in rule.targets if t in targets]
            if taken:
                raise DeclarationError(f"{self.name}.grad: {taken[0]!r} has a gradient rule already")
        known = {*self.inputs, "y", *(f"{name}_shape" for name in self.inputs), *also}
        keeps, options, places = [], [], set()
        parameters = list(inspect.signature(function).parameters.values())
        for p in parameters[leading:]:
            if p.kind is p.KEYWORD_ONLY:
                if p.name == "wanted" or (leading == 1 and p.name in ("out", "accumulate", "scratch")):
                    places.add(p.name)
                elif p.name not in self.defaults:
                    raise DeclarationError(
                        f"{self.name}.grad{targets}: {p.name!r} is no option of {self.name}{tuple(self.defaults)}"
                    )
                else:
                    options.append(p.name)
            elif p.name not in known:
                raise DeclarationError(
                    f"{self.name}.grad{targets}: expected names among {', '.join(sorted(known))}, "
                    f"got {p.name!r}; a rule gets what it names"
                )
            else:
                keeps.append(p.name)
        return GradientRule(
            function=function,
            targets=tuple(targets),
            keeps=tuple(keeps),
            options=tuple(options),
            accumulates="accumulate" in places,
            overwrites_dy="scratch"
            if "scratch" in places
            else "out"
            if places >= {"out"} and "accumulate" not in places
            else "",
            takes_unit_seed=unit_seed,
            takes_wanted="wanted" in places,
        )

    @property
    def cpu(self) -> Slot:
        """Where this op's implementation for NumPy is bound."""
        return self._slots["cpu"]

    @cpu.setter
    def cpu(self, implementation: Any) -> None:
        self._bind("cpu", implementation)

    @property
    def cuda(self) -> Slot:
        """Where this op's implementation for CUDA is bound: `op.cuda = elementwise("activations.cu", "Silu")`."""
        return self._slots["cuda"]

    @cuda.setter
    def cuda(self, implementation: Any) -> None:
        self._bind("cuda", implementation)

    def _bind(self, backend: str, implementation: Any) -> None:
        if implementation is self._slots[backend]:
            return
        if hasattr(implementation, "implementation"):  # a binder: it looks at the rules that it stands in for
            implementation = implementation.implementation(self)
        if not isinstance(implementation, Implementation):
            implementation = Implementation(implementation)
        self._slots[backend].implementation = implementation
        self._forget_plans()

    def _forget_plans(self) -> None:
        self.bound: dict[type, Bound] = {}

    def bind_to(self, array_type: type) -> Bound:
        """The op on the backend of an array type; the look-up is `op.bound[array_type]`."""
        backend = BACKENDS[array_type]
        slot = self._slots.get(backend.name)
        twin = slot.implementation if slot and backend.uses_implementations else None
        bound: Bound = (functools.partial(self.rule, backend.xp), (), _Plans(self, backend, False), None)
        if twin is not None:
            bound = (twin.forward, twin.residuals, _Plans(self, backend, True), bound)
        self.bound[array_type] = bound
        return bound

    # --- calls --------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **options: Any) -> Any:
        if args and isinstance(args[0], types.ModuleType):  # inside a rule: the namespace decides what runs
            xp = args[0]
            if getattr(xp, "is_tape", False):
                return self.public(*args[1:], **options)
            return self.rule(xp, *args[1:], **options)
        return self.public(*args, **options)

    def public(self, *args: Any, **given: Any) -> Any:
        """The op as users call it: options by name, by alias or, after the arrays, by position; plain arrays in, plain out."""
        if self.spelling is not None and not (self._required_options and given.keys() >= set(self._required_options)):
            try:
                args, given = self.spelling(*args, **given)
            except Error:
                raise
            except TypeError as error:
                raise ArgumentError(f"{self.name}: {str(error).rpartition('() ')[2]}") from error
        inputs, options = self.arguments(args, given)
        if self.biased is not None and type(inputs[0]) is Unfinished and inputs[0].parts is not None:
            return self.biased(*inputs[0].parts, *inputs[1:], loss=self.name, options=tuple(options.items()))
        return call(self, inputs, options)

    def arguments(self, args: tuple, given: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Arguments as (inputs, all options made canonical). Raises: ArgumentError."""
        names = self.inputs
        if self.variadic:
            if len(args) > self.leading and isinstance(args[self.leading], (list, tuple)):
                at = self.leading
                inputs, rest = (*args[:at], *args[at]), args[at + 1 :]
            else:
                inputs, rest = args, ()
            if len(inputs) < max(self.leading, 1):
                raise ArgumentError(f"{self.name}: expected at least one array, got none")
        else:
            inputs, rest = args[: len(names)], args[len(names) :]
        if not rest and not given and len(inputs) == len(names) and not self._required_options:
            return inputs, self.defaults
        options = dict(self.defaults)
        order = list(self.defaults)
        if len(rest) > len(order):
            raise ArgumentError(f"{self.name}: expected at most {len(names) + len(order)} arguments, got {len(args)}")
        for name, value in zip(order, rest):
            options[name] = canonical(value)
        late = {}
        for name, value in given.items():
            if name not in options and name not in names:
                name = ALIASES.get(name, name)
            if name in options:
                options[name] = canonical(value)
            elif name in names and not self.variadic and names.index(name) >= len(inputs):
                late[name] = value
            elif name in names and not self.variadic:
                raise ArgumentError(f"{self.name}: got {name!r} twice")
            elif not any(value is unasked for unasked in UNASKED.get(name, ())):
                raise ArgumentError(f"{self.name}: unknown argument {name!r}; expected {', '.join([*names, *order])}")
        if not self.variadic and (late or len(inputs) < len(names)):
            filled = list(inputs)
            for index in range(len(inputs), len(names)):
                name = names[index]
                if name not in late and index < self.required:
                    raise ArgumentError(
                        f"{self.name}: expected {', '.join(names[: self.required])}; {name!r} is missing"
                    )
                filled.append(late.get(name))
            inputs = tuple(filled)
        for name in self._required_options:
            if options[name] is inspect.Parameter.empty:
                raise ArgumentError(f"{self.name}: expected the option {name!r}, got none")
        return inputs, options

    def gradient_of(self, index: int, xp: Any, dy: Any, inputs: Sequence, options: dict[str, Any]) -> Any:
        """What the generic rule for one input returns, for rules of ops that are made of this one."""
        name = self.inputs[index]
        rule = next((rule for rule in self.gradients if name in rule.targets), None)
        if rule is None:
            raise UndefinedGradientError(
                f"{self.name}: expected a gradient rule for {name!r}, got none; detach() that input"
            )
        known = dict(zip(self.inputs, [*inputs, *[None] * (len(self.inputs) - len(inputs))]))
        known |= {f"{key}_shape": getattr(value, "shape", None) for key, value in known.items()}
        if "y" in rule.keeps:
            known["y"] = self(xp, *inputs, **options)
        chosen = {key: options[key] for key in rule.options}
        if rule.takes_wanted:
            chosen["wanted"] = tuple(target == name for target in rule.targets)
        found = rule.function(xp, dy, *[known[key] for key in rule.keeps], **chosen)
        return found[rule.targets.index(name)] if len(rule.targets) > 1 else found

    def input_name(self, index: int) -> str:
        return (
            f"{self.inputs[-1]}[{index - self.leading}]"
            if self.variadic and index >= self.leading
            else self.inputs[index]
        )

    # --- plans --------------------------------------------------------------------------------------------------

    def make_plan(self, backend: Any, count: int, mask: int, native: bool) -> Plan:
        """The plan for `count` inputs of which those in the bit mask need gradients, on one backend.

        native: the forward result came from the backend's implementation, so its gradient rules apply.
        """
        from . import numpy as taped  # the namespace of Tensors stands above the ops that it lists

        wanted = tuple(i for i in range(count) if mask >> i & 1)
        twin = self._slots[backend.name].implementation if native and backend.name in self._slots else None
        own = self._choose([rule for rule in twin.gradients if not rule.replaces_dy] if twin else [], wanted, count)
        for rule in twin.gradients if twin else []:
            indices = tuple(i for t in rule.targets for i in self._indices(t, count))
            if rule.replaces_dy and (own or set(indices) & set(wanted)):
                own.insert(0, (rule, indices))
        covered = {i for _, indices in own for i in indices}
        rest = self._choose(self.gradients, [i for i in wanted if i not in covered], count)
        generic = self._choose(self.gradients, wanted, count)
        found = {i for _, indices in [*own, *rest] for i in indices}

        chosen = [rule for rule, _ in [*own, *rest, *generic]]
        residuals = twin.residuals if twin else ()
        names = list(dict.fromkeys(name for rule in chosen for name in rule.keeps))
        kept_inputs = tuple(sorted(i for n in names if n in self.inputs for i in self._indices(n, count)))
        kept_shapes = tuple(
            i
            for n in names
            if n not in self.inputs and n.endswith("_shape") and n[:-6] in self.inputs
            for i in self._indices(n[:-6], count)
        )
        kept_residuals = tuple(k for k, n in enumerate(residuals) if n in names)
        keeps_output = "y" in names
        places: dict[Any, int] = {}
        for key in [*(("input", i) for i in kept_inputs), *(("shape", i) for i in kept_shapes)]:
            places[key] = len(places)
        if keeps_output:
            places["y"] = len(places)
        for k in kept_residuals:
            places[residuals[k]] = len(places)

        def step(rule: GradientRule, indices: tuple[int, ...], function: Callable, native: bool) -> Step:
            kept: list[int] = []
            for name in rule.keeps:
                if name in self.inputs:
                    kept += [places["input", i] for i in self._indices(name, count)]
                elif name in places:
                    kept.append(places[name])
                else:
                    kept += [places["shape", i] for i in self._indices(name[:-6], count)]
            edges = tuple(wanted.index(i) if i in wanted else -1 for i in indices)
            if rule.takes_wanted:
                function = functools.partial(function, wanted=tuple(e >= 0 for e in edges))
            if self.variadic and rule.targets == self.inputs[-1:] and len(indices) == 1:
                function = _only_result_of(function)
            everything = kept == list(range(len(places)))
            later = {name for other, _ in own if not other.replaces_dy for name in other.keeps}
            spends = tuple(i for i, name in zip(kept, rule.keeps) if rule.replaces_dy and name not in later)
            scratch = "" if rest else rule.overwrites_dy  # a generic rule may have handed dy itself on
            traits = rule.accumulates, scratch, rule.takes_unit_seed, rule.replaces_dy, rule.defers, spends
            return (
                function,
                edges,
                None if everything else tuple(kept),
                rule.options,
                Native(*traits) if native else None,
            )

        steps = [step(rule, indices, functools.partial(rule.function, backend.xp), False) for rule, indices in rest]
        steps += [step(rule, indices, rule.function, True) for rule, indices in own]
        return Plan(
            op=self,
            wanted=wanted,
            kept_inputs=kept_inputs,
            kept_shapes=kept_shapes,
            keeps_output=keeps_output,
            kept_residuals=kept_residuals,
            steps=tuple(steps),
            generic=tuple(
                step(rule, indices, functools.partial(rule.function, taped), False) for rule, indices in generic
            ),
            missing=tuple(self.input_name(i) for i in wanted if i not in found),
            only=wanted[0] if len(wanted) == 1 else -1,
            keep=_chooser(kept_inputs, count),
            keeps_others=bool(kept_shapes or keeps_output or kept_residuals),
            output_place=places.get("y", -1),
            joins=not rest and bool(own) and own[0][0].joins,
        )

    def _indices(self, name: str, count: int) -> range:
        position = self.inputs.index(name)
        if self.variadic and position == len(self.inputs) - 1:
            return range(position, count)
        return range(position, position + 1)

    def _choose(
        self, rules: list[GradientRule], wanted: Iterable[int], count: int
    ) -> list[tuple[GradientRule, tuple[int, ...]]]:
        """The fewest rules, in order of declaration, that give the wanted inputs; a rule for several serves any of them."""
        chosen, open_ = [], set(wanted)
        for rule in sorted(rules, key=lambda r: -len(r.targets)):
            indices = tuple(i for t in rule.targets for i in self._indices(t, count))
            # An implementation for several inputs pays for all of them, so it waits until all are wanted.
            if open_.intersection(indices) and (
                len(rule.targets) == 1 or open_.issuperset(indices) or not self._alone(rules, rule)
            ):
                chosen.append((rule, indices))
                open_.difference_update(indices)
        return chosen

    @staticmethod
    def _alone(rules: list[GradientRule], rule: GradientRule) -> bool:
        """Whether each of the rule's targets has a rule of its own as well."""
        return all(any(r is not rule and t in r.targets for r in rules) for t in rule.targets)


# An op on one backend, in the order in which a call unpacks it:
# - its forward implementation, or its rule bound to the namespace;
# - the names of the implementation's residuals;
# - its plans, by the bit mask of the inputs that need gradients with one more bit above for how many inputs there are;
# - the same for the generic rule, which serves a call that the implementation does not take; None: this is it.
Bound = tuple[Callable, tuple[str, ...], "dict[int, Plan]", "Bound | None"]


class _Plans(dict):
    """Plans, made when they are first needed."""

    def __init__(self, op: Op, backend: Any, native: bool):
        self.op, self.backend, self.native = op, backend, native

    def __missing__(self, key: int) -> Plan:
        count = key.bit_length() - 1
        self[key] = plan = self.op.make_plan(self.backend, count, key ^ (1 << count), self.native)
        return plan


def _registered(name: str) -> Op:
    """The op of this name: a pickled or copied one is itself."""
    return REGISTRY[name]


def canonical(value: Any) -> Any:
    """An option in its one form: lists and arrays become tuples, NumPy's integers Python's, dtype names dtypes."""
    if isinstance(value, (list, tuple)):
        return tuple(canonical(v) for v in value)
    if isinstance(value, np.ndarray):
        return canonical(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, type) and (issubclass(value, (np.generic, float, int, bool))):
        return np.dtype(value)
    return value


def op(
    rule: Callable | None = None,
    *,
    samples: Callable | None = None,
    errors: Callable | None = None,
    name: str | None = None,
    operator: str | None = None,
    method: bool | str = False,
    view: bool = False,
    smooth: bool = True,
    spelling: Callable | None = None,
    capturable: bool | Callable[[Sequence], bool] = True,
) -> Any:
    """Declares an op from its forward rule `f(xp, *arrays, *, **options)`, and registers it under its name.

    samples: a function of a `gp.testing.Draw` that yields `gp.testing.Sample`s: the op's domain and shapes. Required.
    errors: the same, yielding `gp.testing.ErrorSample`s.
    operator: the Python operator that Tensors get from it ("add" installs `+`, from both sides).
    method: True installs it as a method of Tensor, a string under that name.
    view: the result may share memory with the first input.
    smooth: False where finite differences do not apply (integers, comparisons).
    spelling: where users say it otherwise than arrays first, then options (`einsum("ij->ji", x)`, `x.reshape(2, 3)`): a function of
        their arguments that returns (arrays, options by name). A call that names all required options needs none.
    capturable: False where a shape depends on values, or a function of the arrays that says whether none does.

    Raises: DeclarationError where the declaration breaks the contract.
    """
    if rule is None:
        return lambda function: op(
            function,
            samples=samples,
            errors=errors,
            name=name,
            operator=operator,
            method=method,
            view=view,
            smooth=smooth,
            spelling=spelling,
            capturable=capturable,
        )
    if not callable(rule):
        raise DeclarationError(f"op: expected a function f(xp, *arrays, *, **options), got {rule!r}")
    name = name or rule.__name__.rstrip("_")
    if not callable(samples):
        raise DeclarationError(
            f"{name}: no samples, no op; say samples=<function of a gp.testing.Draw that yields gp.testing.Sample>"
        )
    if (
        name in REGISTRY and not REGISTRY[name].__module__ == rule.__module__ == "__main__"
    ):  # a notebook's cell may run again
        raise DeclarationError(f"{name}: an op of this name exists already, in {REGISTRY[name].__module__}")
    made = REGISTRY[name] = Op(
        rule,
        samples=samples,
        errors=errors,
        name=name,
        view=view,
        smooth=smooth,
        spelling=spelling,
        capturable=capturable,
    )
    if operator or method:
        install(made, operator=operator, method=name if method is True else method or None)
    return made
