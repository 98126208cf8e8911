"""Training by shapes alone: the shipped objectives on a config.json and random data.

To know the memory of a training, neither weights nor data are needed, only their shapes. These
objectives are the shipped ones with `look` replaced: the model is that of a `config.json` and is
taken to be pretrained, and data is drawn in the shapes that are asked for. They serve `autotune
estimate`, which rehearses them; nothing can be trained by them, since there are no weights to load.

They are not in the registry: `by_architecture` and the names of `TASKS` are imported by path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)
from transformers.models.auto import modeling_auto as families

from autotune.core.context import ModelFacts
from autotune.core.errors import ModelError
from autotune.core.workload import Metric, Workload, WorkloadFacts

from . import causal_lm as causal
from . import image_classification as image
from . import seq2seq as pairs
from . import text_classification as texts
from .cache import Array, Prepared
from .confusion import METRICS
from .encoder_decoder import (
    EXACT_MATCH,
    PERPLEXITY,
    TOKEN_ACCURACY,
    check_start,
    output_vocabulary,
)
from .models import describe_model, longest_sequence
from .sources import ModelSource, find_model
from .task import Task, filled

BATCHES = 4
"""Global batches of data that are drawn: as many as the greatest factor on the global batch."""

_SEED = 0
_HUB_SECONDS = 5.0
_HUB_FILES = ["config.json", "*.py"]
_PIXEL = (0.5, 0.5)
_HEADS: tuple[tuple[str, str], ...] = (
    ("ForCausalLM", "causal_lm"),
    ("LMHeadModel", "causal_lm"),
    ("ForImageClassification", "image_classification"),
    ("ForConditionalGeneration", "seq2seq"),
    ("MTModel", "seq2seq"),
    ("ForMaskedLM", "text_classification"),
    ("ForPreTraining", "text_classification"),
    ("ForSequenceClassification", "text_classification"),
    ("ForTokenClassification", "text_classification"),
    ("ForQuestionAnswering", "text_classification"),
)
"""What the end of a name in `architectures` says of the task; an encoder gets a classifier."""


class CausalLMShapes(causal.CausalLM):
    """Causal language modelling of random tokens."""

    def look(self) -> tuple[Prepared, WorkloadFacts]:
        """Read the model's configuration, and draw a stream of tokens; see `Task.look`."""
        source, config = _model(self.workload)
        length = self.workload.sequence_length or self._default_length(config)
        _check_length(length, source, config)
        batch = self.workload.global_batch
        defaults = self._defaults(source, BATCHES * (batch or 1), length)
        workload = _filled(self.workload, defaults)
        vocab = config.get_text_config().vocab_size
        rows = _rows(workload)
        random = np.random.default_rng(_SEED)
        arrays: dict[str, Array] = {
            "train": random.integers(vocab, size=rows * (length + 1), dtype=np.int32),
            "train_ends": np.arange(1, rows + 1, dtype=np.int64) * (length + 1),
            "eval": random.integers(
                vocab, size=workload.eval_examples * length + 1, dtype=np.int32
            ),
        }
        prepared = Prepared(
            arrays=arrays, facts={"source": asdict(source), "bytes": False, "teacher": None}
        )
        model, note = describe_model(AutoModelForCausalLM, source, config, vocab=vocab)
        metrics = (causal.PERPLEXITY, causal.TOKEN_ACCURACY)
        features = ("documents", "memory_map")
        return prepared, _facts(workload, model, prepared, metrics, features, note)


