"""Measures time and memory of planning ResNet-50 to half of its FLOPs by LASSO.

The weights are random, the images 224 × 224.

Run it: python benchmarks/resnet50.py --memory-limit 1500
With --whole, sgdap.plan is run as users run it. It lets go of what it no longer needs, so its peak
is the one that the limit is about. Without, the stages are shown one by one.
"""

import argparse
import resource
import time

import keras
import numpy as np

import sgdap
from sgdap.guidance.score import score_groups
from sgdap.pipeline import plan_from_curves
from sgdap.planning.options import PruningOptions
from sgdap.planning.scope import pruning_scope


def images(count, size=224, seed=0):
    """Random images: each is a mix of a few smooth patterns, plus noise."""
    random = np.random.default_rng(seed)
    axis = np.linspace(0, 1, size)
    waves = random.uniform(1, 12, (20, 2))
    patterns = np.cos(2 * np.pi * (waves[:, :1, None] * axis[:, None] + waves[:, 1:, None] * axis))
    x = random.normal(0, 0.3, (count, size, size, 3)).astype("float32")
    for image in x:
        image += np.einsum("phw,pc->hwc", patterns, random.normal(0, 0.5, (20, 3)))
    return x


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--memory-limit", type=int, help="MB; a quarter of the free memory if not")
    parser.add_argument("--guidance", default="lasso")
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--no-reconstruction", action="store_true", help="with --whole")
    options = parser.parse_args()

    limit = options.memory_limit and options.memory_limit * 10**6
    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(weights=None)
    x = images(options.samples)

    def timed(stage, work):
        wall, processor = time.perf_counter(), time.process_time()
        made = work()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kB on Linux
        print(
            f"{stage}: {wall:.0f} s, {processor:.0f} s of processor time, "
            f"{peak:.2f} GB resident at most so far",
            flush=True,
        )
        return made

    if options.whole:
        timed("one sample", lambda: model(x[:1]).numpy())
        budget = sgdap.Budget(flops=options.flops)
        timed(
            "sgdap.plan",
            lambda: sgdap.plan(
                model,
                x,
                budget,
                guidance=options.guidance,
                reconstruction=not options.no_reconstruction,
                samples=None,
                memory_limit=limit,
            ),
        )
        return
    graph = timed("channels", lambda: sgdap.channel_graph(model))
    how = PruningOptions(guidance=options.guidance, samples=None, memory_limit=limit)
    scope = pruning_scope(graph, how)
    statistics = timed(
        "calibration pass", lambda: sgdap.collect_statistics(graph, x, memory_limit=limit)
    )
    curves = timed(
        "scoring",
        lambda: score_groups(
            graph, statistics, how.criterion, groups=scope.groups, memory_limit=limit
        ),
    )
    plan = timed(
        "allocation and refit",
        lambda: plan_from_curves(
            scope, statistics, curves, sgdap.Budget(flops=options.flops), how, x
        ),
    )
    print(plan)
    before, after = model(x[:16]).numpy(), sgdap.apply(model, plan)(x[:16]).numpy()
    print(
        f"outputs differ by {np.abs(after - before).mean() / before.std():.3f} of their deviation"
    )


if __name__ == "__main__":
    main()
