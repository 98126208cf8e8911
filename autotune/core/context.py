"""What a configuration is judged against: the device, the model, and the rest of itself.

Knobs and rules are asked `blocked(value, context)`. Everything they may look at is here, as plain
numbers, so that `spaces show`, `--dry-run` and the search ask the same question without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from autotune.core.domains import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator, or the CPU as a whole.

    Attributes:
        kind: `"cuda"` or `"cpu"`.
        index: Which accelerator; 0 for the CPU.
        name: As the driver or the kernel calls it.
        total_bytes: Memory of the device; of the machine for a CPU.
        free_bytes: What of it was free when looked at.
        cores: CPU cores that this process may use.
        bf16: Whether bf16 is computed by instructions of its own.
        capability: CUDA compute capability, None on a CPU.
    """

    kind: str
    index: int = 0
    name: str = ""
    total_bytes: int = 0
    free_bytes: int = 0
    cores: int = 1
    bf16: bool = False
    capability: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """`cuda:0` or `cpu`, as torch spells it."""
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"

    def to_json(self) -> dict[str, object]:
        """Return the fields as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What rules need to know of a model, read from its configuration.

    Attributes:
        name: How screens call it.
        family: `model_type` of its transformers configuration, such as `"bert"`.
        layers: Number of blocks.
        heads: Attention heads in a block.
        kv_heads: Key/value heads in a block; equal to `heads` without grouped queries.
        hidden: Width of the residual stream.
        ffn: Width of the feed-forward layer.
        vocab: Size of the vocabulary.
        parameters: Number of parameters.
        pretrained: Whether trained weights are loaded.
        tied: Whether input and output embeddings share one tensor.
    """

    name: str = ""
    family: str = ""
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    hidden: int = 0
    ffn: int = 0
    vocab: int = 0
    parameters: int = 0
    pretrained: bool = False
    tied: bool = False

    def to_json(self) -> dict[str, object]:
        """Return the fields as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One configuration and what surrounds it.

    Attributes:
        config: Value of every knob, neutral ones included.
        device: Where it would run.
        model: What would be trained.
        global_batch: Sequences per optimizer step, whatever the micro-batch.
        libraries: Optional libraries that are installed, by import name.
        features: What of a data or evaluation plan the objective carries out: `"by_length"`,
            `"documents"`, `"on_the_fly"`, `"memory_map"`, `"stream"`; and what it has: a
            `"teacher"` of its own, sequences of `"fixed_length"`.
        purpose: Whose memory is minimised: `"training"` or `"inference"`.
        devices: Devices like `device` that one trial may use.
        sequence_length: Tokens per sequence, 0 if it is not known.
    """

    config: Mapping[str, Value] = field(default_factory=dict)
    device: Device = field(default_factory=lambda: Device(kind="cpu"))
    model: ModelFacts = field(default_factory=ModelFacts)
    global_batch: int = 1
    libraries: frozenset[str] = frozenset()
    features: frozenset[str] = frozenset()
    purpose: str = "training"
    devices: int = 1
    sequence_length: int = 0

    def with_config(self, config: Mapping[str, Value]) -> Context:
        """Return the same surroundings for another configuration."""
        return replace(self, config=config)

    def lacks(self, library: str, extra: str) -> str | None:
        """Return the sentence for a missing optional library, or None if it is there."""
        if library in self.libraries:
            return None
        return f"needs {library}, which is not installed: pip install 'autotune-memory[{extra}]'"