class TextClassificationShapes(texts.TextClassification):
    """Classification of texts of random tokens, some of them shorter than the longest."""

    def look(self) -> tuple[Prepared, WorkloadFacts]:
        """Read the model's configuration, and draw texts; see `Task.look`."""
        source, config = _model(self.workload)
        facts = {
            "source": asdict(source),
            "classes": list((config.id2label or {}).values()),
            "pad": config.get_text_config().pad_token_id or 0,
            "closing": None,
            "vocab": config.get_text_config().vocab_size,
            "tokenizer": None,
            "teacher": None,
        }
        sized = self._config(source, facts)
        assert isinstance(sized, PreTrainedConfig)
        config = sized
        if self.workload.sequence_length:
            _check_length(self.workload.sequence_length, source, config)
        most = self._most_tokens(source, config)
        defaults = self._defaults(source, BATCHES * 32, most)
        workload = _filled(self.workload, defaults)
        random = np.random.default_rng(_SEED)
        arrays: dict[str, Array] = {}
        for part, rows in (("train", _rows(workload)), ("eval", workload.eval_examples)):
            ids, ends = _drawn_rows(random, rows, most, facts["vocab"])
            arrays |= {f"{part}_ids": ids, f"{part}_ends": ends}
            arrays[f"{part}_labels"] = random.integers(
                len(facts["classes"]), size=rows, dtype=np.int32
            )
        prepared = Prepared(arrays=arrays, facts={**facts, "most": most})
        model, note = describe_model(AutoModelForSequenceClassification, source, config, vocab=0)
        features = ("by_length", "memory_map")
        return prepared, _facts(workload, model, prepared, METRICS, features, note)


class Seq2SeqShapes(pairs.Seq2Seq):
    """Pairs of random tokens, one read and one written."""

    def look(self) -> tuple[Prepared, WorkloadFacts]:
        """Read the model's configuration, and draw pairs; see `Task.look`."""
        source, config = _model(self.workload)
        check_start(config, source)
        if self.workload.sequence_length:
            _check_length(self.workload.sequence_length, source, config)
        most = self._most_tokens(source, config)
        workload = _filled(self.workload, self._defaults(source, config, BATCHES * 16, most))
        vocab = config.get_text_config().vocab_size
        random = np.random.default_rng(_SEED)
        arrays: dict[str, Array] = {}
        for part, rows in (("train", _rows(workload)), ("eval", workload.eval_examples)):
            for side in ("", "target_"):
                ids, ends = _drawn_rows(random, rows, most, vocab)
                arrays |= {f"{part}_{side}ids": ids, f"{part}_{side}ends": ends}
        facts = {
            "source": asdict(source),
            "pad": config.get_text_config().pad_token_id or 0,
            "closing": None,
            "target_closing": None,
            "target_length": most,
            "vocab": vocab,
        }
        prepared = Prepared(arrays=arrays, facts=facts)
        config = self._config(source, facts)
        model, note = describe_model(
            AutoModelForSeq2SeqLM, source, config, vocab=output_vocabulary(config)
        )
        metrics = (TOKEN_ACCURACY, EXACT_MATCH, PERPLEXITY)
        return prepared, _facts(workload, model, prepared, metrics, pairs.FEATURES, note)


class ImageClassificationShapes(image.ImageClassification):
    """Classification of grey images."""

    def look(self) -> tuple[Prepared, WorkloadFacts]:
        """Read the model's configuration, and make images of its size; see `Task.look`."""
        source, config = _model(self.workload)
        patches = image._patches(config, source)
        if self.workload.sequence_length not in (0, patches):
            raise ModelError(
                f"{source.name} reads an image as {patches} patches, whatever sequence length is "
                "asked for",
                where=source.folder,
                help="leave out --sequence-length",
            )
        workload = _filled(self.workload, self._defaults(source, BATCHES * 32, patches))
        classes = list((config.id2label or {}).values())
        shape = (config.num_channels, config.image_size, config.image_size)
        arrays: dict[str, Array] = {}
        for part, rows in (("train", _rows(workload)), ("eval", workload.eval_examples)):
            arrays[f"{part}_pixels"] = np.full((rows, *shape), 127, np.uint8)
            arrays[f"{part}_labels"] = np.arange(rows, dtype=np.int32) % len(classes)
        mean, deviation = _PIXEL
        facts = {
            "source": asdict(source),
            "classes": classes,
            "made": {},
            "mean": [mean],
            "deviation": [deviation],
        }
        prepared = Prepared(arrays=arrays, facts=facts)
        model, note = describe_model(
            AutoModelForImageClassification, source, self._config(source, facts), vocab=0
        )
        return prepared, _facts(workload, model, prepared, METRICS, image.FEATURES, note)


TASKS: Mapping[str, type[Task]] = {
    "causal_lm": CausalLMShapes,
    "image_classification": ImageClassificationShapes,
    "seq2seq": Seq2SeqShapes,
    "text_classification": TextClassificationShapes,
}
"""The objective of shapes by the name of the shipped one."""


