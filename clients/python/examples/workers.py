"""Several worker processes on one study: each leases its own steps, and any of them may be killed or added.

pip install asng
python workers.py 4     # beside a controller
"""

import multiprocessing
import sys

import asng

SPACE = asng.Space(
    **{f"layer {i}": asng.Categorical(["conv3", "conv5", "pool", "skip"]) for i in range(8)}
)


def loss(arch: asng.Architecture) -> float:
    """Stands for hours of training: how many layers are not the right one."""
    return float(sum(op != "conv5" for op in arch.values.values()))


def work(number: int) -> None:
    with asng.connect() as controller:
        # The same name after a restart takes the step up that was left behind.
        for step in controller.study("workers").steps(trainer_id=f"worker-{number}"):
            step.report([loss(arch) for arch in step.rank])


def main(workers: int) -> None:
    with asng.connect() as controller:
        study = controller.create_study("workers", SPACE, max_steps=600, lambda_x=0, seed=0)
        # gRPC does not survive a fork.
        processes = [
            multiprocessing.get_context("spawn").Process(target=work, args=(n,))
            for n in range(workers)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        print(study.best())
        shares = [record["trainer"] for record in study.history()[::2]]
        print(", ".join(f"{name}: {shares.count(name)} steps" for name in sorted(set(shares))))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
