"""What a value needs beside it is found from the sentences that block it."""

from __future__ import annotations

from autotune.core.companions import first_reason, with_companions
from autotune.core.context import Context, Device, ModelFacts
from autotune.core.rules import Rule
from autotune.knobs import BUILTIN
from tests.knobs import KNOBS

MODEL = ModelFacts(family="llama", layers=4, heads=4, kv_heads=4, hidden=64, ffn=128,
                   vocab=512, pretrained=True)  # fmt: skip
CONTEXT = Context(
    device=Device(kind="cpu"), model=MODEL, global_batch=8, libraries=frozenset({"peft"})
)


def test_a_legal_value_needs_nothing() -> None:
    assert with_companions({"checkpointing": "full"}, BUILTIN, CONTEXT) == {"checkpointing": "full"}


def test_the_fewest_others_are_added() -> None:
    found = with_companions({"weight_bits": 4}, BUILTIN, CONTEXT)
    assert found == {"weight_bits": 4, "lora.rank": 4}
    found = with_companions({"weight_bits.format": "nf4"}, BUILTIN, CONTEXT)
    assert found is not None
    assert set(found) == {"weight_bits.format", "weight_bits", "lora.rank"}
    assert first_reason(found, BUILTIN, CONTEXT) is None


def test_what_nothing_makes_legal_is_none() -> None:
    values = {"optimizer.offload": "host"}
    assert with_companions(values, BUILTIN, CONTEXT) is None
    assert first_reason(values, BUILTIN, CONTEXT)


def test_rules_count_as_reasons() -> None:
    rule = Rule(
        name="ranks-need-bits",
        holds=lambda c: not c.config["lora.rank"] or c.config["weight_bits"] != 16,
        reason="adapters alone are not wanted here: set weight_bits to 8",
    )
    context = Context(config={})
    assert first_reason({"lora.rank": 8}, KNOBS, context, (rule,)) == rule.reason
    found = with_companions({"lora.rank": 8}, KNOBS, context, (rule,))
    assert found == {"lora.rank": 8, "weight_bits": 8}


def test_wanted_values_are_never_changed() -> None:
    wanted = {"share": 0.75, "checkpointing": "full"}  # these two exclude each other
    assert with_companions(wanted, KNOBS, Context(config={}), ()) is None
