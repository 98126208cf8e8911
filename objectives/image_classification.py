"""Image classification: an image in, one of several classes out.

By default a small vision transformer learns to read drawn digits, in seconds and with nothing to
download. Your own model and data: `--model`, and `--data` for a folder with a subfolder for each
class, or an `.npz` file with the arrays `images` and `labels`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageClassification, PreTrainedConfig, ViTConfig

from autotune.core.errors import ModelError
from autotune.core.outcome import Score
from autotune.core.workload import WorkloadFacts
from autotune.knobs.stages import DataPlan, EvalPlan, LoadPlan, StepPlan
from autotune.trial.objective import Batch

from .cache import Array, Prepared
from .columns import held_out
from .confusion import METRICS, confusion_scores
from .drawn_digits import drawn_digits
from .images import Pictures, PictureSplits, class_names, read_pictures
from .limits import check_fixed_length, refuse_teacher
from .models import build_model, describe_model
from .sources import ModelSource, find_model
from .task import Task, check_counts, filled, shuffled_places, suggested_steps

FEATURES = ("fixed_length", "memory_map")
"""What of a data plan is carried out here, and that images have one size."""

_KIND = AutoModelForImageClassification
_DRAWN, _HELD_SHARE = 4500, 0.1
_PATCHES_ACROSS, _LARGEST_SIDE = 4, 32
_MIDDLE = 0.5
"""Mean and deviation of a channel for models that do not say: bytes become -1 to 1."""


class ImageClassification(Task):
    """Cross-entropy over classes; accuracy and macro-averaged F1 on held-out images."""

    def look(self) -> tuple[Prepared, WorkloadFacts]:
        """Find images, classes and model, and bring the images to one size; see `Task.look`."""
        refuse_teacher(self.workload)
        splits, name = self._splits()
        classes = class_names(splits)
        source, facts = self._model(splits.train, classes)
        config = self._config(source, facts)
        patches = _patches(config, source)
        check_fixed_length(self.workload, patches, "patches of an image", source)
        workload = filled(
            self.workload,
            self._defaults(source, len(splits.train), patches),
            most_eval=len(splits.held),
        )
        check_counts(
            workload,
            train=len(splits.train),
            evaluate=len(splits.held),
            unit="images",
            where=splits.where,
        )
        held = splits.held.pick(range(workload.eval_examples))
        place = {kind: number for number, kind in enumerate(classes)}
        arrays: dict[str, Array] = {}
        for part, pictures in (("train", splits.train), ("eval", held)):
            arrays[f"{part}_pixels"] = pictures.pixels(config.image_size, config.num_channels)
            arrays[f"{part}_labels"] = np.array([place[n] for n in pictures.labels], np.int32)
        prepared = Prepared(arrays=arrays, facts=facts)
        model, note = describe_model(_KIND, source, config, vocab=0)
        return prepared, WorkloadFacts(
            workload=workload,
            model=model,
            data=f"{name}: {len(splits.train):,} images to train on, {len(held):,} to evaluate on, "
            f"{len(classes)} classes, sha256 {prepared.digest[:12]}",
            data_fingerprint=prepared.digest,
            metrics=METRICS,
            note=" ".join(filter(None, (source.note, note))),
            features=FEATURES,
        )

    def train_batches(self, plan: DataPlan, seed: int) -> Iterator[Batch]:
        """Yield batches of `pixel_values` and `labels`."""
        pixels = self.array("train_pixels", mapped=plan.memory_map)
        labels = self.array("train_labels", mapped=plan.memory_map)
        for places in shuffled_places(len(labels), plan.global_batch, seed):
            yield self._batch(pixels, labels, places)

    def eval_batches(self, plan: EvalPlan, sequence_length: int) -> Sequence[Batch]:
        """Return the held-out images in batches of at most `plan.batch`."""
        arrays = self.prepared.arrays
        pixels, labels = arrays["eval_pixels"], arrays["eval_labels"]
        everything = np.arange(len(labels))
        return [
            self._batch(pixels, labels, everything[start : start + plan.batch])
            for start in range(0, len(labels), plan.batch)
        ]

    def build(self, plan: LoadPlan, seed: int) -> nn.Module:
        """Return the model with a classification head."""
        config = self._config(self.source, self.prepared.facts)
        return build_model(_KIND, self.source, config, plan, seed)

    def loss(self, model: nn.Module, batch: Batch, plan: StepPlan) -> Tensor:
        """Return the mean cross-entropy over the images of a batch, computed in fp32."""
        return cross_entropy(_logits(model, batch["pixel_values"]), batch["labels"])

    def evaluate(
        self, model: nn.Module, batches: Sequence[Batch], plan: EvalPlan
    ) -> Mapping[str, Score]:
        """Return accuracy and macro-averaged F1 with their standard errors."""
        classes = len(self.prepared.facts["classes"])
        device = next(model.parameters()).device
        counts = np.zeros((classes, classes), np.int64)
        training = model.training
        model.eval()
        with torch.no_grad():
            for batch in batches:
                logits = _logits(model, batch["pixel_values"].to(device))
                np.add.at(counts, (batch["labels"].numpy(), logits.argmax(-1).cpu().numpy()), 1)
        model.train(training)
        return confusion_scores(counts)

    def _splits(self) -> tuple[PictureSplits, str]:
        """Return the images, and how screens call them."""
        if self.workload.data is not None:
            return read_pictures(self.workload.data), self.workload.data
        images, labels = drawn_digits(_DRAWN)
        everything = Pictures(array=images[..., None], labels=labels)
        training, held = held_out(len(everything), _HELD_SHARE)
        splits = PictureSplits(
            train=everything.pick(training), held=everything.pick(held), where="the drawn digits"
        )
        return splits, "drawn digits"

    def _model(
        self, pictures: Pictures, classes: Sequence[str]
    ) -> tuple[ModelSource, dict[str, Any]]:
        """Return where the model comes from, and what a trial needs to know of it again."""
        asked = self.workload.model
        if asked is not None:
            source = find_model(asked, trust=self.workload.trust_remote_code)
            mean, deviation = _normalisation(source)
            made = {}
        else:
            size = _PATCHES_ACROSS * -(-pictures.side // _PATCHES_ACROSS)
            source = ModelSource(name="ViT 3x64")
            mean, deviation = [_MIDDLE], [_MIDDLE]
            made = {"side": min(size, _LARGEST_SIDE), "channels": pictures.channels}
        facts = {"source": asdict(source), "classes": list(classes), "made": made}
        return source, {**facts, "mean": mean, "deviation": deviation}

    def _config(self, source: ModelSource, facts: Mapping[str, Any]) -> PreTrainedConfig:
        """Return the model's configuration, with what the classes decide."""
        classes = facts["classes"]
        config = source.config() if source.folder else _small_vit(**facts["made"])
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: number for number, name in enumerate(classes)}
        return config

    def _defaults(self, source: ModelSource, train: int, patches: int) -> Mapping[str, float]:
        """Return a training of seconds for the default data, of three passes for other data."""
        own_model = self.workload.model is None
        builtin = own_model and self.workload.data is None
        batch = self.workload.global_batch or (64 if builtin else 32)
        rate = 1e-4 if source.pretrained else 2e-3 if own_model else 5e-4
        return {
            "steps": 160 if builtin else suggested_steps(train, batch),
            "global_batch": batch,
            "sequence_length": patches,
            "eval_examples": 512,
            "learning_rate": rate,
        }

    def _batch(self, pixels: Array, labels: Array, places: NDArray[np.int64]) -> dict[str, Tensor]:
        facts = self.prepared.facts
        mean, deviation = (
            np.asarray(facts[name], np.float32)[:, None, None] for name in ("mean", "deviation")
        )
        values = (pixels[places].astype(np.float32) / 255 - mean) / deviation
        return {
            "pixel_values": torch.from_numpy(values),
            "labels": torch.from_numpy(labels[places].astype(np.int64)),
        }


