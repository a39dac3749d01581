"""Learning-rate schedules: each says the rate at step t in closed form; `step()` writes it into the optimizer's groups."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from math import cos, inf, pi
from typing import Any

from ..errors import ArgumentError, OptionError
from ..tape import tape
from .optimizer import Optimizer


class LRScheduler:
    """The base of schedules: a subclass says `rate(base, t)`, the learning rate at step t of a group that began with `base`.

    The rate is computed anew from t, so that no rounding adds up. Where something else has changed a group's rate (another schedule,
    the user), the change stays: from then on the rate is scaled by what was found relative to what this schedule had set.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1):
        if not isinstance(optimizer, Optimizer):
            raise ArgumentError(f"{type(self).__name__}: expected an Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise OptionError(
                    f"{type(self).__name__}: expected 'initial_lr' in every group to go on at {last_epoch}, got none"
                )
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._last_lr = self.base_lrs if last_epoch == -1 else [group["lr"] for group in optimizer.param_groups]
        self._scales = [1.0 for _ in self.base_lrs]
        self.step()

    def rate(self, base: float, t: int) -> float:
        """The learning rate at step t."""
        raise NotImplementedError

    def rates(self, t: int) -> list[float]:
        """The learning rates of all groups at step t."""
        return [self.rate(base, t) for base in self.base_lrs]

    def set_others(self, t: int) -> None:
        """Sets what else depends on t."""

    def step(self) -> None:
        """Goes on by one step and sets the learning rates."""
        if tape.recorder is not None:
            rates, state = [group["lr"] for group in self.optimizer.param_groups], dict(self.__dict__)
            tape.recorder.undoes(lambda: self._go_back(rates, state))
            tape.recorder.acts(type(self).__name__, self._go_on)
        else:
            self._go_on()

    def _go_back(self, rates: list[float], state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for group, lr in zip(self.optimizer.param_groups, rates):
            group["lr"] = lr

    def _go_on(self) -> None:
        groups, last = self.optimizer.param_groups, self._last_lr
        touched = [i for i, lr in enumerate(last) if groups[i]["lr"] != lr]
        if touched:
            before = self.rates(self.last_epoch) if self.last_epoch >= 0 else self.base_lrs
            for i in touched:
                if before[i]:
                    self._scales[i] = groups[i]["lr"] / before[i]
        self.last_epoch += 1
        self._last_lr = [scale * rate for scale, rate in zip(self._scales, self.rates(self.last_epoch))]
        for group, lr in zip(groups, self._last_lr):
            group["lr"] = lr
        self.set_others(self.last_epoch)

    def get_last_lr(self) -> list[float]:
        """The learning rates that the last step set, per group."""
        return list(self._last_lr)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer and functions."""
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("optimizer", "lr_lambdas", "schedulers")
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where another schedule of the same kind stood. The rates themselves come with the optimizer's state."""
        self.__dict__.update(state_dict)


class LambdaLR(LRScheduler):
    """lr(t) = base * f(t), with one function for all groups or one for each."""

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ):
        count = len(optimizer.param_groups)
        self.lr_lambdas = [lr_lambda] * count if callable(lr_lambda) else list(lr_lambda)
        if len(self.lr_lambdas) != count:
            raise OptionError(f"LambdaLR: expected {count} functions, one per group, got {len(self.lr_lambdas)}")
        super().__init__(optimizer, last_epoch)

    def rates(self, t: int) -> list[float]:
        return [base * f(t) for base, f in zip(self.base_lrs, self.lr_lambdas)]


class StepLR(LRScheduler):
    """lr(t) = base * gamma^floor(t / step_size)."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1):
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, base: float, t: int) -> float:
        return base * self.gamma ** (t // self.step_size)


class MultiStepLR(LRScheduler):
    """lr(t) = base * gamma^(number of milestones that are at most t)."""

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1, last_epoch: int = -1):
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, base: float, t: int) -> float:
        return base * self.gamma ** bisect_right(self.milestones, t)


class ExponentialLR(LRScheduler):
    """lr(t) = base * gamma^t."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1):
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def rate(self, base: float, t: int) -> float:
        return base * self.gamma**t


