"""Drive your own network's architecture search with an ASNG-NAS controller.

    space = asng.Space(op=asng.Categorical(["conv3", "conv5", "skip"]), width=asng.Integer(8, 64))
    with asng.connect("localhost:50051") as controller:
        study = controller.create_study("mine", space, max_steps=2000)
        for step in study.steps():
            for arch in step.train: train(model, arch)
            step.report([validate(model, arch) for arch in step.rank])
        print(study.best())

The loop goes on through restarts of the controller and lost replies. `asng.aio` is the same for asyncio. The log is that of
`logging.getLogger("asng")`.
"""

import os

# gRPC reads this when it is imported. By default it writes a line to stderr now and then when a data loader forks workers.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from asng._client import Controller, Step, Study, connect
from asng._errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    NotReported,
    PermissionDenied,
    ResourceExhausted,
    StudyFailed,
    Unauthenticated,
    Unavailable,
    Violation,
)
from asng._local import LocalController, local
from asng._protocol import Settings
from asng._space import Architecture, Best, Categorical, Integer, Space
from asng._study import Normal, Outcome, Progress, StudyState, StudySummary, Trainer

__all__ = [
    "AlreadyExists",
    "Architecture",
    "Best",
    "Categorical",
    "Controller",
    "Error",
    "FailedPrecondition",
    "Integer",
    "InvalidArgument",
    "Normal",
    "LocalController",
    "NotFound",
    "NotReported",
    "Outcome",
    "PermissionDenied",
    "Progress",
    "ResourceExhausted",
    "Settings",
    "Space",
    "Step",
    "Study",
    "StudyFailed",
    "StudyState",
    "StudySummary",
    "Trainer",
    "Unauthenticated",
    "Unavailable",
    "Violation",
    "connect",
    "local",
]