def _logits(model: nn.Module, pixels: Tensor) -> Tensor:
    """Return the logits `(images, classes)` in fp32."""
    logits: Tensor = model(pixel_values=pixels).logits
    return logits.float()


def _patches(config: PreTrainedConfig, source: ModelSource) -> int:
    """Return the patches that an image is read as.

    Raises:
        ModelError: If the model does not say it, or takes images that are not square.
    """
    side, patch = (getattr(config, name, None) for name in ("image_size", "patch_size"))
    channels = getattr(config, "num_channels", None)
    if not (isinstance(side, int) and isinstance(patch, int) and channels in (1, 3)):
        raise ModelError(
            f"{source.name} (family '{config.model_type}') does not read square images of one "
            "size as square patches",
            where=source.folder,
            help="give a vision transformer such as ViT, DeiT, BEiT or DINOv2 with --model",
        )
    return int((side // patch) ** 2)


def _normalisation(source: ModelSource) -> tuple[list[float], list[float]]:
    """Return mean and deviation of each channel that a model's images had in its pretraining."""
    path = Path(source.folder or "") / "preprocessor_config.json"
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    mean, deviation = said.get("image_mean"), said.get("image_std")
    if not said.get("do_normalize", True):
        return [0.0], [1.0]
    return mean or [_MIDDLE], deviation or [_MIDDLE]


def _small_vit(side: int, channels: int) -> ViTConfig:
    """Return a vision transformer of 3 layers and width 64.

    Args:
        side: Pixels of an image in each direction, a multiple of 4.
        channels: Of an image.
    """
    return ViTConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=side,
        patch_size=side // _PATCHES_ACROSS,
        num_channels=channels,
        initializer_range=0.05,
    )