class LinearLR(LRScheduler):
    """lr(t) = base * (start_factor + (end_factor - start_factor) min(t, total_iters) / total_iters): a warm-up."""

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
        if not 0 < start_factor <= 1:
            raise OptionError(f"LinearLR: expected 0 < start_factor <= 1, got {start_factor}")
        if not 0 <= end_factor <= 1:
            raise OptionError(f"LinearLR: expected 0 <= end_factor <= 1, got {end_factor}")
        self.start_factor, self.end_factor, self.total_iters = start_factor, end_factor, total_iters
        super().__init__(optimizer, last_epoch)

    def rate(self, base: float, t: int) -> float:
        done = min(t, self.total_iters) / self.total_iters
        return base * (self.start_factor + (self.end_factor - self.start_factor) * done)


class CosineAnnealingLR(LRScheduler):
    """lr(t) = eta_min + (base - eta_min) (1 + cos(pi t / T_max)) / 2; after T_max it rises again.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1):
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer, last_epoch)

    def rate(self, base: float, t: int) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + cos(pi * t / self.T_max)) / 2


class OneCycleLR(LRScheduler):
    """From max_lr / div_factor up to max_lr and down to max_lr / (div_factor * final_div_factor), while momentum goes the other way.

    total_steps: or `epochs` times `steps_per_epoch`. pct_start: the part of the steps that goes up. anneal_strategy: "cos" or "linear".
    three_phase: down to where it began first, then to the end. cycle_momentum: sets `momentum`, or the first of `betas`.
    Raises: OptionError for options that make no sense, and for a step after the last.
    Source: Smith and Topin 2018, arXiv:1708.07120.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ):
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise OptionError("OneCycleLR: expected total_steps, or epochs and steps_per_epoch")
            total_steps = epochs * steps_per_epoch
        if total_steps <= 0:
            raise OptionError(f"OneCycleLR: expected total_steps > 0, got {total_steps}")
        if not 0 <= pct_start <= 1:
            raise OptionError(f"OneCycleLR: expected 0 <= pct_start <= 1, got {pct_start}")
        if anneal_strategy not in ("cos", "linear"):
            raise OptionError(f"OneCycleLR: expected anneal_strategy 'cos' or 'linear', got {anneal_strategy!r}")
        groups = optimizer.param_groups
        tops = list(max_lr) if isinstance(max_lr, Sequence) else [max_lr] * len(groups)
        if len(tops) != len(groups):
            raise OptionError(f"OneCycleLR: expected {len(groups)} values of max_lr, one per group, got {len(tops)}")
        if cycle_momentum and not all("betas" in group or group.get("momentum") for group in groups):
            raise OptionError("OneCycleLR: expected an optimizer with momentum; say cycle_momentum=False")
        self.total_steps, self.anneal_strategy, self.cycle_momentum = total_steps, anneal_strategy, cycle_momentum
        self.base_momentum, self.max_momentum = base_momentum, max_momentum
        self.div_factor, self.final_div_factor = div_factor, final_div_factor
        end, peak = total_steps - 1, pct_start * total_steps - 1
        # (last step, index of the rate where it ends): of start, top, and bottom
        self.phases = [(peak, 1), (2 * peak, 0), (end, 2)] if three_phase else [(peak, 1), (end, 2)]
        if last_epoch == -1:
            for group, top in zip(groups, tops):
                group["lr"] = group["initial_lr"] = top / div_factor
        super().__init__(optimizer, last_epoch)

    def between(self, levels: tuple[float, float, float], t: int) -> float:
        """The value at step t of what is at levels[0] at first, at levels[1] at the top and at levels[2] in the end."""
        if t > self.total_steps:
            raise OptionError(f"OneCycleLR: expected at most {self.total_steps} steps, got one more")
        start, level = 0.0, 0
        for end, target in self.phases:
            if t <= end or (end, target) == self.phases[-1]:
                break
            start, level = end, target
        done, a, b = (t - start) / (end - start), levels[level], levels[target]
        return (b - a) * done + a if self.anneal_strategy == "linear" else b + (a - b) / 2 * (1 + cos(pi * done))

    def rate(self, base: float, t: int) -> float:
        return self.between((base, base * self.div_factor, base / self.final_div_factor), t)

    def set_others(self, t: int) -> None:
        if not self.cycle_momentum:
            return
        momentum = self.between((self.max_momentum, self.base_momentum, self.max_momentum), t)
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum


