"""Run a fuzzer: packets (lives, twins compared), or one of the guided ones below.

    python -m fuzz packets  [--seconds S] [--seed N] [--lives N] [--backends cython]
    python -m fuzz guided   [--seconds S] [--seed N]      packets-guided, rules, saved, config, control, state, in turns
    python -m fuzz blind    --target NAME [--seconds S] [--seed N]      one of them, without coverage

Guided means by coverage, with atheris (an optional package) where it is installed; else the corpus is mutated blindly.
What fails is printed with the seed or the input that brings it back; --seed N --lives 1 plays a life once more.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

CORPUS = Path(__file__).parents[1] / "corpus"
GUIDED = ("packets", "rules", "saved", "config", "control", "state")
STEPS = 5000                                        # packets of one life


def lives(seconds: float, seed: int, most: int, backends: tuple[str, ...]) -> None:
    """Live one life after the other until the time is over."""
    from fuzz.packets import Life, corpus

    honest, began, packets = corpus(), time.monotonic(), 0
    reasons: Counter[str] = Counter()
    for number in range(seed, seed + most):
        life = Life(number, backends, honest)
        try:
            for _ in range(STEPS):
                life.step()
                packets += 1
            life.end()
        except BaseException:
            print(f"seed {number}, after {packets % STEPS} packets", flush=True)
            raise
        reasons.update(life.gateways[0].engine.stats().by_reason)
        if time.monotonic() - began > seconds:
            break
    rare = ", ".join(f"{name} {count}" for name, count in sorted(reasons.items()) if count)
    print(f"packets: {packets:,} in {time.monotonic() - began:.0f} s, seeds {seed} to {number}, {backends}\n  {rare}")


def target(name: str) -> object:
    """The function that a guided fuzzer calls."""
    from fuzz import packets, state, texts

    return {"packets": packets.one_input, "state": state.state}.get(name) or getattr(texts, name)


def blind(name: str, seconds: float, seed: int) -> None:
    """Mutate the corpus without looking."""
    seeds = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    call = target(name)
    dice, began, n = random.Random(seed), time.monotonic(), 0
    while time.monotonic() - began < seconds:
        data = bytearray(dice.choice(seeds))
        for _ in range(dice.randrange(8)):
            at = dice.randrange(len(data) + 1)
            data[at:at + dice.randrange(4)] = dice.choice((dice.randbytes(2), dice.choice(seeds)[at:at + 9], b""))
        try:
            call(bytes(data))                       # type: ignore[operator]
        except BaseException:
            print(f"{name}: {bytes(data)!r}", flush=True)
            raise
        n += 1
    print(f"{name}: {n:,} inputs in {seconds:.0f} s, seed {seed}, without coverage (pip install atheris)")


def by_coverage(name: str, seconds: int, seed: int) -> None:
    """Hand over to libFuzzer, which ends the process."""
    import atheris

    with atheris.instrument_imports(include=["natengine"], enable_loader_override=False):
        call = target(name)
    with tempfile.TemporaryDirectory() as found:
        # the process ends in Fuzz(): whoever started it removes nothing but that directory's name
        atheris.Setup(
            [sys.argv[0], found, str(CORPUS / name), f"-max_total_time={seconds}", "-max_len=4096", "-verbosity=0",
             f"-seed={seed % 2**32}", "-print_final_stats=1", f"-artifact_prefix={os.getcwd()}/"],
            call,
        )
        atheris.Fuzz()


def guided(seconds: int, seed: int) -> None:
    """Each in a process of its own, for its share of the time."""
    share = str(max(1, seconds // len(GUIDED)))
    for name in GUIDED:
        argv = [sys.executable, "-m", "fuzz", "one", "--target", name, "--seconds", share, "--seed", str(seed)]
        done = subprocess.run(argv, stderr=subprocess.PIPE, text=True)
        runs = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        if done.returncode:
            sys.exit(f"{name}: {done.stderr[-5000:]}")
        if runs:
            print(f"{name}: {int(runs[0]):,} inputs, seed {seed}, guided by coverage")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__, allow_abbrev=False)
    parser.add_argument("what", choices=("packets", "guided", "one", "blind"))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--lives", type=int, default=1 << 30)
    parser.add_argument("--backends", default="python,cython")
    parser.add_argument("--target", choices=GUIDED)
    options = parser.parse_args()
    if options.what == "packets":
        lives(options.seconds, options.seed, options.lives, tuple(options.backends.split(",")))
    elif options.what == "guided":
        guided(options.seconds, options.seed)
    elif options.what == "one" and importlib.util.find_spec("atheris"):
        by_coverage(options.target, options.seconds, options.seed)
    else:
        blind(options.target, options.seconds, options.seed)


main()
