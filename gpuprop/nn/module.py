"""Module: what a model and its layers are. A plain object; its parameters, buffers and children are attributes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .._tensor import Tensor, asarray, destination
from ..device import Device
from ..errors import ArgumentError, CheckpointError, DtypeError
from ..tape import is_floating, no_grad, tape
from .parameter import Parameter, one_chunk


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` did not find in the state, and what it had no use for."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """The base of layers and models: subclass it, assign Parameters and Modules as attributes, and write `forward`.

    There is no registry: an attribute that is a Parameter is a parameter, one that is a Module is a child, in the order of
    assignment. Tensors that belong to the state without being learnt (running means) are named by `register_buffer`.
    """

    training: bool = True

    def forward(self, *args: Any, **options: Any) -> Any:
        """What the module computes."""
        raise NotImplementedError(f"{type(self).__name__}: expected a method `forward`; write one")

    def __call__(self, *args: Any, **options: Any) -> Any:
        if tape.recorder is not None:
            tape.recorder.calls(self)
        return self.forward(*args, **options)

    # --- attributes ---------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        before = self.__dict__.get(name)
        if before is not None and value is not None:
            kinds = [kind for kind in (Parameter, Module) if isinstance(before, kind)]
            kind: type = kinds[0] if kinds else Tensor if name in self._buffer_names() else object
            if not isinstance(value, kind):
                # It would vanish from the state and from the optimizer's sight, which nobody would notice.
                raise ArgumentError(
                    f"{type(self).__name__}.{name}: expected a {kind.__name__} or None, got {type(value).__name__}; "
                    "change values in place under gp.no_grad(), or delete the attribute first"
                )
        object.__setattr__(self, name, value)

    def _buffer_names(self) -> dict[str, bool]:
        """The names of the buffers, and whether each is part of the state."""
        return self.__dict__.get("_buffers", {})

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Makes a tensor part of the module, and of its state if `persistent`, without being learnt."""
        if tensor is not None and not isinstance(tensor, Tensor):
            raise ArgumentError(f"register_buffer: expected a Tensor or None for {name!r}, got {type(tensor).__name__}")
        self._check_name(name)
        self.__dict__.setdefault("_buffers", {})[name] = persistent
        setattr(self, name, tensor)

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Assigns a parameter; None says that there might be one."""
        if parameter is not None and not isinstance(parameter, Parameter):
            raise ArgumentError(
                f"register_parameter: expected a Parameter or None for {name!r}, got {type(parameter).__name__}"
            )
        self._check_name(name)
        setattr(self, name, parameter)

    def add_module(self, name: str, module: Module | None) -> None:
        """Assigns a child under a name that need not be an identifier."""
        if module is not None and not isinstance(module, Module):
            raise ArgumentError(f"add_module: expected a Module or None for {name!r}, got {type(module).__name__}")
        self._check_name(name)
        setattr(self, name, module)

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not name or "." in name or (name not in self.__dict__ and hasattr(self, name)):
            raise ArgumentError(f"{type(self).__name__}: expected a new name without dots, got {name!r}")

    # --- what it consists of ------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules that are attributes, each once."""
        seen = set()
        for name, value in self.__dict__.items():
            if isinstance(value, Module) and id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def children(self) -> Iterator[Module]:
        return (module for _, module in self.named_children())

    def named_modules(self, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, Module]]:
        """This module (under the name `prefix`) and all below it, with dotted names."""
        return self._walk(prefix, set() if remove_duplicate else None)

    def _walk(self, prefix: str, seen: set[int] | None) -> Iterator[tuple[str, Module]]:
        if seen is not None:
            if id(self) in seen:
                return
            seen.add(id(self))
        yield prefix, self
        for name, value in self.__dict__.items():
            if isinstance(value, Module):
                yield from value._walk(f"{prefix}.{name}" if prefix else name, seen)

    def modules(self) -> Iterator[Module]:
        return (module for _, module in self.named_modules())

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """The parameters with dotted names; one that is tied comes once."""
        return self._tensors(
            prefix, recurse, remove_duplicate, lambda m: (k for k, v in m.items() if isinstance(v, Parameter))
        )

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        return (p for _, p in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """The buffers with dotted names."""
        return self._tensors(prefix, recurse, remove_duplicate, lambda m: m.get("_buffers", ()))

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        return (b for _, b in self.named_buffers(recurse=recurse))

    def _tensors(
        self, prefix: str, recurse: bool, once: bool, names: Callable[[dict], Any]
    ) -> Iterator[tuple[str, Any]]:
        seen = set()
        for path, module in self.named_modules(prefix, remove_duplicate=once) if recurse else [(prefix, self)]:
            for name in names(module.__dict__):
                value = module.__dict__.get(name)
                if value is None or (once and id(value) in seen):
                    continue
                seen.add(id(value))
                yield f"{path}.{name}" if path else name, value

    def get_submodule(self, target: str) -> Module:
        """The module with a dotted name; "" is this one."""
        module = self
        for name in target.split(".") if target else ():
            found = module.__dict__.get(name)
            if not isinstance(found, Module):
                raise ArgumentError(f"get_submodule: expected a module below {type(self).__name__}, got {target!r}")
            module = found
        return module

    # --- state --------------------------------------------------------------------------------------------------

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and persistent buffers by dotted name, sharing the module's memory; tied ones under each of their names."""
        state = {}
        for path, module in self.named_modules(remove_duplicate=False):
            buffers = module._buffer_names()
            for name, value in module.__dict__.items():
                if isinstance(value, Parameter) or (isinstance(value, Tensor) and buffers.get(name)):
                    state[f"{prefix}{path}.{name}" if path else f"{prefix}{name}"] = value.detach()
        return state

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copies values into the parameters and buffers of the same names, across devices and dtypes.

        Raises: CheckpointError naming every key whose shape differs and, if `strict`, every missing or unexpected one; then nothing
        has changed.
        """
        own = self.state_dict()
        given = {name: value if isinstance(value, Tensor) else asarray(value) for name, value in state_dict.items()}
        missing = [name for name in own if name not in given]
        unexpected = [name for name in given if name not in own]
        problems = [
            f"{name} expected {tuple(own[name].shape)}, got {tuple(value.shape)}"
            for name, value in given.items()
            if name in own and value.shape != own[name].shape
        ]
        if strict and missing:
            problems.append(f"missing {', '.join(missing)}")
        if strict and unexpected:
            problems.append(f"unexpected {', '.join(unexpected)}")
        if problems:
            remedy = "; say strict=False to load what fits by name" if strict and (missing or unexpected) else ""
            raise CheckpointError(f"load_state_dict into {type(self).__name__}: {'; '.join(problems)}{remedy}")
        with no_grad():
            for name, tensor in own.items():
                if name in given:
                    tensor.copy_(given[name])
        return IncompatibleKeys(missing, unexpected)

    # --- changes ------------------------------------------------------------------------------------------------

    def apply(self, function: Callable[[Module], Any]) -> Module:
        """Calls the function with every module below and then with this one, as for initialising weights."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    def train(self, mode: bool = True) -> Module:
        """Sets whether the modules behave as in training: dropout drops, batch norm uses the batch."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Sets the modules to behave as in use."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Sets whether the parameters want gradients."""
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients; or, if not `set_to_none`, overwrites them with zeros."""
        for p in self.parameters():
            if p.grad is not None:
                p.grad = None if set_to_none else p.grad.detach().zero_()

    def to(self, *args: Any, device: Any = None, dtype: Any = None) -> Module:
        """Moves parameters and buffers to a device, and the floating ones to a dtype; parameters stay the same objects.

        Takes what names a device ("cpu", "cuda:0"), a dtype, or a Tensor to be like. Raises: DtypeError for a dtype that is not floating.
        """
        device, dtype = destination(args, device, dtype)
        if dtype is not None and not is_floating(dtype):
            raise DtypeError(f"{type(self).__name__}.to: expected a floating dtype, got {dtype}")

        def target(tensor: Tensor) -> tuple[Device, Any]:
            return device or tensor.device, dtype if dtype is not None and is_floating(tensor.dtype) else tensor.dtype

        leaving: dict[tuple[Device, Any], list[Parameter]] = {}
        for p in self.parameters():
            if (p.device, p.dtype) != target(p):
                leaving.setdefault(target(p), []).append(p)
        for (place, kind), parameters in leaving.items():
            with one_chunk([p.shape for p in parameters], kind, place):
                for p in parameters:
                    p.move_(place, kind)
        moved: dict[int, Tensor] = {}
        for module in self.modules():
            for name in module._buffer_names():
                buffer = module.__dict__.get(name)
                if buffer is not None:
                    place, kind = target(buffer)
                    moved.setdefault(id(buffer), buffer.detach().to(device=place, dtype=kind))
                    setattr(module, name, moved[id(buffer)])
        return self

    def cpu(self) -> Module:
        return self.to("cpu")

    def cuda(self, index: int = 0) -> Module:
        return self.to(f"cuda:{index}")

    def float(self) -> Module:
        return self.to(dtype=np.float32)

    def double(self) -> Module:
        return self.to(dtype=np.float64)

    def half(self) -> Module:
        return self.to(dtype=np.float16)

    # --- words --------------------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What the repr shows between the parentheses, before the children."""
        return ""

    def __repr__(self) -> str:
        children = [(k, v) for k, v in self.__dict__.items() if isinstance(v, Module)]
        if not children:
            return f"{type(self).__name__}({self.extra_repr()})"
        lines = [self.extra_repr()] if self.extra_repr() else []
        lines += [f"({name}): {child!r}" for name, child in children]
        body = "\n".join(lines).replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {body}\n)"
