"""How was it done: what counts as memory, how trials were chosen, where methods come from."""

from __future__ import annotations

from autotune.core.outcome import PeakKind
from autotune.report.cards.card import Card, count
from autotune.report.cards.findings import Findings, measured

KEY, TITLE, SHORT = "method", "Method", "Method"


def method_card(findings: Findings) -> Card:
    """Return how the numbers came about."""
    spec = findings.run.spec
    workload = spec.facts.workload
    inference = workload.purpose == "inference"
    counted = "the trained model in evaluation" if inference else "the whole training"
    texts = (
        f"Every trial trained for real: {workload.steps} optimizer steps of "
        f"{workload.global_batch} sequences of {workload.sequence_length} tokens, in a process of "
        f"its own, then scored on {count(workload.eval_examples, 'example')}. Peaks are those of "
        f"{counted}. {_memory(findings)}",
        f"The budget is held against the strictest of all peaks, with {spec.headroom:.0%} kept "
        "free. Configurations whose rehearsal on tensors without values surely needs more are "
        "refused before they start and cost no trial.",
        f"Configurations were proposed by the sampler {spec.sampler} after the baseline and the "
        "leanest one. A trial is on the front if no other that fits is at least as good in both "
        "score and peak memory (Pareto dominance). The knee is the point of the front farthest "
        "from the line between its ends (Das 1999; Branke et al. 2004).",
        "The effect of a knob is the mean difference over pairs of trials that differ in it "
        "alone, with a 95 % interval by Student's t; a trial may be in several pairs, which makes "
        "these intervals somewhat too narrow. Differences of two single scores have an interval "
        "from their standard errors, which is somewhat too wide, since both are over the same "
        "examples. Hypervolume is the area between the front and the worst score and peak seen "
        "(Zitzler and Thiele 1998).",
    )
    return Card(key=KEY, title=TITLE, short=SHORT, sentences=texts)


def _memory(findings: Findings) -> str:
    peaks = [p for record in findings.front for p in measured(record).peaks]
    if any(peak.kind is PeakKind.RESERVED for peak in peaks):
        return "Peak memory is what the caching allocator reserved on the device."
    return "Peak memory is the bytes of all live tensors; the process itself comes on top."
