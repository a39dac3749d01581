"""Training steps per second, here and elsewhere: all providers in processes of their own, which take turns round by round."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from . import limits, memory, stage, work
from .problem import Problem
from .providers import PROVIDERS, Provider
from .results import Product, Result, Run
from .workers import Failed, Worker

PATIENCE = 90.0  # seconds for the steps of a rehearsal, compilation included
BUDGET = 20.0  # seconds of steps after which a slow provider sits out the rounds that are left
LEAST_ROUNDS = 3
# Of how much the loss changes in the rehearsal, by float32 products and by those of TF32. Adam with its epsilon beside the uncorrected
# square root (scikit-learn, thinc) is 0.8 % off for one network and 1.3 % for another; a missing weight decay is beyond it.
TOLERANCE = {"highest": 0.01, "high": 0.05}


@dataclass(frozen=True)
class Effort:
    """How long is measured: rounds, and seconds of steps that a provider makes in each."""

    threads: int
    rounds: int = 11
    seconds: float = 0.1
    smoke: bool = False
    patience: float = PATIENCE


class Watcher:
    """Who hears of what goes on; this one hears nothing."""

    def begins(self, what: str, parts: int) -> None:
        """Work of so many parts begins."""

    def does(self, what: str) -> None:
        """A part of it begins."""

    def done(self) -> None:
        """A part of it is done."""

    def left_out(self, line: str) -> None:
        """Something cannot be measured."""


def measure_limits(run: Run, device: str, precision: str, effort: Effort) -> None:
    """The rates of a large copy and of a large product."""
    with Worker(effort.threads) as worker:
        measured = worker.call(limits.measure, device, precision, effort.smoke)
    run.limits[device] = {
        "copy_bytes_per_second": measured.copy_bytes_per_second,
        "flops_per_second": measured.flops_per_second,
    }


def measure_products(
    run: Run, problem: Problem, providers: Sequence[Provider], effort: Effort, watcher: Watcher
) -> None:
    """The products of each provider's own library: where these differ, so do whole steps. The best of all is the limit."""
    n = 64 if effort.smoke else 1024 if problem.device == "cpu" else 4096
    own = {p.module: p for p in reversed(providers) if p.module in (".by_hand", ".torch", ".jax")}
    watcher.begins("products", len(own) + effort.rounds)
    with contextlib.ExitStack() as stack:
        entered: list[tuple[Product, Worker]] = []
        for module, provider in reversed(own.items()):
            watcher.does(provider.name)
            worker = stack.enter_context(Worker(effort.threads))
            with contextlib.suppress(Failed):  # its step will fail too, and be told of
                worker.call(stage.enter_product, module, problem, n, effort.seconds)
                entered.append((Product(problem.device, provider.name, n), worker))
            watcher.done()
        for _ in range(effort.rounds):
            for product, worker in entered:
                product.seconds.append(worker.call(stage.turn, effort.seconds)[0])
            watcher.done()
    run.products += [product for product, _ in entered]
    found = run.limits[problem.device]
    found["flops_per_second"] = max([found["flops_per_second"], *(product.flops_per_second for product, _ in entered)])


def suited(problem: Problem, providers: Sequence[Provider]) -> list[Provider]:
    kind = problem.device.partition(":")[0]
    return [p for p in providers if kind in p.devices]