def by_architecture(workload: Workload, cache: Path) -> Task:
    """Return the objective for what a model is made for, by its configuration.

    Args:
        workload: What is asked for; its objective is replaced.
        cache: As for any objective.

    Raises:
        ModelError: If there is no model, or its configuration does not tell.
    """
    source, config = _model(workload)
    task = TASKS[_task_of(source, config)]
    return task(replace(workload, objective=f"{__name__}:{task.__name__}"), cache)


def _task_of(source: ModelSource, config: PreTrainedConfig) -> str:
    """Return the name of the task that a model was made for.

    Raises:
        ModelError: If its configuration does not tell.
    """
    names = [str(name) for name in config.architectures or ()]
    family = config.model_type
    if family in families.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
        raise ModelError(
            f"{source.name} hears speech, and how long recordings are is not known without data",
            where=source.folder,
            help="--objective speech_recognition --data FOLDER",
        )
    for ending, task in _HEADS:
        if any(name.endswith(ending) for name in names):
            return task
    if family in families.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "seq2seq"
    if family in families.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "image_classification"
    if family in families.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "text_classification"  # encoders can be made to predict the next token, too
    if family in families.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal_lm"
    raise ModelError(
        f"{source.name} is of the family '{family}'"
        + (f", {', '.join(names)}" if names else "")
        + ", and which training it is for cannot be told",
        where=source.folder,
        help=f"name it: --objective {', '.join(TASKS)}",
    )


def _model(workload: Workload) -> tuple[ModelSource, PreTrainedConfig]:
    """Return the model as if its weights were there, and its configuration."""
    asked = workload.model or ""
    local = (
        Path(asked).expanduser().exists() or asked.startswith((".", "~")) or (asked.count("/") > 1)
    )
    source = find_model(asked if local else _hub_config(asked), trust=workload.trust_remote_code)
    name = source.name if local else asked
    source = replace(source, name=name, pretrained=True, note="")
    return source, source.config()


def _hub_config(name: str) -> str:
    """Return a folder with a hub model's configuration; its weights are not fetched.

    Raises:
        ModelError: If the hub does not have it, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return snapshot_download(name, allow_patterns=_HUB_FILES, etag_timeout=_HUB_SECONDS)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ModelError(
            f"there is no folder '{name}' here, and the hub does not give its config.json",
            help="give a folder with config.json; for a gated or private model: hf auth login",
        ) from error


def _check_length(asked: int, source: ModelSource, config: PreTrainedConfig) -> None:
    """Hold a sequence length against the model's positions.

    Raises:
        ModelError: If it is longer.
    """
    most = longest_sequence(config)
    if most is not None and asked > most:
        raise ModelError(
            f"sequences of {asked} tokens are longer than the {most} that {source.name} "
            "has positions for",
            where=source.folder,
            help=f"--sequence-length {most}, or less",
        )


def _filled(workload: Workload, defaults: Mapping[str, float]) -> Workload:
    batch = workload.global_batch or int(defaults["global_batch"])
    return filled(workload, {**defaults, "eval_examples": batch}, most_eval=batch)


def _rows(workload: Workload) -> int:
    return BATCHES * workload.global_batch


def _drawn_rows(
    random: np.random.Generator, rows: int, most: int, vocab: int
) -> tuple[Array, Array]:
    """Return `ids` and `ends` of sequences; some are shorter, so that batches have a mask."""
    lengths = random.integers((most + 1) // 2, most + 1, size=rows)
    lengths[0] = most
    ids = random.integers(vocab, size=int(lengths.sum()), dtype=np.int32)
    return ids, np.cumsum(lengths, dtype=np.int32)


def _facts(
    workload: Workload,
    model: ModelFacts,
    prepared: Prepared,
    metrics: tuple[Metric, ...],
    features: tuple[str, ...],
    note: str,
) -> WorkloadFacts:
    return WorkloadFacts(
        workload=workload,
        model=model,
        data="random data",
        data_fingerprint=prepared.digest,
        metrics=metrics,
        note=note,
        features=features,
    )
