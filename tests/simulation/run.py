"""
`make simulate`: runs of many seeds on two processes, then the mutants.
"""

from __future__ import annotations

import gc
import sys
import time

from .simulation import simulate
from .world import installed


def main() -> None:
    first, n = int(sys.argv[1]), int(sys.argv[2])
    verbose = "-v" in sys.argv
    bad = 0
    began = time.process_time()
    names = {}
    gc.disable()
    with installed():
        for seed in range(first, first + n):
            t0 = time.process_time()
            run = simulate(seed, print if verbose else None, next((a[5:] for a in sys.argv if a.startswith("only=")), ""))
            name, found = run.topology, run.violations
            took = time.process_time() - t0
            names.setdefault(name, []).append((took, run.requests, run.virtual_s))
            if seed % 100 == 0:
                gc.collect()
            if found:
                bad += 1
                if bad < 12 or verbose:
                    print(seed, name, *found, sep="\n   ")
    print(f"{bad} of {n} violated; {(time.process_time() - began) / n * 1000:.1f} ms a seed")
    for name, took in names.items():
        print(name, len(took), f"{sum(t for t, _, _ in took) / len(took) * 1000:.1f} ms", sum(r for _, r, _ in took) // len(took), "requests", f"{sum(s for _, _, s in took) / len(took):.1f} s virtual")


if __name__ == "__main__":
    main()