def compare_steps(
    run: Run,
    problem: Problem,
    providers: Sequence[Provider],
    effort: Effort,
    watcher: Watcher,
    series: str = "",
) -> None:
    """Adds the results of the providers at one problem."""
    providers = suited(problem, providers)
    watcher.begins(str(problem), 1 + len(providers) + effort.rounds)

    def leave_out(name: str, why: str) -> None:
        again = any(line.startswith(f"{name} at ") and line.endswith(f": {why}") for line in run.left_out)
        line = f"{name} at {problem}: {why}" if name else f"{problem}: {why}"
        run.left_out.append(line)
        if not again:
            watcher.left_out(line)

    least, free = least_memory(problem), memory.available()
    if free is not None and least > free:
        leave_out("", f"out of memory: it needs {least / 1e9:.1f} GB at least, and {free / 1e9:.1f} GB are free")
        return
    watcher.does("what it has to compute")
    try:
        with Worker(effort.threads) as worker:
            expected = worker.call(stage.reference, problem)
            least_work = worker.call(work.count, problem)
    except Failed as failed:
        leave_out("", str(failed))
        return
    watcher.done()
    limit = limits.Limits(**run.limits[problem.device]).seconds(least_work.flops, least_work.nbytes)
    with contextlib.ExitStack() as stack:
        entered: list[tuple[Result, Worker]] = []
        for provider in providers:
            watcher.does(provider.name)
            worker = stack.enter_context(Worker(effort.threads))
            try:
                seen = worker.call(stage.rehearse, provider, problem, effort.patience)
                if provider.role != "floor":
                    check_losses(seen.losses, expected, problem.precision)
                worker.call(stage.enter, provider, problem, effort.seconds)
            except Failed as failed:
                worker.close()
                leave_out(provider.name, str(failed))
                continue
            finally:
                watcher.done()
            result = Result(
                problem,
                provider.name,
                provider.role,
                seen.first_step_seconds,
                seen.peak_bytes,
                seen.version,
                seen.thread_pools,
                seen.losses,
                series,
                flops=least_work.flops,
                nbytes=least_work.nbytes,
                limit_seconds=limit,
            )
            entered.append((result, worker))
        watcher.does("in turns")
        for failed_result, why in take_turns(entered, effort, watcher):
            leave_out(failed_result.provider, why)
        run.results += [result for result, _ in entered if result.seconds]


def take_turns(entered: list[tuple[Result, Worker]], effort: Effort, watcher: Watcher) -> Iterator[tuple[Result, str]]:
    """Fills in the seconds of all, round by round; yields those that fail on the way, whose seconds are dropped."""
    spent = [0.0] * len(entered)
    failed = set[int]()
    for round in range(effort.rounds):
        for k, (result, worker) in enumerate(entered):
            if k in failed or (round >= LEAST_ROUNDS and spent[k] > BUDGET):
                continue
            try:
                seconds, host = worker.call(stage.turn, effort.seconds)
            except Failed as error:
                failed.add(k)
                result.seconds.clear()
                yield result, str(error)
                continue
            spent[k] += max(seconds, effort.seconds)
            result.seconds.append(seconds)
            result.host_seconds.append(host)
        watcher.done()


def least_memory(problem: Problem) -> int:
    """Bytes of parameters, gradients, two moments, and activations with their gradients: no provider does with less."""
    return 4 * (4 * problem.parameters + 2 * problem.batch * sum(problem.sizes))


def check_losses(losses: Sequence[float], expected: Sequence[float], precision: str) -> None:
    """Raises: Failed, where the losses are not those expected."""
    allowed = TOLERANCE[precision] * (max(expected) - min(expected))
    for step, (loss, right) in enumerate(zip(losses, expected, strict=True), 1):
        if not abs(loss - right) <= allowed:
            raise Failed(
                f"it computes something else: its loss at step {step} is {loss:.6f}, where float64 gives {right:.6f}"
            )


def choose(names: Sequence[str] | None, devices: Sequence[str], leave_out: Callable[[str], None]) -> list[Provider]:
    """The providers of these names, or all for the devices, that are installed."""
    from gpuprop.errors import did_you_mean

    kinds = {device.partition(":")[0] for device in devices}
    chosen = []
    for name in names or [name for name, provider in PROVIDERS.items() if kinds & {*provider.devices}]:
        provider = PROVIDERS.get(name)
        if provider is None:
            leave_out(f"{name}: there is no such provider; {did_you_mean(name, PROVIDERS)}")
        elif not kinds & {*provider.devices}:
            leave_out(f"{name}: it does not run on {', '.join(devices)}")
        elif not provider.installed:
            leave_out(f"{name}: {provider.package} is not installed")
        elif provider not in chosen:
            chosen.append(provider)
    return chosen
