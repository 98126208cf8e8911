"""What layouts ask of CUDA beside tensors: streams and events, which order work and hold nothing.

On a machine without CUDA a rehearsal has tensors that say they are on a device, but nothing to
order. These stand-ins do nothing, in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

CAPABILITY = (8, 0)
"""Of the device that is not there: one that has every collective."""


class NoStream:
    """A stream or an event on which nothing happens; whatever is asked of it is nothing."""

    device_index = 0
    device = "cuda:0"
    stream_id = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take any arguments."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: self


@contextmanager
def no_streams() -> Iterator[None]:
    """Let code order work on streams of a device that is not there."""
    stand_ins: dict[str, Any] = {
        "torch.cuda.Stream": NoStream,
        "torch.cuda.Event": NoStream,
        "torch.cuda.current_stream": NoStream,
        "torch.cuda.default_stream": NoStream,
        "torch.cuda.stream": lambda *_: nullcontext(),
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.set_device": lambda *_: None,
        "torch.cuda.synchronize": lambda *_: None,
        "torch.cuda.get_device_capability": lambda *_: CAPABILITY,
        "torch.cuda.get_device_properties": lambda *_: SimpleNamespace(
            major=CAPABILITY[0], minor=CAPABILITY[1], total_memory=1 << 40
        ),
        "torch.cuda.is_initialized": lambda: True,
        "torch.Tensor.record_stream": lambda *_: None,
    }
    with ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(patch(name, stand_in))
        yield