class SequentialLR(LRScheduler):
    """One schedule after another: the k-th, from its own step 0, from milestones[k - 1] on. For a warm-up before another schedule."""

    def __init__(
        self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int], last_epoch: int = -1
    ):
        self.schedulers, self.milestones = list(schedulers), list(milestones)
        if len(self.milestones) != len(self.schedulers) - 1:
            raise OptionError(
                f"SequentialLR: expected one milestone less than schedules, got {len(self.milestones)} and {len(self.schedulers)}"
            )
        for scheduler in self.schedulers:
            if not isinstance(scheduler, LRScheduler) or scheduler.optimizer is not optimizer:
                raise OptionError(
                    "SequentialLR: expected schedules of the same optimizer, and none that waits for a metric"
                )
        if last_epoch == -1:  # making them has set the rate to what the last of them begins with
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"]
        super().__init__(optimizer, last_epoch)

    def _turn(self, t: int) -> tuple[LRScheduler, int]:
        """Whose turn it is at step t, and at which step of its own."""
        index = bisect_right(self.milestones, t)
        return self.schedulers[index], t - (self.milestones[index - 1] if index else 0)

    def rates(self, t: int) -> list[float]:
        scheduler, own = self._turn(t)
        return scheduler.rates(own)

    def set_others(self, t: int) -> None:
        scheduler, own = self._turn(t)
        scheduler.set_others(own)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "schedulers": [scheduler.state_dict() for scheduler in self.schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = dict(state_dict)
        for scheduler, state in zip(self.schedulers, own.pop("schedulers")):
            scheduler.load_state_dict(state)
        super().load_state_dict(own)


class ReduceLROnPlateau:
    """Multiplies the rate by `factor` once a metric has not improved for more than `patience` steps: `scheduler.step(loss)`.

    mode: "min" or "max". threshold_mode: better means better by the share ("rel") or the amount ("abs") `threshold`. cooldown: steps
    after a reduction that do not count. min_lr: one bound, or one per group. eps: smaller changes are not made.
    Raises: OptionError for options that make no sense.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ):
        if not factor < 1:
            raise OptionError(f"ReduceLROnPlateau: expected factor < 1, got {factor}")
        if mode not in ("min", "max") or threshold_mode not in ("rel", "abs"):
            raise OptionError(
                f"ReduceLROnPlateau: expected mode 'min' or 'max' and threshold_mode 'rel' or 'abs', got {mode!r} and {threshold_mode!r}"
            )
        count = len(optimizer.param_groups)
        self.min_lrs = list(min_lr) if isinstance(min_lr, Sequence) else [min_lr] * count
        if len(self.min_lrs) != count:
            raise OptionError(
                f"ReduceLROnPlateau: expected {count} values of min_lr, one per group, got {len(self.min_lrs)}"
            )
        self.optimizer = optimizer
        self.mode, self.factor, self.patience, self.cooldown, self.eps = mode, factor, patience, cooldown, eps
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.best = inf if mode == "min" else -inf
        self.num_bad_epochs = self.cooldown_counter = self.last_epoch = 0

    def is_better(self, value: float) -> bool:
        """Whether a value beats the best so far by more than the threshold."""
        threshold = self.threshold if self.mode == "max" else -self.threshold
        bound = self.best + threshold if self.threshold_mode == "abs" else self.best * (1 + threshold)
        return value > bound if self.mode == "max" else value < bound

    def step(self, metrics: Any) -> None:
        """Looks at a new value of the metric: a number, or a tensor, whose value is then waited for."""
        value = float(metrics)
        self.last_epoch += 1
        if self.is_better(value):
            self.best, self.num_bad_epochs = value, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
            for group, least in zip(self.optimizer.param_groups, self.min_lrs):
                reduced = max(group["lr"] * self.factor, least)
                if group["lr"] - reduced > self.eps:
                    group["lr"] = reduced

    def get_last_lr(self) -> list[float]:
        """The learning rates, per group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer."""
        return {name: value for name, value in self.__dict__.items() if name != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where another one stood."""
        self.__dict__.update(state_dict)
