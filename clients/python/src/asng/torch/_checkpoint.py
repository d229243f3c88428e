"""The files of a search in its directory: a checkpoint now and then, and a journal of the steps since.

A process that was killed starts from the checkpoint and computes the steps of the journal again. Each of these was written down
before it was computed, so the weights become what they were, to the last bit where the device computes reproducibly.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from asng.torch._training import Step

try:
    import fcntl
except ImportError:  # Windows, where two processes in one directory go unnoticed.
    fcntl = None  # type: ignore[assignment]


class Checkpoint:
    """The checkpoint in a directory, which belongs to one process at a time."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._file = self._directory / "checkpoint.pt"
        self._lock = open(self._directory / "lock", "w")
        try:
            if fcntl:
                # A lock that workers of loaders, which may outlive this process for seconds, do not inherit.
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise RuntimeError(
                f"another process uses the checkpoint in {self._directory}: give each trainer a directory of its own"
            ) from None
        self._journal = open(self._directory / "journal.jsonl", "ab+", buffering=0)

    def load(self) -> dict[str, Any] | None:
        """Returns what was saved last, with tensors on the CPU. Runs what the file says, as every pickle: trust the directory."""
        if not self._file.exists():
            return None
        # States of schedulers have objects that loading of weights alone refuses.
        try:
            state: dict[str, Any] = torch.load(self._file, map_location="cpu", weights_only=False)
        except Exception as error:
            raise ValueError(
                f"the checkpoint {self._file} cannot be read: {error}\n  give another directory, and another study, to start anew"
            ) from error
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the checkpoint, and empties the journal. Whenever the process ends, one of the two checkpoints is whole."""
        # PyTorch aborts the process if a file takes no more; memory does.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        part = self._file.with_suffix(".part")
        with self._explains_errors():
            with open(part, "wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._file)
            if fcntl:  # Only now the new name survives a power cut as well.
                directory = os.open(self._directory, os.O_RDONLY)
                os.fsync(directory)
                os.close(directory)
            self._journal.truncate(0)

    def append(self, number: int, step: Step) -> None:
        """Writes down a step that is about to be computed, as the `number`th of this search."""
        line = b"\n" + json.dumps({"number": number, **step.to_json()}).encode()
        with self._explains_errors():
            while line:
                line = line[self._journal.write(line) :]

    def steps_after(self, number: int) -> list[Step]:
        """Returns the steps of the journal that are not in the checkpoint, which has `number`."""
        self._journal.seek(0)
        steps: dict[int, Step] = {}
        for line in self._journal:
            try:
                fields = json.loads(line)
            except ValueError:
                continue  # The process has ended while it wrote this line.
            # A step that is handed out again comes twice.
            steps[fields["number"]] = Step.from_json(fields)
        return [step for n, step in sorted(steps.items()) if n > number]

    @contextmanager
    def _explains_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}; the search has ended and can be started again when its checkpoint can be written",
                str(self._directory),
            ) from error

    def close(self) -> None:
        self._journal.close()
        self._lock.close()
