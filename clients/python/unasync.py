"""Writes src/asng/_client.py, the client that waits, from src/asng/aio.py, the one for asyncio: run it after a change there.

Whatever differs otherwise than in the words below has two forms elsewhere, such as in _background.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent / "src/asng/aio.py"
TARGET = SOURCE.with_name("_client.py")

HEADER = '''# Written by unasync.py from aio.py: make changes there.
"""The client whose calls wait, with a thread that extends the lease of the step in hand."""
'''

WORDS = [
    (r"\bimport asyncio\n", ""),
    (r"\bimport time\n", "import threading\nimport time\n"),
    (r"\bimport sys\nimport threading", "import sys\nimport threading"),
    (r"\basyncio\.sleep\b", "time.sleep"),
    (r"\basyncio\.Lock\b", "threading.RLock"),
    (r"\ban `async ", "a `"),
    (r"\basync (with|for|def)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsyncIterator\b", "Iterator"),
    (r"\bAsyncGenerator\[Step, None\]", "Generator[Step, None, None]"),
    (r"\bAsyncGenerator\b", "Generator"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\bgrpc\.aio\.", "grpc."),
    (r"\bBackgroundTask\b", "BackgroundThread"),
    (r"\bCallTasks\b", "CallThreads"),
]


def client() -> str:
    """Returns what _client.py is to be."""
    text = re.sub(r'\A""".*?"""\n', lambda _: HEADER, SOURCE.read_text(), flags=re.DOTALL)
    for pattern, replacement in WORDS:
        text = re.sub(pattern, replacement, text)
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check", "--fix-only", "--select", "I"], ["format"]):
        command = [*ruff, *command, "--quiet", "--stdin-filename", str(TARGET), "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        text = done.stdout
    return text


if __name__ == "__main__":
    TARGET.write_text(client())
